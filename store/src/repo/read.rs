//! Reading chunks: from the decoded cache, the disk cache, or the first tier with an intact frame. Tier data is
//! verified before it is returned, and a chunk missing in the index is looked for in new runs and packs.

use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;
use crate::index::Location;
use crate::pack::ChunkBytes;
use crate::pack::{FRAME_HEADER_LEN, Frame, FrameHeader, PackKind, SLOT_LEN};
use crate::repo::config::{DataTier, TierClass};
use crate::repo::placement::Moved;
use crate::repo::store::Store;
use crate::throttle::Throttle;
use crate::tier::Tier;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The header of a delta, which is one chunk.
const DELTA_HEADER_LEN: u64 = (FRAME_HEADER_LEN + SLOT_LEN) as u64;

impl Store {
    /// The bytes of a chunk, verified when they entered the cache.
    ///
    /// # Errors
    /// `NotFound` when no pack holds it, `Corrupt` when every copy is damaged.
    pub fn read_chunk(&self, id: &ChunkId) -> Result<ChunkBytes> {
        self.read_where(id, |_| true)
    }

    /// Drops the decoded frames in memory; those in use are freed with their last reader.
    pub fn drop_decoded(&self) {
        self.inner.cache.clear();
    }

    /// The base of a delta, which is not a delta itself.
    pub(crate) fn read_base(&self, id: &ChunkId) -> Result<ChunkBytes> {
        self.read_where(id, |place| !place.is_delta()).map_err(|error| {
            Error::new(error.kind(), "cannot read the base of a delta").object(id).caused_by(error)
        })
    }

