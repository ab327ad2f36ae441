//! The tier in a bucket, on real servers: a SeaweedFS cluster that all tests of this binary share, each under a prefix
//! of its own; `rclone serve s3` as one that keeps no promise; Garage, really distributed, in the long mode; and a
//! proxy that does what networks do.
//!
//! The servers are installed by `cargo xtask setup` and found in PATH.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

mod access;
mod cluster;
mod conformance;
mod doctor;
mod faults;
mod garage;
mod single_owner;
mod whole;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex};
use store::tier::examine_and_record;
use store::{S3Settings, S3Tier};
use tests::servers::{SeaweedCluster, settings};

/// The cluster that tests share. Tests that break a server have one of their own.
static SEAWEED: LazyLock<SeaweedCluster> =
    LazyLock::new(|| SeaweedCluster::start_in(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("seaweed")));

/// A prefix that no other test has.
fn prefix(name: &str) -> String {
    static COUNT: Mutex<u32> = Mutex::new(0);
    let mut count = COUNT.lock().unwrap();
    *count += 1;
    format!("{name}-{count}")
}

/// Writes the file of a bucket's keys, for its owner alone.
fn write_keys(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A tier below a new prefix of a bucket, examined.
fn examined(settings: &S3Settings) -> S3Tier {
    let examination = examine_and_record(settings).unwrap();
    println!("{}: {:#?}", settings.url(), examination.findings);
    S3Tier::new(settings).unwrap()
}

/// The port of the shared cluster's gateway.
fn seaweed_port() -> u16 {
    SEAWEED.port()
}

/// Settings for the shared cluster, under a prefix of their own.
fn on_seaweed(name: &str) -> S3Settings {
    settings(&SEAWEED.endpoint(), &prefix(name))
}
