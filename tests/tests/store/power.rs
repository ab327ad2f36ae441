//! A real power cut: a file system that is shut down under a writing process, its journal unflushed, and mounted again.
//! Everything the writer acknowledged before is there.

use crate::kill::{parse, start};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use store::{LocalTier, SnapshotId, Store, StoreConfig, Unwatched};
use tests::is_long;
use tests::model::{Random, assert_clean, files_of_store, sample_files};
use tests::power_disk::PowerDisk;

const SEED: u64 = 78;
/// How many of the acknowledged snapshots are read again after each cut.
const NEWEST: usize = 40;

fn open(disk: &PowerDisk) -> Store {
    Store::open(&config(disk)).unwrap()
}

fn config(disk: &PowerDisk) -> StoreConfig {
    StoreConfig {
        cache_bytes: 1 << 20,
        level: 1,
        ..StoreConfig::on(Arc::new(LocalTier::new(disk.mounted.join("store"))), disk.mounted.join("state"))
    }
}

/// Lets a writer run, cuts the power at a moment after its first acknowledgement, and returns all of them.
fn write_and_cut(disk: &PowerDisk, first: u64, refs: &str, random: &mut Random) -> Vec<(u64, SnapshotId)> {
    let mut child = start(&disk.mounted, SEED, first, refs);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (send, acks) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        lines.map_while(Result::ok).for_each(|line| send.send(line).unwrap());
    });
    let mut told = vec![acks.recv_timeout(Duration::from_secs(60)).expect("the writer acknowledges")];
    let end = Instant::now() + Duration::from_micros(random.below(80_000) as u64);
    while let Ok(line) = acks.recv_timeout(end.saturating_duration_since(Instant::now())) {
        told.push(line);
    }
    disk.cut_power();
    let status = child.wait().unwrap();
    assert!(!status.success(), "a writer without power fails");
    reader.join().unwrap();
    told.extend(acks);
    told.iter().map(|line| parse(line)).collect()
}

/// Asserts that the history of a ref names every snapshot that was acknowledged.
fn assert_named(store: &Store, acknowledged: &[(u64, SnapshotId)], context: &str) {
    let refs = store.refs().list().unwrap();
    let named: HashSet<&SnapshotId> =
        refs.iter().flat_map(|found| found.history.iter().map(|entry| &entry.snapshot)).collect();
    for (version, id) in acknowledged {
        assert!(named.contains(id), "{context}: version {version} is lost");
    }
}

/// Asserts that every snapshot holds the files of its version.
fn assert_held(store: &Store, acknowledged: &[(u64, SnapshotId)], context: &str) {
    for (version, id) in acknowledged {
        let files = files_of_store(store, id).unwrap();
        assert!(files == sample_files(SEED, *version), "{context}: version {version} holds other files");
    }
}

#[test]
fn whatever_was_acknowledged_before_a_power_cut_is_there() {
    let rounds = if is_long() { 500 } else { 30 };
    let disk = PowerDisk::new();
    Store::init(&config(&disk)).unwrap();
    let mut random = Random::new(SEED);
    let mut acknowledged: Vec<(u64, SnapshotId)> = Vec::new();
    for round in 0..rounds {
        let next = acknowledged.last().map_or(0, |(version, _)| version + 1);
        // A ref that is new is linked under its name, one that is there is swapped.
        let refs = if round % 3 == 0 { "one" } else { "many" };
        acknowledged.extend(write_and_cut(&disk, next, refs, &mut random));
        disk.unmount();
        disk.mount();
        let store = open(&disk);
        // Every round names all acknowledged snapshots and reads the newest; the oldest are read again at the end.
        assert_named(&store, &acknowledged, &format!("round {round}"));
        let newest = acknowledged.len().saturating_sub(NEWEST);
        assert_held(&store, &acknowledged[newest..], &format!("round {round}"));
        assert_clean(&store, &format!("round {round}"));
    }
    let store = open(&disk);
    assert_held(&store, &acknowledged, "after all rounds");
    gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 3 }, &Unwatched).unwrap();
    assert_clean(&store, "after all rounds");
    drop(store);
    println!("{rounds} power cuts, {} commits acknowledged, none lost", acknowledged.len());
    disk.unmount();
    disk.mount();
    assert_clean(&open(&disk), "after a clean unmount");
}
