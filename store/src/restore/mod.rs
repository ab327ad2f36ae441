//! Restore: a tree becomes a directory of the host. Only new names in directories made here are written, so nothing
//! stored can reach outside the target, whatever it holds.
//!
//! The plan (one thread) walks the tree, makes directories and hands out files in batches; workers fetch a batch's chunks
//! in as few reads as they need and write its files. A directory gets its metadata when the last that is in it is made,
//! and links are made at the end. Memory is bounded: each worker holds one batch of about [`BATCH_LEN`] bytes.

mod make;
mod plan;

use crate::config::TierClass;
use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::progress::{Progress, Work};
use crate::repo::Store;
use crate::tree::{ContentReader, Extent, Inode, Metadata};
use crossbeam_channel::bounded;
use make::Maker;
use plan::Plan;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files are handed out in batches of about so many bytes, and longer files in pieces of it,
const BATCH_LEN: u64 = 4 << 20;
/// or so many files.
const BATCH_FILES: usize = 128;
/// Writing threads; for tiers that are a round trip away so many whatever cores there are.
const WORKERS_MAX: usize = 8;

/// What a restore did.
#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    /// Names that are not directories.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Owners, devices or attributes that this user may not set, and where.
    pub not_permitted: Vec<String>,
}

/// A directory being filled. It is given up by every holder with [`Maker::release`].
struct Filling {
    path: PathBuf,
    metadata: Metadata,
    parent: Option<Arc<Filling>>,
}

/// A long file whose pieces several workers write.
struct Opened {
    file: File,
    path: PathBuf,
    metadata: Metadata,
    directory: Option<Arc<Filling>>,
}

/// Something to be made by a worker.
enum Task {
    /// Anything but a directory; of a regular file its bytes.
    Leaf { path: PathBuf, inode: Inode, content: Option<ContentReader>, directory: Option<Arc<Filling>> },
    /// A piece of a long file.
    Piece { opened: Arc<Opened>, extents: Vec<(u64, Extent)> },
}

/// Restores what stands at `path` in the snapshot's tree as `target`, which must not exist or be an empty directory.
///
/// # Errors
/// `NotFound` for the path, `Conflict` when the target is in use; those of the store and of the target's file system.
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
    progress
        .begin("restore", if path.is_empty() { Work::Bytes(record.totals.bytes) } else { Work::SomeBytes });
    let maker = Maker::new(store, progress);
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
        Plan::new(store, &tree, &maker, tasks).run(&inode, target)
    });
    let report = maker.finish(links)?;
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
