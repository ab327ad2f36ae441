//! Runs against a map, truncated and damaged runs, merging.

use super::*;
use crate::id::WriterId;
use crate::pack::{DirectoryEntry, FrameExtent, PackDirectory, PackKind};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn pack(sequence: u32) -> PackId {
    PackId { writer: WriterId::from_bytes([1; 8]), epoch: 0, sequence }
}

fn chunk(seed: u64) -> ChunkId {
    ChunkId::from_bytes(*blake3::hash(&seed.to_le_bytes()).as_bytes())
}

fn directory(sequence: u32, seeds: &[u64]) -> PackDirectory {
    let frames =
        (0..seeds.len() as u64).map(|n| FrameExtent { offset: 64 + n * 128, len_bytes: 128 }).collect();
    let entries =
        seeds.iter().zip(0..).map(|(seed, frame)| DirectoryEntry { id: chunk(*seed), frame, slot: 0 });
    PackDirectory { id: pack(sequence), kind: PackKind::Data, frames, entries: entries.collect() }
}

fn open(bytes: Vec<u8>) -> Result<Run> {
    Run::open("run", Object::Owned(bytes))
}

proptest! {
    #[test]
    fn a_run_finds_what_a_map_finds(packs in prop::collection::vec(prop::collection::vec(0u64..500, 0..200), 1..4)) {
        let directories: Vec<_> = packs.iter().zip(0..).map(|(seeds, n)| directory(n, seeds)).collect();
        let run = open(encode(&directories).unwrap()).unwrap();
        let merged = merge(&[&run, &run], |id| *id != pack(0), Path::new("")).unwrap();
        let merged = Run::open("run", merged).unwrap();
        let mut model: BTreeMap<u64, Vec<(PackId, u64)>> = BTreeMap::new();
        for (seeds, number) in packs.iter().zip(0..) {
            for (seed, frame) in seeds.iter().zip(0u64..) {
                model.entry(*seed).or_default().push((pack(number), 64 + frame * 128));
            }
        }
        for seed in 0..500 {
            let mut expected = model.get(&seed).cloned().unwrap_or_default();
            let mut found: Vec<_> = run.find(&chunk(seed)).map(|place| (place.pack, place.offset)).collect();
            expected.sort();
            found.sort();
            prop_assert_eq!(&found, &expected);
            found = merged.find(&chunk(seed)).map(|place| (place.pack, place.offset)).collect();
            found.sort();
            found.dedup();
            expected.retain(|(id, _)| *id != pack(0));
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_run_cut_anywhere_is_refused_and_no_flipped_bit_passes_verify() {
    let bytes = encode(&[directory(0, &[1, 2, 3])]).unwrap();
    for len in 0..bytes.len() {
        assert!(open(bytes[..len].to_vec()).is_err(), "cut at {len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let verified = open(damaged).and_then(|run| {
            run.find(&chunk(1)).count(); // must not panic on damaged entries
            run.verify()
        });
        assert!(verified.is_err(), "bit {bit}");
    }
}
