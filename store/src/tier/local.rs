//! A tier in a directory of a local file system: key = path below the root.
//!
//! A new object is written to an unnamed file, synced, and linked under its name: it is never seen in part and a crash
//! leaves no litter. After a failed sync nothing of that file is used again. Directories are synced when a name in them
//! changes.

use super::{Object, ObjectInfo, Tier, absent, check_key, past_end};
use crate::clock::Time;
use crate::error::{Error, Kind, Result};
use crate::map::Mapped;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Holds the lock and the next body of an object that is being swapped.
const SWAP_DIRECTORY: &str = "tmp";

/// Objects as files below a root directory.
#[derive(Clone, Debug)]
pub struct LocalTier {
    root: PathBuf,
}

impl LocalTier {
    /// The tier below `root`, which need not exist before the first write.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        check_key(key)?;
        Ok(self.root.join(key))
    }

    fn open(&self, key: &str) -> Result<(File, PathBuf)> {
        let path = self.path(key)?;
        match File::open(&path) {
            Ok(file) => Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(absent(self, key)),
            Err(error) => Err(Error::io("cannot open object", path.display(), error)),
        }
    }

    /// An open, exclusively locked file that all swaps below this root agree on.
    fn swap_lock(&self) -> Result<File> {
        let directory = self.root.join(SWAP_DIRECTORY);
        create_directories(&self.root, &directory)?;
        let path = directory.join("lock");
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(|error| Error::io("cannot open lock", path.display(), error))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| Error::io("cannot lock", path.display(), error.into()))?;
        Ok(lock)
    }
}

impl Tier for LocalTier {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn get(&self, key: &str) -> Result<Object> {
        let (mut file, path) = self.open(key)?;
        if key.starts_with("index/") {
            return Mapped::open(&file, &path).map(Object::Mapped);
        }
        let mut body = Vec::new();
        file.read_to_end(&mut body)
            .map_err(|error| Error::io("cannot read object", path.display(), error))?;
        Ok(Object::Owned(body))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        let (file, path) = self.open(key)?;
        let failed = |error| Error::io("cannot read object", path.display(), error);
        let size = file.metadata().map_err(failed)?.len();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(past_end(key, offset, len));
        }
        let mut body = vec![0; len as usize];
        file.read_exact_at(&mut body, offset).map_err(failed)?;
        Ok(body)
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("cannot look at object", path.display(), error)),
        }
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        let path = self.path(key)?;
        let directory = parent(&path);
        create_directories(&self.root, directory)?;
        let failed = |error: io::Error| Error::io("cannot write object", path.display(), error);
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600)).map_err(|e| failed(e.into()))?;
        let mut file = File::from(file);
        file.write_all(body).and_then(|()| file.sync_all()).map_err(failed)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(CWD, unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => sync_directory(directory).map(|()| true),
            // Whoever linked it may have died before this.
            Err(rustix::io::Errno::EXIST) => sync_directory(directory).map(|()| false),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        let Some(expected) = expected else { return self.put_if_absent(key, body) };
        let path = self.path(key)?;
        let _lock = self.swap_lock()?;
        match self.get(key) {
            Ok(current) if *current == *expected => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == Kind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        replace_file(&self.root.join(SWAP_DIRECTORY).join("next"), &path, body)?;
        Ok(true)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut found = Vec::new();
        walk(&self.root.join(prefix), prefix, &mut found)?;
        found.retain(|info| info.key.split('/').next() != Some(SWAP_DIRECTORY));
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match fs::remove_file(&path) {
            Ok(()) => sync_directory(parent(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("cannot delete object", path.display(), error)),
        }
    }

    /// The time of last access, set by hand: whatever the mount's options, it is what was noted here.
    fn touch(&self, key: &str) {
        let (now, keep) =
            (Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT });
        let times = Timestamps { last_access: now, last_modification: keep };
        let touched = self.path(key).map(|path| rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()));
        if let Ok(Err(error)) = touched {
            tracing::debug!(key, %error, "use of an object is not noted");
        }
    }

    fn last_used(&self, key: &str) -> Result<Option<Time>> {
        let path = self.path(key)?;
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(Time { seconds: metadata.atime(), nanos: metadata.atime_nsec() as u32 })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("cannot look at object", path.display(), error)),
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("an object lies below the root")
}

/// Writes `body` to `temporary`, syncs it, and renames it over `path`. Both must be on one file system.
///
/// # Errors
/// As the system calls; `path` holds the old or the new bytes whole.
pub fn replace_file(temporary: &Path, path: &Path, body: &[u8]) -> Result<()> {
    let failed = |error: io::Error| Error::io("cannot write", path.display(), error);
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(temporary);
    let mut file = file.map_err(failed)?;
    file.write_all(body).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(temporary, path).map_err(failed)?;
    sync_directory(parent(path))
}

/// Creates `directory` and what is missing between it and `root`, for this user alone, syncing each directory that got a
/// new name.
fn create_directories(root: &Path, directory: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => sync_directory(parent(directory)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory != root => {
            create_directories(root, parent(directory))?;
            create_directories(root, directory)
        }
        Err(error) => Err(Error::io("cannot create directory", directory.display(), error)),
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// As `fsync(2)`.
pub fn sync_directory(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::io("cannot sync directory", directory.display(), error))
}

fn walk(directory: &Path, prefix: &str, found: &mut Vec<ObjectInfo>) -> Result<()> {
    let failed = |error| Error::io("cannot list", directory.display(), error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = format!("{prefix}{name}");
        if check_key(&key).is_err() {
            continue;
        }
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        if metadata.is_dir() {
            walk(&entry.path(), &format!("{key}/"), found)?;
        } else if metadata.is_file() {
            found.push(ObjectInfo { key, len_bytes: metadata.len() });
        }
    }
    Ok(())
}
