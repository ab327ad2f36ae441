//! Where the bytes of a changed file come from: a pure map from blocks to the upper, to zeroes, or to the base below.
//!
//! Knows numbers only, does no I/O. Invariants: pieces are sorted, disjoint, never empty and never touch a piece of the
//! same state; no piece starts at or behind the end of the file; `lower_len_bytes` never grows.

use std::collections::BTreeMap;
use std::ops::Range;

/// Granularity of copy on write in bytes.
pub const BLOCK: u64 = 4096;

/// Who holds the bytes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The data file in the upper, at the same offset.
    Upper,
    /// The file of the base, at the same offset.
    Lower,
    /// Nobody: the bytes are zero.
    Zero,
}

/// A range of bytes with one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Byte range in the file.
    pub range: Range<u64>,
    /// Who holds it.
    pub source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Data,
    Zero,
}

/// The length of a file and the source of each of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    len_bytes: u64,
    lower_len_bytes: u64,
    pieces: BTreeMap<u64, (u64, Piece)>,
}

impl Layout {
    /// A file that is the base's `len_bytes` bytes, unchanged.
    pub fn over(len_bytes: u64) -> Self {
        Self { len_bytes, lower_len_bytes: len_bytes, pieces: BTreeMap::new() }
    }

    /// Length of the file in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// How much of the base still shows through: bytes from here on never come from it.
    pub fn lower_len_bytes(&self) -> u64 {
        self.lower_len_bytes
    }

    /// Whether the content is the base's `base_len_bytes` bytes, untouched.
    pub fn is_clean(&self, base_len_bytes: u64) -> bool {
        self.pieces.is_empty() && self.len_bytes == base_len_bytes && self.lower_len_bytes == base_len_bytes
    }

    /// The blocks that `range` touches now come whole from the upper; the file reaches at least to `range.end`.
    pub fn write(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.set(range.start / BLOCK..range.end.div_ceil(BLOCK), Some(Piece::Data));
        self.len_bytes = self.len_bytes.max(range.end);
    }

    /// Cuts or extends the file; new bytes are zero.
    pub fn truncate(&mut self, len_bytes: u64) {
        self.set(len_bytes.div_ceil(BLOCK)..u64::MAX, None);
        self.lower_len_bytes = self.lower_len_bytes.min(len_bytes);
        self.len_bytes = len_bytes;
    }

    /// Blocks `blocks` become zero. The length stays.
    pub fn zero(&mut self, blocks: Range<u64>) {
        let shadowed = self.lower_len_bytes.div_ceil(BLOCK);
        self.set(blocks.start.max(shadowed)..blocks.end, None);
        self.set(blocks.start..blocks.end.min(shadowed), Some(Piece::Zero));
    }

    /// Whether block `block` is held by the upper.
    pub fn is_upper(&self, block: u64) -> bool {
        let piece = self.pieces.range(..=block).next_back();
        piece.is_some_and(|(_, &(end, piece))| block < end && piece == Piece::Data)
    }

    /// The sources of `range`, in order and without a gap, cut at the end of the file.
    pub fn segments(&self, range: Range<u64>) -> Vec<Segment> {
        let end = range.end.min(self.len_bytes);
        let mut segments = Vec::new();
        let mut at = range.start;
        let first = self.pieces.range(..=range.start / BLOCK).next_back().map_or(0, |(&start, _)| start);
        for (&start, &(stop, piece)) in self.pieces.range(first..) {
            let (start, stop) = (start * BLOCK, stop.saturating_mul(BLOCK).min(end));
            if start >= end {
                break;
            }
            if stop <= at {
                continue;
            }
            self.push_below(&mut segments, at..start.max(at));
            let source = if piece == Piece::Data { Source::Upper } else { Source::Zero };
            segments.push(Segment { range: start.max(at)..stop, source });
            at = stop;
        }
        self.push_below(&mut segments, at..end);
        segments
    }

    fn push_below(&self, segments: &mut Vec<Segment>, range: Range<u64>) {
        let cut = self.lower_len_bytes.clamp(range.start, range.end.max(range.start));
        if range.start < cut {
            segments.push(Segment { range: range.start..cut, source: Source::Lower });
        }
        if cut < range.end {
            segments.push(Segment { range: cut..range.end, source: Source::Zero });
        }
    }

    /// Sorted, disjoint byte ranges in which the file may differ from a base of `base_len_bytes` bytes, and all bytes
    /// behind the base's end that the upper holds.
    pub fn dirty(&self, base_len_bytes: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = self
            .pieces
            .iter()
            .map(|(&start, &(stop, _))| start * BLOCK..stop.saturating_mul(BLOCK).min(self.len_bytes))
            .collect();
        ranges.push(self.lower_len_bytes..base_len_bytes.min(self.len_bytes));
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Block ranges held by the upper, in order.
    pub fn upper_blocks(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges(Piece::Data)
    }

    /// Block ranges that hide the base behind zeroes, in order.
    pub fn zero_blocks(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges(Piece::Zero)
    }

    fn ranges(&self, wanted: Piece) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pieces.iter().filter(move |(_, piece)| piece.1 == wanted).map(|(&start, &(stop, _))| start..stop)
    }

