//! What the workers of a restore do: fetch the chunks of a batch, write files, set metadata.

use super::{Filling, Opened, RestoreReport, Task};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::pack::ChunkBytes;
use crate::progress::Progress;
use crate::repo::Store;
use crate::tree::{ContentReader, Extent, Inode, Metadata, Node, read_extent};
use crossbeam_channel::Receiver;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Mode bits that lend the rights of owner and group.
const SET_ID: u32 = 0o6000;
/// Chunks written at once.
const SLICES: usize = 64;
/// Plain bytes that the chunks of one batch may hold in memory, with what shares their frames.
const FETCH_BUDGET: u64 = 32 << 20;

/// Chunks that were fetched for a batch.
type Chunks = HashMap<ChunkId, ChunkBytes>;

/// Another name of a file that is made first.
pub struct Link {
    pub first: PathBuf,
    pub path: PathBuf,
    pub directory: Arc<Filling>,
}

/// What all workers share.
pub struct Maker<'a> {
    store: &'a Store,
    progress: &'a dyn Progress,
    report: Mutex<RestoreReport>,
    failure: Mutex<Option<Error>>,
    has_failed: AtomicBool,
}

/// An error of something that could not be done to a path.
pub fn cannot(what: &'static str, path: &Path) -> impl Fn(Errno) -> Error {
    move |error| Error::io(format!("cannot {what}"), path.display(), error.into())
}

impl<'a> Maker<'a> {
    pub fn new(store: &'a Store, progress: &'a dyn Progress) -> Self {
        let (report, failure, has_failed) = Default::default();
        Self { store, progress, report, failure, has_failed }
    }

    /// Makes what comes, until the first failure; what comes after it is dropped.
    pub fn run(&self, batches: &Receiver<Vec<Task>>) {
        for batch in batches {
            if self.has_failed.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = self.batch(batch) {
                self.has_failed.store(true, Ordering::Relaxed);
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    /// Stops the plan after a failure of a worker, which [`Self::finish`] tells.
    pub fn check(&self) -> Result<()> {
        match self.has_failed.load(Ordering::Relaxed) {
            true => Err(Error::new(crate::Kind::Internal, "a worker of the restore failed")),
            false => Ok(()),
        }
    }

    /// Makes the links, when all workers have ended and nothing failed; gives the report.
    pub fn finish(self, links: Result<Vec<Link>>) -> Result<RestoreReport> {
        if let Some(error) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        for Link { first, path, directory } in links? {
            rustix::fs::linkat(CWD, &first, CWD, &path, AtFlags::empty()).map_err(cannot("link", &path))?;
            self.count(|report| report.files += 1);
            self.release(Some(directory))?;
        }
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.not_permitted.sort_unstable();
        Ok(report)
    }

    fn report(&self) -> MutexGuard<'_, RestoreReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, change: impl FnOnce(&mut RestoreReport)) {
        change(&mut self.report());
    }

    fn not_permitted(&self, path: &Path, what: &str) {
        self.report().not_permitted.push(format!("{}: {what}", path.display()));
    }

    /// Gives up a hold on a directory. Whoever was the last sets its metadata: nothing in it changes any more.
    pub fn release(&self, mut directory: Option<Arc<Filling>>) -> Result<()> {
        while let Some(done) = directory.and_then(Arc::into_inner) {
            self.metadata_at(&done.metadata, &done.path)?;
            directory = done.parent;
        }
        Ok(())
    }

    fn batch(&self, batch: Vec<Task>) -> Result<()> {
        let mut ids = Vec::new();
        for task in &batch {
            let extents = match task {
                Task::Leaf { content, .. } => content.as_ref().map_or(&[][..], ContentReader::extents),
                Task::Piece { extents, .. } => extents,
            };
            ids.extend(extents.iter().filter_map(|(_, extent)| match extent {
                Extent::Chunk { id, .. } => Some(*id),
                Extent::Hole { .. } => None,
            }));
        }
        let chunks = match ids.is_empty() {
            true => Chunks::new(),
            false => self.store.fetch(&ids, FETCH_BUDGET),
        };
        for task in batch {
            match task {
                Task::Leaf { path, inode, content, directory } => {
                    self.leaf(&inode, content.as_ref(), &path, &chunks)?;
                    self.release(directory)?;
                }
                Task::Piece { opened, extents } => {
                    let written = self.write(&opened.file, &opened.path, &extents, &chunks);
                    written.map_err(|error| error.object(opened.path.display()))?;
                    self.close(opened)?;
                }
            }
        }
        Ok(())
    }

    /// Makes anything but a directory.
    fn leaf(
        &self,
        inode: &Inode,
        content: Option<&ContentReader>,
        path: &Path,
        chunks: &Chunks,
    ) -> Result<()> {
        self.count(|report| report.files += 1);
        match (&inode.node, content) {
            (_, Some(content)) => return self.file(content, &inode.metadata, path, chunks),
            (Node::Symlink(target), _) => {
                rustix::fs::symlink(target.as_slice(), path).map_err(cannot("link", path))?
            }
            (Node::CharDevice(number), _) => self.special(path, FileType::CharacterDevice, *number)?,
            (Node::BlockDevice(number), _) => self.special(path, FileType::BlockDevice, *number)?,
            (Node::Fifo, _) => self.special(path, FileType::Fifo, 0)?,
            (Node::Socket, _) => self.special(path, FileType::Socket, 0)?,
            (Node::File(_) | Node::Directory(_), None) => {}
        }
        self.metadata_at(&inode.metadata, path)
    }

    fn special(&self, path: &Path, kind: FileType, number: u64) -> Result<()> {
        match rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), number) {
            Err(Errno::PERM) => {
                self.not_permitted(path, "device");
                Ok(())
            }
            other => other.map_err(cannot("create special file", path)),
        }
    }

