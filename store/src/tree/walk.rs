//! The walk over the entries of a tree, without recursion: a deep tree costs heap and not stack.
//!
//! The collector and `check` visit records instead, each once however many trees share it: `operations/reachable.rs`.

use super::directory::Directory;
use super::inode::{Inode, Node};
use super::reader::Tree;
use crate::error::Result;

/// An entry found in a tree.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its path below the root, as bytes.
    pub path: Vec<u8>,
    /// Its inode, a hard link followed.
    pub inode: Inode,
    /// How many names the inode has.
    pub link_count: u32,
}

/// `prefix/name`, or `name` at the root.
pub(super) fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// The entries below a directory, each directory before its own entries, names in order.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    recursive: bool,
    stack: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    directory: Directory,
    path: Vec<u8>,
    next: usize,
}

impl<'a> Walk<'a> {
    /// Begins below `directory`, whose path is `path`; goes into its subdirectories if `recursive`.
    pub fn new(tree: &'a Tree, directory: Directory, path: Vec<u8>, recursive: bool) -> Self {
        Walk { tree, recursive, stack: vec![Level { directory, path, next: 0 }] }
    }

    fn step(&mut self) -> Result<Option<Found>> {
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
        let (inode, link_count) = self.tree.inode_and_names(entry)?;
        if let (true, Node::Directory(id)) = (self.recursive, &inode.node) {
            let directory = self.tree.directory(id)?;
            self.stack.push(Level { directory, path: path.clone(), next: 0 });
        }
        Ok(Some(Found { path, inode, link_count }))
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Found>;

    /// After an error the walk is over.
    fn next(&mut self) -> Option<Result<Found>> {
        let step = self.step();
        if step.is_err() {
            self.stack.clear();
        }
        step.transpose()
    }
}
