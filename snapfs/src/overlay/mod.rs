//! The file system as plain request -> answer functions over a base and an upper. Knows nothing of FUSE.
//!
//! Locks, in this order: `gate` (changes that come from the kernel pass it, a freeze closes it), `barrier` (operations
//! that make changes share it, a freeze has it alone), one of `files` (reads of a file share it, writes have it alone,
//! a rebase has all), `inner` (state and journal). A change goes into the journal and then into the state under
//! `inner`, so the journal has changes in the order in which they happened; that append is a write(2) into the page
//! cache. Under `inner` the store is not read: directories that are needed were read before.

mod attributes;
mod cookies;
mod data;
mod listing;
mod namespace;
mod open;
mod space;
mod sync;

pub(crate) use attributes::{SetAttributes, SetTime};
pub(crate) use data::Seek;
pub(crate) use listing::Listed;
pub(crate) use namespace::RenameMode;
pub use open::base_of;

use crate::change::{Change, NodeId, encode_all};
use crate::errno::{Answer, Errno, from_store};
use crate::gate::{Closed, Gate};
use crate::journal::Journal;
use crate::lower::{Base, LowerContent};
use crate::node::{DirectoryBody, FileBody, Node, Stat};
use crate::state::State;
use crate::times;
use crate::upper::Upper;
use crate::uses::Uses;
use cookies::OpenDirectories;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use store::{Content, ContentReader, Directory, EntryInode, Store};

/// Number of locks that files share.
const FILE_LOCKS: usize = 64;
/// At most this many opened contents of the base are kept.
const READERS_MAX: usize = 1024;

/// A mount's file system.
#[derive(Debug)]
pub(crate) struct Overlay {
    store: Store,
    upper: Upper,
    read_only: bool,
    gate: Arc<Gate>,
    barrier: RwLock<()>,
    files: Vec<RwLock<()>>,
    inner: Mutex<Inner>,
    /// Opened contents of the base. Emptied when the base changes.
    readers: Mutex<HashMap<NodeId, Arc<Opened>>>,
    open_directories: OpenDirectories,
    /// Set when the journal has grown long.
    is_long: AtomicBool,
    /// Set when memory and journal may differ, or a sync failed: all changes are refused.
    poisoned: AtomicBool,
    /// Uses of the caches, which are freed some time after the last use.
    uses: Uses,
}

/// Keeps changes out: those of the kernel wait in a queue, all others for the lock. They are let in again in reverse
/// order.
pub(crate) struct Stopped<'a> {
    _barrier: RwLockWriteGuard<'a, ()>,
    _gate: Closed,
}

/// The data under the innermost lock.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) state: State,
    /// None in a read-only mount.
    pub(crate) journal: Option<Journal>,
    /// The journal is long above this many bytes.
    pub(crate) long_len_bytes: u64,
}

/// The opened content of a file of the base.
#[derive(Debug)]
struct Opened {
    content: ContentReader,
    /// Sorted, disjoint, apart from each other.
    holes: Vec<Range<u64>>,
}

impl Opened {
    fn new(content: ContentReader) -> Self {
        let mut holes: Vec<Range<u64>> = Vec::new();
        for (start, extent) in content.extents() {
            let store::Extent::Hole { len_bytes } = extent else { continue };
            match holes.last_mut() {
                Some(last) if last.end == *start => last.end += len_bytes,
                _ => holes.push(*start..start + len_bytes),
            }
        }
        Self { content, holes }
    }

    fn hole_bytes(&self) -> u64 {
        self.holes.iter().map(|hole| hole.end - hole.start).sum()
    }
}

/// The amount of differences from the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// Nodes that differ, or may differ.
    pub files: u64,
    /// Bytes that the upper holds.
    pub bytes: u64,
}

impl Overlay {
    /// The store below.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The upper.
    pub(crate) fn upper(&self) -> &Upper {
        &self.upper
    }

    /// Whether the mount refuses all changes.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The present base.
    pub(crate) fn base(&self) -> Arc<Base> {
        self.lock().state.base.clone()
    }

    /// Whether any node differs from the base.
    pub(crate) fn has_changes(&self) -> bool {
        self.lock().state.has_changes()
    }

