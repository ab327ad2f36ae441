//! Where the bytes of a changed file come from: a pure map from blocks to the upper, to zeroes, or to the base below.
//!
//! Knows numbers only, does no I/O. Invariants: no block is both held by the upper and hidden behind zeroes; blocks
//! behind the end of the file are neither; `lower_len_bytes` never grows and is never more than the length.

use crate::ranges::BlockSet;
use std::ops::Range;

/// Granularity of copy on write in bytes.
pub(crate) const BLOCK: u64 = 4096;

/// The source of the bytes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The data file in the upper, at the same offset.
    Upper,
    /// The file of the base, at the same offset.
    Lower,
    /// None: the bytes are zero.
    Zero,
}

/// A range of bytes with one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Byte range in the file.
    pub range: Range<u64>,
    /// Its source.
    pub source: Source,
}

/// The length of a file and the source of each of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    len_bytes: u64,
    lower_len_bytes: u64,
    /// The blocks that hide the base; allocated only when there are any, because few files of a mount have some.
    covered: Option<Box<Covered>>,
}

/// Blocks that do not come from the base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Covered {
    /// Blocks that the upper holds.
    data: BlockSet,
    /// Blocks that hide the base behind zeroes.
    zero: BlockSet,
    /// How many of `data` hide the base.
    hiding: u64,
}

static NOTHING: Covered = Covered { data: BlockSet::EMPTY, zero: BlockSet::EMPTY, hiding: 0 };

impl Layout {
    /// An unchanged file with `len_bytes` bytes of the base.
    pub(crate) fn over(len_bytes: u64) -> Self {
        Self { len_bytes, lower_len_bytes: len_bytes, covered: None }
    }

    /// Length of the file in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// How many bytes of the base still show through: bytes from here on never come from the base.
    pub(crate) fn lower_len_bytes(&self) -> u64 {
        self.lower_len_bytes
    }

    /// Whether the content is the base's `base_len_bytes` bytes, untouched.
    pub(crate) fn is_clean(&self, base_len_bytes: u64) -> bool {
        let is_covered = !self.covered().data.is_empty() || !self.covered().zero.is_empty();
        !is_covered && self.len_bytes == base_len_bytes && self.lower_len_bytes == base_len_bytes
    }

    /// Has the blocks that `range` touches come from the upper completely; the file reaches at least to `range.end`.
    pub(crate) fn write(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let blocks = blocks_of(&range);
        self.covered_mut().zero.remove(blocks.clone());
        self.change_data(blocks, BlockSet::insert);
        self.len_bytes = self.len_bytes.max(range.end);
    }

    /// Whether [`Self::write`] would change nothing: the upper holds all blocks of `range` already.
    pub(crate) fn holds(&self, range: &Range<u64>) -> bool {
        range.end <= self.len_bytes && self.covered().data.has_all(&blocks_of(range))
    }

    /// Cuts or extends the file; new bytes are zero.
    pub(crate) fn truncate(&mut self, len_bytes: u64) {
        let behind = len_bytes.div_ceil(BLOCK)..u64::MAX;
        if let Some(covered) = &mut self.covered {
            covered.zero.remove(behind.clone());
            self.change_data(behind, BlockSet::remove);
            self.drop_empty();
        }
        self.lower_len_bytes = self.lower_len_bytes.min(len_bytes);
        self.len_bytes = len_bytes;
    }

    /// Makes `blocks` zero. The length stays.
    pub(crate) fn zero(&mut self, blocks: Range<u64>) {
        let hiding = blocks.start..blocks.end.min(self.lower_blocks());
        self.change_data(blocks, BlockSet::remove);
        self.covered_mut().zero.insert(hiding);
        self.drop_empty();
    }

    /// Whether block `block` is held by the upper.
    pub(crate) fn is_upper(&self, block: u64) -> bool {
        self.covered().data.range_at(block).is_some()
    }

