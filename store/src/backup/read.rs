//! Readers: threads that read files, cut them into chunks and hash these, ahead of the assembler and in its order.
//!
//! Files come in batches, so that small ones cost no hand-over each, and go out as pieces of about a MiB: bytes and what
//! they are. Memory is bounded: a batch has at most [`PIECES_AHEAD`] pieces waiting, and buffers are used again.

use super::host::{Host, Source, Xattrs, cannot_read_xattrs};
use crate::chunker;
use crate::domain::Domain;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::spare::SpareBuffers;
use crate::tree::INLINE_MAX;
use crossbeam_channel::{Receiver, Sender};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A piece is given away when it is about this long.
const PIECE_LEN: usize = 1 << 20;
/// Room of a buffer: a piece, and the beginning of a chunk whose end is not read yet.
pub const BUFFER_LEN: usize = PIECE_LEN + chunker::MAX_LEN;
/// Pieces of one batch that wait for the assembler.
pub const PIECES_AHEAD: usize = 2;
/// Buffers kept for use again.
pub const SPARE_BUFFERS: usize = 16;

/// A file to be read.
pub struct Job {
    pub path: PathBuf,
    pub len_bytes: u64,
    pub is_sparse: bool,
}

/// What a stretch of bytes is.
pub enum Item {
    /// A chunk.
    Chunk { id: ChunkId, len: usize },
    /// All of a short file.
    Inline { len: usize },
    /// Zeroes that take no space, and no bytes here.
    Hole { len: u64 },
    /// The file is done: its extended attributes, or why it cannot be read.
    End(Result<Xattrs>),
}

/// Bytes of files and what they are.
#[derive(Default)]
pub struct Piece {
    pub bytes: Vec<u8>,
    pub items: Vec<Item>,
}

/// The pieces of one batch in order.
pub type Pieces = Receiver<Piece>;

/// Files whose pieces belong together.
pub struct Batch {
    pub jobs: Vec<Job>,
    pub pieces: Sender<Piece>,
}

/// One reading thread.
pub struct Reader<'a> {
    domain: &'a Domain,
    buffers: SpareBuffers,
    host: Host,
    piece: Piece,
    /// Where in the piece the bytes begin that are not cut yet.
    uncut: usize,
    /// Whether the file being read has an extent already.
    has_extents: bool,
}

/// Nobody waits for the pieces any more.
struct GaveUp;

/// Why a file is not read to its end.
enum Stop {
    File(Error),
    GaveUp,
}

impl From<GaveUp> for Stop {
    fn from(_: GaveUp) -> Self {
        Self::GaveUp
    }
}

impl<'a> Reader<'a> {
    pub fn new(domain: &'a Domain, buffers: SpareBuffers) -> Self {
        Self { domain, buffers, host: Host::new(), piece: Piece::default(), uncut: 0, has_extents: false }
    }

    /// Serves batches until there are no more.
    pub fn run(mut self, batches: &Receiver<Batch>) {
        for Batch { jobs, pieces } in batches {
            self.piece = Piece { bytes: self.buffers.take(), items: Vec::new() };
            self.uncut = 0;
            let read = jobs.iter().try_for_each(|job| self.job(job, &pieces));
            if read.is_ok() {
                let _ = pieces.send(std::mem::take(&mut self.piece));
            }
        }
    }

    fn job(&mut self, job: &Job, out: &Sender<Piece>) -> Result<(), GaveUp> {
        let outcome = match self.file(job, out) {
            Ok(xattrs) => Ok(xattrs),
            Err(Stop::GaveUp) => return Err(GaveUp),
            Err(Stop::File(error)) => Err(error),
        };
        // What was read of a file that failed is no chunk of anything.
        self.piece.bytes.truncate(self.uncut);
        self.piece.items.push(Item::End(outcome));
        Ok(())
    }

