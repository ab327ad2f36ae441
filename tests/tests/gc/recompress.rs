//! Packs that are recompressed in the background: the same bytes in fewer, beside all other processes, and however it
//! ends.

use gc::{Pace, RewriteReport};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::lost_frames;
use store::pack::{Frame, FrameHeader, PackKind, directory_of};
use store::{
    CheckOptions, DataTier, GROUP_PAGES, Kind, MemoryTier, PAGE, PackId, ScrubOptions, SnapshotDraft,
    SnapshotId, Store, StoreConfig, Tier, TierClass, Unwatched,
};
use tests::fault::{Fault, FaultTier};
use tests::gc_fixture::{GcFixture, commit, flip_a_bit, put_tree};
use tests::interleaving::InterleavingTier;
use tests::model::{Random, State, assert_clean, draft_of, put_memory, state_of_store};

use crate::deltas;

const LEVEL: i32 = 9;
const MAX_OPERATIONS: u64 = 400;

fn recompress(store: &Store) -> store::Result<RewriteReport> {
    gc::recompress(store, None, &Pace { rate: None, is_stopped: &|| false, progress: &Unwatched })
}

/// A log, which higher levels compress better.
fn log(seed: u64, lines: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let paths: Vec<String> = (0..50).map(|_| format!("/api/{:x}/items", random.word() >> 40)).collect();
    let line = |number| {
        let (path, took, user) = (&paths[random.below(50)], random.below(900), random.below(300));
        format!("line {number} GET {path} 200 took {took} us for user-{user}@example.org in region eu-west\n")
    };
    (0..lines).map(line).collect::<String>().into_bytes()
}

/// Files and, in a snapshot after it, memory of two hibernations.
fn fill(store: &Store) -> (Vec<(SnapshotId, State)>, SnapshotId) {
    let mut snapshots = Vec::new();
    for number in 0..3u64 {
        let mut files = BTreeMap::from([(b"".to_vec(), tests::model::Item::directory())]);
        for file in 0..3 {
            let name = format!("{file}").into_bytes();
            files.insert(name, tests::model::Item::file(log(number * file, 10_000)));
        }
        let state = State { files: Some(files), memory: None };
        let mut writer = store.writer("test").unwrap();
        let draft = draft_of(&mut writer, "app", &state).unwrap();
        snapshots.push((writer.commit("app", draft).unwrap(), state));
    }
    let first = deltas::sleep(&mut store.writer("test").unwrap(), 0, None).unwrap();
    let second = deltas::sleep(&mut store.writer("test").unwrap(), 1, Some(first)).unwrap();
    assert!(deltas::delta_count(store, &second) > 0);
    (snapshots, second)
}

fn assert_all_there(store: &Store, filled: &(Vec<(SnapshotId, State)>, SnapshotId), context: &str) {
    for (snapshot, state) in &filled.0 {
        assert!(state_of_store(store, snapshot).unwrap() == *state, "{context}: {snapshot}");
    }
    deltas::assert_awake(store, &filled.1, context);
}

/// Data packs on a tier, with their frames.
fn data_packs(tier: &dyn Tier) -> Vec<(PackId, Vec<Vec<u8>>)> {
    let mut packs = Vec::new();
    for info in tier.list("packs/").unwrap() {
        let id = PackId::from_key(&info.key).unwrap();
        let bytes = tier.get(&info.key).unwrap();
        let directory = directory_of(id, &bytes).unwrap();
        if directory.kind == PackKind::Data {
            let range = |start: u64, len: u32| start as usize..start as usize + len as usize;
            let frame = |at: &store::pack::FrameExtent| bytes[range(at.offset, at.len_bytes)].to_vec();
            packs.push((id, directory.frames.iter().map(frame).collect()));
        }
    }
    packs
}

fn stored_bytes(packs: &[(PackId, Vec<Vec<u8>>)]) -> usize {
    packs.iter().flat_map(|(_, frames)| frames).map(Vec::len).sum()
}

