//! One frame: chunks compressed together behind a header that names them.
//!
//! A frame of an encrypted domain is sealed with its header bound to it: it cannot be opened under any other header.
//!
//! The frame of one chunk may be a delta: compressed against the bytes of another chunk, its base, which its header
//! names. A base is never stored as a delta itself, so reading a frame takes at most one more.

use super::{ALIGNMENT, MAX_FRAME_PLAIN, PackKind};
use crate::domain::{CIPHER, Domain, SEAL_LEN, Sealer};
use crate::error::{Error, Result};
use crate::id::{ChunkId, DomainId};
use crate::pack::codec::{self, Codec};
use crate::wire::{Decoder, Encoder, FORMAT_VERSION, checksum};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// First bytes of a frame.
pub const FRAME_MAGIC: &[u8; 4] = b"TFRM";
/// Length of the fixed part of a frame header in bytes.
pub const FRAME_HEADER_LEN: usize = 88;
/// Length of one slot of the header in bytes.
pub const SLOT_LEN: usize = 36;
/// A slot's number is 16 bits wide in the index.
pub(super) const MAX_SLOTS: usize = u16::MAX as usize;

/// A frame's length in units of [`ALIGNMENT`] is 16 bits wide in the index.
pub(super) const MAX_FRAME_LEN: usize = u16::MAX as usize * ALIGNMENT;

/// Chunks being collected for a frame.
#[derive(Debug)]
pub struct FrameDraft {
    /// Kind of the chunks.
    pub kind: PackKind,
    /// Id and length of each, in order.
    pub slots: Vec<(ChunkId, u32)>,
    /// Their bytes, one after the other.
    pub plain: Vec<u8>,
    /// The base that the one chunk may be stored against.
    pub base: Option<Base>,
}

/// A chunk that another may be stored against.
#[derive(Clone, Debug)]
pub struct Base {
    /// The chunk; some pack holds it, and not as a delta.
    pub id: ChunkId,
    /// Its bytes.
    pub bytes: ChunkBytes,
}

/// A frame ready for a pack.
pub struct EncodedFrame {
    /// Header, slots and stored body.
    pub bytes: Vec<u8>,
    /// The chunks in it.
    pub slots: Vec<(ChunkId, u32)>,
    /// The chunk that it is a delta against.
    pub base: Option<ChunkId>,
}

