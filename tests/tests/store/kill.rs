//! A real process writes to a real disk and is killed at any moment: everything it acknowledged is there.

use crate::scratch::Scratch;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use store::{SnapshotId, Unwatched};
use tests::is_long;
use tests::model::{Random, assert_clean, files_of_store, sample_files};

const SEED: u64 = 77;

/// A process that commits version `first`, the next, and so on, to `one` ref or to `many`.
pub(crate) fn start(directory: &Path, seed: u64, first: u64, refs: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_write_loop"))
        .arg(directory)
        .args([&seed.to_string(), &first.to_string(), refs])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the writer until a moment after its first acknowledgement that `random` picks; returns all of them.
fn run_and_kill(directory: &Path, first: u64, random: &mut Random) -> Vec<(u64, SnapshotId)> {
    let mut child = start(directory, SEED, first, "one");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (send, acks) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            send.send(line).unwrap();
        }
    });
    let mut told = vec![acks.recv_timeout(Duration::from_secs(60)).expect("the writer acknowledges")];
    let end = Instant::now() + Duration::from_micros(random.below(120_000) as u64);
    while let Ok(line) = acks.recv_timeout(end.saturating_duration_since(Instant::now())) {
        told.push(line);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    told.extend(acks);
    told.iter().map(|line| parse(line)).collect()
}

/// `ack <version> <snapshot>`.
pub(crate) fn parse(line: &str) -> (u64, SnapshotId) {
    let mut words = line.strip_prefix("ack ").expect("an acknowledgement").split(' ');
    (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap())
}

#[test]
fn whatever_a_killed_writer_acknowledged_is_there() {
    let rounds = if is_long() { 1_000 } else { 60 };
    let scratch = Scratch::in_directory();
    let mut random = Random::new(SEED);
    let mut acknowledged: Vec<(u64, SnapshotId)> = Vec::new();
    for round in 0..rounds {
        let next = acknowledged.last().map_or(0, |(version, _)| version + 1);
        let told = run_and_kill(scratch.directory.path(), next, &mut random);
        acknowledged.extend(&told);
        let store = scratch.open();
        let history = store.refs().get("web").unwrap().unwrap().history;
        let mut position = 0;
        for (version, id) in &acknowledged {
            let found = history[position..].iter().position(|entry| entry.snapshot == *id);
            position += found.unwrap_or_else(|| panic!("round {round}: version {version} is lost")) + 1;
        }
        for (version, id) in &told {
            let files = files_of_store(&store, id).unwrap();
            assert!(
                files == sample_files(SEED, *version),
                "round {round}: version {version} holds other files"
            );
        }
        if round % 5 == 4 {
            // The remains of killed writers are swept beside everything else.
            gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 3 }, &Unwatched).unwrap();
            assert_clean(&store, &format!("round {round}"));
            assert!(store.metadata_tier().list("sessions/").unwrap().is_empty());
        }
    }
    println!("{rounds} kills, {} commits acknowledged, none lost", acknowledged.len());
}
