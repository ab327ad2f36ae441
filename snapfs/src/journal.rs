//! The journal file: a header and checksummed frames, appended one write(2) each.
//!
//! A frame is in the page cache when [`Journal::append`] returns, so it outlives the process; [`Journal::sync`] makes
//! it outlive the machine. Reading stops at a torn tail. A hole that cannot be a torn tail is damage and is refused:
//! when the machine was not rebooted, any intact frame behind the hole proves damage; after a reboot, one that was
//! written when the hole was already durable. Layout: SEMANTICS.md ("Journal"). Never interprets payloads.

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::wire::{Decoder, Encoder, checksum};
use store::{Error, Kind, Result, SnapshotId, StoreId};

const MAGIC: &[u8; 8] = b"TORPJRNL";
const VERSION: u32 = 1;
/// Bytes before the first frame.
pub(crate) const HEADER_LEN: usize = 88;
const FRAME_MAGIC: &[u8; 4] = b"FRAM";
/// Bytes of a frame before its payload.
const FRAME_HEADER_LEN: usize = 32;
/// Bytes kept for changes that free space when the disk is full: some thousand changes.
const RESERVE_LEN: u64 = 256 << 10;
/// How far behind a hole frames are searched for.
const SEARCH_MAX: u64 = 256 << 20;
/// Largest payload of a frame; larger ones are refused on both sides.
pub(crate) const PAYLOAD_MAX: usize = 64 << 20;

/// The base of the journal's changes, and the boot of the machine in which it was last opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The store that holds the base.
    pub store: StoreId,
    /// The snapshot below all changes.
    pub base: SnapshotId,
    /// Boot id of the kernel.
    pub boot: [u8; 16],
}

/// An open journal, appended to by one process.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Arc<File>,
    len_bytes: u64,
    durable_len_bytes: u64,
    /// End of the zeroes behind the last frame.
    reserved_len_bytes: u64,
    sequence: u64,
    /// Bytes of the journals that this mount wrote before this one.
    before_bytes: u64,
}

/// A position: bytes that this mount has written into its journals.
pub(crate) type Position = u64;

/// The result of reading a journal.
pub(crate) struct Scan {
    /// Offset of the end of the last intact frame.
    end: u64,
    /// Number of intact frames.
    frames: u64,
}

impl Scan {
    /// Length of the header and the intact frames in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.end
    }
}

impl Journal {
    /// Writes a new journal with these payloads beside the one at `path`, durably.
    ///
    /// # Errors
    /// Those of the file system; the new one is removed then.
    pub(crate) fn prepare(
        path: &Path,
        header: &Header,
        payloads: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Prepared> {
        let temporary = path.with_extension("new");
        let failed =
            |error: std::io::Error| Error::io("cannot write the journal", temporary.display(), error);
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file =
            fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(errno.into()))?;
        let mut prepared = Prepared {
            journal: Self::at(Arc::new(File::from(file)), HEADER_LEN as u64, 0),
            temporary: temporary.clone(),
        };
        prepared.write_header(header)?;
        for payload in payloads {
            prepared.journal.append(&payload).map_err(|errno| failed(errno.into()))?;
        }
        prepared.journal.file.sync_all().map_err(failed)?;
        prepared.journal.durable_len_bytes = prepared.journal.len_bytes;
        Ok(prepared)
    }

