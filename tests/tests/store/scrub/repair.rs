//! Random damage on one to three tiers, against a simple oracle: a frame is intact where its bytes are as they were,
//! and a pack can be put together when all of its frames are intact somewhere.

use super::*;

const CASES: u64 = 400;

/// Damages some packs on some tiers.
pub(super) fn damage(whole: &Whole, tiers: &[MemoryTier], random: &mut Random) {
    let packs = whole.packs();
    for _ in 0..1 + random.below(5) {
        let (tier, pack) = (&tiers[random.below(tiers.len())], packs[random.below(packs.len())]);
        let key = pack.key();
        let Ok(bytes) = tier.get(&key) else { continue };
        let mut bytes = bytes.to_vec();
        let directory = whole.directory(pack);
        let end = directory.frames.last().map(|frame| frame.offset + u64::from(frame.len_bytes)).unwrap();
        match random.below(7) {
            0 | 1 => {
                for _ in 0..1 + random.below(8) {
                    if !bytes.is_empty() {
                        let at = random.below(bytes.len());
                        bytes[at] ^= 1 << random.below(8);
                    }
                }
            }
            2 => bytes.truncate(random.below(bytes.len() + 1)),
            3 => {
                let end = bytes.len().min(end as usize);
                bytes[end..].fill(0);
            }
            4 => {
                let end = bytes.len().min(64);
                bytes[..end].fill(0);
            }
            5 => {
                let start = random.below(bytes.len() / 4096 + 1) * 4096;
                let (start, end) = (start.min(bytes.len()), bytes.len().min(start + 4096));
                bytes[start..end].fill(0);
            }
            _ => {
                tier.delete(&key).unwrap();
                continue;
            }
        }
        overwrite(tier, &key, &bytes);
    }
}

/// The expected outcome for a pack.
struct Fate {
    /// Frames without an intact copy, by offset.
    lost: Vec<u64>,
    /// The copy on each tier before the repair.
    copies: Vec<Option<Vec<u8>>>,
}

fn fate(whole: &Whole, tiers: &[MemoryTier], pack: PackId) -> Fate {
    let right = whole.bytes(pack);
    let copies: Vec<Option<Vec<u8>>> =
        tiers.iter().map(|tier| tier.get(&pack.key()).ok().map(|bytes| bytes.to_vec())).collect();
    let lost = whole.directory(pack).frames.into_iter().filter(|frame| {
        let range = frame.offset as usize..(frame.offset + u64::from(frame.len_bytes)) as usize;
        let is_intact = |copy: &Vec<u8>| copy.get(range.clone()) == Some(&right[range.clone()]);
        !copies.iter().flatten().any(is_intact)
    });
    Fate { lost: lost.map(|frame| frame.offset).collect(), copies }
}

#[test]
fn random_damage_is_repaired_byte_for_byte_or_exactly_what_is_lost_is_noted() {
    let whole = Whole::new();
    let (mut repaired, mut lossy, mut lost_frames, mut collected) = (0, 0, 0, 0);
    for seed in 0..CASES {
        let context = format!("seed {seed}");
        let mut random = Random::new(1000 + seed);
        let (scratch, tiers) = whole.over_tiers(1 + random.below(3));
        damage(&whole, &tiers, &mut random);
        // Reading makes metadata local, so that comes first.
        let before = whole.readable(&scratch.config, &context);
        let fates: Vec<(PackId, Fate)> =
            whole.packs().into_iter().map(|pack| (pack, fate(&whole, &tiers, pack))).collect();
        let report = scrub(&scratch.config, &REPAIR);
        assert!(report.records.problems.is_empty(), "{context}: {:?}", report.records.problems);
        for (pack, fate) in &fates {
            repaired += assert_fate(&whole, &tiers, *pack, fate, &context);
            lost_frames += fate.lost.len();
        }
        let after = whole.readable(&scratch.config, &context);
        let is_kept = |(before, after): (&bool, &bool)| *after || !before;
        assert!(before.iter().zip(&after).all(is_kept), "{context}: {before:?} {after:?}");
        let is_lossy = fates.iter().any(|(_, fate)| !fate.lost.is_empty());
        assert_eq!(after.contains(&false), is_lossy, "{context}: what is whole somewhere is read");
        assert_eq!(report.affected.is_empty(), !is_lossy, "{context}: {:?}", report.affected);
        let again = scrub(&scratch.config, &REPAIR);
        assert_eq!((again.repaired_copies, again.is_intact()), (0, !is_lossy), "{context}: {again:#?}");
        if is_lossy {
            lossy += 1;
            collected += u32::from(heal_and_collect(&whole, &scratch, &tiers, &context));
        }
    }
    println!(
        "{CASES} damaged stores: {repaired} copies repaired byte for byte, {lossy} stores with {lost_frames} lost \
         frames noted, healed by storing again and collected"
    );
    assert!(repaired > 100 && lossy > 100 && collected > 100, "{repaired} {lossy} {collected}");
}

