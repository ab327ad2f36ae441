//! Attributes and extended attributes.

use super::{Overlay, file_of, node_of, stat_of};
use crate::acl::{self, Acl};
use crate::caller::Caller;
use crate::change::{Attributes, Change, NewBody, NodeId};
use crate::errno::{Answer, Errno};
use crate::node::{Body, Node, Stat};
use rustix::fs::XattrFlags;
use store::{Time, clock};

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;
/// File capabilities, which a change of the file removes, as it does set-user-id.
const CAPABILITY: &[u8] = b"security.capability";
/// SELinux labels, which the kernel asks for only if it has none of its own.
const SELINUX: &[u8] = b"security.selinux";

/// Extended attributes, sorted by name.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SetTime {
    /// The time of the operation.
    Now,
    /// This time.
    At(Time),
}

/// The attributes to set; the others stay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a file in bytes.
    pub len_bytes: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
}

impl Overlay {
    /// The attributes that `stat` shows.
    ///
    /// # Errors
    /// `ESTALE`.
    pub(crate) fn stat(&self, id: NodeId) -> Answer<Stat> {
        stat_of(&self.lock().state, id)
    }

    /// Sets attributes. With none to set, removes set-id bits: the kernel asks for that before a call by a caller that
    /// may not keep them.
    ///
    /// # Errors
    /// `ESTALE`, `EISDIR` and `EINVAL` for the length of a node that is no file, `ENOSPC`, `EROFS`, `EIO`.
    pub(crate) fn set_attributes(&self, id: NodeId, set: SetAttributes, caller: &Caller) -> Answer<Stat> {
        let _changing = self.begin_change()?;
        let _file = self.own_file(id);
        let mut inner = self.lock();
        let now = clock::now();
        let mut changes = Vec::new();
        inner.state.adopt(id, &mut changes);
        if let Some(len_bytes) = set.len_bytes {
            file_of(&inner.state, id)?;
            if len_bytes > i64::MAX as u64 {
                return Err(Errno::FBIG);
            }
            changes.push(Change::Truncate { node: id, len_bytes });
        }
        let node = node_of(&inner.state, id)?;
        if let Some(xattrs) = set.mode.and_then(|mode| acl_changed(node, mode)) {
            changes.push(Change::Xattrs { node: id, xattrs });
        } else if set.uid.is_some() || set.gid.is_some() {
            push_capability_dropped(id, node, &mut changes);
        }
        let attributes = set.over(node, now, caller);
        let is_cut = set
            .len_bytes
            .is_some_and(|len_bytes| len_bytes < node.file().map_or(0, |file| file.layout.len_bytes()));
        changes.push(Change::Attributes { node: id, attributes });
        match is_cut {
            true => self.commit_making_room(&mut inner, changes)?,
            false => self.commit(&mut inner, changes)?,
        }
        let stat = stat_of(&inner.state, id)?;
        drop(inner);
        if let Some(len_bytes) = set.len_bytes {
            self.cut_data_file(id, len_bytes)?;
        }
        Ok(stat)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` when the node is no symbolic link, `ESTALE`.
    pub(crate) fn readlink(&self, id: NodeId) -> Answer<Vec<u8>> {
        match &node_of(&self.lock().state, id)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    /// The value of an extended attribute. For an SELinux label that a file does not have the error says that it cannot
    /// have one: otherwise ls(1) asks for the label of each file of a directory each time.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP`, `ESTALE`.
    pub(crate) fn xattr(&self, id: NodeId, name: &[u8]) -> Answer<Vec<u8>> {
        let inner = self.lock();
        let node = node_of(&inner.state, id)?;
        let absent = if name == SELINUX { Errno::OPNOTSUPP } else { Errno::NODATA };
        let index = find_xattr(node, name).map_err(|_| absent)?;
        Ok(node.xattrs[index].1.clone())
    }

    /// The names of all extended attributes, each ended by NUL.
    ///
    /// # Errors
    /// `ESTALE`.
    pub(crate) fn xattr_names(&self, id: NodeId) -> Answer<Vec<u8>> {
        let inner = self.lock();
        let node = node_of(&inner.state, id)?;
        let terminated = node.xattrs.iter().flat_map(|(name, _)| name.iter().copied().chain([0]));
        Ok(terminated.collect())
    }

    /// Sets an extended attribute. An access list changes the mode, too, and is not stored when the mode expresses all
    /// of it.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA` by the flags; `EINVAL` for an invalid access list; `ESTALE`, `ENOSPC`, `EROFS`, `EIO`.
    pub(crate) fn set_xattr(
        &self,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        caller: &Caller,
    ) -> Answer<()> {
        let access = match name {
            acl::ACCESS => Some(Acl::decode(value).ok_or(Errno::INVAL)?),
            _ => None,
        };
        self.change_xattrs(id, |node| {
            let mut xattrs = node.xattrs.clone();
            match find_xattr(node, name) {
                Ok(_) if flags.contains(XattrFlags::CREATE) => return Err(Errno::EXIST),
                Err(_) if flags.contains(XattrFlags::REPLACE) => return Err(Errno::NODATA),
                Ok(index) => xattrs[index].1 = value.to_vec(),
                Err(index) => xattrs.insert(index, (name.to_vec(), value.to_vec())),
            }
            let Some(access) = &access else { return Ok((xattrs, node.attributes.mode)) };
            xattrs.retain(|(other, _)| other != name || !access.is_mode());
            let mut mode = node.attributes.mode & !0o777 | access.mode();
            if mode & SET_GROUP != 0 && !keeps_set_group(node, caller) {
                mode &= !SET_GROUP;
            }
            Ok((xattrs, mode))
        })
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`; `ESTALE`, `ENOSPC`, `EROFS`, `EIO`.
    pub(crate) fn remove_xattr(&self, id: NodeId, name: &[u8]) -> Answer<()> {
        self.change_xattrs(id, |node| {
            let mut xattrs = node.xattrs.clone();
            xattrs.remove(find_xattr(node, name).map_err(|_| Errno::NODATA)?);
            Ok((xattrs, node.attributes.mode))
        })
    }

    /// Sets all extended attributes and the mode to those that `change` returns.
    fn change_xattrs(&self, id: NodeId, change: impl FnOnce(&Node) -> Answer<(Xattrs, u32)>) -> Answer<()> {
        let _changing = self.begin_change()?;
        let mut inner = self.lock();
        let node = node_of(&inner.state, id)?;
        let (xattrs, mode) = change(node)?;
        let attributes = Attributes { mode, ctime: clock::now(), ..node.attributes };
        let mut changes = Vec::new();
        inner.state.adopt(id, &mut changes);
        changes.push(Change::Xattrs { node: id, xattrs });
        changes.push(Change::Attributes { node: id, attributes });
        self.commit(&mut inner, changes)
    }
}

impl SetAttributes {
    /// The attributes of `node` after this. A new owner removes set-id bits, as does cutting the file for callers that
    /// may not keep them.
    fn over(&self, node: &Node, now: Time, caller: &Caller) -> Attributes {
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let old = node.attributes;
        let mode = match self.mode {
            Some(mode) => mode & 0o7777,
            None if self.drops_set_id(node, caller) => {
                without_set_id(old.mode, || keeps_set_group(node, caller))
            }
            None => old.mode,
        };
        Attributes {
            mode,
            uid: self.uid.unwrap_or(old.uid),
            gid: self.gid.unwrap_or(old.gid),
            nlink: old.nlink,
            atime: self.atime.map_or(old.atime, at),
            mtime: self.mtime.map_or(if self.len_bytes.is_some() { now } else { old.mtime }, at),
            ctime: now,
        }
    }

    fn drops_set_id(&self, node: &Node, caller: &Caller) -> bool {
        let Self { mode, uid, gid, len_bytes, atime, mtime } = self;
        let is_owner_set = uid.is_some() || gid.is_some();
        let is_cut = len_bytes.is_some();
        let is_nothing_set = !is_cut && !is_owner_set && mode.is_none() && atime.is_none() && mtime.is_none();
        let has_set_id = node.attributes.mode & (SET_USER | SET_GROUP) != 0;
        has_set_id
            && node.directory().is_none()
            && (is_owner_set || is_nothing_set || (is_cut && !caller.keeps_set_id()))
    }
}

/// The mode without set-id bits. Set-group-id without group execution confers no rights, and is removed unless the
/// caller could set it.
pub(super) fn without_set_id(mode: u32, may_keep_set_group: impl FnOnce() -> bool) -> u32 {
    match mode & SET_GROUP != 0 && (mode & GROUP_EXECUTE != 0 || !may_keep_set_group()) {
        true => mode & !(SET_USER | SET_GROUP),
        false => mode & !SET_USER,
    }
}

/// Whether the caller could set the set-group-id bit of `node`.
fn keeps_set_group(node: &Node, caller: &Caller) -> bool {
    caller.is_in_group(node.attributes.gid) || caller.keeps_set_id()
}

/// The extended attributes of `node` once its mode is `mode`; `None` when they stay the same.
fn acl_changed(node: &Node, mode: u32) -> Option<Xattrs> {
    let index = find_xattr(node, acl::ACCESS).ok()?;
    let mut xattrs = node.xattrs.clone();
    // A list that cannot be read grants no rights: the kernel refuses callers whose rights depend on it.
    xattrs[index].1 = Acl::decode(&xattrs[index].1)?.with_mode(mode).encode();
    Some(xattrs)
}

/// The mode and the extended attributes of a new node in `directory` that is made with `mode`.
pub(super) fn begin_with(directory: &Node, mode: u32, umask: u32, body: &NewBody) -> (u32, Xattrs) {
    if matches!(body, NewBody::Symlink(_)) {
        return (mode, Vec::new());
    }
    let default = find_xattr(directory, acl::DEFAULT).ok().map(|index| &directory.xattrs[index].1);
    let Some((bytes, default)) = default.and_then(|bytes| Some((bytes, Acl::decode(bytes)?))) else {
        return (mode & !umask, Vec::new());
    };
    let (access, mode) = default.inherited(mode);
    let mut xattrs = Vec::new();
    if !access.is_mode() {
        xattrs.push((acl::ACCESS.to_vec(), access.encode()));
    }
    if *body == NewBody::Directory {
        xattrs.push((acl::DEFAULT.to_vec(), bytes.clone()));
    }
    (mode, xattrs)
}

/// Removes file capabilities, if the node has some.
pub(super) fn push_capability_dropped(id: NodeId, node: &Node, changes: &mut Vec<Change>) {
    if let Ok(index) = find_xattr(node, CAPABILITY) {
        let mut xattrs = node.xattrs.clone();
        xattrs.remove(index);
        changes.push(Change::Xattrs { node: id, xattrs });
    }
}

fn find_xattr(node: &Node, name: &[u8]) -> Result<usize, usize> {
    node.xattrs.binary_search_by(|(other, _)| other.as_slice().cmp(name))
}