    /// Bytes held by the upper, in whole blocks.
    pub fn upper_bytes(&self) -> u64 {
        self.upper_blocks().map(|range| (range.end - range.start) * BLOCK).sum()
    }

    fn set(&mut self, blocks: Range<u64>, piece: Option<Piece>) {
        if blocks.is_empty() {
            return;
        }
        let overlapping: Vec<u64> = self
            .pieces
            .range(..blocks.end)
            .rev()
            .take_while(|(_, piece)| piece.0 > blocks.start)
            .map(|(&start, _)| start)
            .collect();
        for start in overlapping {
            let (stop, old) = self.pieces.remove(&start).expect("the key was just listed");
            if start < blocks.start {
                self.pieces.insert(start, (blocks.start, old));
            }
            if stop > blocks.end {
                self.pieces.insert(blocks.end, (stop, old));
            }
        }
        if let Some(piece) = piece {
            self.insert_joined(blocks, piece);
        }
    }

    fn insert_joined(&mut self, mut blocks: Range<u64>, piece: Piece) {
        if let Some((&start, &(stop, left))) = self.pieces.range(..blocks.start).next_back()
            && stop == blocks.start
            && left == piece
        {
            blocks.start = start;
        }
        if let Some(&(stop, right)) = self.pieces.get(&blocks.end)
            && right == piece
        {
            self.pieces.remove(&blocks.end);
            blocks.end = stop;
        }
        self.pieces.insert(blocks.start, (blocks.end, piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The naive map: one source for each byte, also behind the end of the file.
    struct Naive {
        sources: Vec<Source>,
        len: usize,
    }

    impl Naive {
        fn over(len: usize) -> Self {
            let mut sources = vec![Source::Lower; len];
            sources.resize(20 * BLOCK as usize, Source::Zero);
            Self { sources, len }
        }
        fn truncate(&mut self, len: usize) {
            self.sources[len.next_multiple_of(BLOCK as usize)..].fill(Source::Zero);
            let cut = self.sources[len..].iter_mut().filter(|source| **source == Source::Lower);
            cut.for_each(|source| *source = Source::Zero);
            self.len = len;
        }
        fn fill(&mut self, blocks: Range<u64>, source: Source) {
            self.sources[(blocks.start * BLOCK) as usize..(blocks.end * BLOCK) as usize].fill(source);
        }
        fn write(&mut self, range: Range<u64>) {
            self.fill(range.start / BLOCK..range.end.div_ceil(BLOCK), Source::Upper);
            self.len = self.len.max(range.end as usize);
        }
    }

    fn flatten(layout: &Layout) -> Vec<Source> {
        let mut bytes = Vec::new();
        for segment in layout.segments(0..u64::MAX) {
            assert_eq!(segment.range.start, bytes.len() as u64, "no gap, no overlap");
            bytes.resize(segment.range.end as usize, segment.source);
        }
        bytes
    }

    #[test]
    fn a_layout_answers_like_one_source_per_byte() {
        for seed in 0..200_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |bound: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % bound
            };
            let base_len = next(12 * BLOCK);
            let mut layout = Layout::over(base_len);
            let mut naive = Naive::over(base_len as usize);
            for _ in 0..60 {
                let (start, len) = (next(14 * BLOCK), next(3 * BLOCK) + 1);
                match next(4) {
                    0 => {
                        layout.truncate(start);
                        naive.truncate(start as usize);
                    }
                    1 => {
                        let blocks = start / BLOCK..(start + len) / BLOCK;
                        layout.zero(blocks.clone());
                        naive.fill(blocks, Source::Zero);
                    }
                    _ => {
                        layout.write(start..start + len);
                        naive.write(start..start + len);
                    }
                }
                // Compared without printing: there are too many bytes to read.
                assert!(flatten(&layout) == naive.sources[..naive.len], "seed {seed}");
                assert_dirty_covers_every_difference(&layout, base_len, seed);
            }
        }
    }

    fn assert_dirty_covers_every_difference(layout: &Layout, base_len: u64, seed: u64) {
        let dirty = layout.dirty(base_len);
        assert!(dirty.windows(2).all(|pair| pair[0].end < pair[1].start), "sorted and disjoint, seed {seed}");
        for (at, source) in flatten(layout).into_iter().enumerate() {
            let at = at as u64;
            let same = if at < base_len { source == Source::Lower } else { source == Source::Zero };
            let covered = dirty.iter().any(|range| range.contains(&at));
            assert!(same || covered, "byte {at} differs but is not dirty, seed {seed}");
        }
    }

    #[test]
    fn sequential_writes_stay_one_piece() {
        let mut layout = Layout::over(0);
        for at in 0..1000 {
            layout.write(at * 100..at * 100 + 100);
        }
        assert_eq!(layout.upper_blocks().collect::<Vec<_>>(), vec![0..25]);
        assert!(layout.is_upper(24) && !layout.is_upper(25));
    }
}
