//! The result of examining an object store: property by property, with the evidence.

use super::guarantees::{BucketRecord, Guarantees};
use crate::clock;

/// One property, and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The property.
    pub property: Property,
    /// Whether it holds, as far as could be observed.
    pub holds: bool,
    /// The observation.
    pub evidence: String,
}

/// An examined property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// [`Guarantees::put_if_absent`]
    PutIfAbsent,
    /// [`Guarantees::compare_and_swap`]
    CompareAndSwap,
    /// [`Guarantees::conditional_delete`]
    ConditionalDelete,
    /// [`Guarantees::list_after_write`]
    ListAfterWrite,
    /// [`Guarantees::read_after_write`]
    ReadAfterWrite,
    /// A range of an object can be read, and has the right bytes.
    Ranges,
    /// [`Guarantees::multipart`]
    Multipart,
    /// [`Guarantees::multipart_condition`]
    MultipartCondition,
    /// [`Guarantees::checksums`]
    Checksums,
    /// An object keeps the mark of the call that stored it.
    Marks,
    /// Of a directory: it is on a file system of this machine.
    OwnDisk,
    /// Of a directory: files without a name, linked when they are complete, and never over another.
    UnnamedFiles,
    /// Of a directory: a file replaces another atomically.
    Rename,
    /// Of a directory: files and directories can be synced.
    Sync,
    /// Of a directory: locks between processes that open it.
    Locks,
}

/// All findings of one examination.
#[derive(Clone, Debug)]
pub struct Examination {
    /// One for each property looked at.
    pub findings: Vec<Finding>,
    /// Median of a small put, in microseconds.
    pub put_us: u32,
    /// Median of a small get, in microseconds.
    pub get_us: u32,
}

impl Examination {
    /// Whether a property was examined and holds.
    pub fn holds(&self, property: Property) -> bool {
        self.findings.iter().any(|finding| finding.property == property && finding.holds)
    }

    /// The guarantees of a bucket with these findings.
    pub fn guarantees(&self) -> Guarantees {
        Guarantees {
            put_if_absent: self.holds(Property::PutIfAbsent),
            compare_and_swap: self.holds(Property::CompareAndSwap),
            conditional_delete: self.holds(Property::ConditionalDelete),
            list_after_write: self.holds(Property::ListAfterWrite),
            read_after_write: self.holds(Property::ReadAfterWrite),
            multipart: self.holds(Property::Multipart),
            multipart_condition: self.holds(Property::MultipartCondition),
            checksums: self.holds(Property::Checksums),
        }
    }

    /// The record of it for the bucket.
    pub fn record(&self) -> BucketRecord {
        BucketRecord {
            guarantees: self.guarantees(),
            examined: clock::now(),
            put_us: self.put_us,
            get_us: self.get_us,
        }
    }
}

/// The median of some times in microseconds; 0 of none.
pub(super) fn median_us(mut times: Vec<std::time::Duration>) -> u32 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0, |time| u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}
