//! Local state of a host: a directory for locks, uppers, sockets, the writer's incarnation and derived tables. Never shared
//! between hosts, and never needed: it may be lost when nothing runs.

use crate::error::{Kind, Result};
use crate::host::disk::{self, Disk, HostDisk, read_all, replace_file};
use crate::host::lock::{FileLock, LockState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The directory of local state and the file system that it is on.
#[derive(Clone, Debug)]
pub struct LocalState {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// How long to try for a lock that is held.
    wait: Duration,
}

impl<P: Into<PathBuf>> From<P> for LocalState {
    fn from(path: P) -> Self {
        Self::on(Arc::new(HostDisk), path)
    }
}

impl LocalState {
    /// Local state on another file system than the host's.
    pub fn on(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Self {
        Self { disk, path: path.into(), wait: Duration::ZERO }
    }

    /// The same, waiting so long for a lock that is held; without it a lock is had at once or not at all.
    pub fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory below it, or itself for an empty name, if it is not there.
    ///
    /// # Errors
    /// As the system calls.
    pub fn create_directory(&self, name: &str) -> Result<()> {
        disk::create_directories(&*self.disk, Path::new("/"), &self.path.join(name))
    }

    /// Makes the names in a directory below it durable.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub fn sync_directory(&self, name: &str) -> Result<()> {
        disk::sync_directory(&*self.disk, &self.path.join(name))
    }

    /// All bytes of a small file.
    ///
    /// # Errors
    /// As the system calls.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.disk.open(&self.path.join(name)).and_then(|file| read_all(&*file))
    }

    /// Replaces a small file, durably. One process at a time may do this to a file.
    ///
    /// # Errors
    /// As the system calls; the file holds the old or the new bytes whole.
    pub fn replace(&self, name: &str, body: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        replace_file(&*self.disk, &path.with_extension("next"), &path, body)
    }

    /// Takes a lock, or fails when it is held for longer than this waits.
    ///
    /// # Errors
    /// As [`FileLock::take`].
    pub fn lock(&self, name: &str, purpose: &str) -> Result<FileLock> {
        FileLock::take_on(&self.disk, &self.path.join(name), purpose, self.wait).map_err(|error| match error
            .kind()
        {
            Kind::Conflict => error.further_advice("or let this one wait for longer: --wait SECONDS"),
            _ => error,
        })
    }

    /// What can be seen of a lock.
    ///
    /// # Errors
    /// As the system calls.
    pub fn look_at_lock(&self, name: &str) -> Result<LockState> {
        FileLock::look(&*self.disk, &self.path.join(name))
    }

    /// Removes a file that means nothing any more, like that of a lock that nobody holds and nobody will take again; one
    /// that stays harms nobody.
    pub fn remove(&self, name: &str) {
        let path = self.path.join(name);
        match self.disk.unlink(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(path = %path.display(), %error, "a file of local state stays");
            }
            _ => {}
        }
    }

    /// The file system that it is on.
    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// The same, to keep.
    pub(crate) fn shared_disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }
}
