//! Readers: threads that read files, cut them into chunks and hash these, ahead of the assembler and in its order.
//!
//! Files come in batches, so that small ones cost no hand-over each, and go out as pieces of about a MiB: bytes and
//! their items. Memory is bounded: a batch has at most [`PIECES_AHEAD`] pieces waiting, and buffers are used again.
//!
//! A file is read to the length that it has when it is opened, so one that grows as fast as it is read has an end.

use super::stat_cache::{Key, Look, StatCache};
use crate::buffer_pool::BufferPool;
use crate::chunker;
use crate::domain::Domain;
use crate::host::held::{self, Handle, Host, ReadXattrs};
use crate::id::ChunkId;
use crate::tree::INLINE_MAX;
use crossbeam_channel::{Receiver, Sender};
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;
use std::io;

/// A piece is sent when it is about this long.
const PIECE_LEN: usize = 1 << 20;
/// Room of a buffer: a piece, and the beginning of a chunk whose end is not read yet.
pub(super) const BUFFER_LEN: usize = PIECE_LEN + chunker::MAX_LEN;
/// Pieces of one batch that wait for the assembler.
pub(super) const PIECES_AHEAD: usize = 2;
/// Buffers kept for reuse.
pub(super) const SPARE_BUFFERS: usize = 16;
/// A file that says it is empty and is not, as those of `/proc`, is read up to this length.
const UNSIZED_MAX: u64 = 64 << 20;

/// A file to be read.
pub(super) struct Job {
    pub pin: OwnedFd,
    pub key: Key,
}

/// The kind of a stretch of bytes.
pub(super) enum Item {
    /// A chunk.
    Chunk { id: ChunkId, len: usize },
    /// All of a short file.
    Inline { len: usize },
    /// Zeroes that take no space, and no bytes here.
    Hole { len: u64 },
    /// Zeroes that are to take no space; their bytes are here.
    Zeroes { len: usize },
    /// The file is done.
    End(Outcome),
}

/// How the reading of a file ended.
pub(super) enum Outcome {
    Read(Box<Seen>),
    /// The file went before it was opened.
    Vanished,
    /// Why it cannot be read.
    Failed(String),
}

/// The state of a file whose bytes were read.
pub(super) struct Seen {
    /// When it was opened.
    pub stat: Stat,
    pub attributes: ReadXattrs,
    /// To keep for the next backup, if the file did not change meanwhile and was read completely.
    pub look: Option<Look>,
    /// How it changed while it was read.
    pub change: Option<String>,
}

/// Bytes of files and their items.
#[derive(Default)]
pub(super) struct Piece {
    pub bytes: Vec<u8>,
    pub items: Vec<Item>,
}

/// The pieces of one batch in order.
pub(super) type Pieces = Receiver<Piece>;

/// Files whose pieces belong together.
pub(super) struct Batch {
    pub jobs: Vec<Job>,
    pub pieces: Sender<Piece>,
}

/// One reading thread.
pub(super) struct Reader<'a> {
    domain: &'a Domain,
    cache: &'a StatCache,
    buffers: BufferPool,
    host: Host,
    piece: Piece,
    /// Where in the piece the bytes begin that are not cut yet.
    uncut: usize,
    /// Whether the file being read has an extent already.
    has_extents: bool,
    /// Whether chunks of zeroes become holes, because where the holes are is not known.
    zeroes_are_holes: bool,
}

/// The assembler is gone.
struct GaveUp;

/// Why a file is not read to its end.
enum Stop {
    Vanished,
    Failed(String),
    GaveUp,
}

impl From<GaveUp> for Stop {
    fn from(_: GaveUp) -> Self {
        Self::GaveUp
    }
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Failed(format!("cannot read file: {}", io::Error::from(error)))
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(domain: &'a Domain, cache: &'a StatCache, buffers: BufferPool) -> Self {
        let (host, piece, uncut) = (Host::new(), Piece::default(), 0);
        Self { domain, cache, buffers, host, piece, uncut, has_extents: false, zeroes_are_holes: false }
    }

