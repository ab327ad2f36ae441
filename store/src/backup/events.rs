//! The events that a walk sends to the assembler, in the order in which the snapshot is built: a directory is entered,
//! then come its other entries, then its subdirectories, then it is left.

use super::read::{Job, Pieces};
use super::stat_cache::Look;
use crate::error::Error;
use crate::host::held::Name;
use crate::id::DirectoryId;
use crate::tree::{Directory, Inode, Metadata};

/// The number of an inode on the host, for those that have several names.
pub(super) type InodeKey = (u64, u64);

/// A directory of the parent snapshot that a directory of the host is compared with.
pub(super) struct Old {
    pub id: DirectoryId,
    pub directory: Directory,
}

/// An entry that is not a directory.
pub(super) struct Leaf {
    pub name: Name,
    /// Set when the inode has more than one name.
    pub linked: Option<InodeKey>,
    pub form: Form,
}

/// The known state of a leaf.
pub(super) enum Form {
    /// It is the entry at this position of the old directory. A regular file has its length, and all have their look.
    Same { position: usize, file_len: Option<u64>, look: Option<Look> },
    /// Everything: a complete inode.
    Whole { inode: Inode, look: Option<Look> },
    /// It is a regular file: everything comes from its reader.
    Read,
    /// Another name of an inode that was met before.
    Again,
    /// Why it cannot be read. It is left out.
    Unreadable(String),
}

/// One step of a walk.
pub(super) enum Event {
    Enter {
        name: Name,
        metadata: Metadata,
        old: Option<Old>,
    },
    Leave,
    Leaf(Leaf),
    Remark(Remark),
    /// The walk cannot go on.
    Failed(Error),
}

/// A message to the user about one path.
pub(super) enum Remark {
    /// A name that cannot be read is left out.
    Unreadable(String),
    /// An extended attribute that cannot be read is left out.
    Attribute(String),
    /// A name was listed and gone before it was examined.
    Vanished(String),
}

/// Some steps of a walk, and the pieces read of the files among them.
pub(super) struct Segment {
    pub events: Vec<Event>,
    pub pieces: Option<Pieces>,
}

/// A segment being filled.
#[derive(Default)]
pub(super) struct Draft {
    pub events: Vec<Event>,
    pub jobs: Vec<Job>,
    pub len_bytes: u64,
}
