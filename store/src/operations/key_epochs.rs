//! Key epochs of the store's current domain: the epoch that a pack is sealed under, and dropping those that no pack
//! needs.

use crate::error::{Kind, OptionalExt, Result};
use crate::id::PackId;
use crate::operations::domains::Rotation;
use crate::pack::{FRAME_HEADER_LEN, FrameHeader, PACK_HEADER_LEN};
use crate::records::session;
use crate::repo::store::Store;
use std::collections::HashSet;

impl Store {
    /// Whether this host can change refs of the domain; loads the key that signs.
    pub fn may_change_refs(&self) -> bool {
        self.inner.keyring.reload(&self.domain).is_ok() && self.domain.may_sign()
    }

    /// The key epoch that the frames of a pack of this domain are sealed under: that of its first, since a pack is of
    /// one domain and epoch. `None` for a pack of another domain.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn key_epoch_of(&self, pack: PackId) -> Result<Option<u32>> {
        let (tag, epoch) = self.seal_of(pack)?;
        Ok(epoch.filter(|_| tag == self.domain.id().tag()))
    }

    /// The key epochs of this domain whose keys still exist, and the current one, freshly read.
    ///
    /// # Errors
    /// As opening the domain.
    pub fn key_epochs(&self) -> Result<(Vec<u32>, u32)> {
        self.inner.keyring.reload(&self.domain)?;
        Ok(self.domain.key_epochs())
    }

    /// Whether the frames of a pack are of this domain: its first is.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn owns_pack(&self, pack: PackId) -> Result<bool> {
        Ok(self.seal_of(pack)?.0 == self.domain.id().tag())
    }

    /// The domain's tag and the key epoch of a pack's first frame.
    fn seal_of(&self, pack: PackId) -> Result<(u32, Option<u32>)> {
        let mut failure = None;
        for tier in self.tiers() {
            let read = tier.get_range(&pack.key(), PACK_HEADER_LEN as u64, FRAME_HEADER_LEN as u64);
            match read.and_then(|bytes| FrameHeader::peek(&bytes)) {
                Ok(seal) => return Ok(seal),
                Err(error) if error.kind() == Kind::NotFound => failure = failure.or(Some(error)),
                Err(error) => failure = Some(error.object(pack)),
            }
        }
        Err(failure.expect("a store has at least one tier"))
    }

    /// Drops the keys of old epochs under which no frame is sealed any more. Returns the epochs that stay, without the
    /// current one. A writer that began before its epoch was succeeded may still seal under it: while any is open, all
    /// stay.
    ///
    /// # Errors
    /// As [`Domains::rotate`](crate::operations::domains::Domains::rotate); when a pack cannot be read.
    pub fn retire_epochs(&self) -> Result<Vec<u32>> {
        let (known, current) = self.key_epochs()?;
        let old: Vec<u32> = known.into_iter().filter(|epoch| *epoch != current).collect();
        if old.is_empty() {
            return Ok(old);
        }
        // Sessions first: a writer that is not open now takes the current epoch when it begins.
        let sessions = session::alive(self.sessions(), false)?;
        if sessions.iter().any(|listed| listed.record.writer_epoch.is_some()) {
            return Ok(old);
        }
        let mut used = HashSet::new();
        for (pack, _) in self.packs()? {
            // `None` also for a pack that was collected meanwhile.
            used.extend(self.key_epoch_of(pack).optional()?.flatten());
        }
        let (stay, go): (Vec<u32>, Vec<u32>) = old.into_iter().partition(|epoch| used.contains(epoch));
        if !go.is_empty() {
            self.domains().rotate(self.domain.name(), &Rotation::Retire(go))?;
            self.inner.keyring.reload(&self.domain)?;
        }
        Ok(stay)
    }
}
