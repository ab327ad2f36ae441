//! What Torpor reads of CRIU's records: the tasks, their mappings, and which of their pages were dumped where.
//!
//! Total over any bytes; everything that later arithmetic relies on is checked here: addresses are aligned, ascending,
//! disjoint and inside the user half of the address space.

use std::ops::Range;

use store::{Error, Kind, PAGE, Result};

use super::record::{ImageFile, records};
use super::wire::{Fields, Value};

const PAGE_BYTES: u64 = PAGE as u64;
/// The format of images that CRIU has written since 2014.
const IMAGE_VERSION: u64 = 2;
/// No user address lies above this, whatever the paging depth.
const ADDRESS_LIMIT: u64 = 1 << 56;

const IN_PARENT: u64 = 1;
const LAZY: u64 = 2;
const PRESENT: u64 = 4;

const MAP_PRIVATE: u64 = 0x02;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_LOCKED: u64 = 0x2000;
const MAP_HUGETLB: u64 = 0x4_0000;
/// Status bits of the mappings that the kernel provides: vsyscall, vdso and vvar.
const KERNEL_AREAS: u64 = 1 << 2 | 1 << 3 | 1 << 12;

/// Consecutive pages of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// Address of the first page.
    pub start: u64,
    /// At least one.
    pub page_count: u64,
    /// The bytes stand in the pages file.
    pub is_present: bool,
    /// The bytes stand in the parent directory.
    pub is_in_parent: bool,
    /// The pages may be restored after the task runs.
    pub is_lazy: bool,
}

impl PageEntry {
    /// Page numbers: addresses divided by the page size.
    pub fn pages(&self) -> Range<u64> {
        let first = self.start / PAGE_BYTES;
        first..first + self.page_count
    }
}

/// Which pages of a task were dumped, and the number of the file that holds their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageMap {
    /// The `N` of `pages-N.img`.
    pub pages_id: u32,
    /// Ascending, disjoint.
    pub entries: Vec<PageEntry>,
}

impl PageMap {
    /// Reads `pagemap-*.img`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
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

    /// Length of the pages file.
    pub fn pages_file_bytes(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.is_present).map(|entry| entry.page_count * PAGE_BYTES).sum()
    }

    /// The address after the highest page, or zero.
    pub fn end(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.pages().end * PAGE_BYTES)
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

/// CRIU keeps one bit for each advice of madvise(2); this is `MADV_WIPEONFORK`.
const WIPE_ON_FORK: u64 = 1 << 18;

/// A mapping that CRIU registers for lazy restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LazyMapping {
    /// Its addresses.
    pub range: Range<u64>,
    /// Forked children see zero in it, whatever their parent has there (`MADV_WIPEONFORK`).
    pub is_wiped_on_fork: bool,
}

/// The mappings of a task that CRIU registers for lazy restore, from `mm-*.img`. Ascending, disjoint.
pub fn lazy_mappings(bytes: &[u8]) -> Result<Vec<LazyMapping>> {
    let records = records(bytes, ImageFile::Mappings)?;
    let [record] = records[..] else { return Err(corrupt("a task has not exactly one list of mappings")) };
    let mut found: Vec<LazyMapping> = Vec::new();
    for field in Fields::new(record) {
        let (14, Value::Bytes(mapping)) = field? else { continue };
        let (Some(start), Some(end)) = (integer(mapping, 1)?, integer(mapping, 2)?) else {
            return Err(corrupt("a mapping has no bounds"));
        };
        let (flags, status) = (integer(mapping, 6)?.unwrap_or(0), integer(mapping, 7)?.unwrap_or(0));
        let is_lazy = flags & MAP_ANONYMOUS != 0
            && flags & MAP_PRIVATE != 0
            && flags & (MAP_LOCKED | MAP_HUGETLB) == 0
            && status & KERNEL_AREAS == 0;
        if !is_lazy {
            continue;
        }
        let advice = integer(mapping, 9)?.unwrap_or(0);
        let range = range(start, Some(end))?;
        if found.last().is_some_and(|last| last.range.end > range.start) {
            return Err(corrupt("the mappings of a task are out of order"));
        }
        found.push(LazyMapping { range, is_wiped_on_fork: advice & WIPE_ON_FORK != 0 });
    }
    Ok(found)
}

/// The process numbers of all tasks, from `pstree.img`.
pub fn tasks(bytes: &[u8]) -> Result<Vec<u32>> {
    let number = |record: &[u8]| {
        let pid = integer(record, 1)?.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
        pid.ok_or_else(|| corrupt("a task has no process number"))
    };
    records(bytes, ImageFile::ProcessTree)?.into_iter().map(number).collect()
}

/// Checks `inventory.img`.
///
/// # Errors
/// `Invalid` when the images are of a version that is not understood.
pub fn check_inventory(bytes: &[u8]) -> Result<()> {
    let records = records(bytes, ImageFile::Inventory)?;
    let version = records.first().map_or(Ok(None), |record| integer(record, 1))?;
    if version == Some(IMAGE_VERSION) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        format!("CRIU images of version {} are not understood", version.unwrap_or(0)),
    )
    .advice("dump with CRIU 4.2.1 or newer"))
}

/// The last integer with this field number: of repeated scalars protobuf takes the last.
fn integer(record: &[u8], number: u32) -> Result<Option<u64>> {
    let mut found = None;
    for field in Fields::new(record) {
        match field? {
            (found_number, Value::Varint(value)) if found_number == number => found = Some(value),
            (found_number, _) if found_number == number => {
                return Err(corrupt("a number is not stored as one"));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn range(start: u64, end: Option<u64>) -> Result<Range<u64>> {
    let end = end.filter(|end| *end > start && *end <= ADDRESS_LIMIT && end.is_multiple_of(PAGE_BYTES));
    match end {
        Some(end) if start.is_multiple_of(PAGE_BYTES) => Ok(start..end),
        _ => Err(corrupt("an address range is empty, unaligned or outside user memory")
            .object(format!("{start:#x}"))),
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(Kind::Corrupt, what)
}

#[cfg(test)]
mod tests;
