//! The record of a wake for the next capture: the image that the memory comes from, and every change by which the
//! owners released, unmapped or moved pages while pages were missing.
//!
//! One file for each wake in the local state, named by the number that the woken processes carry, with one JSON line
//! for each entry. The handler appends an entry before it does anything else about a change, and holds a lock on the
//! file while it serves: a file without a lock whose spaces did not end is of a handler that was killed. Only changes
//! that affect the content of a page are written, and each page and each mapping can be released once, so the number of
//! missing pages bounds the file.
//!
//! Entries have the time by which file systems stamp files: a dump is as old as its files, and later entries do not
//! concern it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use store::{Error, ImageId, Result, Store};

use crate::fault::Change;

/// The directory of these files, in the local state.
const DIRECTORY: &str = "wakes";
/// How long a file is kept whose processes have all ended: a dump has to be captured within this time.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The number of a wake; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WakeId(u64);

impl WakeId {
    /// A new one.
    fn random() -> Self {
        Self(u64::from_le_bytes(store::clock::random_bytes()).max(1))
    }

    /// `None` for zero.
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The number.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    fn file_name(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// A point in time as file systems stamp it: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Stamp(pub i64);

impl Stamp {
    /// Now, by the clock of file times, which lags behind the exact one.
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
    }
}

/// An entry of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// The first entry: the image that is woken.
    Image(String),
    /// A space that CRIU announced, by the number of its task.
    Task(u32),
    /// A space that was forked off another.
    Fork { parent: u32 },
    /// Bytes were released.
    Remove { start: u64, end: u64 },
    /// A range was unmapped.
    Unmap { start: u64, end: u64 },
    /// A range was moved.
    Remap { source: u64, target: u64, len_bytes: u64 },
    /// The process was traced, as a dump does, at some time after `from` and before this entry.
    Traced { from: Stamp },
    /// No page was missing any more; later changes are not on record.
    #[serde(rename = "whole")]
    Complete,
    /// The space ended.
    Ended { missing_pages: u64 },
}

impl From<Change> for Entry {
    fn from(change: Change) -> Self {
        match change {
            Change::Remove { start, end } => Self::Remove { start, end },
            Change::Unmap { start, end } => Self::Unmap { start, end },
            Change::Remap { source, target, len_bytes } => Self::Remap { source, target, len_bytes },
        }
    }
}

impl Entry {
    /// The change that this entry records, if it records one.
    pub(crate) fn change(&self) -> Option<Change> {
        match *self {
            Self::Remove { start, end } => Some(Change::Remove { start, end }),
            Self::Unmap { start, end } => Some(Change::Unmap { start, end }),
            Self::Remap { source, target, len_bytes } => Some(Change::Remap { source, target, len_bytes }),
            _ => None,
        }
    }
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The time of the entry.
    pub at: Stamp,
    /// Number of the space: counted from zero in the order of first entries.
    pub space: u32,
    /// The entry.
    pub entry: Entry,
}

/// The file of a wake under way.
#[derive(Debug)]
pub(crate) struct WakeLog {
    path: PathBuf,
    file: File,
    spaces: std::sync::atomic::AtomicU32,
}

impl WakeLog {
    /// A new file for a wake of an image.
    ///
    /// # Errors
    /// Those of making it.
    pub(crate) fn create(store: &Store, image: ImageId) -> Result<(WakeId, Arc<Self>)> {
        store.state().create_directory(DIRECTORY)?;
        let directory = store.state_dir().join(DIRECTORY);
        forget_old(&directory);
        let (id, path, file) = loop {
            let id = WakeId::random();
            let path = directory.join(id.file_name());
            match OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => break (id, path, file),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        };
        file.lock().map_err(failed(&path))?;
        let log = Self { path, file, spaces: std::sync::atomic::AtomicU32::new(0) };
        log.append(0, Stamp::now(), Entry::Image(image.to_string())).map_err(failed(&log.path))?;
        store.state().sync_directory(DIRECTORY)?;
        Ok((id, Arc::new(log)))
    }

    /// Begins the log of a new space.
    pub(crate) fn begin(self: &Arc<Self>, at: Stamp, entry: Entry) -> SpaceLog {
        let space = self.spaces.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = SpaceLog { log: Arc::clone(self), space };
        log.note(at, entry);
        log
    }

    fn append(&self, space: u32, at: Stamp, entry: Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&Line { at, space, entry })?;
        line.push(b'\n');
        (&self.file).write_all(&line)
    }
}

/// The part of a log that is about one space.
#[derive(Debug)]
pub(crate) struct SpaceLog {
    log: Arc<WakeLog>,
    space: u32,
}

