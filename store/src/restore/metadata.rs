//! Setting owner, attributes, mode and time of a restored inode through its descriptor. A failure to set one is
//! reported and affects no other; values that the file system accepts but changes are reported, too.

use super::refusal::Refusal;
use crate::host::held::{Handle, Host, path_of};
use crate::tree::Metadata;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{self, Errno};

/// Mode bits that lend the rights of owner and group.
const SET_ID: u32 = 0o6000;
/// The bits of the group, which are the mask of an access control list where there is one.
const GROUP: u32 = 0o070;
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";

/// Sets everything; returns the resulting stat. Owner first (it clears set-id bits and capabilities), then attributes,
/// mode and time. A set-id file never gets the rights of the user that restores it.
pub(super) fn set(metadata: &Metadata, handle: Handle<'_>, tell: &mut dyn FnMut(Refusal)) -> Option<Stat> {
    let fd = fd_of(handle);
    let look = || rustix::fs::fstat(fd);
    let mut step = |what: &str, done: io::Result<()>| match done {
        Ok(()) => true,
        Err(error) => {
            tell(Refusal::of_permission(what, error));
            false
        }
    };
    let stat = match look() {
        Ok(stat) => stat,
        Err(error) => {
            step("look", Err(error));
            return None;
        }
    };
    let mut mode = metadata.mode;
    let is_owned = (stat.st_uid, stat.st_gid) == (metadata.uid, metadata.gid)
        || step("owner", set_owner(fd, metadata.uid, metadata.gid));
    if !is_owned {
        mode &= !SET_ID;
    }
    for (name, value) in &metadata.xattrs {
        let what = || format!("extended attribute {}", String::from_utf8_lossy(name));
        let done = set_xattr(handle, name, value);
        if done.is_err() && !step(&what(), done) && name == ACCESS_LIST {
            mode = without_access_list(mode, value);
        }
    }
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let is_moded = is_link
        || (stat.st_mode & 0o7777 == mode && metadata.xattrs.is_empty())
        || step("mode", set_mode(handle, mode));
    let is_timed = step("time", set_time(handle, metadata));
    let now = look().ok()?;
    let mut differs = |is_set: bool, is_kept: bool, what: String| {
        if is_set && !is_kept {
            tell(Refusal::new(what));
        }
    };
    let (owner, kept_mode) = ((now.st_uid, now.st_gid), now.st_mode & 0o7777);
    let is_kept = owner == (metadata.uid, metadata.gid);
    differs(is_owned, is_kept, format!("owner: the file system keeps {}:{}", owner.0, owner.1));
    let is_kept = is_link || kept_mode == mode;
    differs(is_moded, is_kept, format!("mode: the file system keeps {kept_mode:04o}, not {mode:04o}"));
    let (kept, wanted) = (now.st_mtime, metadata.mtime.seconds);
    differs(
        is_timed,
        kept == wanted,
        format!("time: the file system keeps {kept}, not {wanted} (seconds since 1970)"),
    );
    Some(now)
}

/// Removes attributes that were not stored from an existing directory, and those that new files would inherit.
pub(super) fn strip(metadata: &Metadata, directory: BorrowedFd<'_>, tell: &mut dyn FnMut(Refusal)) {
    let is_ours = |name: &[u8]| {
        name.starts_with(b"user.")
            || name.starts_with(b"trusted.")
            || name == ACCESS_LIST
            || name == DEFAULT_LIST
    };
    for (name, _) in Host::new().xattrs(Handle::Open(directory)).xattrs {
        if is_ours(&name)
            && !metadata.xattrs.iter().any(|(kept, _)| *kept == name)
            && let Err(error) = remove_xattr(Handle::Open(directory), &name)
        {
            let what = format!(
                "extended attribute {}, which the snapshot does not have",
                String::from_utf8_lossy(&name)
            );
            tell(Refusal::of_permission(&what, error));
        }
    }
}

/// Makes an existing directory accessible to the caller only while it is filled, as new ones are. Where that is not
/// allowed, its owner still cannot redirect anything, and setting the metadata at the end reports it.
pub(super) fn take_over(directory: Handle<'_>, stat: &Stat) {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let taken = match stat.st_uid == uid.as_raw() {
        true => Ok(()),
        false => set_owner(fd_of(directory), uid.as_raw(), gid.as_raw()),
    };
    let taken = taken.and_then(|()| set_mode(directory, 0o700));
    let passed_on = match remove_xattr(directory, DEFAULT_LIST) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        removed => removed,
    };
    if let Err(error) = taken.and(passed_on) {
        tracing::debug!(%error, "a directory is filled that is not the restorer's alone");
    }
}

fn fd_of(handle: Handle<'_>) -> BorrowedFd<'_> {
    match handle {
        Handle::Open(fd) | Handle::Pinned(fd) => fd,
    }
}

fn set_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

fn set_xattr(handle: Handle<'_>, name: &[u8], value: &[u8]) -> io::Result<()> {
    match handle {
        Handle::Open(file) => rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()),
        Handle::Pinned(pin) => rustix::fs::setxattr(path_of(pin), name, value, XattrFlags::empty()),
    }
}

fn remove_xattr(handle: Handle<'_>, name: &[u8]) -> io::Result<()> {
    match handle {
        Handle::Open(file) => rustix::fs::fremovexattr(file, name),
        Handle::Pinned(pin) => rustix::fs::removexattr(path_of(pin), name),
    }
}

fn set_mode(handle: Handle<'_>, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match handle {
        Handle::Open(file) => rustix::fs::fchmod(file, mode),
        Handle::Pinned(pin) => rustix::fs::chmod(path_of(pin), mode),
    }
}

fn set_time(handle: Handle<'_>, metadata: &Metadata) -> io::Result<()> {
    let time = Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: metadata.mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    match handle {
        Handle::Open(file) => rustix::fs::futimens(file, &times),
        Handle::Pinned(pin) => rustix::fs::utimensat(pin.as_fd(), "", &times, AtFlags::EMPTY_PATH),
    }
}

/// The mode of a file whose access control list could not be set: the group's bits become the list's entry for the
/// owning group, not the mask. See acl(5); entries are (tag, rights, id) behind a version.
fn without_access_list(mode: u32, list: &[u8]) -> u32 {
    const OWNING_GROUP: [u8; 2] = [4, 0];
    let entries = list.get(4..).unwrap_or_default();
    let entry = entries.chunks_exact(8).find(|entry| entry[..2] == OWNING_GROUP);
    let rights = entry.map_or(0, |entry| u32::from(entry[2]) & 7);
    mode & (!GROUP | rights << 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_without_its_access_list_gives_the_group_no_more() {
        let entry = |tag: u8, rights: u8| [tag, 0, rights, 0, 255, 255, 255, 255];
        let list =
            [&[2, 0, 0, 0][..], &entry(1, 6), &entry(2, 7), &entry(4, 0), &entry(16, 7), &entry(32, 4)]
                .concat();
        assert_eq!(without_access_list(0o674, &list), 0o604);
        let list = [&[2, 0, 0, 0][..], &entry(1, 6), &entry(4, 6), &entry(16, 4), &entry(32, 0)].concat();
        assert_eq!(without_access_list(0o640, &list), 0o640, "what the mask takes stays taken");
        assert_eq!(without_access_list(0o770, b"\x02\0"), 0o700, "a list that says nothing gives nothing");
    }
}
