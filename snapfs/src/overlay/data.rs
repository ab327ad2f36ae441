//! Content of files: merged reads, block-level copy on write, cutting and seeking.
//!
//! A block belongs to the upper completely or not at all, and in a block of the upper every byte behind the end of the
//! file is zero in the data file. Data is written before its journal frame, and cut after its journal frame.

use super::attributes::{push_capability_dropped, without_set_id};
use super::{Overlay, file_of, node_of};
use crate::change::{Attributes, Change, NodeId};
use crate::errno::{Answer, Errno, from_io, from_store};
use crate::extent::{BLOCK, Segment, Source, blocks_of};
use crate::node::Node;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use store::clock;

/// Bytes that one copy within the mount moves at most; the caller asks again for the rest.
const COPY_MAX: u64 = 16 << 20;
const COPY_PIECE: u64 = 1 << 20;

/// The target of a seek.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seek {
    /// The next byte that may not be zero.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

impl Seek {
    /// The target that lseek(2) asks for; `None` for one that the kernel handles by itself.
    pub(crate) fn of_whence(whence: i32) -> Option<Self> {
        match whence {
            3 => Some(Self::Data),
            4 => Some(Self::Hole),
            _ => None,
        }
    }
}

impl Overlay {
    /// Reads at most `len` bytes from `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// `ESTALE`, `EISDIR`, `EINVAL`, `EIO`.
    pub(crate) fn read(&self, id: NodeId, offset: u64, len: usize) -> Answer<Vec<u8>> {
        let _file = self.share_file(id);
        self.read_locked(id, offset..offset.saturating_add(len as u64))
    }

