//! Deltas and their bases beside the collector: the chunks of an image stay, in whatever order they were written.

use std::sync::Arc;
use store::{PAGE, SnapshotDraft, SnapshotId, Store, Tier, Writer};
use tests::gc_fixture::GcFixture;
use tests::interleaving::InterleavingTier;
use tests::model::{Memory, Pages, Random, assert_clean, memory_of_store, put_memory};

const MAX_OPERATIONS: u64 = 400;

/// A process's memory after so many visits: noise, a few bytes of which change each time.
pub(crate) fn memory(visits: u64) -> Memory {
    let mut random = Random::new(11);
    let mut pages: Vec<Vec<u8>> = (0..20).map(|_| random.bytes(PAGE)).collect();
    for visit in 1..=visits {
        for page in [3, 4, 5, 9, 17] {
            pages[page][100..108].copy_from_slice(&(visit * 1000 + page as u64).to_le_bytes());
        }
    }
    let space = Pages { len_bytes: 20 * PAGE as u64, pages: (0..).zip(pages).collect() };
    Memory { spaces: [(0, space)].into(), blobs: Default::default() }
}

pub(crate) fn sleep(
    writer: &mut Writer,
    visits: u64,
    parent: Option<SnapshotId>,
) -> store::Result<SnapshotId> {
    let store = writer.store().clone();
    let image = parent.map(|parent| store.snapshot(&parent)).transpose()?.and_then(|parent| parent.image);
    let image = image.map(|image| store.image(&image)).transpose()?;
    let image = Some(put_memory(writer, &memory(visits), image.as_ref())?);
    let labels = [("visits".to_owned(), visits.to_string())].into();
    writer.commit("vm", SnapshotDraft { image, parent, labels, ..SnapshotDraft::default() })
}

pub(crate) fn assert_awake(store: &Store, snapshot: &SnapshotId, context: &str) {
    let record = store.snapshot(snapshot).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found =
        memory_of_store(store, &record.image.unwrap()).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(found == memory(record.labels["visits"].parse().unwrap()), "{context}");
    assert_clean(store, context);
}

pub(crate) fn delta_count(store: &Store, snapshot: &SnapshotId) -> usize {
    let image = store.image(&store.snapshot(snapshot).unwrap().image.unwrap()).unwrap();
    (0..image.group_count() as u32).filter(|group| image.group_base(*group).is_some()).count()
}

/// The base is a group of the first hibernation; the third depends on it through the second, which the collector takes
/// away.
#[test]
fn a_base_stays_as_long_as_a_delta_against_it_and_no_longer() {
    let fixture = GcFixture::new();
    let store = fixture.open();
    let mut last = sleep(&mut store.writer("test").unwrap(), 0, None).unwrap();
    for visits in 1..=3 {
        last = sleep(&mut store.writer("test").unwrap(), visits, Some(last)).unwrap();
        assert!(delta_count(&store, &last) > 0, "visit {visits}");
        fixture.open().forget("vm", |entry| entry.snapshot != last).unwrap();
        fixture.collect(4);
        assert_awake(&fixture.open(), &last, &format!("visit {visits}"));
    }
    fixture.open().forget("vm", |_| true).unwrap();
    fixture.collect(4);
    assert_eq!(fixture.memory.list("packs/").unwrap(), []);
}

/// Complete runs of the collector, that take away the parent, between any two operations of a hibernation.
#[test]
fn a_hibernation_survives_collections_of_its_parent_between_any_two_of_its_steps() {
    let (mut places, mut deltas) = (0, 0);
    for cycles in [1, 4] {
        for operation in 0..MAX_OPERATIONS {
            let fixture = Arc::new(GcFixture::new());
            let first = sleep(&mut fixture.open().writer("test").unwrap(), 0, None).unwrap();
            let second = sleep(&mut fixture.open().writer("test").unwrap(), 1, Some(first)).unwrap();
            fixture.open().forget("vm", |entry| entry.snapshot == first).unwrap();
            let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
            let store = fixture.open_on(hooked.clone());
            let step = fixture.clone();
            hooked.arm(operation, move || {
                step.open().forget("vm", |entry| entry.snapshot == second).unwrap();
                step.collect(cycles);
            });
            let slept = store.writer("test").and_then(|mut writer| sleep(&mut writer, 2, Some(second)));
            if hooked.is_armed() {
                break;
            }
            places += 1;
            let context = format!("{cycles} runs before operation {operation}");
            let Ok(third) = slept else { continue }; // its parent was collected before it began
            deltas += delta_count(&fixture.open(), &third);
            assert_awake(&fixture.open(), &third, &context);
            fixture.collect(4);
            assert_awake(&fixture.open(), &third, &format!("{context}, four later"));
        }
    }
    println!("{places} places, {deltas} deltas");
    assert!(places >= 20 && deltas >= 10, "only {places} places and {deltas} deltas");
}
