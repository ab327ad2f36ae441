//! The plan of a restore: walks the tree, makes directories, and hands out what is in them in the order in which a backup
//! packed it: a directory's own files before its subdirectories.

use super::make::{Link, Maker, cannot};
use super::{BATCH_FILES, BATCH_LEN, Filling, Task};
use crate::error::{Error, Kind, Result};
use crate::repo::Store;
use crate::tree::{EntryInode, Extent, Inode, Node, Tree};
use crossbeam_channel::Sender;
use rustix::fs::Mode;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory whose subdirectories are still to be made.
struct Level {
    filling: Arc<Filling>,
    subdirectories: std::vec::IntoIter<(Vec<u8>, Inode)>,
}

/// A plan under way.
pub struct Plan<'a> {
    store: &'a Store,
    tree: &'a Tree,
    maker: &'a Maker<'a>,
    tasks: Sender<Vec<Task>>,
    batch: Vec<Task>,
    batch_len: u64,
    /// Where the first name of each hard-linked inode went.
    linked: HashMap<u64, PathBuf>,
    links: Vec<Link>,
}

impl<'a> Plan<'a> {
    pub fn new(store: &'a Store, tree: &'a Tree, maker: &'a Maker<'a>, tasks: Sender<Vec<Task>>) -> Self {
        let (batch, linked, links) = (Vec::new(), HashMap::new(), Vec::new());
        Self { store, tree, maker, tasks, batch, batch_len: 0, linked, links }
    }

    /// Hands out everything; gives the links that are to be made when all files are there.
    pub fn run(mut self, inode: &Inode, target: &Path) -> Result<Vec<Link>> {
        match &inode.node {
            Node::Directory(_) => self.root(inode, target)?,
            _ => self.leaf(inode.clone(), target.to_owned(), None)?,
        }
        self.send();
        Ok(self.links)
    }

    fn root(&mut self, inode: &Inode, target: &Path) -> Result<()> {
        let in_use = fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some());
        if in_use {
            return Err(Error::new(Kind::Conflict, "target is not empty")
                .object(target.display())
                .advice("restore into a new or empty directory"));
        }
        if !target.is_dir() {
            fs::create_dir_all(target)
                .map_err(|error| Error::io("cannot create directory", target.display(), error))?;
        }
        let mut levels: Vec<Level> = vec![self.enter(inode, target.to_owned(), None)?];
        // Without recursion: a tree may be deeper than the stack.
        while let Some(level) = levels.last_mut() {
            self.maker.check()?;
            match level.subdirectories.next() {
                Some((name, inode)) => {
                    let path = level.filling.path.join(OsStr::from_bytes(&name));
                    rustix::fs::mkdir(&path, Mode::RWXU).map_err(cannot("create directory", &path))?;
                    let parent = level.filling.clone();
                    let below = self.enter(&inode, path, Some(parent))?;
                    levels.push(below);
                }
                None => {
                    if let Some(done) = levels.pop() {
                        self.maker.release(Some(done.filling))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands out the files of a directory that is made already.
    fn enter(&mut self, inode: &Inode, path: PathBuf, parent: Option<Arc<Filling>>) -> Result<Level> {
        let Node::Directory(id) = &inode.node else {
            return Err(Error::new(Kind::Internal, "not a directory").object(path.display()));
        };
        self.maker.count(|report| report.directories += 1);
        let directory = self.tree.directory(id)?;
        let filling = Arc::new(Filling { path, metadata: inode.metadata.clone(), parent });
        let mut subdirectories = Vec::new();
        for entry in directory.iter() {
            let entry = entry?;
            let path = filling.path.join(OsStr::from_bytes(&entry.name));
            match entry.inode {
                EntryInode::Own(inode) if matches!(inode.node, Node::Directory(_)) => {
                    subdirectories.push((entry.name, inode));
                }
                EntryInode::Own(inode) => self.leaf(inode, path, Some(filling.clone()))?,
                EntryInode::Link(number) => self.link(number, path, &filling)?,
            }
        }
        Ok(Level { filling, subdirectories: subdirectories.into_iter() })
    }

    fn link(&mut self, number: u64, path: PathBuf, filling: &Arc<Filling>) -> Result<()> {
        if let Some(first) = self.linked.get(&number) {
            self.links.push(Link { first: first.clone(), path, directory: filling.clone() });
            return Ok(());
        }
        let inode = self.tree.link(number)?.inode;
        self.linked.insert(number, path.clone());
        self.leaf(inode, path, Some(filling.clone()))
    }

    fn leaf(&mut self, inode: Inode, path: PathBuf, directory: Option<Arc<Filling>>) -> Result<()> {
        let content = match &inode.node {
            Node::File(content) => Some(self.store.content(content)?),
            _ => None,
        };
        let len_bytes = content.as_ref().map_or(0, |content| content.len_bytes());
        match content {
            Some(content) if len_bytes > 2 * BATCH_LEN && content.extents().len() > 1 => {
                let opened = self.maker.open(path, &inode.metadata, len_bytes, directory)?;
                let opened = Arc::new(opened);
                let mut rest = content.extents();
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
                self.maker.close(opened)
            }
            content => {
                self.hand_out(Task::Leaf { path, inode, content, directory }, len_bytes);
                Ok(())
            }
        }
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
