//! The local directory of a mount's changes: its lock, its journal and one sparse data file for each changed file.
//!
//! Layout: `lock`, `journal`, `data/<node as 16 hex digits>`, `control.sock`. Holds the lock as long as it lives, so
//! two mounts never share an upper. Knows nothing of names or attributes.

use crate::change::NodeId;
use crate::errno::{Answer, Errno};
use crate::journal;
use crate::mountinfo;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use store::{Error, FileLock, Kind, Result};

/// At most this many data files are kept open; to open one more, another is closed.
const OPEN_MAX: usize = 512;

/// An upper, locked.
#[derive(Debug)]
pub(crate) struct Upper {
    path: PathBuf,
    data: OwnedFd,
    open: Mutex<HashMap<NodeId, Arc<File>>>,
    /// A data file was made since their directory was last synced.
    names_unsynced: AtomicBool,
    lock: Mutex<Option<FileLock>>,
}

const LOCK: &str = "lock";
/// How long a mount that has left the mount table may take to unlock its upper.
const RELEASE_MAX: Duration = Duration::from_secs(20);
/// How often its lock is checked.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A file in an upper whose mount had a failed sync.
const POISONED: &str = "poisoned";

/// Data files without a journal belong to changes that were never durable, or the journal was damaged: they are moved
/// to a directory `lost-N` of the upper and not deleted.
fn set_aside(upper: &Path) -> Result<()> {
    let data = upper.join("data");
    let failed = |error: std::io::Error| Error::io("cannot set changes aside", upper.display(), error);
    let is_empty = std::fs::read_dir(&data).map_err(failed)?.next().is_none();
    let journal_path = journal::path_in(upper);
    if is_empty || journal::read_header(&journal_path)?.is_some() {
        return Ok(());
    }
    let free = |number: &u32| !upper.join(format!("lost-{number}")).exists();
    let lost = upper.join(format!("lost-{}", (1..).find(free).unwrap_or(u32::MAX)));
    std::fs::create_dir(&lost).map_err(failed)?;
    std::fs::rename(&data, lost.join("data")).map_err(failed)?;
    match std::fs::rename(&journal_path, lost.join("journal")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::create_dir(&data).map_err(failed)?;
    tracing::warn!(set_aside = %lost.display(), "the upper's journal was never durable, or was damaged at its begin");
    Ok(())
}

/// Waits, [`RELEASE_MAX`] at most, for a mount with the upper at `path` that was just removed: it unlocks the upper
/// once all changes are durable. A mount that still exists, or stays in use, is found when the upper is opened.
///
/// # Errors
/// Those of taking the lock and of reading the mount table.
pub(crate) fn await_release(path: &Path) -> Result<()> {
    let Ok(path) = path.canonicalize() else { return Ok(()) };
    let is_held = || match FileLock::take(&path.join(LOCK), "a mount") {
        Err(error) if error.kind() == Kind::Conflict => Ok(true),
        taken => taken.map(|_| false),
    };
    let started = Instant::now();
    while is_held()? && !mountinfo::is_mounted_with(&path)? && started.elapsed() < RELEASE_MAX {
        std::thread::park_timeout(LOOK_AGAIN);
    }
    Ok(())
}

impl Upper {
    /// Opens or makes the upper at `path` and locks it.
    ///
    /// # Errors
    /// `Conflict` when another mount has it, and those of the file system.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let data_path = path.join("data");
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&data_path);
        made.map_err(|error| Error::io("cannot make the upper", path.display(), error))?;
        let path =
            path.canonicalize().map_err(|error| Error::io("cannot find the upper", path.display(), error))?;
        let lock = FileLock::take(&path.join(LOCK), "a mount").map_err(|error| match error.kind() {
            Kind::Conflict => Error::new(Kind::Conflict, "another mount uses this upper")
                .object(path.display())
                .caused_by(error)
                .advice("unmount that one first, or give this mount an upper of its own"),
            _ => error,
        })?;
        set_aside(&path)?;
        let data_path = path.join("data");
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let data = fs::open(&data_path, flags, Mode::empty())
            .map_err(|errno| Error::io("cannot open the upper", data_path.display(), errno.into()))?;
        Ok(Self {
            path,
            data,
            open: Mutex::default(),
            names_unsynced: AtomicBool::new(true),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Its path, without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of its journal.
    pub(crate) fn journal_path(&self) -> PathBuf {
        journal::path_in(&self.path)
    }

    /// Notes on disk, if that is possible, that a sync failed: writes not known to be durable may be lost.
    pub(crate) fn mark_poisoned(&self) {
        if let Err(error) = std::fs::write(self.path.join(POISONED), []) {
            tracing::error!(%error, upper = %self.path.display(), "the next mount will not know of a failed sync");
        }
    }

    /// Whether a sync failed and no mount has cleared the note since.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.path.join(POISONED).exists()
    }

    /// Clears the note of a failed sync: writes that may be lost were left out.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn unmark_poisoned(&self) -> Result<()> {
        let path = self.path.join(POISONED);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("cannot remove the note of a failed sync", path.display(), error))
            }
            _ => Ok(()),
        }
    }

    /// The data file of `node`; `None` when it has none.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn data_file(&self, node: NodeId) -> Answer<Option<Arc<File>>> {
        if let Some(file) = self.cached(node) {
            return Ok(Some(file));
        }
        match fs::openat(
            &self.data,
            name_of(node),
            OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        ) {
            Ok(file) => Ok(Some(self.keep_open(node, file))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The data file of `node`, made if it has none.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make_data_file(&self, node: NodeId) -> Answer<Arc<File>> {
        if let Some(file) = self.data_file(node)? {
            return Ok(file);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = fs::openat(&self.data, name_of(node), flags, Mode::RUSR | Mode::WUSR)?;
        self.names_unsynced.store(true, Ordering::Release);
        Ok(self.keep_open(node, file))
    }

    fn cached(&self, node: NodeId) -> Option<Arc<File>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    fn keep_open(&self, node: NodeId, file: OwnedFd) -> Arc<File> {
        let file = Arc::new(File::from(file));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN_MAX
            && let Some(other) = open.keys().next().copied()
        {
            open.remove(&other);
        }
        open.insert(node, file.clone());
        file
    }

    /// Removes the data file of `node`, if it has one. Reads in progress continue.
    pub(crate) fn remove_data_file(&self, node: NodeId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        match fs::unlinkat(&self.data, name_of(node), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // The next mount removes garbage that stays.
            Err(errno) => tracing::warn!(node = node.0, %errno, "a data file could not be removed"),
        }
    }

    /// Removes every data file except those of `kept`.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn remove_data_files_except(&self, kept: &HashSet<NodeId>) -> Result<()> {
        let path = self.path.join("data");
        let failed = |error: std::io::Error| Error::io("cannot list the upper", path.display(), error);
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let node = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok()).map(NodeId);
            if !node.is_some_and(|node| kept.contains(&node)) {
                std::fs::remove_file(path.join(&name)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Makes the data file of `node` durable, its name included.
    ///
    /// # Errors
    /// Those of the file system: writes may be lost then, even if a later call succeeds.
    pub(crate) fn sync_data_file(&self, node: NodeId) -> Answer<()> {
        if let Some(file) = self.data_file(node)? {
            fs::fdatasync(&file)?;
        }
        self.sync_names()
    }

    /// Makes all data files durable at once, by syncing the file system that the upper is on.
    ///
    /// # Errors
    /// As [`Self::sync_data_file`].
    pub(crate) fn sync_all_data(&self) -> Answer<()> {
        fs::syncfs(&self.data)
    }

    fn sync_names(&self) -> Answer<()> {
        if self.names_unsynced.swap(false, Ordering::AcqRel)
            && let Err(errno) = fs::fsync(&self.data)
        {
            self.names_unsynced.store(true, Ordering::Release);
            return Err(errno);
        }
        Ok(())
    }

    /// Space and inodes of the file system that the upper is on.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn space(&self) -> Answer<fs::StatVfs> {
        fs::fstatvfs(&self.data)
    }

    /// Unlocks the upper: another process may use it from now on.
    pub(crate) fn unlock(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn name_of(node: NodeId) -> String {
    format!("{:016x}", node.0)
}

/// Boot id of the running kernel.
///
/// # Errors
/// `Unavailable` when /proc is not mounted.
pub(crate) fn boot_id() -> Result<[u8; 16]> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text =
        std::fs::read_to_string(PATH).map_err(|error| Error::io("cannot read the boot id", PATH, error))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16);
    let number = number
        .map_err(|error| Error::new(Kind::Unavailable, "strange boot id").object(PATH).caused_by(error))?;
    Ok(number.to_be_bytes())
}
