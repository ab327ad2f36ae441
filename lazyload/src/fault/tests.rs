//! The state machine against a naive model: one entry per run-time page, applied literally.

use super::*;
use std::collections::BTreeMap;
use store::PageRun;

/// One run-time page in the naive model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shown {
    image_page: u64,
    removed: bool,
    present: bool,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn run(first_page: u64, page_count: u32, group: u32, first_slot: u16) -> PageRun {
    PageRun { first_page, page_count, group, first_slot }
}

/// Image pages 100..164 with holes, in groups of 16.
fn table() -> Arc<PageTable> {
    Arc::new(PageTable::new(&[
        run(100, 16, 0, 0),
        run(116, 4, 1, 0),
        run(125, 10, 1, 4),
        run(140, 1, 2, 9),
        run(145, 15, 3, 1),
    ]))
}

fn regions() -> RegionMap {
    let region = |start_page: u64, pages: u64, first_page| Region {
        start: start_page * PAGE_BYTES,
        len_bytes: pages * PAGE_BYTES,
        first_page,
    };
    RegionMap::new(vec![region(16, 24, 100), region(40, 8, 124), region(60, 40, 132)]).expect("regions")
}

struct Pair {
    space: AddressSpace,
    model: BTreeMap<u64, Shown>,
}

impl Pair {
    fn new() -> Self {
        let space = AddressSpace::new(regions(), table());
        let mut model = BTreeMap::new();
        for region in regions().regions() {
            for page in region.start / PAGE_BYTES..region.end() / PAGE_BYTES {
                let image_page = region.page_at(page * PAGE_BYTES);
                model.insert(page, Shown { image_page, removed: false, present: false });
            }
        }
        Self { space, model }
    }

    fn change(&mut self, random: &mut Random) {
        let len = 1 + random.below(10);
        let (source, target) = (random.below(110), random.below(110));
        let (start, end) = (source * PAGE_BYTES, (source + len) * PAGE_BYTES);
        let before = self.backed();
        let makes_a_difference = match random.below(4) {
            0 | 1 => {
                let changed = self.space.change(Change::Remove { start, end });
                self.model.range_mut(source..source + len).for_each(|(_, shown)| shown.removed = true);
                changed
            }
            2 => {
                let changed = self.space.change(Change::Unmap { start, end });
                self.model.retain(|page, _| !(source..source + len).contains(page));
                changed
            }
            _ if source.abs_diff(target) >= len => {
                let target_start = target * PAGE_BYTES;
                let changed = self.space.change(Change::Remap {
                    source: start,
                    target: target_start,
                    len_bytes: len * PAGE_BYTES,
                });
                let moved: Vec<_> =
                    self.model.range(source..source + len).map(|(page, shown)| (*page, *shown)).collect();
                self.model.retain(|page, _| {
                    !(source..source + len).contains(page) && !(target..target + len).contains(page)
                });
                self.model.extend(moved.into_iter().map(|(page, shown)| (page - source + target, shown)));
                changed
            }
            _ => false,
        };
        assert!(
            makes_a_difference || before == self.backed(),
            "a change that matters is left off the record"
        );
        let backed: Vec<_> = self.space.backed().collect();
        assert_eq!(backed, self.backed());
    }

    /// The addresses that show data pages, with these pages.
    fn backed(&self) -> Vec<(u64, u64)> {
        let is_data = |shown: &&Shown| !shown.removed && table().find(shown.image_page).is_some();
        let backed = self.model.iter().filter(|(_, shown)| is_data(shown));
        backed.map(|(page, shown)| (page * PAGE_BYTES, shown.image_page)).collect()
    }

    /// Checks an answer against the model and applies it to both.
    fn fault(&mut self, page: u64) {
        let answer = self.space.answer(page * PAGE_BYTES + 123);
        let Some(shown) = self.model.get(&page).copied() else {
            assert_eq!(answer, Answer::Outside);
            return;
        };
        let is_data = table().find(shown.image_page).is_some() && !shown.removed;
        match answer {
            Answer::Outside => panic!("page {page} is mapped"),
            Answer::Zero { start, len_bytes } => {
                assert!(!is_data, "zero for a page with data");
                assert_eq!(start, page * PAGE_BYTES);
                for zero in page..page + len_bytes / PAGE_BYTES {
                    let shown = self.model[&zero];
                    assert!(
                        table().find(shown.image_page).is_none() || shown.removed,
                        "fault-around zeroed data"
                    );
                }
            }
            Answer::Copy(fill) => {
                assert!(is_data, "image bytes for a removed or empty page");
                assert_eq!(fill.page_count, 1);
                self.take(&fill, Some(page));
                let neighbours = self.space.neighbours(page * PAGE_BYTES);
                for fill in neighbours.into_iter().flatten() {
                    self.take(&fill, None);
                }
            }
        }
    }

