//! The walk of one snapshot: its directories, the chunks of each, and, once these are looked up, the packs that each
//! needs with all below it. Without recursion: a tree may be deeper than the stack.
//!
//! Chunks wait with their directory until there are [`MAX_WAITING`]. Then all are looked up in the order of their ids,
//! and the needs of completed directories are added up, in the order of completion: a directory completes after all
//! below it. So memory is bounded for any tree.

use crate::bounded_cache::{BoundedCache, Needs};
use crate::pack_selection::{Found, PackSelection};
use std::collections::HashMap;
use store::{ChunkId, DirectoryId, Error, Kind, Result, Snapshot, Store, Tree, Visitor};

/// Maximum of waiting chunks and directories, about: 100 MiB.
const MAX_WAITING: usize = 2 << 20;
/// Weight of a directory, in chunks.
const DIRECTORY_WEIGHT: usize = 8;
/// Weight of one met again before its needs are known, which may be many.
const SHARED_WEIGHT: usize = 512;

/// Needs of directories, with all below them.
pub(crate) type Directories = BoundedCache<DirectoryId, Needs>;

/// A directory, or the snapshot itself.
struct Node {
    /// `None` for the snapshot.
    id: Option<DirectoryId>,
    /// Numbers of the directories that have this one.
    parents: Vec<u32>,
    found: Found,
    /// Subdirectories not walked yet.
    children: Vec<DirectoryId>,
}

/// A walk under way.
pub(crate) struct Walk<'m, 'a> {
    packs: &'m mut PackSelection<'a>,
    directories: &'m mut Directories,
    nodes: Vec<Node>,
    /// Numbers of the nodes with unfinished subdirectories, each in the one before it; the snapshot first.
    open: Vec<u32>,
    /// Numbers of finished nodes, in the order of completion.
    done: Vec<u32>,
    numbers: HashMap<DirectoryId, u32>,
    waiting: Vec<(ChunkId, u32)>,
    /// Packs of directories met again, added since the last look-up or about to be.
    remembered: usize,
}

impl<'m, 'a> Walk<'m, 'a> {
    /// Nothing walked yet.
    pub(crate) fn new(packs: &'m mut PackSelection<'a>, directories: &'m mut Directories) -> Self {
        let snapshot = Node { id: None, parents: Vec::new(), found: Found::default(), children: Vec::new() };
        let (done, numbers, waiting) = Default::default();
        Self {
            packs,
            directories,
            nodes: vec![snapshot],
            open: vec![0],
            done,
            numbers,
            waiting,
            remembered: 0,
        }
    }

    /// The packs that a snapshot needs.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when anything it needs is missing or unreadable and not known to be lost.
    pub(crate) fn run(mut self, store: &Store, snapshot: &Snapshot) -> Result<Found> {
        if let Some(image) = &snapshot.image {
            self.gather(|visitor| store::chunks_of_image(store, image, visitor))?;
        }
        if let Some(tree) = &snapshot.tree
            && let Some((tree, root)) = self.gather(|visitor| store::chunks_of_tree(store, tree, visitor))?
        {
            self.nodes[0].children.extend(root);
            self.directories(&tree)?;
        }
        self.settle()?;
        Ok(self.nodes.swap_remove(0).found)
    }

    /// The number of the current node.
    fn last(&self) -> u32 {
        *self.open.last().expect("the snapshot stays open")
    }

    fn directories(&mut self, tree: &Tree) -> Result<()> {
        loop {
            let last = self.last();
            match self.nodes[last as usize].children.pop() {
                Some(id) => self.enter(tree, id)?,
                None if last == 0 => return Ok(()),
                None => {
                    self.open.pop();
                    self.done.push(last);
                }
            }
            if self.waiting.len() + self.remembered + self.done.len() * DIRECTORY_WEIGHT >= MAX_WAITING {
                self.settle()?;
            }
        }
    }

    /// Enters a directory below the current one, unless it was met before.
    fn enter(&mut self, tree: &Tree, id: DirectoryId) -> Result<()> {
        let parent = self.last();
        if let Some(needs) = self.directories.get(&id) {
            self.remembered += needs.packs.len();
            self.nodes[parent as usize].found.add(&needs);
            return Ok(());
        }
        if let Some(number) = self.numbers.get(&id) {
            self.remembered += SHARED_WEIGHT;
            self.nodes[*number as usize].parents.push(parent);
            return Ok(());
        }
        let number = self.nodes.len() as u32;
        let parents = vec![parent];
        self.nodes.push(Node { id: Some(id), parents, found: Found::default(), children: Vec::new() });
        self.numbers.insert(id, number);
        self.open.push(number);
        let children = self.gather(|visitor| store::chunks_of_directory(tree, &id, visitor))?;
        self.nodes[number as usize].children = children;
        Ok(())
    }

    /// Notes the chunks that a step of the walk visits for the current node.
    fn gather<T>(&mut self, step: impl FnOnce(&mut dyn Visitor) -> Result<T>) -> Result<T> {
        let number = self.last();
        let mut gather = Gather { packs: self.packs, waiting: &mut self.waiting, number, is_lossy: false };
        let walked = step(&mut gather)?;
        self.nodes[number as usize].found.is_lossy |= gather.is_lossy;
        Ok(walked)
    }

    /// Looks up the waiting chunks, adds up the finished nodes, and forgets them.
    fn settle(&mut self) -> Result<()> {
        let Self { packs, nodes, waiting, .. } = self;
        let mut outcome = Ok(());
        packs.index().in_order(waiting, |(chunk, number)| {
            if outcome.is_ok() {
                outcome = packs.find(&chunk, &mut nodes[number as usize].found);
            }
        });
        outcome?;
        for number in self.done.drain(..) {
            let Node { id, parents, found, .. } = &mut self.nodes[number as usize];
            let (needs, parents) = (std::mem::take(found).needs(), std::mem::take(parents));
            if let Some(id) = id {
                self.directories.insert(*id, needs.clone(), needs.cost_bytes());
            }
            parents.iter().for_each(|parent| self.nodes[*parent as usize].found.add(&needs));
        }
        self.remembered = 0;
        self.forget();
        Ok(())
    }

    /// Keeps the open nodes only, with new numbers.
    fn forget(&mut self) {
        let mut number = 0;
        let open = &self.open;
        self.nodes.retain(|_| {
            number += 1;
            open.binary_search(&(number - 1)).is_ok()
        });
        self.open = (0..self.nodes.len() as u32).collect();
        self.numbers.clear();
        for (number, node) in (0..).zip(&mut self.nodes) {
            node.parents = Vec::from_iter(u32::checked_sub(number, 1));
            self.numbers.extend(node.id.map(|id| (id, number)));
        }
    }
}

/// Notes chunks, and whether a record was skipped.
struct Gather<'w, 'a> {
    packs: &'w PackSelection<'a>,
    waiting: &'w mut Vec<(ChunkId, u32)>,
    number: u32,
    is_lossy: bool,
}

impl Visitor for Gather<'_, '_> {
    fn chunk(&mut self, id: &ChunkId) {
        self.waiting.push((*id, self.number));
    }

    fn unreadable(&mut self, record: &[ChunkId], error: Error) -> Result<()> {
        let is_damage = matches!(error.kind(), Kind::Corrupt | Kind::NotFound);
        match is_damage && record.iter().any(|id| self.packs.is_known_to_be_lost(id)) {
            true => {
                tracing::warn!(%error, "a record that is known to be lost is passed over");
                self.is_lossy = true;
                Ok(())
            }
            false => Err(error),
        }
    }
}
