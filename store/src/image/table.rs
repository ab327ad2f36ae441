//! The page table in memory: the location of each page of a space.

use std::ops::Range;

/// The kind of memory; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ImageKind {
    /// A flat file of pages.
    Raw = 0,
    /// A Firecracker memory file, with the blob `vmstate`.
    Firecracker = 1,
    /// Processes dumped by CRIU, one space each, with its other image files as blobs.
    Criu = 2,
}

/// Consecutive pages of a space that lie in consecutive slots of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first, divided by [`PAGE`].
    pub first_page: u64,
    /// How many.
    pub page_count: u32,
    /// Number of the group in the image.
    pub group: u32,
    /// Slot of the first.
    pub first_slot: u16,
}

impl PageRun {
    /// The page after the last.
    pub fn end_page(&self) -> u64 {
        self.first_page + u64::from(self.page_count)
    }

    /// The part of the run that lies in a range which it overlaps.
    pub(super) fn within(&self, pages: &Range<u64>) -> Self {
        let (first_page, end) = (self.first_page.max(pages.start), self.end_page().min(pages.end));
        let skipped = (first_page - self.first_page) as u16;
        let page_count = (end - first_page) as u32;
        Self { first_page, page_count, first_slot: self.first_slot + skipped, ..*self }
    }

    pub(super) fn slot_of(&self, page: u64) -> Option<u16> {
        let within = page.checked_sub(self.first_page)?;
        (within < u64::from(self.page_count)).then(|| self.first_slot + within as u16)
    }
}

/// Where a page is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Number of the group in the image.
    pub group: u32,
    /// The page's place in it.
    pub slot: u16,
}

/// One address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// 0 for a memory file; the process id in its namespace for a process.
    pub id: u64,
    /// Length of the memory file; for a process the end of its highest page.
    pub len_bytes: u64,
    pub(super) runs: Vec<PageRun>,
}
