//! Memory in one flat file: the one that Firecracker writes at `mem_file_path`, or plain memory.
//!
//! A file of the type Full holds all of the memory, and a hole in it reads as zero. A file of the type Diff has data
//! only where pages changed since the last snapshot: a hole is a page of the parent image, inherited unread. The bytes
//! of a file do not tell its type, so neither is assumed: a file that may be either is refused until the caller says
//! the type.
//!
//! A diff depends on the file system keeping holes exactly as they were written. Some file systems make holes of
//! written zeroes, others fill holes, and no system call tells: so a diff is accepted from known file systems only. The
//! source need not be writable: where it cannot be synced, its holes are unknown, and a full file is read densely.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Advice, SeekFrom, StatVfsMountFlags};
use rustix::io::Errno;
use store::{Error, Image, ImageBuilder, ImageKind, ImageStats, Kind, PAGE, Progress, Result, Work, Writer};

use crate::report::Captured;

const READ_BYTES: u64 = 1 << 20;
const PAGE_BYTES: u64 = PAGE as u64;
/// Bytes of a block in `st_blocks`.
const BLOCK_BYTES: u64 = 512;
/// File systems that keep holes and written zeroes apart, by the type that statfs(2) returns: ext4, XFS, btrfs, tmpfs.
const EXACT_HOLES: [u64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];
const EXACT_HOLES_NAMES: &str = "ext4, XFS, btrfs or tmpfs";

/// The type of a memory file; Firecracker's `snapshot_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryType {
    /// All of the memory: holes are zero.
    Full,
    /// The pages that changed since the parent image: holes are pages of the parent.
    Diff,
}

/// A memory file, its type and its parent.
#[derive(Clone, Copy, Debug)]
pub struct MemorySource<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its type; with `None`, a file that may be a diff is refused.
    pub memory_type: Option<MemoryType>,
    /// The image that pages are compared with, and that has the pages that a diff leaves out.
    pub parent: Option<&'a Image>,
}

/// Stores plain memory: all bytes of one file.
///
/// # Errors
/// `Invalid` when the file is empty, its length is not a multiple of the page size, or it may be of another type than
/// given; those of reading it and of the writer.
pub fn capture(writer: &mut Writer, source: MemorySource<'_>, progress: &dyn Progress) -> Result<Captured> {
    let mut builder = ImageBuilder::new(writer, ImageKind::Raw, source.parent);
    let bytes = store_memory(&mut builder, ImageKind::Raw, source, progress)?;
    let (image, stats) = builder.finish()?;
    progress.end();
    Ok(Captured { image, stats, bytes, not_brought: 0 })
}

/// Stores the file as address space 0 of an image of this kind, and returns its length.
pub(crate) fn store_memory(
    builder: &mut ImageBuilder<'_>,
    kind: ImageKind,
    source: MemorySource<'_>,
    progress: &dyn Progress,
) -> Result<u64> {
    let at = |error: Error| error.object(source.path.display());
    let file = MemoryFile::open(source.path)?;
    // A parent of another kind has no memory of this kind to compare with.
    let before = source.parent.filter(|parent| parent.kind() == kind && parent.spaces().len() == 1);
    let memory_type = match source.memory_type {
        Some(MemoryType::Diff) => file.check_diff(kind, source.parent).map(|()| MemoryType::Diff),
        Some(MemoryType::Full) => Ok(MemoryType::Full),
        None => file.check_untyped(before).map(|()| MemoryType::Full),
    };
    let memory_type = memory_type.map_err(at)?;
    progress.begin("capture", Work::Bytes(file.len_bytes));
    builder.begin_space(0, file.len_bytes)?;
    file.store_pages(builder, memory_type, progress).map_err(at)?;
    if let (None, Some(before)) = (source.memory_type, before) {
        check_zeroed(&builder.stats(), before).map_err(at)?;
    }
    Ok(file.len_bytes)
}

