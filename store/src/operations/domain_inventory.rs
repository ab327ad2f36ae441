//! All domains of a store at once, for operations on every one of them: checking and collecting.

use crate::domain::{DEFAULT, DomainKind};
use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::keys;
use crate::pack::{Frame, FrameHeader};
use crate::repo::store::Store;
use crate::wire::{Record, unseal};
use std::collections::HashSet;

/// The domains of a store, by whether they can be opened here.
#[derive(Debug, Default)]
pub struct DomainInventory {
    /// The store in each domain that opens.
    pub open: Vec<Store>,
    /// Domains that do not open, with the reason.
    pub locked: Vec<(String, Error)>,
    /// Domains that were destroyed.
    pub destroyed: Vec<String>,
    /// Tags of frames that cannot be read here: of locked and of destroyed domains.
    unreadable: HashSet<u32>,
}

impl DomainInventory {
    /// Opens every domain that has a record.
    ///
    /// # Errors
    /// As the tier.
    pub fn take(store: &Store) -> Result<Self> {
        let mut domains = Self::default();
        for name in store.domains().names()? {
            let summary = match name == DEFAULT {
                true => None,
                false => match store.domains().summary(&name) {
                    Ok(summary) => Some(summary),
                    Err(error) => {
                        domains.locked.push((name, error));
                        continue;
                    }
                },
            };
            if summary.as_ref().is_some_and(|summary| summary.kind == DomainKind::Destroyed) {
                domains.unreadable.extend(summary.map(|summary| summary.id.tag()));
                domains.destroyed.push(name);
                continue;
            }
            match store.in_domain(&name) {
                Ok(store) => domains.open.push(store),
                Err(error) => {
                    domains.unreadable.extend(summary.map(|summary| summary.id.tag()));
                    domains.locked.push((name, error));
                }
            }
        }
        Ok(domains)
    }

    /// The store in each domain that is not destroyed; for callers that must see all of them.
    ///
    /// # Errors
    /// When one of them does not open: the chunks that it needs are then unknown.
    pub fn all_open(self) -> Result<Vec<Store>> {
        match self.locked.into_iter().next() {
            None => Ok(self.open),
            Some((name, error)) => {
                Err(Error::new(error.kind(), "a domain cannot be opened").object(name).caused_by(error))
            }
        }
    }

    /// Whether a frame is a delta whose base its own domain cannot read.
    pub(crate) fn lacks_base_of(&self, header: &FrameHeader) -> bool {
        let Some(base) = &header.base else { return false };
        let is_theirs = |store: &&Store| store.domain.id().tag() == header.domain_tag;
        let mut theirs = self.open.iter().filter(is_theirs).peekable();
        theirs.peek().is_some() && theirs.all(|store| store.read_base(base).is_err())
    }

    /// Decodes and verifies a complete stored frame of any domain; `None` for one with correct checksums whose key is
    /// not available here.
    ///
    /// # Errors
    /// `Corrupt`; `Invalid` for a newer format.
    pub fn verify(&self, bytes: &[u8]) -> Result<Option<Frame>> {
        let header: FrameHeader = Frame::verify_stored(bytes)?;
        let mut failure = Error::corrupt("frame is of a domain that is not open here");
        let mut is_ours = false;
        for store in self.open.iter().filter(|store| store.domain.id().tag() == header.domain_tag) {
            is_ours = true;
            match Frame::decode_on(bytes, &[&store.domain], &|base| store.read_base(base)) {
                Ok(frame) => return Ok(Some(frame)),
                Err(error) => failure = error,
            }
        }
        match !is_ours && self.unreadable.contains(&header.domain_tag) {
            true => Ok(None),
            false => Err(failure),
        }
    }
}

/// Checks a record of a domain that does not open as far as possible without keys: its checksum, and a snapshot's id.
///
/// # Errors
/// `Corrupt`.
pub fn check_unopened(key: &str, bytes: &[u8]) -> Result<()> {
    match key.strip_prefix(keys::SNAPSHOTS) {
        None => unseal(Record::SignedRef, bytes).map(|_| ()),
        Some(rest) => {
            unseal(Record::SealedSnapshot, bytes)?;
            let id = rest.rsplit('/').next().and_then(|id| id.parse::<SnapshotId>().ok());
            match id.is_some_and(|id| id.as_bytes() == blake3::hash(bytes).as_bytes()) {
                true => Ok(()),
                false => Err(Error::new(Kind::Corrupt, "snapshot record stands under another's name")),
            }
        }
    }
}
