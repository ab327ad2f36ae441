//! The dedup budget: however often memory hibernates and whatever changes in between, its resume fetches few frames.

use crate::scratch::Scratch;
use gc::CollectOptions;
use proptest::prelude::*;
use std::collections::BTreeMap;
use store::{GROUP_PAGES, Image, ImageStats, PAGE, SnapshotDraft, SnapshotId, Store, Unwatched};
use tests::model::{Memory, Pages, Random, assert_clean, count_memory, memory_of_store};

/// Memory of noise, so many pages in each space.
fn noise(random: &mut Random, page_counts: &[u64]) -> Memory {
    let space = |(id, count): (u64, &u64)| {
        let pages = (0..*count).map(|page| (page, random.bytes(PAGE))).collect();
        (id, Pages { len_bytes: count * PAGE as u64, pages })
    };
    Memory { spaces: (1..).zip(page_counts).map(space).collect(), blobs: BTreeMap::new() }
}

/// The fewest frames that could hold it.
fn fewest(memory: &Memory) -> usize {
    memory.spaces.values().map(|space| space.pages.len().div_ceil(GROUP_PAGES)).sum()
}

/// Pages that an image over `parent` need not store.
fn equal_pages(memory: &Memory, parent: &Memory) -> u64 {
    let before = |id: &u64, page: &u64| parent.spaces.get(id).and_then(|space| space.pages.get(page));
    let pages = memory.spaces.iter().flat_map(|(id, space)| space.pages.iter().map(move |page| (id, page)));
    pages.filter(|(id, (page, bytes))| before(id, page) == Some(*bytes)).count() as u64
}

/// One app's memory and its hibernations.
struct App {
    store: Store,
    memory: Memory,
    slept: Option<(SnapshotId, Memory)>,
}

impl App {
    fn image(&self, snapshot: &SnapshotId) -> Image {
        self.store.image(&self.store.snapshot(snapshot).unwrap().image.unwrap()).unwrap()
    }

    /// Hibernates, and asserts that nothing is lost, that the pages are counted right, and that the frames are few.
    fn sleep(&mut self) -> (Image, ImageStats) {
        let before = self.slept.take();
        let parent = before.as_ref().map(|(id, _)| self.image(id));
        let mut writer = self.store.writer("test").unwrap();
        let (image, stats) = count_memory(&mut writer, &self.memory, parent.as_ref()).unwrap();
        let draft = SnapshotDraft { image: Some(image), ..SnapshotDraft::default() };
        let id = writer.commit("app", draft).unwrap();
        let image = self.image(&id);
        assert!(memory_of_store(&self.store, &image.id()).unwrap() == self.memory);
        let nothing = Memory::default();
        let before = before.as_ref().map_or(&nothing, |(_, memory)| memory);
        let equal = equal_pages(&self.memory, before);
        assert_eq!((stats.same_as_parent + stats.declined, stats.zero), (equal, 0));
        assert_eq!(stats.new + equal, stats.pages);
        // Twice the fewest of the parent, or 32; the new pages; of each space one group may be short, and a delta.
        let limit = 32.max(2 * fewest(before));
        let most = limit + stats.new as usize / GROUP_PAGES + 1 + 2 * self.memory.spaces.len();
        assert!(image.frame_count() <= most, "{} frames, of at most {most}", image.frame_count());
        self.slept = Some((id, self.memory.clone()));
        (image, stats)
    }

    /// Changes a few bytes of so many pages, anywhere.
    fn change(&mut self, random: &mut Random, count: usize) {
        for _ in 0..count {
            let number = random.below(self.memory.spaces.len());
            let space = self.memory.spaces.values_mut().nth(number).unwrap();
            let number = random.below(space.pages.len().max(1));
            if let Some(page) = space.pages.values_mut().nth(number) {
                let at = random.below(PAGE - 8);
                page[at..at + 8].copy_from_slice(&random.bytes(8));
            }
        }
    }
}

#[test]
fn scattered_changes_of_many_sleeps_leave_an_image_in_few_frames() {
    let (scratch, _) = Scratch::in_memory();
    let mut random = Random::new(11);
    let memory = noise(&mut random, &[640]);
    let mut app = App { store: scratch.open(), memory, slept: None };
    app.sleep();
    let mut sum = ImageStats::default();
    for _ in 0..60 {
        app.change(&mut random, 32);
        let (_, stats) = app.sleep();
        sum.new += stats.new;
        sum.declined += stats.declined;
    }
    assert!(sum.declined > 0 && sum.declined < sum.new, "few pages pay for it: {sum:?}");
    // Hibernated again without a change: within the limit after one image, and from then on all of it is the parent's.
    app.sleep();
    let (image, stats) = app.sleep();
    assert_eq!((stats.declined, stats.same_as_parent), (0, 640));
    assert!(image.frame_count() <= 2 * fewest(&app.memory) + 1);
    let (last, _) = app.slept.take().unwrap();
    app.store.forget("app", |entry| entry.snapshot != last).unwrap();
    gc::collect(&app.store, &CollectOptions { dry_run: false, cycles: 5 }, &Unwatched).unwrap();
    let store = scratch.open();
    assert!(memory_of_store(&store, &image.id()).unwrap() == app.memory);
    assert_clean(&store, "after the ancestors went");
}

#[test]
fn memory_that_changes_in_one_place_is_never_written_again() {
    let (scratch, _) = Scratch::in_memory();
    let mut random = Random::new(12);
    let memory = noise(&mut random, &[200, 40]);
    let mut app = App { store: scratch.open(), memory, slept: None };
    app.sleep();
    for _ in 0..20 {
        let space = app.memory.spaces.get_mut(&2).unwrap();
        space.pages.values_mut().for_each(|page| *page = random.bytes(PAGE));
        let (image, stats) = app.sleep();
        assert_eq!((stats.declined, stats.new), (0, 40));
        assert_eq!(image.frame_count(), fewest(&app.memory));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_history_scatters_an_image_or_loses_a_page(
        page_counts in prop::collection::vec(0..300_u64, 1..4),
        sleeps in prop::collection::vec((0..150_usize, 0..4_u64, any::<bool>()), 1..25),
        seed in any::<u64>(),
    ) {
        let (scratch, _) = Scratch::in_memory();
        let mut random = Random::new(seed);
        let memory = noise(&mut random, &page_counts);
        let mut app = App { store: scratch.open(), memory, slept: None };
        for (changes, event, is_all) in sleeps {
            app.change(&mut random, changes);
            let id = 1 + random.below(page_counts.len()) as u64;
            let space = app.memory.spaces.get_mut(&id).unwrap();
            match event {
                // Pages go, pages come, a process is another one.
                1 => space.pages.retain(|_, _| random.once_in(2)),
                2 => (0..page_counts[id as usize - 1])
                    .filter(|page| page % 3 == 0)
                    .for_each(|page| {
                        space.pages.insert(page, random.bytes(PAGE));
                    }),
                3 if is_all => space.pages.values_mut().for_each(|page| *page = random.bytes(PAGE)),
                _ => {}
            }
            app.sleep();
        }
        assert_clean(&app.store, "after the last sleep");
    }
}
