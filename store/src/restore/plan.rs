//! The plan of a restore: walks the tree, makes directories, and hands out their entries in the order in which a backup
//! packed them: a directory's own files before its subdirectories.

use super::filling::{Filling, Place};
use super::make::Maker;
use super::refusal::Refusal;
use super::target::Target;
use super::{BATCH_FILES, BATCH_LEN, First, Leaf, Task};
use crate::error::{Error, Kind, Result};
use crate::host::held::Name;
use crate::repo::store::Store;
use crate::tree::{EntryInode, Extent, Inode, Node, Tree};
use crossbeam_channel::Sender;
use std::collections::HashMap;
use std::sync::Arc;

/// A directory whose subdirectories are still to be made.
struct Level {
    filling: Arc<Filling>,
    subdirectories: std::vec::IntoIter<(Name, Inode)>,
}

/// Another name of a file that is made first.
struct Link {
    number: u64,
    place: Place,
}

/// The names of files with several, which are linked when all files are there.
#[derive(Default)]
pub(super) struct Links {
    /// Where the first name of each went.
    firsts: HashMap<u64, Arc<First>>,
    others: Vec<Link>,
}

/// A plan under way.
pub(super) struct Plan<'a> {
    store: &'a Store,
    tree: &'a Tree,
    maker: &'a Maker<'a>,
    tasks: Sender<Vec<Task>>,
    batch: Vec<Task>,
    batch_len: u64,
    links: Links,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        store: &'a Store,
        tree: &'a Tree,
        maker: &'a Maker<'a>,
        tasks: Sender<Vec<Task>>,
    ) -> Self {
        let (batch, links) = Default::default();
        Self { store, tree, maker, tasks, batch, batch_len: 0, links }
    }

    /// Hands out everything; returns the links to make when all files are there.
    pub(super) fn run(mut self, inode: &Inode, target: &Target) -> Result<Links> {
        let directory = target.top.clone();
        match &target.name {
            None => self.directories(inode, directory)?,
            Some(name) => {
                self.leaf(inode.clone(), Place { directory, name: name.clone() }, None)?;
            }
        }
        self.send();
        Ok(self.links)
    }

    fn directories(&mut self, inode: &Inode, top: Arc<Filling>) -> Result<()> {
        self.maker.count_directory();
        let mut levels: Vec<Level> = vec![self.enter(inode, top)?];
        // Without recursion: a tree may be deeper than the stack.
        while let Some(level) = levels.last_mut() {
            self.maker.check()?;
            match level.subdirectories.next() {
                Some((name, inode)) => {
                    let place = Place { directory: level.filling.clone(), name };
                    let filling = self.maker.directory(place, inode.metadata.clone())?;
                    let below = self.enter(&inode, filling)?;
                    levels.push(below);
                }
                None => {
                    if let Some(done) = levels.pop() {
                        self.maker.release(done.filling);
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands out the files of a directory that is made already.
    fn enter(&mut self, inode: &Inode, filling: Arc<Filling>) -> Result<Level> {
        let Node::Directory(id) = &inode.node else {
            return Err(Error::new(Kind::Internal, "not a directory").object(filling.path().display()));
        };
        let directory = self.tree.directory(id)?;
        self.maker.tell_strangers(&filling, |name| Ok(directory.find(name)?.is_some()))?;
        let mut subdirectories = Vec::new();
        let mut last = Name::new();
        for entry in directory.iter() {
            let entry = entry?;
            if entry.name <= last {
                return Err(
                    Error::corrupt("names of a directory are not in order").object(filling.path().display())
                );
            }
            last.clone_from(&entry.name);
            let place = Place { directory: filling.clone(), name: entry.name };
            match entry.inode {
                EntryInode::Own(inode) if matches!(inode.node, Node::Directory(_)) => {
                    subdirectories.push((place.name, inode));
                }
                EntryInode::Own(inode) => self.leaf(inode, place, None)?,
                EntryInode::Link(number) => self.link(number, place)?,
            }
        }
        Ok(Level { filling, subdirectories: subdirectories.into_iter() })
    }

    fn link(&mut self, number: u64, place: Place) -> Result<()> {
        if place.directory.is_lost() {
            self.maker.refuse(&place, Refusal::lost());
            return Ok(());
        }
        if self.links.firsts.contains_key(&number) {
            self.links.others.push(Link { number, place });
            return Ok(());
        }
        let inode = self.tree.link(number)?.inode;
        let first = First::new(&place);
        self.links.firsts.insert(number, first.clone());
        self.leaf(inode, place, Some(first))
    }

    fn leaf(&mut self, inode: Inode, place: Place, first: Option<Arc<First>>) -> Result<()> {
        if place.directory.is_lost() {
            self.maker.refuse(&place, Refusal::lost());
            return Ok(());
        }
        let content = match &inode.node {
            Node::File(content) => Some(self.store.content(content)?),
            _ => None,
        };
        let len_bytes = content.as_ref().map_or(0, |content| content.len_bytes());
        let extents = content.as_ref().map_or(&[][..], |content| content.extents());
        if len_bytes <= 2 * BATCH_LEN || extents.len() <= 1 {
            self.hand_out(Task::Leaf(Box::new(Leaf { place, inode, content, first })), len_bytes);
            return Ok(());
        }
        let extents = extents.to_vec();
        let Some(opened) = self.maker.open(Leaf { place, inode, content, first }, len_bytes)? else {
            return Ok(());
        };
        let mut rest = extents.as_slice();
        while let Some((start, _)) = rest.first() {
            let within = |(at, extent): &&(u64, Extent)| at + extent.len_bytes() <= start + BATCH_LEN;
            let count = rest.iter().take_while(within).count().max(1);
            let (extents, later) = rest.split_at(count);
            let len = extents.iter().map(|(_, extent)| extent.len_bytes()).sum();
            let chunks = extents.iter().filter(|(_, extent)| matches!(extent, Extent::Chunk { .. }));
            let extents = chunks.copied().collect();
            self.hand_out(Task::Piece { opened: opened.clone(), extents }, len);
            rest = later;
        }
        self.maker.close(opened);
        Ok(())
    }

    fn hand_out(&mut self, task: Task, len_bytes: u64) {
        self.batch.push(task);
        self.batch_len += len_bytes;
        if self.batch_len >= BATCH_LEN || self.batch.len() >= BATCH_FILES {
            self.send();
        }
    }

    fn send(&mut self) {
        self.batch_len = 0;
        // Workers go on taking batches, also after a failure.
        let _ = self.tasks.send(std::mem::take(&mut self.batch));
    }
}

impl Links {
    /// Makes the links when all workers have ended. Until then no directory that a link goes into or out of is done.
    pub(super) fn make(self, tree: &Tree, maker: &Maker<'_>) -> Result<()> {
        let Self { mut firsts, others } = self;
        let mut done = Vec::new();
        for Link { number, place } in others {
            maker.check()?;
            let Some(first) = firsts.get(&number) else { continue };
            if let Some(other) = maker.link(first, place, || Ok(tree.link(number)?.inode))? {
                done.extend(firsts.insert(number, other));
            }
        }
        for first in firsts.into_values().chain(done) {
            if let Some(First { place, .. }) = Arc::into_inner(first) {
                maker.release(place.directory);
            }
        }
        Ok(())
    }
}
