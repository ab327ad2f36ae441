//! A writer and the collector step between each other's operations, at every place there is.

use std::sync::Arc;
use store::{SnapshotDraft, Tier};
use tests::gc_fixture::{GcFixture, commit, put_tree};
use tests::interleaving::InterleavingTier;

/// More operations than any run here has.
const MAX_OPERATIONS: u64 = 400;

/// PSA-2025-00019-1: the collector lists snapshots; a new snapshot is made that shares all its chunks with an old one;
/// the old one is pruned before the mark reaches it; the new one is not on the list. Its chunks must survive.
#[test]
fn a_snapshot_made_from_a_pruned_one_during_a_collection_keeps_its_chunks() {
    let mut places = 0;
    for operation in 0..MAX_OPERATIONS {
        let fixture = Arc::new(GcFixture::new());
        fixture.commit("old", &[1, 2, 3]);
        let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
        let step = fixture.clone();
        let store = fixture.open_on(hooked.clone());
        hooked.arm(operation, move || {
            step.commit("new", &[1, 2, 3]);
            step.open().forget("old", |_| true).unwrap();
        });
        gc::collect(&store, &gc::CollectOptions::default(), &store::Unwatched).unwrap();
        if hooked.is_armed() {
            break;
        }
        places += 1;
        fixture.collect(4);
        fixture.assert_sound(&format!("before operation {operation} of the collector"));
        assert!(fixture.open().refs().get("new").unwrap().is_some());
    }
    assert!(places >= 10, "only {places} places");
}

/// The same with a writer that looked its chunks up long ago and commits late.
#[test]
fn a_slow_writer_that_depended_on_old_chunks_commits_safely_between_any_two_steps() {
    let mut places = 0;
    for operation in 0..MAX_OPERATIONS {
        let fixture = Arc::new(GcFixture::new());
        fixture.commit("old", &[1, 2, 3]);
        let writing = fixture.open();
        let mut writer = writing.writer("slow").unwrap();
        let tree = put_tree(&mut writer, &[1, 2, 3]).unwrap();
        assert_eq!(writer.stats().new_bytes, 0, "it depends on what is there");
        fixture.open().forget("old", |_| true).unwrap();
        fixture.collect(3); // condemned since, and would be deleted if the writer were not seen
        let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
        let store = fixture.open_on(hooked.clone());
        hooked.arm(operation, move || {
            let labels = [("files".to_owned(), "3".to_owned())].into();
            let draft = SnapshotDraft { tree: Some(tree), labels, ..SnapshotDraft::default() };
            writer.commit("new", draft).unwrap();
            drop(writer);
        });
        gc::collect(&store, &gc::CollectOptions::default(), &store::Unwatched).unwrap();
        if hooked.is_armed() {
            break;
        }
        places += 1;
        fixture.assert_sound(&format!("right after, operation {operation}"));
        fixture.collect(4);
        fixture.assert_sound(&format!("four runs later, operation {operation}"));
    }
    assert!(places >= 10, "only {places} places");
}

/// Complete runs of the collector between any two operations of a writer, from opening to commit.
#[test]
fn a_writer_survives_any_number_of_collections_between_any_two_of_its_steps() {
    for cycles in 1..=4 {
        let mut places = 0;
        for operation in 0..MAX_OPERATIONS {
            let fixture = Arc::new(GcFixture::new());
            fixture.commit("old", &[1, 2]);
            fixture.commit("other", &[9]);
            fixture.open().forget("old", |_| true).unwrap();
            fixture.collect(1); // file 1 and 2 are condemned already, file 9 is not
            let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
            let store = fixture.open_on(hooked.clone());
            let step = fixture.clone();
            hooked.arm(operation, move || {
                step.open().forget("other", |_| true).unwrap();
                step.collect(cycles);
            });
            let mut writer = store.writer("test").unwrap();
            commit(&mut writer, "new", &[1, 2, 3, 9]).unwrap();
            drop(writer);
            if hooked.is_armed() {
                break;
            }
            places += 1;
            fixture.assert_sound(&format!("{cycles} runs before operation {operation}"));
            fixture.collect(4);
            fixture.assert_sound(&format!("{cycles} runs before operation {operation}, four later"));
        }
        assert!(places >= 10, "only {places} places");
    }
}

