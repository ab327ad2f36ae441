//! A node: one file-system object that the kernel knows or that has changed, and its origin in the base.

use crate::change::{Attributes, NewBody, NodeId};
use crate::extent::{Layout, Source, blocks_of, bytes_of};
use crate::identity;
use crate::journal::Position;
use crate::lower::{Base, LowerDirectory};
use crate::ranges::BlockSet;
use crate::slots::{SharedName, Slots};
use std::ops::Range;
use std::sync::Arc;
use store::{Content, Inode, Metadata, Time};

/// The place in the base of the version that a node began from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The root.
    Root,
    /// An unchanged node: entry `name` of the base's directory that is node `parent`.
    Entry {
        /// The directory.
        parent: NodeId,
        /// The name in it.
        name: SharedName,
    },
    /// A changed node, which the base has at this path.
    Path(Vec<u8>),
    /// A hard-linked file of the base, by its number in the link table.
    Link(u64),
    /// The base does not have the node.
    New,
}

/// The changed part of a directory over the base's.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryBody {
    /// The directory that it began from.
    pub lower: Option<Arc<LowerDirectory>>,
    /// Names that are live or changed.
    pub slots: Slots,
    /// Its parent directory.
    pub parent: NodeId,
}

/// The content that a file began from.
#[derive(Clone, Debug)]
pub(crate) enum Lower {
    /// Bytes that are inline in a directory of the base, or in its link table. They are looked up at the node's origin
    /// at each read, so that a node does not keep the bytes in memory.
    Inline {
        /// Their number.
        len_bytes: u64,
    },
    /// Extents.
    Extents(Box<Content>),
}

impl Lower {
    /// No bytes.
    pub(crate) const EMPTY: Self = Self::Inline { len_bytes: 0 };

    /// The content that the base has at the node's origin.
    pub(crate) fn of(content: Content) -> Self {
        match content.is_inline() {
            true => Self::Inline { len_bytes: content.len_bytes() },
            false => Self::Extents(Box::new(content)),
        }
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        match self {
            Self::Inline { len_bytes } => *len_bytes,
            Self::Extents(content) => content.len_bytes(),
        }
    }
}

/// The content of a file.
#[derive(Clone, Debug)]
pub(crate) struct FileBody {
    /// The content that it began from.
    pub lower: Lower,
    /// Bytes of holes in `lower`; 0 until it is opened.
    pub holes_bytes: u64,
    /// The source of each block.
    pub layout: Layout,
    /// While a freeze stores the file: the changes since the present pass began.
    pub rewritten: Option<Box<Rewritten>>,
    /// Whether its data file has writes that are not known to be durable.
    pub unsynced: bool,
    /// Whether some of them put bytes where the upper held none: a power cut reverts those unless the journal says that
    /// they are durable.
    pub unconfirmed: bool,
    /// Position of the last journal frame that is needed to find the bytes.
    pub needs: Position,
    /// For a file without a name: the earlier base that it still reads.
    pub kept_base: Option<Arc<Base>>,
}

/// The changes of a file's content since a moment.
#[derive(Clone, Debug)]
pub(crate) struct Rewritten {
    /// The blocks that changed.
    pub blocks: BlockSet,
    /// All bytes from here on may have changed, also where the base shows through again.
    pub cut_at_bytes: u64,
}

/// The body of a node.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// A directory.
    Directory(DirectoryBody),
    /// A regular file.
    File(FileBody),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(u64),
    /// A block device.
    BlockDevice(u64),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

/// A file-system object.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Attributes.
    pub attributes: Attributes,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its body.
    pub body: Body,
    /// The version that it began from.
    pub origin: Origin,
    /// Whether it differs, or may differ, from the base.
    pub dirty: bool,
    /// Lookups that the kernel has of it.
    pub lookups: u64,
}