    /// As [`Self::read`], into a buffer; returns the number of bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_into(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Answer<usize> {
        let _file = self.share_file(id);
        let range = offset..offset.saturating_add(buffer.len() as u64);
        let segments = file_of(&self.lock().state, id)?.layout.segments(range);
        self.read_segments(id, offset, &segments, buffer)
    }

    /// The bytes of `range` that are before the end of the file. The caller has the file's lock.
    fn read_locked(&self, id: NodeId, range: Range<u64>) -> Answer<Vec<u8>> {
        let segments = file_of(&self.lock().state, id)?.layout.segments(range.clone());
        let end = segments.last().map_or(range.start, |last| last.range.end);
        let mut bytes = vec![0; (end - range.start) as usize];
        self.read_segments(id, range.start, &segments, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads segments that begin at `start`; returns how many bytes they have. The caller has the file's lock.
    fn read_segments(
        &self,
        id: NodeId,
        start: u64,
        segments: &[Segment],
        buffer: &mut [u8],
    ) -> Answer<usize> {
        let mut end = 0;
        for Segment { range, source } in segments {
            end = (range.end - start) as usize;
            let target = &mut buffer[(range.start - start) as usize..end];
            match source {
                Source::Zero => target.fill(0),
                Source::Upper => self.read_upper(id, range.start, target)?,
                Source::Lower => {
                    let got = self.reader(id)?.content.read_at(range.start, target).map_err(from_store)?;
                    if got < target.len() {
                        tracing::error!(node = id.0, "a file of the base is shorter than its length says");
                        return Err(Errno::IO);
                    }
                }
            }
        }
        Ok(end)
    }

    /// Reads the data file; bytes behind its end are zero.
    fn read_upper(&self, id: NodeId, mut offset: u64, mut target: &mut [u8]) -> Answer<()> {
        let Some(file) = self.upper.data_file(id)? else {
            tracing::error!(node = id.0, "a data file is missing from the upper");
            return Err(Errno::IO);
        };
        while !target.is_empty() {
            match file.read_at(target, offset).map_err(|error| from_io(&error))? {
                0 => {
                    target.fill(0);
                    break;
                }
                got => {
                    offset += got as u64;
                    target = &mut target[got..];
                }
            }
        }
        Ok(())
    }

    /// Writes all of `data` at `offset`. `drops_set_id`: the writer may not keep set-user-id bits. Returns whether such
    /// bits were removed.
    ///
    /// # Errors
    /// `ESTALE`, `EISDIR`, `EINVAL`, `EFBIG`, `ENOSPC`, `EROFS`, `EIO`; no bytes outside the written range are changed
    /// then.
    pub(crate) fn write(&self, id: NodeId, offset: u64, data: &[u8], drops_set_id: bool) -> Answer<bool> {
        let _changing = self.begin_change()?;
        let _file = self.own_file(id);
        self.write_locked(id, offset, data, drops_set_id)
    }

    fn write_locked(&self, id: NodeId, offset: u64, data: &[u8], drops_set_id: bool) -> Answer<bool> {
        let end =
            offset.checked_add(data.len() as u64).filter(|end| *end <= i64::MAX as u64).ok_or(Errno::FBIG)?;
        if data.is_empty() {
            return Ok(false);
        }
        let written = self
            .write_blocks(id, offset, data)
            .and_then(|()| self.note_written(id, offset..end, drops_set_id));
        if written.is_err() {
            let mut inner = self.lock();
            if let Some(file) = inner.state.node_mut(id).and_then(Node::file_mut) {
                file.note_rewritten(blocks_of(&(offset..end)));
            }
            // Bytes that were written behind the end of the file must never be seen there.
            let len_bytes = file_of(&inner.state, id)?.layout.len_bytes();
            drop(inner);
            self.cut_data_file(id, len_bytes)?;
        }
        written
    }

    fn note_written(&self, id: NodeId, range: Range<u64>, drops_set_id: bool) -> Answer<bool> {
        let mut inner = self.lock();
        let now = clock::now();
        let mut changes = Vec::new();
        inner.state.adopt(id, &mut changes);
        changes.push(Change::Write { node: id, range });
        let mut attributes = Attributes { mtime: now, ctime: now, ..node_of(&inner.state, id)?.attributes };
        // The kernel has already asked for the removal of set-group-id without group execution.
        let mode = if drops_set_id { without_set_id(attributes.mode, || true) } else { attributes.mode };
        let drops_now = attributes.mode != mode;
        if drops_now {
            push_capability_dropped(id, node_of(&inner.state, id)?, &mut changes);
            attributes.mode = mode;
        }
        changes.push(Change::Attributes { node: id, attributes });
        self.commit(&mut inner, changes).map(|()| drops_now)
    }

    /// Writes bytes to the data file; a block that is not the upper's yet is written completely.
    fn write_blocks(&self, id: NodeId, offset: u64, data: &[u8]) -> Answer<()> {
        let end = offset + data.len() as u64;
        let (start, stop) = {
            let inner = self.lock();
            let layout = &file_of(&inner.state, id)?.layout;
            let partial = |at: u64| !at.is_multiple_of(BLOCK) && !layout.is_upper(at / BLOCK);
            let start = if partial(offset) { offset - offset % BLOCK } else { offset };
            (start, if partial(end) { end.next_multiple_of(BLOCK) } else { end })
        };
        let file = self.upper.make_data_file(id)?;
        let written = if (start, stop) == (offset, end) {
            file.write_all_at(data, offset)
        } else {
            let mut bytes = self.read_locked(id, start..offset)?;
            bytes.resize((offset - start) as usize, 0);
            bytes.extend_from_slice(data);
            bytes.extend_from_slice(&self.read_locked(id, end..stop)?);
            bytes.resize((stop - start) as usize, 0);
            file.write_all_at(&bytes, start)
        };
        written.map_err(|error| from_io(&error))
    }

    /// Cuts the data file, as the journal already says.
    pub(super) fn cut_data_file(&self, id: NodeId, len_bytes: u64) -> Answer<()> {
        let Some(file) = self.upper.data_file(id)? else { return Ok(()) };
        let current = file.metadata().map_err(|error| from_io(&error))?.len();
        if current > len_bytes {
            file.set_len(len_bytes).map_err(|_| self.poison("a data file could not be cut"))?;
        }
        Ok(())
    }

    /// The next data or hole at or behind `offset`.
    ///
    /// # Errors
    /// `ENXIO` when there is none, and as [`Self::read`].
    pub(crate) fn seek(&self, id: NodeId, offset: u64, what: Seek) -> Answer<u64> {
        let _file = self.share_file(id);
        let shows_base = {
            let inner = self.lock();
            let layout = &file_of(&inner.state, id)?.layout;
            if offset >= layout.len_bytes() {
                return Err(Errno::NXIO);
            }
            layout.shown_bytes() > 0
        };
        // Opened before the lock is taken again: it may have to be read from the store.
        let base = if shows_base { Some(self.reader(id)?) } else { None };
        let holes = base.as_ref().map_or(&[][..], |base| &base.holes);
        let inner = self.lock();
        let layout = &file_of(&inner.state, id)?.layout;
        match what {
            Seek::Data => layout.next_data(offset, holes).ok_or(Errno::NXIO),
            Seek::Hole => Ok(layout.next_hole(offset, holes)),
        }
    }

    /// Copies up to `len_bytes` bytes, at most [`COPY_MAX`], from one file to another; returns how many.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::write`], only when no byte was copied: otherwise the caller gets the number of
    /// bytes.
    pub(crate) fn copy(&self, from: (NodeId, u64), to: (NodeId, u64), len_bytes: u64) -> Answer<u64> {
        let len_bytes = len_bytes.min(COPY_MAX);
        let mut done = 0;
        while done < len_bytes {
            let piece = (len_bytes - done).min(COPY_PIECE);
            match self.copy_piece((from.0, from.1 + done), (to.0, to.1 + done), piece) {
                Ok(0) => break,
                Ok(copied) => done += copied,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn copy_piece(&self, from: (NodeId, u64), to: (NodeId, u64), len: u64) -> Answer<u64> {
        let bytes = self.read(from.0, from.1, len as usize)?;
        if !bytes.is_empty() {
            self.write(to.0, to.1, &bytes, false)?;
        }
        Ok(bytes.len() as u64)
    }

    /// Zeroes the bytes of `range` that are before the end of the file and in partial blocks; returns the complete
    /// blocks.
    pub(super) fn zero_edges(&self, id: NodeId, range: Range<u64>) -> Answer<Range<u64>> {
        let len_bytes = file_of(&self.lock().state, id)?.layout.len_bytes();
        // All bytes behind the end of the file are zero, so the last block counts as complete.
        let end = if range.end >= len_bytes { range.end.next_multiple_of(BLOCK) } else { range.end };
        let blocks = range.start.div_ceil(BLOCK)..end / BLOCK;
        let edges = match blocks.start < blocks.end {
            true => [range.start..blocks.start * BLOCK, blocks.end * BLOCK..end],
            false => [range.start..range.end, end..end],
        };
        for edge in edges {
            let edge = edge.start..edge.end.min(len_bytes);
            if edge.start >= edge.end {
                continue;
            }
            let segments = file_of(&self.lock().state, id)?.layout.segments(edge.clone());
            if segments.iter().any(|segment| segment.source != Source::Zero) {
                self.write_locked(id, edge.start, &vec![0; (edge.end - edge.start) as usize], false)?;
            }
        }
        Ok(blocks)
    }
}
