//! Many hosts over one bucket: writers never collide, a host sees, reads and deduplicates against another's commits, a
//! silent bucket leaves local copies readable, and a fenced writer cannot commit.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use store::{Breaker, Kind, MemoryTier, SnapshotDraft, Store, Tier, Unwatched, session};
use tests::fault::{Fault, FaultTier};
use tests::gc_fixture::{assert_files, commit, put_tree};
use tests::hosts::Host;
use tests::interleaving::InterleavingTier;
use tests::is_long;
use tests::model::assert_clean;

fn two_hosts() -> (MemoryTier, Host, Host) {
    let bucket = MemoryTier::new();
    let (one, two) = (Host::new(Arc::new(bucket.clone())), Host::new(Arc::new(bucket.clone())));
    one.init();
    (bucket, one, two)
}

#[test]
fn a_second_host_sees_reads_and_deduplicates_against_the_first() {
    let (bucket, one, two) = two_hosts();
    let reading = two.open();
    let snapshot = one.commit("app", &[1, 2, 3]);
    assert_eq!(reading.resolve("app").unwrap(), snapshot, "seen without opening again");
    assert_files(&reading, &snapshot, "on the second host");
    let store = two.open();
    let mut writer = store.writer("test").unwrap();
    let own = commit(&mut writer, "copy", &[1, 2, 3, 4]).unwrap();
    assert!(writer.stats().new_bytes < 150_000, "{:?}: three of four files were there", writer.stats());
    drop(writer);
    assert_files(&one.open(), &own, "back on the first host");
    let owners: HashSet<String> = bucket
        .list("packs/")
        .unwrap()
        .iter()
        .map(|info| info.key.split('/').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(owners.len(), 2, "each writer names its own packs");
    assert_clean(&one.open(), "after both");
    assert!(bucket.list("sessions/").unwrap().is_empty());
}

#[test]
fn three_writers_at_once_lose_nothing_of_each_other() {
    let bucket = MemoryTier::new();
    let hosts: Vec<Host> = (0..3).map(|_| Host::new(Arc::new(bucket.clone()))).collect();
    hosts[0].init();
    std::thread::scope(|scope| {
        for (number, host) in hosts.iter().enumerate() {
            scope.spawn(move || {
                for version in 0..8u64 {
                    host.commit("common", &[version, 100 + number as u64]);
                    host.commit(&format!("own-{number}"), &[version, 200]);
                }
            });
        }
    });
    let store = hosts[1].open();
    assert_eq!(store.refs().get("common").unwrap().unwrap().history.len(), 24);
    for found in store.refs().list().unwrap() {
        for entry in &found.history {
            assert_files(&store, &entry.snapshot, &found.name);
        }
    }
    hosts[2].open().forget("common", |_| true).unwrap();
    hosts[2].collect(4);
    hosts.iter().for_each(|host| assert_clean(&host.open(), "after a collection"));
}

#[test]
fn what_is_near_is_read_while_the_bucket_is_silent_and_writes_are_refused() {
    let bucket = MemoryTier::new();
    let host = Host::new(Arc::new(bucket.clone()));
    host.init();
    let snapshot = host.commit("app", &[1, 2]);
    let silent = || -> Arc<dyn Tier> {
        let faulty = FaultTier::new(Arc::new(bucket.clone()), 0, Fault::PowerOffBefore);
        assert!(faulty.delete("sessions/none").is_err(), "the power goes");
        Arc::new(Breaker::new(faulty))
    };
    let store = Store::open(&host.config_on(silent())).unwrap();
    assert_eq!(store.resolve("app").unwrap(), snapshot);
    let _pin = store.pin("read", &[snapshot]).unwrap();
    assert_files(&store, &snapshot, "without the bucket");
    assert_eq!(store.writer("test").err().unwrap().kind(), Kind::Unavailable);
    drop(store);
    // And back: nothing has to be repaired.
    host.commit("app", &[1, 2, 3]);
    assert_clean(&host.open(), "after the silence");
}

/// Another host's collector deletes; the local copies go with the next run of the mover, and no earlier read is wrong.
#[test]
fn what_another_host_collected_leaves_the_hot_tier() {
    let (_bucket, one, two) = two_hosts();
    one.commit("gone", &[7, 8]);
    one.commit("kept", &[9]);
    two.open().forget("gone", |_| true).unwrap();
    two.collect(4);
    let report = store::rebalance(&one.open(), None, &Unwatched).unwrap();
    assert!(report.strays.packs >= 1, "{report:?}");
    let store = one.open();
    let kept = store.resolve("kept").unwrap();
    assert_files(&store, &kept, "what stays");
    assert_clean(&store, "after the strays went");
}

/// A host that stops is fenced and its packs collected, between any two operations of its commit: the ref then names
/// the complete new snapshot, or the one that it named before.
#[test]
fn a_writer_that_is_fenced_between_any_two_steps_commits_whole_or_not_at_all() {
    let (mut places, mut committed, mut fenced) = (0, 0, 0);
    for operation in 0..200 {
        let bucket = MemoryTier::new();
        let (slow, other) =
            (Host::new(Arc::new(bucket.clone())), Arc::new(Host::new(Arc::new(bucket.clone()))));
        other.init();
        other.commit("old", &[1, 2]);
        let hooked = InterleavingTier::new(Arc::new(bucket.clone()));
        let store = Store::open(&slow.config_on(hooked.clone())).unwrap();
        let mut writer = store.writer("slow").unwrap();
        let tree = put_tree(&mut writer, &[1, 2, 3]).unwrap();
        let step = other.clone();
        hooked.arm(operation, move || {
            let collecting = step.open();
            collecting.forget("old", |_| true).unwrap();
            for listed in session::alive(collecting.sessions(), false).unwrap() {
                assert!(session::fence(collecting.metadata_tier(), &listed).unwrap());
            }
            step.collect(4);
        });
        let labels = [("files".to_owned(), "3".to_owned())].into();
        let outcome =
            writer.commit("new", SnapshotDraft { tree: Some(tree), labels, ..SnapshotDraft::default() });
        drop(writer);
        if hooked.is_armed() {
            break;
        }
        places += 1;
        let context = format!("fenced before operation {operation} of the commit: {outcome:?}");
        let after = other.open();
        match &outcome {
            Ok(snapshot) => {
                committed += 1;
                assert_eq!(after.resolve("new").unwrap(), *snapshot, "{context}");
                assert_files(&after, snapshot, &context);
            }
            Err(error) => {
                fenced += u32::from(error.kind() == Kind::Fenced);
                let found = after.refs().get("new").unwrap();
                assert!(found.is_none_or(|found| found.history.is_empty()), "{context}");
            }
        }
        other.collect(4);
        assert_clean(&other.open(), &context);
    }
    println!("{places} places: {committed} committed, {fenced} fenced");
    assert!(
        places >= 8 && committed >= 1 && fenced >= 8,
        "{places} places, {committed} committed, {fenced} fenced"
    );
}

/// A bucket without conditional writes: the tier passes every call on, and promises nothing.
#[derive(Debug)]
struct Unconditional(MemoryTier);

impl Tier for Unconditional {
    fn describe(&self) -> String {
        "a bucket without conditions".to_owned()
    }
    fn get(&self, key: &str) -> store::Result<store::Object> {
        self.0.get(key)
    }
    fn get_range(&self, key: &str, offset: u64, len: u64) -> store::Result<Vec<u8>> {
        self.0.get_range(key, offset, len)
    }
    fn len_bytes(&self, key: &str) -> store::Result<Option<u64>> {
        self.0.len_bytes(key)
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> store::Result<bool> {
        self.0.put_if_absent(key, body)
    }
    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> store::Result<bool> {
        self.0.compare_and_swap(key, expected, body)
    }
    fn list(&self, prefix: &str) -> store::Result<Vec<store::ObjectInfo>> {
        self.0.list(prefix)
    }
    fn delete(&self, key: &str) -> store::Result<()> {
        self.0.delete(key)
    }
    fn guarantees(&self) -> store::Result<store::Guarantees> {
        Ok(store::Guarantees::NONE)
    }
}

#[test]
fn without_compare_and_swap_each_ref_has_one_owner_and_one_host_collects() {
    let bucket: Arc<dyn Tier> = Arc::new(Unconditional(MemoryTier::new()));
    let hosts = [Host::new(bucket.clone()), Host::new(bucket)];
    hosts[0].init();
    let open = |number: usize| {
        let mut config = hosts[number].config();
        config.owned_refs = Some(format!("host-{number}/"));
        config.is_collector = number == 0;
        Store::open(&config).unwrap()
    };
    for number in [0, 1] {
        let store = open(number);
        let mut writer = store.writer("test").unwrap();
        let snapshot = commit(&mut writer, &format!("host-{number}/app"), &[1, 2]).unwrap();
        drop(writer);
        assert_files(&open(1 - number), &snapshot, "read by the other host");
    }
    let refused = open(1).forget("host-0/app", |_| true).unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
    let store = open(1);
    let mut writer = store.writer("test").unwrap();
    let refused = commit(&mut writer, "host-0/app", &[3]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
    assert!(refused.to_string().contains("another host's"), "{refused}");
    drop(writer);
    let options = gc::CollectOptions { dry_run: false, cycles: 4 };
    assert_eq!(gc::collect(&store, &options, &Unwatched).unwrap_err().kind(), Kind::Invalid);
    // Rewriting condemns, too, and nothing else keeps two hosts apart, nor a rewrite from its own host's collector.
    let pace = gc::Pace { rate: None, is_stopped: &|| false, progress: &Unwatched };
    assert_eq!(gc::repack_old_epochs(&store, &Unwatched).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(gc::recompress(&store, None, &pace).unwrap_err().kind(), Kind::Invalid);
    let collector = open(0);
    let lock = collector.state().lock("gc.lock", "test").unwrap();
    assert_eq!(gc::repack_old_epochs(&collector, &Unwatched).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(gc::recompress(&collector, None, &pace).unwrap_err().kind(), Kind::Conflict);
    drop(lock);
    gc::collect(&collector, &options, &Unwatched).unwrap();
    assert_clean(&open(1), "after the one collector");
}

/// Hosts that move one ref at once while others read it: no move is lost, and every snapshot that a reader sees is
/// complete.
#[test]
fn ten_thousand_moves_of_a_ref_are_atomic_and_seen_whole() {
    const HOSTS: u64 = 4;
    const REFS: u64 = 100;
    let moves_of_each = if is_long() { 25_000 } else { 2_500 };
    let bucket = MemoryTier::new();
    let hosts: Vec<Host> = (0..HOSTS).map(|_| Host::new(Arc::new(bucket.clone()))).collect();
    hosts[0].init();
    // A ref's record grows with its history: the moves are over some refs, each of them of all hosts.
    let name = |version: u64| format!("common-{}", version % REFS);
    let seen = AtomicU64::new(0);
    let writing = AtomicU64::new(HOSTS);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while writing.load(Ordering::Relaxed) > 0 {
                hosts[0].collect(1);
            }
        });
        for (number, host) in hosts.iter().enumerate() {
            let writing = &writing;
            let name = &name;
            scope.spawn(move || {
                let store = host.open();
                let mut writer = store.writer("test").unwrap();
                for version in 0..moves_of_each {
                    // Most snapshots have chunks in common, as a service's have.
                    let text = format!("{number} {}", version / 10);
                    let blob = writer.put_chunk(text.as_bytes()).unwrap();
                    let number = ("number".to_owned(), format!("{number} {version}"));
                    let labels =
                        [("chunk".to_owned(), blob.to_string()), ("text".to_owned(), text), number].into();
                    let tree = Some(put_tree(&mut writer, &[]).unwrap());
                    writer
                        .commit(&name(version), SnapshotDraft { tree, labels, ..SnapshotDraft::default() })
                        .unwrap();
                }
                writing.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let reader = Host::new(Arc::new(bucket.clone())).open();
        while writing.load(Ordering::Relaxed) > 0 {
            if let Ok(newest) = reader.resolve(&name(seen.load(Ordering::Relaxed))) {
                assert_whole(&reader, &newest);
                seen.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let store = hosts[1].open();
    let histories = store.refs().list().unwrap().into_iter().flat_map(|found| found.history);
    let moved: HashSet<_> = histories.map(|entry| entry.snapshot).collect();
    assert_eq!(moved.len() as u64, HOSTS * moves_of_each);
    moved.iter().for_each(|snapshot| assert_whole(&store, snapshot));
    println!("{} moves of a ref by {HOSTS} hosts, none lost; {seen:?} looks, each whole", moved.len());
}

fn assert_whole(store: &Store, snapshot: &store::SnapshotId) {
    let record = store.snapshot(snapshot).unwrap();
    let chunk = store.read_chunk(&record.labels["chunk"].parse().unwrap()).unwrap();
    assert_eq!(&*chunk, record.labels["text"].as_bytes());
    store.tree(&record.tree.unwrap()).unwrap();
}
