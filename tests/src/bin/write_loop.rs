//! A process that commits one version after the other to a store and reports each, until it is killed; or that holds
//! the writer's lock until its input ends; or that writes as one of several hosts. For tests that need a process to
//! kill, to stop or to wait for.
//!
//! `write_loop DIRECTORY SEED FIRST one|many` (one ref, or a new one for each version) or `write_loop DIRECTORY hold`;
//! the store is DIRECTORY/store, its state DIRECTORY/state. Or `write_loop DIRECTORY host`: the store is shared, and a
//! refused commit is reported and tried again.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use store::{Kind, LocalTier, Result, SnapshotDraft, Store, StoreConfig};
use tests::gc_fixture;
use tests::hosts::shared_directory;
use tests::model::{put_files, sample_files};

/// Commits of one writer before the next is opened.
const COMMITS_OF_A_WRITER: u64 = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let directory = Path::new(&arguments[1]);
    if arguments[2] == "host" {
        return write_as_a_host(directory);
    }
    let store = Store::open(&StoreConfig {
        cache_bytes: 1 << 20,
        level: 1,
        ..StoreConfig::on(Arc::new(LocalTier::new(directory.join("store"))), directory.join("state"))
    })?;
    if arguments[2] == "hold" {
        let _writer = store.writer("write loop")?;
        say("holding");
        std::io::stdin().read_to_end(&mut Vec::new()).expect("input can be read");
        return Ok(());
    }
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let seed = number(&arguments[2]);
    let mut version = number(&arguments[3]);
    let name = |version| if arguments[4] == "many" { format!("web-{version}") } else { "web".to_owned() };
    loop {
        let mut writer = store.writer("write loop")?;
        for _ in 0..COMMITS_OF_A_WRITER {
            let tree = put_files(&mut writer, &sample_files(seed, version))?;
            let id = writer
                .commit(&name(version), SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() })?;
            say(&format!("ack {version} {id}"));
            version += 1;
        }
    }
}

/// Commits one version after the other to a ref of its own, in a shared store. Each depends on the files that
/// every version has.
fn write_as_a_host(directory: &Path) -> Result<()> {
    let config = shared_directory(directory, "slow");
    let mut version = 0;
    loop {
        let outcome = Store::open(&config).and_then(|store| {
            let mut writer = store.writer("a slow host")?;
            gc_fixture::commit(&mut writer, "slow", &[1, 2, version % 7 + 10])
        });
        match outcome {
            Ok(id) => say(&format!("ack {version} {id}")),
            Err(error) if error.kind() == Kind::Fenced => say("fenced"),
            Err(error) if error.kind() == Kind::Conflict => say("refused"),
            Err(error) => return Err(error),
        }
        version += 1;
    }
}

/// One line at once.
fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("somebody listens");
}
