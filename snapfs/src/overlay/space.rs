//! Space: allocating, punching holes, zeroing, and free space.

use super::{Overlay, file_of, node_of};
use crate::change::{Attributes, Change, NodeId};
use crate::errno::{Answer, Errno};
use crate::extent::{BLOCK, Source};
use rustix::fs::{self, FallocateFlags, StatVfs};
use std::ops::Range;
use store::clock;

impl Overlay {
    /// Performs fallocate(2): allocates, punches a hole or zeroes.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other modes, `EFBIG`, `ESTALE`, `ENOSPC`, `EROFS`, `EIO`.
    pub(crate) fn allocate(&self, id: NodeId, range: Range<u64>, mode: FallocateFlags) -> Answer<()> {
        let _changing = self.begin_change()?;
        let _file = self.own_file(id);
        if range.end > i64::MAX as u64 {
            return Err(Errno::FBIG);
        }
        let keeps_size = mode.contains(FallocateFlags::KEEP_SIZE);
        let zeroes = match mode - FallocateFlags::KEEP_SIZE {
            FallocateFlags::PUNCH_HOLE if keeps_size => true,
            FallocateFlags::ZERO_RANGE => true,
            rest if rest.is_empty() => false,
            _ => return Err(Errno::OPNOTSUPP),
        };
        let blocks = match zeroes {
            true => self.zero_edges(id, range.clone())?,
            false => {
                self.reserve(id, range.clone())?;
                0..0
            }
        };
        self.note_allocated(id, blocks.clone(), (!keeps_size).then_some(range.end))?;
        self.punch(id, blocks)
    }

    fn note_allocated(&self, id: NodeId, blocks: Range<u64>, at_least_bytes: Option<u64>) -> Answer<()> {
        let mut inner = self.lock();
        let mut changes = Vec::new();
        inner.state.adopt(id, &mut changes);
        if blocks.start < blocks.end {
            changes.push(Change::Zero { node: id, blocks });
        }
        if let Some(len_bytes) = at_least_bytes
            && len_bytes > file_of(&inner.state, id)?.layout.len_bytes()
        {
            changes.push(Change::Truncate { node: id, len_bytes });
        }
        let now = clock::now();
        let node = node_of(&inner.state, id)?;
        let attributes = Attributes { mtime: now, ctime: now, ..node.attributes };
        changes.push(Change::Attributes { node: id, attributes });
        match at_least_bytes {
            None => self.commit_making_room(&mut inner, changes),
            Some(_) => self.commit(&mut inner, changes),
        }
    }

    /// Reserves space in the data file for the holes of `range`. No space is reserved where the base shows through.
    fn reserve(&self, id: NodeId, range: Range<u64>) -> Answer<()> {
        let (segments, len_bytes) = {
            let inner = self.lock();
            let layout = &file_of(&inner.state, id)?.layout;
            (layout.segments(range.clone()), layout.len_bytes())
        };
        let holes = segments.into_iter().filter(|segment| segment.source == Source::Zero);
        let behind = range.start.max(len_bytes)..range.end;
        let file = self.upper.make_data_file(id)?;
        for hole in holes.map(|segment| segment.range).chain([behind]).filter(|hole| !hole.is_empty()) {
            let reserved = fs::fallocate(&file, FallocateFlags::KEEP_SIZE, hole.start, hole.end - hole.start);
            match reserved {
                // A file system that cannot reserve space promises none.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Frees the space of blocks that are zero in the journal already.
    fn punch(&self, id: NodeId, blocks: Range<u64>) -> Answer<()> {
        if blocks.start >= blocks.end {
            return Ok(());
        }
        let Some(file) = self.upper.data_file(id)? else { return Ok(()) };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, len_bytes) = (blocks.start * BLOCK, (blocks.end - blocks.start) * BLOCK);
        if let Err(errno) = fs::fallocate(&file, flags, offset, len_bytes) {
            // The bytes are never read again; only their space stays allocated.
            tracing::debug!(node = id.0, %errno, "a hole could not be punched into a data file");
        }
        Ok(())
    }

    /// Space and inodes of the file system that the upper is on.
    ///
    /// # Errors
    /// Those of that file system.
    pub(crate) fn space(&self) -> Answer<StatVfs> {
        self.upper.space()
    }
}
