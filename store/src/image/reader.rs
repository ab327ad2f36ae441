//! An open image: its page table in memory, its pages read on demand.

use super::budget::Frames;
use super::format;
use super::table::{ImageKind, Location, PageRun, Space};
use crate::error::{Error, Result};
use crate::id::{ChunkId, ImageId};
use crate::pack::ChunkBytes;
use crate::page::PAGE;
use crate::repo::store::Store;
use crate::tree::Content;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

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
    bases: BTreeMap<u32, ChunkId>,
    blobs: Vec<(String, Content)>,
}

impl Store {
    /// Opens a memory image: reads its page table.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn image(&self, id: &ImageId) -> Result<Image> {
        Image::open(self, id)
    }
}

impl Image {
    pub(crate) fn open(store: &Store, id: &ImageId) -> Result<Self> {
        let table = crate::writer::blob::read(store, &id.chunk())?;
        let parts = format::decode(&table).map_err(|error| error.object(format!("image {id}")))?;
        let format::Parts { kind, spaces, groups, bases, blobs } = parts;
        Ok(Self(Arc::new(Inner { store: store.clone(), id: *id, kind, spaces, groups, bases, blobs })))
    }

    /// Its id.
    pub fn id(&self) -> ImageId {
        self.0.id
    }

    /// The store it is read from.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The kind of memory.
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

    /// The runs of a space that hold any of these pages, cut to them, ascending.
    pub(super) fn runs_within(&self, space: usize, pages: Range<u64>) -> impl Iterator<Item = PageRun> {
        let runs = self.runs(space);
        let first = runs.partition_point(|run| run.end_page() <= pages.start);
        let end = pages.end;
        runs[first..].iter().take_while(move |run| run.first_page < end).map(move |run| run.within(&pages))
    }

    /// How many groups the image refers to.
    pub fn group_count(&self) -> usize {
        self.0.groups.len()
    }

    /// How many frames reading all of it fetches: its groups, and bases of deltas outside them.
    pub fn frame_count(&self) -> usize {
        let frames = self.frames().into_iter().flat_map(|(id, base)| std::iter::once(id).chain(base));
        frames.collect::<HashSet<ChunkId>>().len()
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

    /// The chunk that a group is stored as a delta against: reading the group fetches both.
    pub fn group_base(&self, group: u32) -> Option<ChunkId> {
        self.0.bases.get(&group).copied()
    }

    pub(crate) fn group_id(&self, group: u32) -> Option<ChunkId> {
        self.0.groups.get(group as usize).copied()
    }

    /// A group that a run names, and its base: the frames that reading it fetches.
    pub(super) fn frames_of(&self, group: u32) -> Frames {
        (self.0.groups[group as usize], self.group_base(group))
    }

    /// Those of every group.
    pub(super) fn frames(&self) -> Vec<Frames> {
        (0..self.0.groups.len() as u32).map(|group| self.frames_of(group)).collect()
    }
}
