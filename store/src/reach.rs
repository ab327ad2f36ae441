//! What records need: the steps of the walk that `check` and the collector share.

use crate::blob;
use crate::error::Result;
use crate::id::{ChunkId, DirectoryId, ImageId, SnapshotId, TreeId};
use crate::image::visit_image;
use crate::repo::Store;
use crate::tree::{EntryInode, Inode, Node, Tree, visit_content};
use std::collections::HashSet;

/// Is told of a chunk that is needed.
pub type Visit<'a> = dyn FnMut(&ChunkId) + 'a;

/// Tells `visit` of every chunk that an image needs: its page table, its groups, its blobs.
///
/// # Errors
/// `NotFound` or `Corrupt` when the page table cannot be read.
pub fn chunks_of_image(store: &Store, id: &ImageId, visit: &mut Visit<'_>) -> Result<()> {
    visit_image(store, id, visit)
}

/// Tells `visit` of the chunks of a tree's root record, its link table and the files in it, and gives the root directory.
///
/// # Errors
/// As [`chunks_of_image`].
pub fn chunks_of_tree(
    store: &Store,
    id: &TreeId,
    visit: &mut Visit<'_>,
) -> Result<(Tree, Option<DirectoryId>)> {
    let tree = Tree::visit_records(store, id, visit)?;
    for linked in tree.links()?.values() {
        chunks_of_inode(store, &linked.inode, visit)?;
    }
    let root = chunks_of_inode(store, tree.root(), visit)?;
    Ok((tree, root))
}

/// Tells `visit` of the chunks of one directory and the files in it, and gives its subdirectories.
///
/// # Errors
/// As [`chunks_of_image`].
pub fn chunks_of_directory(tree: &Tree, id: &DirectoryId, visit: &mut Visit<'_>) -> Result<Vec<DirectoryId>> {
    let store = tree.store();
    blob::read_visiting(store, &id.chunk(), visit)?;
    let mut children = Vec::new();
    for entry in tree.directory(id)?.iter() {
        if let EntryInode::Own(inode) = entry?.inode {
            children.extend(chunks_of_inode(store, &inode, visit)?);
        }
    }
    Ok(children)
}

fn chunks_of_inode(store: &Store, inode: &Inode, visit: &mut Visit<'_>) -> Result<Option<DirectoryId>> {
    match &inode.node {
        Node::Directory(id) => Ok(Some(*id)),
        Node::File(content) => visit_content(store, content, visit).map(|()| None),
        _ => Ok(None),
    }
}

/// Walks of many snapshots in which every directory, tree and image is visited once.
#[derive(Default)]
pub struct Reached {
    directories: HashSet<DirectoryId>,
    trees: HashSet<TreeId>,
    images: HashSet<ImageId>,
}

impl Reached {
    /// Nothing walked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells `visit` of every chunk that the snapshot needs and no earlier walk has told of; some come more than once.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` when a record on the way cannot be read: the walk is then not complete.
    pub fn walk(&mut self, store: &Store, id: &SnapshotId, visit: &mut Visit<'_>) -> Result<()> {
        let snapshot = store.snapshot(id)?;
        if let Some(image) = snapshot.image.filter(|image| self.images.insert(*image)) {
            chunks_of_image(store, &image, visit)?;
        }
        let Some(tree) = snapshot.tree.filter(|tree| self.trees.insert(*tree)) else { return Ok(()) };
        let (tree, root) = chunks_of_tree(store, &tree, visit)?;
        let mut waiting: Vec<DirectoryId> = root.into_iter().collect();
        while let Some(id) = waiting.pop() {
            if self.directories.insert(id) {
                waiting.extend(chunks_of_directory(&tree, &id, visit)?);
            }
        }
        Ok(())
    }
}
