//! Page groups, which may be stored as deltas against a group of the parent image.
//!
//! A record that refers to a group must name its base, so that the collector keeps both: [`Writer::group_base`] returns
//! it, and the page table records it. Only page groups are ever deltas.

use super::Writer;
use crate::error::Result;
use crate::id::ChunkId;
use crate::pack::Base;

impl Writer {
    /// Stores a group of memory pages, if it is new, in a frame of its own, the unit that a fault fetches: as a delta
    /// against `base` where that pays. A record that refers to the group must name its [`Self::group_base`].
    ///
    /// # Errors
    /// As [`Self::put_chunk`].
    pub fn put_page_group(&mut self, bytes: &[u8], base: Option<Base>) -> Result<ChunkId> {
        let id = self.store.domain.chunk_id(bytes);
        self.offer(bytes)?;
        if let Some(known) = self.known_as(&id, bytes) {
            return Ok(known);
        }
        if self.fresh_groups.contains(&id) || self.is_known_delta(&id) {
            return Ok(id);
        }
        // A chunk with deltas against several bases would need all of them, and a copy that is no delta needs no base.
        let is_anywhere = self.store.index().find_in(&id, |_| true).is_some();
        let base = base.filter(|base| !is_anywhere && base.id != id && self.is_known(&base.id));
        match base {
            Some(_) => self.fresh_groups.insert(id),
            None => self.fresh.insert(id),
        };
        let pushed = self.pipeline.push_alone(id, bytes, base);
        self.guard(pushed)?;
        self.count_new(bytes);
        self.bound_fresh()?;
        Ok(id)
    }

    /// The chunk that a group put since the last commit is a delta against.
    ///
    /// # Errors
    /// Those of the tier for earlier chunks.
    pub fn group_base(&mut self, group: &ChunkId) -> Result<Option<ChunkId>> {
        if let Some(base) = self.known_deltas.get(group) {
            return Ok(Some(*base));
        }
        if !self.fresh_groups.contains(group) {
            return Ok(None);
        }
        let base = self.pipeline.deltas().map(|deltas| deltas.get(group).copied());
        self.guard(base)
    }

    /// Whether a group is stored as a delta whose base is stored, too. If so the session depends on the packs of both.
    fn is_known_delta(&mut self, id: &ChunkId) -> bool {
        if self.known_deltas.contains_key(id) {
            return true;
        }
        let Some(place) = self.depend_on(id, |place| place.is_delta()) else { return false };
        let base = match self.store.read_base_id(&place) {
            Ok(base) => base,
            Err(error) => {
                tracing::warn!(chunk = %id, pack = %place.pack, %error, "a delta cannot be read; it is stored again");
                return false;
            }
        };
        let is_known = self.is_known(&base);
        if is_known {
            self.known_deltas.insert(*id, base);
        }
        is_known
    }
}
