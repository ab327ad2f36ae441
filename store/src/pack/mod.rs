//! Packs: immutable objects of frames with a directory at their end.
//!
//! A pack is built in memory ([`PackBuilder`]), stored in one piece, and read by frame. Every frame describes itself,
//! so a pack whose directory is damaged can still be scanned. Layouts: docs/FORMAT.md.

pub(crate) mod codec;
mod directory;
mod frame;

pub use directory::{
    DIRECTORY_ENTRY_LEN, DirectoryEntry, FRAME_EXTENT_LEN, FrameExtent, PackDirectory, TRAILER_LEN,
    directory_of, read_directory,
};
pub use frame::{
    Base, ChunkBytes, EncodedFrame, FRAME_HEADER_LEN, FRAME_MAGIC, Frame, FrameDraft, FrameHeader, ReadBase,
    SLOT_LEN, reseal,
};

use crate::error::{Error, Result};
use crate::id::PackId;
use crate::tier::Tier;
use crate::wire::{Encoder, checksum};

/// Frames start at multiples of this; index entries count in it.
pub const ALIGNMENT: usize = 64;
/// A pack is sealed when it reaches this length.
pub const TARGET_LEN: usize = 32 << 20;
/// Most plain bytes that a frame holds.
pub const MAX_FRAME_PLAIN: usize = 2 << 20;
/// In directory and index the slot of a delta, so that the chunk is not taken for one stored without a base; no slot
/// has this number.
pub const DELTA_SLOT: u16 = u16::MAX;
/// First bytes of a pack.
pub const PACK_MAGIC: &[u8; 8] = b"TORPACK\n";
/// Length of the pack header in bytes.
pub const PACK_HEADER_LEN: usize = ALIGNMENT;

/// Content of a pack and its frames; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum PackKind {
    /// Bytes of files and pages of memory.
    Data = 0,
    /// Directories, page tables, extent lists: always kept on the hot tier.
    Meta = 1,
}

impl PackKind {
    /// The kind with this number.
    ///
    /// # Errors
    /// `Corrupt` for an unknown one.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Data),
            1 => Ok(Self::Meta),
            _ => Err(Error::corrupt(format!("unknown pack kind {number}"))),
        }
    }
}

/// The first bytes of a pack.
pub fn header(id: PackId, kind: PackKind) -> Vec<u8> {
    let mut header = Encoder::with_capacity(PACK_HEADER_LEN);
    header.bytes(PACK_MAGIC).u16(crate::wire::FORMAT_VERSION).u8(kind as u8).u8(0).u32(0);
    header.bytes(&id.to_bytes());
    let mut bytes = header.finish();
    bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
    bytes.resize(PACK_HEADER_LEN, 0);
    bytes
}

/// The kind of a stored pack, from its header.
///
/// # Errors
/// `NotFound`; `Corrupt` when this is not a pack of that name.
pub fn read_kind(tier: &dyn Tier, id: PackId) -> Result<PackKind> {
    let found = tier.get_range(&id.key(), 0, PACK_HEADER_LEN as u64)?;
    let kind = PackKind::from_number(found[10])?;
    match found == header(id, kind) {
        true => Ok(kind),
        false => Err(Error::corrupt("pack header is damaged").object(id)),
    }
}

/// A pack being filled.
pub struct PackBuilder {
    id: PackId,
    kind: PackKind,
    bytes: Vec<u8>,
    directory: PackDirectory,
}

impl PackBuilder {
    /// An empty pack.
    pub fn new(id: PackId, kind: PackKind) -> Self {
        Self::in_buffer(id, kind, Vec::new())
    }

    /// As [`Self::new`], in an empty buffer.
    pub fn in_buffer(id: PackId, kind: PackKind, mut buffer: Vec<u8>) -> Self {
        buffer.extend_from_slice(&header(id, kind));
        Self { id, kind, bytes: buffer, directory: PackDirectory::new(id, kind) }
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: &EncodedFrame) {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&frame.bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self.directory.push(offset, self.bytes.len() - offset, frame);
    }

    /// Bytes so far.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Closes the pack: its id, its bytes, and its directory for the index.
    pub fn finish(mut self) -> (PackId, Vec<u8>, PackDirectory) {
        self.directory.sort();
        self.directory.append_to(&mut self.bytes);
        (self.id, self.bytes, self.directory)
    }

    /// The pack's kind.
    pub fn kind(&self) -> PackKind {
        self.kind
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