impl FrameDraft {
    /// A frame without chunks.
    pub fn new(kind: PackKind) -> Self {
        Self { kind, slots: Vec::new(), plain: Vec::new(), base: None }
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

    /// Compresses and encodes, not encrypted. CPU-bound: about 3 ms for 1 MiB at level 3.
    ///
    /// # Errors
    /// As [`codec::compress`].
    pub fn encode(&self, level: i32) -> Result<EncodedFrame> {
        self.encode_for(level, &Sealer::plain())
    }

    /// Compresses, as a delta where there is a base and that pays, encodes and seals for the sealer's domain.
    ///
    /// # Errors
    /// As [`codec::compress`].
    pub fn encode_for(&self, level: i32, sealer: &Sealer) -> Result<EncodedFrame> {
        let (codec, compressed) = codec::compress(&self.plain, level)?;
        if let Some(base) = &self.base
            && let Some(delta) = codec::compress_delta(&self.plain, &base.bytes, level, compressed.len())?
        {
            return encode(self.kind, (Codec::Zstd, Some(base.id)), &self.slots, delta, sealer);
        }
        encode(self.kind, (codec, None), &self.slots, compressed, sealer)
    }
}

/// The frame of compressed chunks; a delta names its base.
fn encode(
    kind: PackKind,
    (codec, base): (Codec, Option<ChunkId>),
    slots: &[(ChunkId, u32)],
    compressed: Vec<u8>,
    sealer: &Sealer,
) -> Result<EncodedFrame> {
    let plain_len = slots.iter().map(|(_, len)| *len as usize).sum();
    let encrypted = sealer.key.is_some();
    let stored_len = match encrypted {
        true => SEAL_LEN + 4 * slots.len() + compressed.len(),
        false => compressed.len(),
    };
    let mut fixed = Encoder::with_capacity(FRAME_HEADER_LEN);
    fixed.bytes(FRAME_MAGIC).u16(FORMAT_VERSION).u8(kind as u8).u8(codec as u8);
    fixed.u8(if encrypted { CIPHER } else { 0 }).u8(0).u16(0); // flags, reserved
    fixed.u32(sealer.key.as_ref().map_or(0, |(epoch, _)| *epoch));
    // Chunk lengths are secret: an encrypted frame holds them inside.
    fixed.count(slots.len()).count(if encrypted { 0 } else { plain_len }).count(stored_len).u32(sealer.tag);
    fixed.bytes(&base.map_or([0; 32], |base| *base.as_bytes()));
    let mut listed = Encoder::with_capacity(slots.len() * SLOT_LEN);
    for (id, len) in slots {
        listed.bytes(id.as_bytes()).u32(if encrypted { 0 } else { *len });
    }
    let listed = listed.finish();
    let stored = match &sealer.key {
        None => compressed,
        Some((_, key)) => {
            let mut inner = Encoder::with_capacity(stored_len - SEAL_LEN);
            slots.iter().for_each(|(_, len)| {
                inner.u32(*len);
            });
            inner.bytes(&compressed);
            key.seal(&bound(sealer.domain, &fixed.bytes_so_far()[..BOUND_LEN], &listed), &inner.finish())?
        }
    };
    fixed.bytes(&blake3::hash(&stored).as_bytes()[..16]);
    let fixed = fixed.finish();
    let guard = guard(&fixed, &listed);
    let mut out = Encoder::with_capacity(FRAME_HEADER_LEN + listed.len() + stored_len);
    out.bytes(&fixed).u64(guard).bytes(&listed).bytes(&stored);
    Ok(EncodedFrame { bytes: out.finish(), slots: slots.to_vec(), base })
}

/// Bytes of the header before the two checksums.
const BOUND_LEN: usize = 64;

/// The data that an encrypted body is bound to: its domain, and all of the header but checksums. Neither the pack nor
/// the position in it: the collector may move a frame to another pack without its key, and a frame found in another's
/// position holds other ids than the one looked for.
fn bound(domain: DomainId, fixed: &[u8], listed: &[u8]) -> Vec<u8> {
    [b"Torpor 1 frame\0", domain.as_bytes().as_slice(), fixed, listed].concat()
}

fn guard(fixed: &[u8], listed: &[u8]) -> u64 {
    checksum(&[fixed, listed].concat())
}

/// A parsed frame header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Kind of its chunks.
    pub kind: PackKind,
    /// How it is stored.
    pub codec: Codec,
    /// Key epoch of an encrypted frame.
    pub key_epoch: Option<u32>,
    /// Tag of the frame's domain.
    pub domain_tag: u32,
    /// The chunk that it is a delta against.
    pub base: Option<ChunkId>,
    /// Length of the chunks together; 0 in an encrypted frame, which holds it inside.
    pub plain_len: usize,
    /// Length of the body as stored.
    pub stored_len: usize,
    /// First 16 bytes of the BLAKE3 hash of the stored body.
    pub body_checksum: [u8; 16],
    /// Id and byte range in the plain bytes of each chunk; ranges of an encrypted frame are empty.
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
        let domain_tag = fields.u32()?;
        let prefix = fields.array::<32>()?;
        let body_checksum = fields.array::<16>()?;
        let guard = fields.u64()?;
        let slot_bytes = fields.take((slot_count as usize).saturating_mul(SLOT_LEN))?;
        if self::guard(&bytes[..FRAME_HEADER_LEN - 8], slot_bytes) != guard {
            return Err(Error::corrupt("frame header fails its checksum"));
        }
        let key_epoch = match (cipher, key_epoch, domain_tag) {
            (0, 0, _) => Some(None),
            (CIPHER, epoch, 1..) => Some(Some(epoch)),
            _ => None,
        };
        let newer = version != FORMAT_VERSION || flags != 0 || reserved != 0;
        let Some(key_epoch) = key_epoch.filter(|_| !newer) else {
            return Err(
                Error::invalid("frame uses a feature of a newer format").advice("use a newer snapctl")
            );
        };
        if plain_len as usize > MAX_FRAME_PLAIN || slot_count as usize > MAX_SLOTS {
            return Err(Error::corrupt(format!("frame claims {plain_len} bytes in {slot_count} chunks")));
        }
        let base = Some(ChunkId::from_bytes(prefix)).filter(|_| prefix != [0; 32]);
        let (kind, codec) = (PackKind::from_number(kind)?, Codec::from_number(codec)?);
        if base.is_some() && (kind, codec, slot_count) != (PackKind::Data, Codec::Zstd, 1) {
            return Err(Error::corrupt("a delta that is not one compressed chunk of data"));
        }
        Ok(Self {
            kind,
            codec,
            key_epoch,
            domain_tag,
            base,
            plain_len: plain_len as usize,
            stored_len: stored_len as usize,
            body_checksum,
            slots: decode_slots(slot_bytes, plain_len as usize)?,
        })
    }

    /// The domain's tag and the key epoch that the fixed part of a header names, not checked further.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no frame.
    pub fn peek(bytes: &[u8]) -> Result<(u32, Option<u32>)> {
        let mut fields = Decoder::new(bytes);
        if fields.take(4)? != FRAME_MAGIC {
            return Err(Error::corrupt("not a frame (wrong magic)"));
        }
        fields.take(4)?;
        let cipher = fields.u8()?;
        fields.take(3)?;
        let epoch = fields.u32()?;
        fields.take(12)?;
        Ok((fields.u32()?, (cipher != 0).then_some(epoch)))
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
    let mut start = 0_usize;
    let mut slots = Vec::with_capacity(bytes.len() / SLOT_LEN);
    for slot in bytes.chunks_exact(SLOT_LEN) {
        let mut fields = Decoder::new(slot);
        let id = ChunkId::from_bytes(fields.array()?);
        let end = start.saturating_add(fields.u32()? as usize);
        slots.push((id, start..end));
        start = end;
    }
    if start != plain_len {
        return Err(Error::corrupt(format!("chunks of {start} bytes in a frame of {plain_len}")));
    }
    Ok(slots)
}

