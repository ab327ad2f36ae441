//! Capturing an image: pages come in ascending order, each is compared with the parent image's page at the same
//! address, and pages neither zero nor equal go into groups. A new group may be stored as a delta against the parent's
//! group that holds most of its addresses. Groups that the budget declines are neither taken over nor depended on.

use super::budget;
use super::format::{self, Parts};
use super::reader::Image;
use super::table::{ImageKind, Location, PageRun, Space};
use crate::error::{Error, Result};
use crate::id::{ChunkId, ImageId};
use crate::pack::Base;
use crate::pack::ChunkBytes;
use crate::page::{GROUP_PAGES, PAGE};
use crate::tree::Content;
use crate::tree::splice::is_zero;
use crate::writer::Writer;
use crate::writer::blob;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::ops::Range;

/// Counts of a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageStats {
    /// Pages offered, and pages of the parent that a diff left out.
    pub pages: u64,
    /// Of these, zero.
    pub zero: u64,
    /// Of those that are zero, pages that the parent stores: they became zero since, or are missing.
    pub zeroed: u64,
    /// Equal to the parent's page at the same address, and taken over.
    pub same_as_parent: u64,
    /// Not offered: left out by a diff, and taken over from the parent as they are.
    pub inherited: u64,
    /// Equal as well, but written again, since taking them over would scatter the image over too many frames.
    pub declined: u64,
    /// The rest.
    pub new: u64,
}

/// An image being captured.
pub struct ImageBuilder<'a> {
    writer: &'a mut Writer,
    kind: ImageKind,
    parent: Option<&'a Image>,
    parent_space: Option<usize>,
    parent_group: Option<(u32, ChunkBytes)>,
    /// The parent's groups from which no page is taken.
    declined: BTreeSet<u32>,
    groups: Vec<ChunkId>,
    numbers: HashMap<ChunkId, u32>,
    /// The bases of groups taken from the parent.
    bases: BTreeMap<u32, ChunkId>,
    /// Groups put into the store by this builder.
    own_groups: Vec<u32>,
    /// New pages that wait for their group: their numbers and bytes.
    pending_pages: Vec<u64>,
    pending_bytes: Vec<u8>,
    /// Runs of the open space in any order.
    runs: Vec<PageRun>,
    open: Option<(u64, u64)>,
    last_page: Option<u64>,
    spaces: Vec<Space>,
    blobs: Vec<(String, Content)>,
    stats: ImageStats,
}

impl<'a> ImageBuilder<'a> {
    /// An empty image. Pages equal to those of `parent` cost nothing, except those that would scatter it too far.
    pub fn new(writer: &'a mut Writer, kind: ImageKind, parent: Option<&'a Image>) -> Self {
        Self {
            writer,
            kind,
            parent,
            parent_space: None,
            parent_group: None,
            declined: parent
                .map(|parent| budget::sparsest(parent.spaces(), &parent.frames()))
                .unwrap_or_default(),
            groups: Vec::new(),
            numbers: HashMap::new(),
            bases: BTreeMap::new(),
            own_groups: Vec::new(),
            pending_pages: Vec::new(),
            pending_bytes: Vec::with_capacity(GROUP_PAGES * PAGE),
            runs: Vec::new(),
            open: None,
            last_page: None,
            spaces: Vec::new(),
            blobs: Vec::new(),
            stats: ImageStats::default(),
        }
    }

    /// Begins an address space: 0 for a memory file, the process id for a process; `len_bytes` is the file's length or
    /// the end of the highest page.
    ///
    /// # Errors
    /// `Invalid` when the space is there already; as [`Writer::put_chunk`].
    pub fn begin_space(&mut self, id: u64, len_bytes: u64) -> Result<()> {
        self.end_space()?;
        if self.spaces.iter().any(|space| space.id == id) {
            return Err(Error::invalid(format!("address space {id} comes twice")));
        }
        self.open = Some((id, len_bytes));
        self.last_page = None;
        self.parent_space = self.parent.and_then(|parent| parent.space(id));
        Ok(())
    }

    fn end_space(&mut self) -> Result<()> {
        self.store_group()?;
        let Some((id, len_bytes)) = self.open.take() else { return Ok(()) };
        let mut runs = std::mem::take(&mut self.runs);
        runs.sort_unstable_by_key(|run| run.first_page);
        self.spaces.push(Space { id, len_bytes, runs });
        Ok(())
    }

