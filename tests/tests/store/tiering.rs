//! Tiers with limits: packs land, move on when there is no room, and are read from wherever they are; metadata stays
//! hot; nothing is released that was not seen intact on the next tier.

use crate::scratch::Scratch;
use std::sync::Arc;
use store::{
    DataTier, Kind, LocalTier, MemoryTier, Store, StoreConfig, Tier, TierClass, Unwatched, move_snapshot,
    rebalance, set_pin,
};
use tests::fault::{Fault, FaultTier};
use tests::gc_fixture::{assert_files, commit};
use tests::interleaving::InterleavingTier;
use tests::model::assert_clean;

const KIB: u64 = 1 << 10;
const MAX_OPERATIONS: u64 = 400;

/// Hot and warm directories and a cold tier in memory.
struct World {
    _scratch: Scratch,
    cold: MemoryTier,
    config: StoreConfig,
}

fn world(hot_limit: Option<u64>, warm_limit: Option<u64>) -> World {
    let scratch = Scratch::in_directory();
    let cold = MemoryTier::new();
    let warm = Arc::new(LocalTier::new(scratch.directory.path().join("warm")));
    let mut config = scratch
        .config
        .clone()
        .with_tier(DataTier { limit_bytes: warm_limit, ..DataTier::new(TierClass::Warm, warm) })
        .with_tier(DataTier::new(TierClass::Cold, Arc::new(cold.clone())));
    config.tiers[0].limit_bytes = hot_limit;
    config.cache_bytes = KIB;
    World { _scratch: scratch, cold, config }
}

fn put(store: &Store, name: &str, files: &[u64]) -> store::SnapshotId {
    commit(&mut store.writer("test").unwrap(), name, files).unwrap()
}

fn bytes_on(store: &Store, number: usize) -> u64 {
    store.placement().usage(number).unwrap().bytes
}

#[test]
fn the_hot_limit_holds_at_every_insert_and_everything_stays_readable() {
    let limit = 700 * KIB;
    let world = world(Some(limit), Some(500 * KIB));
    let mut snapshots = Vec::new();
    for number in 0..12u64 {
        let store = Store::open(&world.config).unwrap();
        snapshots.push((number, put(&store, &format!("app-{number}"), &[10 * number, 10 * number + 1])));
        assert!(bytes_on(&store, 0) <= limit, "hot holds {} after {number}", bytes_on(&store, 0));
        assert!(bytes_on(&store, 1) <= 500 * KIB, "warm holds {} after {number}", bytes_on(&store, 1));
    }
    assert!(!world.cold.list("packs/").unwrap().is_empty(), "packs without room go to the cold tier");
    let store = Store::open(&world.config).unwrap();
    for (number, snapshot) in &snapshots {
        assert_files(&store, snapshot, &format!("app-{number}"));
    }
    // Metadata did not move.
    for tier in store.tiers().into_iter().skip(1) {
        for info in tier.list("packs/").unwrap() {
            let id = store::PackId::from_key(&info.key).unwrap();
            assert_eq!(store::pack::read_kind(tier, id).unwrap(), store::pack::PackKind::Data);
        }
    }
    assert_clean(&store, "after all moves");
    gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 4 }, &Unwatched).unwrap();
    assert_clean(&store, "after a collection over three tiers");
}

/// The mover of another process, whose limits are lower, works between any two steps of a writer that makes room.
#[test]
fn two_that_make_room_at_once_lose_nothing_and_nobody_is_refused() {
    let mut places = 0;
    for operation in 0..MAX_OPERATIONS {
        let (scratch, hot) = Scratch::in_memory();
        let (warm, cold) = (MemoryTier::new(), MemoryTier::new());
        let limited = |hot: Arc<dyn Tier>, hot_limit, warm_limit| {
            let mut config = scratch.config.clone();
            let limit = |bytes, tier| DataTier { limit_bytes: Some(bytes), ..tier };
            config.tiers[0] = limit(hot_limit, DataTier::new(TierClass::Hot, hot));
            let warm = DataTier::new(TierClass::Warm, Arc::new(warm.clone()));
            config = config.with_tier(limit(warm_limit, warm));
            config.with_tier(DataTier::new(TierClass::Cold, Arc::new(cold.clone())))
        };
        let hooked = InterleavingTier::new(Arc::new(hot.clone()));
        let store = Store::open(&limited(hooked.clone(), 700 * KIB, 500 * KIB)).unwrap();
        let put_app = |app: u64| put(&store, "app", &[10 * app, 10 * app + 1]);
        let mut apps: Vec<_> = (0..4).map(put_app).collect();
        let others = limited(Arc::new(hot), 300 * KIB, 200 * KIB);
        let mover = others.clone();
        hooked.arm(operation, move || {
            rebalance(&Store::open(&mover).unwrap(), None, &Unwatched).unwrap();
        });
        apps.extend((4..8).map(put_app));
        if hooked.is_armed() {
            break;
        }
        places += 1;
        assert!(!cold.list("packs/").unwrap().is_empty());
        let store = Store::open(&others).unwrap();
        let bytes = [bytes_on(&store, 0), bytes_on(&store, 1)];
        assert!(bytes[0] <= 700 * KIB && bytes[1] <= 500 * KIB, "before {operation}: {bytes:?}");
        for snapshot in &apps {
            assert_files(&store, snapshot, &format!("before {operation}"));
        }
        assert_clean(&store, &format!("before {operation}"));
    }
    assert!(places >= 20, "only {places} places");
}

