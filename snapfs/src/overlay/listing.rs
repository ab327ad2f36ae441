//! Listings of directories, a batch at a time: "." and "..", then all names in order. The cost of a batch follows its
//! length and not the directory's, except for the base's names that are hidden between its lines.

use super::cookies::Place;
use super::{Overlay, directory_of, node_of};
use crate::change::{Name, NodeId};
use crate::errno::{Answer, Errno, from_store};
use crate::node::{DirectoryBody, FileKind};
use crate::state::State;
use std::ops::Bound;
use std::sync::Arc;
use store::{Directory, Entry, EntryInode, Inode, Tree};

/// Entries of the base, and lines, that are processed while the state is locked.
const BATCH_LEN: usize = 128;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The name.
    pub name: Name,
    /// The node's number.
    pub id: NodeId,
    /// Its type.
    pub kind: FileKind,
    /// The cookie with which the listing continues behind this line.
    pub next: u64,
}

/// A line without its cookie.
struct Line {
    name: Name,
    id: NodeId,
    kind: FileKind,
}

/// A piece of a listing.
struct Piece {
    lines: Vec<Line>,
    /// Up to where it goes; `None` at the end.
    until: Option<Name>,
}

impl Overlay {
    /// Opens a directory to list it; returns whether its listing cannot change while it is mounted. Reads nothing.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`.
    pub(crate) fn open_listing(&self, id: NodeId) -> Answer<bool> {
        let is_fixed = {
            let inner = self.lock();
            directory_of(&inner.state, id)?;
            self.read_only && !node_of(&inner.state, id)?.dirty
        };
        self.open_directories.open(id);
        Ok(is_fixed)
    }

    /// Closes a directory that [`Self::open_listing`] opened.
    pub(crate) fn close_listing(&self, id: NodeId) {
        self.open_directories.close(id);
    }

    /// Some lines of the open directory `id` behind `cookie`, which is 0 at the beginning; none at the end.
    ///
    /// # Errors
    /// `EBADF` when it is not open, `EINVAL` for an unknown cookie, `ENOTDIR`, `ESTALE`, `EIO`.
    pub(crate) fn list(&self, id: NodeId, cookie: u64) -> Answer<Vec<Listed>> {
        self.uses.note();
        let mut place = None;
        loop {
            let (lower, base) = {
                let inner = self.lock();
                (directory_of(&inner.state, id)?.lower.clone(), inner.state.base.clone())
            };
            let opened = lower.as_ref().map(|lower| lower.open(&base)).transpose().map_err(from_store)?;
            let opened = opened.as_deref();
            let from = match place.take() {
                Some(place) => place,
                None => self.open_directories.with(id, opened, |cookies| cookies.place(cookie))?,
            };
            if let Place::Begin | Place::Dot = from {
                return self.dots(id, opened, from == Place::Begin);
            }
            let after = match &from {
                Place::After(name) => Some(name.as_slice()),
                _ => None,
            };
            let below =
                opened.map(|opened| below(opened, &base.tree, after)).transpose()?.unwrap_or_default();
            let inner = self.lock();
            if !Arc::ptr_eq(&base, &inner.state.base) {
                // A freeze has replaced the base meanwhile.
                place = Some(from);
                continue;
            }
            let directory = directory_of(&inner.state, id)?;
            let piece = merge(&inner.state, id, directory, after, below);
            drop(inner);
            match piece.until {
                Some(until) if piece.lines.is_empty() => place = Some(Place::After(until)),
                _ => return self.with_cookies(id, opened, piece.lines),
            }
        }
    }

    fn dots(&self, id: NodeId, opened: Option<&Directory>, both: bool) -> Answer<Vec<Listed>> {
        let parent = directory_of(&self.lock().state, id)?.parent;
        let line = |name: &[u8], id| Line { name: name.to_vec(), id, kind: FileKind::Directory };
        let mut lines = vec![line(b"..", parent)];
        if both {
            lines.insert(0, line(b".", id));
        }
        self.with_cookies(id, opened, lines)
    }

    fn with_cookies(&self, id: NodeId, opened: Option<&Directory>, lines: Vec<Line>) -> Answer<Vec<Listed>> {
        self.open_directories.with(id, opened, |cookies| {
            let listed = |Line { name, id, kind }| {
                let place = match name.as_slice() {
                    b"." => Place::Dot,
                    b".." => Place::DotDot,
                    _ => Place::After(name.clone()),
                };
                Ok(Listed { next: cookies.of(&place)?, name, id, kind })
            };
            lines.into_iter().map(listed).collect()
        })
    }
}

/// An entry of the base.
struct Below {
    name: Name,
    kind: FileKind,
    /// The inode number that the base keeps for it.
    number: Option<u64>,
    /// Its number in the link table, if it is there.
    link: Option<u64>,
}

/// Entries of the base after a name.
#[derive(Default)]
struct Belows {
    entries: Vec<Below>,
    /// Whether more follow.
    more: bool,
}

fn below(opened: &Directory, tree: &Tree, after: Option<&[u8]>) -> Answer<Belows> {
    let first = match after {
        Some(name) => {
            let at = opened.position(name).map_err(from_store)?;
            at + usize::from(opened.find(name).map_err(from_store)? == Some(at))
        }
        None => 0,
    };
    let end = opened.len().min(first + BATCH_LEN);
    let entry = |index| Below::new(opened.entry(index).map_err(from_store)?, tree);
    let entries = (first..end).map(entry).collect::<Answer<_>>()?;
    Ok(Belows { entries, more: end < opened.len() })
}

impl Below {
    fn new(entry: Entry, tree: &Tree) -> Answer<Self> {
        let of = |name, inode: &Inode, link| {
            let (kind, number) = (FileKind::of(&inode.node), inode.metadata.identity.number());
            Self { name, kind, number, link }
        };
        match entry.inode {
            EntryInode::Own(inode) => Ok(of(entry.name, &inode, None)),
            EntryInode::Link(number) => {
                let links = tree.links().map_err(from_store)?;
                let linked = links.get(&number).ok_or(Errno::IO)?;
                Ok(of(entry.name, &linked.inode, Some(number)))
            }
        }
    }
}

/// Merges both sides in name order, until there are enough lines, or `below` is used up and more of the base follows. A
/// name on both sides is as its slot says.
fn merge(state: &State, id: NodeId, directory: &DirectoryBody, after: Option<&[u8]>, below: Belows) -> Piece {
    let after = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut slots = directory.slots.range::<[u8], _>((after, Bound::Unbounded)).peekable();
    let mut entries = below.entries.into_iter().peekable();
    let (mut lines, mut until) = (Vec::new(), None);
    while lines.len() < BATCH_LEN {
        let slot_first = match (entries.peek(), slots.peek()) {
            (None, _) if below.more => return Piece { lines, until },
            (None, None) => return Piece { lines, until: None },
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(below), Some((name, _))) => ***name <= *below.name,
        };
        let name = if slot_first {
            let (name, slot) = slots.next().expect("it was just seen");
            entries.next_if(|below| below.name[..] == **name);
            if let Some((id, node)) = slot.node().and_then(|id| Some((id, state.node(id)?))) {
                lines.push(Line { name: name.to_vec(), id, kind: node.kind() });
            }
            name.to_vec()
        } else {
            let Below { name, kind, number, link } = entries.next().expect("it was just seen");
            let id = state.listed_id(id, &name, link, number);
            lines.push(Line { name: name.clone(), id, kind });
            name
        };
        until = Some(name);
    }
    Piece { lines, until }
}