    /// A fill must hold the right bytes for every page and touch only missing ones, except the page asked for.
    fn take(&mut self, fill: &Fill, asked: Option<u64>) {
        let first = fill.address / PAGE_BYTES;
        assert!(asked.is_none_or(|asked| (first..first + u64::from(fill.page_count)).contains(&asked)));
        for place in 0..fill.page_count {
            let page = first + u64::from(place);
            let shown = self.model.get_mut(&page).expect("a fill stays inside mapped pages");
            let data = table().find(shown.image_page).expect("a fill holds data pages");
            assert!(!shown.removed, "image bytes over a removed page");
            assert!(!shown.present || asked == Some(page), "filled a page twice");
            assert_eq!(data.run.group, fill.group);
            assert_eq!(u32::from(data.run.first_slot) + data.place, fill.first_slot + place, "wrong slot");
            shown.present = true;
        }
        self.space.filled(fill, 0..fill.page_count);
    }
}

#[test]
fn random_faults_and_changes_agree_with_the_model() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut pair = Pair::new();
        for _ in 0..60 {
            if random.below(5) == 0 {
                pair.change(&mut random);
            } else {
                let page = random.below(112);
                pair.fault(page);
            }
            if random.below(6) == 0
                && let Some(fill) = pair.space.prefetch()
            {
                pair.take(&fill, None);
            }
        }
        while let Some(fill) = pair.space.prefetch() {
            pair.take(&fill, None);
        }
        assert!(pair.space.is_complete());
        let left = pair
            .model
            .values()
            .filter(|shown| table().find(shown.image_page).is_some() && !shown.removed && !shown.present);
        assert_eq!(left.count(), 0, "seed {seed}: complete, yet data pages are missing");
    }
}

#[test]
fn a_fork_keeps_its_own_state() {
    let mut parent = AddressSpace::new(regions(), table());
    let child = parent.clone();
    parent.change(Change::Remove { start: 16 * PAGE_BYTES, end: 20 * PAGE_BYTES });
    assert!(matches!(parent.answer(16 * PAGE_BYTES), Answer::Zero { .. }));
    assert!(matches!(child.answer(16 * PAGE_BYTES), Answer::Copy(_)));
}

#[test]
fn a_second_fault_on_a_filled_page_gets_its_bytes_again() {
    let mut space = AddressSpace::new(regions(), table());
    let Answer::Copy(fill) = space.answer(18 * PAGE_BYTES) else { panic!("data") };
    space.filled(&fill, 0..1);
    let neighbours = space.neighbours(18 * PAGE_BYTES).map(|fill| fill.expect("both sides are missing"));
    assert_eq!(neighbours.map(|fill| (fill.first_slot, fill.page_count)), [(3, 13), (0, 2)]);
    neighbours.iter().for_each(|fill| space.filled(fill, 0..fill.page_count));
    assert_eq!(space.neighbours(18 * PAGE_BYTES), [None, None]);
    let Answer::Copy(again) = space.answer(18 * PAGE_BYTES) else { panic!("data") };
    assert_eq!((again.page_count, again.first_slot, again.address), (1, 2, 18 * PAGE_BYTES));
}

#[test]
fn eager_and_unmapped_pages_are_not_prefetched() {
    let mut space = AddressSpace::new(regions(), table());
    space.set_present(100..1000);
    assert!(space.is_complete());
    assert_eq!(space.prefetch(), None);
    let nothing_mapped = AddressSpace::new(RegionMap::default(), table());
    assert!(nothing_mapped.is_complete());
}

/// MADV_WIPEONFORK: the child must see zero where its parent sees data, filled already or not; no other page changes.
#[test]
fn a_forked_child_sees_zero_where_forks_wipe() {
    let mut parent = AddressSpace::new(regions(), table());
    parent.wipe_on_fork(100..104);
    let child = parent.forked();
    let address = |page: u64| {
        let shown = parent.regions().iter().find_map(|region| region.address_of(page));
        shown.expect("a region shows it")
    };
    for page in 100..108 {
        assert!(matches!(parent.answer(address(page)), Answer::Copy(_)), "parent, page {page}");
        let is_zero = matches!(child.answer(address(page)), Answer::Zero { .. });
        assert_eq!(is_zero, page < 104, "child, page {page}");
    }
}
