//! Tree entries for the verbs that list or compare: look-up and wording.

use store::{Error, Inode, Kind, Node, Tree};

use crate::exit::Asked as _;

/// Finds the entry at `path`.
///
/// # Errors
/// Absent when there is none; those of reading the tree.
pub(crate) fn find(tree: &Tree, path: &[u8], shown: &str) -> anyhow::Result<Inode> {
    let found = tree.lookup_path(path)?.ok_or_else(|| {
        Error::new(Kind::NotFound, "the snapshot has no such path")
            .object(shown)
            .advice("`snapctl ls -R` lists what it has")
    });
    found.asked()
}

/// The letter for a node's kind, as in `ls -l`.
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

/// The word for a node's kind, as in JSON.
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
