//! The index is a cache: deleted, damaged, stale or foreign, everything still reads, and a rebuild has the same
//! listing.

use crate::scratch::{Scratch, overwrite};
use crate::sim::try_all;
use std::collections::BTreeSet;
use store::index::{ENTRIES_START, Location, Run};
use store::wire::{Record, seal};
use store::{CheckOptions, Kind, Object, PackId, SnapshotDraft, Store, Tier, Unwatched, Writer};
use tests::is_long;
use tests::model::{Histories, Random, State, assert_clean, assert_holds, put_files, sample_files};

fn commit(writer: &mut Writer, version: u64, model: &mut Histories) {
    let files = sample_files(1, version);
    let tree = put_files(writer, &files).unwrap();
    let id = writer.commit("web", SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() }).unwrap();
    let state = State { files: Some(files), memory: None };
    model.entry("web".to_owned()).or_default().push((id, state.into()));
}

/// A store with three commits, each with an index run.
fn filled(scratch: &Scratch) -> Histories {
    let mut model = Histories::new();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    for version in 0..3 {
        commit(&mut writer, version, &mut model);
    }
    assert_eq!(store.metadata_tier().list("index/").unwrap().len(), 3);
    model
}

/// Every chunk of every pack and where the index says that it is.
fn listing(store: &Store) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (pack, _) in store.packs().unwrap() {
        for entry in store::pack::read_directory(store.metadata_tier(), pack).unwrap().entries {
            let places: Vec<Location> = store.index().find(&entry.id).into_iter().collect();
            assert!(places.iter().any(|place| place.pack == pack), "{pack} holds {} unknown", entry.id);
            found.extend(places.iter().map(|place| (entry.id.to_string(), format!("{place:?}"))));
        }
    }
    found
}

fn delete_index(tier: &dyn Tier) {
    for run in tier.list("index/").unwrap() {
        tier.delete(&run.key).unwrap();
    }
}

#[test]
fn a_store_without_index_reads_everything_and_a_rebuild_gives_the_same_listing() {
    for scratch in [Scratch::in_memory().0, Scratch::in_directory()] {
        let model = filled(&scratch);
        let open_before = scratch.open();
        let before = listing(&open_before);
        delete_index(&*scratch.config.metadata_tier);
        assert_holds(&open_before, &model, "open before the index went");
        let cold = scratch.open();
        assert_holds(&cold, &model, "opened without index");
        let report = store::check(&scratch.open(), CheckOptions::default(), &Unwatched).unwrap();
        assert!(report.problems.iter().any(|problem| problem.error.contains("index rebuild")));
        let (packs, chunks) = store::rebuild_index(&cold, &Unwatched).unwrap();
        assert_eq!(packs, cold.packs().unwrap().len() as u64);
        assert!(chunks > 0);
        for store in [&cold, &scratch.open()] {
            assert_eq!(listing(store), before);
            assert_clean(store, "after the rebuild");
        }
        assert_eq!(scratch.config.metadata_tier.list("index/").unwrap().len(), 1);
        let again = store::rebuild_index(&cold, &Unwatched).unwrap();
        assert_eq!(again, (packs, chunks), "a rebuild of an intact index changes nothing");
    }
}

#[test]
fn a_writer_without_index_still_finds_what_is_there() {
    let (scratch, tier) = Scratch::in_memory();
    let mut model = filled(&scratch);
    delete_index(&tier);
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    commit(&mut writer, 2, &mut model);
    assert_eq!(writer.stats().new_chunks, 0, "nothing is stored twice");
    assert_holds(&scratch.open(), &model, "written without index");
}

#[test]
fn runs_that_are_no_runs_are_passed_over() {
    for scratch in [Scratch::in_memory().0, Scratch::in_directory()] {
        let model = filled(&scratch);
        let tier = scratch.open();
        let tier = tier.metadata_tier();
        let runs = tier.list("index/").unwrap();
        let right = tier.get(&runs[1].key).unwrap().to_vec();
        let mut newer = right.clone();
        newer[10] = 2;
        let foreign = seal(Record::Ref, b"not a run");
        let bodies: [&[u8]; 6] = [b"", b"garbage", &right[..right.len() - 1], &newer, &foreign, &[0; 4096]];
        for body in bodies {
            overwrite(tier, &runs[1].key, body);
            let store = scratch.open();
            assert_holds(&store, &model, "with a run that is none");
            assert!(!store::check(&store, CheckOptions::default(), &Unwatched).unwrap().problems.is_empty());
        }
        store::rebuild_index(&scratch.open(), &Unwatched).unwrap();
        assert_clean(&scratch.open(), "after the rebuild");
    }
}