    /// Puts a new journal with these payloads at `path`, atomically and durably, in place of the present one.
    ///
    /// # Errors
    /// Those of the file system; one of the two journals is there then.
    pub(crate) fn replace(
        path: &Path,
        header: &Header,
        payloads: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Self> {
        Self::prepare(path, header, payloads)?.take_place(path)
    }

    /// Makes an empty journal at `path` if there is none. It is not durable before its first sync.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(path: &Path, header: &Header) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io("cannot make the journal", path.display(), error);
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(errno.into()))?;
        let file = Arc::new(File::from(file));
        file.write_all_at(&encode_header(header), 0).map_err(failed)?;
        Ok(Self { durable_len_bytes: 0, ..Self::at(file, HEADER_LEN as u64, 0) })
    }

    /// Opens the journal for appending behind what `scan` read; a torn tail is cut off.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(path: &Path, scan: &Scan) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io("cannot open the journal", path.display(), error);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?);
        file.set_len(scan.end).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(Self::at(Arc::new(file), scan.end, scan.frames))
    }

    fn at(file: Arc<File>, len_bytes: u64, sequence: u64) -> Self {
        Self {
            file,
            len_bytes,
            durable_len_bytes: len_bytes,
            reserved_len_bytes: 0,
            sequence,
            before_bytes: 0,
        }
    }

    /// Reserves space for changes that free space on a full disk, by writing zeroes where their frames will be. A frame
    /// that replaces zeroes leaves the length of the file and its blocks as they are, so its sync need not wait for the
    /// file system's own journal.
    ///
    /// # Errors
    /// `ENOSPC` when there is no space left to reserve.
    pub(crate) fn reserve(&mut self) -> Result<(), Errno> {
        if self.len_bytes + RESERVE_LEN / 2 <= self.reserved_len_bytes {
            return Ok(());
        }
        let (begin, end) = (self.reserved_len_bytes.max(self.len_bytes), self.len_bytes + RESERVE_LEN);
        let zeroed = self.file.write_all_at(&vec![0; (end - begin) as usize], begin);
        zeroed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        self.reserved_len_bytes = end;
        Ok(())
    }

    /// Appends one frame, completely or not at all.
    ///
    /// # Errors
    /// The error of write(2); `EIO` when a partly written frame could not be removed: no frame may follow it then.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<(), Errno> {
        if payload.len() > PAYLOAD_MAX {
            return Err(Errno::TOOBIG);
        }
        let mut frame = Encoder::with_capacity(FRAME_HEADER_LEN + payload.len());
        frame.bytes(FRAME_MAGIC).u32(payload.len() as u32).u64(self.sequence).u64(self.durable_len_bytes);
        let sum = frame_checksum(self.sequence, self.durable_len_bytes, payload);
        frame.u64(sum).bytes(payload);
        let frame = frame.finish();
        if let Err(error) = self.file.write_all_at(&frame, self.len_bytes) {
            self.reserved_len_bytes = 0;
            self.file.set_len(self.len_bytes).map_err(|_| Errno::IO)?;
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        self.len_bytes += frame.len() as u64;
        self.sequence += 1;
        Ok(())
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The present position, which counts the journals before this one too.
    pub(crate) fn position(&self) -> Position {
        self.before_bytes + self.len_bytes
    }

    /// Whether all frames up to `position` are durable.
    pub(crate) fn is_durable(&self, position: Position) -> bool {
        position <= self.before_bytes + self.durable_len_bytes
    }

    /// Continues the positions of the journal that this one replaces; all of this one is durable.
    pub(crate) fn follow(&mut self, replaced: &Self) {
        self.before_bytes = replaced.position();
    }

    /// The file, and the length in bytes that a sync now would make durable; `None` when all of it already is.
    pub(crate) fn unsynced(&self) -> Option<(Arc<File>, u64)> {
        (self.durable_len_bytes < self.len_bytes).then(|| (self.file.clone(), self.len_bytes))
    }

    /// Whether neither its bytes nor its name are durable yet.
    pub(crate) fn is_unnamed(&self) -> bool {
        self.durable_len_bytes == 0
    }

    /// Notes that the first `len_bytes` bytes of `file` are durable. Another journal may have replaced it by now.
    pub(crate) fn synced(&mut self, file: &Arc<File>, len_bytes: u64) {
        if Arc::ptr_eq(file, &self.file) {
            self.durable_len_bytes = self.durable_len_bytes.max(len_bytes);
        }
    }
}

/// A complete, durable journal that is not in its place yet. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Prepared {
    journal: Journal,
    temporary: PathBuf,
}

