//! snapfs on a real kernel mount: the behaviour that users of a mounted snapshot rely on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

mod applications;
mod crashes;
mod direct;
mod freezes;
mod large;
mod listings;
mod model;
mod operations;
mod permissions;
mod postgres;
mod power;
mod semantics;
mod stamps;
mod standstill;
mod suites;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The binary that mounts in a process of its own.
const HELPER: &str = env!("CARGO_BIN_EXE_mount_helper");

/// Whether a shell script, run by a user without privilege, succeeds; `$0` is `path`.
fn as_nobody(script: &str, path: &Path) -> bool {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(path)
        .uid(65_534)
        .gid(65_534)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().expect("a shell").success()
}

/// Runs a program and returns its output; panics with all of it when it fails.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complained}", output.status);
    said.into_owned()
}