#[test]
fn a_full_store_with_nowhere_to_move_to_refuses_and_stays_whole() {
    let mut config = Scratch::in_directory();
    config.config.tiers[0].limit_bytes = Some(700 * KIB);
    let store = Store::open(&config.config).unwrap();
    let kept = put(&store, "kept", &[1]);
    let refused = (2..20).find_map(|number| {
        commit(&mut store.writer("test").unwrap(), &format!("app-{number}"), &[number]).err()
    });
    assert_eq!(refused.expect("the limit is met").kind(), Kind::Full);
    assert_files(&store, &kept, "what was there");
    assert!(bytes_on(&store, 0) <= 700 * KIB);
    assert_clean(&store, "a full store");
}

#[test]
fn pins_and_moves_do_what_they_say() {
    let world = world(None, None);
    let store = Store::open(&world.config).unwrap();
    let (near, far) = (put(&store, "near", &[1, 2]), put(&store, "far", &[3, 4]));
    assert!(set_pin(&store, &near, true).unwrap());
    assert!(!set_pin(&store, &near, true).unwrap(), "it is pinned already");
    for snapshot in [&near, &far] {
        move_snapshot(&store, snapshot, TierClass::Cold, None, &Unwatched).unwrap();
    }
    let cold: Vec<_> = world.cold.list("packs/").unwrap();
    assert!(!cold.is_empty());
    let pinned = store::packs_of(&store, &near).unwrap();
    assert!(
        pinned.iter().all(|pack| store.metadata_tier().len_bytes(&pack.key()).unwrap().is_some()),
        "a pin holds"
    );
    assert_files(&store, &far, "from far away");
    assert!(store.disk_cache().usage().unwrap().frames > 0, "frames of the cold tier are cached");
    let report = move_snapshot(&store, &far, TierClass::Hot, None, &Unwatched).unwrap();
    assert!(report.moved.copied >= 1);
    assert!(
        store::packs_of(&store, &far).unwrap().iter().all(|pack| store
            .metadata_tier()
            .len_bytes(&pack.key())
            .unwrap()
            .is_some())
    );
    assert!(set_pin(&store, &near, false).unwrap());
    move_snapshot(&store, &near, TierClass::Warm, None, &Unwatched).unwrap();
    assert!(bytes_on(&store, 1) > 0);
    assert_files(&Store::open(&world.config).unwrap(), &near, "from the warm tier");
}

/// Whatever operation of either tier fails while packs move, every chunk stays readable, and the next run ends the
/// work.
#[test]
fn no_failed_step_of_a_move_loses_a_pack() {
    let mut failures = 0;
    for tier_number in [0, 1] {
        for fault in Fault::ALL {
            for operation in 0.. {
                let scratch = Scratch::in_directory();
                let store = Store::open(&scratch.config).unwrap();
                let snapshot = put(&store, "app", &[1, 2]);
                let cold: Arc<dyn Tier> = Arc::new(MemoryTier::new());
                let hot = scratch.config.metadata_tier.clone();
                let faulty =
                    FaultTier::new([hot.clone(), cold.clone()][tier_number].clone(), operation, fault);
                let mut places = [hot.clone(), cold.clone()];
                places[tier_number] = faulty.clone();
                let config = |places: &[Arc<dyn Tier>; 2]| {
                    let mut config =
                        scratch.config.clone().with_tier(DataTier::new(TierClass::Cold, places[1].clone()));
                    config.tiers[0] =
                        DataTier { limit_bytes: Some(1), ..DataTier::new(TierClass::Hot, places[0].clone()) };
                    config
                };
                let failed = rebalance(&Store::open(&config(&places)).unwrap(), None, &Unwatched).is_err();
                let whole = Store::open(&config(&[hot, cold])).unwrap();
                assert_files(&whole, &snapshot, &format!("{fault:?} at {operation} of tier {tier_number}"));
                rebalance(&whole, None, &Unwatched).unwrap();
                assert_files(&whole, &snapshot, "after the next run");
                assert_clean(&whole, "after the next run");
                if !faulty.met() {
                    break;
                }
                failures += u32::from(failed);
            }
        }
    }
    assert!(failures >= 8, "only {failures} failures");
}

