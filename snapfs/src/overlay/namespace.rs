//! Names: lookup, making, linking, removing and renaming. The kernel checks permissions; the checks here are those that
//! the shape of the tree demands.

use super::{Inner, Overlay, directory_of, node_of, stat_of};
use crate::caller::Caller;
use crate::change::{Attributes, Change, NewBody, NodeId};
use crate::errno::{Answer, Errno, from_store};
use crate::node::{Origin, Stat};
use crate::state::State;
use rustix::fs::RenameFlags;
use store::{Time, clock};

/// Longest name in bytes.
const NAME_MAX: usize = 255;
const SET_GROUP: u32 = 0o2000;

/// The effect of a rename on an existing target name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RenameMode {
    /// The old node loses the name.
    Replace,
    /// The rename is refused.
    NoReplace,
    /// Both nodes change places.
    Exchange,
}

impl RenameMode {
    /// The effect that the flags of renameat2(2), without `RENAME_WHITEOUT`, ask for; `None` when it is not supported.
    pub(crate) fn of_flags(flags: u32) -> Option<Self> {
        match RenameFlags::from_bits_retain(flags) {
            flags if flags.is_empty() => Some(Self::Replace),
            RenameFlags::NOREPLACE => Some(Self::NoReplace),
            RenameFlags::EXCHANGE => Some(Self::Exchange),
            _ => None,
        }
    }
}

