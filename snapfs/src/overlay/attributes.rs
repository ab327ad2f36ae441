//! Attributes and extended attributes.

use super::{Overlay, file_of, node_of, stat_of};
use crate::change::{Attributes, Change, NodeId};
use crate::errno::{Answer, Errno};
use crate::node::{Body, Node, Stat};
use rustix::fs::XattrFlags;
use store::{Time, clock};

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;
/// File capabilities go when the file changes, as set-user-id does.
const CAPABILITY: &[u8] = b"security.capability";

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// The time of the operation.
    Now,
    /// This time.
    At(Time),
}

/// What to set; the rest stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
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
    /// What `stat` shows.
    ///
    /// # Errors
    /// `ESTALE`.
    pub fn stat(&self, id: NodeId) -> Answer<Stat> {
        stat_of(&self.lock().state, id)
    }

    /// Sets attributes. `privileged`: the caller keeps set-user-id bits when it cuts a file.
    ///
    /// # Errors
    /// `ESTALE`, `EISDIR` and `EINVAL` for the length of what is no file, `ENOSPC`, `EROFS`, `EIO`.
    pub fn set_attributes(&self, id: NodeId, set: SetAttributes, privileged: bool) -> Answer<Stat> {
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
        if set.uid.is_some() || set.gid.is_some() || (set.len_bytes.is_some() && !privileged) {
            push_capability_dropped(id, node, &mut changes);
        }
        let attributes = set.over(node, now, privileged);
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

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// `EINVAL` where it is none, `ESTALE`.
    pub fn readlink(&self, id: NodeId) -> Answer<Vec<u8>> {
        match &node_of(&self.lock().state, id)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`, `ESTALE`.
    pub fn xattr(&self, id: NodeId, name: &[u8]) -> Answer<Vec<u8>> {
        let inner = self.lock();
        let node = node_of(&inner.state, id)?;
        let index = find_xattr(node, name).map_err(|_| Errno::NODATA)?;
        Ok(node.xattrs[index].1.clone())
    }

    /// The names of all extended attributes, each ended by NUL.
    ///
    /// # Errors
    /// `ESTALE`.
    pub fn xattr_names(&self, id: NodeId) -> Answer<Vec<u8>> {
        let inner = self.lock();
        let node = node_of(&inner.state, id)?;
        let terminated = node.xattrs.iter().flat_map(|(name, _)| name.iter().copied().chain([0]));
        Ok(terminated.collect())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA` by the flags; `ESTALE`, `ENOSPC`, `EROFS`, `EIO`.
    pub fn set_xattr(&self, id: NodeId, name: &[u8], value: &[u8], flags: XattrFlags) -> Answer<()> {
        self.change_xattrs(
            id,
            |xattrs, found| match found {
                Ok(_) if flags.contains(XattrFlags::CREATE) => Err(Errno::EXIST),
                Err(_) if flags.contains(XattrFlags::REPLACE) => Err(Errno::NODATA),
                Ok(index) => {
                    xattrs[index].1 = value.to_vec();
                    Ok(())
                }
                Err(index) => {
                    xattrs.insert(index, (name.to_vec(), value.to_vec()));
                    Ok(())
                }
            },
            name,
        )
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`; `ESTALE`, `ENOSPC`, `EROFS`, `EIO`.
    pub fn remove_xattr(&self, id: NodeId, name: &[u8]) -> Answer<()> {
        self.change_xattrs(
            id,
            |xattrs, found| {
                xattrs.remove(found.map_err(|_| Errno::NODATA)?);
                Ok(())
            },
            name,
        )
    }

    fn change_xattrs(
        &self,
        id: NodeId,
        change: impl FnOnce(&mut Vec<(Vec<u8>, Vec<u8>)>, Result<usize, usize>) -> Answer<()>,
        name: &[u8],
    ) -> Answer<()> {
        let _changing = self.begin_change()?;
        let mut inner = self.lock();
        let node = node_of(&inner.state, id)?;
        let mut xattrs = node.xattrs.clone();
        change(&mut xattrs, find_xattr(node, name))?;
        let attributes = Attributes { ctime: clock::now(), ..node.attributes };
        let mut changes = Vec::new();
        inner.state.adopt(id, &mut changes);
        changes.push(Change::Xattrs { node: id, xattrs });
        changes.push(Change::Attributes { node: id, attributes });
        self.commit(&mut inner, changes)
    }
}

impl SetAttributes {
    /// The attributes of `node` after this. Changing the owner takes set-user-id away, as cutting the file does for
    /// callers without privilege.
    fn over(&self, node: &Node, now: Time, privileged: bool) -> Attributes {
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let old = node.attributes;
        let owned = self.uid.is_some() || self.gid.is_some();
        let cut = self.len_bytes.is_some();
        let unsafe_now = node.directory().is_none() && (owned || (cut && !privileged));
        let mode = match self.mode {
            Some(mode) => mode & 0o7777,
            None if unsafe_now => without_set_id(old.mode),
            None => old.mode,
        };
        Attributes {
            mode,
            uid: self.uid.unwrap_or(old.uid),
            gid: self.gid.unwrap_or(old.gid),
            nlink: old.nlink,
            atime: self.atime.map_or(old.atime, at),
            mtime: self.mtime.map_or(if cut { now } else { old.mtime }, at),
            ctime: now,
        }
    }
}

/// The mode without the bits that lend the owner's rights. Set-group-id without group execution means something else.
pub(super) fn without_set_id(mode: u32) -> u32 {
    match mode & GROUP_EXECUTE != 0 {
        true => mode & !(SET_USER | SET_GROUP),
        false => mode & !SET_USER,
    }
}

/// Takes file capabilities away, where the node has some.
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
