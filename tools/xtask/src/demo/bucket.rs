//! Two hosts over one S3 bucket: what the first backs up the second has at once, reads, and does not store again.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::files::{Runtimes, same_trees};
use super::scene::{Answer, Scene, megabytes};
use super::server::{answer_of, free_ports, poll};
use crate::shell::{Context, Result, command, output, sealed};

const BUCKET: &str = "demo";
const ACCESS_KEY: &str = "demo";
const SECRET_KEY: &str = "demo-secret";

pub(super) fn share(scene: &mut Scene, runtimes: &Runtimes) -> Result<()> {
    let start = Instant::now();
    let port = start_server(scene)?;
    scene.happened("bucket", "a SeaweedFS server, and a bucket in it", start.elapsed());
    let [one, two] = [Host::new(scene, "one", port)?, Host::new(scene, "two", port)?];
    let (answer, elapsed) = one.ask(scene, ["doctor"])?;
    let held = answer.0.matches("\"holds\":true").count();
    scene.happened("doctor", format!("the bucket guarantees {held} of what was tried"), elapsed);
    one.ask(scene, ["init"])?;
    one.back_up(scene, runtimes, 0)?;
    let restored = scene.path("restored-on-two");
    let (_, elapsed) = two.ask(scene, ["restore".as_ref(), "shared".as_ref(), restored.as_os_str()])?;
    same_trees(&runtimes.trees[0], &restored)?;
    scene.happened("two: restore", "what host one backed up, equal to it", elapsed);
    two.back_up(scene, runtimes, 1)?;
    let (answer, elapsed) = one.ask(scene, ["check"])?;
    let what = format!("{} snapshots of both hosts: ok", answer.number("snapshots")?);
    scene.happened("one: check", what, elapsed);
    Ok(())
}

/// A host with a configuration, local state and a near tier of its own.
struct Host {
    name: &'static str,
    configuration: PathBuf,
}

impl Host {
    fn new(scene: &Scene, name: &'static str, port: u16) -> Result<Self> {
        let root = scene.directory(name)?;
        let configuration = root.join("config.toml");
        let text = format!(
            "store = {:?}\nstate = {:?}\nshared = true\n[tiers.cold]\nbucket = {BUCKET:?}\n\
             endpoint = \"http://127.0.0.1:{port}\"\npath_style = true\n",
            root.join("near"),
            root.join("state"),
        );
        fs::write(&configuration, text).context(|| format!("cannot write {}", configuration.display()))?;
        Ok(Self { name, configuration })
    }

    fn ask<S: AsRef<std::ffi::OsStr>>(
        &self,
        scene: &Scene,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<(Answer, Duration)> {
        let start = Instant::now();
        let mut snapctl = scene.snapctl(arguments);
        snapctl.env("TORPOR_CONFIG", &self.configuration).env_remove("TORPOR_STORE");
        snapctl.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        Ok((Answer(output(&mut snapctl)?), start.elapsed()))
    }

    fn back_up(&self, scene: &mut Scene, runtimes: &Runtimes, version: usize) -> Result<()> {
        let tree = runtimes.trees[version].as_os_str();
        let (answer, elapsed) = self.ask(scene, ["backup".as_ref(), tree, "shared".as_ref()])?;
        let what = format!(
            "{}: {} new, {} stored in the bucket",
            megabytes(answer.number("bytes")?),
            megabytes(answer.number("new_bytes")?),
            megabytes(answer.number("stored_bytes")?)
        );
        scene.happened(&format!("{}: backup", self.name), what, elapsed);
        Ok(())
    }
}

/// Starts one that keeps everything in the scratch directory and makes a bucket; gives its port.
fn start_server(scene: &Scene) -> Result<u16> {
    let place = scene.directory("seaweed")?;
    let identities = format!(
        "{{\"identities\":[{{\"name\":\"demo\",\"actions\":[\"Admin\",\"Read\",\"Write\",\"List\",\"Tagging\"],\
         \"credentials\":[{{\"accessKey\":{ACCESS_KEY:?},\"secretKey\":{SECRET_KEY:?}}}]}}]}}"
    );
    let cannot = || format!("cannot write below {}", place.display());
    fs::write(place.join("s3.json"), identities).context(cannot)?;
    let log = File::create(place.join("log")).context(cannot)?;
    let [master, volume, filer, s3, others @ ..] = free_ports::<8>()?;
    let mut weed = command("weed", ["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=."]);
    weed.args(["-master.peers=none", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]);
    weed.args(["-volume.max=40", "-s3", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    for ((role, port), grpc) in
        [("master", master), ("volume", volume), ("filer", filer), ("s3", s3)].iter().zip(others)
    {
        weed.args([format!("-{role}.port={port}"), format!("-{role}.port.grpc={grpc}")]);
    }
    let mut weed = sealed(weed.current_dir(&place));
    weed.stdin(Stdio::null()).stdout(log.try_clone().context(cannot)?).stderr(log);
    let weed = weed.spawn().context(|| "cannot start weed".into())?;
    scene.note_process(weed.id())?;
    let make = format!("POST /buckets/{BUCKET}/ HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
    // Made now, or by a request whose answer was lost.
    let is_made = |answer: &String| answer.contains(" 201 ") || answer.contains(" 409 ");
    poll("the bucket cannot be made", || answer_of(filer, &make).filter(is_made))?;
    poll("the server does not answer", || answer_of(s3, "GET / HTTP/1.0\r\n\r\n"))?;
    Ok(s3)
}
