//! Locks of one host: advisory file locks, which the kernel drops when their holder dies. One writer at a time, one
//! collector at a time; readers take none.

use crate::disk::{self, Disk, DiskFile, HostDisk};
use crate::error::{Error, Kind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What can be seen of a lock from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// Somebody holds it.
    Held,
    /// Its file is there, and nobody holds it.
    Free,
    /// It has no file.
    Absent,
}

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub struct FileLock {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    _held: Box<dyn DiskFile>,
}

impl FileLock {
    /// Takes the lock at once or fails, and writes `purpose` and the process id into it for others to read. Local state may
    /// be lost at any time, so the directory is made if it is not there.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when it is held.
    pub fn take(path: &Path, purpose: &str) -> Result<Self> {
        Self::take_on(&(Arc::new(HostDisk) as Arc<dyn Disk>), path, purpose)
    }

    /// The same on another file system than the host's.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_on(disk: &Arc<dyn Disk>, path: &Path, purpose: &str) -> Result<Self> {
        let failed = |error| Error::io("cannot lock", path.display(), error);
        disk::create_directories(&**disk, Path::new("/"), disk::parent(path))?;
        let Some(mut held) = disk.lock(path, false).map_err(failed)? else {
            let holder = disk.open(path).and_then(|file| disk::read_all(&*file)).map_err(failed)?;
            let holder = String::from_utf8_lossy(&holder[..holder.len().min(256)]).into_owned();
            return Err(Error::new(Kind::Conflict, format!("locked by {}", holder.trim()))
                .object(path.display())
                .advice("one process writes at a time: wait until it ends, then try again"));
        };
        let text = format!("{purpose} (pid {})\n", std::process::id());
        if let Err(error) = held.write(text.as_bytes()) {
            // The text is for people: the collector must run on a full disk.
            tracing::debug!(path = %path.display(), %error, "lock does not name its holder");
        }
        Ok(Self { disk: disk.clone(), path: path.to_owned(), _held: held })
    }

    /// Whether somebody holds the lock at `path`.
    ///
    /// # Errors
    /// As the system calls.
    pub fn look(disk: &dyn Disk, path: &Path) -> Result<LockState> {
        match disk.is_locked(path) {
            Ok(true) => Ok(LockState::Held),
            Ok(false) => Ok(LockState::Free),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(LockState::Absent),
            Err(error) => Err(Error::io("cannot look at lock", path.display(), error)),
        }
    }

    /// Removes the lock's file, which nobody will take again, and lets go.
    pub fn remove(self) {
        // A leftover lock file nobody holds means nothing, so a failure here harms nobody.
        if let Err(error) = self.disk.unlink(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays");
        }
    }
}