    /// The sources of `range`, in order and without a gap, cut at the end of the file.
    pub(crate) fn segments(&self, range: Range<u64>) -> Vec<Segment> {
        let end = range.end.min(self.len_bytes);
        let mut segments = Vec::new();
        let mut at = range.start;
        while at < end {
            let (stop, source) = self.source_at(at);
            let stop = stop.min(end);
            segments.push(Segment { range: at..stop, source });
            at = stop;
        }
        segments
    }

    /// The source of the byte at `at`, and the earliest offset at which another source begins.
    fn source_at(&self, at: u64) -> (u64, Source) {
        let block = at / BLOCK;
        let end = |blocks: Range<u64>| blocks.end.saturating_mul(BLOCK);
        if let Some(blocks) = self.covered().data.range_at(block) {
            return (end(blocks), Source::Upper);
        }
        if let Some(blocks) = self.covered().zero.range_at(block) {
            return (end(blocks), Source::Zero);
        }
        let covered = self
            .covered()
            .data
            .next_start(block)
            .into_iter()
            .chain(self.covered().zero.next_start(block))
            .min();
        let covered = covered.map_or(u64::MAX, |block| block.saturating_mul(BLOCK));
        match at < self.lower_len_bytes {
            true => (covered.min(self.lower_len_bytes), Source::Lower),
            false => (covered, Source::Zero),
        }
    }

    /// The first hole at or behind `offset`; the end of the file is one. `holes` are those of the base's file, sorted,
    /// disjoint, and apart from each other. Costs the logarithm of the number of pieces and of holes, and as much again
    /// for each hole of the base that is filled.
    pub(crate) fn next_hole(&self, offset: u64, holes: &[Range<u64>]) -> u64 {
        let mut at = offset;
        while at < self.len_bytes {
            let (stop, source) = self.source_at(at);
            at = match source {
                Source::Zero => return at,
                Source::Upper => stop,
                Source::Lower => {
                    let zero =
                        self.covered().zero.next_start(at / BLOCK).map_or(u64::MAX, |block| block * BLOCK);
                    let hole = hole_from(holes, at).map_or(u64::MAX, |hole| hole.start);
                    match hole <= at {
                        true => return at,
                        false => hole.min(zero).min(self.lower_len_bytes),
                    }
                }
            };
        }
        self.len_bytes
    }

    /// The first byte at or behind `offset` that may not be zero. Holes and cost as for [`Self::next_hole`].
    pub(crate) fn next_data(&self, offset: u64, holes: &[Range<u64>]) -> Option<u64> {
        let mut at = offset;
        while at < self.len_bytes {
            let (stop, source) = self.source_at(at);
            at = match source {
                Source::Upper => return Some(at),
                Source::Zero => stop,
                Source::Lower => match hole_from(holes, at).filter(|hole| hole.start <= at) {
                    Some(hole) => hole.end.min(stop),
                    None => return Some(at),
                },
            };
        }
        None
    }

