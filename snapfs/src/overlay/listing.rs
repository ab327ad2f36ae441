//! Listings of directories: what one opendir sees, fixed at its first read, so that offsets stay good while names come
//! and go.

use super::{Overlay, directory_of};
use crate::change::NodeId;
use crate::errno::{Answer, Errno, from_store};
use crate::node::{FileKind, Node, Slot};
use crate::state::State;
use std::collections::HashMap;
use std::iter::Peekable;
use std::sync::Arc;
use store::{Entry, EntryInode, Inode, Tree};

/// Names one open listing.
pub type ListingHandle = u64;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// The node's number.
    pub id: NodeId,
    /// Its type.
    pub kind: FileKind,
}

/// All open listings.
#[derive(Debug, Default)]
pub struct Listings {
    next: ListingHandle,
    open: HashMap<ListingHandle, Option<Arc<Vec<Listed>>>>,
}

impl Overlay {
    /// Opens a listing; nothing is read yet.
    pub fn open_listing(&self) -> ListingHandle {
        let mut listings = self.listings.lock().expect("no thread panics while it has the listings");
        listings.next += 1;
        let handle = listings.next;
        listings.open.insert(handle, None);
        handle
    }

    /// Ends a listing.
    pub fn close_listing(&self, handle: ListingHandle) {
        self.listings.lock().expect("no thread panics while it has the listings").open.remove(&handle);
    }

    /// The lines of a listing of `id`: those it had at the first call, or now where `rewound`.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`, `EIO`.
    pub fn listing(&self, handle: ListingHandle, id: NodeId, rewound: bool) -> Answer<Arc<Vec<Listed>>> {
        let listings = || self.listings.lock().expect("no thread panics while it has the listings");
        if !rewound && let Some(Some(lines)) = listings().open.get(&handle) {
            return Ok(lines.clone());
        }
        let lines = Arc::new(self.list(id)?);
        if let Some(slot) = listings().open.get_mut(&handle) {
            *slot = Some(lines.clone());
        }
        Ok(lines)
    }

    /// What is in directory `id` now: "." and "..", then all names in order.
    ///
    /// # Errors
    /// As [`Self::listing`].
    pub fn list(&self, id: NodeId) -> Answer<Vec<Listed>> {
        loop {
            if let Some(lines) = self.try_list(id)? {
                return Ok(lines);
            }
        }
    }

    /// As [`Self::list`]; `None` when a freeze changed what lies below while it was read.
    fn try_list(&self, id: NodeId) -> Answer<Option<Vec<Listed>>> {
        let (lower, base) = {
            let inner = self.lock();
            (directory_of(&inner.state, id)?.lower.clone(), inner.state.base.clone())
        };
        let mut below = Vec::new();
        if let Some(lower) = &lower {
            for entry in lower.open(&base.tree).map_err(from_store)?.iter() {
                below.push(Below::new(entry.map_err(from_store)?, &base.tree)?);
            }
        }
        let inner = self.lock();
        let state = &inner.state;
        let directory = directory_of(state, id)?;
        if !Arc::ptr_eq(&base, &state.base) {
            return Ok(None);
        }
        let line = |name: &[u8], id| Listed { name: name.to_vec(), id, kind: FileKind::Directory };
        let mut lines = Vec::with_capacity(2 + below.len());
        lines.push(line(b".", id));
        lines.push(line(b"..", directory.parent));
        let path = lower.map(|lower| lower.path.clone()).unwrap_or_default();
        merge(state, &path, &mut lines, below.into_iter().peekable(), directory.slots.iter().peekable());
        Ok(Some(lines))
    }
}

/// An entry of the base and its type.
struct Below {
    entry: Entry,
    kind: FileKind,
}

impl Below {
    fn new(mut entry: Entry, tree: &Tree) -> Answer<Self> {
        let kind = match &mut entry.inode {
            EntryInode::Own(Inode { node, .. }) => FileKind::of(node),
            EntryInode::Link(number) => {
                let links = tree.links().map_err(from_store)?;
                links.get(number).map(|linked| FileKind::of(&linked.inode.node)).ok_or(Errno::IO)?
            }
        };
        Ok(Self { entry, kind })
    }
}

/// Appends both sides in name order; where a name is on both, the slot says what it is.
fn merge<'a>(
    state: &State,
    path: &[u8],
    lines: &mut Vec<Listed>,
    mut below: Peekable<impl Iterator<Item = Below>>,
    mut slots: Peekable<impl Iterator<Item = (&'a Vec<u8>, &'a Slot)>>,
) {
    loop {
        let slot_first = match (below.peek(), slots.peek()) {
            (None, None) => return,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(below), Some((name, _))) => *name <= &below.entry.name,
        };
        if slot_first {
            let (name, slot) = slots.next().expect("it was just seen");
            below.next_if(|below| below.entry.name == *name);
            if let Slot::Known(id) | Slot::Changed(Some(id)) = slot
                && let Some(node) = state.node(*id)
            {
                lines.push(Listed { name: name.clone(), id: *id, kind: kind_of(node) });
            }
        } else {
            let Below { entry, kind } = below.next().expect("it was just seen");
            let id = state.listed_id(&crate::lower::join(path, &entry.name), &entry.inode);
            lines.push(Listed { name: entry.name, id, kind });
        }
    }
}

fn kind_of(node: &Node) -> FileKind {
    node.stat(NodeId::ROOT).kind
}
