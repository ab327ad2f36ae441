//! Locks of one host: advisory file locks, which the kernel drops when their holder dies. One writer at a time, one
//! collector at a time; readers take none.

use crate::error::{Error, Kind, Result};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    file: File,
    path: PathBuf,
}

/// Creates a directory of local state and what is missing above it, for this user alone.
///
/// # Errors
/// As the system calls.
pub fn create_private_directories(directory: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is forking shares the open file until it executes.
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::debug!(path = %self.path.display(), %error, "lock is let go when its last copy closes");
        }
    }
}

impl FileLock {
    /// Takes the lock at once or fails, and writes `purpose` and the process id into it for others to read. Local state may
    /// be lost at any time, so the directory is made if it is not there.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when it is held.
    pub fn take(path: &Path, purpose: &str) -> Result<Self> {
        let failed = |error| Error::io("cannot lock", path.display(), error);
        if let Some(directory) = path.parent() {
            create_private_directories(directory).map_err(failed)?;
        }
        // Whoever may open it may hold it.
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = Vec::new();
                file.take(256).read_to_end(&mut holder).map_err(failed)?;
                let holder = String::from_utf8_lossy(&holder);
                return Err(Error::new(Kind::Conflict, format!("locked by {}", holder.trim()))
                    .object(path.display())
                    .advice("one process writes at a time: wait until it ends, then try again"));
            }
            Err(error) => return Err(failed(error.into())),
        }
        let text = format!("{purpose} (pid {})\n", std::process::id());
        let named =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
        if let Err(error) = named {
            // The text is for people: the collector must run on a full disk.
            tracing::debug!(path = %path.display(), %error, "lock does not name its holder");
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Whether somebody holds the lock at `path`.
    ///
    /// # Errors
    /// As the system calls.
    pub fn look(path: &Path) -> Result<LockState> {
        let failed = |error| Error::io("cannot look at lock", path.display(), error);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(LockState::Absent),
            Err(error) => return Err(failed(error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(LockState::Free),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(LockState::Held),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Removes the file of a lock that nobody holds and nobody will take again.
    pub fn remove_free(path: &Path) {
        // A leftover lock file nobody holds means nothing, so a failure here harms nobody.
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "lock file stays");
        }
    }

    /// Removes the lock's file and lets go.
    pub fn remove(self) {
        Self::remove_free(&self.path);
    }
}
