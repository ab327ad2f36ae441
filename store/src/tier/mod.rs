//! A tier: a place where objects live, with one narrow blocking interface.
//!
//! Objects are immutable but for those changed by [`Tier::compare_and_swap`]. An object is there whole or not at all: no
//! reader ever sees half of one. Every implementation passes the conformance suite of the tests.

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
    /// Where they begin.
    pub offset: u64,
    /// How many they are.
    pub len_bytes: u64,
}

/// A place where objects live. Keys are slash-separated components of `[A-Za-z0-9._%-]`.
pub trait Tier: Send + Sync + Debug {
    /// What and where it is, for error texts.
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

    /// Many ranges, each as [`Tier::get_range`] would give it, in the order of the requests; at once where that is faster.
    fn get_many(&self, requests: &[RangeRequest]) -> Vec<Result<Vec<u8>>> {
        requests.iter().map(|range| self.get_range(&range.key, range.offset, range.len_bytes)).collect()
    }

    /// What can be relied on besides. A tier that guarantees no conditional writes must have a single owner for each key.
    ///
    /// # Errors
    /// Where it is written down in the tier, as reading that.
    fn guarantees(&self) -> Result<Guarantees> {
        Ok(Guarantees::ALL)
    }

    /// Size of the object, `None` when there is none.
    fn len_bytes(&self, key: &str) -> Result<Option<u64>>;

    /// Stores a new object; durable, with its name, when this returns. `false`: one was there and stays as it was.
    ///
    /// # Errors
    /// After an error the object may or may not be there; it is never there in part.
    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool>;

    /// Replaces the object if its bytes are `expected` (`None`: if there is none). `false`: they are not.
    ///
    /// # Errors
    /// After an error either the old or the new object is there.
    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool>;

    /// All objects whose key starts with `prefix`, which ends in a slash or is empty; sorted by key.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>>;

    /// Removes the object for good; absence is fine.
    fn delete(&self, key: &str) -> Result<()>;

    /// Makes what is seen under `prefix`, as [`Self::list`] takes it, durable, whoever put it there: a process may have died
    /// after its change could be seen and before it was durable. Whoever writes or deletes for good because of what another
    /// process wrote calls this in between. A tier that shows only what is durable has nothing to do.
    ///
    /// # Errors
    /// After an error it may be lost.
    fn make_durable(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }

    /// Notes that the object was used now, as a hint for what to keep near. May do nothing.
    fn touch(&self, _key: &str) {}

    /// When the object was last noted as used; `None` where that is not kept.
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

/// The object that a tier does not have.
fn absent(tier: &dyn Tier, key: &str) -> Error {
    Error::new(Kind::NotFound, format!("no such object in {}", tier.describe())).object(key)
}

/// A range that goes past the end of its object.
fn past_end(key: &str, offset: u64, len: u64) -> Error {
    Error::corrupt(format!("object ends before byte {}", offset.saturating_add(len))).object(key)
}