/// A writer that opens between any two operations of a collection, stores something and depends on existing chunks, and
/// commits only after further collections.
#[test]
fn a_writer_that_opens_during_a_collection_keeps_what_it_stored_and_what_it_leans_on() {
    for cycles in 1..=4 {
        let mut places = 0;
        for operation in 0..MAX_OPERATIONS {
            let fixture = Arc::new(GcFixture::new());
            fixture.commit("old", &[1, 2]);
            fixture.open().forget("old", |_| true).unwrap();
            let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
            let store = fixture.open_on(hooked.clone());
            let (opened, writers) = std::sync::mpsc::channel();
            let step = fixture.clone();
            hooked.arm(operation, move || {
                let mut writer = step.open().writer("long").unwrap();
                commit(&mut writer, "own", &[3]).unwrap();
                step.open().forget("own", |_| true).unwrap();
                let tree = put_tree(&mut writer, &[1, 2, 3]).unwrap();
                opened.send((writer, tree)).unwrap();
            });
            gc::collect(&store, &gc::CollectOptions::default(), &store::Unwatched).unwrap();
            if hooked.is_armed() {
                break;
            }
            places += 1;
            fixture.collect(cycles);
            let (mut writer, tree) = writers.recv().unwrap();
            let labels = [("files".to_owned(), "3".to_owned())].into();
            let draft = SnapshotDraft { tree: Some(tree), labels, ..SnapshotDraft::default() };
            writer.commit("new", draft).unwrap();
            drop(writer);
            fixture.assert_sound(&format!("opened before operation {operation}, {cycles} runs"));
            fixture.collect(4);
            fixture.assert_sound(&format!("opened before operation {operation}, {cycles} runs, four later"));
        }
        assert!(places >= 10, "only {places} places");
    }
}

/// A reader that pins between any two operations of a collection either is refused or keeps what it pinned.
#[test]
fn a_reader_that_pins_during_a_collection_keeps_its_snapshot_or_is_refused() {
    let (mut kept, mut refused) = (0, 0);
    for runs_before in 0..3 {
        for operation in 0..MAX_OPERATIONS {
            let fixture = Arc::new(GcFixture::new());
            let snapshot = fixture.commit("app", &[1, 2]);
            let reading = fixture.open();
            fixture.open().forget("app", |_| true).unwrap();
            if runs_before > 0 {
                fixture.collect(runs_before);
            }
            let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
            let store = fixture.open_on(hooked.clone());
            let (pins, pinned) = std::sync::mpsc::channel();
            let reader = reading.clone();
            hooked.arm(operation, move || pins.send(reader.pin("mount", &[snapshot])).unwrap());
            gc::collect(&store, &gc::CollectOptions::default(), &store::Unwatched).unwrap();
            if hooked.is_armed() {
                break;
            }
            let pin = pinned.recv().unwrap();
            fixture.collect(4);
            match &pin {
                Ok(_) => {
                    tests::gc_fixture::assert_files(&reading, &snapshot, &format!("operation {operation}"));
                    kept += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(kept > 5 && refused > 5, "kept {kept}, refused {refused}");
    assert!(GcFixture::new().memory.list("sessions/").unwrap().is_empty());
}

/// A read of the mark that fails makes the collector look for new index runs. A pack that it learns of then was not
/// there when it listed packs, and is not gone: the index goes on to name it.
#[test]
fn a_run_that_the_collector_learns_of_late_stays_in_the_index() {
    let mut late = 0;
    for operation in 0..MAX_OPERATIONS {
        let fixture = Arc::new(GcFixture::new());
        fixture.commit("old", &[1, 2, 3]);
        fixture.commit("gone", &[4]);
        fixture.open().forget("gone", |_| true).unwrap();
        let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
        let store = fixture.open_on(hooked.clone());
        let (step, again) = (fixture.clone(), hooked.clone());
        hooked.arm(operation, move || {
            let packs = step.memory.list("packs/").unwrap();
            let bodies: Vec<Vec<u8>> =
                packs.iter().map(|info| step.memory.get(&info.key).unwrap().to_vec()).collect();
            step.commit("new", &[5, 6]);
            // For this one operation they cannot be read.
            packs.iter().for_each(|info| step.memory.delete(&info.key).unwrap());
            again.arm(1, move || {
                for (info, body) in packs.iter().zip(&bodies) {
                    assert!(step.memory.put_if_absent(&info.key, body).unwrap());
                }
            });
        });
        let outcome = gc::collect(&store, &gc::CollectOptions::default(), &store::Unwatched);
        if fixture.open().refs().get("new").unwrap().is_none() {
            break;
        }
        late += u32::from(outcome.is_ok());
        if hooked.is_armed() {
            hooked.len_bytes("superblock").unwrap(); // what was taken away comes back
            hooked.len_bytes("superblock").unwrap();
        }
        fixture.assert_sound(&format!("before operation {operation} of the collector: {outcome:?}"));
    }
    assert!(late >= 10, "only {late} collections went on");
}
