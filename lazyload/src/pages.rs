//! The pages of one image space that hold data, numbered densely, and the state of each.
//!
//! Pages without data are zero whatever happens to them, so only data pages have a number and a state: the size of the
//! tables follows the stored pages, not the span of the address space. Never knows run-time addresses or descriptors.

use std::ops::Range;

use store::PageRun;

/// The state of a data page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageState {
    /// Not filled yet.
    Missing,
    /// Filled, or restored by another process.
    Present,
    /// Released by the owner: it is zero from then on, and the image's bytes must not come back.
    Removed,
}

/// The data pages of an image space in ascending order; a page's number is its place in that order.
#[derive(Debug)]
pub(crate) struct PageTable {
    runs: Vec<PageRun>,
    /// Number of the first page of each run; one more entry for the end.
    numbers: Vec<u64>,
}

/// A data page: the run that holds it, its place in the run, its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataPage {
    pub run: PageRun,
    pub place: u32,
    pub number: u64,
}

impl PageTable {
    /// Takes the runs of a space, ascending and disjoint as [`store::Image::runs`] returns them.
    pub(crate) fn new(runs: &[PageRun]) -> Self {
        debug_assert!(
            runs.windows(2)
                .all(|pair| pair[0].first_page + u64::from(pair[0].page_count) <= pair[1].first_page)
        );
        let mut numbers = Vec::with_capacity(runs.len() + 1);
        let mut next = 0;
        for run in runs {
            numbers.push(next);
            next += u64::from(run.page_count);
        }
        numbers.push(next);
        Self { runs: runs.to_vec(), numbers }
    }

    /// How many data pages there are.
    pub(crate) fn len(&self) -> u64 {
        self.numbers[self.runs.len()]
    }

    /// The data page at an image page; `None` for a zero page.
    pub(crate) fn find(&self, page: u64) -> Option<DataPage> {
        let after = self.runs.partition_point(|run| run.first_page <= page);
        let index = after.checked_sub(1)?;
        let run = self.runs[index];
        let place = u32::try_from(page - run.first_page).ok().filter(|place| *place < run.page_count)?;
        Some(DataPage { run, place, number: self.numbers[index] + u64::from(place) })
    }

    /// The data page with a number below [`PageTable::len`].
    pub(crate) fn numbered(&self, number: u64) -> DataPage {
        let index = self.numbers.partition_point(|first| *first <= number) - 1;
        let place = u32::try_from(number - self.numbers[index]).expect("a number lies inside its run");
        DataPage { run: self.runs[index], place, number }
    }

    /// The numbers of the data pages among the image pages of a range.
    pub(crate) fn numbers_in(&self, pages: Range<u64>) -> Range<u64> {
        self.number_at_or_after(pages.start)..self.number_at_or_after(pages.end.max(pages.start))
    }

    fn number_at_or_after(&self, page: u64) -> u64 {
        let after = self.runs.partition_point(|run| run.first_page <= page);
        let Some(index) = after.checked_sub(1) else { return 0 };
        let run = &self.runs[index];
        self.numbers[index] + (page - run.first_page).min(u64::from(run.page_count))
    }
}

/// The state of every data page, two bits each.
#[derive(Clone, Debug)]
pub(crate) struct PageStates {
    present: Vec<u64>,
    removed: Vec<u64>,
    missing_pages: u64,
}

impl PageStates {
    /// All of `pages` data pages missing.
    pub(crate) fn all_missing(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("a page table in memory has countable pages");
        Self { present: vec![0; words], removed: vec![0; words], missing_pages: pages }
    }

    /// How many pages are still missing.
    pub(crate) fn missing_pages(&self) -> u64 {
        self.missing_pages
    }

    /// The state of a page by number.
    pub(crate) fn get(&self, number: u64) -> PageState {
        let (word, bit) = place(number);
        if self.removed[word] & bit != 0 {
            PageState::Removed
        } else if self.present[word] & bit != 0 {
            PageState::Present
        } else {
            PageState::Missing
        }
    }

    /// Marks a missing page present; a removed one stays removed.
    pub(crate) fn set_present(&mut self, number: u64) {
        let (word, bit) = place(number);
        if (self.present[word] | self.removed[word]) & bit == 0 {
            self.missing_pages -= 1;
        }
        self.present[word] |= bit;
    }

    /// Marks pages removed; they stay removed.
    pub(crate) fn set_removed(&mut self, numbers: Range<u64>) {
        for number in numbers {
            let (word, bit) = place(number);
            if (self.present[word] | self.removed[word]) & bit == 0 {
                self.missing_pages -= 1;
            }
            self.removed[word] |= bit;
        }
    }

    /// The first missing page at or after a number.
    pub(crate) fn next_missing(&self, number: u64, pages: u64) -> Option<u64> {
        let (first_word, _) = place(number);
        let mut skip = number % 64;
        for word in first_word..self.present.len() {
            let missing = !(self.present[word] | self.removed[word]) & (u64::MAX << skip);
            skip = 0;
            if missing != 0 {
                let found = word as u64 * 64 + u64::from(missing.trailing_zeros());
                return (found < pages).then_some(found);
            }
        }
        None
    }
}

fn place(number: u64) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_page: u64, page_count: u32, group: u32) -> PageRun {
        PageRun { first_page, page_count, group, first_slot: 0 }
    }

    #[test]
    fn finds_numbers_and_ranges_like_a_plain_list() {
        let table = PageTable::new(&[run(3, 2, 0), run(5, 1, 1), run(100, 16, 2), run(1 << 35, 1, 3)]);
        let listed: Vec<u64> = [3, 4, 5].into_iter().chain(100..116).chain([1 << 35]).collect();
        assert_eq!(table.len(), listed.len() as u64);
        for page in (0..130).chain([1 << 35, (1 << 35) + 1, u64::MAX]) {
            let expected = listed.iter().position(|listed| *listed == page).map(|place| place as u64);
            assert_eq!(table.find(page).map(|found| found.number), expected, "page {page}");
            let from_here = listed.iter().filter(|listed| **listed < page).count() as u64;
            assert_eq!(table.numbers_in(page..u64::MAX).start, from_here, "page {page}");
        }
        for (number, page) in listed.iter().enumerate() {
            let found = table.numbered(number as u64);
            assert_eq!(found.run.first_page + u64::from(found.place), *page);
        }
        assert_eq!(table.numbers_in(4..101), 1..4);
        assert_eq!(table.numbers_in(50..60), 3..3);
    }

    #[test]
    fn an_empty_table_has_no_page() {
        let table = PageTable::new(&[]);
        assert_eq!((table.len(), table.find(0), table.numbers_in(0..9)), (0, None, 0..0));
        assert_eq!(PageStates::all_missing(0).next_missing(0, 0), None);
    }

    #[test]
    fn removed_stays_removed_and_missing_is_counted() {
        let mut states = PageStates::all_missing(130);
        states.set_present(0);
        states.set_removed(60..70);
        states.set_present(65);
        states.set_present(0);
        assert_eq!(states.get(65), PageState::Removed);
        assert_eq!(states.missing_pages(), 130 - 11);
        assert_eq!(states.next_missing(0, 130), Some(1));
        assert_eq!(states.next_missing(60, 130), Some(70));
        for number in 70..130 {
            states.set_present(number);
        }
        assert_eq!(states.next_missing(60, 130), None);
    }
}
