//! Storing changed files while they change, as live migration moves memory: the first pass stores all ranges that
//! differ from the base, each further pass the ranges written during the previous one, until so little is left that
//! changes can wait for it.
//!
//! If files change faster than they are stored, changes wait and are let through between stored pieces, few enough that
//! every pass leaves at most half of the previous one.

use crate::change::NodeId;
use crate::errno::Errno;
use crate::extent::{blocks_of, bytes_of};
use crate::gate::Closed;
use crate::node::{FileBody, Rewritten};
use crate::overlay::Overlay;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;
use store::{Content, Error, Result, Spliced, Writer};

/// Bytes that may be left to store when changes begin to wait.
const REST_MAX: u64 = 4 << 20;
/// More passes than this are not made, however much is left.
const PASSES_MAX: u32 = 16;
/// Bytes that are stored between changes that are let through.
const SLICE_LEN: u64 = 8 << 20;
/// With so many new bytes, stored data is made durable before changes wait for the rest.
const PUBLISH_MIN: u64 = 8 << 20;

/// Changed files as they are stored so far. From the first pass until this is dropped, nodes note writes to them.
pub(crate) struct Passes<'a> {
    overlay: &'a Overlay,
    stored: HashMap<NodeId, Spliced>,
    /// Keeps changes out: between pieces, or at the end.
    closed: Option<Closed>,
}

/// The part of a file that has to be stored.
struct Job {
    id: NodeId,
    /// The content as it is stored so far.
    from: Spliced,
    len_bytes: u64,
    dirty: Vec<Range<u64>>,
}

impl Job {
    /// The changes of a file that is stored already; `None` when there are none.
    fn again(id: NodeId, from: &Spliced, mut rewritten: Rewritten, len_bytes: u64) -> Option<Self> {
        let is_cut = rewritten.cut_at_bytes < from.len_bytes();
        if !is_cut && rewritten.blocks.is_empty() && from.len_bytes() == len_bytes {
            return None;
        }
        let mut from = from.clone();
        if is_cut {
            rewritten.blocks.insert(blocks_of(&from.cut(rewritten.cut_at_bytes)));
        }
        let dirty = rewritten.blocks.ranges().map(|blocks| bytes_of(&blocks, len_bytes));
        let dirty = dirty.filter(|range| !range.is_empty()).collect();
        Some(Self { id, from, len_bytes, dirty })
    }

    fn cost(&self) -> u64 {
        self.from.cost(self.len_bytes, &self.dirty)
    }
}

impl<'a> Passes<'a> {
    /// With no file stored yet.
    pub(crate) fn new(overlay: &'a Overlay) -> Self {
        Self { overlay, stored: HashMap::new(), closed: None }
    }

    /// Stores pass after pass until little is left; from then on changes that come from the kernel wait.
    ///
    /// # Errors
    /// Those of reading the files and of the store.
    pub(crate) fn run(&mut self, writer: &mut Writer) -> Result<()> {
        let mut before = u64::MAX;
        let mut are_fast = false;
        for pass in 0..PASSES_MAX {
            let jobs = self.take_jobs()?;
            let cost = jobs.iter().map(Job::cost).fold(0, u64::saturating_add);
            are_fast |= pass > 0 && cost > before / 2;
            before = cost;
            if !are_fast {
                self.closed = None;
            }
            self.store(writer, jobs)?;
            if pass == 0 && writer.stats().new_bytes >= PUBLISH_MIN {
                writer.publish(|_| Ok(()))?;
            }
            self.closed.get_or_insert_with(|| self.overlay.gate().close());
            if self.left_bytes() <= REST_MAX {
                break;
            }
        }
        Ok(())
    }