    /// Reads a chunk from a location that `accept` accepts.
    fn read_where(&self, id: &ChunkId, accept: fn(&Location) -> bool) -> Result<ChunkBytes> {
        let first = match self.read_known(id, accept) {
            Ok(Some(bytes)) => return Ok(bytes),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        // Another process may have added runs, or moved packs that this one knows; then runs may be damaged or missing.
        self.inner.index.refresh(self.metadata_tier())?;
        if let Some(bytes) = self.read_known(id, accept).ok().flatten() {
            return Ok(bytes);
        }
        self.inner.index.drop_damaged();
        if self.inner.index.adopt_uncovered(&self.tiers())? > 0
            && let Some(bytes) = self.read_known(id, accept)?
        {
            return Ok(bytes);
        }
        Err(first.unwrap_or_else(|| {
            Error::new(Kind::NotFound, "no pack holds chunk")
                .object(id)
                .advice("run `snapctl check` to see which snapshots are affected")
        }))
    }

    /// Reads a chunk from the first of its known locations with an intact copy.
    fn read_known(&self, id: &ChunkId, accept: fn(&Location) -> bool) -> Result<Option<ChunkBytes>> {
        let mut failure = None;
        for place in self.inner.index.find(id).into_iter().filter(accept) {
            match self.read_at(id, &place) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => {
                    tracing::warn!(chunk = %id, pack = %place.pack, %error, "copy of a chunk cannot be read");
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    fn read_at(&self, id: &ChunkId, place: &Location) -> Result<ChunkBytes> {
        let frame = self.inner.cache.get_or_load(place.pack, place.offset, || self.fetch_frame(place))?;
        self.chunk_in(&frame, id, place)
    }

    /// A chunk of a frame of the decoded cache.
    pub(crate) fn chunk_in(&self, frame: &Arc<Frame>, id: &ChunkId, place: &Location) -> Result<ChunkBytes> {
        // The cache is of all domains; readable are frames of this domain and of the public one.
        let may_read = frame.domain == self.domain.id()
            || self.public()?.is_some_and(|public| public.id() == frame.domain);
        let is_as_named = frame.base.is_some() == place.is_delta();
        match frame.slots.get(place.slot_index()).filter(|_| may_read && is_as_named) {
            Some((found, range)) if found == id => Ok(ChunkBytes::new(frame.clone(), range.clone())),
            _ => Err(Error::corrupt("index points at another chunk").object(id)),
        }
    }

    /// Fetches, decodes and verifies a frame from the first tier with an intact copy; the disk cache is tried after the
    /// hot tier and before the slower ones.
    fn fetch_frame(&self, place: &Location) -> Result<Frame> {
        let key = place.pack.key();
        let mut failure = None;
        for DataTier { class, tier, .. } in self.inner.placement.tiers() {
            let is_near = *class == TierClass::Hot;
            if !is_near && let Some(frame) = self.cached_frame(place) {
                return Ok(frame);
            }
            let bytes = tier.get_range(&key, place.offset, place.len_bytes);
            match bytes.and_then(|bytes| self.accept_frame(place, *class, &**tier, &bytes)) {
                Ok(frame) => return Ok(frame),
                Err(error) if error.kind() == Kind::NotFound => failure = failure.or(Some(error)),
                Err(error) => failure = Some(error.object(format!("{key} at byte {}", place.offset))),
            }
        }
        Err(failure.expect("a store has at least one tier"))
    }

    /// Decodes and verifies a frame as read from a tier; frames of slower tiers are kept locally.
    pub(crate) fn accept_frame(
        &self,
        place: &Location,
        class: TierClass,
        tier: &dyn Tier,
        bytes: &[u8],
    ) -> Result<Frame> {
        let frame = self.decode_frame(bytes)?;
        match class {
            TierClass::Hot => self.inner.touched.note(tier, place.pack),
            TierClass::Warm | TierClass::Cold => self.keep_local(place, &frame, bytes),
        }
        Ok(frame)
    }

    /// Decodes and verifies a stored frame of this domain or of the public one.
    ///
    /// # Errors
    /// `Corrupt`, also for a frame of another domain.
    pub fn decode_frame(&self, bytes: &[u8]) -> Result<Frame> {
        let header = FrameHeader::decode(bytes)?;
        let own = header.domain_tag == self.domain.id().tag();
        if own && header.key_epoch.is_some_and(|epoch| self.domain.frame_key(epoch).is_none()) {
            // Another process rotated the keys.
            self.inner.keyring.reload(&self.domain)?;
        }
        let read_base = |base: &ChunkId| self.read_base(base);
        if own {
            return Frame::decode_on(bytes, &[&self.domain], &read_base);
        }
        match self.public()? {
            Some(public) => Frame::decode_on(bytes, &[&public], &read_base),
            None => Frame::decode(bytes, &[]),
        }
    }

    /// The base named by the frame of a delta. Reads and verifies no more of it than its header.
    pub fn read_base_id(&self, place: &Location) -> Result<ChunkId> {
        let key = place.pack.key();
        let mut failure = Error::new(Kind::NotFound, "no tier holds pack").object(place.pack);
        for tier in self.tiers() {
            let bytes = tier.get_range(&key, place.offset, place.len_bytes.min(DELTA_HEADER_LEN));
            match bytes.and_then(|bytes| FrameHeader::decode(&bytes)) {
                Ok(FrameHeader { base: Some(base), .. }) => return Ok(base),
                Ok(_) => failure = Error::corrupt("not a delta where the index says so").object(place.pack),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// A frame of the disk cache, verified.
    pub(crate) fn cached_frame(&self, place: &Location) -> Option<Frame> {
        let bytes = self.inner.disk_cache.get(place.pack, place.offset, place.len_bytes)?;
        self.decode_frame(&bytes).inspect_err(|_| self.inner.disk_cache.remove(place.pack, place.offset)).ok()
    }

    /// Keeps a frame of a slower tier on local flash; of metadata, which is read piece by piece, the whole pack.
    fn keep_local(&self, place: &Location, frame: &Frame, stored: &[u8]) {
        if !self.inner.keeps_local.load(Ordering::Relaxed) {
            return;
        }
        let promoted = match frame.kind {
            PackKind::Data => Ok(false),
            PackKind::Meta => {
                self.inner.placement.promote(place.pack, &mut Throttle::new(None), &mut Moved::default())
            }
        };
        match promoted {
            Ok(true) => {}
            Ok(false) => self.inner.disk_cache.insert(place.pack, place.offset, stored),
            Err(error) => {
                tracing::debug!(pack = %place.pack, %error, "metadata is not copied to the hot tier")
            }
        }
    }
}
