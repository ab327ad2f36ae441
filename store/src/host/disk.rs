//! The file system operations below local tiers and local state. One implementation is the host's file system, the
//! other the tests' simulated disk (which loses, tears and reorders). The caller is responsible for order: nothing here
//! syncs unless asked.
//!
//! Visible state need not be durable: a process may have died between a change and its sync. A process that depends on
//! another's changes syncs them first.

use crate::clock::Time;
use crate::error::{Error, Result};
use crate::host::direct;
use crate::host::map::{Access, Mapped};
use crate::host::object::Object;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The kind of the entry at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// A regular file of this many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

/// A file system. Errors are those of the system calls.
pub trait Disk: Send + Sync + Debug {
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for writing, emptied, and creates it for this user alone if it is not there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// A new file for writing that has no name and is deleted with its handle; see [`DiskFile::link`].
    fn create_unnamed(&self, directory: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// The kind of the entry at a path.
    fn stat(&self, path: &Path) -> io::Result<Stat>;

    /// Sets the time of a file's last use to now explicitly, independent of the mount's options.
    fn touch(&self, path: &Path) -> io::Result<()>;

    /// The time of a file's last use.
    fn last_used(&self, path: &Path) -> io::Result<Time>;

    /// The names in a directory and their kinds, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<(OsString, Stat)>>;

    /// Whether a directory is empty. Cost does not grow with its entries.
    fn is_empty(&self, directory: &Path) -> io::Result<bool>;

    /// Makes a directory for this user alone.
    fn make_directory(&self, directory: &Path) -> io::Result<()>;

    /// Moves a file over the one at `target`.
    fn rename(&self, source: &Path, target: &Path) -> io::Result<()>;

    /// Removes a file's name.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;

    /// Locks a file, created if missing and emptied, until the handle is dropped or its process dies. With `wait` it
    /// waits its turn; else returns `None` when the lock is held.
    fn lock(&self, path: &Path, wait: bool) -> io::Result<Option<Box<dyn DiskFile>>>;

    /// Whether the lock is held.
    fn is_locked(&self, path: &Path) -> io::Result<bool>;

    /// The system's own record of the lock's holder; by default nothing.
    fn lock_holder(&self, _path: &Path) -> LockHolder {
        LockHolder::default()
    }
}

/// The system's record of a lock's holder, independent of the file's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockHolder {
    /// The process that holds it, where it is visible from here.
    pub pid: Option<u32>,
    /// When the file was last written, which a holder does once it has the lock.
    pub since: Option<Time>,
}

/// An open file.
pub trait DiskFile: Send + Sync + Debug {
    /// Its length.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Fills the buffer from `offset`, or fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// All its bytes, mapped where possible: the file must not be written to any more.
    fn map(&self) -> io::Result<Object>;

    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// As [`Self::write`], for many bytes that are not about to be read.
    fn write_past_cache(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes)
    }

    /// Reserves this much disk space for the file.
    fn allocate(&mut self, len_bytes: u64) -> io::Result<()>;

    /// Makes its bytes durable. After an error they may be lost even if a later call succeeds.
    fn sync(&self) -> io::Result<()>;

    /// Links a file without a name at a path that is free.
    fn link(&self, path: &Path) -> io::Result<()>;
}

/// The file system of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDisk;

#[derive(Debug)]
struct HostFile {
    file: File,
    is_lock: bool,
}

impl HostFile {
    fn boxed(file: File) -> Box<dyn DiskFile> {
        Box::new(Self { file, is_lock: false })
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is forking shares the open file until it executes.
        if self.is_lock
            && let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock)
        {
            tracing::debug!(%error, "lock is let go when its last copy closes");
        }
    }
}

fn stat_of(metadata: &fs::Metadata) -> Stat {
    match () {
        () if metadata.is_file() => Stat::File(metadata.len()),
        () if metadata.is_dir() => Stat::Directory,
        () => Stat::Other,
    }
}

