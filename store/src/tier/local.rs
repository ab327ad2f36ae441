//! A tier in a directory of a local file system: key = path below the root.
//!
//! A new object is written to an unnamed file, synced, and linked under its name: it is never seen in part and a crash
//! leaves no litter. After a failed sync nothing of that file is used again. Directories are synced when a name in them
//! changes.

use super::{ObjectInfo, Tier, absent, check_key, past_end};
use crate::clock::Time;
use crate::error::{Error, OptionalExt, Result};
use crate::host::disk::{self, Disk, DiskFile, HostDisk, Stat, parent, replace_file, sync_directory};
use crate::host::object::Object;
use crate::keys;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Holds the lock and the next body of an object that is being swapped.
const SWAP_DIRECTORY: &str = "tmp";

/// Objects as files below a root directory.
#[derive(Clone, Debug)]
pub struct LocalTier {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

impl LocalTier {
    /// The tier below `root`, which need not exist before the first write.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::on(Arc::new(HostDisk), root)
    }

    /// The same on another file system than the host's.
    pub fn on(disk: Arc<dyn Disk>, root: impl Into<PathBuf>) -> Self {
        Self { disk, root: root.into() }
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        check_key(key)?;
        Ok(self.root.join(key))
    }

    fn open(&self, key: &str) -> Result<(Box<dyn DiskFile>, PathBuf)> {
        let path = self.path(key)?;
        match self.disk.open(&path) {
            Ok(file) => Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(absent(self, key)),
            Err(error) => Err(Error::io("cannot open object", path.display(), error)),
        }
    }

    /// Creates a directory below the root and its missing parents.
    fn create_directories(&self, directory: &Path) -> Result<()> {
        disk::create_directories(&*self.disk, &self.root, directory)
    }

    /// A lock shared by all swaps below this root, held.
    fn swap_lock(&self) -> Result<Option<Box<dyn DiskFile>>> {
        let directory = self.root.join(SWAP_DIRECTORY);
        self.create_directories(&directory)?;
        let path = directory.join("lock");
        let lock = self.disk.lock(&path, true);
        lock.map_err(|error| Error::io("cannot lock", path.display(), error))
    }

    /// Syncs a directory and those below it. The bytes of files were synced before they became visible.
    fn make_directory_durable(&self, directory: &Path) -> Result<()> {
        let failed = |error| Error::io("cannot list", directory.display(), error);
        let entries = match self.disk.list(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed.map_err(failed)?,
        };
        for (name, _) in entries.iter().filter(|(_, stat)| *stat == Stat::Directory) {
            self.make_directory_durable(&directory.join(name))?;
        }
        sync_directory(&*self.disk, directory)
    }

    fn walk(&self, directory: &Path, prefix: &str, found: &mut Vec<ObjectInfo>) -> Result<()> {
        let entries = match self.disk.list(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("cannot list", directory.display(), error)),
        };
        for (name, stat) in entries {
            let Some(name) = name.to_str() else { continue };
            let key = format!("{prefix}{name}");
            match stat {
                _ if check_key(&key).is_err() => {}
                Stat::Directory => self.walk(&directory.join(name), &format!("{key}/"), found)?,
                Stat::File(len_bytes) => found.push(ObjectInfo { key, len_bytes }),
                Stat::Other => {}
            }
        }
        Ok(())
    }
}

impl Tier for LocalTier {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn get(&self, key: &str) -> Result<Object> {
        let (file, path) = self.open(key)?;
        let read = match key.starts_with(keys::INDEX) {
            true => file.map(),
            false => disk::read_all(&*file).map(Object::Owned),
        };
        read.map_err(|error| Error::io("cannot read object", path.display(), error))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        let (file, path) = self.open(key)?;
        let failed = |error| Error::io("cannot read object", path.display(), error);
        let size = file.len_bytes().map_err(failed)?;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(past_end(key, offset, len));
        }
        let mut body = vec![0; len as usize];
        file.read_at(&mut body, offset).map_err(failed)?;
        Ok(body)
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        match self.disk.stat(&path) {
            Ok(Stat::File(len_bytes)) => Ok(Some(len_bytes)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("cannot look at object", path.display(), error)),
        }
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        let path = self.path(key)?;
        let directory = parent(&path);
        self.create_directories(directory)?;
        let failed = |error: io::Error| Error::io("cannot write object", path.display(), error);
        let mut file = self.disk.create_unnamed(directory).map_err(failed)?;
        let written = match key.starts_with(keys::PACKS) {
            true => file.write_past_cache(body),
            false => file.write(body),
        };
        written.and_then(|()| file.sync()).map_err(failed)?;
        match file.link(&path) {
            Ok(()) => sync_directory(&*self.disk, directory).map(|()| true),
            // A process that linked it may have died before this.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                sync_directory(&*self.disk, directory).map(|()| false)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        let Some(expected) = expected else { return self.put_if_absent(key, body) };
        let path = self.path(key)?;
        let _lock = self.swap_lock()?;
        if self.get(key).optional()?.as_deref() != Some(expected) {
            return Ok(false);
        }
        replace_file(&*self.disk, &self.root.join(SWAP_DIRECTORY).join("next"), &path, body)?;
        Ok(true)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut found = Vec::new();
        self.walk(&self.root.join(prefix), prefix, &mut found)?;
        found.retain(|info| info.key.split('/').next() != Some(SWAP_DIRECTORY));
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn make_durable(&self, prefix: &str) -> Result<()> {
        self.make_directory_durable(&self.root.join(prefix))
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.disk.unlink(&path) {
            Ok(()) => sync_directory(&*self.disk, parent(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("cannot delete object", path.display(), error)),
        }
    }

    fn touch(&self, key: &str) {
        let touched = self.path(key).map(|path| self.disk.touch(&path));
        if let Ok(Err(error)) = touched {
            tracing::debug!(key, %error, "use of an object is not noted");
        }
    }

    fn last_used(&self, key: &str) -> Result<Option<Time>> {
        let path = self.path(key)?;
        match self.disk.last_used(&path) {
            Ok(time) => Ok(Some(time)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("cannot look at object", path.display(), error)),
        }
    }
}
