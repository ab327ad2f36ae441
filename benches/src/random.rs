//! Random reads: 64 KiB anywhere in a file of a snapshot, verified, against the work of any reader: one `pread` of the
//! frame it lies in, zstd and BLAKE3 of that frame. Packs are in the page cache, no frame is decoded yet.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use store::pack::FrameHeader;
use store::{ContentReader, Extent, Node, SnapshotId, Store, StoreConfig};

use crate::measure::{Result, Row, percentiles};
use crate::storage::back_up;
use crate::workload::Noise;

pub(crate) const READ_LEN: usize = 64 << 10;
const FILE_LEN: usize = 512 << 20;
const READS: usize = 2000;
const ROUNDS: usize = 5;

/// The content of a file of a snapshot.
pub(crate) fn content(store: &Store, snapshot: &SnapshotId, path: &[u8]) -> Result<ContentReader> {
    let tree = store.snapshot(snapshot)?.tree.ok_or("a snapshot of files")?;
    let inode = store.tree(&tree)?.lookup_path(path)?.ok_or("the file was stored")?;
    let Node::File(content) = &inode.node else { return Err("a regular file".into()) };
    Ok(store.content(content)?)
}

/// The chunk that a byte lies in.
pub(crate) fn chunk_at(content: &ContentReader, offset: u64) -> Result<store::ChunkId> {
    let extents = content.extents();
    let after = extents.partition_point(|(start, _)| *start <= offset);
    match extents.get(after.wrapping_sub(1)) {
        Some((_, Extent::Chunk { id, .. })) => Ok(*id),
        _ => Err(format!("no chunk at byte {offset}").into()),
    }
}

pub(crate) fn random(scratch: &Path) -> Result<Vec<Row>> {
    let (source, path) = (scratch.join("source"), scratch.join("store"));
    fs::create_dir(&source)?;
    let bytes = Noise::new(9).bytes(FILE_LEN);
    fs::write(source.join("file"), &bytes)?;
    // A cache that holds a sixteenth of the file, and a frame for as long as one read needs it.
    let store = Store::init(&StoreConfig { cache_bytes: 32 << 20, ..StoreConfig::directory(&path) })?;
    let snapshot = back_up(&store, &source)?;
    let content = content(&store, &snapshot, b"file")?;
    let mut noise = Noise::new(10);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let offsets: Vec<u64> = (0..READS).map(|_| noise.below((FILE_LEN - READ_LEN) as u64)).collect();
        let raw = offsets.iter().map(|offset| read_raw(&store, &path, &content, *offset));
        let raw = raw.collect::<Result<Vec<f64>>>()?;
        let read = offsets.iter().map(|offset| read(&content, *offset, &bytes));
        let read = read.collect::<Result<Vec<f64>>>()?;
        if round > 0 {
            floor.extend(raw);
            ours.extend(read);
        }
    }
    let note = format!("{} reads, packs in the page cache; some lie in two frames", ours.len());
    Ok(vec![percentiles("random 64 KiB read / one frame read, decompressed, hashed", &ours, &floor, note)])
}

/// Seconds of one read, which must return the right bytes.
fn read(content: &ContentReader, offset: u64, expected: &[u8]) -> Result<f64> {
    let mut buffer = vec![0; READ_LEN];
    let start = Instant::now();
    let read = content.read_at(offset, &mut buffer)?;
    let elapsed = start.elapsed().as_secs_f64();
    let is_right = read > 0 && buffer[..read] == expected[offset as usize..offset as usize + read];
    if is_right { Ok(elapsed) } else { Err(format!("wrong bytes at {offset}").into()) }
}

/// Seconds of the unavoidable work of reading the frame at this offset.
fn read_raw(store: &Store, root: &Path, content: &ContentReader, offset: u64) -> Result<f64> {
    let id = chunk_at(content, offset)?;
    let place = store.index().find_in(&id, |_| true).ok_or("the chunk was stored")?;
    let file = File::open(root.join(place.pack.key()))?;
    let mut stored = vec![0; place.len_bytes as usize];
    let mut zstd = zstd::bulk::Decompressor::new()?;
    let start = Instant::now();
    file.read_exact_at(&mut stored, place.offset)?;
    let header = FrameHeader::decode(&stored)?;
    let body = header.header_len()..header.header_len() + header.stored_len;
    let plain = zstd.decompress(&stored[body], header.plain_len)?;
    header.slots.iter().for_each(|(_, range)| {
        std::hint::black_box(blake3::hash(&plain[range.clone()]));
    });
    Ok(start.elapsed().as_secs_f64())
}
