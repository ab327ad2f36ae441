//! Splicing: a changed file from its old extents and the byte ranges that differ. Cost is proportional to the change:
//! extents that no dirty range touches are taken over by id and never read.

use crate::error::Result;
use crate::tree::{Content, ContentReader, ContentWriter, Extent, INLINE_MAX};
use crate::writer::Writer;
use std::ops::Range;

/// Zeroes become a hole in pieces of at least this much, aligned to it.
const HOLE_LEN: u64 = 64 << 10;
/// How much is read at once.
const READ_LEN: u64 = 1 << 20;

/// Reads the new bytes of the file at an offset.
pub(crate) type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> Result<()> + 'a;

/// Stores the file that `base` became: `len_bytes` long, different from `base` in the `dirty` ranges, which are sorted
/// and disjoint. Ranges past the end of `base` that are not dirty are holes.
///
/// # Errors
/// Those of `read` and of [`Writer::put_chunk`].
pub fn splice(
    writer: &mut Writer,
    base: &ContentReader,
    len_bytes: u64,
    dirty: &[Range<u64>],
    read: &mut ReadAt<'_>,
) -> Result<Content> {
    Spliced::of(base).splice(writer, len_bytes, dirty, read)?.finish(writer)
}

/// A file of which all chunks are stored and the list of them is not yet, because more of it may change.
#[derive(Clone, Debug)]
pub struct Spliced {
    len_bytes: u64,
    /// All bytes of a short file.
    inline: Option<Vec<u8>>,
    /// Extents and where each begins.
    extents: Vec<(u64, Extent)>,
}

