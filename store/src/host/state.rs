//! Local state of a host: a directory for locks, uppers, sockets, the writer's incarnation and derived tables. Never
//! shared between hosts, and dispensable: it may be lost while no process runs.

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
    /// How long to wait for a held lock.
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

    /// The same, waiting this long for a held lock; otherwise a lock is taken at once or not at all.
    pub fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a directory below it, or itself for an empty name, if missing.
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
    /// As the system calls; the file then holds either all the old bytes or all the new ones.
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

    /// The observed state of a lock.
    ///
    /// # Errors
    /// As the system calls.
    pub fn look_at_lock(&self, name: &str) -> Result<LockState> {
        FileLock::look(&*self.disk, &self.path.join(name))
    }

    /// Removes a file without a meaning, like that of a lock that is not held and will not be taken again; one that
    /// stays is harmless.
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

    /// The same, shared.
    pub(crate) fn shared_disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }
}