    /// Bytes that would have to be stored now.
    pub(crate) fn left_bytes(&self) -> u64 {
        let inner = self.overlay.lock();
        let files = inner.state.nodes().filter(|(_, node)| node.dirty && !node.is_orphan());
        let files = files.filter_map(|(id, node)| Some((id, node.file().filter(|file| file.is_changed())?)));
        let left = files.map(|(id, file)| match self.stored.get(&id).zip(file.rewritten.clone()) {
            Some((from, rewritten)) => {
                Job::again(id, from, *rewritten, file.layout.len_bytes()).map_or(0, |job| job.cost())
            }
            None => {
                file.layout.dirty(file.lower.len_bytes()).iter().map(|range| range.end - range.start).sum()
            }
        });
        left.fold(0, u64::saturating_add)
    }

    /// Stores the rest, and returns the content of every file whose content differs from the base. The caller keeps
    /// changes out.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn finish(mut self, writer: &mut Writer) -> Result<HashMap<NodeId, Content>> {
        // No change is let through any more: the caller keeps all out.
        self.closed = None;
        let jobs = self.take_jobs()?;
        self.store(writer, jobs)?;
        let stored = std::mem::take(&mut self.stored).into_iter();
        stored.map(|(id, spliced)| Ok((id, spliced.finish(writer)?))).collect()
    }

    /// The files to store now; nodes start new notes of their writes.
    fn take_jobs(&mut self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let mut new = Vec::new();
        {
            let mut inner = self.overlay.lock();
            for (id, node) in inner.state.nodes_mut() {
                let counts = node.dirty && !node.is_orphan();
                let Some(file) = node.file_mut().filter(|file| counts && file.is_changed()) else { continue };
                let len_bytes = file.layout.len_bytes();
                let rewritten = file.note_from_here_on();
                match self.stored.get(&id).zip(rewritten) {
                    Some((from, rewritten)) => jobs.extend(Job::again(id, from, *rewritten, len_bytes)),
                    None => {
                        let dirty = file.layout.dirty(file.lower.len_bytes());
                        new.push((id, len_bytes, dirty));
                    }
                }
            }
            self.stored.retain(|id, _| inner.state.node(*id).is_some_and(|node| !node.is_orphan()));
        }
        for (id, len_bytes, dirty) in new {
            // It may have lost its last name meanwhile.
            let Some(lower) = self.overlay.lower_content(id)? else { continue };
            let from = Spliced::of(&self.overlay.store().content(&lower)?);
            jobs.push(Job { id, from, len_bytes, dirty });
        }
        Ok(jobs)
    }

    fn store(&mut self, writer: &mut Writer, jobs: Vec<Job>) -> Result<()> {
        let overlay = self.overlay;
        let (mut since, mut left) = (Instant::now(), SLICE_LEN);
        for job in jobs {
            let mut read = |offset: u64, buffer: &mut [u8]| {
                if left < buffer.len() as u64 && self.closed.is_some() {
                    overlay.gate().let_through(SLICE_LEN / 2, since.elapsed() / 4);
                    (since, left) = (Instant::now(), SLICE_LEN);
                }
                left = left.saturating_sub(buffer.len() as u64);
                overlay.read_for_freeze(job.id, offset, buffer)
            };
            let spliced = job.from.splice(writer, job.len_bytes, &job.dirty, &mut read)?;
            self.stored.insert(job.id, spliced);
        }
        Ok(())
    }
}

impl Drop for Passes<'_> {
    fn drop(&mut self) {
        let mut inner = self.overlay.lock();
        inner
            .state
            .nodes_mut()
            .filter_map(|(_, node)| node.file_mut())
            .for_each(|file| file.rewritten = None);
    }
}

impl Overlay {
    /// Reads bytes of a file for a freeze. They are zero where the file was cut meanwhile: that range is stored again.
    fn read_for_freeze(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = match self.read_into(id, offset, buffer) {
            Ok(len) => len,
            // The file lost its last name meanwhile, and was closed.
            Err(Errno::STALE) => 0,
            Err(errno) => {
                let node = format!("node {:016x}", id.0);
                return Err(Error::io("cannot read a changed file", node, errno.into()));
            }
        };
        buffer[len..].fill(0);
        Ok(())
    }
}

impl FileBody {
    /// Whether the content differs from the base's.
    pub(crate) fn is_changed(&self) -> bool {
        !self.layout.is_clean(self.lower.len_bytes())
    }
}