impl Prepared {
    /// Its length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.journal.len_bytes
    }

    /// Replaces its header; takes no space.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn set_header(&mut self, header: &Header) -> Result<()> {
        self.write_header(header)?;
        self.journal.file.sync_all().map_err(|error| self.failed(error))
    }

    /// Takes the place of the journal at `path`.
    ///
    /// # Errors
    /// Those of the file system; either of the two may be in place then.
    pub(crate) fn take_place(self, path: &Path) -> Result<Journal> {
        std::fs::rename(&self.temporary, path).map_err(|error| self.failed(error))?;
        sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Journal { file: self.journal.file.clone(), ..self.journal })
    }

    fn write_header(&self, header: &Header) -> Result<()> {
        self.journal.file.write_all_at(&encode_header(header), 0).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("cannot write the journal", self.temporary.display(), error)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Once it is in its place, no file has this name.
        if let Err(error) = std::fs::remove_file(&self.temporary)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %self.temporary.display(), "a journal that was not needed stays");
        }
    }
}

/// Reads the header of the journal at `path`; `None` when there is no journal, or one that never became durable because
/// of a power cut.
///
/// # Errors
/// `Corrupt`, `Invalid` for a newer version, and those of the file system.
pub(crate) fn read_header(path: &Path) -> Result<Option<Header>> {
    let failed = |error: std::io::Error| Error::io("cannot read the journal", path.display(), error);
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(HEADER_LEN as u64).read_to_end(&mut bytes).map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    take_header(&mut bytes.as_slice(), path).map(Some)
}

/// Reads every intact frame in order. `boot` is the running kernel's boot id.
///
/// # Errors
/// `Corrupt` when a frame in the middle is damaged, those of the file system, and those of `visit`.
pub(crate) fn scan(
    path: &Path,
    boot: &[u8; 16],
    visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<Scan> {
    let failed = |error: std::io::Error| Error::io("cannot read the journal", path.display(), error);
    let file = File::open(path).map_err(failed)?;
    let len_bytes = file.metadata().map_err(failed)?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let header = take_header(&mut reader, path)?;
    let mut scan = Scan { end: HEADER_LEN as u64, frames: 0 };
    while let Some(payload) = take_frame(&mut reader, len_bytes - scan.end, scan.frames).map_err(failed)? {
        visit(scan.frames, &payload)?;
        scan.end += (FRAME_HEADER_LEN + payload.len()) as u64;
        scan.frames += 1;
    }
    if scan.end < len_bytes {
        refuse_damage(path, &scan, header.boot == *boot)?;
    }
    Ok(scan)
}

/// The next frame's payload; `None` at the end and where the bytes are no intact frame with this sequence number.
pub(crate) fn take_frame(
    reader: &mut impl Read,
    left: u64,
    sequence: u64,
) -> std::io::Result<Option<Vec<u8>>> {
    if left < FRAME_HEADER_LEN as u64 {
        return Ok(None);
    }
    let mut header = [0; FRAME_HEADER_LEN];
    reader.read_exact(&mut header)?;
    let Some(frame) = FrameHeader::parse(&header) else { return Ok(None) };
    if frame.sequence != sequence || frame.len as u64 > left - FRAME_HEADER_LEN as u64 {
        return Ok(None);
    }
    let mut payload = vec![0; frame.len];
    reader.read_exact(&mut payload)?;
    Ok(frame.holds(&payload).then_some(payload))
}

/// Searches for frames behind the end of a scan that prove damage.
fn refuse_damage(path: &Path, scan: &Scan, same_boot: bool) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("cannot read the journal", path.display(), error);
    let file = File::open(path).map_err(failed)?;
    let mut rest = Vec::new();
    let mut reader = BufReader::new(&file);
    std::io::copy(&mut (&mut reader).take(scan.end), &mut std::io::sink()).map_err(failed)?;
    reader.take(SEARCH_MAX).read_to_end(&mut rest).map_err(failed)?;
    let mut budget = 16 * SEARCH_MAX;
    for at in 1..rest.len().saturating_sub(FRAME_HEADER_LEN) {
        let Some(frame) = FrameHeader::parse(&rest[at..at + FRAME_HEADER_LEN]) else { continue };
        let payload = rest[at + FRAME_HEADER_LEN..].get(..frame.len);
        // A torn tail does not have so many bytes that look like frames.
        let hashed = payload.map_or(0, <[u8]>::len) as u64;
        let is_hostile = hashed > budget;
        budget = budget.saturating_sub(hashed);
        if is_hostile
            || payload.is_some_and(|payload| frame.holds(payload))
                && (same_boot || frame.durable_len > scan.end)
        {
            return Err(Error::corrupt(format!("the journal is damaged at byte {}", scan.end))
                .object(path.display())
                .advice(
                    "the changes behind it cannot be trusted; copy the upper away, then mount with a new one",
                ));
        }
    }
    Ok(())
}