    /// Serves batches until there are no more.
    pub(super) fn run(mut self, batches: &Receiver<Batch>) {
        for Batch { jobs, pieces } in batches {
            self.piece = Piece { bytes: self.buffers.take(), items: Vec::new() };
            self.uncut = 0;
            let read = jobs.into_iter().try_for_each(|job| self.job(job, &pieces));
            if read.is_ok() {
                let _ = pieces.send(std::mem::take(&mut self.piece));
            }
        }
    }

    fn job(&mut self, job: Job, out: &Sender<Piece>) -> Result<(), GaveUp> {
        let outcome = match self.file(&job, out) {
            Ok(seen) => Outcome::Read(Box::new(seen)),
            Err(Stop::Vanished) => Outcome::Vanished,
            Err(Stop::Failed(why)) => Outcome::Failed(why),
            Err(Stop::GaveUp) => return Err(GaveUp),
        };
        // Uncut bytes of a failed file belong to no chunk.
        self.piece.bytes.truncate(self.uncut);
        self.piece.items.push(Item::End(outcome));
        Ok(())
    }

    fn file(&mut self, job: &Job, out: &Sender<Piece>) -> Result<Seen, Stop> {
        (self.has_extents, self.zeroes_are_holes) = (false, false);
        let file = match held::open_pinned(&job.pin) {
            Ok(file) => file,
            // An inode that is pinned can be opened without a name, but not everywhere.
            Err(Errno::NOENT | Errno::STALE) => return Err(Stop::Vanished),
            Err(error) => return Err(error.into()),
        };
        let Opened { stat, is_sized } = look_at(&file)?;
        let len = if is_sized { stat.st_size as u64 } else { UNSIZED_MAX };
        let is_sparse = is_sized && (stat.st_blocks as u64).saturating_mul(512) < len;
        let read = match is_sparse {
            true => self.sparse(&file, len, out)?,
            false => self.data(&file, len, out)?,
        };
        if !is_sized && read == len {
            let max = UNSIZED_MAX >> 20;
            return Err(Stop::Failed(format!("it says that it is empty and is longer than {max} MiB")));
        }
        self.finish();
        let attributes = self.host.xattrs(Handle::Open(file.as_fd()));
        let after = rustix::fs::fstat(&file)?;
        let is_as_seen = is_sized && read == len && times(&stat) == times(&after);
        let is_kept = is_as_seen && attributes.failed.is_empty() && self.cache.is_settled(&stat);
        let look = is_kept.then(|| self.cache.look(job.key, &stat));
        let change = if is_sized { change_of(&stat, read, &after) } else { None };
        Ok(Seen { stat, attributes, look, change })
    }

    /// Reads `len` bytes from the file position; returns how many there were.
    fn data(&mut self, file: &OwnedFd, len: u64, out: &Sender<Piece>) -> Result<u64, Stop> {
        let mut done = 0;
        while done < len {
            let left = len - done;
            let wanted = left.min(PIECE_LEN as u64) as usize;
            if self.piece.bytes.capacity() - self.piece.bytes.len() < wanted {
                self.send(out)?;
            }
            let before = self.piece.bytes.len();
            let read = loop {
                match rustix::io::read(file, spare_capacity(&mut self.piece.bytes)) {
                    Err(Errno::INTR) => {}
                    read => break read?,
                }
            };
            if read == 0 {
                break;
            }
            let taken = (read as u64).min(left);
            self.piece.bytes.truncate(before + taken as usize);
            done += taken;
            self.cut(false);
        }
        Ok(done)
    }

