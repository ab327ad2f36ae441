//! Backup: a directory of the host becomes a tree. Files that did not change since the ref's last snapshot (by device,
//! inode, size, mtime and ctime) are taken over without being read.
//!
//! A walk runs ahead and lists entries, readers read, cut and hash changed files, and the assembler builds the tree in
//! the walk's order. Memory is bounded: [`SEGMENTS_AHEAD`] segments, each with at most a few pieces of about a MiB
//! waiting.
//!
//! Below the source nothing is looked up by a path, and no symbolic link is followed: see [`crate::host::held`]. The
//! stored stat, attributes and bytes of a file are of one inode, whatever is renamed meanwhile.

mod assemble;
mod events;
mod exclude;
mod levels;
mod read;
mod stat_cache;
mod walk;

use crate::buffer_pool::BufferPool;
use crate::error::{Error, Result};
use crate::host::held::{self, Name};
use crate::id::SnapshotId;
use crate::progress::{Progress, Work};
use crate::tree::{Metadata, Tree};
use crate::writer::{SnapshotDraft, WriteStats, Writer};
use crossbeam_channel::bounded;
use events::Remark;
use exclude::Exclude;
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Options of a backup.
#[derive(Clone, Debug, Default)]
pub struct BackupOptions {
    /// Patterns of excluded paths, relative to the source, as in `.gitignore`: `*`, `?` and `[!x]` never match a slash,
    /// `**` stands for any number of names. Without a slash a pattern matches a name at any depth, with one at its
    /// beginning or inside it is anchored at the source, with one at its end it matches directories only.
    pub exclude: Vec<String>,
    /// Do not descend into other file systems.
    pub one_file_system: bool,
    /// Read every file, also those that look unchanged, and take nothing over from the last snapshot: chunks of it that
    /// cannot be read any more are stored again.
    pub force_read: bool,
    /// Read stored duplicates of chunks new to the last snapshot, and compare: see [`Writer::compare_duplicates`].
    pub compare: bool,
    /// Labels of the snapshot.
    pub labels: BTreeMap<String, String>,
}

/// The result of a backup.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "it names the paths that were left out"]
pub struct BackupReport {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Names that are not directories.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Regular files taken over unread.
    pub unchanged_files: u64,
    /// Logical bytes of regular files.
    pub bytes: u64,
    /// Counts of the writer.
    pub stats: WriteStats,
    /// Files that could not be read, and why: the snapshot lacks them.
    pub unreadable: Vec<String>,
    /// Extended attributes that could not be read, with path and reason: the snapshot lacks them.
    pub unreadable_attributes: Vec<String>,
    /// Files that were written while they were read, and how: they are stored as they were read, no longer than they
    /// were when they were opened, and the next backup reads them again.
    pub changed: Vec<String>,
    /// Names that were listed and gone before they were examined.
    pub vanished: Vec<String>,
}

/// Backs up `source` into the ref `name` and commits.
///
/// # Errors
/// `NotFound` or `Invalid` for the source, `Invalid` for a pattern; those of the store. An unreadable file is no error
/// but is in the report.
pub fn backup(
    writer: &mut Writer,
    source: &Path,
    name: &str,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<BackupReport> {
    crate::records::reference::check_name(name)?;
    let exclude = Exclude::new(&options.exclude)?;
    if options.compare {
        writer.compare_duplicates();
    }
    let store = writer.store().clone();
    let parent = store.refs().get(name)?.and_then(|found| found.current());
    let known = parent.as_ref().filter(|_| !options.force_read);
    let cache = stat_cache::StatCache::load(store.state(), store.domain().local_hasher(), name, known);
    progress.begin("back up", Work::SomeBytes);
    let parent_tree = match known {
        Some(id) => store.snapshot(id)?.tree.map(|tree| store.tree(&tree)).transpose()?,
        None => None,
    };
    let plan = Plan { source, exclude: &exclude, options, parent: parent_tree.as_ref(), cache: &cache };
    let assemble::Assembled { root, counts, looks } = plan.run(writer, progress)?;
    let assemble::Counts { files, directories, bytes, .. } = counts;
    let tree = writer.put_tree(&root)?;
    let mut labels = options.labels.clone();
    labels.entry("source".to_owned()).or_insert_with(|| source.display().to_string());
    let draft =
        SnapshotDraft { tree: Some(tree), image: None, parent, labels, files: files + directories, bytes };
    let snapshot = writer.commit(name, draft)?;
    if let Err(error) = cache.save(&looks, store.state(), name, &snapshot) {
        progress.note(&format!("the next backup will read every file again: {error}"));
    }
    progress.end();
    Ok(BackupReport {
        snapshot,
        files,
        directories,
        unchanged_files: counts.unchanged_files,
        bytes,
        stats: writer.stats(),
        unreadable: counts.unreadable,
        unreadable_attributes: counts.unreadable_attributes,
        changed: counts.changed,
        vanished: counts.vanished,
    })
}

/// Segments of a walk that wait for the assembler.
const SEGMENTS_AHEAD: usize = 8;
/// Reading threads: more would only wait for the compressing ones.
const READERS_MAX: usize = 8;

/// The inputs of a backup.
struct Plan<'a> {
    source: &'a Path,
    exclude: &'a Exclude,
    options: &'a BackupOptions,
    parent: Option<&'a Tree>,
    cache: &'a stat_cache::StatCache,
}

