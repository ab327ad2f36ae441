//! CRIU's page maps, which list the pages of a task that a dump has: read and written.
//!
//! Total over any bytes; everything that later arithmetic depends on is checked here: addresses are aligned, ascending,
//! disjoint and inside the user half of the address space.

use std::ops::Range;

use store::{PAGE, Result};

use super::entries::{corrupt, integer, range};
use super::record::{ImageFile, image_file, records};
use super::wire::put_integer;

const PAGE_BYTES: u64 = PAGE as u64;

const IN_PARENT: u64 = 1;
const LAZY: u64 = 2;
const PRESENT: u64 = 4;

/// Consecutive pages of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageEntry {
    /// Address of the first page.
    pub start: u64,
    /// At least one.
    pub page_count: u64,
    /// The bytes are in the pages file.
    pub is_present: bool,
    /// The bytes are in the parent directory.
    pub is_in_parent: bool,
    /// The pages may be restored after the task runs.
    pub is_lazy: bool,
}

impl PageEntry {
    /// Page numbers: addresses divided by the page size.
    pub(crate) fn pages(&self) -> Range<u64> {
        let first = self.start / PAGE_BYTES;
        first..first + self.page_count
    }

    /// The same kind of entry for other pages.
    pub(crate) fn with_pages(self, pages: Range<u64>) -> Self {
        Self { start: pages.start * PAGE_BYTES, page_count: pages.end - pages.start, ..self }
    }
}

/// The pages of a task that were dumped, and the number of the file that has their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageMap {
    /// The `N` of `pages-N.img`.
    pub pages_id: u32,
    /// Ascending, disjoint.
    pub entries: Vec<PageEntry>,
}

impl PageMap {
    /// Reads `pagemap-*.img`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let records = records(bytes, ImageFile::PageMap)?;
        let (head, rest) = records.split_first().ok_or_else(|| corrupt("a page map has no head"))?;
        let pages_id = integer(head, 1)?.ok_or_else(|| corrupt("a page map names no pages file"))?;
        let pages_id = u32::try_from(pages_id).map_err(|_| corrupt("a page map names no pages file"))?;
        let mut entries: Vec<PageEntry> = Vec::with_capacity(rest.len());
        for record in rest {
            let entry = page_entry(record)?;
            if entries.last().is_some_and(|last| last.pages().end > entry.pages().start) {
                return Err(corrupt("the pages of a page map are out of order"));
            }
            entries.push(entry);
        }
        Ok(Self { pages_id, entries })
    }

    /// Writes `pagemap-*.img`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let head = {
            let mut record = Vec::new();
            put_integer(&mut record, 1, self.pages_id.into());
            record
        };
        let entry = |entry: &PageEntry| {
            let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
            let flags = flag(entry.is_in_parent, IN_PARENT)
                | flag(entry.is_lazy, LAZY)
                | flag(entry.is_present, PRESENT);
            let mut record = Vec::new();
            put_integer(&mut record, 1, entry.start);
            // The length for readers before CRIU 4.1; later ones read the last field.
            put_integer(&mut record, 2, u32::try_from(entry.page_count).unwrap_or(u32::MAX).into());
            put_integer(&mut record, 4, flags);
            put_integer(&mut record, 5, entry.page_count);
            record
        };
        image_file(ImageFile::PageMap, std::iter::once(head).chain(self.entries.iter().map(entry)))
    }

    /// Length of the pages file in bytes.
    pub(crate) fn pages_file_bytes(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.is_present).map(|entry| entry.page_count * PAGE_BYTES).sum()
    }

    /// The address after the highest page, or zero.
    pub(crate) fn end(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.pages().end * PAGE_BYTES)
    }

    /// Adds a page behind the last one, joined with the last entry if it follows directly and is of the same kind.
    pub(crate) fn push(&mut self, page: u64, kind: PageEntry) {
        let next = kind.with_pages(page..page + 1);
        match self.entries.last_mut() {
            Some(last) if last.pages().end == page && last.with_pages(page..page + 1) == next => {
                last.page_count += 1;
            }
            _ => self.entries.push(next),
        }
    }
}

fn page_entry(record: &[u8]) -> Result<PageEntry> {
    let start = integer(record, 1)?.ok_or_else(|| corrupt("a page map entry has no address"))?;
    let legacy_count = integer(record, 2)?;
    let legacy_in_parent = integer(record, 3)?.unwrap_or(0) != 0;
    let flags = integer(record, 4)?.unwrap_or(if legacy_in_parent { IN_PARENT } else { PRESENT });
    let page_count =
        integer(record, 5)?.or(legacy_count).ok_or_else(|| corrupt("a page map entry has no length"))?;
    range(start, page_count.checked_mul(PAGE_BYTES).and_then(|len_bytes| start.checked_add(len_bytes)))?;
    Ok(PageEntry {
        start,
        page_count,
        is_present: flags & PRESENT != 0,
        is_in_parent: flags & IN_PARENT != 0,
        is_lazy: flags & LAZY != 0,
    })
}
