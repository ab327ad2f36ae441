//! The differences between two trees, found by walking only those: directories with equal ids are skipped unread.
//!
//! Hard links stand in directories as numbers into their tree's own link table, so equal ids say nothing about linked
//! files when the tables disagree: then nothing is skipped. A directory's mtime is no difference by itself, for it
//! follows from what happened inside. The walk keeps its stack on the heap.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::content::Content;
use super::directory::Directory;
use super::inode::{Entry, Inode, Node};
use super::reader::Tree;
use super::walk::join;
use crate::error::Result;
use crate::repo::store::Store;

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is in the tree after only.
    Added,
    /// It is in the tree before only.
    Removed,
    /// Other bytes, another target, another device.
    Modified,
    /// Only mode, owner, time or extended attributes.
    Metadata,
}

/// One difference; at least one side is there.
#[derive(Clone, Debug)]
pub struct Change {
    /// How it differs.
    pub kind: ChangeKind,
    /// Its path below the root, as bytes.
    pub path: Vec<u8>,
    /// Its inode in the tree before.
    pub before: Option<Inode>,
    /// Its inode in the tree after.
    pub after: Option<Inode>,
}

/// The differences of two trees of one store, in the order of paths.
#[derive(Debug)]
pub struct Diff<'a> {
    store: &'a Store,
    before: &'a Tree,
    after: &'a Tree,
    /// Equal ids mean equal content.
    prune: bool,
    stack: Vec<Level>,
    pending: VecDeque<Change>,
}

/// A directory that is on one side or on both, and how far each was read.
#[derive(Debug)]
struct Level {
    path: Vec<u8>,
    before: Option<Cursor>,
    after: Option<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    directory: Directory,
    next: usize,
}

impl Cursor {
    fn peek(&self) -> Result<Option<Entry>> {
        (self.next < self.directory.len()).then(|| self.directory.entry(self.next)).transpose()
    }
}

impl<'a> Diff<'a> {
    /// Begins at the roots of two trees.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` when a root or a link table cannot be read.
    pub fn new(store: &'a Store, before: &'a Tree, after: &'a Tree) -> Result<Self> {
        let prune = before.links()? == after.links()?;
        let mut diff = Diff { store, before, after, prune, stack: Vec::new(), pending: VecDeque::new() };
        diff.both(Vec::new(), before.root().clone(), after.root().clone())?;
        Ok(diff)
    }