    /// The page at address `page * PAGE`; pages come in ascending order.
    ///
    /// # Errors
    /// `Invalid` when there is no open space, or the page does not follow the last or lies behind the end; those of the
    /// parent's pages and of [`Writer::put_chunk`].
    pub fn page(&mut self, page: u64, bytes: &[u8; PAGE]) -> Result<()> {
        self.advance(page..page + 1)?;
        self.stats.pages += 1;
        let place = self.parent_space.and_then(|space| self.parent?.locate(space, page));
        if is_zero(bytes) {
            self.stats.zero += 1;
            self.stats.zeroed += u64::from(place.is_some());
            return Ok(());
        }
        match place {
            Some(place) if self.parent_page(place)? == Some(bytes) => {
                if !self.declined.contains(&place.group) {
                    let Location { group, slot } = place;
                    let run = PageRun { first_page: page, page_count: 1, group, first_slot: slot };
                    self.take_from_parent(run);
                    self.stats.same_as_parent += 1;
                    return Ok(());
                }
                self.stats.declined += 1;
            }
            _ => self.stats.new += 1,
        }
        self.write(page, bytes)
    }

    /// Takes the parent's pages over as they are: a diff leaves out unchanged pages. Costs no reading, except for pages
    /// of groups that the budget declines. The order is that of [`Self::page`].
    ///
    /// # Errors
    /// `Invalid` when the parent has no such space, else as [`Self::page`].
    pub fn inherit(&mut self, pages: Range<u64>) -> Result<()> {
        let (Some(parent), Some(space)) = (self.parent, self.parent_space) else {
            return Err(Error::invalid("pages are left out, and there is no parent image that has them"));
        };
        if pages.is_empty() {
            return Ok(());
        }
        self.advance(pages.clone())?;
        for run in parent.runs_within(space, pages) {
            let count = u64::from(run.page_count);
            self.stats.pages += count;
            if !self.declined.contains(&run.group) {
                self.stats.inherited += count;
                self.take_from_parent(run);
                continue;
            }
            self.stats.declined += count;
            for (page, slot) in (run.first_page..run.end_page()).zip(run.first_slot..) {
                let bytes = self.parent_page(Location { group: run.group, slot })?.copied();
                let bytes =
                    bytes.ok_or_else(|| Error::corrupt("page lies outside its group").object(parent.id()))?;
                self.write(page, &bytes)?;
            }
        }
        Ok(())
    }

    /// The page at address `page * PAGE` is the parent's page `parent_page` in its space of this index, which is not
    /// read unless it is declined. Pages come in order, as in [`Self::page`].
    ///
    /// # Errors
    /// `Invalid` when there is no parent; as [`Self::page`].
    pub fn page_of_parent(&mut self, page: u64, space: usize, parent_page: u64) -> Result<()> {
        let parent = self.parent.ok_or_else(|| Error::invalid("there is no parent to take a page from"))?;
        self.advance(page..page + 1)?;
        self.stats.pages += 1;
        let Some(Location { group, slot }) = parent.locate(space, parent_page) else {
            self.stats.zero += 1;
            return Ok(());
        };
        if !self.declined.contains(&group) {
            self.take_from_parent(PageRun { first_page: page, page_count: 1, group, first_slot: slot });
            self.stats.same_as_parent += 1;
            return Ok(());
        }
        let mut bytes = [0; PAGE];
        parent.read_page(space, parent_page, &mut bytes)?;
        self.stats.declined += 1;
        self.write(page, &bytes)
    }

    /// Counts so far.
    pub fn stats(&self) -> ImageStats {
        self.stats
    }

    /// Checks that pages follow the last and lie in the open space.
    fn advance(&mut self, pages: Range<u64>) -> Result<()> {
        let end = self.open.map_or(0, |(_, len_bytes)| len_bytes.div_ceil(PAGE as u64));
        let Range { start, end: next } = pages;
        if next > end || self.last_page.is_some_and(|last| last >= start) {
            return Err(Error::invalid(format!(
                "page {start} is out of order or lies behind the end of its space"
            )));
        }
        self.last_page = Some(next - 1);
        Ok(())
    }

