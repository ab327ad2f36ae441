//! The effects of damage: every snapshot that needs a lost chunk, with its affected paths and pages. A directory below
//! which nothing is affected is walked once, however many snapshots share it. Memory: a bit for each chunk, and the
//! report.

use super::report::{AffectedPath, AffectedSnapshot, MAX_PATHS};
use crate::error::{Error, Result};
use crate::id::{ChunkId, DirectoryId, ImageId, SnapshotId, TreeId};
use crate::image::Image;
use crate::index::RowMarks;
use crate::repo::store::Store;
use crate::tree::{Content, EntryInode, Extent, Inode, Node, Tree, read_extents};
use std::collections::BTreeMap;

/// A search of a domain's snapshots for the effects of lost chunks.
pub(super) struct Search<'a> {
    store: &'a Store,
    lost: &'a RowMarks,
    /// Directories below which nothing is affected, whatever the tree.
    sound: RowMarks,
}

/// A directory being walked.
struct Level {
    id: DirectoryId,
    path_len: usize,
    /// Subdirectories yet to be walked.
    children: Vec<(Vec<u8>, DirectoryId)>,
    /// Nothing in it or below is affected or depends on the tree.
    is_sound: bool,
}

impl<'a> Search<'a> {
    /// Begins a search for the chunks in `lost`.
    pub(super) fn new(store: &'a Store, lost: &'a RowMarks) -> Self {
        Self { store, lost, sound: RowMarks::new(store.index()) }
    }

    /// The unreadable parts of a snapshot; `None` when there are none.
    pub(super) fn look(&mut self, id: SnapshotId, refs: &[String]) -> Option<AffectedSnapshot> {
        // The check of records reports an unreadable one.
        let snapshot = self.store.snapshot(&id).ok()?;
        let domain = self.store.domain().name().to_owned();
        let mut affected =
            AffectedSnapshot { id, domain, refs: refs.to_vec(), paths: Vec::new(), more_paths: 0 };
        if let Some(image) = &snapshot.image {
            self.image(image, &mut affected);
        }
        if let Some(tree) = &snapshot.tree {
            self.tree(tree, &mut affected);
        }
        (!affected.paths.is_empty()).then_some(affected)
    }

    fn image(&self, id: &ImageId, affected: &mut AffectedSnapshot) {
        let image = match Image::open(self.store, id) {
            Ok(image) => image,
            Err(error) => return affected.note(b"memory image", cannot_be_read(&error)),
        };
        for (number, space) in image.spaces().iter().enumerate() {
            let is_lost = |group: u32| {
                let ids = [image.group_id(group), image.group_base(group)];
                ids.into_iter().flatten().any(|id| self.lost.contains(&id))
            };
            let runs = image.runs(number).iter().filter(|run| is_lost(run.group));
            let (mut pages, mut first) = (0, None);
            for run in runs {
                pages += u64::from(run.page_count);
                first.get_or_insert(run.first_page);
            }
            if let Some(first) = first {
                let how =
                    format!("{pages} pages are lost, the first at {:#x}", first * crate::page::PAGE as u64);
                affected.note(format!("memory of space {}", space.id).as_bytes(), how);
            }
        }
        for (name, content) in image.blobs() {
            if let Some(how) = self.content(content) {
                affected.note(format!("state {name}").as_bytes(), how);
            }
        }
    }

    fn tree(&mut self, id: &TreeId, affected: &mut AffectedSnapshot) {
        let tree = match Tree::open(self.store, id) {
            Ok(tree) => tree,
            Err(error) => return affected.note(b"/", cannot_be_read(&error)),
        };
        let links = match tree.links() {
            Ok(links) => links
                .iter()
                .filter_map(|(number, linked)| Some((*number, self.inode(&linked.inode)?)))
                .collect(),
            Err(error) => {
                affected.note(b"all hard-linked files", cannot_be_read(&error));
                BTreeMap::new()
            }
        };
        match &tree.root().node {
            Node::Directory(root) => self.directories(&tree, *root, &links, affected),
            _ => {
                if let Some(how) = self.inode(tree.root()) {
                    affected.note(b"/", how);
                }
            }
        }
    }

