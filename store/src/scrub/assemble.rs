//! Rebuilding a pack, byte for byte, from all intact parts of its copies: packs are immutable and determined by their
//! frames, so header, padding and directory can be made again, and a frame of one copy fits every other.
//!
//! Where the directory of every copy is lost, frames are found one after the other by their own headers; they are known
//! to be complete when the index lists exactly these chunks, or a copy is exactly as long as the pack that they make.

use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};
use crate::index::{PackEntries, PackEntriesRow};
use crate::operations::domain_inventory::DomainInventory;
use crate::operations::verify_pack::{Verified, examine, frame_at, next_frame, verify};
use crate::pack::{
    EncodedFrame, FrameExtent, PACK_HEADER_LEN, PackBuilder, PackDirectory, PackKind, directory_of,
};
use crate::repo::disk_cache::DiskCache;
use std::collections::BTreeMap;

/// The sources that a pack can be rebuilt from.
pub(super) struct Sources<'a> {
    pub domains: &'a DomainInventory,
    pub id: PackId,
    /// The copies of the tiers.
    pub copies: Vec<&'a [u8]>,
    /// Its entries in the index.
    pub entries: Option<PackEntries>,
    pub disk_cache: &'a DiskCache,
}

/// A frame, or where one is lost.
struct Piece {
    extent: FrameExtent,
    frame: Option<(Verified, Vec<u8>)>,
}

/// A frame that has no intact copy.
#[derive(Debug)]
pub(super) struct LostFrame {
    /// Its extent. Of several unknown ones in a row: where the first begins.
    pub extent: FrameExtent,
    /// Its chunks, as far as they are known.
    pub chunks: Vec<ChunkId>,
}

/// The outcome of rebuilding a pack.
pub(super) enum Assembled {
    /// The bytes of the pack.
    Whole(Vec<u8>),
    /// Parts of it have no intact copy.
    Missing {
        /// The lost frames.
        lost: Vec<LostFrame>,
        /// Why it cannot be rebuilt.
        reason: Error,
    },
}