/// Refuses a dense file that may be a diff whose holes a copy has filled: most pages that the parent stores are zero in
/// it.
fn check_zeroed(found: &ImageStats, before: &Image) -> Result<()> {
    let stored: u64 = before.runs(0).iter().map(|run| u64::from(run.page_count)).sum();
    if found.zeroed <= stored / 2 {
        return Ok(());
    }
    let what = format!(
        "{} of the {stored} pages that the parent stores are zero in it: it may be a Diff file whose holes were filled \
         by a copy",
        found.zeroed
    );
    Err(Error::new(Kind::Invalid, what).advice(
        "if it is a Full file, say --full; if it is a Diff file, give the one that Firecracker wrote, with --diff",
    ))
}

struct MemoryFile {
    file: File,
    len_bytes: u64,
    /// Bytes that it takes on the disk, as the file system says.
    allocated_bytes: u64,
    /// The file system knows which ranges have data: all of the file is written to the disk.
    is_settled: bool,
}

impl MemoryFile {
    fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("cannot read the memory file", path.display(), error);
        let file = File::open(path).map_err(failed)?;
        let is_settled = is_settled(&file).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let len_bytes = metadata.len();
        if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_BYTES) {
            let what =
                format!("a memory file of {len_bytes} bytes is not a whole number of pages of {PAGE} bytes");
            return Err(Error::new(Kind::Invalid, what)
                .object(path.display())
                .advice("give the mem_file_path of a snapshot, or a file of plain memory"));
        }
        let allocated_bytes = metadata.blocks().saturating_mul(BLOCK_BYTES);
        Ok(Self { file, len_bytes, allocated_bytes, is_settled })
    }

    /// Whether any part of the file is, or may be, a hole.
    fn has_holes(&self) -> Result<bool> {
        Ok(self.first_hole()? < self.len_bytes || self.allocated_bytes < self.len_bytes)
    }

    /// The offset of the first hole; the file's length when there is none or the file system does not tell.
    fn first_hole(&self) -> Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Hole(0)) {
            Ok(hole) => Ok(hole),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.len_bytes),
            Err(errno) => Err(Error::io("cannot look for holes", "memory file", errno.into())),
        }
    }

    /// Refuses a file that may not be a full file.
    fn check_untyped(&self, before: Option<&Image>) -> Result<()> {
        if self.has_holes()? {
            return Err(Error::new(Kind::Invalid, "a memory file with holes is a Diff file or a sparse Full file")
                .advice("say which: --diff with --parent, where holes are pages of the parent, or --full, where they are zero"));
        }
        let expected = before.map_or(self.len_bytes, |image| image.spaces()[0].len_bytes);
        if expected != self.len_bytes {
            let what =
                format!("the memory file has {} bytes, its parent's memory {expected}", self.len_bytes);
            return Err(Error::new(Kind::Invalid, what)
                .advice("if it was not cut short and this is all of the memory, say --full"));
        }
        Ok(())
    }

    /// Refuses a diff that does not belong to its parent, or whose holes do not certainly show the pages that were left
    /// out.
    fn check_diff(&self, kind: ImageKind, parent: Option<&Image>) -> Result<()> {
        let refused = |what: String, advice: &str| Err(Error::new(Kind::Invalid, what).advice(advice));
        let Some(parent) = parent else {
            return refused("a Diff file needs the image that it is a difference to".into(), "give --parent");
        };
        let memory = parent.spaces().first().filter(|_| parent.kind() == kind && parent.spaces().len() == 1);
        let Some(memory) = memory else {
            return refused(
                format!("the parent is an image of kind {:?}, not {kind:?}", parent.kind()),
                "the parent of a Diff file is the snapshot that the machine was resumed from, or its last one since",
            );
        };
        if memory.len_bytes != self.len_bytes {
            return refused(
                format!(
                    "the Diff file has {} bytes, the parent's memory {}",
                    self.len_bytes, memory.len_bytes
                ),
                "the parent of a Diff file is an image of the same machine",
            );
        }
        let failed = |error: Errno| Error::io("cannot ask the file system", "memory file", error.into());
        let file_system = rustix::fs::fstatfs(&self.file).map_err(failed)?.f_type as u64;
        if !EXACT_HOLES.contains(&file_system) {
            return refused(
                format!(
                    "a Diff file on a file system (type {file_system:#x}) not known to keep holes as they were written"
                ),
                &format!("let Firecracker write it to {EXACT_HOLES_NAMES}"),
            );
        }
        let block = rustix::fs::fstat(&self.file).map_err(failed)?.st_blksize as u64;
        if block > PAGE_BYTES {
            return refused(
                format!(
                    "a Diff file on a file system of {block} bytes a block does not tell single pages apart"
                ),
                "let Firecracker write it to a file system with blocks of at most 4096 bytes",
            );
        }
        if !self.is_settled {
            return refused(
                "a Diff file that cannot be synced: where its holes are is not known".into(),
                &format!("let Firecracker write it to {EXACT_HOLES_NAMES}"),
            );
        }
        // Preallocated space is a hole, but counts as data while it is in the page cache, as after a read.
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed).map_err(failed)?;
        if self.first_hole()? == self.len_bytes {
            return refused(
                "the file has no hole: it is a Full file, or a copy has filled the holes of a Diff file"
                    .into(),
                "leave out --diff for a Full file; copy a Diff file with `cp --sparse=auto`, which keeps its holes",
            );
        }
        Ok(())
    }

    fn store_pages(
        &self,
        builder: &mut ImageBuilder<'_>,
        memory_type: MemoryType,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut offset = 0;
        while offset < self.len_bytes {
            let data = self.next_data(offset, memory_type)?;
            if memory_type == MemoryType::Diff {
                builder.inherit(offset / PAGE_BYTES..data.start / PAGE_BYTES)?;
            }
            progress.advance(data.start - offset);
            self.store_data(builder, data.clone(), progress)?;
            offset = data.end;
        }
        Ok(())
    }

    /// The next page-aligned range at or after `offset` that has data; an empty one at the end.
    fn next_data(&self, offset: u64, memory_type: MemoryType) -> Result<Range<u64>> {
        let len_bytes = self.len_bytes;
        if !self.is_settled {
            return Ok(offset..len_bytes);
        }
        let failed = |errno: Errno| Error::io("cannot look for data", "memory file", errno.into());
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data.min(len_bytes),
            Err(Errno::NXIO) => return Ok(len_bytes..len_bytes),
            // The file system cannot tell: everything may be data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(offset..len_bytes),
            Err(errno) => return Err(failed(errno)),
        };
        let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).map_err(failed)?.min(len_bytes);
        let is_aligned = data.is_multiple_of(PAGE_BYTES) && hole.is_multiple_of(PAGE_BYTES);
        if memory_type == MemoryType::Diff && !is_aligned {
            let what =
                format!("data from byte {data} to {hole} is not page-aligned, as that of a Diff file is");
            return Err(
                Error::new(Kind::Invalid, what).advice("give the file that Firecracker wrote, unchanged")
            );
        }
        Ok((data - data % PAGE_BYTES).max(offset)..hole.next_multiple_of(PAGE_BYTES))
    }

    fn store_data(
        &self,
        builder: &mut ImageBuilder<'_>,
        data: Range<u64>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut buffer = vec![0; READ_BYTES.min(data.end - data.start) as usize];
        let mut offset = data.start;
        while offset < data.end {
            let len = READ_BYTES.min(data.end - offset) as usize;
            let bytes = &mut buffer[..len];
            self.file
                .read_exact_at(bytes, offset)
                .map_err(|error| Error::io("cannot read the memory file", format!("byte {offset}"), error))?;
            let (pages, _) = bytes.as_chunks::<PAGE>();
            for (number, page) in (offset / PAGE_BYTES..).zip(pages) {
                builder.page(number, page)?;
            }
            progress.advance(len as u64);
            offset += len as u64;
        }
        Ok(())
    }
}

/// Syncs the file, so that the file system knows which ranges have data: it may not know while data is in the page
/// cache only. `false` when the file cannot be synced. A file system that is mounted read-only has nothing to sync.
fn is_settled(file: &File) -> io::Result<bool> {
    let Err(error) = file.sync_all() else { return Ok(true) };
    tracing::debug!(%error, "the memory file cannot be synced");
    Ok(rustix::fs::fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}