    fn file(&self, content: &ContentReader, metadata: &Metadata, path: &Path, chunks: &Chunks) -> Result<()> {
        let file = create(path, metadata)?;
        let written = match content.inline_bytes() {
            Some(bytes) => {
                let written = file.write_all_at(bytes, 0);
                written.map_err(|error| Error::io("cannot write file", path.display(), error))?;
                bytes.len() as u64
            }
            None => self
                .write(&file, path, content.extents(), chunks)
                .map_err(|error| error.object(path.display()))?,
        };
        if written < content.len_bytes() {
            rustix::fs::ftruncate(&file, content.len_bytes()).map_err(cannot("write file", path))?;
        }
        self.wrote(content.len_bytes());
        self.metadata_of(metadata, &file, path)
    }

    fn wrote(&self, len_bytes: u64) {
        self.count(|report| report.bytes += len_bytes);
        self.progress.advance(len_bytes);
    }

    /// Writes chunks to their places; gives where the last one ends.
    fn write(&self, file: &File, path: &Path, extents: &[(u64, Extent)], chunks: &Chunks) -> Result<u64> {
        let mut end = 0;
        let mut rest = extents;
        while let Some((start, _)) = rest.first() {
            // Chunks that follow each other go into one call.
            let mut run: Vec<ChunkBytes> = Vec::new();
            let mut at = *start;
            for (begin, extent) in rest.iter().take(SLICES) {
                match extent {
                    Extent::Chunk { id, len_bytes } if *begin == at => {
                        run.push(self.chunk(id, *len_bytes, chunks)?);
                        at += u64::from(*len_bytes);
                    }
                    _ => break,
                }
            }
            if run.is_empty() {
                rest = &rest[1..]; // a hole
                continue;
            }
            write_all(file, &run, *start).map_err(cannot("write file", path))?;
            rest = &rest[run.len()..];
            end = at;
        }
        Ok(end)
    }

    fn chunk(&self, id: &ChunkId, len_bytes: u32, chunks: &Chunks) -> Result<ChunkBytes> {
        match chunks.get(id) {
            Some(bytes) if bytes.len() == len_bytes as usize => Ok(bytes.clone()),
            _ => read_extent(self.store, id, len_bytes),
        }
    }

