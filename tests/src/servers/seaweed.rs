//! SeaweedFS as a small cluster: a master, three volume servers that keep every byte twice, a filer, an S3 gateway.

use super::process::{Process, free_port, http, http_get};
use super::{ACCESS_KEY, BUCKET, SECRET_KEY};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// How many servers hold bytes.
pub const VOLUME_SERVERS: usize = 3;

/// A running cluster with one bucket.
#[derive(Debug)]
pub struct SeaweedCluster {
    volumes: Vec<Option<Process>>,
    others: Vec<Process>,
    s3_port: u16,
    _directory: Option<TempDir>,
}

impl SeaweedCluster {
    /// Starts a cluster and waits until all of it answers.
    ///
    /// # Panics
    /// When `weed` is not there or does not start.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let cluster = Self::start_in(directory.path());
        Self { _directory: Some(directory), ..cluster }
    }

    /// Starts one that keeps all it has in `directory`, which is emptied first.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_in(directory: &Path) -> Self {
        if directory.exists() {
            std::fs::remove_dir_all(directory).expect("what an earlier cluster left can be removed");
        }
        std::fs::create_dir_all(directory).expect("a directory can be made");
        let place = |name: &str| directory.join(name);
        let [master_port, filer_port, s3_port] = [(); 3].map(|()| free_port());
        let volume_ports = [(); VOLUME_SERVERS].map(|()| free_port());
        let here = ["-ip=127.0.0.1".to_owned(), "-ip.bind=127.0.0.1".to_owned()];
        let weed = |role: &str, place: &Path, options: &[String]| {
            Process::start("weed", &[&[role.to_owned()], options].concat(), place)
        };
        let master_at = format!("-master=127.0.0.1:{master_port}");
        let port = |port: u16| format!("-port={port}");
        let options = [
            &here[..],
            &[
                port(master_port),
                "-mdir=.".into(),
                "-peers=none".into(),
                "-telemetry=false".into(),
                "-volumeSizeLimitMB=64".into(),
                "-defaultReplication=001".into(),
            ],
        ];
        let master = weed("master", &place("master"), &options.concat());
        let volumes = volume_ports.iter().map(|&own| {
            let options = ["-dir=.".into(), "-max=40".into(), "-minFreeSpace=64MiB".into()];
            let options = [&here[..], &[port(own), master_at.clone()], &options].concat();
            Some(weed("volume", &place(&format!("volume-{own}")), &options))
        });
        let volumes: Vec<Option<Process>> = volumes.collect();
        let options = ["-defaultStoreDir=.".into(), "-defaultReplicaPlacement=001".into()];
        let options = [&here[..], &[port(filer_port), master_at], &options].concat();
        let filer = weed("filer", &place("filer"), &options);
        std::fs::create_dir_all(place("s3")).expect("a directory can be made");
        std::fs::write(place("s3/s3.json"), identities()).expect("a file can be written");
        let options = [
            "-ip.bind=127.0.0.1".into(),
            port(s3_port),
            "-port.iceberg=0".into(),
            "-port.lance=0".into(),
            format!("-filer=127.0.0.1:{filer_port}"),
            "-config=s3.json".into(),
        ];
        let s3 = weed("s3", &place("s3"), &options);

        master.wait_until(|| {
            let status = http_get(master_port, "/dir/status");
            status.is_some_and(|text| text.matches("\"PublicUrl\"").count() == VOLUME_SERVERS)
        });
        filer.wait_until(|| http_get(filer_port, "/").is_some());
        s3.wait_until(|| http_get(s3_port, "/").is_some());
        let bucket =
            format!("POST /buckets/{BUCKET}/ HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n");
        let made = http(filer_port, &bucket).unwrap_or_default();
        assert!(made.contains(" 201 "), "the bucket cannot be made: {made}");
        Self { volumes, others: vec![master, filer, s3], s3_port, _directory: None }
    }

    /// The URL of its S3 gateway.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.s3_port)
    }

    /// The port of its S3 gateway.
    pub fn port(&self) -> u16 {
        self.s3_port
    }

    /// Kills one of the servers that hold bytes, for good.
    pub fn kill_volume_server(&mut self, number: usize) {
        self.volumes[number].take().expect("it is killed once").kill();
    }

    /// Memory of all its processes in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.volumes.iter().flatten().chain(&self.others).map(Process::resident_kib).sum()
    }
}

/// The prefix of limited keys, in the bucket and in no other place of it.
pub const LIMITED_PREFIX: &str = "limited";
/// The permissions that keys need by the README, on the objects below the prefix and, the last, on the bucket.
const NEEDED: [&str; 5] =
    ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListBucket"];
/// Those that the server enforces: a key that may put objects may abort uploads in parts, too.
pub const ENFORCED: [&str; 4] = [NEEDED[0], NEEDED[1], NEEDED[2], NEEDED[4]];

/// The access key with the README's permissions below [`LIMITED_PREFIX`], except `missing`.
pub fn limited_key(missing: Option<&str>) -> String {
    missing.map_or("limited".to_owned(), |permission| format!("without-{}", permission.replace(':', "-")))
}

/// The policy of the README, without `missing`.
fn policy(missing: Option<&str>) -> Value {
    let allowed = |permission: &&str| Some(*permission) != missing;
    let (of_bucket, of_objects): (Vec<&str>, _) =
        NEEDED.into_iter().filter(allowed).partition(|permission| *permission == "s3:ListBucket");
    let bucket = format!("arn:aws:s3:::{BUCKET}");
    let below = format!("{LIMITED_PREFIX}/*");
    let objects = json!({ "Effect": "Allow", "Action": of_objects, "Resource": format!("{bucket}/{below}") });
    let listing = json!({
        "Effect": "Allow",
        "Action": of_bucket,
        "Resource": bucket,
        "Condition": { "StringLike": { "s3:prefix": below } },
    });
    let statements = if of_bucket.is_empty() { json!([objects]) } else { json!([objects, listing]) };
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// One with every permission, one with the needed ones, and for each permission one without it.
fn identities() -> String {
    let credentials = |key: &str| json!([{ "accessKey": key, "secretKey": SECRET_KEY }]);
    let actions = ["Admin", "Read", "Write", "List", "Tagging"];
    let mut identities =
        vec![json!({ "name": "test", "credentials": credentials(ACCESS_KEY), "actions": actions })];
    let mut policies = Vec::new();
    for missing in NEEDED.into_iter().map(Some).chain([None]) {
        let name = limited_key(missing);
        policies.push(json!({ "name": name, "content": policy(missing).to_string() }));
        identities.push(json!({ "name": name, "credentials": credentials(&name), "policyNames": [name] }));
    }
    json!({ "identities": identities, "policies": policies }).to_string()
}
