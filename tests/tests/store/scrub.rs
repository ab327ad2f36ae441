//! Scrubbing: damage is found, reported with the affected snapshots, and repaired from intact copies anywhere; lost
//! frames are recorded, stored again by writers and dropped by the collector; nothing readable is ever lost by any of
//! that.

mod faults;
mod flips;
mod loss;
mod repair;

use crate::scratch::{Scratch, copy_of, overwrite};
use std::collections::BTreeSet;
use std::sync::Arc;
use store::pack::{PackDirectory, read_directory};
use store::scrub::{Remedy, Subset};
use store::{
    CheckOptions, DataTier, LocalTier, MemoryTier, PackId, Result, ScrubOptions, ScrubReport, SnapshotDraft,
    SnapshotId, Store, StoreConfig, Tier, TierClass, Unwatched,
};
use tests::model::{Files, Item, Memory, Pages, Random, State, put_files, put_memory, state_of_store};

const REPAIR: ScrubOptions = ScrubOptions { subset: None, rate: None, repair: true };
const LOOK: ScrubOptions = ScrubOptions { subset: None, rate: None, repair: false };

fn scrub(config: &StoreConfig, options: &ScrubOptions) -> ScrubReport {
    store::scrub(&Store::open(config).unwrap(), options, &Unwatched).unwrap()
}

/// A small store with files of every form and memory, and what it holds.
struct Whole {
    tier: MemoryTier,
    states: Vec<(SnapshotId, State)>,
}

impl Whole {
    fn new() -> Self {
        let (scratch, tier) = Scratch::in_memory();
        let store = scratch.open();
        let mut states = Vec::new();
        for version in 0..3 {
            let mut writer = store.writer("test").unwrap();
            let state = State { files: Some(files(version)), memory: None };
            states.push((commit(&mut writer, "web", &state), state));
        }
        let mut writer = store.writer("test").unwrap();
        let state = State { files: None, memory: Some(memory()) };
        states.push((commit(&mut writer, "vm", &state), state));
        Self { tier, states }
    }

    /// The bytes that every snapshot reads as now.
    fn read(&self, config: &StoreConfig) -> Vec<Result<State>> {
        let store = Store::open(config).unwrap();
        self.states.iter().map(|(id, _)| state_of_store(&store, id)).collect()
    }

    /// The snapshots that read; none reads as anything but its own content.
    fn readable(&self, config: &StoreConfig, context: &str) -> Vec<bool> {
        let read = self.read(config).into_iter().zip(&self.states);
        read.map(|(read, (_, expected))| match read {
            Ok(state) => {
                assert!(state == *expected, "{context}: other bytes were read");
                true
            }
            Err(_) => false,
        })
        .collect()
    }

    fn packs(&self) -> Vec<PackId> {
        let keys = self.tier.list("packs/").unwrap();
        keys.iter().map(|info| PackId::from_key(&info.key).unwrap()).collect()
    }

    fn bytes(&self, pack: PackId) -> Vec<u8> {
        self.tier.get(&pack.key()).unwrap().to_vec()
    }

    fn directory(&self, pack: PackId) -> PackDirectory {
        read_directory(&self.tier, pack).unwrap()
    }

    /// The store over this many tiers in memory: packs are on all of them.
    fn over_tiers(&self, count: usize) -> (Scratch, Vec<MemoryTier>) {
        let tiers: Vec<MemoryTier> = (0..count).map(|_| self.tier.fork()).collect();
        for tier in &tiers[1..] {
            let others = tier.list("").unwrap().into_iter().filter(|info| !info.key.starts_with("packs/"));
            others.for_each(|info| tier.delete(&info.key).unwrap());
        }
        let mut scratch = Scratch::over(Arc::new(tiers[0].clone()));
        for (tier, class) in tiers[1..].iter().zip([TierClass::Warm, TierClass::Cold]) {
            scratch.config = scratch.config.with_tier(DataTier::new(class, Arc::new(tier.clone())));
        }
        scratch.config.disk_cache_bytes = 0;
        (scratch, tiers)
    }
}

fn commit(writer: &mut store::Writer, name: &str, state: &State) -> SnapshotId {
    let tree = state.files.as_ref().map(|files| put_files(writer, files).unwrap());
    let image = state.memory.as_ref().map(|memory| put_memory(writer, memory, None).unwrap());
    writer.commit(name, SnapshotDraft { tree, image, ..SnapshotDraft::default() }).unwrap()
}

fn files(version: u64) -> Files {
    let mut files = Files::from([(Vec::new(), Item::directory()), (b"sub".to_vec(), Item::directory())]);
    let mut random = Random::new(version + 1);
    files.insert(b"sub/same".to_vec(), Item::file(Random::new(9).bytes(9000)));
    files.insert(b"sub/other".to_vec(), Item::file(random.bytes(7000)));
    files.insert(b"text".to_vec(), Item::file(b"a line that comes again\n".repeat(400)));
    let linked = Item { link: Some(b"hard-1".to_vec()), ..Item::file(random.bytes(6000)) };
    files.extend([(b"hard-1".to_vec(), linked.clone()), (b"sub/hard-2".to_vec(), linked)]);
    files
}

