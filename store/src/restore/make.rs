//! The workers of a restore: fetching the chunks of a batch, writing files, setting metadata.

use super::filling::{Descriptors, Filling, Place};
use super::metadata;
use super::present::{self, LOST_AND_FOUND, Present, Wanted};
use super::refusal::{Failure, Refusal, Refused, of_data, of_name};
use super::{First, Leaf, Opened, RestoreReport, Task};
use crate::error::{Error, Result};
use crate::host::held::{self, Handle};
use crate::id::ChunkId;
use crate::pack::ChunkBytes;
use crate::progress::Progress;
use crate::repo::store::Store;
use crate::sync::Mutex;
use crate::tree::{ContentReader, Extent, Inode, Metadata, Node, read_extent};
use crossbeam_channel::Receiver;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

/// Most chunks written in one call.
const SLICES: usize = 64;
/// Plain bytes that one batch may hold in memory: its chunks and all others in their frames.
const FETCH_BUDGET: u64 = 32 << 20;

/// Chunks that were fetched for a batch.
type Chunks = HashMap<ChunkId, ChunkBytes>;

/// The state that all workers share.
pub(super) struct Maker<'a> {
    store: &'a Store,
    progress: &'a dyn Progress,
    /// Whether an earlier restore left files in the target.
    is_again: bool,
    descriptors: Descriptors,
    report: Mutex<RestoreReport>,
    failure: Mutex<Option<Error>>,
    has_failed: AtomicBool,
}

impl<'a> Maker<'a> {
    pub(super) fn new(store: &'a Store, is_again: bool, progress: &'a dyn Progress) -> Self {
        let (descriptors, report, failure, has_failed) = Default::default();
        Self { store, progress, is_again, descriptors, report, failure, has_failed }
    }

    /// Processes tasks until the first failure that ends the restore; later tasks are dropped.
    pub(super) fn run(&self, batches: &Receiver<Vec<Task>>) {
        batches.iter().for_each(|batch| self.batch(batch));
    }

    /// Stops the plan after a worker failed; [`Self::finish`] returns that failure.
    pub(super) fn check(&self) -> Result<()> {
        match self.has_failed() {
            true => Err(Error::new(crate::error::Kind::Internal, "a worker of the restore failed")),
            false => Ok(()),
        }
    }

    /// Returns the report, or the failure that ended the restore.
    pub(super) fn finish(self, planned: Result<()>) -> Result<RestoreReport> {
        let failure = self.failure.into_inner();
        if let Some(error) = failure.or(planned.err()) {
            return Err(error.further_advice("then restore again to the same target: that goes on from here"));
        }
        let mut report = self.report.into_inner();
        report.refused.sort_unstable();
        Ok(report)
    }

