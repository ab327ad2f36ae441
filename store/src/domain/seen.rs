//! The last state of a ref or of a domain's record that this host saw: its counter, and the hash of the record. It
//! tells a record rolled back, forked or deleted from an updated one.
//!
//! Small files below `seen/` in the local state. They are not synced: if one is lost or damaged, this host trusts the
//! record as if it saw it for the first time, no more.

use super::keys::VerifyKey;
use crate::error::{Error, Result};
use crate::host::disk::create_private_directories;
use crate::id::DomainId;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A predecessor of a record: the first bytes of its hash.
pub(crate) type Step = [u8; 16];

/// Predecessors that a record lists, newest first; after more unseen changes a fork cannot be told from an update.
pub(crate) const TRAIL_LEN: usize = 64;

/// The trail's entry for the record with this hash.
pub(crate) fn step_of(hash: &[u8; 32]) -> Step {
    let mut step = Step::default();
    step.copy_from_slice(&hash[..16]);
    step
}

/// One state of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The domain of the record.
    pub domain: DomainId,
    /// Verifies the domain's signatures.
    pub verify_key: VerifyKey,
    /// How often the record was changed.
    pub counter: u64,
    /// BLAKE3 of the record.
    pub hash: [u8; 32],
}

/// Why a record is neither the seen one nor a successor of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is older.
    RolledBack,
    /// It is as old or newer, and the seen record is not in its past.
    Forked,
    /// It is of another domain, or signed by another key.
    Replaced,
}

impl Mark {
    /// Judges `new`, whose record lists its predecessors in `trail`, against the seen record. A record seen more
    /// changes ago than a trail is long cannot be told from another history, and passes.
    pub fn judge(&self, new: &Self, trail: &[Step]) -> std::result::Result<(), Wrong> {
        if (new.domain, new.verify_key) != (self.domain, self.verify_key) {
            return Err(Wrong::Replaced);
        }
        match new.counter.checked_sub(self.counter) {
            None => Err(Wrong::RolledBack),
            Some(0) if new.hash != self.hash => Err(Wrong::Forked),
            Some(0) => Ok(()),
            Some(changes) => match usize::try_from(changes - 1).ok().and_then(|at| trail.get(at)) {
                Some(step) if *step != step_of(&self.hash) => Err(Wrong::Forked),
                _ => Ok(()),
            },
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.bytes(self.domain.as_bytes()).bytes(self.verify_key.as_bytes());
        body.u64(self.counter).bytes(&self.hash);
        seal(Record::Seen, &body.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Seen, bytes)?);
        let mark = Self {
            domain: DomainId::from_bytes(fields.array()?),
            verify_key: VerifyKey::from_bytes(fields.array()?),
            counter: fields.u64()?,
            hash: fields.array()?,
        };
        fields.end()?;
        Ok(mark)
    }
}

impl Wrong {
    /// The error for `what` (a record), called `object`, of the domain `domain`.
    pub fn error(self, what: &str, object: &str, domain: &str) -> Error {
        let how = match self {
            Self::RolledBack => "is older than what this host saw: an old copy was put back",
            Self::Forked => "is not what this host saw, nor follows from it: it has another history",
            Self::Replaced => "is of another domain or signer than what this host saw",
        };
        distrust(format!("{what} {how}"), object, domain)
    }
}

/// The error for a record that vanished.
pub fn vanished(what: &str, object: &str, domain: &str) -> Error {
    distrust(format!("{what} was there when this host looked last, and is gone"), object, domain)
}

fn distrust(what: String, object: &str, domain: &str) -> Error {
    Error::corrupt(what).object(object).advice(format!(
        "the store was changed outside Torpor; if that was intended, accept its present state with `snapctl domain trust {domain}`"
    ))
}

/// The marks of one kind of record.
#[derive(Clone, Debug)]
pub struct Seen {
    directory: PathBuf,
}

impl Seen {
    /// The marks of domain records, by name.
    pub fn of_domains(state: &Path) -> Self {
        Self { directory: state.join("seen/domains") }
    }

    /// The marks of a domain's refs, by the last part of their keys.
    pub fn of_refs(state: &Path, domain: DomainId) -> Self {
        Self { directory: state.join("seen").join(domain.to_string()) }
    }

    /// The mark last seen under this name.
    pub fn get(&self, name: &str) -> Option<Mark> {
        let bytes = std::fs::read(self.directory.join(name)).ok()?;
        Mark::decode(&bytes)
            .inspect_err(|error| tracing::warn!(%error, "what this host saw last is forgotten"))
            .ok()
    }

