//! A tier: a store of objects behind one narrow blocking interface.
//!
//! Objects are immutable but for those changed by [`Tier::compare_and_swap`]. Objects appear atomically: no reader ever
//! sees a part of one. Every implementation passes the conformance suite of the tests.

mod breaker;
mod examination;
mod guarantees;
mod local;
mod local_probe;
mod memory;
mod mirror;
mod s3;

pub use breaker::Breaker;
pub use examination::{Examination, Finding, Property};
pub use guarantees::{BucketRecord, Guarantees};
pub use local::LocalTier;
pub use local_probe::examine_directory;
pub use memory::MemoryTier;
pub use mirror::MirrorTier;
pub use s3::{
    MIN_PART_BYTES, Patience, S3Credentials, S3Proxy, S3Settings, S3Tier, examine_and_record, examine_bucket,
};

use crate::clock::Time;
use crate::error::{Error, Kind, Result};
use crate::host::object::Object;
use std::fmt::Debug;

/// Name and size of a stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: String,
    /// Its size.
    pub len_bytes: u64,
}

/// Some bytes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// The object's key.
    pub key: String,
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub len_bytes: u64,
}

/// A store of objects. Keys are slash-separated components of `[A-Za-z0-9._%-]`.
pub trait Tier: Send + Sync + Debug {
    /// Its kind and location, for error texts.
    fn describe(&self) -> String;

    /// The whole object.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn get(&self, key: &str) -> Result<Object>;

    /// Exactly `len` bytes from `offset`.
    ///
    /// # Errors
    /// `NotFound` when there is no such object, `Corrupt` when it ends before the range does.
    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>>;

    /// Many ranges, each as by [`Tier::get_range`], in the order of the requests; at once where that is faster.
    fn get_many(&self, requests: &[RangeRequest]) -> Vec<Result<Vec<u8>>> {
        requests.iter().map(|range| self.get_range(&range.key, range.offset, range.len_bytes)).collect()
    }

    /// Further guarantees of the tier. One that guarantees no conditional writes must have a single owner for each key.
    ///
    /// # Errors
    /// Those of reading the record, where the tier keeps one.
    fn guarantees(&self) -> Result<Guarantees> {
        Ok(Guarantees::ALL)
    }

    /// Size of the object, `None` when there is none.
    fn len_bytes(&self, key: &str) -> Result<Option<u64>>;

    /// Stores a new object; durable, with its name, when this returns. `false`: one exists and is unchanged.
    ///
    /// # Errors
    /// After an error the object may or may not be there; it is never there in part.
    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool>;

    /// Replaces the object if its bytes are `expected` (`None`: if it is absent). `false`: they are not.
    ///
    /// # Errors
    /// After an error either the old or the new object is there.
    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool>;

    /// All objects whose key starts with `prefix`, which ends in a slash or is empty; sorted by key.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>>;

    /// Removes the object for good; absence is fine.
    fn delete(&self, key: &str) -> Result<()>;

    /// Makes all that is visible under `prefix` (as in [`Self::list`]) durable: the process that put it may have died
    /// before it was. Call this before a write or a permanent deletion that depends on another process's write. A tier
    /// that shows only durable objects has nothing to do.
    ///
    /// # Errors
    /// After an error they may be lost.
    fn make_durable(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }

    /// Notes that the object was used now, as a hint for which objects to keep local. May do nothing.
    fn touch(&self, _key: &str) {}

    /// When the object was last noted as used; `None` where the tier does not record it.
    fn last_used(&self, _key: &str) -> Result<Option<Time>> {
        Ok(None)
    }
}

/// Refuses keys that could leave the root of a tier.
fn check_key(key: &str) -> Result<()> {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._%-".contains(&c))
    };
    if key.len() <= 1024 && key.split('/').all(good) {
        return Ok(());
    }
    Err(Error::new(Kind::Internal, "not an object key").object(key))
}

/// The error for an object that a tier does not have.
fn absent(tier: &dyn Tier, key: &str) -> Error {
    Error::new(Kind::NotFound, format!("no such object in {}", tier.describe())).object(key)
}

/// The error for a range that goes past the end of its object.
fn past_end(key: &str, offset: u64, len: u64) -> Error {
    Error::corrupt(format!("object ends before byte {}", offset.saturating_add(len))).object(key)
}