impl SpaceLog {
    /// Appends an entry. A log that cannot be written is removed: without one, a capture refuses.
    pub(crate) fn note(&self, at: Stamp, entry: Entry) {
        let is_last = matches!(entry, Entry::Complete | Entry::Ended { .. });
        let noted = self.log.append(self.space, at, entry);
        let noted = noted.and_then(|()| if is_last { self.log.file.sync_data() } else { Ok(()) });
        if let Err(error) = noted {
            tracing::warn!(%error, path = %self.log.path.display(), "the record of this wake is lost: a dump of what is woken cannot be captured before all its memory is there");
            if let Err(error) = std::fs::remove_file(&self.log.path)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::error!(%error, "a record that is not complete stays");
            }
        }
    }

    /// Begins the log of a space that is forked off this one.
    pub(crate) fn fork(&self, at: Stamp) -> Self {
        self.log.begin(at, Entry::Fork { parent: self.space })
    }
}

/// The file of a wake, read.
#[derive(Debug)]
pub(crate) struct Wake {
    /// The image that was woken.
    pub image: ImageId,
    /// All entries, in order.
    pub lines: Vec<Line>,
    /// Whether the handler still serves.
    pub is_served: bool,
}

impl Wake {
    /// Reads the file of a wake; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` when the file is no record of a wake; those of reading it.
    pub(crate) fn read(store: &Store, id: WakeId) -> Result<Option<Self>> {
        let path = store.state_dir().join(DIRECTORY).join(id.file_name());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path)(error)),
        };
        // Checked before the lines are read: if the handler has ended by then, all of its lines are there.
        let is_served = file.try_lock_shared().is_err();
        let text = std::io::read_to_string(&file).map_err(failed(&path))?;
        Self::parse(&text, is_served).map(Some).map_err(|error| error.object(path.display()))
    }

    pub(crate) fn parse(text: &str, is_served: bool) -> Result<Self> {
        // A line that is being written ends without a line feed.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let broken = || Error::new(store::Kind::Corrupt, "the record of a wake is not readable");
        let mut lines = Vec::new();
        for line in complete.lines() {
            lines.push(serde_json::from_str::<Line>(line).map_err(|error| broken().caused_by(error))?);
        }
        let Some(Line { entry: Entry::Image(image), .. }) = lines.first() else { return Err(broken()) };
        let image = image.parse()?;
        Ok(Self { image, lines, is_served })
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    |error| Error::io("cannot keep the record of a wake", path.display(), error)
}

/// Removes old files that no handler holds locked and whose number no running process carries.
fn forget_old(directory: &Path) {
    let old = |entry: std::fs::DirEntry| {
        let age = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
        let id = u64::from_str_radix(entry.file_name().to_str()?, 16).ok()?;
        let is_free = || File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        (age > KEPT && is_free()).then(|| (id, entry.path()))
    };
    let mut old: Vec<(u64, PathBuf)> =
        std::fs::read_dir(directory).into_iter().flatten().flatten().filter_map(old).collect();
    if old.is_empty() {
        return;
    }
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let vector = std::fs::read(process.path().join("auxv")).unwrap_or_default();
        let (words, _) = vector.as_chunks::<8>();
        old.retain(|(id, _)| !words.iter().any(|word| u64::from_ne_bytes(*word) == *id));
    }
    for (_, path) in old {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(%error, path = %path.display(), "an old record of a wake stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_an_incomplete_line_is_left_out() {
        let image = ImageId::from(store::ChunkId::from_bytes([7; 32]));
        let lines = [
            Line { at: Stamp(1), space: 0, entry: Entry::Image(image.to_string()) },
            Line { at: Stamp(2), space: 0, entry: Entry::Task(42) },
            Line { at: Stamp(3), space: 0, entry: Entry::Remove { start: 4096, end: 8192 } },
            Line { at: Stamp(4), space: 1, entry: Entry::Fork { parent: 0 } },
            Line { at: Stamp(5), space: 1, entry: Entry::Complete },
        ];
        // The name in files of earlier versions.
        assert_eq!(serde_json::to_string(&Entry::Complete).expect("text"), "\"whole\"");
        let text: String =
            lines.iter().map(|line| serde_json::to_string(line).expect("text") + "\n").collect();
        for cut in [text.clone(), text.clone() + "{\"at\":6"] {
            let wake = Wake::parse(&cut, false).expect("read");
            assert_eq!((wake.image, &wake.lines[..]), (image, &lines[..]));
        }
        assert!(Wake::parse("", false).is_err());
        assert!(Wake::parse(&text[text.find('\n').expect("lines") + 1..], false).is_err());
        assert!(Wake::parse("nonsense\n", false).is_err());
    }

    #[test]
    fn old_files_go_unless_a_process_carries_their_number() {
        let directory = tempfile::tempdir().expect("a directory");
        // Every process has the page size in its vector.
        for name in ["0000000000001000", "00000000deadbeef", "00000000feedbeef"] {
            let file = File::create(directory.path().join(name)).expect("made");
            if name != "00000000feedbeef" {
                file.set_modified(std::time::UNIX_EPOCH).expect("aged");
            }
        }
        forget_old(directory.path());
        let mut left: Vec<_> = std::fs::read_dir(directory.path())
            .expect("listed")
            .map(|entry| entry.expect("listed").file_name().into_string().expect("text"))
            .collect();
        left.sort();
        assert_eq!(left, ["0000000000001000", "00000000feedbeef"]);
    }
}
