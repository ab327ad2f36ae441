//! Reading one tier's copy of a pack, and verifying every byte of it. Every part of a pack is guarded: header and
//! padding by their fixed values, frames by their checksums and the ids of their chunks, the directory by its
//! checksums.

use crate::error::{Error, Kind, Result};
use crate::id::PackId;
use crate::operations::domain_inventory::DomainInventory;
use crate::pack::{
    self, ALIGNMENT, Frame, FrameHeader, PACK_HEADER_LEN, PackDirectory, PackKind, directory_of,
};
use crate::tier::Tier;
use std::ops::Range;

/// A pack is read in pieces of this length, so that a rate limit applies within it.
const PIECE_LEN: u64 = 4 << 20;
/// Around unreadable bytes, pieces of this length are tried.
const SMALL_PIECE_LEN: u64 = 4 << 10;
/// Longest pack; bytes beyond are ignored.
const MAX_PACK_LEN: u64 = 256 << 20;

/// A pack as one tier has it.
#[derive(Debug, Default)]
pub struct PackCopy {
    /// Its bytes, with zeroes in place of unreadable ones.
    pub bytes: Vec<u8>,
    /// Unreadable ranges, and why.
    pub unreadable: Vec<(Range<u64>, Error)>,
}

/// Reads a pack; calls `pass` with the length of each piece. Of a partly unreadable copy, returns the rest.
///
/// # Errors
/// `NotFound`; as the tier when nothing can be read.
pub fn read_copy(tier: &dyn Tier, id: PackId, pass: &mut dyn FnMut(u64)) -> Result<PackCopy> {
    let key = id.key();
    let absent = || Error::new(Kind::NotFound, "no such pack").object(&key);
    let whole_len = tier.len_bytes(&key)?.ok_or_else(absent)?;
    let len = whole_len.min(MAX_PACK_LEN);
    let mut copy = PackCopy::default();
    if len < whole_len {
        let error = Error::corrupt(format!("a pack of {whole_len} bytes exceeds the longest pack"));
        copy.unreadable.push((len..whole_len, error));
    }
    while (copy.bytes.len() as u64) < len {
        let offset = copy.bytes.len() as u64;
        let piece_len = PIECE_LEN.min(len - offset);
        match tier.get_range(&key, offset, piece_len) {
            Ok(bytes) => copy.bytes.extend_from_slice(&bytes),
            Err(error) if error.kind() == Kind::NotFound => return Err(error),
            Err(error) => read_around(tier, &key, offset..offset + piece_len, error, &mut copy)?,
        }
        pass(piece_len);
    }
    Ok(copy)
}

/// Reads the readable parts of a piece that cannot be read at once. A tier that returns nothing of its beginning counts
/// as unavailable, not damaged.
fn read_around(
    tier: &dyn Tier,
    key: &str,
    piece: Range<u64>,
    failure: Error,
    copy: &mut PackCopy,
) -> Result<()> {
    let (mut offset, mut got_any, before) = (piece.start, !copy.bytes.is_empty(), copy.unreadable.len());
    let mut failure = Some(failure);
    while offset < piece.end {
        let end = piece.end.min(offset + SMALL_PIECE_LEN);
        match tier.get_range(key, offset, end - offset) {
            Ok(bytes) => {
                copy.bytes.extend_from_slice(&bytes);
                got_any = true;
            }
            Err(error) if error.kind() == Kind::NotFound => return Err(error),
            Err(error) => {
                copy.bytes.resize(copy.bytes.len() + (end - offset) as usize, 0);
                match copy.unreadable.last_mut().filter(|(range, _)| range.end == offset) {
                    Some((range, _)) => range.end = end,
                    None => copy.unreadable.push((offset..end, error)),
                }
            }
        }
        offset = end;
    }
    match (got_any || copy.unreadable.len() > before + 1, failure.take()) {
        (false, Some(failure)) => Err(failure),
        _ => Ok(()),
    }
}

/// A fault in a pack.
#[derive(Debug)]
pub struct Fault {
    /// Where it begins in the pack in bytes: its header, a frame, or the directory.
    pub offset: u64,
    /// The fault.
    pub error: Error,
}

