//! Planned reads: many chunks at once, on whatever tiers they lie, of a tenant and of the public domain, deltas with
//! their bases.

use std::collections::BTreeMap;
use std::sync::Arc;
use store::{
    ChunkId, DataTier, MemoryTier, PAGE, Reached, SnapshotDraft, SnapshotId, Store, StoreConfig, Tier,
    TierClass, Unwatched, move_snapshot,
};
use tests::gc_fixture::commit;
use tests::model::{Memory, Pages, Random, put_memory};
use tests::tenants::Tenants;

/// A tenant's store over three tiers, and the content of each.
struct World {
    tenants: Tenants,
    slower: [MemoryTier; 2],
    snapshots: Vec<SnapshotId>,
}

/// Noise, a few bytes of which change with each version.
fn memory(version: u64) -> Memory {
    let mut random = Random::new(5);
    let mut pages: Vec<Vec<u8>> = (0..40).map(|_| random.bytes(PAGE)).collect();
    for page in [1, 2, 18, 33] {
        pages[page][8..16].copy_from_slice(&version.to_le_bytes());
    }
    let space = Pages { len_bytes: 40 * PAGE as u64, pages: (0..).zip(pages).collect() };
    Memory { spaces: BTreeMap::from([(0, space)]), blobs: BTreeMap::new() }
}

impl World {
    /// The public files are on the cold tier, the tenant's own and its first sleep too, its second sleep, of deltas, on
    /// the warm one, more files on the hot one.
    fn new() -> Self {
        let tenants = Tenants::new();
        commit(&mut tenants.open("public").writer("test").unwrap(), "base", &[1, 2]).unwrap();
        let mut world =
            Self { tenants, slower: [MemoryTier::new(), MemoryTier::new()], snapshots: Vec::new() };
        let store = world.open(4 << 20);
        let base = world.store_of("public").resolve("base").unwrap();
        move_snapshot(&world.store_of("public"), &base, TierClass::Cold, None, &Unwatched).unwrap();
        let mut writer = store.writer("test").unwrap();
        let files = commit(&mut writer, "files", &[1, 2, 3, 4]).unwrap();
        assert!(writer.stats().new_bytes < 300_000, "two of four files are the public domain's");
        let mut parent = None;
        for (version, class) in [(0, TierClass::Cold), (1, TierClass::Warm)] {
            let image = put_memory(&mut writer, &memory(version), parent.as_ref()).unwrap();
            let draft = SnapshotDraft { image: Some(image), ..SnapshotDraft::default() };
            let asleep = writer.commit("vm", draft).unwrap();
            move_snapshot(&store, &asleep, class, None, &Unwatched).unwrap();
            parent = Some(store.image(&image).unwrap());
            world.snapshots.push(asleep);
        }
        let bases = |image: &store::Image| {
            (0..image.group_count() as u32).filter(|group| image.group_base(*group).is_some()).count()
        };
        assert!(bases(parent.as_ref().unwrap()) > 0);
        move_snapshot(&store, &files, TierClass::Cold, None, &Unwatched).unwrap();
        world.snapshots.push(files);
        world.snapshots.push(commit(&mut writer, "near", &[5, 6]).unwrap());
        world
    }

    fn config(&self, name: &str) -> StoreConfig {
        let [warm, cold] = &self.slower;
        self.tenants
            .config(Some(name))
            .with_tier(DataTier::new(TierClass::Warm, Arc::new(warm.clone())))
            .with_tier(DataTier::new(TierClass::Cold, Arc::new(cold.clone())))
    }

    fn store_of(&self, name: &str) -> Store {
        Store::open(&self.config(name)).unwrap()
    }

    /// The tenant's store, with a decoded cache of this size and no other.
    fn open(&self, cache_bytes: u64) -> Store {
        let config = StoreConfig { cache_bytes, disk_cache_bytes: 0, ..self.config("acme") };
        Store::open(&config).unwrap()
    }

    /// All chunks that the snapshots need.
    fn chunks(&self) -> Vec<ChunkId> {
        let (store, mut chunks) = (self.open(4 << 20), Vec::new());
        let mut reached = Reached::new(&store);
        for snapshot in &self.snapshots {
            reached.walk(&store, snapshot, &mut |chunk: &ChunkId| chunks.push(*chunk)).unwrap();
        }
        chunks
    }

    fn delete_packs(&self) {
        for tier in [&self.tenants.tier, &self.slower[0], &self.slower[1]] {
            for info in tier.list("packs/").unwrap() {
                tier.delete(&info.key).unwrap();
            }
        }
    }
}

#[test]
fn what_was_planned_is_read_though_its_tiers_are_gone() {
    let world = World::new();
    for tier in &world.slower {
        assert!(!tier.list("packs/").unwrap().is_empty());
    }
    let chunks = world.chunks();
    let reference = world.open(4 << 20);
    let expected: Vec<Vec<u8>> = chunks.iter().map(|id| reference.read_chunk(id).unwrap().to_vec()).collect();
    let store = world.open(64 << 20);
    store.prefetch(&chunks).unwrap();
    let blind = world.open(64 << 20);
    world.delete_packs();
    for (id, expected) in chunks.iter().zip(&expected) {
        assert!(*store.read_chunk(id).unwrap() == **expected, "{id}");
    }
    assert!(chunks.iter().all(|id| blind.read_chunk(id).is_err()), "nothing else has them");
}

#[test]
fn a_plan_that_the_cache_has_no_room_for_loses_nothing() {
    let world = World::new();
    let chunks = world.chunks();
    let store = world.open(1 << 10);
    store.prefetch(&chunks).unwrap();
    assert!(chunks.iter().all(|id| store.read_chunk(id).is_ok()));
}

#[test]
fn a_plan_brings_all_but_what_is_gone_and_says_that() {
    let world = World::new();
    let chunks = world.chunks();
    let [_, cold] = &world.slower;
    let gone = cold.list("packs/").unwrap();
    let largest = gone.into_iter().max_by_key(|info| info.len_bytes).unwrap();
    cold.delete(&largest.key).unwrap();
    let store = world.open(64 << 20);
    let error = store.prefetch(&chunks).unwrap_err();
    assert_eq!(error.kind(), store::Kind::NotFound, "{error}");
    let before: Vec<bool> = chunks.iter().map(|id| store.read_chunk(id).is_ok()).collect();
    assert!(before.contains(&true) && before.contains(&false));
    world.delete_packs();
    let after: Vec<bool> = chunks.iter().map(|id| store.read_chunk(id).is_ok()).collect();
    assert_eq!(before, after, "all that there was came with the plan");
}
