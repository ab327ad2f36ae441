//! Splices against plain bytes: random bases, writes, truncations and extensions; untouched chunks keep their ids.

use crate::scratch::Scratch;
use std::collections::HashSet;
use std::ops::Range;
use store::{ChunkId, Content, Extent, SnapshotDraft, Store, Writer};
use tests::model::{Random, bytes_of};

/// A file as the user sees it, and its dirty ranges against its base.
struct File {
    bytes: Vec<u8>,
    dirty: Vec<Range<u64>>,
}

impl File {
    fn mark(&mut self, range: Range<u64>) {
        let mut merged: Vec<Range<u64>> = Vec::new();
        let mut all = std::mem::take(&mut self.dirty);
        all.push(range);
        all.sort_by_key(|range| range.start);
        for range in all {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        self.dirty = merged;
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        self.mark(offset as u64..end as u64);
    }

    /// A shorter file loses its tail; if it grows again, the growth is zeroes and must not be the old tail.
    fn set_len(&mut self, len: usize) {
        if len < self.bytes.len() {
            self.mark(len as u64..self.bytes.len() as u64);
        }
        self.bytes.resize(len, 0);
    }

    fn change(&mut self, random: &mut Random) {
        let len = self.bytes.len();
        match random.below(8) {
            0 => self.set_len(random.below(len + 1)),
            1 => self.set_len(len + random.below(300_000)),
            2 => self.write(random.below(len + 100_000), &vec![0; random.below(200_000)]),
            3 => self.write(len, &random.bytes(1000)),
            _ => {
                let offset = random.below(len + 1);
                let count = [1, 100, 4096, 5000, 70_000, 300_000][random.below(6)];
                self.write(offset, &random.bytes(count));
            }
        }
    }
}

fn base(random: &mut Random, writer: &mut Writer) -> (Content, Vec<u8>) {
    let mut out = writer.content_writer();
    let mut bytes = Vec::new();
    for _ in 0..random.below(6) {
        let len = [10, 4096, 5000, 65_536, 200_000, 700_000][random.below(6)];
        match random.below(3) {
            0 => {
                out.hole(len as u64).unwrap();
                bytes.resize(bytes.len() + len, 0);
            }
            _ => {
                let noise = random.bytes(len);
                out.write(&noise).unwrap();
                bytes.extend(noise);
            }
        }
    }
    (out.finish().unwrap(), bytes)
}

fn extents_of(store: &Store, content: &Content) -> Vec<(u64, Extent)> {
    store.content(content).unwrap().extents().to_vec()
}

/// Chunks of the base that no dirty range touches and that end within the new length.
fn untouched(before: &[(u64, Extent)], file: &File) -> HashSet<(u64, ChunkId)> {
    let len = file.bytes.len() as u64;
    let free = |start: u64, end: u64| file.dirty.iter().all(|dirty| dirty.end <= start || dirty.start >= end);
    let kept = before.iter().filter_map(|(start, extent)| match extent {
        Extent::Chunk { id, len_bytes } => {
            let end = start + u64::from(*len_bytes);
            (end <= len && free(*start, end)).then_some((*start, *id))
        }
        Extent::Hole { .. } => None,
    });
    kept.collect()
}

fn run(seed: u64) {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut random = Random::new(seed);
    let mut writer = store.writer("test").unwrap();
    let (mut content, bytes) = base(&mut random, &mut writer);
    let mut file = File { bytes, dirty: Vec::new() };
    for round in 0..6 {
        writer.commit("web", SnapshotDraft::default()).unwrap();
        let before = extents_of(&store, &content);
        for _ in 0..random.below(5) {
            file.change(&mut random);
        }
        let reader = store.content(&content).unwrap();
        let len = file.bytes.len() as u64;
        let old_new_bytes = writer.stats().new_bytes;
        // Dirty ranges past the end of the file do not matter.
        let mut read_bytes = 0;
        let mut read = |offset: u64, buffer: &mut [u8]| {
            read_bytes += buffer.len() as u64;
            buffer.copy_from_slice(&file.bytes[offset as usize..offset as usize + buffer.len()]);
            Ok(())
        };
        content = store::splice(&mut writer, &reader, len, &file.dirty, &mut read).unwrap();
        writer.commit("web", SnapshotDraft::default()).unwrap();
        let context = format!("seed {seed}, round {round}, dirty {:?} of {len}", file.dirty);
        assert!(bytes_of(&store, &content).unwrap() == file.bytes, "{context}: other bytes");
        if len > store::INLINE_MAX as u64 {
            let kept = untouched(&before, &file);
            let after = extents_of(&store, &content);
            for (start, id) in &kept {
                let found = after.iter().any(|(at, extent)| {
                    at == start && matches!(extent, Extent::Chunk { id: found, .. } if found == id)
                });
                assert!(found, "{context}: the chunk at {start} was written again");
            }
            let untouched_bytes: u64 = before
                .iter()
                .filter(|(start, extent)| matches!(extent, Extent::Chunk { id, .. } if kept.contains(&(*start, *id))))
                .map(|(_, extent)| extent.len_bytes())
                .sum();
            assert!(read_bytes <= len - untouched_bytes, "{context}: {read_bytes} bytes read");
        }
        if file.dirty.is_empty() && len == reader.len_bytes() && len > store::INLINE_MAX as u64 {
            assert_eq!(writer.stats().new_bytes, old_new_bytes, "{context}: nothing changed");
        }
        file.dirty.clear();
    }
}

#[test]
fn splices_hold_what_plain_bytes_hold_and_keep_what_did_not_change() {
    for seed in 0..60 {
        run(seed);
    }
}

#[test]
fn a_small_write_into_a_large_file_costs_little() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let mut bytes = Random::new(1).bytes(30 << 20);
    let content = writer.put_content(&mut bytes.as_slice()).unwrap();
    writer.commit("web", SnapshotDraft::default()).unwrap();
    let before = writer.stats().new_bytes;
    bytes[20_000_000..20_000_004].copy_from_slice(b"four");
    let reader = store.content(&content).unwrap();
    let mut read = |offset: u64, buffer: &mut [u8]| {
        buffer.copy_from_slice(&bytes[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    };
    let dirty = 20_000_000..20_000_004;
    let spliced = store::splice(&mut writer, &reader, bytes.len() as u64, &[dirty], &mut read).unwrap();
    let cost = writer.stats().new_bytes - before;
    assert!(cost < 600_000, "{cost} bytes for four");
    writer.commit("web", SnapshotDraft::default()).unwrap();
    assert!(bytes_of(&store, &spliced).unwrap() == bytes);
}

#[test]
fn a_failing_source_fails_the_splice() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let reader = store.content(&Content::empty()).unwrap();
    let mut fail = |_: u64, _: &mut [u8]| Err(store::Error::new(store::Kind::Unavailable, "no bytes today"));
    let all = 0..100_000;
    let error = store::splice(&mut writer, &reader, all.end, &[all], &mut fail).unwrap_err();
    assert_eq!(error.kind(), store::Kind::Unavailable);
    writer.put_chunk(b"the writer itself did not fail").unwrap();
}

#[test]
fn reads_at_every_edge_give_the_same_bytes() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let mut random = Random::new(9);
    let (content, bytes) = loop {
        let (content, bytes) = base(&mut random, &mut writer);
        if bytes.len() > 500_000 {
            break (content, bytes);
        }
    };
    writer.commit("web", SnapshotDraft::default()).unwrap();
    let reader = store.content(&content).unwrap();
    let edges: Vec<u64> =
        reader.extents().iter().map(|(start, _)| *start).chain([bytes.len() as u64]).collect();
    for edge in &edges {
        for offset in [edge.saturating_sub(1), *edge, edge + 1] {
            for len in [0, 1, 2, 70_000, 1 << 20] {
                let mut buffer = vec![9; len];
                let count = reader.read_at(offset, &mut buffer).unwrap();
                let end = bytes.len().min(offset as usize + len);
                let expected = bytes.get(offset as usize..end).unwrap_or_default();
                assert!(buffer[..count] == *expected, "{offset} {len}");
                let zero = expected.iter().all(|byte| *byte == 0);
                assert!(zero || !reader.is_hole(offset, len as u64), "{offset} {len} is no hole");
            }
        }
    }
    assert_eq!(reader.read_at(u64::MAX, &mut [0; 10]).unwrap(), 0);
}