impl Sources<'_> {
    /// Rebuilds the pack, or returns the lost frames.
    pub(super) fn assemble(&self) -> Assembled {
        let directory = self.copies.iter().find_map(|copy| directory_of(self.id, copy).ok());
        let pieces = match &directory {
            Some(directory) => self.by_directory(directory),
            None => self.by_scan(),
        };
        let lost: Vec<LostFrame> = pieces
            .iter()
            .filter(|piece| piece.frame.is_none())
            .map(|piece| LostFrame {
                extent: piece.extent,
                chunks: self.chunks_at(piece, directory.as_ref()),
            })
            .collect();
        if !lost.is_empty() {
            let reason = Error::corrupt(format!("{} of its frames have no intact copy", lost.len()));
            return Assembled::Missing { lost, reason };
        }
        match self.build(pieces, directory.as_ref()) {
            Ok(bytes) => Assembled::Whole(bytes),
            Err(reason) => Assembled::Missing { lost, reason },
        }
    }

    /// Each frame that the directory names, from the first copy in which it is intact.
    fn by_directory(&self, directory: &PackDirectory) -> Vec<Piece> {
        let piece = |(number, extent): (u32, &FrameExtent)| {
            let is_named = |verified: &Verified| directory.names_header(number, &verified.header);
            Piece { extent: *extent, frame: self.frame_of(extent, &is_named) }
        };
        (0..).zip(&directory.frames).map(piece).collect()
    }

    fn frame_of(
        &self,
        extent: &FrameExtent,
        accept: &dyn Fn(&Verified) -> bool,
    ) -> Option<(Verified, Vec<u8>)> {
        let (start, len) = (extent.offset as usize, extent.len_bytes as usize);
        let try_bytes = |bytes: &[u8]| {
            let verified = verify(self.domains, bytes).ok().filter(accept)?;
            Some((verified, bytes.to_vec()))
        };
        let of_copy = |copy: &&[u8]| try_bytes(copy.get(start..start.checked_add(len)?)?);
        self.copies
            .iter()
            .find_map(of_copy)
            .or_else(|| try_bytes(&self.disk_cache.get(self.id, extent.offset, extent.len_bytes.into())?))
    }

    /// One frame after the other, by their own headers and the entries of the index.
    fn by_scan(&self) -> Vec<Piece> {
        let known: BTreeMap<u64, u32> = self.entries.iter().flat_map(PackEntries::frames).collect();
        let mut pieces = Vec::new();
        let mut offset = PACK_HEADER_LEN as u64;
        loop {
            let found = self.copies.iter().find_map(|copy| frame_at(self.domains, copy, offset));
            let piece = if let Some((verified, bytes)) = found {
                let extent = FrameExtent { offset, len_bytes: bytes.len() as u32 };
                Piece { extent, frame: Some((verified, bytes.to_vec())) }
            } else if let Some(len_bytes) = known.get(&offset) {
                let extent = FrameExtent { offset, len_bytes: *len_bytes };
                Piece { extent, frame: self.frame_of(&extent, &|_| true) }
            } else {
                let of_copies = self.copies.iter().filter_map(|copy| next_frame(self.domains, copy, offset));
                let of_index = known.range(offset + 1..).next().map(|(offset, _)| *offset);
                let Some(next) = of_copies.chain(of_index).min() else { return pieces };
                Piece { extent: FrameExtent { offset, len_bytes: (next - offset) as u32 }, frame: None }
            };
            offset += u64::from(piece.extent.len_bytes);
            pieces.push(piece);
        }
    }

    /// The chunks of a lost frame.
    fn chunks_at(&self, piece: &Piece, directory: Option<&PackDirectory>) -> Vec<ChunkId> {
        let offset = piece.extent.offset;
        if let Some(directory) = directory {
            let is_there = |frame: u32| directory.frames[frame as usize].offset == offset;
            let entries = directory.entries.iter().filter(|entry| is_there(entry.frame));
            return entries.map(|entry| entry.id).collect();
        }
        let rows = self.entries.iter().flat_map(|entries| &entries.rows);
        rows.filter(|row| row.offset == offset).map(PackEntriesRow::chunk).collect()
    }

    /// The pack of these frames, verified like any other, and known to be complete.
    fn build(&self, pieces: Vec<Piece>, directory: Option<&PackDirectory>) -> Result<Vec<u8>> {
        let first = pieces.first().and_then(|piece| piece.frame.as_ref());
        let kind = match (directory, first) {
            (Some(directory), _) => directory.kind,
            (None, Some((verified, _))) => verified.header.kind,
            (None, None) => return Err(Error::corrupt("no part of it is intact on any tier")),
        };
        let (bytes, rebuilt) = built(self.id, kind, pieces);
        if let Some(fault) = examine(self.domains, self.id, &bytes).faults.into_iter().next() {
            return Err(fault.error);
        }
        let is_all = match directory {
            Some(directory) => *directory == rebuilt,
            None => {
                let is_known = self.entries.as_ref().is_some_and(|entries| entries.matches(&rebuilt));
                is_known || self.copies.iter().any(|copy| copy.len() == bytes.len())
            }
        };
        match (is_all, directory) {
            (true, _) => Ok(bytes),
            (false, Some(_)) => Err(Error::corrupt("its frames are not those that its directory names")),
            (false, None) => Err(Error::corrupt(
                "its directory is lost, and nothing tells whether these are all of its frames",
            )),
        }
    }
}

fn built(id: PackId, kind: PackKind, pieces: Vec<Piece>) -> (Vec<u8>, PackDirectory) {
    let mut builder = PackBuilder::new(id, kind);
    for (verified, bytes) in pieces.into_iter().filter_map(|piece| piece.frame) {
        let slots = verified.header.slots.iter().map(|(id, range)| (*id, range.len() as u32)).collect();
        builder.push(&EncodedFrame { bytes, slots, base: verified.header.base });
    }
    let (_, bytes, directory) = builder.finish();
    (bytes, directory)
}