    /// Walks directories, without recursion: a tree may be deeper than the stack.
    fn directories(
        &mut self,
        tree: &Tree,
        root: DirectoryId,
        links: &BTreeMap<u64, String>,
        affected: &mut AffectedSnapshot,
    ) {
        let mut path = Vec::new();
        let mut stack: Vec<Level> = Vec::new();
        let mut next = Some((Vec::new(), root));
        loop {
            if let Some((name, id)) = next.take()
                && !self.sound.contains(&id.chunk())
            {
                let path_len = path.len();
                if !stack.is_empty() {
                    path = joined(&path, &name);
                }
                let (children, is_sound) = self.directory(tree, &id, &path, links, affected);
                stack.push(Level { id, path_len, children, is_sound });
            }
            let Some(level) = stack.last_mut() else { return };
            next = level.children.pop();
            if next.is_none() {
                let Some(Level { id, path_len, is_sound, .. }) = stack.pop() else { return };
                path.truncate(path_len);
                if is_sound {
                    self.sound.insert(&id.chunk());
                }
                if let Some(parent) = stack.last_mut() {
                    parent.is_sound &= is_sound;
                }
            }
        }
    }

    /// Checks one directory; returns its subdirectories, and whether it is sound whatever the tree.
    fn directory(
        &self,
        tree: &Tree,
        id: &DirectoryId,
        path: &[u8],
        links: &BTreeMap<u64, String>,
        affected: &mut AffectedSnapshot,
    ) -> (Vec<(Vec<u8>, DirectoryId)>, bool) {
        let (mut children, mut is_sound) = (Vec::new(), true);
        let mut note = |name: &[u8], how: String| {
            affected.note(&joined(path, name), how);
            is_sound = false;
        };
        let directory = match tree.directory(id) {
            Ok(directory) => directory,
            Err(error) => {
                note(b"", format!("nothing in this directory can be read: {error}"));
                return (children, false);
            }
        };
        let mut has_links = false;
        for entry in directory.iter() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    note(b"", cannot_be_read(&error));
                    continue;
                }
            };
            let how = match &entry.inode {
                EntryInode::Link(number) => {
                    has_links = true;
                    links.get(number).cloned()
                }
                EntryInode::Own(Inode { node: Node::Directory(id), .. }) => {
                    children.push((entry.name.clone(), *id));
                    None
                }
                EntryInode::Own(inode) => self.inode(inode),
            };
            if let Some(how) = how {
                note(&entry.name, how);
            }
        }
        (children, is_sound && !has_links)
    }

    fn inode(&self, inode: &Inode) -> Option<String> {
        match &inode.node {
            Node::File(content) => self.content(content),
            _ => None,
        }
    }

    /// How a file's bytes are affected; `None` when all can be read.
    fn content(&self, content: &Content) -> Option<String> {
        let extents: Result<Vec<Extent>> = read_extents(self.store, content, &mut |_: &ChunkId| {});
        let extents = match extents {
            Ok(extents) => extents,
            Err(error) => return Some(cannot_be_read(&error)),
        };
        let (mut lost, mut offset, mut first) = (0, 0, None);
        for extent in extents {
            if let Extent::Chunk { id, .. } = &extent
                && self.lost.contains(id)
            {
                lost += extent.len_bytes();
                first.get_or_insert(offset);
            }
            offset += extent.len_bytes();
        }
        first.map(|first| format!("{lost} of {offset} bytes are lost, the first at {first}"))
    }
}

/// The path of a name in a directory; that of the root is empty, and a directory's own ends in a slash.
fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() && !name.is_empty() {
        true => name.to_vec(),
        false => [path, b"/", name].concat(),
    }
}

fn cannot_be_read(error: &Error) -> String {
    format!("cannot be read: {error}")
}

impl AffectedSnapshot {
    fn note(&mut self, path: &[u8], how: String) {
        match self.paths.len() < MAX_PATHS {
            true => self.paths.push(AffectedPath { path: path.to_vec(), how }),
            false => self.more_paths += 1,
        }
    }
}
