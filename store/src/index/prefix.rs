//! The part of an id that runs keep. Pure.

use crate::id::ChunkId;

/// Bytes of an id that a row keeps.
pub const PREFIX_LEN: usize = 12;

/// The bytes of an id that a run keeps, as numbers that order as the bytes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The first 8 bytes.
    pub(super) word: u64,
    /// The next 4.
    pub(super) tail: u32,
}

impl Prefix {
    /// The prefix of a chunk.
    pub fn of(id: &ChunkId) -> Self {
        Self::at_front(id.as_bytes())
    }

    /// The prefix that begins with these bytes; missing ones are 0.
    pub fn at_front(bytes: &[u8]) -> Self {
        let word = bytes.first_chunk().map_or(0, |word| u64::from_be_bytes(*word));
        let tail = bytes.get(8..PREFIX_LEN).and_then(<[u8]>::first_chunk);
        Self { word, tail: tail.map_or(0, |tail| u32::from_be_bytes(*tail)) }
    }

    /// The bytes.
    pub fn to_bytes(self) -> [u8; PREFIX_LEN] {
        let mut bytes = [0; PREFIX_LEN];
        bytes[..8].copy_from_slice(&self.word.to_be_bytes());
        bytes[8..].copy_from_slice(&self.tail.to_be_bytes());
        bytes
    }
}
