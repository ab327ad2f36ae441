//! Trees: Merkle directories with everything a Linux tree has. A directory node names its entries and holds their
//! inodes; an unchanged subtree keeps its id. A file with several names has its one inode in the tree's link table, and
//! its names only refer to it, so a change through one name is a change to all.

mod content;
mod content_writer;
mod diff;
mod directory;
pub(crate) mod format;
mod inode;
mod reader;
pub(crate) mod splice;
mod walk;
mod write;

pub use content::{Content, ContentReader, Extent, INLINE_MAX};
pub(crate) use content::{read_extent, read_extents};
pub use content_writer::ContentWriter;
pub use diff::{Change, ChangeKind, Diff};
pub use directory::{Directory, encode_directory};
pub use inode::{Entry, EntryInode, Identity, Inode, LinkedInode, MAX_NAME_LEN, Metadata, Node, TreeRoot};
pub use reader::Tree;
pub use walk::{Found, Walk};

#[cfg(test)]
mod tests;