impl Disk for HostDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        File::open(path).map(HostFile::boxed)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
        file.map(HostFile::boxed)
    }

    fn create_unnamed(&self, directory: &Path) -> io::Result<Box<dyn DiskFile>> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600))?;
        Ok(HostFile::boxed(File::from(file)))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        fs::metadata(path).map(|metadata| stat_of(&metadata))
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let (now, keep) =
            (Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT });
        let times = Timestamps { last_access: now, last_modification: keep };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
    }

    fn last_used(&self, path: &Path) -> io::Result<Time> {
        let metadata = fs::metadata(path)?;
        Ok(Time { seconds: metadata.atime(), nanos: metadata.atime_nsec() as u32 })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<(OsString, Stat)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => found.push((entry.file_name(), stat_of(&metadata))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // gone since
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn is_empty(&self, directory: &Path) -> io::Result<bool> {
        fs::read_dir(directory).map(|mut entries| entries.next().is_none())
    }

    fn make_directory(&self, directory: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(directory)
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        fs::rename(source, target)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn lock(&self, path: &Path, wait: bool) -> io::Result<Option<Box<dyn DiskFile>>> {
        // Any process that may open it may hold it.
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let operation = match wait {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let file = HostFile { file, is_lock: true };
        if file.len_bytes()? > 0 {
            file.file.set_len(0)?;
        }
        Ok(Some(Box::new(file)))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        let file = File::open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn lock_holder(&self, path: &Path) -> LockHolder {
        let Ok(metadata) = fs::metadata(path) else { return LockHolder::default() };
        let since = Time { seconds: metadata.mtime(), nanos: metadata.mtime_nsec() as u32 };
        // A process in another pid namespace has no line, or one with the number 0.
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let (device, inode) = (metadata.dev(), metadata.ino());
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let place = format!("{major:02x}:{minor:02x}:{inode}");
        let pid = locks.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_this = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&place.as_str());
            is_this.then(|| words.get(4)?.parse().ok()).flatten()
        });
        LockHolder { pid: pid.filter(|pid| *pid != 0), since: Some(since) }
    }
}

impl DiskFile for HostFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn map(&self) -> io::Result<Object> {
        let map = Mapped::open(&self.file)?;
        // Else the kernel reads ahead at the first byte read.
        map.expect(Access::Random, 0..map.len());
        Ok(Object::Mapped(map))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn write_past_cache(&mut self, bytes: &[u8]) -> io::Result<()> {
        direct::append(&mut self.file, bytes)
    }

    fn allocate(&mut self, len_bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len_bytes)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

/// The directory that a file lies in.
pub fn parent(path: &Path) -> &Path {
    match path.parent().expect("a file lies in a directory") {
        empty if empty.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    }
}

/// All bytes of an open file.
///
/// # Errors
/// As the system calls.
pub fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len_bytes()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes `body` to `temporary`, syncs it, and renames it over `path`. Both must be on one file system.
///
/// # Errors
/// As the system calls; `path` then holds either all the old bytes or all the new ones.
pub fn replace_file(disk: &dyn Disk, temporary: &Path, path: &Path, body: &[u8]) -> Result<()> {
    let failed = |error: io::Error| Error::io("cannot write", path.display(), error);
    let mut file = disk.create(temporary).map_err(failed)?;
    file.write(body).and_then(|()| file.sync()).map_err(failed)?;
    disk.rename(temporary, path).map_err(failed)?;
    sync_directory(disk, parent(path))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// As `fsync(2)`.
pub fn sync_directory(disk: &dyn Disk, directory: &Path) -> Result<()> {
    let synced = disk.sync_directory(directory);
    synced.map_err(|error| Error::io("cannot sync directory", directory.display(), error))
}

/// Creates a directory of this host and its missing parents, for this user alone. Not durable.
///
/// # Errors
/// As the system calls.
pub fn create_private_directories(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Creates `directory` and its missing parents, but nothing above `root`, for this user alone, and makes their names
/// durable. Nothing is ever put into a directory whose own name is not durable, so a non-empty one needs no sync; an
/// empty one may have been made by a process that died before it could sync.
///
/// # Errors
/// As the system calls.
pub fn create_directories(disk: &dyn Disk, root: &Path, directory: &Path) -> Result<()> {
    let failed = |error| Error::io("cannot create directory", directory.display(), error);
    if disk.is_empty(directory).is_ok_and(|is_empty| !is_empty) {
        return Ok(());
    }
    if directory != root && directory.parent().is_some() {
        create_directories(disk, root, parent(directory))?;
    }
    match disk.make_directory(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if disk.stat(directory).map_err(failed)? != Stat::Directory {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
        }
        Err(error) => return Err(failed(error)),
    }
    match directory.parent() {
        Some(_) => sync_directory(disk, parent(directory)),
        None => Ok(()),
    }
}
