//! One fill of a range by COPY, ZEROPAGE or POISON, with all the ways in which the kernel stops early.

use std::ops::Range;

use rustix::io::Errno;
use store::{PAGE, Result};

use crate::sys::{Filled, Stop, UserFault};

const PAGE_BYTES: u64 = PAGE as u64;

/// How an attempt to fill a range ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every page of the range is there, or has no mapping to be in.
    Done,
    /// The address space is changing: read its events, then ask again.
    Again,
    /// The address space has ended.
    Gone,
    /// The kernel refused.
    Failed(Errno),
}

/// Applies `fill` to a page-aligned range until all pages are settled, and returns how many pages of 4096 bytes it
/// filled. `page_bytes` is the size of the pages that the memory is made of: the kernel fills no part of one.
///
/// A page that is there already is woken and counts as settled: a thread may have begun to wait before the page came. A
/// range that crosses a border of mappings is filled page by page. `settled` is called with every range that is done.
pub(crate) fn drive(
    fault: &UserFault,
    range: Range<u64>,
    page_bytes: u64,
    fill: impl Fn(Range<u64>) -> Filled,
    mut settled: impl FnMut(Range<u64>),
) -> Result<(Outcome, u64)> {
    let mut next = range.start;
    let mut longest = range.end - range.start;
    let mut filled_pages = 0;
    while next < range.end {
        let end = range.end.min(next + longest);
        let filled = fill(next..end);
        let reached = next + filled.done_bytes;
        filled_pages += filled.done_bytes / PAGE_BYTES;
        settled(next..reached);
        next = reached;
        match filled.stop {
            None => {}
            Some(Stop::Absent) if end - next > page_bytes => longest = page_bytes,
            Some(Stop::Exists | Stop::Absent) => {
                fault.wake(next, page_bytes)?;
                settled(next..next + page_bytes);
                next += page_bytes;
            }
            Some(Stop::Again) => return Ok((Outcome::Again, filled_pages)),
            Some(Stop::Gone) => return Ok((Outcome::Gone, filled_pages)),
            Some(Stop::Failed(errno)) => return Ok((Outcome::Failed(errno), filled_pages)),
        }
    }
    Ok((Outcome::Done, filled_pages))
}