impl Spliced {
    /// A stored file.
    pub fn of(base: &ContentReader) -> Self {
        Self { len_bytes: base.len_bytes(), inline: None, extents: base.extents().to_vec() }
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Cuts the file to `len_bytes`. The caller must treat the returned range, part of a chunk, as dirty.
    pub fn cut(&mut self, len_bytes: u64) -> Range<u64> {
        self.extents.retain(|(start, _)| *start < len_bytes);
        self.len_bytes = self.len_bytes.min(len_bytes);
        let Some((start, extent)) = self.extents.last_mut() else { return 0..0 };
        match extent {
            Extent::Hole { len_bytes } => {
                *len_bytes = self.len_bytes - *start;
                0..0
            }
            Extent::Chunk { len_bytes, .. } => {
                let end = *start + u64::from(*len_bytes);
                std::mem::replace(&mut self.len_bytes, end)..end
            }
        }
    }

    /// Stores the changed file, as [`splice`].
    ///
    /// # Errors
    /// As [`splice`].
    pub fn splice(
        &self,
        writer: &mut Writer,
        len_bytes: u64,
        dirty: &[Range<u64>],
        read: &mut ReadAt<'_>,
    ) -> Result<Self> {
        if len_bytes <= INLINE_MAX as u64 {
            let mut bytes = vec![0; len_bytes as usize];
            read(0, &mut bytes)?;
            return Ok(Self { len_bytes, inline: Some(bytes), extents: Vec::new() });
        }
        let mut out = writer.content_writer();
        for piece in plan(&self.extents, self.len_bytes, len_bytes, dirty) {
            match piece {
                Piece::Keep(extent) => out.extent(extent)?,
                Piece::Rewrite(range) => rewrite(&mut out, range, read)?,
            }
        }
        let mut offset = 0;
        let place = |extent: Extent| {
            let start = offset;
            offset += extent.len_bytes();
            (start, extent)
        };
        let extents = out.into_extents()?.into_iter().map(place).collect();
        Ok(Self { len_bytes, inline: None, extents })
    }

    /// How many bytes [`Self::splice`] would read and store again.
    pub fn cost(&self, len_bytes: u64, dirty: &[Range<u64>]) -> u64 {
        if len_bytes <= INLINE_MAX as u64 {
            return len_bytes;
        }
        let cost = |piece: &Piece| match piece {
            Piece::Keep(_) => 0,
            Piece::Rewrite(range) => range.end - range.start,
        };
        plan(&self.extents, self.len_bytes, len_bytes, dirty).iter().map(cost).sum()
    }

    /// Ends the file that [`Self::splice`] returned: stores the list of its extents.
    ///
    /// # Errors
    /// As [`Writer::put_chunk`].
    pub fn finish(self, writer: &mut Writer) -> Result<Content> {
        match self.inline {
            Some(bytes) => Ok(Content::inline(bytes)),
            None => {
                Content::from_extents(writer, self.extents.into_iter().map(|(_, extent)| extent).collect())
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Keep(Extent),
    Rewrite(Range<u64>),
}

/// The pieces to keep and to rewrite, in file order; adjacent rewrites are joined, so that cuts can move inside them.
fn plan(extents: &[(u64, Extent)], base_len_bytes: u64, len_bytes: u64, dirty: &[Range<u64>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let old_len = base_len_bytes.min(len_bytes);
    if extents.is_empty() {
        rewrite_piece(&mut pieces, 0..old_len);
    }
    for (start, extent) in extents {
        let range = *start..(start + extent.len_bytes()).min(len_bytes);
        if range.is_empty() {
            continue;
        }
        match extent {
            Extent::Hole { .. } => hole_piece(&mut pieces, range, dirty),
            Extent::Chunk { .. }
                if range.end - range.start == extent.len_bytes() && !touches(dirty, &range) =>
            {
                pieces.push(Piece::Keep(*extent));
            }
            Extent::Chunk { .. } => rewrite_piece(&mut pieces, range),
        }
    }
    if old_len < len_bytes {
        hole_piece(&mut pieces, old_len..len_bytes, dirty);
    }
    pieces
}

fn rewrite_piece(pieces: &mut Vec<Piece>, range: Range<u64>) {
    match pieces.last_mut() {
        Some(Piece::Rewrite(last)) if last.end == range.start => last.end = range.end,
        _ if range.is_empty() => {}
        _ => pieces.push(Piece::Rewrite(range)),
    }
}

/// A stretch that is a hole except where it is dirty.
fn hole_piece(pieces: &mut Vec<Piece>, range: Range<u64>, dirty: &[Range<u64>]) {
    let mut at = range.start;
    for changed in &dirty[dirty.partition_point(|changed| changed.end <= range.start)..] {
        if changed.start >= range.end {
            break;
        }
        let (start, end) = (changed.start.max(at), changed.end.min(range.end));
        if start > at {
            pieces.push(Piece::Keep(Extent::Hole { len_bytes: start - at }));
        }
        rewrite_piece(pieces, start..end);
        at = end;
    }
    if at < range.end {
        pieces.push(Piece::Keep(Extent::Hole { len_bytes: range.end - at }));
    }
}

fn touches(dirty: &[Range<u64>], range: &Range<u64>) -> bool {
    let first = dirty.partition_point(|changed| changed.end <= range.start);
    dirty.get(first).is_some_and(|changed| changed.start < range.end)
}

/// Reads and writes a range again, turning aligned stretches of zeroes into holes.
fn rewrite(out: &mut ContentWriter<'_>, range: Range<u64>, read: &mut ReadAt<'_>) -> Result<()> {
    let mut buffer = vec![0; READ_LEN as usize];
    let mut at = range.start;
    while at < range.end {
        let end = (at - at % READ_LEN + READ_LEN).min(range.end);
        let bytes = &mut buffer[..(end - at) as usize];
        read(at, bytes)?;
        write_with_holes(out, at, bytes)?;
        at = end;
    }
    Ok(())
}

/// Appends bytes that stand at `offset` of their file; complete aligned stretches of zeroes become holes.
///
/// # Errors
/// As [`Writer::put_chunk`].
pub fn write_with_holes(out: &mut ContentWriter<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let to_boundary = HOLE_LEN - (offset + done as u64) % HOLE_LEN;
        let piece = &bytes[done..bytes.len().min(done + to_boundary as usize)];
        match piece.len() as u64 == HOLE_LEN && is_zero(piece) {
            true => out.hole(HOLE_LEN)?,
            false => out.write(piece)?,
        }
        done += piece.len();
    }
    Ok(())
}

/// Whether all bytes are zero; about as fast as memory is read.
pub fn is_zero(bytes: &[u8]) -> bool {
    let lines = bytes.chunks_exact(64);
    let tail = lines.remainder();
    let blank = |line: &[u8]| line.iter().fold(0, |seen, byte| seen | byte) == 0;
    lines.into_iter().all(blank) && blank(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;
    use crate::testing::memory_store;
    use proptest::prelude::*;

    /// The origin of a byte of the new file.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Byte {
        Kept { extent: usize },
        Hole,
        Rewritten,
    }

    /// The expected plan, computed byte by byte.
    fn naive(extents: &[Extent], len_bytes: u64, dirty: &[Range<u64>]) -> Vec<Byte> {
        let mut start = 0;
        let mut bytes = Vec::new();
        for (number, extent) in extents.iter().enumerate() {
            let range = start..start + extent.len_bytes();
            start = range.end;
            let whole = range.end <= len_bytes && !(range.clone()).any(|at| is_dirty(dirty, at));
            bytes.extend(range.clone().filter(|at| *at < len_bytes).map(|at| match extent {
                Extent::Chunk { .. } if whole => Byte::Kept { extent: number },
                Extent::Hole { .. } if !is_dirty(dirty, at) => Byte::Hole,
                _ => Byte::Rewritten,
            }));
        }
        let tail = bytes.len() as u64..len_bytes;
        bytes.extend(tail.map(|at| if is_dirty(dirty, at) { Byte::Rewritten } else { Byte::Hole }));
        bytes
    }

    fn is_dirty(dirty: &[Range<u64>], at: u64) -> bool {
        dirty.iter().any(|range| range.contains(&at))
    }

    proptest! {
        #[test]
        fn a_plan_is_what_the_slow_way_says(
            lengths in prop::collection::vec((any::<bool>(), 1..40u32), 1..8),
            cuts in prop::collection::btree_set(0..300u64, 0..8),
            len_bytes in 0..300u64,
        ) {
            let (store, _state) = memory_store();
            let extents: Vec<Extent> = lengths.iter().zip(0u8..).map(|((is_hole, len), number)| match is_hole {
                true => Extent::Hole { len_bytes: u64::from(*len) },
                false => Extent::Chunk { id: ChunkId::from_bytes([number; 32]), len_bytes: *len },
            }).collect();
            let mut fields = crate::wire::Encoder::new();
            Content::listed(extents.clone()).unwrap().encode_into(&mut fields);
            let bytes = fields.finish();
            let content = Content::decode_from(&mut crate::wire::Decoder::new(&bytes)).unwrap();
            let base = ContentReader::open(&store, &content).unwrap();
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let dirty: Vec<Range<u64>> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let mut made = Vec::new();
            for piece in plan(base.extents(), base.len_bytes(), len_bytes, &dirty) {
                let (byte, len) = match piece {
                    Piece::Keep(Extent::Hole { len_bytes }) => (Byte::Hole, len_bytes),
                    Piece::Keep(extent @ Extent::Chunk { .. }) => {
                        let number = extents.iter().position(|found| *found == extent).unwrap();
                        (Byte::Kept { extent: number }, extent.len_bytes())
                    }
                    Piece::Rewrite(range) => {
                        prop_assert_eq!(range.start, made.len() as u64);
                        (Byte::Rewritten, range.end - range.start)
                    }
                };
                prop_assert!(len > 0);
                made.extend(std::iter::repeat_n(byte, len as usize));
            }
            prop_assert_eq!(made, naive(&extents, len_bytes, &dirty));
        }
    }

    #[test]
    fn zero_is_zero_at_every_length_and_nothing_else_is() {
        for len in 0..200 {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
