//! Locks of one host: advisory file locks, which the kernel drops when their holder dies. One writer at a time, one
//! collector at a time; readers take none. A held lock is tried again for a time that the caller states.

use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::host::disk::{self, Disk, DiskFile, HostDisk};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Held by the one writer of a host that adds snapshots.
pub const AUTHOR_LOCK: &str = "lock";
/// Held by the one writer of a host that puts stored frames into other packs.
pub const REWRITER_LOCK: &str = "rewriter.lock";
/// Held by the collector of a host, and by operations that must not run beside one.
pub const COLLECTOR_LOCK: &str = "gc.lock";
/// Held while packs move between tiers.
pub const MOVER_LOCK: &str = "mover.lock";

/// How often a held lock is tried again.
const POLL: Duration = Duration::from_millis(20);
/// How long a holder may take to write its name.
const NAMELESS: Duration = Duration::from_millis(300);
/// Maximum bytes read of a holder's text.
const TEXT_MAX: usize = 256;

/// Observed state of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// It is held.
    Held,
    /// Its file exists, and it is not held.
    Free,
    /// It has no file.
    Absent,
}

/// A held lock; dropping it releases it.
#[derive(Debug)]
#[must_use = "dropping it gives the lock back"]
pub struct FileLock {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    _held: Box<dyn DiskFile>,
}

impl FileLock {
    /// Takes the lock at once or fails, and writes `purpose` and the process id into it for others to read. Local state
    /// may be lost at any time, so a missing directory is created.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when it is held.
    pub fn take(path: &Path, purpose: &str) -> Result<Self> {
        Self::take_on(&(Arc::new(HostDisk) as Arc<dyn Disk>), path, purpose, Duration::ZERO)
    }

    /// As [`Self::take`] on any file system, trying again each [`POLL`] for as long as `wait`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_on(disk: &Arc<dyn Disk>, path: &Path, purpose: &str, wait: Duration) -> Result<Self> {
        let failed = |error| Error::io("cannot lock", path.display(), error);
        disk::create_directories(&**disk, Path::new("/"), disk::parent(path))?;
        let begun = Instant::now();
        let mut is_told = false;
        let mut held = loop {
            if let Some(held) = disk.lock(path, false).map_err(failed)? {
                break held;
            }
            let holder = holder(&**disk, path);
            let waited = begun.elapsed();
            // A holder that has just begun writes its name soon, and one that is just ending is gone soon.
            if waited >= wait && (holder.is_some() || waited >= NAMELESS) {
                return Err(locked(&**disk, path, holder, waited));
            }
            if !is_told && waited >= NAMELESS {
                is_told = true;
                let (holder, longest) = (name(&**disk, path, holder), wait.as_secs_f64().round());
                tracing::warn!(lock = %path.display(), "waiting for {holder}, at most {longest} s");
            }
            std::thread::park_timeout(POLL);
        };
        let text = format!("{purpose} (pid {})\n", std::process::id());
        if let Err(error) = held.write(text.as_bytes()) {
            // The text is for people: the collector must run on a full disk.
            tracing::debug!(path = %path.display(), %error, "lock does not name its holder");
        }
        Ok(Self { disk: disk.clone(), path: path.to_owned(), _held: held })
    }

    /// Whether the lock at `path` is held.
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

    /// Removes the lock's file, which no process will take again, and releases the lock.
    pub fn remove(self) {
        // A leftover lock file that is not held means nothing, so a failure here is harmless.
        if let Err(error) = self.disk.unlink(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays");
        }
    }
}

/// The holder's own text; `None` while it is not written yet, or is still the previous holder's.
fn holder(disk: &dyn Disk, path: &Path) -> Option<String> {
    let bytes = disk.open(path).and_then(|file| disk::read_all(&*file)).ok()?;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_MAX)]).trim().to_owned();
    let written = text.rsplit_once("(pid ")?.1.strip_suffix(')')?.parse::<u32>().ok()?;
    let is_stale = disk.lock_holder(path).pid.is_some_and(|pid| pid != written);
    (!is_stale).then_some(text)
}

/// Describes a holder that may not have written its name.
fn name(disk: &dyn Disk, path: &Path, holder: Option<String>) -> String {
    holder.unwrap_or_else(|| match disk.lock_holder(path).pid {
        Some(pid) => format!("a process that has not said its name (pid {pid})"),
        None => "a process that has not said its name".to_owned(),
    })
}

fn locked(disk: &dyn Disk, path: &Path, holder: Option<String>, waited: Duration) -> Error {
    let holder = name(disk, path, holder);
    let age =
        disk.lock_holder(path).since.map(|since| clock::now().seconds.saturating_sub(since.seconds).max(0));
    let age = age.map(|seconds| format!(" for {seconds} s")).unwrap_or_default();
    let waiting = match waited.as_secs() {
        0 => String::new(),
        seconds => format!(", and still after {seconds} s of waiting"),
    };
    Error::new(Kind::Conflict, format!("locked by {holder}{age}{waiting}"))
        .object(path.display())
        .advice("one process does this at a time: wait until it ends, then try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(path: &Path, purpose: &str, wait: Duration) -> Result<FileLock> {
        FileLock::take_on(&(Arc::new(HostDisk) as Arc<dyn Disk>), path, purpose, wait)
    }

    #[test]
    fn a_holder_is_named_whatever_its_file_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let own = format!("(pid {})", std::process::id());
        let lock = take(&path, "backup web", Duration::ZERO).unwrap();
        let error = take(&path, "another", Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(&format!("locked by backup web {own} for 0 s")), "{error}");
        // As if the holder had not written yet, or its disk were full, or the one before it had died.
        for text in ["", "\n", "cut (pi", "an earlier one (pid 4194305)"] {
            std::fs::write(&path, text).unwrap();
            let error = take(&path, "another", Duration::ZERO).unwrap_err();
            let expected = format!("locked by a process that has not said its name {own}");
            assert!(error.to_string().contains(&expected), "{text:?}: {error}");
        }
        drop(lock);
        drop(take(&path, "another", Duration::ZERO).unwrap());
    }

    #[test]
    fn a_lock_that_is_let_go_meanwhile_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = take(&path, "first", Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| take(&path, "second", Duration::from_secs(60)));
            drop(lock);
            drop(second.join().unwrap().unwrap());
        });
    }
}