    /// Begins a long file.
    pub fn open(
        &self,
        path: PathBuf,
        metadata: &Metadata,
        len_bytes: u64,
        directory: Option<Arc<Filling>>,
    ) -> Result<Opened> {
        self.count(|report| report.files += 1);
        let file = create(&path, metadata)?;
        rustix::fs::ftruncate(&file, len_bytes).map_err(cannot("write file", &path))?;
        self.wrote(len_bytes);
        Ok(Opened { file, path, metadata: metadata.clone(), directory })
    }

    /// Gives up a hold on a long file. Whoever was the last ends it.
    pub fn close(&self, opened: Arc<Opened>) -> Result<()> {
        let Some(Opened { file, path, metadata, directory }) = Arc::into_inner(opened) else { return Ok(()) };
        self.metadata_of(&metadata, &file, &path)?;
        self.release(directory)
    }

    /// Owner first (it clears setuid), then attributes, mode and time. What runs with its owner's rights is not given those
    /// of whoever restores it.
    fn metadata_of(&self, metadata: &Metadata, file: &File, path: &Path) -> Result<()> {
        let stat = rustix::fs::fstat(file).map_err(cannot("look at", path))?;
        let owner = owner_to_set(metadata, &stat);
        let owned = owner.map(|(uid, gid)| rustix::fs::fchown(file, Some(uid), Some(gid)));
        let mode = self.mode(metadata, owned, path)?;
        for (name, value) in &metadata.xattrs {
            let set = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            self.attribute(set, path)?;
        }
        if stat.st_mode & 0o7777 != mode || !metadata.xattrs.is_empty() {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(cannot("set mode", path))?;
        }
        rustix::fs::futimens(file, &times(metadata)).map_err(cannot("set time", path))
    }

    /// The same for what is not open.
    fn metadata_at(&self, metadata: &Metadata, path: &Path) -> Result<()> {
        let Ok(stat) = rustix::fs::lstat(path) else { return Ok(()) }; // a device that was not permitted
        let kind = FileType::from_raw_mode(stat.st_mode);
        let owner = owner_to_set(metadata, &stat);
        let owned = owner.map(|(uid, gid)| {
            rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        });
        let mode = self.mode(metadata, owned, path)?;
        for (name, value) in &metadata.xattrs {
            let set = rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty());
            self.attribute(set, path)?;
        }
        if kind != FileType::Symlink {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(cannot("set mode", path))?;
        }
        rustix::fs::utimensat(CWD, path, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(cannot("set time", path))
    }

    /// The mode to set after the owner was, or could not be.
    fn mode(&self, metadata: &Metadata, owned: Option<rustix::io::Result<()>>, path: &Path) -> Result<u32> {
        match owned {
            Some(Err(Errno::PERM)) => {
                self.not_permitted(path, "owner");
                Ok(metadata.mode & !SET_ID)
            }
            Some(Err(error)) => Err(cannot("set owner", path)(error)),
            Some(Ok(())) | None => Ok(metadata.mode),
        }
    }

    fn attribute(&self, set: rustix::io::Result<()>, path: &Path) -> Result<()> {
        match set {
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {
                self.not_permitted(path, "extended attribute");
                Ok(())
            }
            other => other.map_err(cannot("set extended attribute", path)),
        }
    }
}

/// A new file. Directories made here are their maker's alone until all in them is done, so the final mode may be set at
/// once, but for bits that lend rights.
fn create(path: &Path, metadata: &Metadata) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(metadata.mode & 0o777);
    rustix::fs::open(path, flags, mode).map(File::from).map_err(cannot("write file", path))
}

/// The owner that a new file should have and has not.
fn owner_to_set(metadata: &Metadata, stat: &Stat) -> Option<(Uid, Gid)> {
    let differs = (stat.st_uid, stat.st_gid) != (metadata.uid, metadata.gid);
    differs.then(|| (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid)))
}

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: metadata.mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Writes byte strings one after the other from `offset` on.
fn write_all(file: &File, chunks: &[ChunkBytes], mut offset: u64) -> rustix::io::Result<()> {
    if let [only] = chunks {
        let written = file.write_all_at(only, offset);
        return written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        match rustix::io::pwritev(file, rest, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
