//! What lies below a mount: one snapshot's tree, opened piece by piece, pinned against collection while it is used.

use std::sync::{Arc, OnceLock};
use store::{Directory, DirectoryId, Error, Kind, Pin, Result, Snapshot, SnapshotId, Store, Tree};

/// The snapshot below a mount.
#[derive(Debug)]
pub struct Base {
    /// Its id.
    pub id: SnapshotId,
    /// Its record.
    pub snapshot: Snapshot,
    /// Its tree.
    pub tree: Tree,
    _pin: Pin,
}

impl Base {
    /// Opens and pins a snapshot; reads its record and the root record of its tree.
    ///
    /// # Errors
    /// `Invalid` when the snapshot has no tree, and those of the store.
    pub fn open(store: &Store, id: &SnapshotId) -> Result<Self> {
        let pin = store.pin("mount", std::slice::from_ref(id))?;
        let snapshot = store.snapshot(id)?;
        let Some(tree) = &snapshot.tree else {
            return Err(Error::new(Kind::Invalid, "the snapshot has no file tree to mount")
                .object(id)
                .advice("it holds a memory image; `snapctl resume` wakes it"));
        };
        let tree = store.tree(tree)?;
        Ok(Self { id: *id, snapshot, tree, _pin: pin })
    }
}

/// A directory of the base, read when first needed.
#[derive(Debug)]
pub struct LowerDirectory {
    /// Its id.
    pub id: DirectoryId,
    /// Where it stands in the base: names joined by slashes, empty for the root.
    pub path: Vec<u8>,
    opened: OnceLock<Directory>,
}

impl LowerDirectory {
    /// The directory `id` at `path`, not read yet.
    pub fn new(id: DirectoryId, path: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { id, path, opened: OnceLock::new() })
    }

    /// The same directory, standing elsewhere in another base.
    pub fn moved(&self, path: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { id: self.id, path, opened: self.opened.clone() })
    }

    /// Its entries; reads the store at the first call only.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(&self, tree: &Tree) -> Result<&Directory> {
        match self.opened.get() {
            Some(directory) => Ok(directory),
            None => {
                let directory = tree.directory(&self.id)?;
                Ok(self.opened.get_or_init(|| directory))
            }
        }
    }

    /// Where the entry `name` stands in the base.
    pub fn path_of(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

/// `name` below the directory at `path`.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}