/// Both sides of a rename.
struct Rename<'a> {
    from: (NodeId, &'a [u8]),
    to: (NodeId, &'a [u8]),
    source: NodeId,
    target: Option<NodeId>,
    /// The node that takes the old name.
    whiteout: Option<Change>,
}

impl Overlay {
    /// The node that `name` in `parent` stands for, which the kernel holds from now on; `None` when there is none.
    ///
    /// # Errors
    /// `ENAMETOOLONG`, `ENOTDIR`, `ESTALE`, `EIO`.
    pub(crate) fn lookup(&self, parent: NodeId, name: &[u8]) -> Answer<Option<Stat>> {
        check_name(name)?;
        let _opened = self.warm(parent, name)?;
        let mut inner = self.lock();
        let Some(id) = resolve(&mut inner, parent, name)? else { return Ok(None) };
        hold(&mut inner.state, id).map(Some)
    }

    /// Notes that the kernel forgot `lookups` of its lookups of `id`.
    pub(crate) fn forget(&self, id: NodeId, lookups: u64) {
        self.uses.note();
        let mut inner = self.lock();
        let orphan = inner.state.forget(id, lookups);
        self.discard(orphan);
    }

    /// Makes a node. The kernel holds it from now on.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` in a removed directory, `ENAMETOOLONG`, `ENOSPC`, `EROFS`, `EIO`.
    pub(crate) fn make(
        &self,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        caller: Caller,
        body: NewBody,
    ) -> Answer<Stat> {
        check_name(name)?;
        let _changing = self.begin_change()?;
        let _opened = self.warm(parent, name)?;
        let mut inner = self.lock();
        let above = node_of(&inner.state, parent)?;
        if above.is_orphan() {
            return Err(Errno::NOENT);
        }
        let (mode, xattrs) = super::attributes::begin_with(above, mode, caller.umask, &body);
        let above = above.attributes;
        if resolve(&mut inner, parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let is_directory = body == NewBody::Directory;
        let inherits = above.mode & SET_GROUP != 0;
        let mode = mode & 0o7777 | if inherits && is_directory { SET_GROUP } else { 0 };
        let gid = if inherits { above.gid } else { caller.gid };
        let attributes = new_attributes(mode, caller.uid, gid);
        let now = attributes.ctime;
        let id = inner.state.new_id();
        let mut changes = Vec::new();
        inner.state.adopt(parent, &mut changes);
        changes.push(Change::Create { node: id, body, attributes });
        if !xattrs.is_empty() {
            changes.push(Change::Xattrs { node: id, xattrs });
        }
        changes.push(Change::Entry { parent, name: name.to_vec(), node: Some(id) });
        changes.push(directory_changed(&inner.state, parent, now)?);
        self.commit(&mut inner, changes)?;
        hold(&mut inner.state, id)
    }

    /// Adds a name to `id`. The kernel has one more lookup of it.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM` for a directory, `ENOENT` when it has no name left, and as [`Self::make`].
    pub(crate) fn link(&self, id: NodeId, parent: NodeId, name: &[u8]) -> Answer<Stat> {
        check_name(name)?;
        let _changing = self.begin_change()?;
        let _opened = self.warm(parent, name)?;
        let mut inner = self.lock();
        let node = node_of(&inner.state, id)?;
        if node.directory().is_some() {
            return Err(Errno::PERM);
        }
        if node.is_orphan() || node_of(&inner.state, parent)?.is_orphan() {
            return Err(Errno::NOENT);
        }
        if resolve(&mut inner, parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let now = clock::now();
        let mut changes = Vec::new();
        inner.state.adopt(id, &mut changes);
        inner.state.adopt(parent, &mut changes);
        changes.push(Change::Entry { parent, name: name.to_vec(), node: Some(id) });
        let mut attributes = node_of(&inner.state, id)?.attributes;
        attributes.nlink = attributes.nlink.checked_add(1).ok_or(Errno::MLINK)?;
        attributes.ctime = now;
        changes.push(Change::Attributes { node: id, attributes });
        changes.push(directory_changed(&inner.state, parent, now)?);
        self.commit(&mut inner, changes)?;
        hold(&mut inner.state, id)
    }

    /// Removes a name of a node that is no directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, and as [`Self::make`].
    pub(crate) fn unlink(&self, parent: NodeId, name: &[u8]) -> Answer<()> {
        self.remove(parent, name, |state, id| match node_of(state, id)?.directory() {
            Some(_) => Err(Errno::ISDIR),
            None => Ok(()),
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, and as [`Self::make`].
    pub(crate) fn rmdir(&self, parent: NodeId, name: &[u8]) -> Answer<()> {
        self.remove(parent, name, check_empty)
    }

    fn remove(
        &self,
        parent: NodeId,
        name: &[u8],
        check: impl Fn(&State, NodeId) -> Answer<()>,
    ) -> Answer<()> {
        check_name(name)?;
        let _changing = self.begin_change()?;
        let _opened = self.warm(parent, name)?;
        let mut inner = self.lock();
        let id = resolve(&mut inner, parent, name)?.ok_or(Errno::NOENT)?;
        check(&inner.state, id)?;
        let now = clock::now();
        let mut changes = Vec::new();
        inner.state.adopt(parent, &mut changes);
        inner.state.adopt(id, &mut changes);
        changes.push(Change::Entry { parent, name: name.to_vec(), node: None });
        push_unlinked(&inner.state, id, now, &mut changes)?;
        changes.push(directory_changed(&inner.state, parent, now)?);
        self.commit_making_room(&mut inner, changes)?;
        let orphan = inner.state.release(id);
        self.discard(orphan);
        Ok(())
    }

    /// Moves a name. With a `whiteout`, a character device 0:0 takes the old name, owned by that caller: it tells an
    /// overlayfs that the name is gone.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `ENOTEMPTY`, `EISDIR`, `ENOTDIR`, and as [`Self::make`].
    pub(crate) fn rename(
        &self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        mode: RenameMode,
        whiteout: Option<Caller>,
    ) -> Answer<()> {
        check_name(from.1)?;
        check_name(to.1)?;
        let _changing = self.begin_change()?;
        self.warm(from.0, from.1)?;
        self.warm(to.0, to.1)?;
        let mut inner = self.lock();
        let source = resolve(&mut inner, from.0, from.1)?.ok_or(Errno::NOENT)?;
        let target = resolve(&mut inner, to.0, to.1)?;
        if node_of(&inner.state, to.0)?.is_orphan() {
            return Err(Errno::NOENT);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            _ if target == Some(source) => return Ok(()),
            _ => {}
        }
        let whiteout = whiteout.map(|maker| Change::Create {
            node: inner.state.new_id(),
            body: NewBody::CharDevice(0),
            attributes: new_attributes(0, maker.uid, maker.gid),
        });
        let rename = Rename { from, to, source, target, whiteout };
        let changes = match mode {
            RenameMode::Exchange => rename.exchange(&inner.state)?,
            RenameMode::Replace | RenameMode::NoReplace => rename.replace(&inner.state)?,
        };
        match target.is_some() && mode == RenameMode::Replace {
            true => self.commit_making_room(&mut inner, changes)?,
            false => self.commit(&mut inner, changes)?,
        }
        let orphan = target.and_then(|target| inner.state.release(target));
        self.discard(orphan);
        Ok(())
    }

    /// Removes the data file of a node that is gone. The caller still has the state locked, so no other node can have
    /// its number.
    fn discard(&self, orphan: Option<NodeId>) {
        if let Some(node) = orphan {
            self.forget_reader(node);
            self.upper.remove_data_file(node);
        }
    }
}

impl Rename<'_> {
    fn replace(&self, state: &State) -> Answer<Vec<Change>> {
        let now = clock::now();
        let mut changes = self.adopted(state);
        if let Some(target) = self.target {
            match (node_of(state, self.source)?.directory(), node_of(state, target)?.directory()) {
                (Some(_), None) => return Err(Errno::NOTDIR),
                (None, Some(_)) => return Err(Errno::ISDIR),
                (Some(_), Some(_)) => check_empty(state, target)?,
                (None, None) => {}
            }
            push_unlinked(state, target, now, &mut changes)?;
        }
        changes.extend(self.whiteout.clone());
        changes.push(entry(self.from, self.whiteout.as_ref().and_then(Change::node)));
        changes.push(entry(self.to, Some(self.source)));
        self.push_times(state, now, &mut changes)?;
        Ok(changes)
    }

    fn exchange(&self, state: &State) -> Answer<Vec<Change>> {
        let now = clock::now();
        let mut changes = self.adopted(state);
        changes.push(entry(self.from, self.target));
        changes.push(entry(self.to, Some(self.source)));
        if let Some(target) = self.target {
            changes.push(status_changed(state, target, now)?);
        }
        self.push_times(state, now, &mut changes)?;
        Ok(changes)
    }

    fn adopted(&self, state: &State) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in [Some(self.from.0), Some(self.to.0), Some(self.source), self.target].into_iter().flatten() {
            state.adopt(id, &mut changes);
        }
        changes
    }

    fn push_times(&self, state: &State, now: Time, changes: &mut Vec<Change>) -> Answer<()> {
        changes.push(status_changed(state, self.source, now)?);
        changes.push(directory_changed(state, self.from.0, now)?);
        if self.to.0 != self.from.0 {
            changes.push(directory_changed(state, self.to.0, now)?);
        }
        Ok(())
    }
}

fn new_attributes(mode: u32, uid: u32, gid: u32) -> Attributes {
    let now = clock::now();
    Attributes { mode, uid, gid, nlink: 1, atime: now, mtime: now, ctime: now }
}

fn entry((parent, name): (NodeId, &[u8]), node: Option<NodeId>) -> Change {
    Change::Entry { parent, name: name.to_vec(), node }
}

fn check_name(name: &[u8]) -> Answer<()> {
    match name {
        [] | b"." | b".." => Err(Errno::INVAL),
        name if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ => Ok(()),
    }
}

fn resolve(inner: &mut Inner, parent: NodeId, name: &[u8]) -> Answer<Option<NodeId>> {
    directory_of(&inner.state, parent)?;
    inner.state.resolve(parent, name).map_err(from_store)
}

/// Notes one more lookup of `id` by the kernel.
fn hold(state: &mut State, id: NodeId) -> Answer<Stat> {
    state.node_mut(id).ok_or(Errno::STALE)?.lookups += 1;
    stat_of(state, id)
}

/// Removes one name of `id`.
fn push_unlinked(state: &State, id: NodeId, now: Time, changes: &mut Vec<Change>) -> Answer<()> {
    let node = node_of(state, id)?;
    let nlink = node.attributes.nlink.saturating_sub(1);
    if let (0, Origin::Link(number)) = (nlink, &node.origin) {
        changes.push(Change::DeadLink { number: *number });
    }
    changes.push(Change::Attributes {
        node: id,
        attributes: Attributes { nlink, ctime: now, ..node.attributes },
    });
    Ok(())
}

fn status_changed(state: &State, id: NodeId, now: Time) -> Answer<Change> {
    let attributes = Attributes { ctime: now, ..node_of(state, id)?.attributes };
    Ok(Change::Attributes { node: id, attributes })
}

fn directory_changed(state: &State, id: NodeId, now: Time) -> Answer<Change> {
    let attributes = Attributes { mtime: now, ctime: now, ..node_of(state, id)?.attributes };
    Ok(Change::Attributes { node: id, attributes })
}

/// Refuses a node that is no empty directory.
fn check_empty(state: &State, id: NodeId) -> Answer<()> {
    let directory = node_of(state, id)?.directory().ok_or(Errno::NOTDIR)?;
    if directory.slots.named() > 0 {
        return Err(Errno::NOTEMPTY);
    }
    let Some(lower) = &directory.lower else { return Ok(()) };
    // One directory node of the base may be read here under the lock: only the removal of a directory costs that.
    let below = lower.open(&state.base).map_err(from_store)?;
    // Every slot here hides a name of the base, so equal numbers mean that all are hidden.
    match below.len() == directory.slots.len() {
        true => Ok(()),
        false => Err(Errno::NOTEMPTY),
    }
}
