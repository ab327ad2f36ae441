//! The directory at a pack's end: the location of each frame and the chunks it holds, sorted by id, found in one read
//! of the tail. The index is made of these.

use super::frame::{EncodedFrame, Frame, FrameHeader, MAX_FRAME_LEN};
use super::{ALIGNMENT, DELTA_SLOT, PACK_HEADER_LEN, PackKind};
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};
use crate::tier::Tier;
use crate::wire::{Decoder, Encoder, FORMAT_VERSION, checksum};
use std::ops::Range;

/// First bytes of the trailer.
pub(super) const TRAILER_MAGIC: &[u8; 8] = b"TORPEND\n";
/// Length of the trailer, the last bytes of a pack.
pub const TRAILER_LEN: usize = 72;
/// Length of a frame's entry in bytes.
pub const FRAME_EXTENT_LEN: usize = 12;
/// Length of a chunk's entry in bytes.
pub const DIRECTORY_ENTRY_LEN: usize = 40;
/// One read of this much holds the directory of most packs.
const TAIL_LEN: u64 = 256 << 10;

/// Location of a frame in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameExtent {
    /// Bytes from the start of the pack.
    pub offset: u64,
    /// Length with padding.
    pub len_bytes: u32,
}

/// Location of a chunk in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Number of its frame.
    pub frame: u32,
    /// Its slot in the frame; [`DELTA_SLOT`] for the one chunk of a delta.
    pub slot: u32,
}

impl DirectoryEntry {
    /// Whether the chunk is a delta here.
    pub fn is_delta(&self) -> bool {
        self.slot == u32::from(DELTA_SLOT)
    }
}

/// The directory of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackDirectory {
    /// The pack.
    pub id: PackId,
    /// The pack's kind.
    pub kind: PackKind,
    /// Its frames, in order.
    pub frames: Vec<FrameExtent>,
    /// Its chunks, sorted by id once the pack is closed.
    pub entries: Vec<DirectoryEntry>,
}

impl PackDirectory {
    pub(super) fn new(id: PackId, kind: PackKind) -> Self {
        Self { id, kind, frames: Vec::new(), entries: Vec::new() }
    }

    pub(super) fn push(&mut self, offset: usize, len: usize, encoded: &EncodedFrame) {
        let frame = self.frames.len() as u32;
        self.frames.push(FrameExtent { offset: offset as u64, len_bytes: len as u32 });
        let slots = encoded.slots.iter().zip(numbers_of_slots(encoded.base.is_some()));
        let entries = slots.map(|((id, _), slot)| DirectoryEntry { id: *id, frame, slot });
        self.entries.extend(entries);
    }

    pub(super) fn sort(&mut self) {
        self.entries.sort_unstable_by_key(|entry| (entry.id, entry.frame, entry.slot));
    }

    /// Whether the directory lists the chunks of this frame under this number, and with the right slots.
    pub fn names(&self, number: u32, frame: &Frame) -> bool {
        self.names_slots(number, &frame.slots, frame.base.is_some())
    }

    /// [`Self::names`], of a frame that cannot be opened here.
    pub fn names_header(&self, number: u32, header: &FrameHeader) -> bool {
        self.names_slots(number, &header.slots, header.base.is_some())
    }

    fn names_slots(&self, number: u32, slots: &[(ChunkId, Range<usize>)], is_delta: bool) -> bool {
        let is_named = |id, slot| {
            let key = (id, number, slot);
            self.entries.binary_search_by_key(&key, |entry| (entry.id, entry.frame, entry.slot)).is_ok()
        };
        let mut slots = slots.iter().zip(numbers_of_slots(is_delta));
        slots.all(|((id, _), slot)| is_named(*id, slot))
    }

    pub(super) fn append_to(&self, pack: &mut Vec<u8>) {
        let end = self.encode_at(pack.len() as u64);
        pack.extend_from_slice(&end);
    }

    /// The end of a pack whose frames end at `offset`: directory and trailer.
    pub fn encode_at(&self, offset: u64) -> Vec<u8> {
        let mut out = Encoder::new();
        for frame in &self.frames {
            out.u64(frame.offset).u32(frame.len_bytes);
        }
        for entry in &self.entries {
            out.bytes(entry.id.as_bytes()).u32(entry.frame).u32(entry.slot);
        }
        let mut body = out.finish();
        let mut trailer = Encoder::with_capacity(TRAILER_LEN);
        trailer.bytes(TRAILER_MAGIC).u16(FORMAT_VERSION).u8(self.kind as u8).u8(0);
        trailer.count(self.frames.len()).count(self.entries.len()).u32(0);
        trailer.u64(offset).u64(offset + (body.len() + TRAILER_LEN) as u64);
        trailer.bytes(&self.id.to_bytes()).u64(checksum(&body));
        let trailer = trailer.finish();
        body.extend_from_slice(&trailer);
        body.extend_from_slice(&checksum(&trailer).to_le_bytes());
        body
    }
}

/// Slot numbers of a frame, in order.
fn numbers_of_slots(is_delta: bool) -> impl Iterator<Item = u32> {
    if is_delta { u32::from(DELTA_SLOT).. } else { 0.. }
}

/// A parsed trailer.
struct Trailer {
    kind: PackKind,
    frame_count: usize,
    entry_count: usize,
    offset: u64,
    len_bytes: usize,
    checksum: u64,
}