#[test]
fn what_lies_on_a_tier_with_a_level_is_recompressed_there_and_reads_as_before() {
    let fixture = GcFixture::new();
    let warm = MemoryTier::new();
    let mut config = fixture
        .config(Arc::new(fixture.memory.clone()))
        .with_tier(DataTier { level: Some(LEVEL), ..DataTier::new(TierClass::Warm, Arc::new(warm.clone())) });
    let store = Store::open(&config).unwrap();
    let filled = fill(&store);
    assert!(recompress(&store).unwrap().packs.is_empty(), "what is hot stays as it is");
    config.tiers[0].limit_bytes = Some(1);
    store::rebalance(&Store::open(&config).unwrap(), None, &Unwatched).unwrap();
    config.tiers[0].limit_bytes = None;
    let before = data_packs(&warm);
    assert!(data_packs(&fixture.memory).is_empty() && before.iter().all(|(id, _)| id.level() == 0));

    let store = Store::open(&config).unwrap();
    let report = recompress(&store).unwrap();
    assert_eq!(report.packs.len(), before.len());
    assert!(report.unreadable.is_empty() && recompress(&store).unwrap().packs.is_empty(), "once is enough");
    assert_all_there(&store, &filled, "old and new packs are there");
    gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 3 }, &Unwatched).unwrap();
    let after = data_packs(&warm);
    assert!(after.iter().all(|(id, _)| id.level() == LEVEL) && data_packs(&fixture.memory).is_empty());
    let (bytes_before, bytes_after) = (stored_bytes(&before), stored_bytes(&after));
    assert!(bytes_after < bytes_before * 9 / 10, "{bytes_before} bytes became {bytes_after}");

    let frames: Vec<Frame> = after
        .iter()
        .flat_map(|(_, frames)| frames)
        .filter_map(|frame| store.decode_frame(frame).ok())
        .collect();
    assert!(frames.iter().any(|frame| frame.plain.len() > 1 << 20), "frames are long where reads are slow");
    let groups = frames.iter().filter(|frame| frame.plain.len() == GROUP_PAGES * PAGE);
    assert!(groups.clone().count() > 0 && groups.clone().all(|frame| frame.slots.len() == 1));
    assert!(frames.iter().any(|frame| frame.base.is_some()), "a delta stays one");
    let reader = Store::open(&config).unwrap();
    assert_all_there(&reader, &filled, "only new packs are there");
    assert_clean(&reader, "recompressed");
}

/// A store whose hot tier has a level.
fn leveled(fixture: &GcFixture, hot: Arc<dyn Tier>) -> StoreConfig {
    let mut config = fixture.config(hot);
    config.tiers[0].level = Some(LEVEL);
    config
}

/// A writer that depends on packs under recompression, and the collector, between any two operations.
#[test]
fn writers_and_the_collector_go_on_between_any_two_steps() {
    for cycles in 0..=3 {
        let mut places = 0;
        for operation in 0..MAX_OPERATIONS {
            let fixture = Arc::new(GcFixture::new());
            fixture.commit("kept", &[1, 2]);
            fixture.commit("old", &[3]);
            fixture.open().forget("old", |_| true).unwrap();
            let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
            let store = Store::open(&leveled(&fixture, hooked.clone())).unwrap();
            let (opened, writers) = std::sync::mpsc::channel();
            let step = fixture.clone();
            hooked.arm(operation, move || {
                let mut writer = step.open().writer("slow").unwrap();
                let tree = put_tree(&mut writer, &[1, 2, 3]).unwrap();
                commit(&mut writer, "fast", &[2, 3]).unwrap();
                if cycles > 0 {
                    step.collect(cycles);
                }
                opened.send((writer, tree)).unwrap();
            });
            assert!(!recompress(&store).unwrap().packs.is_empty());
            if hooked.is_armed() {
                break;
            }
            places += 1;
            let context = format!("before operation {operation}, {cycles} runs");
            fixture.assert_sound(&context);
            fixture.collect(3);
            let (mut writer, tree) = writers.recv().unwrap();
            let labels = [("files".to_owned(), "3".to_owned())].into();
            writer.commit("slow", SnapshotDraft { tree: Some(tree), labels, ..Default::default() }).unwrap();
            drop(writer);
            fixture.assert_sound(&context);
            fixture.collect(4);
            fixture.assert_sound(&format!("{context}, four later"));
        }
        assert!(places >= 10, "only {places} places");
    }
}