/// The place of an unchanged node in the base.
pub(crate) struct LowerPlace {
    /// The version that the node began from.
    pub origin: Origin,
    /// Number of names that it has in the base.
    pub nlink: u32,
    /// Its parent directory; used for directories only.
    pub parent: NodeId,
    /// Its path in the base; used for directories only.
    pub path: Vec<u8>,
}

impl Node {
    /// An unchanged node of the base.
    pub(crate) fn from_base(inode: Inode, place: LowerPlace) -> Self {
        let ctime = identity::ctime_of(&inode);
        let Metadata { mode, uid, gid, mtime, xattrs, identity: _ } = inode.metadata;
        let body = match inode.node {
            store::Node::Directory(id) => Body::Directory(DirectoryBody {
                lower: Some(LowerDirectory::new(id, place.path)),
                slots: Slots::default(),
                parent: place.parent,
            }),
            store::Node::File(content) => Body::File(FileBody {
                layout: Layout::over(content.len_bytes()),
                lower: Lower::of(content),
                holes_bytes: 0,
                rewritten: None,
                unsynced: false,
                unconfirmed: false,
                needs: 0,
                kept_base: None,
            }),
            store::Node::Symlink(target) => Body::Symlink(target),
            store::Node::CharDevice(rdev) => Body::CharDevice(rdev),
            store::Node::BlockDevice(rdev) => Body::BlockDevice(rdev),
            store::Node::Fifo => Body::Fifo,
            store::Node::Socket => Body::Socket,
        };
        // The base keeps no access time.
        let attributes = Attributes { mode, uid, gid, nlink: place.nlink, atime: mtime, mtime, ctime };
        Self { attributes, xattrs, body, origin: place.origin, dirty: false, lookups: 0 }
    }

    /// A node that the base does not have.
    pub(crate) fn new(body: NewBody, attributes: Attributes) -> Self {
        let body = match body {
            NewBody::File => Body::File(FileBody {
                lower: Lower::EMPTY,
                holes_bytes: 0,
                rewritten: None,
                layout: Layout::over(0),
                unsynced: false,
                unconfirmed: false,
                needs: 0,
                kept_base: None,
            }),
            NewBody::Directory => {
                Body::Directory(DirectoryBody { lower: None, slots: Slots::default(), parent: NodeId::ROOT })
            }
            NewBody::Symlink(target) => Body::Symlink(target),
            NewBody::CharDevice(rdev) => Body::CharDevice(rdev),
            NewBody::BlockDevice(rdev) => Body::BlockDevice(rdev),
            NewBody::Fifo => Body::Fifo,
            NewBody::Socket => Body::Socket,
        };
        Self { attributes, xattrs: Vec::new(), body, origin: Origin::New, dirty: true, lookups: 0 }
    }

