//! Backup: a directory of the host becomes a tree. Files that did not change since the ref's last snapshot (by device,
//! inode, size, mtime and ctime) are taken over without being read.

mod stat_cache;
mod walk;

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::progress::{Progress, Work};
use crate::tree::{Metadata, TreeRoot};
use crate::writer::{SnapshotDraft, WriteStats, Writer};
use globset::{Glob, GlobSet, GlobSetBuilder};
use std::collections::BTreeMap;
use std::path::Path;

/// What to leave out and what to note.
#[derive(Clone, Debug, Default)]
pub struct BackupOptions {
    /// Globs of what is left out: without a slash they match names, with one they match paths below the source.
    pub exclude: Vec<String>,
    /// Do not descend into other file systems.
    pub one_file_system: bool,
    /// Labels of the snapshot.
    pub labels: BTreeMap<String, String>,
}

/// What a backup did.
#[derive(Clone, Debug)]
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
    /// What was written.
    pub stats: WriteStats,
    /// Files that could not be read, and why: the snapshot lacks them.
    pub unreadable: Vec<String>,
}

/// Backs up `source` into the ref `name` and commits.
///
/// # Errors
/// `NotFound` or `Invalid` for the source, `Invalid` for a glob; those of the store. A file that cannot be read is no
/// error but stands in the report.
pub fn backup(
    writer: &mut Writer,
    source: &Path,
    name: &str,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<BackupReport> {
    crate::check_name(name)?;
    let exclude = Exclude::new(&options.exclude)?;
    let store = writer.store().clone();
    let parent = store.refs().get(name)?.and_then(|found| found.current());
    let mut cache = stat_cache::StatCache::load(store.state_dir(), name, parent.as_ref());
    progress.begin("back up", Work::SomeBytes);
    let mut walk = walk::Walk::new(writer, source, &exclude, options.one_file_system, progress, &mut cache)?;
    let parent_tree = match &parent {
        Some(id) => store.snapshot(id)?.tree.map(|tree| store.tree(&tree)).transpose()?,
        None => None,
    };
    let root = walk.run(parent_tree.as_ref())?;
    let walk::Counts { files, directories, unchanged_files, bytes, unreadable } = walk.into_counts();
    let tree = writer.put_tree(&root)?;
    let mut labels = options.labels.clone();
    labels.entry("source".to_owned()).or_insert_with(|| source.display().to_string());
    let draft =
        SnapshotDraft { tree: Some(tree), image: None, parent, labels, files: files + directories, bytes };
    let snapshot = writer.commit(name, draft)?;
    if let Err(error) = cache.save(store.state_dir(), name, &snapshot) {
        progress.note(&format!("the next backup will read every file again: {error}"));
    }
    progress.end();
    Ok(BackupReport {
        snapshot,
        files,
        directories,
        unchanged_files,
        bytes,
        stats: writer.stats(),
        unreadable,
    })
}

/// Compiled globs.
struct Exclude {
    names: GlobSet,
    paths: GlobSet,
}

impl Exclude {
    fn new(globs: &[String]) -> Result<Self> {
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for text in globs {
            let bad = |error| Error::invalid("not a glob").object(text).caused_by(error);
            let glob = Glob::new(text.trim_matches('/')).map_err(bad)?;
            match text.trim_end_matches('/').contains('/') {
                true => paths.add(glob),
                false => names.add(glob),
            };
        }
        let built = names.build().and_then(|names| Ok(Self { names, paths: paths.build()? }));
        built.map_err(|error| Error::invalid("globs are too many or too large").caused_by(error))
    }

    fn matches(&self, relative: &Path) -> bool {
        self.paths.is_match(relative) || relative.file_name().is_some_and(|name| self.names.is_match(name))
    }
}

/// The metadata of a root that no directory of the host stands for.
fn bare_root() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

/// A tree's root, put together by the walk.
type Root = TreeRoot;
