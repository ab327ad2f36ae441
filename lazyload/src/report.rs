//! The results of a capture and of a serve.

use store::{ImageId, ImageStats};

/// The result of a capture.
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// The image, to be named in a snapshot.
    pub image: ImageId,
    /// Counts of its pages.
    pub stats: ImageStats,
    /// Bytes of memory that were looked at.
    pub bytes: u64,
    /// Pages of the parent that a lazily woken process had not received yet, and receives at its next wake.
    pub not_brought: u64,
}

/// The result of a serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeReport {
    /// Address spaces served: one for a virtual machine, one for each process and forked child.
    pub spaces: u64,
    /// Faults that waited for an answer.
    pub faults: u64,
    /// Pages filled from the image because of faults, neighbours included.
    pub pages: u64,
    /// Pages filled with zeroes because of faults.
    pub zero_pages: u64,
    /// Pages that the owner released while being served.
    pub removed_pages: u64,
    /// Pages filled from the image before a fault asked for them.
    pub prefetched: u64,
    /// Pages that a fault waited for, that could not be read, and that were marked lost.
    pub poisoned: u64,
    /// Pages that were still missing when their owners ended, forked children aside.
    pub never_brought: u64,
    /// Number of the virtual machine monitor that was killed because it waited for such a page.
    pub killed: Option<i32>,
}
