//! Collectors of several hosts at once, beside a writer of another.

use std::sync::Arc;
use std::sync::mpsc::channel;
use store::{Kind, MemoryTier, SnapshotDraft, Store, Unwatched};
use tests::gc_fixture::{assert_files, put_tree};
use tests::hosts::Host;
use tests::interleaving::InterleavingTier;
use tests::model::assert_clean;

const MAX_OPERATIONS: u64 = 400;

/// One collector is slow: after it raised the epoch another raises it once more, then a snapshot is forgotten, and a
/// writer opens and depends on what was in it, which the slow one is about to condemn. Later the quick one is in the
/// middle of a run when the writer commits.
fn commit_beside_two_collectors(slow_at: u64, quick_at: u64, runs: u32) -> (bool, bool) {
    let bucket = Arc::new(MemoryTier::new());
    let [slow, quick, writing] = [(); 3].map(|()| Arc::new(Host::new(bucket.clone())));
    slow.init();
    slow.commit("kept", &[9]);
    slow.commit("old", &[1, 2]);

    let view = InterleavingTier::new(bucket.clone());
    let (opened, writers) = channel();
    let (other, host) = (quick.clone(), writing.clone());
    view.arm(slow_at, move || {
        other.collect(1);
        other.open().forget("old", |_| true).unwrap();
        let mut writer = host.open().writer("long").unwrap();
        let tree = put_tree(&mut writer, &[1, 2]).unwrap();
        opened.send((writer, tree)).unwrap();
    });
    let store = Store::open(&slow.config_on(view.clone())).unwrap();
    // Either collector may meet the other's change and is refused then.
    let _ = gc::collect(&store, &gc::CollectOptions::default(), &Unwatched);
    if view.is_armed() {
        return (true, true);
    }

    let (mut writer, tree) = writers.recv().unwrap();
    quick.collect(runs);
    let view = InterleavingTier::new(bucket.clone());
    let (committed, outcomes) = channel();
    view.arm(quick_at, move || {
        let labels = [("files".to_owned(), "2".to_owned())].into();
        let draft = SnapshotDraft { tree: Some(tree), labels, ..SnapshotDraft::default() };
        committed.send(writer.commit("new", draft)).unwrap();
    });
    let store = Store::open(&quick.config_on(view.clone())).unwrap();
    let _ = gc::collect(&store, &gc::CollectOptions::default(), &Unwatched);
    if view.is_armed() {
        return (false, true);
    }
    let context = format!("slow one at {slow_at}, {runs} runs, quick one at {quick_at}");
    match outcomes.recv().unwrap() {
        Ok(snapshot) => {
            quick.collect(3);
            assert_files(&writing.open(), &snapshot, &context);
        }
        // A collector ends its session before deleting what it depends on.
        Err(error) => assert_eq!(error.kind(), Kind::Fenced, "{context}: {error}"),
    }
    assert_clean(&writing.open(), &context);
    (false, false)
}

#[test]
fn a_writer_of_a_later_epoch_than_a_slow_collector_s_keeps_what_it_leans_on() {
    let mut places = 0;
    for runs in 0..=1 {
        for slow_at in 0..MAX_OPERATIONS {
            let mut slow_is_over = false;
            for quick_at in (0..MAX_OPERATIONS).step_by(1 + 2 * runs as usize) {
                let (slow_over, quick_over) = commit_beside_two_collectors(slow_at, quick_at, runs);
                slow_is_over = slow_over;
                if slow_over || quick_over {
                    break;
                }
                places += 1;
            }
            if slow_is_over {
                break;
            }
        }
    }
    println!("{places} places");
    assert!(places >= 100, "only {places} places");
}
