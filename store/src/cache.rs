//! The decoded cache: frames that were fetched, decoded and verified, kept in memory up to a hard limit. However many
//! readers wait for one frame, it is fetched once.

use crate::error::Result;
use crate::id::PackId;
use crate::pack::Frame;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::ops::{Deref, Range};
use std::sync::Arc;

type Key = (PackId, u64);

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, Arc<Frame>> for ByLength {
    fn weight(&self, _key: &Key, frame: &Arc<Frame>) -> u64 {
        (frame.plain.len() + frame.slots.len() * size_of::<(crate::ChunkId, Range<usize>)>() + 128) as u64
    }
}

/// Verified bytes of one chunk, shared with the cache.
#[derive(Clone, Debug)]
pub struct ChunkBytes {
    frame: Arc<Frame>,
    range: Range<usize>,
}

impl ChunkBytes {
    pub(crate) fn new(frame: Arc<Frame>, range: Range<usize>) -> Self {
        Self { frame, range }
    }
}

impl Deref for ChunkBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.frame.plain[self.range.clone()]
    }
}

/// Decoded frames by pack and offset.
pub struct FrameCache(Cache<Key, Arc<Frame>, ByLength>);

impl FrameCache {
    /// A cache that holds at most about `capacity_bytes` of plain bytes.
    pub fn new(capacity_bytes: u64) -> Self {
        let typical_frame = 64 << 10;
        Self(Cache::with_weighter(
            (capacity_bytes / typical_frame).max(16) as usize,
            capacity_bytes,
            ByLength,
        ))
    }

    /// The frame, when it is in memory.
    pub fn get(&self, pack: PackId, offset: u64) -> Option<Arc<Frame>> {
        self.0.get(&(pack, offset))
    }

    /// How many bytes may be in memory.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.capacity()
    }

    /// The frame, from memory or by `load`; concurrent callers wait for one load.
    ///
    /// # Errors
    /// Those of `load`; nothing is kept then.
    pub fn get_or_load(
        &self,
        pack: PackId,
        offset: u64,
        load: impl FnOnce() -> Result<Frame>,
    ) -> Result<Arc<Frame>> {
        self.0.get_or_insert_with(&(pack, offset), || load().map(Arc::new))
    }
}

impl std::fmt::Debug for FrameCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameCache({} of {} bytes)", self.0.weight(), self.0.capacity())
    }
}
