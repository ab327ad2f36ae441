//! Damage: any bit of any object flipped, any pack cut at any byte, objects gone or swapped. A read returns an error or
//! the right bytes, never others; a full check finds every flip there is.

use crate::scratch::{Scratch, copy_of, overwrite};
use std::sync::Arc;
use store::pack::read_directory;
use store::{
    CheckOptions, DataTier, Kind, LocalTier, MemoryTier, PackId, Result, SnapshotDraft, Store, StoreConfig,
    Tier, TierClass, Unwatched,
};
use tests::model::{
    Files, Item, Memory, Pages, Random, State, put_files, put_memory, sample_files, state_of_store,
};

/// A store of a few kilobytes with one of everything, read back as it must always read.
struct Small {
    scratch: Scratch,
    tier: MemoryTier,
    expected: Vec<(String, State)>,
    /// Key of a snapshot record that no ref names.
    unnamed: String,
}

impl Small {
    fn new() -> Self {
        let (scratch, tier) = Scratch::in_memory();
        let store = scratch.open();
        for version in 0..2 {
            let mut writer = store.writer("test").unwrap();
            let tree = put_files(&mut writer, &small_files(version)).unwrap();
            writer.commit("web", SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() }).unwrap();
            let image = put_memory(&mut writer, &small_memory(version), None).unwrap();
            writer.commit("vm", SnapshotDraft { image: Some(image), ..SnapshotDraft::default() }).unwrap();
        }
        // Something condemned, so that the collector's records are there too.
        let mut writer = store.writer("test").unwrap();
        writer.put_chunk(&Random::new(1).bytes(5000)).unwrap();
        let gone = writer.commit("gone", SnapshotDraft::default()).unwrap();
        drop(writer);
        store.forget("gone", |_| true).unwrap();
        gc::collect(&store, &gc::CollectOptions::default(), &Unwatched).unwrap();
        let expected = read_all(&scratch.config).unwrap();
        assert_eq!(expected.len(), 4);
        let kinds = [
            "superblock",
            "domains/",
            "snapshots/",
            "refs/",
            "index/",
            "packs/",
            "gc/state",
            "gc/condemned/",
        ];
        for kind in kinds {
            assert!(tier.list("").unwrap().iter().any(|info| info.key.starts_with(kind)), "no {kind}");
        }
        Self { scratch, tier, expected, unnamed: store.domain().snapshot_key(&gone) }
    }

    /// Reads everything after `key` got these bytes; puts the right ones back.
    fn read_with(&self, key: &str, damaged: &[u8]) -> (Result<Vec<(String, State)>>, bool) {
        let right = self.tier.get(key).unwrap();
        overwrite(&self.tier, key, damaged);
        let read = read_all(&self.scratch.config);
        let found = is_found(&self.scratch.config);
        overwrite(&self.tier, key, &right);
        (read, found)
    }

    fn assert_right_or_refused(&self, read: &Result<Vec<(String, State)>>, context: &str) {
        match read {
            Ok(read) => assert!(*read == self.expected, "{context}: other bytes were read"),
            Err(error) => assert!(
                matches!(error.kind(), Kind::Corrupt | Kind::Invalid | Kind::NotFound),
                "{context}: {error:?}"
            ),
        }
    }
}

fn small_files(version: u64) -> Files {
    let mut files = Files::from([(Vec::new(), Item::directory()), (b"sub".to_vec(), Item::directory())]);
    let mut random = Random::new(version);
    files.insert(b"inline".to_vec(), Item::file(random.bytes(20)));
    files.insert(b"sub/text".to_vec(), Item::file(b"a line that comes again\n".repeat(300)));
    files.insert(b"sub/noise".to_vec(), Item::file(random.bytes(5000)));
    let linked = Item { link: Some(b"hard-1".to_vec()), ..Item::file(random.bytes(6)) };
    files.extend([(b"hard-1".to_vec(), linked.clone()), (b"hard-2".to_vec(), linked)]);
    files
}

fn small_memory(version: u64) -> Memory {
    let mut random = Random::new(version);
    let pages = [(1, random.bytes(4096)), (5, vec![7; 4096])].into();
    Memory {
        spaces: [(0, Pages { len_bytes: 8 * 4096, pages })].into(),
        blobs: [("state".to_owned(), random.bytes(4200))].into(),
    }
}

/// Every snapshot of every ref.
fn read_all(config: &StoreConfig) -> Result<Vec<(String, State)>> {
    let store = Store::open(config)?;
    let mut states = Vec::new();
    for found in store.refs().list()? {
        for entry in found.history {
            states.push((found.name.clone(), state_of_store(&store, &entry.snapshot)?));
        }
    }
    Ok(states)
}

