//! Writing a file's bytes: cuts them by content, keeps short files inline, joins holes.

use super::content::{Content, Extent, INLINE_MAX};
use crate::chunker;
use crate::error::{Error, Result};
use crate::writer::Writer;
use std::io::Read;

/// Bytes read from a stream at once.
const READ_LEN: usize = 1 << 20;

/// A file being written, front to back.
pub struct ContentWriter<'a> {
    writer: &'a mut Writer,
    extents: Vec<Extent>,
    pending: Vec<u8>,
}

impl<'a> ContentWriter<'a> {
    pub(crate) fn new(writer: &'a mut Writer) -> Self {
        Self { writer, extents: Vec::new(), pending: Vec::new() }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// As [`Writer::put_chunk`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= READ_LEN + chunker::MAX_LEN {
            self.cut(false)?;
        }
        Ok(())
    }

    /// Appends all of a stream.
    ///
    /// # Errors
    /// `Unavailable` when reading fails; as [`Writer::put_chunk`].
    pub fn copy_from(&mut self, reader: &mut dyn Read) -> Result<u64> {
        let mut total = 0;
        loop {
            let start = self.pending.len();
            let read = reader.take(READ_LEN as u64).read_to_end(&mut self.pending);
            read.map_err(|error| {
                Error::new(crate::error::Kind::Unavailable, "cannot read input").caused_by(error)
            })?;
            let len = self.pending.len() - start;
            if len == 0 {
                return Ok(total);
            }
            total += len as u64;
            if self.pending.len() >= READ_LEN {
                self.cut(false)?;
            }
        }
    }

    /// Appends zeroes that take no space.
    ///
    /// # Errors
    /// As [`Writer::put_chunk`].
    pub fn hole(&mut self, len_bytes: u64) -> Result<()> {
        self.extent(Extent::Hole { len_bytes })
    }

    /// Appends an extent that is stored already, or a hole.
    ///
    /// # Errors
    /// As [`Writer::put_chunk`].
    pub fn extent(&mut self, extent: Extent) -> Result<()> {
        if extent.len_bytes() == 0 {
            return Ok(());
        }
        self.cut(true)?;
        match (self.extents.last_mut(), extent) {
            (Some(Extent::Hole { len_bytes }), Extent::Hole { len_bytes: more }) => *len_bytes += more,
            _ => self.extents.push(extent),
        }
        Ok(())
    }

    /// Cuts pending bytes into chunks; all of them when no bytes follow that could move a cut.
    fn cut(&mut self, all: bool) -> Result<()> {
        let mut start = 0;
        while start < self.pending.len() && (all || self.pending.len() - start >= chunker::MAX_LEN) {
            let rest = &self.pending[start..];
            let chunk = &rest[..chunker::cut(rest)];
            let id = self.writer.put_chunk(chunk)?;
            self.extents.push(Extent::Chunk { id, len_bytes: chunk.len() as u32 });
            start += chunk.len();
        }
        self.pending.drain(..start);
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// As [`Writer::put_chunk`].
    pub fn finish(mut self) -> Result<Content> {
        if self.extents.is_empty() && self.pending.len() <= INLINE_MAX {
            return Ok(Content::inline(self.pending));
        }
        self.cut(true)?;
        Content::from_extents(self.writer, self.extents)
    }

    /// Ends the file without storing the list of its extents, however short it is.
    pub(crate) fn into_extents(mut self) -> Result<Vec<Extent>> {
        self.cut(true)?;
        Ok(self.extents)
    }
}
