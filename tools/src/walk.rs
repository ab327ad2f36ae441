//! Walks over the tree of a snapshot, without recursion, so that a deep tree costs heap and not stack. Shared by the verbs
//! that list or compare; knows nothing of how trees are stored.

use store::{Directory, Entry, EntryInode, Error, Inode, Kind, Node, Tree};

use crate::exit::Asked as _;

/// A thing found in a tree: its path as bytes, what it is, how many names it has.
pub(crate) struct Found {
    pub path: Vec<u8>,
    pub inode: Inode,
    pub link_count: u32,
}

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

/// The inode of an entry, a hard link followed, and the number of its names.
pub(crate) fn inode_of(tree: &Tree, entry: Entry) -> store::Result<(Inode, u32)> {
    match entry.inode {
        EntryInode::Own(inode) => Ok((inode, 1)),
        EntryInode::Link(number) => {
            let link = tree.link(number)?;
            Ok((link.inode, link.count))
        }
    }
}

/// `prefix/name`, or `name` at the root.
pub(crate) fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
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

/// What is below a directory, each directory before what it holds, names in order.
pub(crate) struct Walk<'a> {
    tree: &'a Tree,
    recursive: bool,
    stack: Vec<Level>,
}

struct Level {
    directory: Directory,
    path: Vec<u8>,
    next: usize,
}

impl<'a> Walk<'a> {
    /// Begins below `directory`, whose path is `path`.
    pub(crate) fn new(tree: &'a Tree, directory: Directory, path: Vec<u8>, recursive: bool) -> Walk<'a> {
        Walk { tree, recursive, stack: vec![Level { directory, path, next: 0 }] }
    }

    fn step(&mut self) -> store::Result<Option<Found>> {
        let (entry, path) = loop {
            let Some(level) = self.stack.last_mut() else { return Ok(None) };
            if level.next < level.directory.len() {
                let entry = level.directory.entry(level.next)?;
                level.next += 1;
                let path = join(&level.path, &entry.name);
                break (entry, path);
            }
            self.stack.pop();
        };
        let (inode, link_count) = inode_of(self.tree, entry)?;
        if let (true, Node::Directory(id)) = (self.recursive, &inode.node) {
            let directory = self.tree.directory(id)?;
            self.stack.push(Level { directory, path: path.clone(), next: 0 });
        }
        Ok(Some(Found { path, inode, link_count }))
    }
}

impl Iterator for Walk<'_> {
    type Item = store::Result<Found>;

    /// After an error the walk is over.
    fn next(&mut self) -> Option<store::Result<Found>> {
        let step = self.step();
        if step.is_err() {
            self.stack.clear();
        }
        step.transpose()
    }
}
