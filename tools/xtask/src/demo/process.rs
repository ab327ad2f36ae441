//! A real server is put to sleep, woken from its image directory (eagerly) and from the store (lazily), and put to
//! sleep again: what does each cost?

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::files::Runtimes;
use super::scene::{Scene, directory_len_bytes, megabytes};
use super::server::{Server, restore_eagerly};
use crate::shell::{Context, Failure, Result, command, run_quiet};

/// A server of a few hundred MB, and one whose 40 MB are nearly all Node's own.
const LARGE_MIB: u32 = 300;
const SMALL_MIB: u32 = 1;
/// Requests between two sleeps.
const VISITS: usize = 20;

pub(super) fn sleep_and_wake(scene: &mut Scene, runtimes: &Runtimes) -> Result<()> {
    large(scene, runtimes)?;
    small(scene, runtimes)
}

/// A few hundred MB: eager against lazy, and what the second sleep costs.
fn large(scene: &mut Scene, runtimes: &Runtimes) -> Result<()> {
    let start = Instant::now();
    let (mut server, mut child) = Server::start(scene, &runtimes.node(), LARGE_MIB)?;
    scene.happened("large: start", format!("Node server that holds {LARGE_MIB} MiB"), start.elapsed());
    let images = put_to_sleep(scene, &server, &mut child, "large", "sleep")?;
    capture(scene, "large", &images, "capture")?;
    let asleep_at = server.requests();

    let start = Instant::now();
    let mut eager = restore_eagerly(&images)?;
    server.first_reply()?;
    let eager_elapsed = start.elapsed();
    scene.note_process(server.process)?;
    scene.happened("large: wake eagerly", "criu restore of every page, to the first reply", eager_elapsed);
    server.kill()?;
    wait(&mut eager)?;
    server.wait_until_gone()?;

    server.go_back_to(asleep_at);
    let (mut resume, lazy_elapsed) = wake_lazily(scene, &mut server, "large")?;
    let ratio = eager_elapsed.as_secs_f64() / lazy_elapsed.as_secs_f64();
    let what = format!("snapctl resume from the store, to the first reply: {ratio:.1} times as fast");
    scene.happened("large: wake lazily", what, lazy_elapsed);
    visit(&mut server)?;
    let images = put_to_sleep(scene, &server, &mut resume, "large", "sleep again")?;
    capture(scene, "large", &images, "capture again")
}

/// About 40 MB: what the second sleep costs, beside a peer.
fn small(scene: &mut Scene, runtimes: &Runtimes) -> Result<()> {
    let (mut server, mut child) = Server::start(scene, &runtimes.node(), SMALL_MIB)?;
    visit(&mut server)?;
    let first = put_to_sleep(scene, &server, &mut child, "small", "sleep")?;
    capture(scene, "small", &first, "capture")?;
    let (mut resume, elapsed) = wake_lazily(scene, &mut server, "small")?;
    scene.happened("small: wake lazily", "a Node server of 40 MB, to the first reply", elapsed);
    visit(&mut server)?;
    let second = put_to_sleep(scene, &server, &mut resume, "small", "sleep again")?;
    capture(scene, "small", &second, "capture again")?;
    peer(scene, &first, &second)
}

fn visit(server: &mut Server) -> Result<()> {
    (0..VISITS).try_for_each(|_| server.first_reply())
}

/// Dumps the server and waits until its process id is free; `parent` is what waits for it.
fn put_to_sleep(
    scene: &mut Scene,
    server: &Server,
    parent: &mut Child,
    name: &str,
    step: &str,
) -> Result<PathBuf> {
    let images = scene.directory(&format!("{name}-{step}"))?;
    let start = Instant::now();
    server.dump(&images)?;
    wait(parent)?;
    server.wait_until_gone()?;
    let elapsed = start.elapsed();
    let what = format!("criu dump, {}", megabytes(directory_len_bytes(&images)?));
    scene.happened(&format!("{name}: {step}"), what, elapsed);
    Ok(images)
}

fn capture(scene: &mut Scene, name: &str, images: &Path, step: &str) -> Result<()> {
    let arguments = ["capture".as_ref(), name.as_ref(), "--criu".as_ref(), images.as_os_str()];
    let (answer, elapsed) = scene.ask(arguments)?;
    let what = format!(
        "{} pages, {} of them new, {} stored",
        answer.number("pages")?,
        answer.number("new_pages")?,
        megabytes(answer.number("stored_bytes")?)
    );
    scene.happened(&format!("{name}: {step}"), what, elapsed);
    Ok(())
}

/// Starts `snapctl resume`, waits for the server's first reply, and then until all its memory is there.
fn wake_lazily(scene: &Scene, server: &mut Server, name: &str) -> Result<(Child, Duration)> {
    let directory = scene.path(&format!("{name}-resumed"));
    let mut resume: Command = scene.snapctl(["resume", name, "--restore", "--criu-dir"]);
    resume.arg(&directory).args(["--", "--tcp-close"]);
    let log = File::create(scene.path("resume.log")).context(|| "cannot write resume.log".into())?;
    let start = Instant::now();
    resume.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut resume = resume.spawn().context(|| "cannot start snapctl".into())?;
    scene.note_process(resume.id())?;
    server.first_reply()?;
    let elapsed = start.elapsed();
    scene.note_process(server.process)?;
    wait_until_whole(&mut resume)?;
    Ok((resume, elapsed))
}

/// Reads what `snapctl resume` says until all memory is in place, so that the figures of the next dump are of all pages.
fn wait_until_whole(resume: &mut Child) -> Result<()> {
    let said = resume.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
    let mut events = said.map_while(std::io::Result::ok);
    let is_complete = events.any(|event| event.contains("\"done\""));
    if is_complete {
        Ok(())
    } else {
        Err(Failure::new("snapctl resume ended before all memory was in place"))
    }
}

/// The same two image directories in restic.
fn peer(scene: &mut Scene, first: &Path, second: &Path) -> Result<()> {
    let repository = scene.path("restic");
    let restic = |words: &[&str], directory: &Path| {
        let mut restic = command("restic", ["--quiet", "--no-cache", "--repo"]);
        restic.arg(&repository).args(words).env("RESTIC_PASSWORD", "demo").current_dir(directory);
        run_quiet(&mut restic)
    };
    restic(&["init"], first)?;
    restic(&["backup", "."], first)?;
    let before = directory_len_bytes(&repository)?;
    let start = Instant::now();
    restic(&["backup", "."], second)?;
    let elapsed = start.elapsed();
    let grown = directory_len_bytes(&repository)?.saturating_sub(before);
    scene.happened(
        "small: peer",
        format!("restic grows by {} for the second sleep", megabytes(grown)),
        elapsed,
    );
    Ok(())
}

fn wait(child: &mut Child) -> Result<()> {
    child.wait().map(drop).context(|| "cannot wait for a process of the demo".into())
}