    /// Sorted, disjoint byte ranges in which the file may differ from a base of `base_len_bytes` bytes, and all bytes
    /// behind the base's end that the upper holds.
    pub(crate) fn dirty(&self, base_len_bytes: u64) -> Vec<Range<u64>> {
        let covered = self.covered().data.ranges().chain(self.covered().zero.ranges());
        let mut ranges: Vec<Range<u64>> = covered.map(|blocks| bytes_of(&blocks, self.len_bytes)).collect();
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
    pub(crate) fn upper_blocks(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.covered().data.ranges()
    }

    /// Block ranges that hide the base behind zeroes, in order.
    pub(crate) fn zero_blocks(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.covered().zero.ranges()
    }

    /// Bytes held by the upper, a multiple of the block size.
    pub(crate) fn upper_bytes(&self) -> u64 {
        self.covered().data.count() * BLOCK
    }

    /// Bytes of the base that show through.
    pub(crate) fn shown_bytes(&self) -> u64 {
        // The last block of the base may be partial.
        let last = self.lower_len_bytes / BLOCK;
        let is_last_hidden =
            self.covered().data.range_at(last).is_some() || self.covered().zero.range_at(last).is_some();
        let rest = self.lower_len_bytes % BLOCK;
        let beyond = if rest > 0 && is_last_hidden { BLOCK - rest } else { 0 };
        self.lower_len_bytes + beyond - (self.covered().hiding + self.covered().zero.count()) * BLOCK
    }

    /// Blocks of the base, the last of which may be partial.
    fn lower_blocks(&self) -> u64 {
        self.lower_len_bytes.div_ceil(BLOCK)
    }

    /// Changes `data` and its counts.
    fn change_data(&mut self, blocks: Range<u64>, change: fn(&mut BlockSet, Range<u64>)) {
        let edge = self.lower_blocks().clamp(blocks.start, blocks.end.max(blocks.start));
        let covered = self.covered_mut();
        change(&mut covered.data, edge..blocks.end);
        let before = covered.data.count();
        change(&mut covered.data, blocks.start..edge);
        covered.hiding = covered.hiding + covered.data.count() - before;
    }

    /// Drops an empty set, so that equal layouts compare as equal.
    fn drop_empty(&mut self) {
        if self.covered().data.is_empty() && self.covered().zero.is_empty() {
            self.covered = None;
        }
    }

    fn covered(&self) -> &Covered {
        self.covered.as_deref().unwrap_or(&NOTHING)
    }

    fn covered_mut(&mut self) -> &mut Covered {
        self.covered.get_or_insert_default()
    }
}

/// The blocks that a range of bytes touches.
pub(crate) fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

/// The bytes of blocks, as far as a file of `len_bytes` bytes goes.
pub(crate) fn bytes_of(blocks: &Range<u64>, len_bytes: u64) -> Range<u64> {
    let bytes = |block: u64| block.saturating_mul(BLOCK).min(len_bytes);
    bytes(blocks.start)..bytes(blocks.end)
}

/// The first hole that ends behind `at`.
fn hole_from(holes: &[Range<u64>], at: u64) -> Option<&Range<u64>> {
    holes.get(holes.partition_point(|hole| hole.end <= at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

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
            let mut next = testing::numbers(seed);
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
                assert_counts_and_seeks_as_byte_by_byte(&layout, &naive, next(1 << 40), seed);
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

    fn assert_counts_and_seeks_as_byte_by_byte(layout: &Layout, naive: &Naive, random: u64, seed: u64) {
        let sources = &naive.sources[..naive.len];
        let count = |wanted| sources.iter().filter(|source| **source == wanted).count() as u64;
        assert_eq!(layout.shown_bytes(), count(Source::Lower), "seed {seed}");
        let upper = naive.sources.chunks(BLOCK as usize).filter(|block| block.contains(&Source::Upper));
        assert_eq!(layout.upper_bytes(), upper.count() as u64 * BLOCK, "seed {seed}");
        // Holes of the base that begin and end anywhere.
        let hole = |at: u64| at..at + 1 + random % (2 * BLOCK);
        let holes = [hole(random % 5000), hole(4 * BLOCK + random % 777), hole(9 * BLOCK)];
        let is_hole = |at: usize| match sources[at] {
            Source::Zero => true,
            Source::Upper => false,
            Source::Lower => holes.iter().any(|hole| hole.contains(&(at as u64))),
        };
        let (mut next_hole, mut next_data) = (sources.len() as u64, None);
        for at in (0..sources.len()).rev() {
            match is_hole(at) {
                true => next_hole = at as u64,
                false => next_data = Some(at as u64),
            }
            if at.is_multiple_of(509) || at.is_multiple_of(BLOCK as usize) {
                let found = (layout.next_hole(at as u64, &holes), layout.next_data(at as u64, &holes));
                assert_eq!(found, (next_hole, next_data), "from byte {at} on, seed {seed}");
            }
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