/// Returns how many copies were repaired.
fn assert_fate(whole: &Whole, tiers: &[MemoryTier], pack: PackId, fate: &Fate, context: &str) -> u32 {
    let right = whole.bytes(pack);
    assert_eq!(noted(&tiers[0], pack), fate.lost, "{context}: {pack}");
    let mut repaired = 0;
    for (tier, before) in tiers.iter().zip(&fate.copies) {
        let after = tier.get(&pack.key()).ok().map(|bytes| bytes.to_vec());
        let aside = tier.get(&format!("quarantine/{}.0", pack.key())).ok().map(|bytes| bytes.to_vec());
        if !fate.lost.is_empty() || before.is_none() || before.as_ref() == Some(&right) {
            assert!(after == *before, "{context}: {pack} changed");
            assert!(aside.is_none(), "{context}: nothing is kept aside that was not replaced");
            continue;
        }
        assert!(after.as_ref() == Some(&right), "{context}: {pack} is byte for byte what it was");
        assert!(aside == *before, "{context}: the damaged bytes of {pack} are kept");
        repaired += 1;
    }
    repaired
}

/// Stores everything again, as a backup of all sources would: everything reads again, also after collections. When all
/// is forgotten, packs and records go. True: damaged packs were deleted.
fn heal_and_collect(whole: &Whole, scratch: &Scratch, tiers: &[MemoryTier], context: &str) -> bool {
    let store = scratch.open();
    let collect = |cycles| {
        let options = gc::CollectOptions { dry_run: false, cycles };
        gc::collect(&Store::open(&scratch.config).unwrap(), &options, &Unwatched)
            .unwrap_or_else(|error| panic!("{context}: a known loss blocks nothing: {error}"))
    };
    collect(1);
    for (_, state) in &whole.states {
        commit(&mut store.writer("again").unwrap(), "again", state);
    }
    drop(store);
    let all = |what: &str| {
        let readable = whole.readable(&scratch.config, context);
        assert!(readable.iter().all(|read| *read), "{context}: {what}: {readable:?}");
    };
    all("stored again");
    collect(4);
    all("collected");
    let report = scrub(&scratch.config, &REPAIR);
    assert!(report.is_intact(), "{context}: what is lost is lost to nobody: {report:#?}");
    let checked = store::check(&scratch.open(), CheckOptions::default(), &Unwatched).unwrap();
    assert!(checked.problems.is_empty(), "{context}: {:?}", checked.problems);
    let store = scratch.open();
    for name in ["web", "vm", "again"] {
        store.forget(name, |_| true).unwrap();
    }
    collect(4);
    for tier in tiers {
        for prefix in ["packs/", "damaged/"] {
            assert!(tier.list(prefix).unwrap().is_empty(), "{context}: {:?}", tier.list(prefix).unwrap());
        }
    }
    true
}

