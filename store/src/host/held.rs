//! The host's files below a directory that is held open: names, metadata, attributes, descriptors. A name is looked up
//! in a held directory and no symbolic link is followed, so a path may have any length, and a user who renames or
//! replaces a directory while root works in it redirects nothing. Used by backup and restore.
//!
//! A file is pinned first ([`pin_at`]): the descriptor names the inode and opens nothing, so that devices and pipes do
//! not notice. Metadata, link target, attributes and bytes are then read of that inode.

use crate::error::{Error, Result};
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::io;
use std::path::Path;

/// Names and values of extended attributes, by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Longest list of names, and longest value, of extended attributes (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;
/// Names are read from a directory in pieces of this length.
const LIST_LEN: usize = 32 << 10;

/// A name of a directory.
pub(crate) type Name = Vec<u8>;

/// A descriptor to read or set attributes with.
#[derive(Clone, Copy)]
pub(crate) enum Handle<'a> {
    /// Of an open file or directory.
    Open(BorrowedFd<'a>),
    /// Of a file pinned by [`pin_at`].
    Pinned(BorrowedFd<'a>),
}

/// Extended attributes, as far as they could be read.
#[derive(Debug, Default)]
pub(crate) struct ReadXattrs {
    pub xattrs: Xattrs,
    /// Those that could not be read: the name, empty when the names could not be listed, and why.
    pub failed: Vec<(Name, Errno)>,
}

/// Reused buffers.
pub(crate) struct Host {
    list: Vec<u8>,
    xattr_names: Vec<u8>,
    xattr_value: Vec<u8>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let [list, xattr_names] = [LIST_LEN, 1024].map(Vec::with_capacity);
        Self { list, xattr_names, xattr_value: Vec::new() }
    }

    /// The names in a directory in order.
    pub(crate) fn names(&mut self, directory: impl AsFd) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        let mut entries = RawDir::new(directory, self.list.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            match entry?.file_name().to_bytes() {
                b"." | b".." => {}
                name => names.push(name.to_vec()),
            }
        }
        names.sort_unstable();
        names.dedup(); // a rename meanwhile may show a name twice
        Ok(names)
    }

    /// Extended attributes in order of their names. An unreadable one does not affect the others.
    pub(crate) fn xattrs(&mut self, handle: Handle<'_>) -> ReadXattrs {
        let mut read = ReadXattrs::default();
        match self.list_xattrs(handle) {
            Ok(()) => {}
            Err(error) => read.failed.push((Vec::new(), error)),
        }
        self.xattr_value.reserve(XATTR_MAX);
        for name in self.xattr_names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            self.xattr_value.clear();
            let value = spare_capacity(&mut self.xattr_value);
            let got = match handle {
                Handle::Open(file) => rustix::fs::fgetxattr(file, name, value),
                Handle::Pinned(pin) => rustix::fs::getxattr(path_of(pin), name, value),
            };
            match got {
                Ok(_) => read.xattrs.push((name.to_vec(), self.xattr_value.clone())),
                Err(Errno::NODATA) => {} // removed meanwhile
                Err(error) => read.failed.push((name.to_vec(), error)),
            }
        }
        read.xattrs.sort_unstable();
        read
    }

    /// The names of all extended attributes, each followed by a zero byte; empty if there are no attributes.
    fn list_xattrs(&mut self, handle: Handle<'_>) -> rustix::io::Result<()> {
        loop {
            self.xattr_names.clear();
            let names = spare_capacity(&mut self.xattr_names);
            let listed = match handle {
                Handle::Open(file) => rustix::fs::flistxattr(file, names),
                Handle::Pinned(pin) => rustix::fs::listxattr(path_of(pin), names),
            };
            match listed {
                Ok(_) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                Err(Errno::RANGE) if self.xattr_names.capacity() < XATTR_MAX => {
                    self.xattr_names.reserve(XATTR_MAX);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The kind of a file, from its metadata.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether both are metadata of one inode.
pub(crate) fn is_same_inode(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Pins the file that the user named, following a symbolic link.
pub(crate) fn pin(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Pins the entry under a name of a directory, without following or opening it.
pub(crate) fn pin_at(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a pinned regular file for reading.
///
/// # Errors
/// As `open(2)`; see [`require_proc`].
pub(crate) fn open_pinned(pin: impl AsFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = path_of(pin.as_fd());
    keeping_access_time(flags, |flags| rustix::fs::open(path.as_str(), flags, Mode::empty()))
}

/// Opens a directory below another.
pub(crate) fn open_directory_at(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    keeping_access_time(flags, |flags| rustix::fs::openat(&parent, name, flags, Mode::empty()))
}

/// The metadata of a directory entry.
pub(crate) fn stat_at(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<Stat> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// The target of a pinned symbolic link.
pub(crate) fn read_link(pin: impl AsFd) -> rustix::io::Result<Vec<u8>> {
    rustix::fs::readlinkat(pin, "", Vec::new()).map(std::ffi::CString::into_bytes)
}

/// Requires `/proc`: without it no pinned file can be opened.
///
/// # Errors
/// `Unavailable` when it is not.
pub(crate) fn require_proc() -> Result<()> {
    match rustix::fs::stat("/proc/self/fd") {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::io("cannot open files by their descriptors", "/proc/self/fd", error.into())
            .advice("mount /proc")),
    }
}

/// A path to a descriptor's file, for system calls that take no pinning descriptor. It is valid while the descriptor is
/// open, and follows nothing further.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens without updating the access time, which only the owner and root may request.
fn keeping_access_time(
    flags: OFlags,
    open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
) -> rustix::io::Result<OwnedFd> {
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        opened => opened,
    }
}