    /// The amount of differences from the base.
    pub(crate) fn dirty(&self) -> Dirty {
        let inner = self.lock();
        let changed = inner.state.nodes().filter(|(_, node)| node.dirty && !node.is_orphan());
        changed.fold(Dirty::default(), |dirty, (_, node)| Dirty {
            files: dirty.files + 1,
            bytes: dirty.bytes + node.file().map_or(0, |file| file.layout.upper_bytes()),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panics while it changes the state")
    }

    /// Permission to make changes; an error when changes are refused.
    fn begin_change(&self) -> Answer<RwLockReadGuard<'_, ()>> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        let guard = self.barrier.read().expect("no thread panics while it freezes");
        match self.poisoned.load(Ordering::Acquire) {
            true => Err(Errno::IO),
            false => Ok(guard),
        }
    }

    /// The gate at which changes that come from the kernel wait.
    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Keeps every change out until the returned guard is dropped.
    pub(crate) fn stop_changes(&self) -> Stopped<'_> {
        self.stop_behind(self.gate.close())
    }

    /// As [`Self::stop_changes`]; `None` while another caller keeps changes out.
    fn try_stop_changes(&self) -> Option<Stopped<'_>> {
        self.gate.try_close().map(|closed| self.stop_behind(closed))
    }

    fn stop_behind(&self, closed: Closed) -> Stopped<'_> {
        let barrier = self.barrier.write().expect("no thread panics while it freezes");
        Stopped { _barrier: barrier, _gate: closed }
    }

    /// Keeps all reading and writing of files out until the guards are dropped.
    pub(crate) fn stop_files(&self) -> Vec<RwLockWriteGuard<'_, ()>> {
        self.files.iter().map(|lock| lock.write().expect("no thread panics while it has a file")).collect()
    }

    fn share_file(&self, node: NodeId) -> RwLockReadGuard<'_, ()> {
        let lock = &self.files[node.0 as usize % FILE_LOCKS];
        lock.read().expect("no thread panics while it has a file")
    }

    fn own_file(&self, node: NodeId) -> RwLockWriteGuard<'_, ()> {
        let lock = &self.files[node.0 as usize % FILE_LOCKS];
        lock.write().expect("no thread panics while it has a file")
    }

    /// Refuses all changes from now on: memory, journal and disk may differ.
    pub(crate) fn poison(&self, why: &str) -> Errno {
        if !self.poisoned.swap(true, Ordering::AcqRel) {
            tracing::error!(why, upper = %self.upper.path().display(), "the mount refuses changes from now on");
        }
        Errno::IO
    }

    /// Writes the changes of an operation into the journal and applies them, all or none.
    pub(crate) fn commit(&self, inner: &mut Inner, changes: Vec<Change>) -> Answer<()> {
        if let Some(journal) = &mut inner.journal {
            journal.reserve()?;
        }
        self.commit_making_room(inner, changes)
    }

    /// As [`Self::commit`], for changes that must succeed on a full disk because they free space or record what is
    /// durable: only they may use the reserve of the journal.
    pub(crate) fn commit_making_room(&self, inner: &mut Inner, changes: Vec<Change>) -> Answer<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        let Some(journal) = &mut inner.journal else { return Err(Errno::ROFS) };
        let state = &inner.state;
        let changes: Vec<Change> =
            changes.into_iter().map(|change| after_last_ctime(state, change)).collect();
        // Changes of a node without a name end with this mount, so the next one does not need them.
        let lasting = |change: &&Change| {
            let node = change.node().and_then(|id| state.node(id));
            !node.is_some_and(Node::is_orphan)
        };
        let payload = encode_all(changes.iter().filter(lasting));
        if !payload.is_empty() {
            journal.append(&payload).map_err(|errno| match errno {
                Errno::IO => self.poison("the journal could not be written"),
                errno => errno,
            })?;
            if journal.len_bytes() > inner.long_len_bytes {
                self.is_long.store(true, Ordering::Release);
            }
        }
        let position = journal.position();
        for change in changes {
            let needing = change.node().filter(|_| inner.state.is_needed_for_bytes(&change));
            if let Err(error) = inner.state.apply(change) {
                from_store(error);
                return Err(self.poison("a change could not be applied"));
            }
            if let Some(file) = needing.and_then(|id| inner.state.node_mut(id)).and_then(Node::file_mut) {
                file.needs = position;
            }
        }
        Ok(())
    }

    /// Reads the parts of the base that an operation on `name` in `parent` needs, before any lock is taken; they stay
    /// in memory as long as the caller has the result.
    fn warm(&self, parent: NodeId, name: &[u8]) -> Answer<Option<Arc<Directory>>> {
        self.uses.note();
        let (lower, base) = {
            let inner = self.lock();
            let directory = directory_of(&inner.state, parent)?;
            (directory.lower.clone(), inner.state.base.clone())
        };
        let Some(lower) = lower else { return Ok(None) };
        let opened = lower.open(&base).map_err(from_store)?;
        let entry = opened.get(name).map_err(from_store)?;
        if let Some(EntryInode::Link(_)) = entry.map(|entry| entry.inode) {
            base.tree.links().map_err(from_store)?;
        }
        Ok(Some(opened))
    }

    /// The content that the file `id` began from; `None` when it is no live file. No lock may be held.
    pub(crate) fn lower_content(&self, id: NodeId) -> store::Result<Option<Content>> {
        let found = self.lock().state.lower_content(id);
        found.map(LowerContent::find).transpose()
    }

    /// The opened content of the base that a file began from. The caller has the file's lock.
    fn reader(&self, node: NodeId) -> Answer<Arc<Opened>> {
        self.uses.note();
        let kept = || self.readers.lock().expect("no thread panics while it has the readers");
        if let Some(reader) = kept().get(&node) {
            return Ok(reader.clone());
        }
        let content = self.lower_content(node).map_err(from_store)?.ok_or(Errno::STALE)?;
        let reader = Arc::new(Opened::new(self.store.content(&content).map_err(from_store)?));
        if let Some(file) = self.lock().state.node_mut(node).and_then(Node::file_mut) {
            file.holes_bytes = reader.hole_bytes();
        }
        let mut readers = kept();
        if readers.len() >= READERS_MAX
            && let Some(other) = readers.keys().next().copied()
        {
            readers.remove(&other);
        }
        readers.insert(node, reader.clone());
        Ok(reader)
    }

    /// Drops all opened contents: the base changed.
    pub(crate) fn forget_readers(&self) {
        *self.readers.lock().expect("no thread panics while it has the readers") = HashMap::new();
    }

    /// The recent uses.
    pub(crate) fn uses(&self) -> &Uses {
        &self.uses
    }

    /// Frees the room of nodes that the kernel forgot, and the caches when there were no recent uses (`is_idle`).
    /// Returns whether that may have been much.
    pub(crate) fn tidy(&self, is_idle: bool) -> bool {
        let (was_shrunk, base) = {
            let mut inner = self.lock();
            (inner.state.shrink(), inner.state.base.clone())
        };
        if is_idle {
            self.forget_readers();
            base.forget_directories();
            self.store.drop_decoded();
        }
        was_shrunk || is_idle
    }

    fn forget_reader(&self, node: NodeId) {
        self.readers.lock().expect("no thread panics while it has the readers").remove(&node);
    }
}

/// The change time of a change: always later than that of the node's previous change, even if the clock went back,
/// because it distinguishes the versions of a node.
fn after_last_ctime(state: &State, mut change: Change) -> Change {
    if let Change::Attributes { node, attributes } = &mut change
        && let Some(last) = state.node(*node).map(|node| node.attributes.ctime)
        && attributes.ctime <= last
    {
        attributes.ctime = times::later(last, 1);
    }
    change
}

/// The node; `ESTALE` when it is not live.
fn node_of(state: &State, id: NodeId) -> Answer<&Node> {
    state.node(id).ok_or(Errno::STALE)
}

fn directory_of(state: &State, id: NodeId) -> Answer<&DirectoryBody> {
    node_of(state, id)?.directory().ok_or(Errno::NOTDIR)
}

fn file_of(state: &State, id: NodeId) -> Answer<&FileBody> {
    let node = node_of(state, id)?;
    node.file().ok_or(if node.directory().is_some() { Errno::ISDIR } else { Errno::INVAL })
}

fn stat_of(state: &State, id: NodeId) -> Answer<Stat> {
    Ok(node_of(state, id)?.stat(id))
}

#[cfg(test)]
mod tests;
