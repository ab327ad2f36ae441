//! Trees: Merkle directories with everything a Linux tree has. A directory node names its entries and holds their inodes;
//! an unchanged subtree keeps its id. A file with several names has its one inode in the tree's link table, and its names
//! only refer to it, so a change through one name is a change to all.

mod content;
mod content_writer;
mod directory;
mod format;

pub(crate) use content::visit_content;
pub use content::{Content, ContentReader, Extent, INLINE_MAX};
pub use content_writer::ContentWriter;
pub use directory::{Directory, encode_directory};
pub(crate) use format::encode_tree;

use crate::blob::{self, Blob};
use crate::clock::Time;
use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, DirectoryId, TreeId};
use crate::repo::Store;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Longest name of an entry in bytes, as Linux has it.
pub const MAX_NAME_LEN: usize = 255;

/// What every inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits, 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Time,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory(DirectoryId),
    /// A regular file.
    File(Content),
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
    /// A character device and its number.
    CharDevice(u64),
    /// A block device and its number.
    BlockDevice(u64),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

/// A file system object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What every inode has.
    pub metadata: Metadata,
    /// What it is.
    pub node: Node,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryInode {
    /// An inode of its own.
    Own(Inode),
    /// One of several names of the inode that the link table has under this number.
    Link(u64),
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name: not empty, not "." or "..", no slash, no NUL, at most 255 bytes.
    pub name: Vec<u8>,
    /// What it stands for.
    pub inode: EntryInode,
}

/// An inode with several names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedInode {
    /// How many names it has in this tree.
    pub count: u32,
    /// The inode; never a directory.
    pub inode: Inode,
}

/// What a tree's root record is made from.
#[derive(Clone, Debug)]
pub struct TreeRoot {
    /// Of the root directory.
    pub metadata: Metadata,
    /// The root directory.
    pub directory: DirectoryId,
    /// The link table: numbers are free to choose, stable ones keep directories unchanged.
    pub links: BTreeMap<u64, LinkedInode>,
}

/// An open tree; directories and the link table are read when asked for.
#[derive(Clone, Debug)]
pub struct Tree {
    store: Store,
    root: Inode,
    link_table: Option<ChunkId>,
    links: Arc<OnceLock<Arc<BTreeMap<u64, LinkedInode>>>>,
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
    /// `Corrupt` when a name refers to a number that the table lacks.
    pub fn link(&self, number: u64) -> Result<LinkedInode> {
        let found = self.links()?.get(&number).cloned();
        found.ok_or_else(|| Error::corrupt(format!("link table has no inode {number}")))
    }

    /// The inode that an entry stands for.
    ///
    /// # Errors
    /// As [`Self::link`].
    pub fn inode(&self, entry: Entry) -> Result<Inode> {
        match entry.inode {
            EntryInode::Own(inode) => Ok(inode),
            EntryInode::Link(number) => Ok(self.link(number)?.inode),
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

    /// Tells `visit` of the chunks that make up the root record and the link table.
    pub(crate) fn visit_records(store: &Store, id: &TreeId, visit: &mut dyn FnMut(&ChunkId)) -> Result<Self> {
        blob::read_visiting(store, &id.chunk(), visit)?;
        let tree = Self::open(store, id)?;
        if let Some(table) = &tree.link_table {
            blob::read_visiting(store, table, visit)?;
        }
        Ok(tree)
    }
}

/// Refuses what no Linux directory can hold.
fn check_entry_name(name: &[u8]) -> Result<()> {
    let bad =
        name.is_empty() || name.len() > MAX_NAME_LEN || name == b"." || name == b".." || name.contains(&b'/');
    if bad || name.contains(&0) {
        let shown = String::from_utf8_lossy(name).into_owned();
        return Err(Error::new(Kind::Corrupt, "impossible file name").object(format!("{shown:?}")));
    }
    Ok(())
}

/// Reads a blob for a sibling module.
fn read_blob(store: &Store, id: &ChunkId) -> Result<Blob> {
    blob::read(store, id)
}

#[cfg(test)]
mod tests;