/// With the directory gone everywhere and the index too, a pack is still repaired when its length says that all of it
/// is there, and is left alone otherwise.
#[test]
fn a_pack_without_directory_and_index_is_put_together_when_its_length_is_right() {
    let whole = Whole::new();
    let (mut whole_again, mut left) = (0, 0);
    for pack in whole.packs() {
        let right = whole.bytes(pack);
        let frames = whole.directory(pack).frames;
        let last = frames.last().unwrap();
        let end = (last.offset + u64::from(last.len_bytes)) as usize;
        let cut = |len: usize| right[..len].to_vec();
        let zeroed = [cut(end), vec![0; right.len() - end]].concat();
        for (bytes, is_repaired) in [(zeroed, true), (cut(end), false), (cut(right.len() - 1), false)] {
            let (scratch, tiers) = whole.over_tiers(1);
            for run in tiers[0].list("index/").unwrap() {
                tiers[0].delete(&run.key).unwrap();
            }
            overwrite(&tiers[0], &pack.key(), &bytes);
            let report = scrub(&scratch.config, &REPAIR);
            assert_eq!(report.repaired_copies, u64::from(is_repaired), "{report:#?}");
            let after = tiers[0].get(&pack.key()).unwrap().to_vec();
            assert!(after == if is_repaired { right.clone() } else { bytes });
            whole_again += u32::from(is_repaired);
            left += u32::from(!is_repaired);
        }
    }
    println!("{whole_again} packs put together by their length, {left} left alone");
}

#[test]
fn a_frame_of_the_disk_cache_repairs_what_no_tier_has() {
    let whole = Whole::new();
    let (mut scratch, tiers) = whole.over_tiers(2);
    scratch.config.disk_cache_bytes = 64 << 20;
    let store = Store::open(&scratch.config).unwrap();
    let mut repaired = 0;
    for pack in whole.packs() {
        let right = whole.bytes(pack);
        for frame in whole.directory(pack).frames {
            let range = frame.offset as usize..(frame.offset + u64::from(frame.len_bytes)) as usize;
            store.disk_cache().insert(pack, frame.offset, &right[range]);
        }
        // On no tier at all, and damaged all over on both.
        tiers[1].delete(&pack.key()).unwrap();
        match repaired % 2 {
            0 => tiers[0].delete(&pack.key()).unwrap(),
            _ => overwrite(&tiers[0], &pack.key(), &vec![0; right.len()]),
        }
        assert!(matches!(scrub(&scratch.config, &LOOK).damages[0].remedy, Remedy::Repairable));
        let report = scrub(&scratch.config, &REPAIR);
        assert!(report.is_intact(), "{report:#?}");
        assert!(*tiers[0].get(&pack.key()).unwrap() == *right);
        repaired += 1;
    }
    println!("{repaired} packs put together from the disk cache alone");
}

#[test]
fn damaged_index_runs_are_made_anew_and_damaged_records_are_told() {
    let whole = Whole::new();
    let mut runs = 0;
    for info in whole.tier.list("index/").unwrap() {
        let (scratch, tiers) = whole.over_tiers(1);
        let mut bytes = tiers[0].get(&info.key).unwrap().to_vec();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        overwrite(&tiers[0], &info.key, &bytes);
        assert!(!scrub(&scratch.config, &LOOK).is_intact());
        let report = scrub(&scratch.config, &REPAIR);
        assert_eq!((report.repaired_runs, report.is_intact()), (1, true), "{report:#?}");
        assert!(*tiers[0].get(&format!("quarantine/{}.0", info.key)).unwrap() == *bytes);
        let checked = store::check(&scratch.open(), CheckOptions { read_data: true }, &Unwatched).unwrap();
        assert!(checked.problems.is_empty(), "{:?}", checked.problems);
        runs += 1;
    }
    let mut records = 0;
    for prefix in ["refs/", "snapshots/", "domains/default"] {
        let info =
            whole.tier.list("").unwrap().into_iter().find(|info| info.key.starts_with(prefix)).unwrap();
        if prefix == "domains/default" {
            continue; // nothing opens without it
        }
        let (scratch, tiers) = whole.over_tiers(1);
        let mut bytes = tiers[0].get(&info.key).unwrap().to_vec();
        bytes[60] ^= 1;
        overwrite(&tiers[0], &info.key, &bytes);
        let report = scrub(&scratch.config, &REPAIR);
        assert!(!report.is_intact() && !report.records.problems.is_empty());
        assert!(*tiers[0].get(&info.key).unwrap() == *bytes, "damaged records are only reported");
        records += 1;
    }
    println!("{runs} damaged index runs made again, {records} damaged records told");
}

