//! The answer to a fault: a pure state machine over one address space, free of descriptors and kernel calls.
//!
//! Changes (remove, unmap, remap) and outcomes go in, answers come out. Invariants:
//! - a page that was removed is answered with zero, never again with the image's bytes;
//! - a page that has data and was not removed is never answered with zero;
//! - a fill never crosses a border of regions, and holds only missing pages, except the one that is asked for.
//!
//! An answer fills the one page that a fault waits for; its neighbours in the same group are filled when no fault
//! waits.

use std::ops::Range;
use std::sync::Arc;

use store::{GROUP_PAGES, PAGE};

use crate::pages::{DataPage, PageState, PageStates, PageTable};
use crate::region::{Region, RegionMap};

const PAGE_BYTES: u64 = PAGE as u64;

/// A change of the address space, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The owner released the bytes of `start..end`.
    Remove { start: u64, end: u64 },
    /// `start..end` is no longer mapped.
    Unmap { start: u64, end: u64 },
    /// `len_bytes` at `source` moved to `target`.
    Remap { source: u64, target: u64, len_bytes: u64 },
}

/// How a fault is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Fill with pages of the image.
    Copy(Fill),
    /// Fill with zeroes.
    Zero { start: u64, len_bytes: u64 },
    /// The address belongs to no region of the image.
    Outside,
}

/// Consecutive pages that lie in consecutive slots of one stored group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    /// Run-time address of the first page.
    pub address: u64,
    /// Group that holds the bytes, and the slot of the first page in it.
    pub group: u32,
    pub first_slot: u32,
    /// How many pages; at least one.
    pub page_count: u32,
    /// Number of the first page in the page table.
    pub first_number: u64,
}

/// One address space that is being filled from one space of an image.
#[derive(Clone, Debug)]
pub(crate) struct AddressSpace {
    regions: RegionMap,
    table: Arc<PageTable>,
    states: PageStates,
    /// No page below this number is missing.
    cursor: u64,
    /// Index of the region that held the last prefetched page: pages follow each other, so the next is likely there
    /// too.
    region_hint: usize,
    /// Image pages that are zero in forked children.
    wiped_on_fork: Vec<Range<u64>>,
}

impl AddressSpace {
    /// Every data page that a region shows is missing; other data pages count as present.
    pub(crate) fn new(regions: RegionMap, table: Arc<PageTable>) -> Self {
        let states = PageStates::all_missing(table.len());
        let mut space = Self { regions, table, states, cursor: 0, region_hint: 0, wiped_on_fork: Vec::new() };
        let mut shown: Vec<Range<u64>> = space
            .regions
            .regions()
            .iter()
            .map(|region| {
                space.table.numbers_in(region.first_page..region.first_page + region.len_bytes / PAGE_BYTES)
            })
            .collect();
        shown.sort_by_key(|numbers| numbers.start);
        let mut next = 0;
        for numbers in shown {
            (next..numbers.start).for_each(|number| space.states.set_present(number));
            next = next.max(numbers.end);
        }
        (next..space.table.len()).for_each(|number| space.states.set_present(number));
        space
    }

    /// Marks image pages as restored by another process.
    pub(crate) fn set_present(&mut self, pages: Range<u64>) {
        self.table.numbers_in(pages).for_each(|number| self.states.set_present(number));
    }

    /// The run-time regions.
    pub(crate) fn regions(&self) -> &[Region] {
        self.regions.regions()
    }

    /// Whether every data page is filled, removed or unmapped: all other pages are zero.
    pub(crate) fn is_complete(&self) -> bool {
        self.states.missing_pages() == 0
    }

    /// How many data pages are missing.
    pub(crate) fn missing_pages(&self) -> u64 {
        self.states.missing_pages()
    }

    /// Applies a change, and returns whether it affects the content of any page.
    pub(crate) fn change(&mut self, change: Change) -> bool {
        match change {
            Change::Remove { start, end } => self.set_removed(start, end),
            Change::Unmap { start, end } => {
                self.set_removed(start, end);
                let is_shown = self.shows_any(start, end);
                self.regions.unmap(start, end);
                is_shown
            }
            Change::Remap { source, target, len_bytes } => {
                let target_end = target.saturating_add(len_bytes);
                let is_shown = self.shows_any(source, source.saturating_add(len_bytes))
                    || self.shows_any(target, target_end);
                self.set_removed(target, target_end);
                self.regions.remap(source, target, len_bytes);
                is_shown
            }
        }
    }

    fn shows_any(&self, start: u64, end: u64) -> bool {
        self.regions.overlapping(start, end).next().is_some()
    }

    fn set_removed(&mut self, start: u64, end: u64) -> bool {
        let mut is_new = false;
        for part in self.regions.overlapping(start, end) {
            let numbers = self.table.numbers_in(pages_of(&part));
            is_new |= numbers.clone().any(|number| self.states.get(number) != PageState::Removed);
            self.states.set_removed(numbers);
        }
        is_new
    }

    /// The address and the image page of every data page that was not removed, filled or not, by address.
    pub(crate) fn backed(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.regions().iter().flat_map(move |region| {
            let numbers = self.table.numbers_in(pages_of(region));
            let kept = numbers.filter(|number| self.states.get(*number) != PageState::Removed);
            kept.filter_map(move |number| {
                let page = page_of(&self.table.numbered(number));
                Some((region.address_of(page)?, page))
            })
        })
    }