/// Opening does not look at entries, so damage there shows only when a chunk is not found; then the packs are asked.
#[test]
fn damaged_entries_of_a_run_are_healed_from_the_packs() {
    let (scratch, tier) = Scratch::in_memory();
    let model = filled(&scratch);
    let runs = tier.list("index/").unwrap();
    for info in &runs {
        let mut bytes = tier.get(&info.key).unwrap().to_vec();
        Random::new(3)
            .bytes(24 * 3)
            .iter()
            .zip(&mut bytes[ENTRIES_START..])
            .for_each(|(noise, byte)| *byte = *noise);
        overwrite(&tier, &info.key, &bytes);
    }
    assert_holds(&scratch.open(), &model, "with damaged entries");
}

#[test]
fn a_run_that_names_packs_that_are_gone_misleads_nobody() {
    let (scratch, tier) = Scratch::in_memory();
    let mut model = filled(&scratch);
    let store = scratch.open();
    // A stale run: a copy of a real one whose packs never were.
    let run = tier.list("index/").unwrap().remove(0);
    let mut bytes = tier.get(&run.key).unwrap().to_vec();
    let stale = PackId { writer: store::WriterId::from_bytes([9; 8]), epoch: 1, sequence: 1 };
    let packs =
        bytes.len() - PackId::LEN * Run::open(&run.key, Object::Owned(bytes.clone())).unwrap().pack_count();
    bytes[packs..packs + PackId::LEN].copy_from_slice(&stale.to_bytes());
    tier.put_if_absent("index/ffffffffffffffff/9-9", &seal(Record::BucketRun, &bytes[56..])).unwrap();
    assert_holds(&scratch.open(), &model, "with a stale run");
    // A writer does not depend on such a pack, and the collector takes it out of the index.
    commit(&mut store.writer("test").unwrap(), 0, &mut model);
    let names = |store: &Store| store.index().runs().iter().any(|run| run.packs().any(|pack| pack == stale));
    assert!(names(&scratch.open()));
    gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 1 }, &Unwatched).unwrap();
    assert!(!names(&scratch.open()));
    assert_holds(&scratch.open(), &model, "after a collection");
    store::rebuild_index(&store, &Unwatched).unwrap();
    commit(&mut store.writer("test").unwrap(), 0, &mut model);
    assert_holds(&scratch.open(), &model, "after the rebuild");
}

#[test]
fn a_rebuild_waits_for_no_collector_and_removes_nothing_when_a_pack_is_damaged() {
    let (scratch, tier) = Scratch::in_memory();
    let model = filled(&scratch);
    let store = scratch.open();
    let lock = store::FileLock::take(&store.state_dir().join("gc.lock"), "the collector").unwrap();
    let error = store::rebuild_index(&store, &Unwatched).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("the collector (pid"), "{error}");
    drop(lock);
    let pack = tier.list("packs/").unwrap().remove(0);
    let bytes = tier.get(&pack.key).unwrap().to_vec();
    overwrite(&tier, &pack.key, &bytes[..bytes.len() - 1]);
    assert_eq!(store::rebuild_index(&store, &Unwatched).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(tier.list("index/").unwrap().len(), 3);
    overwrite(&tier, &pack.key, &bytes);
    assert_holds(&scratch.open(), &model, "after it");
}

/// After any history the index is lost, all or in part, or damaged, and rebuilt: the listing is the same.
#[test]
fn a_thousand_rebuilds_give_the_listing_that_was_there() {
    let histories = if is_long() { 200 } else { 40 };
    let rebuilds = try_all("index rebuilds", histories, |seed| {
        let mut random = Random::new(seed as u64);
        let (scratch, tier) = Scratch::in_memory();
        let mut model = Histories::new();
        for round in 0..25 {
            for _ in 0..random.below(3) {
                commit(&mut scratch.open().writer("test").unwrap(), random.below(50) as u64, &mut model);
            }
            let store = scratch.open();
            let before = listing(&store);
            for run in tier.list("index/").unwrap() {
                match random.below(4) {
                    0 => {}
                    1 => {
                        let mut bytes = tier.get(&run.key).unwrap().to_vec();
                        let at = random.below(bytes.len());
                        bytes[at] ^= 1 << random.below(8);
                        overwrite(&tier, &run.key, &bytes);
                    }
                    _ => tier.delete(&run.key).unwrap(),
                }
            }
            let cold = scratch.open();
            store::rebuild_index(&cold, &Unwatched).unwrap();
            assert_eq!(listing(&scratch.open()), before, "seed {seed}, rebuild {round}");
            if round % 8 == 0 {
                assert_holds(&cold, &model, "after a rebuild");
            }
        }
        25
    });
    assert!(rebuilds >= 1_000, "{rebuilds} rebuilds");
}
