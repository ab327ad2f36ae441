//! The bytes of a file: few of them inline in the directory, more as extents (chunks and holes), many as the id of a
//! stored list of extents.

use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::pack::ChunkBytes;
use crate::repo::store::Store;
use crate::wire::{Decoder, Encoder, FORMAT_VERSION, expect_head};
use crate::writer::Writer;
use crate::writer::blob;

/// Files up to this length stand in their directory.
pub const INLINE_MAX: usize = 4096;
/// Longer lists of extents are stored apart.
const LISTED_MAX: usize = 8;
/// First bytes of a stored list of extents.
pub(super) const EXTENTS_MAGIC: &[u8; 4] = b"TEXT";

const INLINE: u8 = 0;
const LISTED: u8 = 1;
const STORED: u8 = 2;
/// Stands in place of a chunk's length, for a hole.
const HOLE_MARK: u32 = u32::MAX;
/// Encoded length of the shortest extent.
const MIN_EXTENT_LEN: usize = 12;

/// A contiguous piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The bytes of a chunk.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// Its length.
        len_bytes: u32,
    },
    /// Zeroes that take no space.
    Hole {
        /// How many.
        len_bytes: u64,
    },
}

impl Extent {
    /// Its length in bytes.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Chunk { len_bytes, .. } => (*len_bytes).into(),
            Self::Hole { len_bytes } => *len_bytes,
        }
    }
}

/// The bytes of a file as its inode stores them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Inline(Vec<u8>),
    Listed { len_bytes: u64, extents: Vec<Extent> },
    Stored { len_bytes: u64, list: ChunkId },
}

impl Content {
    /// No bytes.
    pub fn empty() -> Self {
        Self(Form::Inline(Vec::new()))
    }

    /// Bytes that stand in the directory.
    ///
    /// # Panics
    /// Above [`INLINE_MAX`].
    pub fn inline(bytes: Vec<u8>) -> Self {
        assert!(bytes.len() <= INLINE_MAX, "only short files are inline");
        Self(Form::Inline(bytes))
    }

    /// The content that these extents make up, its list stored apart when it is long.
    pub(crate) fn from_extents(writer: &mut Writer, extents: Vec<Extent>) -> Result<Self> {
        if extents.len() <= LISTED_MAX {
            return Self::listed(extents);
        }
        let len_bytes = total_len(&extents)?;
        let list = blob::put(writer, &encode_stored(&extents))?;
        Ok(Self::stored(len_bytes, list))
    }

    pub(crate) fn listed(extents: Vec<Extent>) -> Result<Self> {
        Ok(Self(Form::Listed { len_bytes: total_len(&extents)?, extents }))
    }

    pub(super) fn stored(len_bytes: u64, list: ChunkId) -> Self {
        Self(Form::Stored { len_bytes, list })
    }

    /// Whether the bytes stand in the directory.
    pub fn is_inline(&self) -> bool {
        matches!(self.0, Form::Inline(_))
    }

    /// Length of the file in bytes.
    pub fn len_bytes(&self) -> u64 {
        match &self.0 {
            Form::Inline(bytes) => bytes.len() as u64,
            Form::Listed { len_bytes, .. } | Form::Stored { len_bytes, .. } => *len_bytes,
        }
    }

    pub(crate) fn encode_into(&self, out: &mut Encoder) {
        match &self.0 {
            Form::Inline(bytes) => {
                out.u8(INLINE).string(bytes);
            }
            Form::Listed { extents, .. } => {
                out.u8(LISTED);
                encode_extents(out, extents);
            }
            Form::Stored { len_bytes, list } => {
                out.u8(STORED).u64(*len_bytes).bytes(list.as_bytes());
            }
        }
    }

    pub(crate) fn decode_from(fields: &mut Decoder<'_>) -> Result<Self> {
        let form = match fields.u8()? {
            INLINE => match fields.string()? {
                bytes if bytes.len() <= INLINE_MAX => Form::Inline(bytes.to_vec()),
                bytes => return Err(Error::corrupt(format!("{} bytes inline in a directory", bytes.len()))),
            },
            LISTED => {
                let extents = decode_extents(fields)?;
                Form::Listed { len_bytes: total_len(&extents)?, extents }
            }
            STORED => Form::Stored { len_bytes: fields.u64()?, list: ChunkId::from_bytes(fields.array()?) },
            unknown => return Err(Error::corrupt(format!("content of unknown form {unknown}"))),
        };
        match Self(form) {
            content if content.len_bytes() <= i64::MAX as u64 => Ok(content),
            content => Err(Error::corrupt(format!("file of {} bytes", content.len_bytes()))),
        }
    }
}

fn encode_extents(out: &mut Encoder, extents: &[Extent]) {
    out.count(extents.len());
    for extent in extents {
        match extent {
            Extent::Chunk { id, len_bytes } => out.u32(*len_bytes).bytes(id.as_bytes()),
            Extent::Hole { len_bytes } => out.u32(HOLE_MARK).u64(*len_bytes),
        };
    }
}

fn decode_extents(fields: &mut Decoder<'_>) -> Result<Vec<Extent>> {
    let count = fields.count(MIN_EXTENT_LEN)?;
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        extents.push(match fields.u32()? {
            HOLE_MARK => Extent::Hole { len_bytes: fields.u64()? },
            len_bytes => Extent::Chunk { id: ChunkId::from_bytes(fields.array()?), len_bytes },
        });
    }
    Ok(extents)
}