    fn step(&mut self) -> Result<Option<Change>> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Ok(Some(change));
            }
            let Some(level) = self.stack.last_mut() else { return Ok(None) };
            let before = level.before.as_ref().map(Cursor::peek).transpose()?.flatten();
            let after = level.after.as_ref().map(Cursor::peek).transpose()?.flatten();
            let order = match (&before, &after) {
                (None, None) => {
                    self.stack.pop();
                    continue;
                }
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(before), Some(after)) => before.name.cmp(&after.name),
            };
            let before = before.filter(|_| order.is_le());
            let after = after.filter(|_| order.is_ge());
            self.pass(before, after)?;
        }
    }

    /// Takes the entries of one name off the level on top and compares them.
    fn pass(&mut self, before: Option<Entry>, after: Option<Entry>) -> Result<()> {
        let level = self.stack.last_mut().expect("the entries were read from a level");
        let name = before.as_ref().or(after.as_ref()).map(|entry| entry.name.as_slice());
        let path = join(&level.path, name.unwrap_or_default());
        for (cursor, entry) in [(&mut level.before, &before), (&mut level.after, &after)] {
            if let (Some(cursor), Some(_)) = (cursor, entry) {
                cursor.next += 1;
            }
        }
        let before = before.map(|entry| self.before.inode(entry)).transpose()?;
        let after = after.map(|entry| self.after.inode(entry)).transpose()?;
        match (before, after) {
            (Some(before), Some(after)) => self.both(path, before, after),
            (Some(before), None) => self.one(ChangeKind::Removed, path, before),
            (None, Some(after)) => self.one(ChangeKind::Added, path, after),
            (None, None) => Ok(()),
        }
    }

    /// An entry that is on one side only, and all below it.
    fn one(&mut self, kind: ChangeKind, path: Vec<u8>, inode: Inode) -> Result<()> {
        if let Node::Directory(id) = &inode.node {
            let tree = if kind == ChangeKind::Added { self.after } else { self.before };
            let cursor = Some(Cursor { directory: tree.directory(id)?, next: 0 });
            let (before, after) = if kind == ChangeKind::Added { (None, cursor) } else { (cursor, None) };
            self.stack.push(Level { path: path.clone(), before, after });
        }
        let (before, after) =
            if kind == ChangeKind::Added { (None, Some(inode)) } else { (Some(inode), None) };
        self.pending.push_back(Change { kind, path, before, after });
        Ok(())
    }

    fn both(&mut self, path: Vec<u8>, before: Inode, after: Inode) -> Result<()> {
        let same = match (&before.node, &after.node) {
            (Node::Directory(one), Node::Directory(other)) => {
                if one != other || !self.prune {
                    let open = |tree: &Tree, id| {
                        tree.directory(id).map(|directory| Some(Cursor { directory, next: 0 }))
                    };
                    let (before, after) = (open(self.before, one)?, open(self.after, other)?);
                    self.stack.push(Level { path: path.clone(), before, after });
                }
                true
            }
            (Node::File(one), Node::File(other)) => same_bytes(self.store, one, other)?,
            (Node::Symlink(one), Node::Symlink(other)) => one == other,
            (Node::CharDevice(one), Node::CharDevice(other)) => one == other,
            (Node::BlockDevice(one), Node::BlockDevice(other)) => one == other,
            (Node::Fifo, Node::Fifo) | (Node::Socket, Node::Socket) => true,
            _ => {
                self.one(ChangeKind::Removed, path.clone(), before)?;
                return self.one(ChangeKind::Added, path, after);
            }
        };
        let kind = match (same, same_metadata(&before, &after)) {
            (true, true) => return Ok(()),
            (true, false) => ChangeKind::Metadata,
            (false, _) => ChangeKind::Modified,
        };
        self.pending.push_back(Change { kind, path, before: Some(before), after: Some(after) });
        Ok(())
    }
}

impl Iterator for Diff<'_> {
    type Item = Result<Change>;

    /// After an error the diff is over.
    fn next(&mut self) -> Option<Result<Change>> {
        let step = self.step();
        if step.is_err() {
            self.stack.clear();
        }
        step.transpose()
    }
}

fn same_metadata(before: &Inode, after: &Inode) -> bool {
    let (one, other) = (&before.metadata, &after.metadata);
    let same_time = matches!(before.node, Node::Directory(_)) || one.mtime == other.mtime;
    same_time
        && (one.mode, one.uid, one.gid) == (other.mode, other.uid, other.gid)
        && one.xattrs == other.xattrs
}

/// Whether two files hold the same bytes. The same bytes can be cut into chunks in two ways, so contents of equal
/// length that are written down differently are read, up to the first difference.
fn same_bytes(store: &Store, one: &Content, other: &Content) -> Result<bool> {
    const BLOCK_BYTES: usize = 256 << 10;
    if one == other || one.len_bytes() != other.len_bytes() {
        return Ok(one == other);
    }
    let (one, other) = (store.content(one)?, store.content(other)?);
    let equal_extents = one.extents().iter().zip(other.extents()).take_while(|(a, b)| a == b);
    let mut offset = equal_extents.last().map_or(0, |((start, _), _)| *start);
    let (mut left, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    while offset < one.len_bytes() {
        let count = one.read_at(offset, &mut left)?;
        if count != other.read_at(offset, &mut right)? || left[..count] != right[..count] || count == 0 {
            return Ok(false);
        }
        offset += count as u64;
    }
    Ok(true)
}
