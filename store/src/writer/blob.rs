//! Blobs: metadata records of any length. A short one is one chunk; a long one is cut by content, so that a small
//! change in a large directory or page table stores little, and a list of its chunks stands in for it. Every record
//! begins with a magic of its own, so a list is never taken for a record.

use crate::chunker;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::repo::store::Store;
use crate::wire::{Decoder, Encoder};
use crate::writer::Writer;
use std::ops::Deref;

/// First bytes of a list of chunks.
const LIST_MAGIC: &[u8; 4] = b"TBLB";
/// Longer records are cut.
const MAX_SINGLE_LEN: usize = chunker::MAX_LEN;
/// Longest record.
const MAX_LEN: u64 = 4 << 30;
/// Deepest nesting of lists.
const MAX_DEPTH: usize = 4;

/// A record's bytes: shared with the cache, or put together.
#[derive(Clone, Debug)]
pub(crate) enum Blob {
    /// One chunk.
    Shared(crate::pack::ChunkBytes),
    /// Several, joined.
    Joined(std::sync::Arc<Vec<u8>>),
}

impl Blob {
    /// Bytes that stay in memory for it.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.held_bytes(),
            Self::Joined(bytes) => bytes.len(),
        }
    }
}

impl Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Joined(bytes) => bytes,
        }
    }
}

/// Stores a record.
///
/// # Errors
/// As [`Writer::put_chunk`].
pub(crate) fn put(writer: &mut Writer, bytes: &[u8]) -> Result<ChunkId> {
    if bytes.len() <= MAX_SINGLE_LEN {
        return writer.put_meta(bytes);
    }
    let mut list = Encoder::new();
    list.bytes(LIST_MAGIC).u64(bytes.len() as u64);
    for chunk in chunker::chunks(bytes) {
        let id = writer.put_meta(chunk)?;
        list.bytes(id.as_bytes());
    }
    put(writer, &list.finish())
}

/// Reads a record.
///
/// # Errors
/// `NotFound`, `Corrupt`.
pub(crate) fn read(store: &Store, id: &ChunkId) -> Result<Blob> {
    let mut visit = |_: &ChunkId| {};
    read_visiting(store, id, &mut visit)
}

/// Reads a record and calls `visit` with every chunk that makes it up.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_visiting(store: &Store, id: &ChunkId, visit: &mut dyn FnMut(&ChunkId)) -> Result<Blob> {
    visit(id);
    let mut blob = Blob::Shared(store.read_chunk(id)?);
    for _ in 0..MAX_DEPTH {
        if !blob.starts_with(LIST_MAGIC) {
            return Ok(blob);
        }
        blob = join(store, &blob, visit).map_err(|error| error.object(id))?;
    }
    Err(Error::corrupt("lists of chunks nest too deep").object(id))
}

fn join(store: &Store, list: &[u8], visit: &mut dyn FnMut(&ChunkId)) -> Result<Blob> {
    let mut fields = Decoder::new(&list[LIST_MAGIC.len()..]);
    let len = fields.u64()?;
    if len > MAX_LEN {
        return Err(Error::corrupt(format!("record claims {len} bytes")));
    }
    let mut bytes = Vec::new();
    while fields.remaining() > 0 {
        let id = ChunkId::from_bytes(fields.array()?);
        visit(&id);
        bytes.extend_from_slice(&store.read_chunk(&id)?);
        if bytes.len() as u64 > len {
            break;
        }
    }
    if bytes.len() as u64 != len {
        return Err(Error::corrupt(format!(
            "record should have {len} bytes, its chunks have {}",
            bytes.len()
        )));
    }
    Ok(Blob::Joined(bytes.into()))
}
