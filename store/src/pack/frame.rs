//! One frame: chunks compressed together behind a header that names them.
//!
//! Cipher, key epoch and prefix frame are fields of format 1 that this version writes as zero and refuses otherwise.

use super::{ALIGNMENT, MAX_FRAME_PLAIN, PackKind};
use crate::codec::{self, Codec};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::wire::{Decoder, Encoder, FORMAT_VERSION, checksum};
use std::ops::Range;

/// First bytes of a frame.
pub const FRAME_MAGIC: &[u8; 4] = b"TFRM";
/// Length of the fixed part of a frame header in bytes.
pub const FRAME_HEADER_LEN: usize = 88;
/// Length of one slot of the header in bytes.
pub const SLOT_LEN: usize = 36;
/// A slot's number is 16 bits wide in the index.
pub const MAX_SLOTS: usize = u16::MAX as usize;

/// A frame's length in units of [`ALIGNMENT`] is 16 bits wide in the index.
pub const MAX_FRAME_LEN: usize = u16::MAX as usize * ALIGNMENT;

/// Chunks on their way into a frame.
#[derive(Debug)]
pub struct FrameDraft {
    /// What they are.
    pub kind: PackKind,
    /// Id and length of each, in order.
    pub slots: Vec<(ChunkId, u32)>,
    /// Their bytes, one after the other.
    pub plain: Vec<u8>,
}

/// A frame ready for a pack.
pub struct EncodedFrame {
    /// Header, slots and stored body.
    pub bytes: Vec<u8>,
    /// The chunks in it.
    pub slots: Vec<(ChunkId, u32)>,
}

impl FrameDraft {
    /// A frame without chunks.
    pub fn new(kind: PackKind) -> Self {
        Self { kind, slots: Vec::new(), plain: Vec::new() }
    }

    /// Adds a chunk.
    ///
    /// # Panics
    /// For a chunk above [`MAX_FRAME_PLAIN`] bytes: the writer checks that first.
    pub fn push(&mut self, id: ChunkId, bytes: &[u8]) {
        assert!(bytes.len() <= MAX_FRAME_PLAIN, "the writer bounds a chunk's length");
        self.slots.push((id, bytes.len() as u32));
        self.plain.extend_from_slice(bytes);
    }

    /// Length of header and chunks before compression.
    pub fn len_bytes(&self) -> usize {
        FRAME_HEADER_LEN + self.slots.len() * SLOT_LEN + self.plain.len()
    }

    /// Compresses and encodes. CPU-bound: about 3 ms for 1 MiB at level 3.
    ///
    /// # Errors
    /// As [`codec::compress`].
    pub fn encode(self, level: i32) -> Result<EncodedFrame> {
        let (codec, stored) = codec::compress(&self.plain, level)?;
        let mut out = Encoder::with_capacity(FRAME_HEADER_LEN + self.slots.len() * SLOT_LEN + stored.len());
        out.bytes(FRAME_MAGIC).u16(FORMAT_VERSION).u8(self.kind as u8).u8(codec as u8);
        out.u8(0).u8(0).u16(0).u32(0); // cipher, flags, reserved, key epoch
        out.count(self.slots.len()).count(self.plain.len()).count(stored.len()).u32(0);
        out.bytes(&[0; 32]); // prefix frame: none
        out.bytes(&blake3::hash(&stored).as_bytes()[..16]);
        let mut slots = Encoder::with_capacity(self.slots.len() * SLOT_LEN);
        for (id, len) in &self.slots {
            slots.bytes(id.as_bytes()).u32(*len);
        }
        let slots = slots.finish();
        let fixed = out.finish();
        let mut bytes = fixed.clone();
        bytes.extend_from_slice(&slots);
        let guard = checksum(&bytes);
        let mut out = Encoder::with_capacity(bytes.len() + 8 + stored.len());
        out.bytes(&fixed).u64(guard).bytes(&slots).bytes(&stored);
        Ok(EncodedFrame { bytes: out.finish(), slots: self.slots })
    }
}

/// What a frame's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it holds.
    pub kind: PackKind,
    /// How it is stored.
    pub codec: Codec,
    /// Length of the chunks together.
    pub plain_len: usize,
    /// Length of the body as stored.
    pub stored_len: usize,
    /// First 16 bytes of the BLAKE3 hash of the stored body.
    pub body_checksum: [u8; 16],
    /// Id and byte range in the plain bytes of each chunk.
    pub slots: Vec<(ChunkId, Range<usize>)>,
}

