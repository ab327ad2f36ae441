//! The durable state of a disk and the state that is only seen, followed change by change.
//!
//! Two records of names are kept, for two kinds of file system. One with a journal keeps the order of all changes of
//! names and lengths: a sync makes all of them durable up to the last change of the synced object. One without keeps no
//! order: a name is durable when its directory was synced since it changed, and each name is on its own.

use super::{Change, Inode, Naming, Node, ROOT};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// Names of one directory.
pub(super) type Names = BTreeMap<Arc<str>, Inode>;

/// A file's bytes: durable, seen, and the ranges where they differ.
#[derive(Clone, Debug, Default)]
pub struct Bytes {
    /// The bytes that a crash cannot take.
    pub safe: Arc<Vec<u8>>,
    /// The bytes that reads return.
    pub live: Arc<Vec<u8>>,
    /// Written since the last sync.
    pub dirty: Vec<Range<usize>>,
    /// Written before a sync that failed: no later sync writes it again.
    pub lost: Vec<Range<usize>>,
}

/// A file or directory that is seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its path.
    pub path: String,
    /// Its number.
    pub inode: Inode,
    /// Whether it survives any crash, whatever order is kept: its bytes, its name, and every name above it.
    pub survives: bool,
}

/// A name's targets since its directory was synced; the first is durable.
pub(super) type Targets = Vec<Option<Inode>>;

/// The state of a disk after some of its changes.
#[derive(Debug)]
pub struct Durable {
    files: HashMap<Inode, Bytes>,
    /// Without order: every name that is durable or seen.
    names: HashMap<Inode, BTreeMap<Arc<str>, Targets>>,
    /// With a journal: the names as of the last commit, and the changes since.
    committed: HashMap<Inode, Names>,
    journal: Vec<Vec<Naming>>,
    /// Changes committed before those in `journal`.
    commits: usize,
    /// Number of the last journaled change of a file or directory, counted from 1.
    touched: HashMap<Inode, usize>,
}

impl Durable {
    /// A disk whose nodes are all durable.
    pub fn new(nodes: &[Node]) -> Self {
        let mut durable = Self {
            files: HashMap::new(),
            names: HashMap::new(),
            committed: HashMap::new(),
            journal: Vec::new(),
            commits: 0,
            touched: HashMap::new(),
        };
        for (inode, node) in nodes.iter().enumerate() {
            match node {
                Node::File(bytes) => {
                    let file = Bytes { safe: bytes.clone(), live: bytes.clone(), ..Bytes::default() };
                    durable.files.insert(inode, file);
                }
                Node::Directory(names) => {
                    let targets = names.iter().map(|(name, inode)| (name.clone(), vec![Some(*inode)]));
                    durable.names.insert(inode, targets.collect());
                    durable.committed.insert(inode, names.clone());
                }
            }
        }
        durable
    }

    /// Follows one change.
    pub fn follow(&mut self, change: &Change) {
        match change {
            Change::DirectoryMade(inode) => {
                self.names.entry(*inode).or_default();
            }
            Change::Written(inode, bytes) => {
                let file = self.files.entry(*inode).or_default();
                let start = file.live.len();
                Arc::make_mut(&mut file.live).extend_from_slice(bytes);
                file.dirty.push(start..file.live.len());
                self.journal(&[*inode], Vec::new());
            }
            Change::Emptied(inode) => {
                let file = self.files.entry(*inode).or_default();
                *file = Bytes { safe: file.safe.clone(), ..Bytes::default() };
                self.journal(&[*inode], Vec::new());
            }
            Change::Named(namings) => self.rename(namings),
            Change::Synced(inode) => {
                self.files.entry(*inode).or_default().sync();
                self.commit(*inode);
            }
            Change::SyncFailed(inode) => {
                let file = self.files.entry(*inode).or_default();
                file.lost.append(&mut file.dirty);
            }
            Change::DirectorySynced(inode) => {
                for targets in self.names.entry(*inode).or_default().values_mut() {
                    targets.drain(..targets.len() - 1);
                }
                self.commit(*inode);
            }
        }
    }