/// Whether opening or a full check reports a problem.
fn is_found(config: &StoreConfig) -> bool {
    let Ok(store) = Store::open(config) else { return true };
    let checked = store::check(&store, CheckOptions { read_data: true }, &Unwatched);
    checked.map_or(true, |report| !report.problems.is_empty())
}

fn flip(small: &Small, key: &str, bytes: &[u8], bit: usize) {
    let mut damaged = bytes.to_vec();
    damaged[bit / 8] ^= 1 << (bit % 8);
    let context = format!("{key}, bit {} of byte {}", bit % 8, bit / 8);
    let (read, found) = small.read_with(key, &damaged);
    small.assert_right_or_refused(&read, &context);
    assert!(found, "{context}: a full check finds nothing");
    if key.starts_with("index/") {
        assert!(read.is_ok(), "{context}: packs hold the truth, but {:?}", read.err());
    }
}

/// No bit of a small store may change unseen, not even padding.
#[test]
fn every_flipped_bit_is_found_and_none_gives_other_bytes() {
    let small = Small::new();
    let mut flips = 0;
    for info in small.tier.list("").unwrap() {
        let bytes = small.tier.get(&info.key).unwrap().to_vec();
        let all = bytes.len() * 8;
        if info.key.starts_with("packs/") {
            continue; // below
        }
        (0..all).for_each(|bit| flip(&small, &info.key, &bytes, bit));
        flips += all;
    }
    println!("{flips} bits of records flipped, all found");
}

#[test]
fn flipped_bits_of_packs_are_found_and_none_gives_other_bytes() {
    let small = Small::new();
    let mut random = Random::new(7);
    let mut flips = 0;
    for info in small.tier.list("packs/").unwrap() {
        let bytes = small.tier.get(&info.key).unwrap().to_vec();
        let all = bytes.len() * 8;
        let ends = (0..all.min(8 * 200)).chain(all.saturating_sub(8 * 300)..all);
        let bits: Vec<usize> = ends.chain((0..1500).map(|_| random.below(all))).collect();
        flips += bits.len();
        bits.into_iter().for_each(|bit| flip(&small, &info.key, &bytes, bit));
    }
    println!("{flips} bits of packs flipped, all found");
}

/// Padding of frames and of the pack header is all that no read looks at; a full check looks at it too.
#[test]
fn a_pack_cut_anywhere_is_refused_and_other_packs_go_on() {
    let small = Small::new();
    let store = small.scratch.open();
    let mut cuts = 0;
    for info in small.tier.list("packs/").unwrap() {
        let bytes = small.tier.get(&info.key).unwrap().to_vec();
        for len in (0..bytes.len()).step_by(if bytes.len() > 8000 { 3 } else { 1 }) {
            let context = format!("{} cut to {len} of {} bytes", info.key, bytes.len());
            overwrite(&small.tier, &info.key, &bytes[..len]);
            let cold = Store::open(&small.scratch.config).unwrap();
            let mut affected = 0;
            for (at, (name, expected)) in small.expected.iter().enumerate() {
                let entry = store.refs().get(name).unwrap().unwrap().history[at % 2];
                match state_of_store(&cold, &entry.snapshot) {
                    Ok(state) => assert!(state == *expected, "{context}: other bytes were read"),
                    Err(error) => {
                        assert_eq!(error.kind(), Kind::Corrupt, "{context}: {error}");
                        affected += 1;
                    }
                }
            }
            assert!(affected < 4, "{context}: one pack takes all others with it");
            cuts += 1;
            if len % 97 == 0 {
                assert!(is_found(&small.scratch.config), "{context}: a full check finds nothing");
            }
        }
        overwrite(&small.tier, &info.key, &bytes);
    }
    println!("packs cut at {cuts} places");
}

#[test]
fn a_large_pack_cut_at_sampled_places_is_refused() {
    let (scratch, tier) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let mut files = sample_files(3, 0);
    files.insert(b"big".to_vec(), Item::file(Random::new(5).bytes(3_000_000)));
    let tree = put_files(&mut writer, &files).unwrap();
    let snapshot =
        writer.commit("web", SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() }).unwrap();
    let mut random = Random::new(11);
    for info in tier.list("packs/").unwrap() {
        let bytes = tier.get(&info.key).unwrap().to_vec();
        let directory = read_directory(&tier, PackId::from_key(&info.key).unwrap()).unwrap();
        let last = directory.frames.last().unwrap();
        for _ in 0..60 {
            // Only the directory behind the last frame is not needed by reads that have an index.
            let len = random.below((last.offset + u64::from(last.len_bytes)) as usize);
            overwrite(&tier, &info.key, &bytes[..len]);
            let error = state_of_store(&scratch.open(), &snapshot).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "cut to {len}: {error}");
        }
        overwrite(&tier, &info.key, &bytes);
    }
    assert!(state_of_store(&scratch.open(), &snapshot).unwrap().files == Some(files));
}