#[test]
fn a_damaged_note_of_what_is_lost_is_kept_aside_and_written_anew() {
    let whole = Whole::new();
    let (scratch, tiers) = whole.over_tiers(1);
    let pack = whole.packs()[0];
    let frame = whole.directory(pack).frames[0];
    let mut bytes = whole.bytes(pack);
    bytes[frame.offset as usize + 100] ^= 1;
    overwrite(&tiers[0], &pack.key(), &bytes);
    drop(scrub(&scratch.config, &REPAIR));
    assert_eq!(noted(&tiers[0], pack), [frame.offset]);
    let key = store::lost_frames::key_of(pack);
    overwrite(&tiers[0], &key, b"rot");
    let refused = gc::collect(&scratch.open(), &gc::CollectOptions::default(), &Unwatched).unwrap_err();
    assert!(refused.to_string().contains("scrub --repair"), "{refused}");
    assert!(scratch.open().writer("test").is_err(), "nobody depends on what may be lost");
    drop(scrub(&scratch.config, &REPAIR));
    assert_eq!(noted(&tiers[0], pack), [frame.offset]);
    assert_eq!(*tiers[0].get(&format!("quarantine/{key}.0")).unwrap(), *b"rot");
    // Intact again, for any reason: the record goes.
    overwrite(&tiers[0], &pack.key(), &whole.bytes(pack));
    drop(scrub(&scratch.config, &LOOK));
    assert_eq!(noted(&tiers[0], pack), [frame.offset]);
    assert!(scrub(&scratch.config, &REPAIR).is_intact());
    assert!(noted(&tiers[0], pack).is_empty());
}

/// Repair neither waits for another process nor lets one run beside it.
#[test]
fn a_repair_and_a_collector_a_mover_or_a_writer_of_any_kind_do_not_work_at_once() {
    let whole = Whole::new();
    let (scratch, tiers) = whole.over_tiers(2);
    let state = scratch.open().state_dir().to_owned();
    for name in ["gc.lock", "mover.lock"] {
        let _lock = store::FileLock::take(&state.join(name), "test").unwrap();
        let refused = store::scrub(&scratch.open(), &REPAIR, &Unwatched).unwrap_err();
        assert_eq!(refused.kind(), store::Kind::Conflict);
        assert!(scrub(&scratch.config, &LOOK).is_intact(), "a scrub without repair may run");
    }
    let pack = whole.packs()[0];
    overwrite(&tiers[0], &pack.key(), b"");
    let store = scratch.open();
    // Both kinds of writers may move packs to make room.
    for writer in [|store: &Store| store.writer("test"), |store: &Store| store.rewriter(0, 9, "test")] {
        let writer = writer(&store).unwrap();
        let report = scrub(&scratch.config, &REPAIR);
        assert!(matches!(&report.damages[0].remedy, Remedy::Failed { error } if error.contains("locked by")));
        assert!(!report.is_intact());
        drop(writer);
    }
    assert_eq!(scrub(&scratch.config, &REPAIR).repaired_copies, 1);
}

#[test]
fn every_pack_is_looked_at_on_a_tier_that_has_all_or_none() {
    let whole = Whole::new();
    let (scratch, tiers) = whole.over_tiers(2);
    let kept: BTreeSet<PackId> = whole.packs().into_iter().step_by(2).collect();
    for pack in whole.packs() {
        tiers[usize::from(kept.contains(&pack))].delete(&pack.key()).unwrap();
    }
    let report = scrub(&scratch.config, &REPAIR);
    assert!(report.is_intact());
    assert_eq!(report.copies, whole.packs().len() as u64);
    let copy = copy_of(&tiers[0]);
    assert_eq!(digest(&copy), digest(&tiers[0]), "a pack on one tier is where it belongs");
}