    fn rename(&mut self, namings: &[Naming]) {
        for (directory, name, target) in namings {
            let names = self.names.entry(*directory).or_default();
            names.entry(name.clone()).or_insert_with(|| vec![None]).push(*target);
        }
        let touched: Vec<Inode> = namings
            .iter()
            .flat_map(|(directory, _, target)| target.iter().chain([directory]))
            .copied()
            .collect();
        self.journal(&touched, namings.to_vec());
    }

    fn journal(&mut self, touched: &[Inode], namings: Vec<Naming>) {
        self.journal.push(namings);
        let number = self.commits + self.journal.len();
        self.touched.extend(touched.iter().map(|inode| (*inode, number)));
    }

    /// A sync of `inode` commits everything up to its last change.
    fn commit(&mut self, inode: Inode) {
        let upto = self.touched.get(&inode).copied().unwrap_or(0);
        let count = upto.saturating_sub(self.commits);
        for namings in self.journal.drain(..count) {
            apply(&mut self.committed, &namings);
        }
        self.commits += count;
    }

    /// The bytes of a file.
    pub fn bytes(&self, file: Inode) -> Bytes {
        self.files.get(&file).cloned().unwrap_or_default()
    }

    /// How many journaled changes a crash may take.
    pub fn uncommitted(&self) -> usize {
        self.journal.len()
    }

    /// The names of every directory when the journal reaches `count` changes further than it must.
    pub fn journaled_names(&self, count: usize) -> HashMap<Inode, Names> {
        let mut names = self.committed.clone();
        self.journal[..count].iter().for_each(|namings| apply(&mut names, namings));
        names
    }

    /// The names of every directory where `choose` picks among several possible targets by their number.
    pub fn unordered_names(&self, mut choose: impl FnMut(usize) -> usize) -> HashMap<Inode, Names> {
        let mut all = HashMap::new();
        for (directory, names) in &self.names {
            let chosen = names.iter().filter_map(|(name, targets)| {
                let at = if targets.len() > 1 { choose(targets.len()) } else { 0 };
                Some((name.clone(), targets[at]?))
            });
            all.insert(*directory, chosen.collect());
        }
        all
    }

    /// Whether it is a directory.
    pub fn is_directory(&self, inode: Inode) -> bool {
        self.names.contains_key(&inode)
    }

    /// Everything that is seen.
    pub fn seen(&self) -> Vec<Seen> {
        let mut all = vec![Seen { path: String::new(), inode: ROOT, survives: true }];
        let mut next = 0;
        while let Some(Seen { path, inode, survives }) = all.get(next).cloned() {
            for (name, targets) in self.names.get(&inode).into_iter().flatten() {
                let Some(Some(target)) = targets.last() else { continue };
                let is_durable = self.is_directory(*target) || self.bytes(*target).is_durable();
                all.push(Seen {
                    path: format!("{path}/{name}"),
                    inode: *target,
                    survives: survives && targets.len() == 1 && is_durable,
                });
            }
            next += 1;
        }
        all
    }
}

impl Bytes {
    fn sync(&mut self) {
        self.dirty.clear();
        if self.lost.is_empty() {
            self.safe = self.live.clone();
            return;
        }
        let mut written = self.live.to_vec();
        for range in &self.lost {
            for at in range.start..range.end.min(written.len()) {
                written[at] = self.safe.get(at).copied().unwrap_or(0);
            }
        }
        self.safe = Arc::new(written);
    }

    /// Whether a crash leaves exactly the seen state.
    pub fn is_durable(&self) -> bool {
        self.dirty.is_empty() && self.lost.is_empty() && self.safe == self.live
    }
}

fn apply(all: &mut HashMap<Inode, Names>, namings: &[Naming]) {
    for (directory, name, target) in namings {
        let names = all.entry(*directory).or_default();
        match target {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}