#[test]
fn records_cut_anywhere_are_refused() {
    let small = Small::new();
    for info in small.tier.list("").unwrap() {
        let bytes = small.tier.get(&info.key).unwrap().to_vec();
        if info.key.starts_with("packs/") {
            continue;
        }
        for len in 0..bytes.len() {
            let context = format!("{} cut to {len}", info.key);
            let (read, found) = small.read_with(&info.key, &bytes[..len]);
            small.assert_right_or_refused(&read, &context);
            assert!(found, "{context}: a full check finds nothing");
            let derived = ["index/", "gc/"].iter().any(|prefix| info.key.starts_with(prefix));
            let unnamed = info.key == small.unnamed;
            assert_eq!(read.is_ok(), derived || unnamed, "{context}: {:?}", read.err());
        }
    }
}

#[test]
fn an_object_that_is_gone_is_named_and_others_go_on() {
    let small = Small::new();
    let mut refused = 0;
    for info in small.tier.list("").unwrap() {
        let bytes = small.tier.get(&info.key).unwrap().to_vec();
        small.tier.delete(&info.key).unwrap();
        let read = read_all(&small.scratch.config);
        let harmless = ["index/", "gc/", "refs/"].iter().any(|prefix| info.key.starts_with(prefix));
        match read {
            Err(error) => {
                assert_eq!(error.kind(), Kind::NotFound, "{}: {error}", info.key);
                assert!(is_found(&small.scratch.config), "{}", info.key);
                refused += 1;
            }
            Ok(read) if harmless => assert!(read.iter().all(|state| small.expected.contains(state))),
            Ok(_) => {
                assert!(info.key.starts_with("packs/") || info.key.starts_with("snapshots/"), "{}", info.key)
            }
        }
        small.tier.put_if_absent(&info.key, &bytes).unwrap();
    }
    assert!(refused >= 8, "{refused}");
}

/// One object's bytes under another's name: ids, names and pack ids all stand inside.
#[test]
fn objects_that_changed_places_are_found() {
    let small = Small::new();
    for prefix in ["packs/", "snapshots/", "refs/"] {
        let keys: Vec<String> = small.tier.list(prefix).unwrap().into_iter().map(|info| info.key).collect();
        for (one, other) in keys.iter().zip(&keys[1..]) {
            let bytes = small.tier.get(other).unwrap().to_vec();
            let (read, found) = small.read_with(one, &bytes);
            let context = format!("{other} in place of {one}");
            small.assert_right_or_refused(&read, &context);
            assert!(found, "{context}: a full check finds nothing");
        }
    }
}

#[test]
fn a_damaged_hot_copy_is_read_from_the_warm_tier() {
    let small = Small::new();
    let warm: Arc<dyn Tier> = Arc::new(copy_of(&small.tier));
    for info in small.tier.list("packs/").unwrap() {
        let bytes = small.tier.get(&info.key).unwrap().to_vec();
        overwrite(&small.tier, &info.key, &vec![0; bytes.len()]);
    }
    let config = small.scratch.config.clone().with_tier(DataTier::new(TierClass::Warm, warm));
    assert!(read_all(&config).unwrap() == small.expected);
    assert!(read_all(&small.scratch.config).is_err(), "without it they are gone");
    let report =
        store::check(&Store::open(&config).unwrap(), CheckOptions { read_data: true }, &Unwatched).unwrap();
    assert!(!report.problems.is_empty());
    assert!(report.problems.iter().all(|problem| problem.affects.is_empty()), "{:#?}", report.problems);
}

#[test]
fn a_check_names_every_ref_that_shared_damage_hurts() {
    let (scratch, tier) = Scratch::in_memory();
    let store = scratch.open();
    for name in ["one", "two", "three"] {
        let mut writer = store.writer("test").unwrap();
        let mut files = small_files(0);
        files.insert(name.as_bytes().to_vec(), Item::file(b"its own".to_vec()));
        let tree = put_files(&mut writer, &files).unwrap();
        writer.commit(name, SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() }).unwrap();
    }
    let data = tier.list("packs/").unwrap().into_iter().next().unwrap();
    tier.delete(&data.key).unwrap();
    let report = store::check(&scratch.open(), CheckOptions::default(), &Unwatched).unwrap();
    let mut affected: Vec<String> =
        report.problems.iter().flat_map(|problem| problem.affects.clone()).collect();
    affected.sort();
    assert_eq!(affected, ["one", "three", "two"], "{:#?}", report.problems);
}

#[test]
fn a_superblock_of_no_bytes_is_no_store_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("superblock"), "").unwrap();
    let scratch = Scratch::over(Arc::new(LocalTier::new(directory.path())));
    assert_eq!(Store::open(&scratch.config).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(Store::init(&scratch.config).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(std::fs::read(directory.path().join("superblock")).unwrap(), b"");
}
