//! Memory images: which stored page stands at which page of an address space, plus opaque state (device state, CRIU's
//! image files).
//!
//! Pages are stored in groups of up to [`GROUP_PAGES`]; a group is one chunk in a frame of its own, which is what a fault
//! fetches. The page table is flat: a child points straight at its ancestors' groups, so the length of a chain costs
//! nothing. Zero pages and pages outside every run are not stored.

mod builder;
mod format;

pub use builder::{ImageBuilder, ImageStats};
pub(crate) use format::visit_image;

use crate::cache::ChunkBytes;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ImageId};
use crate::repo::Store;
use crate::tree::Content;
use std::sync::Arc;

/// Bytes of a page, the unit of identity of memory.
pub const PAGE: usize = 4096;
/// Pages of a full group.
pub const GROUP_PAGES: usize = 16;

/// Whose memory it is; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ImageKind {
    /// A flat file of pages.
    Raw = 0,
    /// A Firecracker memory file, with the blob `vmstate`.
    Firecracker = 1,
    /// Processes dumped by CRIU, one space each, with its other image files as blobs.
    Criu = 2,
}

/// Consecutive pages of a space that lie in consecutive slots of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first, divided by [`PAGE`].
    pub first_page: u64,
    /// How many.
    pub page_count: u32,
    /// Number of the group in the image.
    pub group: u32,
    /// Slot of the first.
    pub first_slot: u16,
}

impl PageRun {
    /// The page after the last.
    pub fn end_page(&self) -> u64 {
        self.first_page + u64::from(self.page_count)
    }

    fn slot_of(&self, page: u64) -> Option<u16> {
        let within = page.checked_sub(self.first_page)?;
        (within < u64::from(self.page_count)).then(|| self.first_slot + within as u16)
    }
}

/// Where a page is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Number of the group in the image.
    pub group: u32,
    /// The page's place in it.
    pub slot: u16,
}

/// One address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// 0 for a memory file; the process id in its namespace for a process.
    pub id: u64,
    /// Length of the memory file; for a process the end of its highest page.
    pub len_bytes: u64,
    runs: Vec<PageRun>,
}

/// An open image. Clones share it.
#[derive(Clone, Debug)]
pub struct Image(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    id: ImageId,
    kind: ImageKind,
    spaces: Vec<Space>,
    groups: Vec<ChunkId>,
    blobs: Vec<(String, Content)>,
}

impl Image {
    pub(crate) fn open(store: &Store, id: &ImageId) -> Result<Self> {
        let table = crate::blob::read(store, &id.chunk())?;
        let parts = format::decode(&table).map_err(|error| error.object(format!("image {id}")))?;
        let format::Parts { kind, spaces, groups, blobs } = parts;
        Ok(Self(Arc::new(Inner { store: store.clone(), id: *id, kind, spaces, groups, blobs })))
    }

    /// Its id.
    pub fn id(&self) -> ImageId {
        self.0.id
    }

    /// The store it is read from.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Whose memory it is.
    pub fn kind(&self) -> ImageKind {
        self.0.kind
    }

    /// Its address spaces.
    pub fn spaces(&self) -> &[Space] {
        &self.0.spaces
    }

    /// The index of the space with this id.
    pub fn space(&self, id: u64) -> Option<usize> {
        self.0.spaces.iter().position(|space| space.id == id)
    }

    /// Every stored run of a space, ascending.
    pub fn runs(&self, space: usize) -> &[PageRun] {
        self.0.spaces.get(space).map_or(&[], |space| &space.runs)
    }

    /// Where a page is stored; `None` for a zero page. A binary search over the runs.
    pub fn locate(&self, space: usize, page: u64) -> Option<Location> {
        let run = self.run_around(space, page)?;
        Some(Location { group: run.group, slot: run.slot_of(page)? })
    }

    /// The run that holds a page; `None` for a zero page.
    pub fn run_around(&self, space: usize, page: u64) -> Option<PageRun> {
        let runs = self.runs(space);
        let index = runs.partition_point(|run| run.end_page() <= page);
        runs.get(index).filter(|run| run.first_page <= page).copied()
    }

    /// How many groups the image refers to.
    pub fn group_count(&self) -> usize {
        self.0.groups.len()
    }

    /// The pages of a group, verified: slot `n` is at `n * PAGE`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn group(&self, group: u32) -> Result<ChunkBytes> {
        let id = self.0.groups.get(group as usize);
        let id =
            id.ok_or_else(|| Error::corrupt(format!("page table has no group {group}")).object(self.0.id))?;
        self.0.store.read_chunk(id)
    }

    /// Copies a page; zeroes where none is stored.
    ///
    /// # Errors
    /// As [`Self::group`].
    pub fn read_page(&self, space: usize, page: u64, buffer: &mut [u8; PAGE]) -> Result<()> {
        let Some(Location { group, slot }) = self.locate(space, page) else {
            buffer.fill(0);
            return Ok(());
        };
        let start = slot as usize * PAGE;
        let bytes = self.group(group)?;
        let stored = bytes.get(start..start + PAGE);
        buffer.copy_from_slice(
            stored.ok_or_else(|| Error::corrupt("page lies outside its group").object(self.0.id))?,
        );
        Ok(())
    }

    /// Opaque state: names and contents.
    pub fn blobs(&self) -> &[(String, Content)] {
        &self.0.blobs
    }

    /// Opaque state of this name.
    pub fn blob(&self, name: &str) -> Option<&Content> {
        self.0.blobs.iter().find(|(found, _)| found == name).map(|(_, content)| content)
    }

    fn group_id(&self, group: u32) -> Option<ChunkId> {
        self.0.groups.get(group as usize).copied()
    }
}

#[cfg(test)]
mod tests;