impl Plan<'_> {
    /// Runs walk, readers and assembler on their threads. The source itself must be readable.
    fn run(&self, writer: &mut Writer, progress: &dyn Progress) -> Result<assemble::Assembled> {
        let failed = |error: io::Error| Error::io("cannot back up", self.source.display(), error);
        held::require_proc()?;
        let (root, top, device) = self.root().map_err(failed)?;
        let store = writer.store().clone();
        let readers = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, READERS_MAX);
        let (segments, coming) = bounded(SEGMENTS_AHEAD);
        let (batches, waiting) = bounded(readers);
        let buffers = BufferPool::new(read::SPARE_BUFFERS, read::BUFFER_LEN);
        let walk = walk::Walk {
            source: top.clone(),
            exclude: self.exclude,
            device: self.options.one_file_system.then_some(device),
            cache: self.cache,
            parent: self.parent,
            segments,
            batches,
            state: walk::State::new(),
        };
        std::thread::scope(|scope| {
            let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let no_thread = |error| Error::io("cannot start a thread", "backup", error);
            for _ in 0..readers {
                let reader = read::Reader::new(store.domain(), self.cache, buffers.clone());
                let waiting = waiting.clone();
                named("read").spawn_scoped(scope, move || reader.run(&waiting)).map_err(no_thread)?;
            }
            named("walk").spawn_scoped(scope, move || walk.run(root)).map_err(no_thread)?;
            // When it ends early, `coming` is closed and the walk ends, and with it the readers.
            let coming = coming;
            assemble::Assembler::new(writer, &top, self.parent, progress, buffers.clone()).run(&coming)
        })
    }

    /// The source, a symbolic link followed, the path that names entries below it, and its device.
    fn root(&self) -> io::Result<(walk::Root, PathBuf, u64)> {
        let pin = held::pin(self.source)?;
        let stat = fstat(&pin)?;
        if held::file_type(&stat) == FileType::Directory {
            let directory = held::open_directory_at(&pin, b".")?;
            return Ok((walk::Root::Directory(directory), self.source.to_owned(), stat.st_dev));
        }
        let path = self.source.canonicalize()?;
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        let top = path.parent().unwrap_or(&path).to_owned();
        Ok((walk::Root::Other(name, pin, Box::new(stat)), top, stat.st_dev))
    }
}

/// Remarks on extended attributes that could not be read; without a name, on all that a file may have.
fn attribute_remarks(path: impl Fn() -> PathBuf, failed: Vec<(Name, Errno)>) -> Vec<Remark> {
    let remark = |(name, error): (Name, Errno)| {
        let (path, error) = (path(), io::Error::from(error));
        Remark::Attribute(match name.is_empty() {
            true => format!("{}: cannot list its extended attributes: {error}", path.display()),
            false => {
                let name = String::from_utf8_lossy(&name);
                format!("{}: cannot read its extended attribute {name}: {error}", path.display())
            }
        })
    };
    failed.into_iter().map(remark).collect()
}

/// The metadata of a root that is no directory of the host.
fn bare_root() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}
