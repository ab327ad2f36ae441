//! The base of a mount: one snapshot's tree, opened piece by piece, pinned against collection while it is used. The
//! directories that were opened last stay in memory.

use crate::slots::SharedName;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use store::{
    Content, Directory, DirectoryId, Error, Inode, Kind, Pin, Result, Snapshot, SnapshotId, Store, Tree,
};

/// Length in bytes above which a directory is read from several frames, which takes long: such directories are cached
/// apart, so that others do not evict them.
const LONG_BYTES: usize = 1 << 20;
/// Bytes that the other directories may take.
const SHORT_MAX_BYTES: usize = 4 << 20;
/// Bytes that the long ones may take.
const LONG_MAX_BYTES: usize = 32 << 20;
/// Number of directories of either kind that stay in any case.
const KEPT_MIN: usize = 2;

/// The base of a mount.
#[derive(Debug)]
pub(crate) struct Base {
    /// Its id.
    pub id: SnapshotId,
    /// Its record.
    pub snapshot: Snapshot,
    /// Its tree.
    pub tree: Tree,
    recent: Mutex<Recent>,
    _pin: Pin,
}

/// Directories that were opened last.
#[derive(Debug, Default)]
struct Recent {
    short: Kept,
    long: Kept,
}

/// Directories in the order in which they were opened.
#[derive(Debug, Default)]
struct Kept {
    directories: VecDeque<Arc<Directory>>,
    held_bytes: usize,
}

impl Kept {
    fn push(&mut self, directory: Arc<Directory>, max_bytes: usize) {
        self.held_bytes += directory.held_bytes();
        self.directories.push_back(directory);
        while self.held_bytes > max_bytes && self.directories.len() > KEPT_MIN {
            self.held_bytes -= self.directories.pop_front().map_or(0, |oldest| oldest.held_bytes());
        }
    }
}

impl Base {
    /// Opens and pins a snapshot; reads its record and the root record of its tree.
    ///
    /// # Errors
    /// `Invalid` when the snapshot has no tree, and those of the store.
    pub(crate) fn open(store: &Store, id: &SnapshotId) -> Result<Self> {
        let pin = store.pin("mount", std::slice::from_ref(id))?;
        let snapshot = store.snapshot(id)?;
        let Some(tree) = &snapshot.tree else {
            return Err(Error::new(Kind::Invalid, "the snapshot has no file tree to mount")
                .object(id)
                .advice("it holds a memory image; `snapctl resume` wakes it"));
        };
        let tree = store.tree(tree)?;
        Ok(Self { id: *id, snapshot, tree, recent: Mutex::default(), _pin: pin })
    }

    /// Caches a directory that was just opened.
    fn keep(&self, directory: Arc<Directory>) {
        let mut recent = self.recent();
        match directory.held_bytes() > LONG_BYTES {
            true => recent.long.push(directory, LONG_MAX_BYTES),
            false => recent.short.push(directory, SHORT_MAX_BYTES),
        }
    }

    /// Empties the cache of directories; those in use stay alive.
    pub(crate) fn forget_directories(&self) {
        *self.recent() = Recent::default();
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().expect("no thread panics while it has the directories")
    }
}

/// The place of a base file's content.
#[derive(Debug)]
pub(crate) enum LowerContent {
    /// The content itself.
    Known(Content),
    /// In a directory, by its name.
    Entry(Arc<Base>, Arc<LowerDirectory>, SharedName),
    /// At a path.
    Path(Arc<Base>, Vec<u8>),
    /// In the link table, by its number.
    Link(Arc<Base>, u64),
}

impl LowerContent {
    /// The content; may read the store.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) fn find(self) -> Result<Content> {
        let inode = match self {
            Self::Known(content) => return Ok(content),
            Self::Entry(base, directory, name) => {
                let entry = directory.open(&base)?.get(&name)?;
                entry.map(|entry| base.tree.inode(entry)).transpose()?
            }
            Self::Path(base, path) => base.tree.lookup_path(&path)?,
            Self::Link(base, number) => Some(base.tree.link(number)?.inode),
        };
        match inode {
            Some(Inode { node: store::Node::File(content), .. }) => Ok(content),
            _ => Err(Error::corrupt("a file of the base is not where it was found")),
        }
    }
}

/// A directory of the base, read when it is needed.
#[derive(Debug)]
pub(crate) struct LowerDirectory {
    /// Its id.
    pub id: DirectoryId,
    /// Its path in the base: names joined by slashes, empty for the root.
    pub path: Vec<u8>,
    opened: Mutex<Weak<Directory>>,
}

impl LowerDirectory {
    /// The directory `id` at `path`, not read yet.
    pub(crate) fn new(id: DirectoryId, path: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { id, path, opened: Mutex::default() })
    }

    /// The same directory at another path of another base.
    pub(crate) fn moved(&self, path: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { id: self.id, path, opened: Mutex::default() })
    }

    /// Its entries. Reads no store while the result of an earlier call is in use, and for a while after that.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) fn open(&self, base: &Base) -> Result<Arc<Directory>> {
        let opened = || self.opened.lock().expect("no thread panics while it has it");
        if let Some(directory) = opened().upgrade() {
            return Ok(directory);
        }
        let read = Arc::new(base.tree.directory(&self.id)?);
        let mut opened = opened();
        if let Some(directory) = opened.upgrade() {
            // Another thread was faster.
            return Ok(directory);
        }
        *opened = Arc::downgrade(&read);
        drop(opened);
        base.keep(read.clone());
        Ok(read)
    }

    /// The path of the entry `name` in the base.
    pub(crate) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

/// `name` below the directory at `path`.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}
