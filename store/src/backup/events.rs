//! What a walk tells the assembler, in the order in which the snapshot is put together: directories are entered and left,
//! and between the two stand their other entries, and then their subdirectories.

use super::host::Name;
use super::read::{Job, Pieces};
use super::stat_cache::Look;
use crate::error::Error;
use crate::id::DirectoryId;
use crate::tree::{Directory, Inode, Metadata};

/// The number of an inode on the host, for those that have several names.
pub type InodeKey = (u64, u64);

/// A directory of the parent snapshot that a directory of the host is compared with.
pub struct Old {
    pub id: DirectoryId,
    pub directory: Directory,
}

/// An entry that is not a directory.
pub struct Leaf {
    pub name: Name,
    /// Its length, when it is a regular file.
    pub file_len: Option<u64>,
    /// To keep for the next backup.
    pub look: Option<Look>,
    /// Set when the inode has more than one name.
    pub linked: Option<InodeKey>,
    pub form: Form,
}

/// How much is known of a leaf.
pub enum Form {
    /// It is the entry at this position of the old directory.
    Same(usize),
    /// All.
    Whole(Inode),
    /// All but the bytes and extended attributes of a regular file, which come from its reader.
    Read(Metadata),
    /// Another name of an inode that was met before.
    Again,
    /// It cannot be read, and is left out.
    Unreadable(Error),
}

/// One step of a walk.
pub enum Event {
    Enter {
        name: Name,
        metadata: Metadata,
        old: Option<Old>,
    },
    Leave,
    Leaf(Leaf),
    /// A name that cannot be read is left out.
    Unreadable(String),
    /// The walk cannot go on.
    Failed(Error),
}

/// Some steps of a walk, and what was read of the files among them.
pub struct Segment {
    pub events: Vec<Event>,
    pub pieces: Option<Pieces>,
}

/// A segment being filled.
#[derive(Default)]
pub struct Draft {
    pub events: Vec<Event>,
    pub jobs: Vec<Job>,
    pub len_bytes: u64,
}
