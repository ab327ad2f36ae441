//! An open tree: reads its records when asked for them.

use super::directory::Directory;
use super::format;
use super::inode::{Entry, EntryInode, Inode, LinkedInode, Node};
use crate::error::{Error, Result};
use crate::id::{ChunkId, DirectoryId, TreeId};
use crate::repo::store::Store;
use crate::writer::blob;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// An open tree; directories and the link table are read when asked for.
#[derive(Clone, Debug)]
pub struct Tree {
    store: Store,
    root: Inode,
    link_table: Option<ChunkId>,
    links: Arc<OnceLock<Arc<BTreeMap<u64, LinkedInode>>>>,
}

impl Store {
    /// Opens a tree: reads its root record only.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn tree(&self, id: &TreeId) -> Result<Tree> {
        Tree::open(self, id)
    }
}

impl Tree {
    pub(crate) fn open(store: &Store, id: &TreeId) -> Result<Self> {
        let record = blob::read(store, &id.chunk())?;
        let (root, link_table) =
            format::decode_root(&record).map_err(|error| error.object(format!("tree {id}")))?;
        Ok(Self { store: store.clone(), root, link_table, links: Arc::default() })
    }

    /// The store it is read from.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The root directory's inode.
    pub fn root(&self) -> &Inode {
        &self.root
    }

    /// Opens a directory: reads its node, parses nothing yet.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn directory(&self, id: &DirectoryId) -> Result<Directory> {
        let node = blob::read(&self.store, &id.chunk())?;
        Directory::parse(node).map_err(|error| error.object(format!("directory {id}")))
    }

    /// The link table, read at first use.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn links(&self) -> Result<Arc<BTreeMap<u64, LinkedInode>>> {
        if let Some(links) = self.links.get() {
            return Ok(links.clone());
        }
        let links = match &self.link_table {
            Some(id) => {
                format::decode_links(&blob::read(&self.store, id)?).map_err(|error| error.object(id))?
            }
            None => BTreeMap::new(),
        };
        Ok(self.links.get_or_init(|| Arc::new(links)).clone())
    }

    /// One inode of the link table.
    ///
    /// # Errors
    /// `Corrupt` when a name refers to a number that is not in the table.
    pub fn link(&self, number: u64) -> Result<LinkedInode> {
        let found = self.links()?.get(&number).cloned();
        found.ok_or_else(|| Error::corrupt(format!("link table has no inode {number}")))
    }

    /// The inode that an entry stands for.
    ///
    /// # Errors
    /// As [`Self::link`].
    pub fn inode(&self, entry: Entry) -> Result<Inode> {
        Ok(self.inode_and_names(entry)?.0)
    }

    /// The same, and how many names the inode has.
    pub(super) fn inode_and_names(&self, entry: Entry) -> Result<(Inode, u32)> {
        match entry.inode {
            EntryInode::Own(inode) => Ok((inode, 1)),
            EntryInode::Link(number) => {
                let link = self.link(number)?;
                Ok((link.inode, link.count))
            }
        }
    }

    /// The inode at a path below the root; leading, trailing and double slashes do not count, symbolic links are not
    /// followed, and the empty path is the root.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` of what is stored.
    pub fn lookup_path(&self, path: &[u8]) -> Result<Option<Inode>> {
        let mut inode = self.root.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Node::Directory(id) = &inode.node else { return Ok(None) };
            match self.directory(id)?.get(name)? {
                Some(entry) => inode = self.inode(entry)?,
                None => return Ok(None),
            }
        }
        Ok(Some(inode))
    }

    /// Opens a tree and calls `visit` with the chunks of its root record.
    pub(crate) fn visit_root(store: &Store, id: &TreeId, visit: &mut dyn FnMut(&ChunkId)) -> Result<Self> {
        blob::read_visiting(store, &id.chunk(), visit)?;
        Self::open(store, id)
    }

    /// The link table, after calling `visit` with its chunks.
    pub(crate) fn visit_links(
        &self,
        visit: &mut dyn FnMut(&ChunkId),
    ) -> Result<Arc<BTreeMap<u64, LinkedInode>>> {
        if let Some(table) = &self.link_table {
            blob::read_visiting(&self.store, table, visit)?;
        }
        self.links()
    }
}