/// Content of an encrypted body: the length of each chunk, and all of them compressed.
struct Opened {
    lengths: Vec<u32>,
    compressed: Vec<u8>,
}

impl FrameHeader {
    /// The body as stored.
    fn stored<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let start = self.header_len();
        bytes.get(start..start + self.stored_len).ok_or_else(|| Error::corrupt("frame ends early"))
    }

    /// Decompresses bytes, after the base for a delta.
    fn decompress(&self, compressed: &[u8], plain_len: usize, read_base: &ReadBase<'_>) -> Result<Vec<u8>> {
        match &self.base {
            Some(base) => codec::decompress_delta(compressed, &read_base(base)?, plain_len),
            None => codec::decompress(self.codec, compressed, plain_len),
        }
    }

    /// Opens an encrypted body.
    fn open(&self, bytes: &[u8], epoch: u32, domain: &Domain) -> Result<Opened> {
        let key = domain.frame_key(epoch).ok_or_else(|| {
            Error::corrupt(format!("frame is sealed under key epoch {epoch}, which its domain does not have"))
                .object(domain.name())
                .advice("if the epoch was retired too early, bring an older copy of the domain's record back")
        })?;
        let (fixed, listed) = (&bytes[..BOUND_LEN], &bytes[FRAME_HEADER_LEN..self.header_len()]);
        let mut inner = key
            .open(&bound(domain.id(), fixed, listed), self.stored(bytes)?)
            .ok_or_else(|| Error::corrupt("encrypted frame was changed").object(domain.name()))?;
        let mut fields = Decoder::new(&inner);
        let lengths = self.slots.iter().map(|_| fields.u32()).collect::<Result<Vec<u32>>>()?;
        let plain_len: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
        if plain_len > MAX_FRAME_PLAIN as u64 {
            return Err(Error::corrupt(format!("frame claims {plain_len} bytes")));
        }
        let compressed = inner.split_off(4 * lengths.len());
        Ok(Opened { lengths, compressed })
    }
}

/// A decoded frame whose chunks were all checked against their ids.
#[derive(Debug)]
pub struct Frame {
    /// Kind of its chunks.
    pub kind: PackKind,
    /// Its domain: only that one may read its chunks.
    pub domain: DomainId,
    /// The chunks' bytes, one after the other.
    pub plain: Vec<u8>,
    /// Id and byte range of each.
    pub slots: Vec<(ChunkId, Range<usize>)>,
    /// The chunk that it was a delta against.
    pub base: Option<ChunkId>,
}

/// Verified bytes of one chunk, shared with the cache.
#[derive(Clone, Debug)]
pub struct ChunkBytes {
    frame: Arc<Frame>,
    range: Range<usize>,
}

impl ChunkBytes {
    pub(crate) fn new(frame: Arc<Frame>, range: Range<usize>) -> Self {
        Self { frame, range }
    }

    /// Bytes that it keeps in memory: those of the whole frame.
    pub fn held_bytes(&self) -> usize {
        self.frame.plain.len()
    }
}

impl Deref for ChunkBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.frame.plain[self.range.clone()]
    }
}

/// Reads the base of a delta, from a frame that is not a delta.
pub type ReadBase<'a> = dyn Fn(&ChunkId) -> Result<ChunkBytes> + 'a;