fn total_len(extents: &[Extent]) -> Result<u64> {
    let total = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.len_bytes()));
    total.ok_or_else(|| Error::corrupt("extents add up to more than 2^64 bytes"))
}

/// A list of extents that is stored apart.
pub(super) fn encode_stored(extents: &[Extent]) -> Vec<u8> {
    let mut out = Encoder::with_capacity(12 + extents.len() * 36);
    out.bytes(EXTENTS_MAGIC).u16(FORMAT_VERSION).u16(0);
    encode_extents(&mut out, extents);
    out.finish()
}

/// The inverse of [`encode_stored`] for a file of this length.
pub(super) fn decode_stored(bytes: &[u8], len_bytes: u64) -> Result<Vec<Extent>> {
    let mut fields = Decoder::new(bytes);
    expect_head(&mut fields, EXTENTS_MAGIC, "list of extents")?;
    fields.u16()?;
    let extents = decode_extents(&mut fields)?;
    fields.end()?;
    match total_len(&extents)? {
        total if total == len_bytes => Ok(extents),
        total => Err(Error::corrupt(format!("extents add up to {total} bytes, the file has {len_bytes}"))),
    }
}

/// The extents of a file, none where its bytes are inline; calls `visit` with the chunks of their list, if any.
pub(crate) fn read_extents(
    store: &Store,
    content: &Content,
    visit: &mut dyn FnMut(&ChunkId),
) -> Result<Vec<Extent>> {
    match &content.0 {
        Form::Inline(_) => Ok(Vec::new()),
        Form::Listed { extents, .. } => Ok(extents.clone()),
        Form::Stored { len_bytes, list } => {
            decode_stored(&blob::read_visiting(store, list, visit)?, *len_bytes)
                .map_err(|error| error.object(list))
        }
    }
}

/// Random reads of a file's bytes.
#[derive(Clone, Debug)]
pub struct ContentReader {
    store: Store,
    len_bytes: u64,
    inline: Vec<u8>,
    extents: Vec<(u64, Extent)>,
}

impl Store {
    /// Opens a file's bytes for random reads.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`: when its list of extents cannot be read.
    pub fn content(&self, content: &Content) -> Result<ContentReader> {
        ContentReader::open(self, content)
    }
}

impl ContentReader {
    pub(crate) fn open(store: &Store, content: &Content) -> Result<Self> {
        let len_bytes = content.len_bytes();
        let mut inline = Vec::new();
        let extents = match &content.0 {
            Form::Inline(bytes) => {
                inline = bytes.clone();
                Vec::new()
            }
            Form::Listed { extents, .. } => extents.clone(),
            Form::Stored { list, .. } => {
                decode_stored(&blob::read(store, list)?, len_bytes).map_err(|error| error.object(list))?
            }
        };
        let mut offset = 0;
        let place = |extent: Extent| {
            let start = offset;
            offset += extent.len_bytes();
            (start, extent)
        };
        Ok(Self {
            store: store.clone(),
            len_bytes,
            inline,
            extents: extents.into_iter().map(place).collect(),
        })
    }

    /// Length of the file in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Its extents and where each begins; none when the bytes are inline.
    pub fn extents(&self) -> &[(u64, Extent)] {
        &self.extents
    }

    /// All of the file, when it stands in its directory.
    pub(crate) fn inline_bytes(&self) -> Option<&[u8]> {
        self.extents.is_empty().then_some(&self.inline)
    }

    /// Fills `buffer` from `offset`; returns the bytes read, less than the buffer only at the end of the file.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let wanted = (self.len_bytes.saturating_sub(offset)).min(buffer.len() as u64) as usize;
        if !self.inline.is_empty() && wanted > 0 {
            let start = offset as usize;
            buffer[..wanted].copy_from_slice(&self.inline[start..start + wanted]);
            return Ok(wanted);
        }
        let mut done = 0;
        let mut index = self.extents.partition_point(|(start, extent)| start + extent.len_bytes() <= offset);
        while done < wanted {
            let (start, extent) = self.extents[index];
            let within = offset + done as u64 - start;
            let len = (extent.len_bytes() - within).min((wanted - done) as u64) as usize;
            let target = &mut buffer[done..done + len];
            match extent {
                Extent::Hole { .. } => target.fill(0),
                Extent::Chunk { id, len_bytes } => {
                    let chunk = read_extent(&self.store, &id, len_bytes)?;
                    target.copy_from_slice(&chunk[within as usize..within as usize + len]);
                }
            }
            done += len;
            index += 1;
        }
        Ok(done)
    }

    /// Whether `len` bytes from `offset` (as far as the file goes) lie in holes.
    pub fn is_hole(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len).min(self.len_bytes);
        if offset >= end {
            return true;
        }
        let first = self.extents.partition_point(|(start, extent)| start + extent.len_bytes() <= offset);
        let mut touched = self.extents[first..].iter().take_while(|(start, _)| *start < end).peekable();
        touched.peek().is_some() && touched.all(|(_, extent)| matches!(extent, Extent::Hole { .. }))
    }
}

/// The bytes of an extent that is a chunk.
///
/// # Errors
/// As `Store::read_chunk`; `Corrupt` when the chunk has another length.
pub(crate) fn read_extent(store: &Store, id: &ChunkId, len_bytes: u32) -> Result<ChunkBytes> {
    let chunk = store.read_chunk(id)?;
    match chunk.len() == len_bytes as usize {
        true => Ok(chunk),
        false => {
            let found = chunk.len();
            Err(Error::corrupt(format!("extent of {len_bytes} bytes names a chunk of {found}")).object(id))
        }
    }
}
