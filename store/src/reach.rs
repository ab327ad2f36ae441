//! What a snapshot needs: the walk that `check` and the collector share. Directories and images seen before are not walked
//! again, so shared subtrees cost once.

use crate::error::Result;
use crate::id::{ChunkId, DirectoryId, ImageId, SnapshotId, TreeId};
use crate::image::visit_image;
use crate::repo::Store;
use crate::tree::{EntryInode, Inode, Node, Tree, visit_content};
use std::collections::HashSet;

/// Records already walked.
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
    pub fn walk(&mut self, store: &Store, id: &SnapshotId, visit: &mut dyn FnMut(&ChunkId)) -> Result<()> {
        let snapshot = store.snapshot(id)?;
        if let Some(image) = snapshot.image
            && self.images.insert(image)
        {
            visit_image(store, &image, visit)?;
        }
        match snapshot.tree {
            Some(tree) if self.trees.insert(tree) => self.walk_tree(store, &tree, visit),
            _ => Ok(()),
        }
    }

    fn walk_tree(&mut self, store: &Store, id: &TreeId, visit: &mut dyn FnMut(&ChunkId)) -> Result<()> {
        let tree = Tree::visit_records(store, id, visit)?;
        for linked in tree.links()?.values() {
            self.walk_inode(store, &linked.inode, visit, &mut Vec::new())?;
        }
        let mut waiting = Vec::new();
        self.walk_inode(store, tree.root(), visit, &mut waiting)?;
        while let Some(id) = waiting.pop() {
            crate::blob::read_visiting(store, &id.chunk(), visit)?;
            for entry in tree.directory(&id)?.iter() {
                if let EntryInode::Own(inode) = entry?.inode {
                    self.walk_inode(store, &inode, visit, &mut waiting)?;
                }
            }
        }
        Ok(())
    }

    fn walk_inode(
        &mut self,
        store: &Store,
        inode: &Inode,
        visit: &mut dyn FnMut(&ChunkId),
        waiting: &mut Vec<DirectoryId>,
    ) -> Result<()> {
        match &inode.node {
            Node::File(content) => visit_content(store, content, visit),
            Node::Directory(id) => {
                if self.directories.insert(*id) {
                    waiting.push(*id);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