    /// The names that have a mark.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| is_mark(name))
            .collect()
    }

    /// Notes a mark, unless a newer one was seen. Where local state cannot be written nothing is kept.
    pub fn note(&self, name: &str, mark: &Mark) {
        let noted = self.changing(|| {
            if self.get(name).is_some_and(|old| old.counter >= mark.counter) {
                return Ok(());
            }
            self.put(name, mark)
        });
        if let Err(error) = noted {
            tracing::debug!(%error, "what this host saw is not kept");
        }
    }

    /// Replaces the mark, whatever was seen before; `None`: as never seen.
    ///
    /// # Errors
    /// As the system calls.
    pub fn trust(&self, name: &str, mark: Option<&Mark>) -> Result<()> {
        self.changing(|| match mark {
            Some(mark) => self.put(name, mark),
            None => match std::fs::remove_file(self.directory.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        })
        .map_err(|error| Error::io("cannot keep what is trusted", self.directory.display(), error))
    }

    fn put(&self, name: &str, mark: &Mark) -> std::io::Result<()> {
        let next = self.directory.join(NEXT);
        std::fs::write(&next, mark.encode())?;
        std::fs::rename(next, self.directory.join(name))
    }

    /// One process at a time changes marks; the wait is for a few small writes of another.
    fn changing(&self, change: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        create_private_directories(&self.directory)?;
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(self.directory.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let changed = change();
        // Closing is not enough: a child that another thread is forking shares the open file until it executes.
        rustix::fs::flock(&lock, FlockOperation::Unlock)?;
        changed
    }
}

const LOCK: &str = ".lock";
const NEXT: &str = ".next";

fn is_mark(name: &str) -> bool {
    !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;

    fn mark(counter: u64, hash: u8) -> Mark {
        let (domain, verify_key) = (DomainId::from_bytes([1; 16]), VerifyKey::from_bytes([2; 32]));
        Mark { domain, verify_key, counter, hash: [hash; 32] }
    }

    #[test]
    fn a_mark_reads_back_and_nothing_else_does() {
        assert_sealed(&mark(7, 9).encode(), &mark(7, 9), Mark::decode);
    }

    #[test]
    fn news_are_told_from_what_is_old_forked_or_replaced() {
        let old = mark(7, 1);
        let trail = |hashes: &[u8]| hashes.iter().map(|hash| [*hash; 16]).collect::<Vec<Step>>();
        assert_eq!(old.judge(&mark(7, 1), &[]), Ok(()));
        assert_eq!(old.judge(&mark(8, 2), &trail(&[1])), Ok(()));
        assert_eq!(old.judge(&mark(10, 4), &trail(&[3, 2, 1, 9])), Ok(()));
        assert_eq!(old.judge(&mark(10, 4), &trail(&[3, 2])), Ok(()), "too long ago to tell");
        assert_eq!(old.judge(&mark(6, 1), &[]), Err(Wrong::RolledBack));
        assert_eq!(old.judge(&mark(7, 2), &[]), Err(Wrong::Forked));
        assert_eq!(old.judge(&mark(8, 2), &trail(&[3])), Err(Wrong::Forked));
        assert_eq!(old.judge(&mark(10, 4), &trail(&[3, 2, 9, 1])), Err(Wrong::Forked));
        let other = Mark { verify_key: VerifyKey::from_bytes([3; 32]), ..mark(9, 2) };
        assert_eq!(old.judge(&other, &trail(&[8, 1])), Err(Wrong::Replaced));
    }

    #[test]
    fn the_newest_mark_stays_and_a_lost_one_is_no_error() {
        let state = tempfile::tempdir().unwrap();
        let seen = Seen::of_domains(state.path());
        assert_eq!((seen.get("acme"), seen.names().len()), (None, 0));
        seen.note("acme", &mark(3, 3));
        seen.note("acme", &mark(2, 2));
        assert_eq!(seen.get("acme"), Some(mark(3, 3)));
        seen.trust("acme", Some(&mark(1, 1))).unwrap();
        assert_eq!(seen.get("acme"), Some(mark(1, 1)));
        assert_eq!(seen.names(), ["acme"]);
        std::fs::write(state.path().join("seen/domains/acme"), "damaged").unwrap();
        assert_eq!(seen.get("acme"), None);
        seen.trust("acme", None).unwrap();
        seen.trust("acme", None).unwrap();
        assert!(seen.names().is_empty());
    }
}
