//! How the verbs that list or compare find and word what a tree has.

use store::{Error, Inode, Kind, Node, Tree};

use crate::exit::Asked as _;

/// Finds what stands at `path`.
///
/// # Errors
/// Absent when nothing does; those of reading the tree.
pub(crate) fn find(tree: &Tree, path: &[u8], shown: &str) -> anyhow::Result<Inode> {
    let found = tree.lookup_path(path)?.ok_or_else(|| {
        Error::new(Kind::NotFound, "the snapshot has no such path")
            .object(shown)
            .advice("`snapctl ls -R` lists what it has")
    });
    found.asked()
}

/// One letter for what a node is, as `ls -l` writes it.
pub(crate) fn letter(node: &Node) -> char {
    match node {
        Node::Directory(_) => 'd',
        Node::File(_) => '-',
        Node::Symlink(_) => 'l',
        Node::CharDevice(_) => 'c',
        Node::BlockDevice(_) => 'b',
        Node::Fifo => 'p',
        Node::Socket => 's',
    }
}

/// One word for what a node is, as JSON has it.
pub(crate) fn word(node: &Node) -> &'static str {
    match node {
        Node::Directory(_) => "directory",
        Node::File(_) => "file",
        Node::Symlink(_) => "symlink",
        Node::CharDevice(_) => "char_device",
        Node::BlockDevice(_) => "block_device",
        Node::Fifo => "fifo",
        Node::Socket => "socket",
    }
}

/// Bytes of a file, or of a symlink's target; 0 for the rest.
pub(crate) fn len_bytes(node: &Node) -> u64 {
    match node {
        Node::File(content) => content.len_bytes(),
        Node::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}
