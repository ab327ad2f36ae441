//! The content of a tree: names, inodes and their metadata.

use super::content::Content;
use crate::clock::Time;
use crate::error::{Error, Kind, Result};
use crate::id::DirectoryId;
use std::collections::BTreeMap;

/// Longest name of an entry in bytes, as Linux has it.
pub const MAX_NAME_LEN: usize = 255;

/// Distinguishes an inode from others and from its earlier states, beyond path and contents. Set for inodes changed in
/// a mount; a backup leaves it out, so that equal directories stay equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(Option<Box<(Option<Time>, Option<u64>)>>);

impl Identity {
    /// No identity.
    pub const NONE: Self = Self(None);

    /// The last change of anything, and the inode number in mounts.
    pub fn new(ctime: Option<Time>, number: Option<u64>) -> Self {
        Self((ctime.is_some() || number.is_some()).then(|| Box::new((ctime, number))))
    }

    /// Last change of anything.
    pub fn ctime(&self) -> Option<Time> {
        self.0.as_ref().and_then(|known| known.0)
    }

    /// Inode number in mounts.
    pub fn number(&self) -> Option<u64> {
        self.0.as_ref().and_then(|known| known.1)
    }
}

/// Metadata that every inode has.
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
    /// Known only for inodes changed in a mount.
    pub identity: Identity,
}

impl Metadata {
    /// The metadata of an inode of the host, without extended attributes.
    pub(crate) fn of_inode(stat: &rustix::fs::Stat) -> Self {
        let mtime = Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
        let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
        Self { mode, uid, gid, mtime, ..Self::default() }
    }
}

/// The kind of an inode, with its content.
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
    /// Its metadata.
    pub metadata: Metadata,
    /// Its kind and content.
    pub node: Node,
}

impl Inode {
    /// Whether records that hold it need [`super::format::IDENTITY_VERSION`].
    pub(super) fn has_identity(&self) -> bool {
        self.metadata.identity != Identity::NONE
    }
}

/// The inode that a name stands for.
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
    /// Its inode.
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

/// The parts of a tree's root record.
#[derive(Clone, Debug)]
pub struct TreeRoot {
    /// Of the root directory.
    pub metadata: Metadata,
    /// The root directory.
    pub directory: DirectoryId,
    /// The link table: numbers are free to choose, stable ones keep directories unchanged.
    pub links: BTreeMap<u64, LinkedInode>,
}

/// Refuses names that no Linux directory can hold.
pub(super) fn check_entry_name(name: &[u8]) -> Result<()> {
    let bad =
        name.is_empty() || name.len() > MAX_NAME_LEN || name == b"." || name == b".." || name.contains(&b'/');
    if bad || name.contains(&0) {
        let shown = String::from_utf8_lossy(name).into_owned();
        return Err(Error::new(Kind::Corrupt, "impossible file name").object(format!("{shown:?}")));
    }
    Ok(())
}