impl FrameHeader {
    /// Parses and checks a header at the front of `bytes`.
    ///
    /// # Errors
    /// `Corrupt` for damage, `Invalid` for a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(bytes);
        if fields.take(4)? != FRAME_MAGIC {
            return Err(Error::corrupt("not a frame (wrong magic)"));
        }
        let (version, kind, codec) = (fields.u16()?, fields.u8()?, fields.u8()?);
        let (cipher, flags, reserved, key_epoch) = (fields.u8()?, fields.u8()?, fields.u16()?, fields.u32()?);
        let (slot_count, plain_len, stored_len) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let reserved = u32::from(reserved) | fields.u32()?;
        let prefix = fields.array::<32>()?;
        let body_checksum = fields.array::<16>()?;
        let guard = fields.u64()?;
        let slot_bytes = fields.take((slot_count as usize).saturating_mul(SLOT_LEN))?;
        let mut guarded = bytes[..FRAME_HEADER_LEN - 8].to_vec();
        guarded.extend_from_slice(slot_bytes);
        if checksum(&guarded) != guard {
            return Err(Error::corrupt("frame header fails its checksum"));
        }
        let newer = version != FORMAT_VERSION || cipher != 0 || flags != 0 || key_epoch != 0;
        if newer || reserved != 0 || prefix != [0; 32] {
            return Err(
                Error::invalid("frame uses a feature of a newer format").advice("use a newer snapctl")
            );
        }
        if plain_len as usize > MAX_FRAME_PLAIN || slot_count as usize > MAX_SLOTS {
            return Err(Error::corrupt(format!("frame claims {plain_len} bytes in {slot_count} chunks")));
        }
        Ok(Self {
            kind: PackKind::from_number(kind)?,
            codec: Codec::from_number(codec)?,
            plain_len: plain_len as usize,
            stored_len: stored_len as usize,
            body_checksum,
            slots: decode_slots(slot_bytes, plain_len as usize)?,
        })
    }

    /// Length of header and slots in bytes.
    pub fn header_len(&self) -> usize {
        FRAME_HEADER_LEN + self.slots.len() * SLOT_LEN
    }

    /// Length of the whole frame with its padding.
    pub fn padded_len(&self) -> usize {
        (self.header_len() + self.stored_len).next_multiple_of(ALIGNMENT)
    }
}

fn decode_slots(bytes: &[u8], plain_len: usize) -> Result<Vec<(ChunkId, Range<usize>)>> {
    let mut start = 0;
    let mut slots = Vec::with_capacity(bytes.len() / SLOT_LEN);
    for slot in bytes.chunks_exact(SLOT_LEN) {
        let mut fields = Decoder::new(slot);
        let id = ChunkId::from_bytes(fields.array()?);
        let end = start + fields.u32()? as usize;
        slots.push((id, start..end));
        start = end;
    }
    if start != plain_len {
        return Err(Error::corrupt(format!("chunks of {start} bytes in a frame of {plain_len}")));
    }
    Ok(slots)
}

/// A decoded frame whose chunks were all checked against their ids.
#[derive(Debug)]
pub struct Frame {
    /// What it holds.
    pub kind: PackKind,
    /// The chunks' bytes, one after the other.
    pub plain: Vec<u8>,
    /// Id and byte range of each.
    pub slots: Vec<(ChunkId, Range<usize>)>,
}

impl Frame {
    /// Decodes a stored frame and verifies every chunk in it with `id_of`.
    ///
    /// # Errors
    /// `Corrupt` when any byte that matters changed; `Invalid` for a newer format.
    pub fn decode(bytes: &[u8], id_of: impl Fn(&[u8]) -> ChunkId) -> Result<Self> {
        let header = FrameHeader::decode(bytes)?;
        let start = header.header_len();
        let stored = bytes.get(start..start + header.stored_len);
        let stored = stored.ok_or_else(|| Error::corrupt("frame ends early"))?;
        let plain = codec::decompress(header.codec, stored, header.plain_len)?;
        for (id, range) in &header.slots {
            if id_of(&plain[range.clone()]) != *id {
                return Err(Error::corrupt("chunk does not match its id").object(id));
            }
        }
        Ok(Self { kind: header.kind, plain, slots: header.slots })
    }

    /// Decodes and verifies also what reads pass over, the checksum of the stored body and the padding: then no bit is
    /// other than it was written.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn verify(bytes: &[u8], id_of: impl Fn(&[u8]) -> ChunkId) -> Result<Self> {
        let header = FrameHeader::decode(bytes)?;
        let frame = Self::decode(bytes, id_of)?;
        let (stored, padding) = bytes[header.header_len()..].split_at(header.stored_len);
        if blake3::hash(stored).as_bytes()[..16] != header.body_checksum {
            return Err(Error::corrupt("frame body fails its checksum"));
        }
        if bytes.len() != header.padded_len() || padding.iter().any(|byte| *byte != 0) {
            return Err(Error::corrupt("frame is not padded with zeroes to its length"));
        }
        Ok(frame)
    }
}