    /// How to answer a fault at an address.
    pub(crate) fn answer(&self, address: u64) -> Answer {
        let Some(region) = self.regions.find(address) else { return Answer::Outside };
        match self.data_at(region.page_at(address)) {
            Some(data) => Answer::Copy(fill(&region, &data, data.place..data.place + 1)),
            None => self.zero_from(&region, address),
        }
    }

    /// Records that the data pages in a range of addresses are filled.
    pub(crate) fn filled_range(&mut self, start: u64, end: u64) {
        for part in self.regions.overlapping(start, end) {
            let pages = part.first_page..part.first_page + part.len_bytes / PAGE_BYTES;
            self.table.numbers_in(pages).for_each(|number| self.states.set_present(number));
        }
    }

    /// The missing pages right behind and right before a page, in the same group: they are filled after its answer.
    pub(crate) fn neighbours(&self, address: u64) -> [Option<Fill>; 2] {
        let Some(region) = self.regions.find(address) else { return [None, None] };
        let Some(data) = self.data_at(region.page_at(address)) else { return [None, None] };
        let stretch = self.missing_around(&region, &data);
        [data.place + 1..stretch.end, stretch.start..data.place]
            .map(|places| (!places.is_empty()).then(|| fill(&region, &data, places)))
    }

    /// The next stretch of missing pages in image order, or `None` when no page is missing. Returns the same stretch
    /// until it is reported as filled.
    pub(crate) fn prefetch(&mut self) -> Option<Fill> {
        loop {
            let number = self.states.next_missing(self.cursor, self.table.len())?;
            let data = self.table.numbered(number);
            let Some(region) = self.region_showing(page_of(&data)) else {
                self.states.set_present(number);
                continue;
            };
            self.cursor = number;
            return Some(fill(&region, &data, self.missing_around(&region, &data)));
        }
    }

    /// Has these image pages be zero in forked children, whatever they are here.
    pub(crate) fn wipe_on_fork(&mut self, pages: Range<u64>) {
        self.wiped_on_fork.push(pages);
    }

    /// The initial state of a child that is forked now.
    pub(crate) fn forked(&self) -> Self {
        let mut child = self.clone();
        for pages in &self.wiped_on_fork {
            child.states.set_removed(child.table.numbers_in(pages.clone()));
        }
        child
    }

    /// Records that pages of a fill are filled.
    pub(crate) fn filled(&mut self, fill: &Fill, places: Range<u32>) {
        places.for_each(|place| self.states.set_present(fill.first_number + u64::from(place)));
    }

    /// The data page at an image page; `None` where the page is zero or removed.
    fn data_at(&self, page: u64) -> Option<DataPage> {
        self.table.find(page).filter(|data| self.states.get(data.number) != PageState::Removed)
    }

    /// The places of a page and of the missing pages around it, in the same run and region.
    fn missing_around(&self, region: &Region, data: &DataPage) -> Range<u32> {
        let is_missing = |place: &u32| {
            let number = data.number - u64::from(data.place) + u64::from(*place);
            self.states.get(number) == PageState::Missing
                && region.address_of(data.run.first_page + u64::from(*place)).is_some()
        };
        let before = (0..data.place).rev().take_while(is_missing).count() as u32;
        let behind = (data.place + 1..data.run.page_count).take_while(is_missing).count() as u32;
        data.place - before..data.place + 1 + behind
    }

    /// Zeroes from the page of an address on, as far as a group reaches.
    fn zero_from(&self, region: &Region, address: u64) -> Answer {
        let start = address - address % PAGE_BYTES;
        let page = region.page_at(start);
        let longest = ((region.end() - start) / PAGE_BYTES).min(GROUP_PAGES as u64);
        let more = (1..longest).take_while(|ahead| self.data_at(page + ahead).is_none()).count() as u64;
        Answer::Zero { start, len_bytes: (1 + more) * PAGE_BYTES }
    }

    fn region_showing(&mut self, page: u64) -> Option<Region> {
        let regions = self.regions.regions();
        let shows = |region: &&Region| region.address_of(page).is_some();
        if let Some(region) = regions.get(self.region_hint).filter(shows) {
            return Some(*region);
        }
        self.region_hint = regions.iter().position(|region| shows(&region))?;
        regions.get(self.region_hint).copied()
    }
}

/// The fill of some places of a page's run. The region shows all of them.
fn fill(region: &Region, data: &DataPage, places: Range<u32>) -> Fill {
    let address = region.address_of(data.run.first_page + u64::from(places.start));
    Fill {
        address: address.expect("the region shows the places"),
        group: data.run.group,
        first_slot: u32::from(data.run.first_slot) + places.start,
        page_count: places.end - places.start,
        first_number: data.number - u64::from(data.place) + u64::from(places.start),
    }
}

/// The image pages that a region shows.
fn pages_of(region: &Region) -> Range<u64> {
    region.first_page..region.first_page + region.len_bytes / PAGE_BYTES
}

fn page_of(data: &DataPage) -> u64 {
    data.run.first_page + u64::from(data.place)
}

#[cfg(test)]
mod tests;
