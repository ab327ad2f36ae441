//! A pack that lost its end, at every byte: the store opens, every frame before the cut reads as ever, reads of the
//! rest fail, and other packs are as they were. Packs are stored atomically, so no crash does this; a file system
//! that loses the end of a synced file does.

use crate::scratch::Scratch;
use crate::sim::try_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::index::Location;
use store::pack::read_directory;
use store::{ChunkId, Kind, MemoryTier, Object, ObjectInfo, PackId, Result, Store, StoreConfig, Tier};
use tests::model::Random;

/// The offsets are dealt out to this many cases.
const CASES: usize = 64;
/// Frames far from their end are decoded at one offset of these.
const SELDOM: usize = 512;

/// A tier that shows less of one object than there is.
#[derive(Debug)]
struct CutTier {
    whole: MemoryTier,
    key: String,
    len_bytes: u64,
}

impl CutTier {
    fn shown(&self, key: &str, len_bytes: u64) -> u64 {
        if key == self.key { len_bytes.min(self.len_bytes) } else { len_bytes }
    }
}

impl Tier for CutTier {
    fn describe(&self) -> String {
        "a tier with a cut pack".to_owned()
    }
    fn get(&self, key: &str) -> Result<Object> {
        let whole = self.whole.get(key)?;
        let shown = self.shown(key, whole.len() as u64);
        Ok(Object::Owned(whole[..shown as usize].to_vec()))
    }
    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        if offset + len > self.shown(key, u64::MAX) {
            return Err(store::Error::new(Kind::Corrupt, "object ends early").object(key));
        }
        self.whole.get_range(key, offset, len)
    }
    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.whole.len_bytes(key)?.map(|len| self.shown(key, len)))
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        self.whole.put_if_absent(key, body)
    }
    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        self.whole.compare_and_swap(key, expected, body)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut found = self.whole.list(prefix)?;
        found.iter_mut().for_each(|info| info.len_bytes = self.shown(&info.key, info.len_bytes));
        Ok(found)
    }
    fn delete(&self, key: &str) -> Result<()> {
        self.whole.delete(key)
    }
}

type Chunk = (ChunkId, Vec<u8>);

/// A store with a pack to cut and another one.
struct Two {
    scratch: Scratch,
    tier: MemoryTier,
    long: PackId,
    len_bytes: u64,
    /// A chunk of each frame of the long pack, by the byte that the frame ends at.
    frames: BTreeMap<u64, Chunk>,
    other: Chunk,
}

impl Two {
    fn new() -> Self {
        let (scratch, tier) = Scratch::in_memory();
        let mut random = Random::new(3);
        let mut put = |chunks: usize, len: usize| -> Vec<Chunk> {
            let store = scratch.open();
            let mut writer = store.writer("test").unwrap();
            let bodies: Vec<_> = (0..chunks).map(|_| random.bytes(len)).collect();
            let put = bodies.into_iter().map(|bytes| (writer.put_chunk(&bytes).unwrap(), bytes)).collect();
            writer.publish(|_| Ok(())).unwrap();
            put
        };
        let (many, other) = (put(42, 25_000), put(1, 300).remove(0));
        let store = scratch.open();
        let place = |chunk: &Chunk| *store.index().find(&chunk.0).iter().next().unwrap();
        let long = place(&many[0]).pack;
        let len_bytes = tier.len_bytes(&long.key()).unwrap().unwrap();
        let end_of = |place: Location| place.offset + place.len_bytes;
        let frames = many.into_iter().map(|chunk| (end_of(place(&chunk)), chunk)).collect();
        Self { scratch, tier, long, len_bytes, frames, other }
    }

    /// Reads the chosen frames with the pack cut at a byte.
    fn cut_at(&self, cut: u64, random: &mut Random) {
        let tier = CutTier { whole: self.tier.clone(), key: self.long.key(), len_bytes: cut };
        assert!(read_directory(&tier, self.long).is_err(), "a directory at byte {cut}");
        let config = StoreConfig::on(Arc::new(tier), self.scratch.config.state.clone());
        let config = StoreConfig { cache_bytes: 1 << 20, disk_cache_bytes: 0, ..config };
        let store = Store::open(&config).unwrap_or_else(|error| panic!("cut at byte {cut}: {error}"));
        let holds = |(id, bytes): &Chunk| {
            let read = store.read_chunk(id).unwrap_or_else(|error| panic!("cut at byte {cut}: {error}"));
            assert!(*read == **bytes, "other bytes, cut at byte {cut}");
        };
        holds(&self.other);
        if let Some((end, chunk)) = self.frames.range(..=cut).next_back()
            && (cut - end < 2 || random.once_in(SELDOM))
        {
            holds(chunk);
        }
        if let Some((_, (id, _))) = self.frames.range(cut + 1..).next() {
            let error = store.read_chunk(id).map(|_| ()).unwrap_err();
            assert!(matches!(error.kind(), Kind::Corrupt | Kind::NotFound), "cut at byte {cut}: {error}");
        }
    }
}

#[test]
fn a_pack_cut_at_any_byte_hurts_only_what_was_behind_the_cut() {
    let two = Two::new();
    assert!(two.len_bytes > 1 << 20, "only {} bytes", two.len_bytes);
    let cuts = try_all("cut packs", CASES, |case| {
        let mut random = Random::new(case as u64);
        let mine = (case as u64..two.len_bytes).step_by(CASES);
        mine.map(|cut| two.cut_at(cut, &mut random)).count() as u64
    });
    assert_eq!(cuts, two.len_bytes);
}