    fn report(&self) -> MutexGuard<'_, RestoreReport> {
        self.report.lock()
    }

    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    fn fail(&self, error: Error) {
        self.has_failed.store(true, Ordering::Relaxed);
        self.failure.lock().get_or_insert(error);
    }

    pub(super) fn refuse(&self, place: &Place, refusal: Refusal) {
        let Refusal { what, is_permission } = refusal;
        self.report().refused.push(Refused { path: place.path(), what, is_permission });
    }

    /// Records whether a path was made.
    fn note(&self, place: &Place, made: Result<(), Failure>) {
        match made {
            Ok(()) => {}
            Err(Failure::Refused(refusal)) => self.refuse(place, refusal),
            Err(Failure::Fatal(error)) => self.fail(error.object(place.path().display())),
        }
    }

    /// Releases a hold on a directory. The last release sets its metadata: nothing in it changes any more. After a
    /// failure directories stay accessible to their maker only.
    pub(super) fn release(&self, directory: Arc<Filling>) {
        let mut held = Some(directory);
        while let Some(mut done) = held.and_then(Arc::into_inner) {
            if !self.has_failed() {
                self.end_directory(&mut done);
            }
            held = done.parent.take();
        }
    }

    fn end_directory(&self, directory: &mut Filling) {
        let Some(metadata) = directory.metadata.take() else { return };
        let path = directory.path();
        let mut tell = |refusal: Refusal| {
            let Refusal { what, is_permission } = refusal;
            self.report().refused.push(Refused { path: path.clone(), what, is_permission });
        };
        match self.descriptors.last_of(directory) {
            Ok(Some(fd)) => {
                if directory.was_there {
                    metadata::strip(&metadata, fd.as_fd(), &mut tell);
                }
                metadata::set(&metadata, Handle::Open(fd.as_fd()), &mut tell);
            }
            Ok(None) => {}
            Err(Failure::Refused(refusal)) => tell(refusal),
            Err(Failure::Fatal(error)) => self.fail(error),
        }
    }

    /// Makes a directory and opens it. One that cannot be made is reported and counts as lost.
    pub(super) fn directory(&self, place: Place, metadata: Metadata) -> Result<Arc<Filling>> {
        match self.make_directory(&place) {
            Ok((fd, stat, was_there)) => {
                self.count_directory();
                Ok(self.descriptors.made(place, metadata, was_there, fd, stat))
            }
            Err(Failure::Refused(refusal)) => {
                self.refuse(&place, refusal);
                Ok(Filling::lost(place.directory, place.name))
            }
            Err(Failure::Fatal(error)) => Err(error.object(place.path().display())),
        }
    }

    fn make_directory(&self, place: &Place) -> Result<(OwnedFd, Stat, bool), Failure> {
        let (parent, name) = (self.descriptors.of(&place.directory)?, place.name.as_slice());
        let failed = of_name("cannot create directory", &parent);
        let mut was_there = false;
        match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
            Err(Errno::EXIST) if self.may_be_there(place) => {
                let found = held::pin_at(&parent, name).map_err(&failed)?;
                let stat = rustix::fs::fstat(&found).map_err(&failed)?;
                was_there = held::file_type(&stat) == FileType::Directory;
                if was_there {
                    // Before opening: its mode may exclude even its owner.
                    metadata::take_over(Handle::Pinned(found.as_fd()), &stat);
                } else {
                    rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(&failed)?;
                    rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(&failed)?;
                }
            }
            made => made.map_err(&failed)?,
        }
        let fd = held::open_directory_at(&parent, name).map_err(of_name("cannot open directory", &parent))?;
        let stat = rustix::fs::fstat(&fd).map_err(&failed)?;
        Ok((fd, stat, was_there))
    }

    /// Whether a name may be in use already.
    fn may_be_there(&self, place: &Place) -> bool {
        self.is_again || (place.directory.parent.is_none() && place.name == LOST_AND_FOUND)
    }

    /// Reports names in an existing directory that the snapshot does not have.
    pub(super) fn tell_strangers(
        &self,
        directory: &Arc<Filling>,
        is_stored: impl Fn(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        if !self.is_again || !directory.was_there {
            return Ok(());
        }
        let Ok(fd) = self.descriptors.of(directory) else { return Ok(()) }; // its entries report why
        let top = Place { directory: directory.clone(), name: Vec::new() };
        let names = held::Host::new().names(&*fd).map_err(errno);
        let names = names.unwrap_or_else(|error| {
            self.refuse(&top, Refusal::of("cannot tell what is there besides", error));
            Vec::new()
        });
        let is_top = directory.parent.is_none();
        for name in names {
            if is_stored(&name)? || (is_top && name == LOST_AND_FOUND) {
                continue;
            }
            let place = Place { directory: directory.clone(), name };
            self.refuse(&place, Refusal::new("is there and not in the snapshot; it was left as it is"));
        }
        Ok(())
    }

    fn batch(&self, batch: Vec<Task>) {
        let wanted = |task: &Task| match task {
            Task::Leaf(leaf) if self.is_again => !self.is_there(leaf),
            _ => true,
        };
        let (batch, there): (Vec<Task>, Vec<Task>) = batch.into_iter().partition(wanted);
        for task in there {
            self.give_up(task);
        }
        let chunks = self.fetch(&batch);
        for task in batch {
            if !self.has_failed() {
                self.make(&task, &chunks);
            }
            self.give_up(task);
        }
    }

    fn fetch(&self, batch: &[Task]) -> Chunks {
        let mut ids = Vec::new();
        for task in batch {
            let extents = match task {
                Task::Leaf(leaf) => leaf.content.as_ref().map_or(&[][..], ContentReader::extents),
                Task::Piece { extents, .. } => extents,
            };
            ids.extend(extents.iter().filter_map(|(_, extent)| match extent {
                Extent::Chunk { id, .. } => Some(*id),
                Extent::Hole { .. } => None,
            }));
        }
        match ids.is_empty() || self.has_failed() {
            true => Chunks::new(),
            false => self.store.fetch(&ids, FETCH_BUDGET),
        }
    }

    fn make(&self, task: &Task, chunks: &Chunks) {
        match task {
            Task::Leaf(leaf) => self.note(&leaf.place, self.leaf(leaf, chunks)),
            Task::Piece { opened, extents } => {
                if opened.is_lost.load(Ordering::Relaxed) {
                    return;
                }
                let written = self.write(&opened.file, extents, chunks);
                opened.is_lost.fetch_or(written.is_err(), Ordering::Relaxed);
                self.note(&opened.leaf.place, written.map(|_| ()));
            }
        }
    }

    fn give_up(&self, task: Task) {
        match task {
            Task::Leaf(leaf) => self.release(leaf.place.directory),
            Task::Piece { opened, .. } => self.close(opened),
        }
    }

    /// Whether a file that an earlier restore left is complete; anything else in its place is removed.
    pub(super) fn is_there(&self, leaf: &Leaf) -> bool {
        let Leaf { place, inode, content, first } = leaf;
        let wanted = Wanted { inode, content: content.as_ref(), is_linked: first.is_some() };
        let look = || {
            let directory = self.descriptors.of(&place.directory)?;
            match present::look(self.store, &directory, &place.name, &wanted)? {
                Present::Equal(stat) => return Ok(Some(stat)),
                Present::Nothing => {}
                Present::Directory => return Err(Refusal::new("a directory is in its place").into()),
                Present::Other => rustix::fs::unlinkat(&directory, place.name.as_slice(), AtFlags::empty())
                    .map_err(of_name("cannot replace what is there", &directory))?,
            }
            Ok(None)
        };
        match look() {
            Ok(None) => false,
            Ok(Some(stat)) => {
                self.report().kept += 1;
                self.made(leaf, Some(stat));
                true
            }
            Err(failure) => {
                self.note(place, Err(failure));
                true
            }
        }
    }

    /// Counts a file that is there now.
    fn made(&self, leaf: &Leaf, stat: Option<Stat>) {
        let len_bytes = leaf.content.as_ref().map_or(0, ContentReader::len_bytes);
        let mut report = self.report();
        report.files += 1;
        report.bytes += len_bytes;
        drop(report);
        self.progress.advance(len_bytes);
        if let (Some(first), Some(stat)) = (&leaf.first, stat) {
            // It is set once: a file is made once.
            let _ = first.made.set(stat);
        }
    }

    /// Makes anything but a directory.
    fn leaf(&self, leaf: &Leaf, chunks: &Chunks) -> Result<(), Failure> {
        let Leaf { place, inode, content, .. } = leaf;
        let directory = self.descriptors.of(&place.directory)?;
        let stat = match content {
            Some(content) => {
                let file = create(&directory, &place.name, &inode.metadata)?;
                if let Err(failure) = self.fill(&file, content, chunks) {
                    self.remove(place);
                    return Err(failure);
                }
                self.set(&inode.metadata, Handle::Open(file.as_fd()), place)
            }
            None => {
                let pin = special(&directory, &place.name, &inode.node)?;
                self.set(&inode.metadata, Handle::Pinned(pin.as_fd()), place)
            }
        };
        self.made(leaf, stat);
        Ok(())
    }

    fn set(&self, metadata: &Metadata, handle: Handle<'_>, place: &Place) -> Option<Stat> {
        metadata::set(metadata, handle, &mut |refusal| self.refuse(place, refusal))
    }

    /// Removes an incomplete file.
    fn remove(&self, place: &Place) {
        let removed = self.descriptors.of(&place.directory).and_then(|directory| {
            rustix::fs::unlinkat(&directory, place.name.as_slice(), AtFlags::empty())
                .map_err(of_name("incomplete, and cannot be removed", &directory))
        });
        self.note(place, removed);
    }

    fn fill(&self, file: &File, content: &ContentReader, chunks: &Chunks) -> Result<(), Failure> {
        let written = match content.inline_bytes() {
            Some(bytes) => {
                file.write_all_at(bytes, 0).map_err(errno).map_err(of_data("cannot write file"))?;
                bytes.len() as u64
            }
            None => self.write(file, content.extents(), chunks)?,
        };
        if written < content.len_bytes() {
            rustix::fs::ftruncate(file, content.len_bytes()).map_err(of_data("cannot write file"))?;
        }
        Ok(())
    }

    /// Writes chunks at their offsets; returns where the last one ends.
    fn write(&self, file: &File, extents: &[(u64, Extent)], chunks: &Chunks) -> Result<u64, Failure> {
        let mut end = 0;
        let mut rest = extents;
        while let Some((start, _)) = rest.first() {
            // Adjacent chunks go into one call.
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
            write_all(file, &run, *start).map_err(of_data("cannot write file"))?;
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

    /// Begins a long file; `None` when that was refused, or the file is there already.
    pub(super) fn open(&self, leaf: Leaf, len_bytes: u64) -> Result<Option<Arc<Opened>>> {
        let opened = match self.is_again && self.is_there(&leaf) {
            true => Ok(None),
            false => self.descriptors.of(&leaf.place.directory).and_then(|directory| {
                let file = create(&directory, &leaf.place.name, &leaf.inode.metadata)?;
                let sized = rustix::fs::ftruncate(&file, len_bytes).map_err(of_data("cannot write file"));
                sized.inspect_err(|_| self.remove(&leaf.place))?;
                Ok(Some(file))
            }),
        };
        match opened {
            Ok(Some(file)) => Ok(Some(Arc::new(Opened { file, leaf, is_lost: AtomicBool::new(false) }))),
            Ok(None) => {
                self.release(leaf.place.directory);
                Ok(None)
            }
            Err(Failure::Refused(refusal)) => {
                self.refuse(&leaf.place, refusal);
                self.release(leaf.place.directory);
                Ok(None)
            }
            Err(Failure::Fatal(error)) => Err(error.object(leaf.place.path().display())),
        }
    }

    /// Releases a hold on a long file. The last release completes it.
    pub(super) fn close(&self, opened: Arc<Opened>) {
        let Some(Opened { file, leaf, is_lost }) = Arc::into_inner(opened) else { return };
        if is_lost.into_inner() || self.has_failed() {
            self.remove(&leaf.place);
        } else {
            let stat = self.set(&leaf.inode.metadata, Handle::Open(file.as_fd()), &leaf.place);
            self.made(&leaf, stat);
        }
        self.release(leaf.place.directory);
    }

    /// Links another name to a file that is made. Where that is refused, as by the limit on links, the name gets a file
    /// of its own with the same bytes, and that is reported; this file is returned, and further names are linked to it.
    pub(super) fn link(
        &self,
        first: &First,
        place: Place,
        inode: impl FnOnce() -> Result<Inode>,
    ) -> Result<Option<Arc<First>>> {
        // When its first name could not be made, which was reported, this one becomes the first.
        if let Some(made) = first.made.get() {
            match self.link_to(first, made, &place) {
                Ok(()) => {
                    self.release(place.directory);
                    return Ok(None);
                }
                Err(Failure::Fatal(error)) => return Err(error.object(place.path().display())),
                Err(Failure::Refused(refusal)) => self.refuse(&place, refusal),
            }
        }
        let inode = inode()?;
        let content = match &inode.node {
            Node::File(content) => Some(self.store.content(content)?),
            _ => None,
        };
        let other = First::new(&place);
        self.batch(vec![Task::Leaf(Box::new(Leaf { place, inode, content, first: Some(other.clone()) }))]);
        Ok(Some(other))
    }

    fn link_to(&self, first: &First, made: &Stat, place: &Place) -> Result<(), Failure> {
        let into = self.descriptors.of(&place.directory)?;
        let from = self.descriptors.of(&first.place.directory)?;
        let (old, new) = (first.place.name.as_slice(), place.name.as_slice());
        let failed = of_name("a file of its own and no link, since it cannot be linked", &into);
        let is_it = || held::stat_at(&into, new).is_ok_and(|stat| held::is_same_inode(&stat, made));
        let mut linked = rustix::fs::linkat(&from, old, &into, new, AtFlags::empty());
        if linked == Err(Errno::EXIST) && self.is_again {
            if is_it() {
                self.report().kept += 1;
                return self.linked();
            }
            // A directory is refused, and stays.
            rustix::fs::unlinkat(&into, new, AtFlags::empty()).map_err(&failed)?;
            linked = rustix::fs::linkat(&from, old, &into, new, AtFlags::empty());
        }
        linked.map_err(&failed)?;
        if !is_it() {
            // Another file may have stood under the first name: it must not be reachable here.
            rustix::fs::unlinkat(&into, new, AtFlags::empty()).map_err(&failed)?;
            return Err(Refusal::new(
                "a file of its own and no link, since the first was replaced meanwhile",
            )
            .into());
        }
        self.linked()
    }

    fn linked(&self) -> Result<(), Failure> {
        self.report().files += 1;
        Ok(())
    }

    pub(super) fn count_directory(&self) {
        self.report().directories += 1;
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Creates a file. Only the maker can access a directory until it is filled, so the final mode may be set at once,
/// except for bits that lend rights.
fn create(directory: &OwnedFd, name: &[u8], metadata: &Metadata) -> Result<File, Failure> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(metadata.mode & 0o777);
    let created = rustix::fs::openat(directory, name, flags, mode);
    created.map(File::from).map_err(of_name("cannot create file", directory))
}

/// Makes and pins an inode that is neither a directory nor a regular file.
fn special(directory: &OwnedFd, name: &[u8], node: &Node) -> Result<OwnedFd, Failure> {
    let mode = Mode::from_raw_mode(0o600);
    let make = |kind, number| rustix::fs::mknodat(directory, name, kind, mode, number);
    let (what, kind, made) = match node {
        Node::Symlink(target) => {
            let made = rustix::fs::symlinkat(target.as_slice(), directory, name);
            ("cannot create symbolic link", FileType::Symlink, made)
        }
        Node::CharDevice(number) => {
            ("device", FileType::CharacterDevice, make(FileType::CharacterDevice, *number))
        }
        Node::BlockDevice(number) => ("device", FileType::BlockDevice, make(FileType::BlockDevice, *number)),
        Node::Socket => ("cannot create socket", FileType::Socket, make(FileType::Socket, 0)),
        // Regular files and directories are made elsewhere.
        Node::Fifo | Node::File(_) | Node::Directory(_) => {
            ("cannot create pipe", FileType::Fifo, make(FileType::Fifo, 0))
        }
    };
    match made {
        Err(error @ (Errno::PERM | Errno::OPNOTSUPP)) => {
            return Err(Refusal::of_permission(what, error).into());
        }
        made => made.map_err(of_name(what, directory))?,
    }
    let pin = held::pin_at(directory, name).map_err(of_name(what, directory))?;
    let stat = rustix::fs::fstat(&pin).map_err(of_name(what, directory))?;
    // In a directory that others may write to, the name may be a link to another inode by now.
    match held::file_type(&stat) == kind && stat.st_nlink == 1 {
        true => Ok(pin),
        false => Err(Refusal::new("was replaced meanwhile; nothing was set on it").into()),
    }
}

/// Writes chunks one after the other from `offset` on.
fn write_all(file: &File, chunks: &[ChunkBytes], mut offset: u64) -> rustix::io::Result<()> {
    if let [only] = chunks {
        return file.write_all_at(only, offset).map_err(errno);
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
