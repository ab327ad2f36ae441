//! What a backup asks of the host: names of a directory, looks of files, extended attributes. Nothing here follows a
//! symbolic link.

use crate::clock::Time;
use crate::error::{Error, Result};
use crate::tree::Metadata;
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::io;
use std::path::Path;

/// Names and values of extended attributes, by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Longest list of names, and longest value, of extended attributes (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;
/// Names are read off a directory in pieces of this length.
const LIST_LEN: usize = 32 << 10;

/// A name of a directory.
pub type Name = Vec<u8>;

/// Where attributes are read from.
pub enum Source<'a> {
    Open(&'a dyn AsFd),
    At(&'a Path),
}

/// Buffers that are used again and again.
pub struct Host {
    list: Vec<u8>,
    xattr_names: Vec<u8>,
    xattr_value: Vec<u8>,
}

impl Host {
    pub fn new() -> Self {
        let [list, xattr_names] = [LIST_LEN, 1024].map(Vec::with_capacity);
        Self { list, xattr_names, xattr_value: Vec::new() }
    }

    /// The names in a directory in order.
    pub fn names(&mut self, directory: &OwnedFd) -> io::Result<Vec<Name>> {
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

    /// Extended attributes in order of their names.
    pub fn xattrs(&mut self, source: &Source<'_>) -> rustix::io::Result<Xattrs> {
        loop {
            self.xattr_names.clear();
            let names = spare_capacity(&mut self.xattr_names);
            let listed = match source {
                Source::Open(file) => rustix::fs::flistxattr(file, names),
                Source::At(path) => rustix::fs::llistxattr(*path, names),
            };
            match listed {
                Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(Vec::new()),
                Ok(_) => break,
                Err(Errno::RANGE) if self.xattr_names.capacity() < XATTR_MAX => {
                    self.xattr_names.reserve(XATTR_MAX);
                }
                Err(error) => return Err(error),
            }
        }
        self.xattr_value.reserve(XATTR_MAX);
        let mut found = Vec::new();
        for name in self.xattr_names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            self.xattr_value.clear();
            let value = spare_capacity(&mut self.xattr_value);
            let read = match source {
                Source::Open(file) => rustix::fs::fgetxattr(file, name, value),
                Source::At(path) => rustix::fs::lgetxattr(*path, name, value),
            };
            match read {
                Ok(_) => found.push((name.to_vec(), self.xattr_value.clone())),
                Err(Errno::NODATA) => {} // removed meanwhile
                Err(error) => return Err(error),
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// What every inode has.
    pub fn metadata(&mut self, source: &Source<'_>, path: &Path, stat: &Stat) -> Result<Metadata> {
        let xattrs = self.xattrs(source).map_err(|error| cannot_read_xattrs(path, error))?;
        Ok(Metadata { xattrs, ..bare_metadata(stat) })
    }
}

pub fn cannot_read_xattrs(path: &Path, error: Errno) -> Error {
    Error::io("cannot read extended attributes", path.display(), error.into())
}

/// What the look of a file says of its inode: all but the extended attributes.
pub fn bare_metadata(stat: &Stat) -> Metadata {
    let mtime = Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
    let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    Metadata { mode, uid, gid, mtime, ..Metadata::default() }
}

/// What kind of file this is the look of.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory by its path, of which the last name is no symbolic link.
pub fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens a directory below another.
pub fn open_directory_at(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// How a name of a directory looks.
pub fn stat_at(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<Stat> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}
