//! The state of a simulated disk after a crash: one of the many that its changes allow, picked by rules and luck.

use super::durable::{Bytes, Durable, Names};
use super::{Change, Inode, Node, ROOT, SimDisk};
use crate::model::Random;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Sectors and pages: the units that a disk, or a kernel, writes atomically.
const UNITS: [usize; 2] = [512, 4096];

/// A file system's promise about the order of unsynced changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rules {
    /// Only the processes die; the kernel keeps its state, and a later crash may take unsynced changes.
    Kill,
    /// A journal: names and lengths change in order.
    Journal,
    /// Nothing: each name is on its own until its directory is synced.
    Unordered,
}

/// Which of the allowed disks it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Luck {
    /// Unsynced changes are lost.
    Nothing,
    /// This seed picks, also where writes are torn.
    Seed(u64),
}

/// Follows a disk's changes and makes the disk that a crash leaves after any of them.
#[derive(Debug)]
pub struct Survey {
    base: Vec<Node>,
    changes: Vec<Change>,
    durable: Durable,
    /// The names that are seen.
    seen: HashMap<Inode, Names>,
    followed: usize,
}

impl Survey {
    /// The changes of a disk so far, none of them followed yet.
    pub fn of(disk: &SimDisk) -> Self {
        let (base, changes) = disk.history();
        let names = base.iter().enumerate().filter_map(|(inode, node)| match node {
            Node::Directory(names) => Some((inode, names.clone())),
            Node::File(_) => None,
        });
        let (durable, seen) = (Durable::new(&base), names.collect());
        Self { base, changes, durable, seen, followed: 0 }
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The next change to be followed.
    pub fn next(&self) -> Option<&Change> {
        self.changes.get(self.followed)
    }

    /// The durable state after the changes followed so far.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Follows changes up to, without it, the one of this number.
    pub fn advance(&mut self, upto: usize) {
        for change in &self.changes[self.followed..upto] {
            self.durable.follow(change);
            if let Change::Named(namings) = change {
                for (directory, name, target) in namings {
                    let names = self.seen.entry(*directory).or_default();
                    match target {
                        Some(inode) => names.insert(name.clone(), *inode),
                        None => names.remove(name),
                    };
                }
            }
        }
        self.followed = upto;
    }

    /// The disk as it is when every process is killed now.
    fn kill(&self) -> SimDisk {
        let changes = self.changes[..self.followed].to_vec();
        let made = changes.iter().map(|change| match change {
            Change::DirectoryMade(inode) | Change::Written(inode, _) | Change::Synced(inode) => *inode,
            Change::Named(namings) => namings.iter().filter_map(|naming| naming.2).max().unwrap_or(0),
            _ => 0,
        });
        let count = made.chain([self.base.len() - 1]).max().unwrap_or(0) + 1;
        let node = |inode: Inode| match self.durable.is_directory(inode) {
            true => Node::Directory(self.seen.get(&inode).cloned().unwrap_or_default()),
            false => Node::File(self.durable.bytes(inode).live),
        };
        SimDisk::changed(self.base.clone(), changes, (0..count).map(node).collect())
    }

    /// A disk that a crash may leave now.
    pub fn crash(&self, rules: Rules, luck: Luck) -> SimDisk {
        if rules == Rules::Kill {
            return self.kill();
        }
        let mut dice = match luck {
            Luck::Nothing => None,
            Luck::Seed(seed) => Some(Random::new(seed)),
        };
        let names = match (rules, &mut dice) {
            (Rules::Journal, None) => self.durable.journaled_names(0),
            (Rules::Journal, Some(dice)) => {
                self.durable.journaled_names(dice.below(self.durable.uncommitted() + 1))
            }
            (_, None) => self.durable.unordered_names(|_| 0),
            (_, Some(dice)) => self.durable.unordered_names(|count| dice.below(count)),
        };
        let mut left = Left { names, durable: &self.durable, dice, nodes: Vec::new() };
        left.copy_directory(ROOT);
        SimDisk::holding(left.nodes)
    }
}

/// A disk in the making, of the objects that names reach.
struct Left<'a> {
    names: HashMap<Inode, Names>,
    durable: &'a Durable,
    dice: Option<Random>,
    nodes: Vec<Node>,
}

impl Left<'_> {
    fn copy_directory(&mut self, directory: Inode) -> Inode {
        let copy = self.nodes.len();
        self.nodes.push(Node::Directory(BTreeMap::new()));
        let mut names = BTreeMap::new();
        for (name, inode) in self.names.get(&directory).cloned().unwrap_or_default() {
            let target = match self.durable.is_directory(inode) {
                true => self.copy_directory(inode),
                false => self.copy_file(inode),
            };
            names.insert(name, target);
        }
        self.nodes[copy] = Node::Directory(names);
        copy
    }

    fn copy_file(&mut self, file: Inode) -> Inode {
        let bytes = self.durable.bytes(file);
        let left = match &mut self.dice {
            Some(dice) if !bytes.is_durable() => Arc::new(torn(&bytes, dice)),
            _ => bytes.safe,
        };
        self.nodes.push(Node::File(left));
        self.nodes.len() - 1
    }
}

/// Each unsynced unit is there or is not, and the file may end anywhere between its old and its new end.
fn torn(bytes: &Bytes, dice: &mut Random) -> Vec<u8> {
    let unit = UNITS[dice.below(UNITS.len())];
    let (old, new) = (bytes.safe.len(), bytes.live.len());
    let len = match dice.below(4) {
        0 => old,
        1 => (old.min(new) + dice.below(old.abs_diff(new) + 1)).next_multiple_of(unit).min(old.max(new)),
        _ => new,
    };
    let mut left = bytes.safe.to_vec();
    left.resize(len, 0);
    for range in bytes.dirty.iter().chain(&bytes.lost) {
        for start in (range.start - range.start % unit..range.end).step_by(unit) {
            let written = start.max(range.start)..(start + unit).min(range.end).min(len);
            if dice.once_in(2) && written.start < written.end && written.end <= new {
                left[written.clone()].copy_from_slice(&bytes.live[written]);
            }
        }
    }
    left
}