    /// The bytes that the parent stores at a location, verified; `None` when it lies outside its group.
    fn parent_page(&mut self, place: Location) -> Result<Option<&[u8; PAGE]>> {
        let Some(parent) = self.parent else { return Ok(None) };
        if self.parent_group.as_ref().is_none_or(|(group, _)| *group != place.group) {
            self.parent_group = Some((place.group, parent.group(place.group)?));
        }
        let start = place.slot as usize * PAGE;
        let stored = self.parent_group.as_ref().and_then(|(_, group)| group.get(start..start + PAGE));
        Ok(stored.and_then(|bytes| bytes.try_into().ok()))
    }

    /// Puts a page into the next group.
    fn write(&mut self, page: u64, bytes: &[u8; PAGE]) -> Result<()> {
        self.pending_pages.push(page);
        self.pending_bytes.extend_from_slice(bytes);
        match self.pending_pages.len() == GROUP_PAGES {
            true => self.store_group(),
            false => Ok(()),
        }
    }

    /// Points at a run of the parent's pages.
    fn take_from_parent(&mut self, run: PageRun) {
        let (id, base) = self.parent.expect("a run of it was just found").frames_of(run.group);
        let group = self.number(id);
        self.bases.extend(base.map(|base| (group, base)));
        self.append(PageRun { group, ..run });
    }

    fn number(&mut self, id: ChunkId) -> u32 {
        *self.numbers.entry(id).or_insert_with(|| {
            self.groups.push(id);
            (self.groups.len() - 1) as u32
        })
    }

    /// Adds a run, joined with the last where it goes on.
    fn append(&mut self, run: PageRun) {
        if let Some(last) = self.runs.last_mut() {
            let goes_on = last.group == run.group
                && last.end_page() == run.first_page
                && u32::from(last.first_slot) + last.page_count == u32::from(run.first_slot);
            if goes_on {
                last.page_count += run.page_count;
                return;
            }
        }
        self.runs.push(run);
    }

    fn store_group(&mut self) -> Result<()> {
        if self.pending_pages.is_empty() {
            return Ok(());
        }
        let base = self.base_of_pending();
        let id = self.writer.put_page_group(&self.pending_bytes, base)?;
        let group = self.number(id);
        self.own_groups.push(group);
        for (page, slot) in std::mem::take(&mut self.pending_pages).into_iter().zip(0..) {
            self.append(PageRun { first_page: page, page_count: 1, group, first_slot: slot });
        }
        self.pending_bytes.clear();
        Ok(())
    }

    /// The base that the pending pages may be a delta against: the parent's group that holds most of their addresses,
    /// or the base of that group, so that no delta depends on a delta. A declined group is no base: it would be fetched
    /// again.
    fn base_of_pending(&self) -> Option<Base> {
        let (parent, space) = (self.parent?, self.parent_space?);
        let mut votes: BTreeMap<ChunkId, usize> = BTreeMap::new();
        for page in &self.pending_pages {
            let place = parent.locate(space, *page);
            if let Some(place) = place.filter(|place| !self.declined.contains(&place.group)) {
                let (id, base) = parent.frames_of(place.group);
                *votes.entry(base.unwrap_or(id)).or_default() += 1;
            }
        }
        let (id, _) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
        let bytes = parent.store().read_base(&id).inspect_err(|error| {
            tracing::warn!(%error, "pages are stored without a base");
        });
        Some(Base { id, bytes: bytes.ok()? })
    }

    /// Keeps opaque state under a name.
    ///
    /// # Errors
    /// `Invalid` when the name is taken; as [`Writer::put_content`].
    pub fn blob(&mut self, name: &str, reader: &mut dyn Read) -> Result<()> {
        if self.blobs.iter().any(|(taken, _)| taken == name) {
            return Err(Error::invalid("state of this name comes twice").object(name));
        }
        let content = self.writer.put_content(reader)?;
        self.blobs.push((name.to_owned(), content));
        Ok(())
    }

    /// Stores the page table.
    ///
    /// # Errors
    /// As [`Writer::put_chunk`].
    pub fn finish(mut self) -> Result<(ImageId, ImageStats)> {
        self.end_space()?;
        for group in self.own_groups {
            let base = self.writer.group_base(&self.groups[group as usize])?;
            self.bases.extend(base.map(|base| (group, base)));
        }
        let Self { kind, spaces, groups, bases, blobs, .. } = self;
        let parts = Parts { kind, spaces, groups, bases, blobs };
        let id = blob::put(self.writer, &format::encode(&parts))?;
        Ok((ImageId::from(id), self.stats))
    }
}
