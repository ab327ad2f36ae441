//! The decoded cache: frames that were fetched, decoded and verified, kept in memory up to a hard limit. A frame is
//! fetched once for any number of waiting readers.

use crate::error::Result;
use crate::id::PackId;
use crate::pack::Frame;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use std::ops::Range;
use std::sync::Arc;

type Key = (PackId, u64);

/// The cache is split into parts, each with a lock of its own and room for at least 32 frames of this length: the
/// longest usual one.
const TYPICAL_FRAME: u64 = 512 << 10;
/// Share of a part for frames that were asked for again. New ones pass through the rest, and must stay there until
/// their other chunks are asked for: the default of 3 % of a part is shorter than a frame.
const HOT_SHARE: f64 = 0.75;

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, Arc<Frame>> for ByLength {
    fn weight(&self, _key: &Key, frame: &Arc<Frame>) -> u64 {
        (frame.plain.len() + frame.slots.len() * size_of::<(crate::id::ChunkId, Range<usize>)>() + 128) as u64
    }
}

/// Decoded frames by pack and offset.
pub(crate) struct FrameCache(Cache<Key, Arc<Frame>, ByLength>);

impl FrameCache {
    /// A cache that holds at most about `capacity_bytes` of plain bytes.
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((capacity_bytes / TYPICAL_FRAME).max(16) as usize)
            .weight_capacity(capacity_bytes)
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("both capacities are set");
        let (hash_builder, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self(Cache::with_options(options, ByLength, hash_builder, lifecycle))
    }

    /// The frame, when it is in memory.
    pub(crate) fn get(&self, pack: PackId, offset: u64) -> Option<Arc<Frame>> {
        self.0.get(&(pack, offset))
    }

    /// Maximum bytes in memory.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.0.capacity()
    }

    /// Drops all frames. One that is being loaded stays.
    pub(crate) fn clear(&self) {
        self.0.retain(|_, _| false);
    }

    /// The frame, from memory or by `load`; concurrent callers wait for one load.
    ///
    /// # Errors
    /// Those of `load`; nothing is kept then.
    pub(crate) fn get_or_load(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DomainId, WriterId};
    use crate::pack::PackKind;

    const PACK: PackId = PackId { writer: WriterId::from_bytes([1; 8]), epoch: 0, sequence: 0 };

    fn frame() -> Frame {
        Frame {
            kind: PackKind::Data,
            domain: DomainId::from_bytes([0; 16]),
            plain: vec![0; TYPICAL_FRAME as usize],
            slots: Vec::new(),
            base: None,
        }
    }

    /// Else each chunk of a frame would decode the frame again.
    #[test]
    fn a_new_frame_stays_for_a_while_in_a_full_cache() {
        let cache = FrameCache::new(64 << 20);
        for offset in 0..1000 {
            cache.get_or_load(PACK, offset, || Ok(frame())).unwrap();
            assert!(cache.get(PACK, offset).is_some(), "frame {offset}");
            assert!(cache.0.weight() <= cache.capacity_bytes());
        }
        let kept = (990..1000).filter(|offset| cache.get(PACK, *offset).is_some()).count();
        assert!(kept >= 5, "{kept} of the last 10");
    }

    #[test]
    fn what_is_cleared_is_loaded_again_and_what_is_being_loaded_arrives() {
        let cache = FrameCache::new(64 << 20);
        let old = cache.get_or_load(PACK, 0, || Ok(frame())).unwrap();
        let loaded = cache.get_or_load(PACK, 1, || {
            cache.clear();
            Ok(frame())
        });
        assert_eq!(loaded.unwrap().plain.len(), TYPICAL_FRAME as usize);
        assert!(cache.get(PACK, 0).is_none() && cache.get(PACK, 1).is_some());
        assert_eq!(Arc::strong_count(&old), 1, "only its reader has it");
        cache.clear();
        assert_eq!(cache.0.weight(), 0);
        let again = cache.get_or_load(PACK, 0, || Ok(frame())).unwrap();
        assert!(!Arc::ptr_eq(&old, &again));
    }
}
