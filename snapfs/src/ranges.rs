//! A set of block numbers, kept as sorted, disjoint ranges that never touch. Knows numbers only.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of block numbers. A lookup costs the logarithm of the number of ranges; their count is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockSet {
    /// The start and the end of each range.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl BlockSet {
    /// None.
    pub(crate) const EMPTY: Self = Self { ranges: BTreeMap::new(), count: 0 };

    /// Whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many blocks there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The ranges, in order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// The range that has `block`.
    pub(crate) fn range_at(&self, block: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.ranges.range(..=block).next_back()?;
        (block < end).then_some(start..end)
    }

    /// Whether the set has all of `blocks`.
    pub(crate) fn has_all(&self, blocks: &Range<u64>) -> bool {
        blocks.is_empty() || self.range_at(blocks.start).is_some_and(|range| blocks.end <= range.end)
    }

    /// The start of the first range behind `block`.
    pub(crate) fn next_start(&self, block: u64) -> Option<u64> {
        self.ranges.range(block.saturating_add(1)..).next().map(|(&start, _)| start)
    }

    /// Adds blocks.
    pub(crate) fn insert(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() || self.has_all(&blocks) {
            return;
        }
        self.remove(blocks.clone());
        self.count += blocks.end - blocks.start;
        let Range { mut start, mut end } = blocks;
        if let Some((&before, &stop)) = self.ranges.range(..start).next_back()
            && stop == start
        {
            start = before;
        }
        if let Some(stop) = self.ranges.remove(&end) {
            end = stop;
        }
        self.ranges.insert(start, end);
    }

    /// Removes blocks.
    pub(crate) fn remove(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..blocks.end).next_back()
            && end > blocks.start
        {
            self.ranges.remove(&start);
            self.count -= end - start;
            for rest in [start..blocks.start, blocks.end..end].into_iter().filter(|rest| !rest.is_empty()) {
                self.count += rest.end - rest.start;
                self.ranges.insert(rest.start, rest.end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_of_ranges_answers_like_a_set_of_numbers() {
        for seed in 0..300_u64 {
            let mut next = testing::numbers(seed);
            let (mut set, mut naive) = (BlockSet::default(), BTreeSet::new());
            for _ in 0..40 {
                let start = next(60);
                let blocks = start..start + next(12);
                match next(2) {
                    0 => {
                        set.insert(blocks.clone());
                        naive.extend(blocks.clone());
                    }
                    _ => {
                        set.remove(blocks.clone());
                        naive.retain(|block| !blocks.contains(block));
                    }
                }
                let found: Vec<u64> = set.ranges().flatten().collect();
                assert!(found.iter().eq(naive.iter()), "seed {seed}");
                assert_eq!(set.count(), naive.len() as u64);
                let ranges: Vec<Range<u64>> = set.ranges().collect();
                assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "they never touch");
                let block = next(75);
                assert_eq!(set.range_at(block).is_some(), naive.contains(&block));
                let starts = |at: &u64| naive.contains(at) && !naive.contains(&at.wrapping_sub(1));
                assert_eq!(set.next_start(block), (block + 1..80).find(starts));
                let wanted = block..block + next(5);
                assert_eq!(set.has_all(&wanted), wanted.clone().all(|block| naive.contains(&block)));
            }
        }
    }
}
