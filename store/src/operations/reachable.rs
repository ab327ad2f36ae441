//! The chunks that records need: the steps of the walk that `check` and the collector share.

use crate::error::{Error, Result};
use crate::id::{ChunkId, DirectoryId, ImageId, SnapshotId, TreeId};
use crate::image::read_parts;
use crate::index::RowMarks;
use crate::repo::store::Store;
use crate::tree::{Content, EntryInode, Extent, Inode, Node, Tree, read_extents};
use crate::writer::blob;
use std::collections::HashSet;

/// Is called with each needed chunk.
pub(crate) type Visit<'a> = dyn FnMut(&ChunkId) + 'a;

/// Callbacks of a walk. A closure over chunks is a visitor that stops at every unreadable record.
pub trait Visitor {
    /// A chunk is needed.
    fn chunk(&mut self, id: &ChunkId);

    /// A record cannot be read; `_record` lists the chunks reported for it so far. `Ok`: the walk skips it.
    ///
    /// # Errors
    /// Any error that is to end the walk.
    fn unreadable(&mut self, _record: &[ChunkId], error: Error) -> Result<()> {
        Err(error)
    }
}

impl<F: FnMut(&ChunkId)> Visitor for F {
    fn chunk(&mut self, id: &ChunkId) {
        self(id);
    }
}

/// Reads one record; `None` when it cannot be read and the walk goes on.
fn read_record<T>(
    visitor: &mut dyn Visitor,
    read: impl FnOnce(&mut Visit<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let mut record = Vec::new();
    let outcome = read(&mut |id| {
        record.push(*id);
        visitor.chunk(id);
    });
    outcome.map(Some).or_else(|error| visitor.unreadable(&record, error).map(|()| None))
}

/// Reports every chunk that an image needs: its page table, its groups, their bases, its blobs.
///
/// # Errors
/// `NotFound` or `Corrupt` when the page table cannot be read and the visitor does not go on.
pub fn chunks_of_image(store: &Store, id: &ImageId, visitor: &mut dyn Visitor) -> Result<()> {
    let Some(parts) = read_record(visitor, |visit| read_parts(store, id, visit))? else { return Ok(()) };
    parts.groups.iter().chain(parts.bases.values()).for_each(|id| visitor.chunk(id));
    parts.blobs.iter().try_for_each(|(_, content)| chunks_of_content(store, content, visitor))
}

/// Reports the chunks of a tree's root record, its link table and the files in it, and returns the tree with its root
/// directory; `None` when the root record cannot be read and the visitor goes on.
///
/// # Errors
/// As [`chunks_of_image`].
pub fn chunks_of_tree(
    store: &Store,
    id: &TreeId,
    visitor: &mut dyn Visitor,
) -> Result<Option<(Tree, Option<DirectoryId>)>> {
    let Some(tree) = read_record(visitor, |visit| Tree::visit_root(store, id, visit))? else {
        return Ok(None);
    };
    if let Some(links) = read_record(visitor, |visit| tree.visit_links(visit))? {
        for linked in links.values() {
            chunks_of_inode(store, &linked.inode, visitor)?;
        }
    }
    let root = chunks_of_inode(store, tree.root(), visitor)?;
    Ok(Some((tree, root)))
}

/// Reports the chunks of one directory and the files in it, and returns its subdirectories.
///
/// # Errors
/// As [`chunks_of_image`].
pub fn chunks_of_directory(
    tree: &Tree,
    id: &DirectoryId,
    visitor: &mut dyn Visitor,
) -> Result<Vec<DirectoryId>> {
    let store = tree.store();
    let directory = read_record(visitor, |visit| {
        blob::read_visiting(store, &id.chunk(), visit)?;
        tree.directory(id)
    })?;
    let mut children = Vec::new();
    for entry in directory.iter().flat_map(|directory| directory.iter()) {
        if let EntryInode::Own(inode) = entry?.inode {
            children.extend(chunks_of_inode(store, &inode, visitor)?);
        }
    }
    Ok(children)
}

fn chunks_of_inode(store: &Store, inode: &Inode, visitor: &mut dyn Visitor) -> Result<Option<DirectoryId>> {
    match &inode.node {
        Node::Directory(id) => Ok(Some(*id)),
        Node::File(content) => chunks_of_content(store, content, visitor).map(|()| None),
        _ => Ok(None),
    }
}

fn chunks_of_content(store: &Store, content: &Content, visitor: &mut dyn Visitor) -> Result<()> {
    let extents = read_record(visitor, |visit| read_extents(store, content, visit))?;
    for extent in extents.unwrap_or_default() {
        if let Extent::Chunk { id, .. } = extent {
            visitor.chunk(&id);
        }
    }
    Ok(())
}

/// Walks of many snapshots in which every directory, tree and image is visited once. Memory: a bit for each chunk of
/// the index, and some bytes for each snapshot.
pub struct Reached {
    directories: RowMarks,
    trees: HashSet<TreeId>,
    images: HashSet<ImageId>,
}

impl Reached {
    /// No directory visited yet. Directories in packs that the index covers by now take least memory.
    pub fn new(store: &Store) -> Self {
        Self { directories: RowMarks::new(store.index()), trees: HashSet::new(), images: HashSet::new() }
    }

    /// Reports every chunk that the snapshot needs and no earlier walk has reported; some more than once.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` when a record on the way cannot be read and the visitor does not go on: the walk is then
    /// not complete.
    pub fn walk(&mut self, store: &Store, id: &SnapshotId, visitor: &mut dyn Visitor) -> Result<()> {
        let snapshot = store.snapshot(id)?;
        if let Some(image) = snapshot.image.filter(|image| self.images.insert(*image)) {
            chunks_of_image(store, &image, visitor)?;
        }
        let Some(tree) = snapshot.tree.filter(|tree| self.trees.insert(*tree)) else { return Ok(()) };
        let Some((tree, root)) = chunks_of_tree(store, &tree, visitor)? else { return Ok(()) };
        let mut waiting: Vec<DirectoryId> = root.into_iter().collect();
        while let Some(id) = waiting.pop() {
            if self.directories.insert(&id.chunk()) {
                waiting.extend(chunks_of_directory(&tree, &id, visitor)?);
            }
        }
        Ok(())
    }
}