struct FrameHeader {
    len: usize,
    sequence: u64,
    durable_len: u64,
    checksum: u64,
}

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut input = Decoder::new(bytes.strip_prefix(FRAME_MAGIC)?);
        let header = Self {
            len: input.u32().ok()? as usize,
            sequence: input.u64().ok()?,
            durable_len: input.u64().ok()?,
            checksum: input.u64().ok()?,
        };
        (header.len <= PAYLOAD_MAX).then_some(header)
    }

    fn holds(&self, payload: &[u8]) -> bool {
        payload.len() == self.len && self.checksum == frame_checksum(self.sequence, self.durable_len, payload)
    }
}

fn frame_checksum(sequence: u64, durable_len: u64, payload: &[u8]) -> u64 {
    let mut guarded = Encoder::with_capacity(16 + payload.len());
    guarded.u64(sequence).u64(durable_len).bytes(payload);
    checksum(&guarded.finish())
}

fn encode_header(header: &Header) -> Vec<u8> {
    let mut out = Encoder::with_capacity(HEADER_LEN);
    out.bytes(MAGIC).u32(VERSION).u32(0);
    out.bytes(header.store.as_bytes()).bytes(header.base.as_bytes()).bytes(&header.boot);
    let mut bytes = out.finish();
    bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
    bytes
}

fn take_header(reader: &mut impl Read, path: &Path) -> Result<Header> {
    let mut bytes = [0; HEADER_LEN];
    reader
        .read_exact(&mut bytes)
        .map_err(|error| Error::io("cannot read the journal", path.display(), error))?;
    parse_header(&bytes).map_err(|error| error.object(path.display()))
}

pub(crate) fn parse_header(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
    let mut input = Decoder::new(bytes);
    if input.take(8)? != MAGIC {
        return Err(Error::corrupt("not a journal of snapfs (wrong magic)"));
    }
    let version = input.u32()?;
    if version != VERSION {
        return Err(Error::new(Kind::Invalid, format!("the journal has format version {version}"))
            .advice(format!("this build reads version {VERSION}; use a newer snapctl")));
    }
    if checksum(&bytes[..HEADER_LEN - 8]).to_le_bytes() != bytes[HEADER_LEN - 8..] {
        return Err(Error::corrupt("the journal's header fails its checksum"));
    }
    input.u32()?;
    Ok(Header {
        store: StoreId::from_bytes(input.array()?),
        base: SnapshotId::from_bytes(input.array()?),
        boot: input.array()?,
    })
}

/// Makes the names in `directory` durable.
///
/// # Errors
/// Those of the file system.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("cannot sync the directory", directory.display(), error);
    File::open(directory).map_err(failed)?.sync_all().map_err(failed)
}