    /// Cuts pending bytes; all of them when no bytes follow that could move a cut.
    fn cut(&mut self, all: bool) {
        loop {
            let rest = &self.piece.bytes[self.uncut..];
            if rest.is_empty() || (!all && rest.len() < chunker::MAX_LEN) {
                return;
            }
            let len = chunker::cut(rest);
            let chunk = &rest[..len];
            let item = match self.zeroes_are_holes && chunk.iter().all(|byte| *byte == 0) {
                true => Item::Zeroes { len },
                false => Item::Chunk { id: self.domain.chunk_id(chunk), len },
            };
            self.piece.items.push(item);
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

    /// Sends the cut bytes and goes on in a new buffer.
    fn send(&mut self, out: &Sender<Piece>) -> Result<(), GaveUp> {
        let mut next = self.buffers.take();
        next.extend_from_slice(&self.piece.bytes[self.uncut..]);
        self.piece.bytes.truncate(self.uncut);
        self.uncut = 0;
        let piece = std::mem::replace(&mut self.piece, Piece { bytes: next, items: Vec::new() });
        out.send(piece).map_err(|_| GaveUp)
    }

    /// Reads the data and keeps the holes; returns how many bytes there were. The file is synced first: while pages are
    /// dirty some file systems report data as a hole. If syncing fails, or the answers make no sense, the rest is read
    /// as data.
    fn sparse(&mut self, file: &OwnedFd, len: u64, out: &Sender<Piece>) -> Result<u64, Stop> {
        let mut at = 0;
        let mut are_holes_known = rustix::fs::fdatasync(file).is_ok();
        while at < len {
            let Some((data, end)) = next_data(file, at, len).filter(|_| are_holes_known) else {
                self.zeroes_are_holes = true;
                rustix::fs::seek(file, SeekFrom::Start(at))?;
                return Ok(at + self.data(file, len - at, out)?);
            };
            if data > at {
                self.cut(true);
                self.piece.items.push(Item::Hole { len: data - at });
                self.has_extents = true;
            }
            if data == end {
                return Ok(data);
            }
            are_holes_known = rustix::fs::seek(file, SeekFrom::Start(data)).is_ok();
            let read = self.data(file, end - data, out)?;
            if read < end - data {
                return Ok(data + read);
            }
            at = end;
        }
        Ok(len)
    }
}

/// The first data at or after `at`, and where it ends; the end of the file, twice, when there is no more before `len`.
/// `None`: the file system does not say, or its answer is impossible.
fn next_data(file: &OwnedFd, at: u64, len: u64) -> Option<(u64, u64)> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) if data < len => data,
        Ok(_) => return Some((len, len)),
        Err(Errno::NXIO) => {
            let now = rustix::fs::fstat(file).ok()?.st_size as u64; // it may have shrunk
            let end = now.clamp(at, len);
            return Some((end, end));
        }
        Err(_) => return None,
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(data)).ok()?.min(len);
    (at <= data && data < end).then_some((data, end))
}

/// A file just opened.
struct Opened {
    stat: Stat,
    /// Whether its reported length is its real one.
    is_sized: bool,
}

fn look_at(file: &OwnedFd) -> rustix::io::Result<Opened> {
    let stat = rustix::fs::fstat(file)?;
    if stat.st_size > 0 || rustix::io::pread(file, &mut [0], 0)? == 0 {
        return Ok(Opened { stat, is_sized: true });
    }
    let stat = rustix::fs::fstat(file)?; // it may have grown since
    Ok(Opened { stat, is_sized: stat.st_size > 0 })
}

/// Size and mtime, which a change of the bytes changes, and ctime, which any change does.
fn times(stat: &Stat) -> [i64; 5] {
    [stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64]
}

/// How a file changed while `read` bytes of it were read, in words.
fn change_of(stat: &Stat, read: u64, after: &Stat) -> Option<String> {
    let len = stat.st_size as u64;
    let written = times(stat)[..3] != times(after)[..3];
    match () {
        () if read < len => Some(format!("it was {len} bytes long and ended after {read}")),
        () if after.st_size > stat.st_size => Some(format!("it grew; its first {len} bytes are stored")),
        () if written => Some("it was written while it was read".to_owned()),
        () => None,
    }
}