/// The objects of a check are recompressed, forgotten and collected, between any two of its steps.
#[test]
fn a_check_calls_nothing_damaged_that_was_only_replaced() {
    let mut places = 0;
    for operation in 0..MAX_OPERATIONS {
        let fixture = Arc::new(GcFixture::new());
        fixture.commit("kept", &[1, 2]);
        fixture.commit("old", &[3]);
        let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
        let store = fixture.open_on(hooked.clone());
        let step = fixture.clone();
        hooked.arm(operation, move || {
            step.open().forget("old", |_| true).unwrap();
            let leveled = leveled(&step, Arc::new(step.memory.clone()));
            assert!(!recompress(&Store::open(&leveled).unwrap()).unwrap().packs.is_empty());
            step.collect(4);
        });
        let options = CheckOptions { read_data: operation % 2 == 0 };
        let report = store::check(&store, options, &Unwatched).unwrap();
        if hooked.is_armed() {
            break;
        }
        places += 1;
        assert!(report.problems.is_empty(), "before operation {operation}: {:?}", report.problems);
    }
    assert!(places >= 20, "only {places} places");
}

/// A pack holds chunks that are needed and a delta whose base went with all its users.
#[test]
fn a_delta_that_nobody_can_need_any_more_keeps_no_pack_from_being_recompressed() {
    let fixture = GcFixture::new();
    let store = fixture.open();
    let first = deltas::sleep(&mut store.writer("test").unwrap(), 0, None).unwrap();
    let mut writer = store.writer("test").unwrap();
    let parent = store.image(&store.snapshot(&first).unwrap().image.unwrap()).unwrap();
    put_memory(&mut writer, &deltas::memory(1), Some(&parent)).unwrap();
    commit(&mut writer, "kept", &[1, 2]).unwrap();
    drop(writer);
    fixture.open().forget("vm", |_| true).unwrap();
    fixture.collect(4);
    let deltas_in = |packs: &[(PackId, Vec<Vec<u8>>)]| {
        let frames = packs.iter().flat_map(|(_, frames)| frames);
        frames.filter(|frame| FrameHeader::decode(frame).unwrap().base.is_some()).count()
    };
    let before = data_packs(&fixture.memory);
    assert!(before.len() == 1 && deltas_in(&before) > 0, "its base is gone, and it is there");
    fixture.assert_sound("with a delta without a base");

    let leveled = leveled(&fixture, Arc::new(fixture.memory.clone()));
    let report = recompress(&Store::open(&leveled).unwrap()).unwrap();
    assert!(report.unreadable.is_empty() && report.packs.len() == 1, "{report:?}");
    fixture.collect(4);
    let after = data_packs(&fixture.memory);
    assert!(after.iter().all(|(id, _)| id.level() == LEVEL) && deltas_in(&after) == 0);
    fixture.assert_sound("without it");
}

/// New packs rot before they are read back: they are refused, and the collector counts on the old ones.
#[test]
fn a_new_pack_that_is_not_as_it_was_written_takes_no_old_one_s_place() {
    let mut refused = 0;
    for operation in 0..MAX_OPERATIONS {
        let fixture = Arc::new(GcFixture::new());
        fixture.commit("one", &[1, 2]);
        fixture.commit("two", &[2, 3]);
        let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
        let store = Store::open(&leveled(&fixture, hooked.clone())).unwrap();
        let step = fixture.clone();
        hooked.arm(operation, move || {
            for info in step.memory.list("packs/").unwrap() {
                let pack = PackId::from_key(&info.key).unwrap();
                if pack.level() == LEVEL {
                    flip_a_bit(&step.memory, &info.key, info.len_bytes as usize / 2);
                }
            }
        });
        let outcome = recompress(&store);
        if hooked.is_armed() {
            break;
        }
        if outcome.is_err() {
            refused += 1;
            let condemned = fixture.open().condemned().unwrap();
            assert!(condemned.iter().any(|list| list.packs.iter().any(|pack| pack.level() == LEVEL)));
            fixture.collect(4);
            fixture.assert_sound(&format!("rotten before operation {operation}"));
        }
    }
    assert!(refused > 0);
}