/// A copy that differs from its source is found before the source goes.
#[test]
fn a_tier_that_stores_other_bytes_releases_nothing() {
    #[derive(Debug)]
    struct Lossy(MemoryTier);
    impl Tier for Lossy {
        fn describe(&self) -> String {
            "lossy".to_owned()
        }
        fn get(&self, key: &str) -> store::Result<store::Object> {
            self.0.get(key)
        }
        fn get_range(&self, key: &str, offset: u64, len: u64) -> store::Result<Vec<u8>> {
            self.0.get_range(key, offset, len)
        }
        fn len_bytes(&self, key: &str) -> store::Result<Option<u64>> {
            self.0.len_bytes(key)
        }
        fn put_if_absent(&self, key: &str, body: &[u8]) -> store::Result<bool> {
            let mut body = body.to_vec();
            let middle = body.len() / 2;
            body[middle] ^= 1;
            self.0.put_if_absent(key, &body)
        }
        fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> store::Result<bool> {
            self.0.compare_and_swap(key, expected, body)
        }
        fn list(&self, prefix: &str) -> store::Result<Vec<store::ObjectInfo>> {
            self.0.list(prefix)
        }
        fn delete(&self, key: &str) -> store::Result<()> {
            self.0.delete(key)
        }
    }
    let scratch = Scratch::in_directory();
    let store = Store::open(&scratch.config).unwrap();
    let snapshot = put(&store, "app", &[1, 2]);
    let mut config =
        scratch.config.clone().with_tier(DataTier::new(TierClass::Cold, Arc::new(Lossy(MemoryTier::new()))));
    config.tiers[0].limit_bytes = Some(1);
    let moving = Store::open(&config).unwrap();
    let before = bytes_on(&moving, 0);
    let refused = rebalance(&moving, None, &Unwatched).unwrap_err();
    assert_eq!(refused.kind(), Kind::Corrupt);
    assert_eq!(bytes_on(&moving, 0), before, "nothing was released");
    assert_files(&moving, &snapshot, "from where it was");
}

/// Pinned snapshots come back to a hot tier that is full of others, and push out nothing that is pinned.
/// A copy that has been there for long may have rotted since.
#[test]
fn a_rotten_copy_releases_nothing() {
    let world = world(None, None);
    let store = Store::open(&world.config).unwrap();
    let snapshot = put(&store, "app", &[1, 2, 3]);
    let (hot, warm) = (&world.config.tiers[0].tier, &world.config.tiers[1].tier);
    let before = hot.list("packs/").unwrap();
    for info in &before {
        let mut bytes = hot.get(&info.key).unwrap().to_vec();
        bytes[200] ^= 1;
        warm.put_if_absent(&info.key, &bytes).unwrap();
    }
    let error = move_snapshot(&store, &snapshot, TierClass::Warm, None, &Unwatched).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert_eq!(hot.list("packs/").unwrap(), before);
    assert_files(&store, &snapshot, "beside a rotten copy");
}

#[test]
fn pins_make_room_for_themselves_and_never_push_each_other_out() {
    let world = world(Some(700 * KIB), None);
    let store = Store::open(&world.config).unwrap();
    let snapshots: Vec<_> =
        (0..8u64).map(|number| put(&store, &format!("app-{number}"), &[number])).collect();
    for pinned in &snapshots[..3] {
        set_pin(&store, pinned, true).unwrap();
    }
    let on_hot = |snapshot| {
        let packs = store::packs_of(&store, snapshot).unwrap();
        packs.iter().all(|pack| store.metadata_tier().len_bytes(&pack.key()).unwrap().is_some())
    };
    for _ in 0..2 {
        let report = rebalance(&store, None, &Unwatched).unwrap();
        assert_eq!(report.pinned_elsewhere, 0);
        assert!(snapshots[..3].iter().all(on_hot));
        assert!(bytes_on(&store, 0) <= 700 * KIB);
    }
    assert_eq!(rebalance(&store, None, &Unwatched).unwrap().moved.copied, 0, "nothing moves forever");
    // More is pinned than fits: what fits is there.
    for pinned in &snapshots {
        set_pin(&store, pinned, true).unwrap();
    }
    let report = rebalance(&store, None, &Unwatched).unwrap();
    assert!(report.pinned_elsewhere > 0);
    assert!(bytes_on(&store, 0) <= 700 * KIB);
    assert_clean(&store, "after all pins");
}