/// Where the journal of an upper is.
pub(crate) fn path_in(upper: &Path) -> PathBuf {
    upper.join("journal")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: [u8; 16] = [1; 16];

    fn header() -> Header {
        Header { store: StoreId::from_bytes([2; 16]), base: SnapshotId::from_bytes([3; 32]), boot: BOOT }
    }

    fn read_all(path: &Path, boot: &[u8; 16]) -> Result<(Vec<Vec<u8>>, Scan)> {
        let mut frames = Vec::new();
        let scan = scan(path, boot, &mut |_, payload| {
            frames.push(payload.to_vec());
            Ok(())
        })?;
        Ok((frames, scan))
    }

    fn written(path: &Path, count: u8) -> Journal {
        let mut journal = Journal::replace(path, &header(), std::iter::empty()).unwrap();
        for frame in 0..count {
            journal.append(&vec![frame; 10 + frame as usize]).unwrap();
        }
        journal
    }

    #[test]
    fn a_journal_cut_at_any_byte_keeps_every_intact_frame_and_can_be_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(directory.path());
        written(&path, 5);
        let intact = std::fs::read(&path).unwrap();
        let mut ends = vec![HEADER_LEN];
        (0..5).for_each(|frame| ends.push(ends[frame] + FRAME_HEADER_LEN + 10 + frame));
        for len in HEADER_LEN..=intact.len() {
            std::fs::write(&path, &intact[..len]).unwrap();
            let (frames, scan) = read_all(&path, &BOOT).unwrap();
            assert_eq!(frames.len(), ends.iter().filter(|end| **end <= len).count() - 1, "cut at {len}");
            Journal::open(&path, &scan).unwrap().append(b"next").unwrap();
            let (again, _) = read_all(&path, &BOOT).unwrap();
            assert_eq!(again.last().unwrap(), b"next");
            assert_eq!(again.len(), frames.len() + 1);
        }
        for len in 0..HEADER_LEN {
            std::fs::write(&path, &intact[..len]).unwrap();
            assert!(read_all(&path, &BOOT).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table_in_semantics_md() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(directory.path());
        written(&path, 2);
        let bytes = std::fs::read(&path).unwrap();
        let head = [&b"TORPJRNL"[..], &[1, 0, 0, 0, 0, 0, 0, 0], &[2; 16], &[3; 32], &[1; 16]].concat();
        assert_eq!(bytes[..80], head);
        assert_eq!(bytes[80..88], blake3_of(&head));
        let second = &bytes[88 + 32 + 10..];
        let numbers = [&1_u64.to_le_bytes()[..], &88_u64.to_le_bytes()].concat();
        assert_eq!(second[..24], [&b"FRAM"[..], &11_u32.to_le_bytes(), &numbers].concat());
        assert_eq!(second[24..32], blake3_of(&[&numbers[..], &[1; 11]].concat()));
        assert_eq!(second[32..], [1; 11]);
    }

    fn blake3_of(bytes: &[u8]) -> [u8; 8] {
        checksum(bytes).to_le_bytes()
    }

    #[test]
    fn damage_in_the_middle_is_refused_not_taken_for_a_torn_tail() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(directory.path());
        written(&path, 5);
        let intact = std::fs::read(&path).unwrap();
        let last_frame = intact.len() - FRAME_HEADER_LEN - 14;
        for byte in 0..last_frame {
            let mut damaged = intact.clone();
            damaged[byte] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            assert!(read_all(&path, &BOOT).is_err(), "byte {byte}");
        }
    }

    /// A sync that ends when another journal is in place says nothing about that journal.
    #[test]
    fn a_sync_of_the_journal_before_counts_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(directory.path());
        let (file, long) = written(&path, 40).unsynced().unwrap();
        file.sync_data().unwrap();
        let mut journal = Journal::replace(&path, &header(), std::iter::empty()).unwrap();
        journal.append(&[1; 20]).unwrap();
        journal.synced(&file, long);
        assert!(journal.unsynced().is_some());
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn after_a_power_cut_a_hole_in_the_unsynced_tail_is_a_torn_tail_and_one_before_it_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(directory.path());
        let mut journal = written(&path, 2);
        let (file, durable) = journal.unsynced().unwrap();
        file.sync_data().unwrap();
        journal.synced(&file, durable);
        (10..13).for_each(|frame| journal.append(&[frame; 20]).unwrap());
        let intact = std::fs::read(&path).unwrap();

        let mut hole = intact.clone();
        hole[durable as usize..durable as usize + FRAME_HEADER_LEN].fill(0);
        std::fs::write(&path, &hole).unwrap();
        assert_eq!(read_all(&path, &[9; 16]).unwrap().0.len(), 2, "another boot: the tail was never durable");
        assert!(read_all(&path, &BOOT).is_err(), "same boot: nothing can have been lost");

        let mut damage = intact;
        damage[HEADER_LEN + 4] ^= 1;
        std::fs::write(&path, &damage).unwrap();
        assert!(read_all(&path, &[9; 16]).is_err(), "a durable frame is damaged");
    }
}