/// A tier that cannot be reached for a while is no damage: no pack counts as unreadable, and no delta as dead.
#[test]
fn an_outage_at_any_step_ends_a_rewrite_and_the_next_one_rewrites_everything() {
    let mut ended = 0;
    for operation in 0..MAX_OPERATIONS {
        let context = format!("outage at {operation}");
        let fixture = GcFixture::new();
        let store = fixture.open();
        let first = deltas::sleep(&mut store.writer("test").unwrap(), 0, None).unwrap();
        let second = deltas::sleep(&mut store.writer("test").unwrap(), 1, Some(first)).unwrap();
        fixture.commit("one", &[1, 2]);
        let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
        let leveled = leveled(&fixture, hooked.clone());
        let store = Store::open(&leveled).unwrap();
        hooked.fail(operation..operation + 1 + operation % 3);
        let outcome = recompress(&store);
        if hooked.operations() <= operation {
            break;
        }
        match outcome {
            Ok(report) => assert!(report.unreadable.is_empty(), "{context}: {report:?}"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Unavailable, "{context}: {error}");
                ended += 1;
            }
        }
        hooked.fail(0..0);
        fixture.collect(4);
        let store = Store::open(&leveled).unwrap();
        assert!(recompress(&store).unwrap().unreadable.is_empty(), "{context}");
        fixture.collect(4);
        assert!(data_packs(&fixture.memory).iter().all(|(id, _)| id.level() == LEVEL), "{context}");
        let store = fixture.open();
        deltas::assert_awake(&store, &second, &context);
        assert_clean(&store, &context);
    }
    assert!(ended >= 20, "only {ended} were ended");
}

/// A pack with lost frames stays as it is, with the record of that, until it is stored again; others go.
#[test]
fn a_pack_with_lost_frames_stays_until_they_are_stored_anew() {
    let fixture = GcFixture::new();
    fixture.commit("one", &[1, 2]);
    fixture.commit("two", &[3, 4]);
    let (damaged, frames) = data_packs(&fixture.memory).swap_remove(0);
    flip_a_bit(&fixture.memory, &damaged.key(), 64 + frames[0].len() / 2);
    let repair = ScrubOptions { repair: true, ..ScrubOptions::default() };
    assert_eq!(store::scrub(&fixture.open(), &repair, &Unwatched).unwrap().lost.len(), 1);
    let note = lost_frames::key_of(damaged);
    assert!(fixture.memory.get(&note).is_ok());

    let store = Store::open(&leveled(&fixture, Arc::new(fixture.memory.clone()))).unwrap();
    let report = recompress(&store).unwrap();
    let unreadable: Vec<PackId> = report.unreadable.iter().map(|(pack, _)| *pack).collect();
    assert_eq!((unreadable, report.packs.len()), (vec![damaged], 1));
    fixture.collect(4);
    let levels: Vec<(bool, i32)> =
        data_packs(&fixture.memory).iter().map(|(pack, _)| (*pack == damaged, pack.level())).collect();
    assert!(
        levels.len() == 2 && levels.contains(&(true, 0)) && levels.contains(&(false, LEVEL)),
        "{levels:?}"
    );
    assert!(fixture.memory.get(&note).is_ok());

    fixture.commit("one", &[1, 2]);
    fixture.commit("two", &[3, 4]);
    fixture.assert_sound("stored again");
    recompress(&store).unwrap();
    fixture.collect(4);
    fixture.assert_sound("recompressed beside it");
}

#[test]
fn whatever_fails_nothing_is_lost_and_the_next_run_ends_it() {
    for fault in Fault::ALL {
        let mut places = 0;
        for operation in 0..MAX_OPERATIONS {
            let context = format!("{fault:?} at {operation}");
            let fixture = GcFixture::new();
            fixture.commit("one", &[1, 2]);
            fixture.commit("two", &[2, 3]);
            let faulty = FaultTier::new(Arc::new(fixture.memory.clone()), operation, fault);
            let outcome =
                Store::open(&leveled(&fixture, faulty.clone())).and_then(|store| recompress(&store));
            if !faulty.met() {
                break;
            }
            places += 1;
            assert!(outcome.is_err() || operation > 0, "{context}: the fault was not reported");
            fixture.assert_sound(&context);
            fixture.collect(1);
            fixture.assert_sound(&format!("{context}, collected"));
            recompress(&Store::open(&leveled(&fixture, Arc::new(fixture.memory.clone()))).unwrap()).unwrap();
            fixture.collect(4);
            fixture.assert_sound(&format!("{context}, in the end"));
            let packs = data_packs(&fixture.memory);
            assert!(packs.iter().all(|(id, _)| id.level() == LEVEL), "{context}: old packs are left");
        }
        assert!(places >= 5, "only {places} places");
    }
}
