//! Restore: a tree becomes a directory of the host. Every name is made, linked and changed in a directory that is held
//! open, and no symbolic link below the target is followed: no stored name can reach outside the target, and neither
//! can renaming or replacing directories meanwhile. Only the maker can access a directory being filled.
//!
//! The plan (one thread) walks the tree, makes directories and hands out files in batches; workers fetch a batch's
//! chunks in as few reads as they need and write its files. Links are made after all files, and a directory gets its
//! metadata when the last entry in it, or linked out of it, is made. Memory is bounded: each worker holds one batch of
//! about [`BATCH_LEN`] bytes.
//!
//! A refusal of the target is an error of that path; all others are made, and all refusals are reported. Only an error
//! of the store and a full target end a restore. A restore that ended early or had refusals may be repeated with the
//! same target: complete files, with all their attributes, stay; others are made again.

mod filling;
mod make;
mod metadata;
mod plan;
mod present;
mod refusal;
mod target;

pub use refusal::Refused;

use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::progress::{Progress, Work};
use crate::repo::config::TierClass;
use crate::repo::store::Store;
use crate::tree::{ContentReader, Extent, Inode};
use crossbeam_channel::bounded;
use filling::Place;
use make::Maker;
use plan::Plan;
use rustix::fs::Stat;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use target::{Request, Target};

/// Files are handed out in batches of about this many bytes, longer files in pieces of it,
const BATCH_LEN: u64 = 4 << 20;
/// or in batches of this many files.
const BATCH_FILES: usize = 128;
/// Most writing threads; all of them, regardless of cores, for tiers a round trip away.
const WORKERS_MAX: usize = 8;

/// The result of a restore.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use = "it names the paths that were refused"]
pub struct RestoreReport {
    /// Names that are not directories.
    pub files: u64,
    /// Those that an earlier restore to the same target had left there, complete.
    pub kept: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Paths that are missing, or not as they were stored.
    pub refused: Vec<Refused>,
}

/// Anything but a directory, to be made; of a regular file its bytes.
struct Leaf {
    place: Place,
    inode: Inode,
    content: Option<ContentReader>,
    /// Where other names of the same file look for it.
    first: Option<Arc<First>>,
}

/// The first name of a file with several.
struct First {
    place: Place,
    /// How the file looks, once it is made.
    made: OnceLock<Stat>,
}

impl First {
    fn new(place: &Place) -> Arc<Self> {
        let place = Place { directory: place.directory.clone(), name: place.name.clone() };
        Arc::new(Self { place, made: OnceLock::new() })
    }
}

/// A long file whose pieces several workers write.
struct Opened {
    file: File,
    leaf: Leaf,
    /// Whether a piece could not be written.
    is_lost: AtomicBool,
}

/// Something to be made by a worker.
enum Task {
    /// A complete file.
    Leaf(Box<Leaf>),
    /// A piece of a long file.
    Piece { opened: Arc<Opened>, extents: Vec<(u64, Extent)> },
}

/// Restores `path` in the snapshot's tree as `target`, which must not exist, be an empty directory, or be left there by
/// an earlier restore of the same path to the same target.
///
/// # Errors
/// `NotFound` for the path, `Conflict` when the target is in use, `Full` when it is full, and those of the store.
/// Refusals of single paths are in the report.
pub fn restore(
    store: &Store,
    snapshot: &SnapshotId,
    path: &[u8],
    target: &Path,
    progress: &dyn Progress,
) -> Result<RestoreReport> {
    let record = store.snapshot(snapshot)?;
    let tree =
        record.tree.ok_or_else(|| Error::new(Kind::NotFound, "snapshot holds no files").object(snapshot))?;
    let tree = store.tree(&tree)?;
    let inode = tree.lookup_path(path)?.ok_or_else(|| {
        Error::new(Kind::NotFound, "no such path in the snapshot").object(String::from_utf8_lossy(path))
    })?;
    let target = Target::take(&Request { store, snapshot, path, target }, &inode, progress)?;
    progress
        .begin("restore", if path.is_empty() { Work::Bytes(record.totals.bytes) } else { Work::SomeBytes });
    let maker = Maker::new(store, target.is_again, progress);
    let (tasks, waiting) = bounded::<Vec<Task>>(1);
    let links = std::thread::scope(|scope| {
        for _ in 0..workers(store) {
            let (maker, waiting) = (&maker, waiting.clone());
            let spawned = std::thread::Builder::new().name("restore".to_owned());
            spawned
                .spawn_scoped(scope, move || maker.run(&waiting))
                .map_err(|error| Error::io("cannot start a thread", "restore", error))?;
        }
        drop(waiting);
        Plan::new(store, &tree, &maker, tasks).run(&inode, &target)
    });
    let linked = links.and_then(|links| links.make(&tree, &maker));
    let report = target.end(maker, linked)?;
    progress.end();
    Ok(report)
}

fn workers(store: &Store) -> usize {
    let is_near = |class| class == TierClass::Hot;
    match store.placement().tiers().iter().all(|tier| is_near(tier.class)) {
        true => std::thread::available_parallelism().map_or(1, usize::from).clamp(2, WORKERS_MAX),
        false => WORKERS_MAX,
    }
}
