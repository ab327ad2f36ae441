//! The tasks and their mappings, from CRIU's records. [`super::page_map`] reads which of their pages were dumped.
//!
//! Total over any bytes; everything that later arithmetic depends on is checked here: addresses are aligned, ascending,
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

const MAP_PRIVATE: u64 = 0x02;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_LOCKED: u64 = 0x2000;
const MAP_HUGETLB: u64 = 0x4_0000;
/// Status bits of the mappings that the kernel provides: vsyscall, vdso and vvar.
const KERNEL_AREAS: u64 = 1 << 2 | 1 << 3 | 1 << 12;

/// CRIU keeps one bit for each advice of madvise(2); this is `MADV_WIPEONFORK`.
const WIPE_ON_FORK: u64 = 1 << 18;

/// A private mapping of no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnonymousMapping {
    /// Its addresses.
    pub range: Range<u64>,
    /// CRIU registers it for lazy restore.
    pub is_lazy: bool,
    /// It is zero in forked children, whatever their parent has there (`MADV_WIPEONFORK`).
    pub is_wiped_on_fork: bool,
}

/// The private anonymous mappings of a task, from `mm-*.img`. Ascending, disjoint.
pub(crate) fn anonymous_mappings(bytes: &[u8]) -> Result<Vec<AnonymousMapping>> {
    let record = mappings_record(bytes)?;
    let mut found: Vec<AnonymousMapping> = Vec::new();
    for field in Fields::new(record) {
        let (14, Value::Bytes(mapping)) = field? else { continue };
        let (Some(start), Some(end)) = (integer(mapping, 1)?, integer(mapping, 2)?) else {
            return Err(corrupt("a mapping has no bounds"));
        };
        let (flags, status) = (integer(mapping, 6)?.unwrap_or(0), integer(mapping, 7)?.unwrap_or(0));
        let is_anonymous =
            flags & MAP_ANONYMOUS != 0 && flags & MAP_PRIVATE != 0 && status & KERNEL_AREAS == 0;
        if !is_anonymous {
            continue;
        }
        let advice = integer(mapping, 9)?.unwrap_or(0);
        let range = range(start, Some(end))?;
        if found.last().is_some_and(|last| last.range.end > range.start) {
            return Err(corrupt("the mappings of a task are out of order"));
        }
        let is_lazy = flags & (MAP_LOCKED | MAP_HUGETLB) == 0;
        found.push(AnonymousMapping { range, is_lazy, is_wiped_on_fork: advice & WIPE_ON_FORK != 0 });
    }
    Ok(found)
}

/// The mappings of a task that CRIU registers for lazy restore.
pub(crate) fn lazy_mappings(bytes: &[u8]) -> Result<Vec<AnonymousMapping>> {
    let mut found = anonymous_mappings(bytes)?;
    found.retain(|mapping| mapping.is_lazy);
    Ok(found)
}

/// The address ranges of a task's arguments and environment, which `ps` and `/proc/PID/environ` show.
pub(crate) fn arguments_and_environment(bytes: &[u8]) -> Result<[Range<u64>; 2]> {
    let record = mappings_record(bytes)?;
    let bound = |number| Ok::<u64, Error>(integer(record, number)?.unwrap_or(0).min(ADDRESS_LIMIT));
    Ok([bound(8)?..bound(9)?, bound(10)?..bound(11)?])
}

/// The one record of `mm-*.img`.
pub(crate) fn mappings_record(bytes: &[u8]) -> Result<&[u8]> {
    match records(bytes, ImageFile::Mappings)?[..] {
        [record] => Ok(record),
        _ => Err(corrupt("a task has not exactly one list of mappings")),
    }
}

/// The process numbers of all tasks, from `pstree.img`.
pub(crate) fn tasks(bytes: &[u8]) -> Result<Vec<u32>> {
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
pub(crate) fn check_inventory(bytes: &[u8]) -> Result<()> {
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
pub(crate) fn integer(record: &[u8], number: u32) -> Result<Option<u64>> {
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

pub(crate) fn range(start: u64, end: Option<u64>) -> Result<Range<u64>> {
    let end = end.filter(|end| *end > start && *end <= ADDRESS_LIMIT && end.is_multiple_of(PAGE_BYTES));
    match end {
        Some(end) if start.is_multiple_of(PAGE_BYTES) => Ok(start..end),
        _ => Err(corrupt("an address range is empty, unaligned or outside user memory")
            .object(format!("{start:#x}"))),
    }
}

pub(crate) fn corrupt(what: &str) -> Error {
    Error::new(Kind::Corrupt, what)
}

#[cfg(test)]
mod tests;