/// The result of verifying a pack.
#[derive(Debug, Default)]
pub struct Examined {
    /// Its directory, if that is intact.
    pub directory: Option<PackDirectory>,
    /// Its faults; empty when every byte is as it was written.
    pub faults: Vec<Fault>,
    /// Frames verified.
    pub frames: u64,
    /// Frames whose key is not available here: only their checksums were verified.
    pub locked_frames: u64,
}

impl PackCopy {
    /// Verifies every byte of it.
    pub fn examine(&self, domains: &DomainInventory, id: PackId) -> Examined {
        let mut examined = examine(domains, id, &self.bytes);
        for (range, error) in &self.unreadable {
            let what = format!("bytes {} to {} cannot be read: {error}", range.start, range.end);
            examined.faults.push(Fault { offset: range.start, error: Error::corrupt(what) });
        }
        examined
    }
}

/// Verifies every byte of a pack.
pub fn examine(domains: &DomainInventory, id: PackId, bytes: &[u8]) -> Examined {
    let mut examined = Examined::default();
    let directory = directory_of(id, bytes);
    let header = bytes.get(..PACK_HEADER_LEN);
    let is_headed = |kind| header.is_some_and(|header| header == pack::header(id, kind));
    let has_header = match &directory {
        Ok(directory) => is_headed(directory.kind),
        Err(_) => is_headed(PackKind::Data) || is_headed(PackKind::Meta),
    };
    if !has_header {
        // Reads do not use it, only a scan of a pack whose directory is lost.
        examined.faults.push(Fault { offset: 0, error: Error::corrupt("pack header is damaged") });
    }
    match directory {
        Ok(directory) => {
            for (number, extent) in (0..).zip(&directory.frames) {
                let frame = &bytes[extent.offset as usize..][..extent.len_bytes as usize];
                examined.frames += 1;
                match verify(domains, frame) {
                    Ok(Verified { header, .. }) if !directory.names_header(number, &header) => {
                        let error = Error::corrupt("frame holds other chunks than the pack directory says");
                        examined.faults.push(Fault { offset: extent.offset, error });
                    }
                    Ok(Verified { is_locked, .. }) => examined.locked_frames += u64::from(is_locked),
                    Err(error) => examined.faults.push(Fault { offset: extent.offset, error }),
                }
            }
            examined.directory = Some(directory);
        }
        Err(error) => {
            examined.faults.push(Fault { offset: bytes.len() as u64, error });
        }
    }
    examined
}

/// A verified frame: every byte is as it was written.
pub struct Verified {
    /// Its header.
    pub header: FrameHeader,
    /// Its key is not available here, so its chunks were not compared with their ids.
    pub is_locked: bool,
}

/// Verifies a complete stored frame with its padding. An unreadable base is no fault of the delta.
///
/// # Errors
/// `Corrupt`; `Invalid` for a newer format.
pub fn verify(domains: &DomainInventory, frame: &[u8]) -> Result<Verified> {
    let header = Frame::verify_stored(frame)?;
    match domains.verify(frame) {
        Ok(opened) => Ok(Verified { header, is_locked: opened.is_none() }),
        Err(_) if domains.lacks_base_of(&header) => Ok(Verified { header, is_locked: false }),
        Err(error) => Err(error),
    }
}

/// The intact frame that begins at a byte of a pack, according to its own header.
pub fn frame_at<'a>(domains: &DomainInventory, pack: &'a [u8], offset: u64) -> Option<(Verified, &'a [u8])> {
    let rest = pack.get(usize::try_from(offset).ok()?..)?;
    if !rest.starts_with(pack::FRAME_MAGIC) {
        return None;
    }
    let frame = rest.get(..FrameHeader::decode(rest).ok()?.padded_len())?;
    verify(domains, frame).ok().map(|verified| (verified, frame))
}

/// Where the next intact frame after a byte begins: frames begin at multiples of [`ALIGNMENT`].
pub fn next_frame(domains: &DomainInventory, pack: &[u8], after: u64) -> Option<u64> {
    let first = after as usize / ALIGNMENT + 1;
    let mut starts = (first..pack.len().div_ceil(ALIGNMENT)).map(|unit| (unit * ALIGNMENT) as u64);
    starts.find(|start| frame_at(domains, pack, *start).is_some())
}