fn memory() -> Memory {
    let mut random = Random::new(5);
    let pages = (0..40).map(|page| (page, random.bytes(4096))).collect();
    Memory {
        spaces: [(0, Pages { len_bytes: 40 * 4096, pages })].into(),
        blobs: [("vmstate".to_owned(), random.bytes(5000))].into(),
    }
}

/// All bytes of a tier, as one hash.
fn digest(tier: &dyn Tier) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for info in tier.list("").unwrap() {
        hasher.update(info.key.as_bytes()).update(&tier.get(&info.key).unwrap());
    }
    hasher.finalize()
}

/// The offsets that a record says are lost; none without a record.
fn noted(metadata_tier: &dyn Tier, pack: PackId) -> Vec<u64> {
    let found = store::lost_frames::read(metadata_tier, &store::lost_frames::key_of(pack)).unwrap();
    found.map(|found| found.offsets).unwrap_or_default()
}

#[test]
fn a_whole_store_is_found_whole_and_every_byte_is_read() {
    let whole = Whole::new();
    for (count, options) in [(1, LOOK), (2, LOOK), (3, REPAIR)] {
        let (scratch, tiers) = whole.over_tiers(count);
        let before: Vec<_> = tiers.iter().map(|tier| digest(tier)).collect();
        let report = scrub(&scratch.config, &options);
        assert!(report.is_intact() && report.damages.is_empty(), "{report:#?}");
        let bytes: u64 = whole.tier.list("packs/").unwrap().iter().map(|info| info.len_bytes).sum();
        assert_eq!(report.read_bytes, bytes * count as u64);
        assert_eq!(report.copies, whole.packs().len() as u64 * count as u64);
        assert!(before.iter().zip(&tiers).all(|(before, tier)| *before == digest(tier)));
    }
}

#[test]
fn subsets_hold_every_pack_once_and_the_same_each_time() {
    let whole = Whole::new();
    let (scratch, _) = whole.over_tiers(1);
    let total = whole.packs().len() as u64;
    let mut runs = 0;
    for count in [1, 2, 3, 5, 16] {
        let packs = (1..=count).map(|number| {
            runs += 1;
            let subset = Some(Subset::new(number, count).unwrap());
            scrub(&scratch.config, &ScrubOptions { subset, ..LOOK }).packs
        });
        assert_eq!(packs.sum::<u64>(), total, "of {count}");
    }
    let mut random = Random::new(1);
    for _ in 0..10_000 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&random.bytes(16));
        let (pack, count) = (PackId::from_bytes(bytes), 1 + random.below(40) as u32);
        let holders = (1..=count).filter(|number| Subset::new(*number, count).unwrap().holds(pack));
        assert_eq!(holders.count(), 1);
    }
    assert!(Subset::new(0, 3).is_err() && Subset::new(4, 3).is_err() && Subset::new(1, 0).is_err());
    println!("{total} packs in {runs} runs over subsets, and 10000 random packs: each in one subset");
}

#[test]
fn a_rate_is_kept() {
    let whole = Whole::new();
    let (scratch, _) = whole.over_tiers(2);
    let rate = std::num::NonZeroU64::new(2_000_000);
    let begun = std::time::Instant::now();
    let report = scrub(&scratch.config, &ScrubOptions { rate, ..LOOK });
    let elapsed = begun.elapsed().as_secs_f64();
    assert!(elapsed >= report.read_bytes as f64 / 2e6, "{} bytes in {elapsed} s", report.read_bytes);
    println!("{} bytes in {elapsed:.3} s at 2 MB/s", report.read_bytes);
}

/// Without `repair` not a byte changes, on the tiers and in local state, whatever is damaged.
#[test]
fn a_scrub_that_does_not_repair_changes_no_byte() {
    let whole = Whole::new();
    let mut cases = 0;
    for seed in 0..150 {
        let (scratch, tiers) = whole.over_tiers(1 + seed as usize % 3);
        repair::damage(&whole, &tiers, &mut Random::new(seed));
        let state = LocalTier::new(scratch.config.state.path());
        let mut config = scratch.config.clone();
        config.disk_cache_bytes = 1 << 30;
        drop(Store::open(&config).unwrap());
        let before: Vec<_> = tiers.iter().map(|tier| digest(tier)).collect();
        let state_before = digest(&state);
        let report = scrub(&config, &LOOK);
        assert_eq!(digest(&state), state_before, "{seed}");
        assert_eq!(report.repaired_copies, 0);
        assert!(before.iter().zip(&tiers).all(|(before, tier)| *before == digest(tier)), "{seed}");
        cases += 1;
    }
    println!("{cases} damaged stores scrubbed, no byte changed");
}