    fn file(&mut self, job: &Job, out: &Sender<Piece>) -> Result<Xattrs, Stop> {
        self.has_extents = false;
        let failed = |error: Errno| Stop::File(cannot_read(&job.path, error));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&job.path, flags, Mode::empty()).map_err(failed)?);
        match job.is_sparse {
            true => self.sparse(&file, &job.path, out)?,
            false => {
                self.data(&file, &job.path, job.len_bytes, None, out)?;
            }
        }
        self.finish();
        let xattrs = self.host.xattrs(&Source::Open(&file));
        xattrs.map_err(|error| Stop::File(cannot_read_xattrs(&job.path, error)))
    }

    /// Reads from where the file stands to its end, or `limit` bytes; gives how many there were. `expected` is about how
    /// many will come: a file that fits a piece is read at once.
    fn data(
        &mut self,
        file: &File,
        path: &Path,
        expected: u64,
        limit: Option<u64>,
        out: &Sender<Piece>,
    ) -> Result<u64, Stop> {
        let mut done = 0;
        loop {
            // One byte more than expected, so that the end of the file shows.
            let wanted = (expected.saturating_sub(done).saturating_add(1)).min(PIECE_LEN as u64) as usize;
            if self.piece.bytes.capacity() - self.piece.bytes.len() < wanted {
                self.send(out)?;
            }
            let before = self.piece.bytes.len();
            let read = loop {
                match rustix::io::read(file, spare_capacity(&mut self.piece.bytes)) {
                    Err(Errno::INTR) => {}
                    read => break read.map_err(|error| Stop::File(cannot_read(path, error)))?,
                }
            };
            let left = limit.map_or(u64::MAX, |limit| limit - done);
            let taken = (read as u64).min(left);
            self.piece.bytes.truncate(before + taken as usize);
            done += taken;
            if read == 0 || taken == left {
                return Ok(done);
            }
            self.cut(false);
        }
    }

    /// Cuts what is not cut yet; all of it when nothing may follow that could move a cut.
    fn cut(&mut self, all: bool) {
        loop {
            let rest = &self.piece.bytes[self.uncut..];
            if rest.is_empty() || (!all && rest.len() < chunker::MAX_LEN) {
                return;
            }
            let len = chunker::cut(rest);
            let id = self.domain.chunk_id(&rest[..len]);
            self.piece.items.push(Item::Chunk { id, len });
            self.has_extents = true;
            self.uncut += len;
        }
    }

    /// Ends a file: a short one stays in one piece.
    fn finish(&mut self) {
        let len = self.piece.bytes.len() - self.uncut;
        if !self.has_extents && len <= INLINE_MAX {
            self.piece.items.push(Item::Inline { len });
            self.uncut += len;
        }
        self.cut(true);
    }

    /// Gives away what is cut and goes on in a new buffer.
    fn send(&mut self, out: &Sender<Piece>) -> Result<(), GaveUp> {
        let mut next = self.buffers.take();
        next.extend_from_slice(&self.piece.bytes[self.uncut..]);
        self.piece.bytes.truncate(self.uncut);
        self.uncut = 0;
        let piece = std::mem::replace(&mut self.piece, Piece { bytes: next, items: Vec::new() });
        out.send(piece).map_err(|_| GaveUp)
    }

    /// Reads the data and keeps the holes. The file is synced first: while pages are dirty some file systems report data as
    /// a hole.
    fn sparse(&mut self, file: &File, path: &Path, out: &Sender<Piece>) -> Result<(), Stop> {
        let failed = |error: Errno| Stop::File(cannot_read(path, error));
        rustix::fs::fdatasync(file).map_err(failed)?;
        let len = rustix::fs::fstat(file).map_err(failed)?.st_size as u64;
        let mut at = 0;
        while at < len {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data.min(len),
                Err(Errno::NXIO) => len,
                Err(error) => return Err(failed(error)),
            };
            if data > at {
                self.cut(true);
                self.piece.items.push(Item::Hole { len: data - at });
                self.has_extents = true;
            }
            if data == len {
                break;
            }
            let end = rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(failed)?.min(len);
            rustix::fs::seek(file, SeekFrom::Start(data)).map_err(failed)?;
            let read = self.data(file, path, end - data, Some(end - data), out)?;
            if read < end - data {
                break; // it shrank meanwhile
            }
            at = end;
        }
        Ok(())
    }
}

fn cannot_read(path: &Path, error: Errno) -> Error {
    Error::io("cannot read file", path.display(), error.into())
}