impl Trailer {
    fn decode(bytes: &[u8], id: PackId, pack_len: u64) -> Result<Self> {
        let mut fields = Decoder::new(bytes);
        if fields.take(8)? != TRAILER_MAGIC {
            return Err(Error::corrupt("pack has no trailer (cut short or not a pack)"));
        }
        let guarded = &bytes[..TRAILER_LEN - 8];
        let (version, kind, _) = (fields.u16()?, fields.u8()?, fields.u8()?);
        let (frame_count, entry_count, _) = (fields.u32()? as usize, fields.u32()? as usize, fields.u32()?);
        let (offset, len, owner) = (fields.u64()?, fields.u64()?, PackId::from_bytes(fields.array()?));
        let (body_checksum, guard) = (fields.u64()?, fields.u64()?);
        if checksum(guarded) != guard {
            return Err(Error::corrupt("pack trailer fails its checksum"));
        }
        if version != FORMAT_VERSION {
            let message = format!("pack has format version {version}, this build reads {FORMAT_VERSION}");
            return Err(Error::invalid(message).advice("use a newer snapctl"));
        }
        if owner != id || len != pack_len {
            return Err(Error::corrupt(format!(
                "pack says it is {owner} of {len} bytes, but has {pack_len}"
            )));
        }
        let len_bytes = (frame_count * FRAME_EXTENT_LEN).saturating_add(entry_count * DIRECTORY_ENTRY_LEN);
        let end = offset.checked_add((len_bytes + TRAILER_LEN) as u64);
        if end != Some(pack_len) {
            return Err(Error::corrupt("pack directory does not end at the trailer"));
        }
        let kind = PackKind::from_number(kind)?;
        Ok(Self { kind, frame_count, entry_count, offset, len_bytes, checksum: body_checksum })
    }
}

/// Reads the directory of a pack: one read of its tail, two for a very long directory.
///
/// # Errors
/// `NotFound`, `Corrupt` for damage, `Invalid` for a newer format.
pub fn read_directory(tier: &dyn Tier, id: PackId) -> Result<PackDirectory> {
    let key = id.key();
    let pack_len = tier.len_bytes(&key)?;
    let pack_len =
        pack_len.ok_or_else(|| Error::new(crate::error::Kind::NotFound, "no such pack").object(&key))?;
    if pack_len < (PACK_HEADER_LEN + TRAILER_LEN) as u64 {
        return Err(Error::corrupt(format!("pack of {pack_len} bytes is cut short")).object(key));
    }
    let tail_len = TAIL_LEN.min(pack_len);
    let tail = tier.get_range(&key, pack_len - tail_len, tail_len)?;
    let trailer =
        Trailer::decode(&tail[tail.len() - TRAILER_LEN..], id, pack_len).map_err(|e| e.object(&key))?;
    let body = match tail.len().checked_sub(trailer.len_bytes + TRAILER_LEN) {
        Some(start) => tail[start..tail.len() - TRAILER_LEN].to_vec(),
        None => tier.get_range(&key, trailer.offset, trailer.len_bytes as u64)?,
    };
    decode_body(&body, &trailer, id).map_err(|error| error.object(key))
}

/// The directory of a pack whose bytes are all in memory.
///
/// # Errors
/// As [`read_directory`].
pub fn directory_of(id: PackId, pack: &[u8]) -> Result<PackDirectory> {
    let decode = || {
        let trailer = pack.split_last_chunk::<TRAILER_LEN>();
        let (rest, trailer) = trailer
            .filter(|(rest, _)| rest.len() >= PACK_HEADER_LEN)
            .ok_or_else(|| Error::corrupt(format!("pack of {} bytes is cut short", pack.len())))?;
        let trailer = Trailer::decode(trailer, id, pack.len() as u64)?;
        let start = rest.len().checked_sub(trailer.len_bytes);
        let body = start.map(|start| &rest[start..]);
        decode_body(body.ok_or_else(|| Error::corrupt("pack directory is cut short"))?, &trailer, id)
    };
    decode().map_err(|error| error.object(id.key()))
}

fn decode_body(body: &[u8], trailer: &Trailer, id: PackId) -> Result<PackDirectory> {
    if checksum(body) != trailer.checksum {
        return Err(Error::corrupt("pack directory fails its checksum"));
    }
    let mut fields = Decoder::new(body);
    let mut directory = PackDirectory::new(id, trailer.kind);
    let mut end = PACK_HEADER_LEN as u64;
    for _ in 0..trailer.frame_count {
        let frame = FrameExtent { offset: fields.u64()?, len_bytes: fields.u32()? };
        let len = frame.len_bytes as usize;
        if frame.offset != end || !len.is_multiple_of(ALIGNMENT) || len > MAX_FRAME_LEN {
            return Err(Error::corrupt("pack directory names a frame where none can be"));
        }
        end += u64::from(frame.len_bytes);
        directory.frames.push(frame);
    }
    if end != trailer.offset {
        return Err(Error::corrupt("pack directory's frames do not fill the pack"));
    }
    for _ in 0..trailer.entry_count {
        let id = ChunkId::from_bytes(fields.array()?);
        let entry = DirectoryEntry { id, frame: fields.u32()?, slot: fields.u32()? };
        if entry.frame as usize >= directory.frames.len() || entry.slot > u32::from(DELTA_SLOT) {
            return Err(Error::corrupt("pack directory names a frame that is not there"));
        }
        directory.entries.push(entry);
    }
    fields.end()?;
    Ok(directory)
}
