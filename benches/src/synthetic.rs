//! Synthetic chunks and packs, for stores too large to be filled.

use std::ops::Range;

use store::pack::{DirectoryEntry, FrameExtent, PackDirectory, PackKind};
use store::{ChunkId, PackId, WriterId};

use crate::workload::Noise;

/// 32 MiB of 64 KiB chunks that compress to half: frames of 512 KiB hold 8 of them.
pub(crate) const CHUNKS_OF_PACK: u64 = 1024;
const CHUNKS_OF_FRAME: u64 = 8;
pub(crate) const FRAME_LEN: u32 = 256 << 10;

/// The id of the chunk with this number; those from the count of chunks on are not there.
pub(crate) fn chunk(number: u64) -> ChunkId {
    let mut noise = Noise::new(number.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5851_f42d_4c95_7f2d);
    let mut bytes = [0; 32];
    bytes.as_chunks_mut().0.iter_mut().for_each(|word| *word = noise.next().to_le_bytes());
    ChunkId::from_bytes(bytes)
}

/// The directory of the pack with this number, over the chunks with these.
pub(crate) fn directory(number: u64, chunks: Range<u64>) -> PackDirectory {
    let frames = (chunks.end - chunks.start).div_ceil(CHUNKS_OF_FRAME);
    let frame = |frame: u64| FrameExtent { offset: 64 + frame * u64::from(FRAME_LEN), len_bytes: FRAME_LEN };
    let entry = |(at, number): (u64, u64)| DirectoryEntry {
        id: chunk(number),
        frame: (at / CHUNKS_OF_FRAME) as u32,
        slot: (at % CHUNKS_OF_FRAME) as u32,
    };
    PackDirectory {
        id: PackId { writer: WriterId::from_bytes([7; 8]), epoch: 1, sequence: number as u32 },
        kind: PackKind::Data,
        frames: (0..frames).map(frame).collect(),
        entries: (0..).zip(chunks).map(entry).collect(),
    }
}