    /// The directory part, if it is a directory.
    pub(crate) fn directory(&self) -> Option<&DirectoryBody> {
        match &self.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// As [`Self::directory`], mutable.
    pub(crate) fn directory_mut(&mut self) -> Option<&mut DirectoryBody> {
        match &mut self.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The file part, if it is a regular file.
    pub(crate) fn file(&self) -> Option<&FileBody> {
        match &self.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    /// As [`Self::file`], mutable.
    pub(crate) fn file_mut(&mut self) -> Option<&mut FileBody> {
        match &mut self.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    /// Whether it has no name left and lives only as long as the kernel holds it.
    pub(crate) fn is_orphan(&self) -> bool {
        self.attributes.nlink == 0
    }

    /// Its attributes as the store keeps them, without its identity.
    pub(crate) fn metadata(&self) -> Metadata {
        let Attributes { mode, uid, gid, mtime, .. } = self.attributes;
        Metadata { mode, uid, gid, mtime, xattrs: self.xattrs.clone(), ..Metadata::default() }
    }

    /// Its type.
    pub(crate) fn kind(&self) -> FileKind {
        match &self.body {
            Body::Directory(_) => FileKind::Directory,
            Body::File(_) => FileKind::File,
            Body::Symlink(_) => FileKind::Symlink,
            Body::CharDevice(_) => FileKind::CharDevice,
            Body::BlockDevice(_) => FileKind::BlockDevice,
            Body::Fifo => FileKind::Fifo,
            Body::Socket => FileKind::Socket,
        }
    }

    /// Its attributes as `stat` shows them.
    pub(crate) fn stat(&self, id: NodeId) -> Stat {
        let (len_bytes, blocks, rdev) = match &self.body {
            Body::Directory(_) => (4096, 8, 0),
            Body::File(file) => (file.layout.len_bytes(), file.blocks(), 0),
            Body::Symlink(target) => (target.len() as u64, 0, 0),
            Body::CharDevice(rdev) | Body::BlockDevice(rdev) => (0, 0, *rdev),
            Body::Fifo | Body::Socket => (0, 0, 0),
        };
        Stat { id, kind: self.kind(), attributes: self.attributes, len_bytes, blocks, rdev }
    }
}

impl FileBody {
    /// Notes that these blocks are about to get other content.
    pub(crate) fn note_rewritten(&mut self, blocks: Range<u64>) {
        if let Some(rewritten) = &mut self.rewritten {
            rewritten.blocks.insert(blocks);
        }
    }

    /// Notes that these blocks are about to become zero, except those that are zero already.
    pub(crate) fn note_zeroed(&mut self, blocks: &Range<u64>) {
        let Some(rewritten) = &mut self.rewritten else { return };
        let bytes = bytes_of(blocks, self.layout.len_bytes());
        let segments = self.layout.segments(bytes).into_iter();
        let changing = segments.filter(|segment| segment.source != Source::Zero);
        changing.for_each(|segment| rewritten.blocks.insert(blocks_of(&segment.range)));
    }

    /// Notes that the file is about to have this length.
    pub(crate) fn note_cut(&mut self, len_bytes: u64) {
        if let Some(rewritten) = &mut self.rewritten {
            rewritten.cut_at_bytes = rewritten.cut_at_bytes.min(len_bytes);
        }
    }

    /// Starts a new note of changes, and returns the previous one.
    pub(crate) fn note_from_here_on(&mut self) -> Option<Box<Rewritten>> {
        let nothing = Rewritten { blocks: BlockSet::default(), cut_at_bytes: u64::MAX };
        self.rewritten.replace(Box::new(nothing))
    }

    /// Allocated size in units of 512 bytes. Ranges of the base count completely, holes included, until the file was
    /// opened once.
    fn blocks(&self) -> u64 {
        let shown = self.layout.shown_bytes().saturating_sub(self.holes_bytes);
        (self.layout.upper_bytes() + shown).div_ceil(512)
    }
}

/// The type of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

impl FileKind {
    /// The type of the store's `node`.
    pub(crate) fn of(node: &store::Node) -> Self {
        match node {
            store::Node::Directory(_) => Self::Directory,
            store::Node::File(_) => Self::File,
            store::Node::Symlink(_) => Self::Symlink,
            store::Node::CharDevice(_) => Self::CharDevice,
            store::Node::BlockDevice(_) => Self::BlockDevice,
            store::Node::Fifo => Self::Fifo,
            store::Node::Socket => Self::Socket,
        }
    }
}

/// The attributes of a node that `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Its number.
    pub id: NodeId,
    /// Its type.
    pub kind: FileKind,
    /// Its attributes.
    pub attributes: Attributes,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Allocated size in units of 512 bytes.
    pub blocks: u64,
    /// Device number.
    pub rdev: u64,
}

impl Stat {
    /// The attributes of no node.
    pub(crate) const NOTHING: Self = Self {
        id: NodeId(0),
        kind: FileKind::File,
        attributes: Attributes {
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 0,
            atime: EPOCH,
            mtime: EPOCH,
            ctime: EPOCH,
        },
        len_bytes: 0,
        blocks: 0,
        rdev: 0,
    };
}

const EPOCH: Time = Time { seconds: 0, nanos: 0 };