/// For readers of frames that are not deltas.
fn no_base(id: &ChunkId) -> Result<ChunkBytes> {
    Err(Error::corrupt("a delta where none may be, against chunk").object(id))
}

impl Frame {
    /// Decodes a stored frame of one of `domains`, which is not a delta, and verifies every chunk in it.
    ///
    /// # Errors
    /// `Corrupt` when any byte that matters changed, or the frame is of another domain or a delta; `Invalid` for a
    /// newer format.
    pub fn decode(bytes: &[u8], domains: &[&Domain]) -> Result<Self> {
        Self::decode_on(bytes, domains, &no_base)
    }

    /// As [`Self::decode`], for any frame; `read_base` returns the base of a delta.
    ///
    /// # Errors
    /// As [`Self::decode`]; those of `read_base`.
    pub fn decode_on(bytes: &[u8], domains: &[&Domain], read_base: &ReadBase<'_>) -> Result<Self> {
        let header = FrameHeader::decode(bytes)?;
        let mut failure = None;
        // Tags are short; two domains of one tag are possible, though `create` avoids them.
        for domain in domains.iter().filter(|domain| domain.id().tag() == header.domain_tag) {
            match Self::decode_in(&header, bytes, domain, read_base) {
                Ok(frame) => return Ok(frame),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::corrupt("frame is of a domain that is not open here")))
    }

    fn decode_in(
        header: &FrameHeader,
        bytes: &[u8],
        domain: &Domain,
        read_base: &ReadBase<'_>,
    ) -> Result<Self> {
        if header.key_epoch.is_some() != domain.is_encrypted() {
            return Err(Error::corrupt("frame is encrypted where its domain is not, or the other way"));
        }
        let mut slots = header.slots.clone();
        let plain = match header.key_epoch {
            None => header.decompress(header.stored(bytes)?, header.plain_len, read_base)?,
            Some(epoch) => {
                let Opened { lengths, compressed } = header.open(bytes, epoch, domain)?;
                let mut end = 0;
                for ((_, range), len) in slots.iter_mut().zip(lengths) {
                    *range = end..end + len as usize;
                    end = range.end;
                }
                header.decompress(&compressed, end, read_base)?
            }
        };
        for (id, range) in &slots {
            if domain.chunk_id(&plain[range.clone()]) != *id {
                return Err(Error::corrupt("chunk does not match its id").object(id));
            }
        }
        Ok(Self { kind: header.kind, domain: domain.id(), plain, slots, base: header.base })
    }

    /// Decodes a frame that is not a delta and also verifies the bits that reads skip: then no bit changed.
    ///
    /// # Errors
    /// As [`Self::decode`] and [`Self::verify_stored`].
    pub fn verify(bytes: &[u8], domains: &[&Domain]) -> Result<Self> {
        Self::verify_stored(bytes)?;
        Self::decode(bytes, domains)
    }

    /// Verifies without a key: header, the checksum of the stored body and the padding.
    ///
    /// # Errors
    /// `Corrupt`; `Invalid` for a newer format.
    pub fn verify_stored(bytes: &[u8]) -> Result<FrameHeader> {
        let header = FrameHeader::decode(bytes)?;
        let stored = header.stored(bytes)?;
        let padding = &bytes[header.header_len() + header.stored_len..];
        if blake3::hash(stored).as_bytes()[..16] != header.body_checksum {
            return Err(Error::corrupt("frame body fails its checksum"));
        }
        if bytes.len() != header.padded_len() || padding.iter().any(|byte| *byte != 0) {
            return Err(Error::corrupt("frame is not padded with zeroes to its length"));
        }
        Ok(header)
    }
}

/// Seals a stored frame of `domain` again, under the current key of `sealer`, verifying its chunks. A delta stays one.
///
/// # Errors
/// As [`Frame::decode_on`] and [`FrameDraft::encode_for`].
pub fn reseal(
    bytes: &[u8],
    domain: &Domain,
    sealer: &Sealer,
    read_base: &ReadBase<'_>,
) -> Result<EncodedFrame> {
    let frame = Frame::decode_on(bytes, &[domain], read_base)?;
    let header = FrameHeader::decode(bytes)?;
    let compressed = match header.key_epoch {
        None => header.stored(bytes)?.to_vec(),
        Some(epoch) => header.open(bytes, epoch, domain)?.compressed,
    };
    let slots: Vec<(ChunkId, u32)> =
        frame.slots.iter().map(|(id, range)| (*id, range.len() as u32)).collect();
    encode(header.kind, (header.codec, header.base), &slots, compressed, sealer)
}
