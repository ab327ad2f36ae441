//! Power cuts and failing writes at every operation of a repair, and disks that cannot read: nothing readable is lost,
//! and the next run ends the work.

use super::*;
use std::sync::Mutex;
use store::{Error, Kind, Object, ObjectInfo};
use tests::fault::{Fault, FaultTier};

/// A tier some bytes of which cannot be read, until they are written again.
#[derive(Debug)]
struct BadSectors {
    inner: MemoryTier,
    bad: Mutex<Option<(String, u64)>>,
}

impl BadSectors {
    fn new(inner: MemoryTier, key: &str, at: u64) -> Arc<Self> {
        Arc::new(Self { inner, bad: Mutex::new(Some((key.to_owned(), at))) })
    }

    fn check(&self, key: &str, start: u64, end: u64) -> Result<()> {
        let bad = self.bad.lock().unwrap();
        match bad.as_ref().is_some_and(|(bad, at)| bad == key && (start..end).contains(at)) {
            true => Err(Error::new(Kind::Unavailable, "cannot read")),
            false => Ok(()),
        }
    }
}

impl Tier for BadSectors {
    fn describe(&self) -> String {
        "worn".to_owned()
    }
    fn get(&self, key: &str) -> Result<Object> {
        self.check(key, 0, u64::MAX)?;
        self.inner.get(key)
    }
    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.check(key, offset, offset + len)?;
        self.inner.get_range(key, offset, len)
    }
    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        self.inner.len_bytes(key)
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        self.inner.put_if_absent(key, body)
    }
    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        self.check(key, 0, u64::MAX)?;
        self.inner.compare_and_swap(key, expected, body)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<()> {
        let mut bad = self.bad.lock().unwrap();
        bad.take_if(|(bad, _)| bad == key);
        self.inner.delete(key)
    }
}

/// Two tiers, and of one pack a frame damaged on each.
fn crosswise(whole: &Whole, pack: PackId) -> (Scratch, Vec<MemoryTier>) {
    let (scratch, tiers) = whole.over_tiers(2);
    let frames = whole.directory(pack).frames;
    for (tier, frame) in tiers.iter().zip([frames.first(), frames.last()]) {
        let mut bytes = whole.bytes(pack);
        bytes[frame.unwrap().offset as usize + 90] ^= 0x40;
        overwrite(tier, &pack.key(), &bytes);
    }
    (scratch, tiers)
}

fn pack_of_several_frames(whole: &Whole) -> PackId {
    whole.packs().into_iter().find(|pack| whole.directory(*pack).frames.len() > 2).unwrap()
}

/// Runs a repair through `wrap`ped tiers, then without them: nothing readable is lost at either.
fn assert_safe(
    whole: &Whole,
    pack: PackId,
    (scratch, tiers): &(Scratch, Vec<MemoryTier>),
    config: &StoreConfig,
    context: &str,
) {
    if let Ok(store) = Store::open(config) {
        // It fails or reports failures; either is right.
        let _ = store::scrub(&store, &REPAIR, &Unwatched);
    }
    let readable = whole.readable(&scratch.config, context);
    assert!(readable.iter().all(|read| *read), "{context}: {readable:?}");
    let report = scrub(&scratch.config, &REPAIR);
    assert!(report.is_intact(), "{context}: {report:#?}");
    for tier in tiers {
        assert!(*tier.get(&pack.key()).unwrap() == *whole.bytes(pack), "{context}");
    }
    assert!(tiers[0].list("damaged/").unwrap().is_empty(), "{context}");
}

#[test]
fn no_failed_step_of_a_repair_loses_anything() {
    let whole = Whole::new();
    let pack = pack_of_several_frames(&whole);
    let (mut cuts, mut steps) = (0, 0);
    for number in [0, 1] {
        for fault in Fault::ALL {
            for operation in 0.. {
                let world = crosswise(&whole, pack);
                let mut config = world.0.config.clone();
                let faulty = FaultTier::new(config.tiers[number].tier.clone(), operation, fault);
                config.tiers[number].tier = faulty.clone();
                if number == 0 {
                    config.metadata_tier = faulty.clone();
                }
                let context = format!("{fault:?} at {operation} of tier {number}");
                assert_safe(&whole, pack, &world, &config, &context);
                steps = steps.max(operation);
                if !faulty.met() {
                    break;
                }
                cuts += 1;
            }
        }
    }
    assert!(cuts >= 16, "only {cuts}");
    println!(
        "{cuts} failures at every one of {steps} writing steps of a repair on either tier, nothing lost"
    );
}

#[test]
fn what_a_disk_cannot_read_is_put_together_again_whatever_step_fails() {
    let whole = Whole::new();
    let pack = pack_of_several_frames(&whole);
    let frames = whole.directory(pack).frames;
    let mut cuts = 0;
    for fault in Fault::ALL {
        for operation in 0.. {
            let world = crosswise(&whole, pack);
            // Its first frame is damaged there, and the second cannot be read.
            let worn = BadSectors::new(world.1[0].clone(), &pack.key(), frames[1].offset + 70);
            let faulty = FaultTier::new(worn.clone(), operation, fault);
            let mut config = world.0.config.clone();
            config.tiers[0].tier = faulty.clone();
            config.metadata_tier = faulty.clone();
            if let Ok(store) = Store::open(&config) {
                let _ = store::scrub(&store, &REPAIR, &Unwatched);
            }
            let context = format!("{fault:?} at {operation}");
            config.tiers[0].tier = worn.clone();
            config.metadata_tier = worn.clone();
            let readable = whole.readable(&config, &context);
            assert!(readable.iter().all(|read| *read), "{context}: {readable:?}");
            let report = scrub(&config, &REPAIR);
            assert!(report.is_intact(), "{context}: {report:#?}");
            assert!(*worn.get(&pack.key()).unwrap() == *whole.bytes(pack), "{context}");
            if !faulty.met() {
                break;
            }
            cuts += 1;
        }
    }
    println!("{cuts} failures at every writing step of a repair of what cannot be read, nothing lost");
    assert!(cuts >= 16, "only {cuts}");
}

#[test]
fn a_silent_tier_is_told_and_taken_for_no_damage() {
    let whole = Whole::new();
    let (scratch, tiers) = whole.over_tiers(2);
    let silent = FaultTier::new(Arc::new(tiers[1].clone()), 0, Fault::PowerOffBefore);
    let store = {
        let mut config = scratch.config.clone();
        config.tiers[1].tier = silent.clone();
        Store::open(&config).unwrap()
    };
    let before = digest(&tiers[1]);
    let listed = store.packs().unwrap();
    assert!(!listed.is_empty());
    // From its first write on it fails every operation.
    assert!(silent.delete("packs/none").is_err());
    let outcome = store::scrub(&store, &REPAIR, &Unwatched);
    assert!(outcome.is_err(), "packs that cannot be listed cannot be scrubbed");
    assert_eq!(digest(&tiers[1]), before);
}
