//! One bit for each row of the index: marks chunks without keeping their ids.
//!
//! A chunk is marked at the first row with its id's prefix, in the order of the runs when the marks were made; these
//! runs are held as long as the marks are. A chunk of no run is kept by its id: there are few, since a reader covers
//! every pack by some run first. 100 million chunks take 12.5 MB.

use super::prefix::Prefix;
use super::run::Run;
use super::{Index, touch};
use crate::id::ChunkId;
use std::collections::HashSet;
use std::sync::Arc;

/// A set of chunks.
#[derive(Debug)]
pub struct RowMarks {
    runs: Arc<Vec<Arc<Run>>>,
    /// For each run, a bit for each row; made when the first is set.
    bits: Vec<Vec<u64>>,
    others: HashSet<Prefix>,
    len: u64,
}

impl RowMarks {
    /// An empty set over the current runs of the index.
    pub fn new(index: &Index) -> Self {
        let runs = index.runs();
        Self { bits: vec![Vec::new(); runs.len()], runs, others: HashSet::new(), len: 0 }
    }

    /// Adds a chunk; false when it was there.
    pub fn insert(&mut self, id: &ChunkId) -> bool {
        let prefix = Prefix::of(id);
        let is_new = match self.row_of(prefix) {
            None => self.others.insert(prefix),
            Some((run, row)) => {
                let words = &mut self.bits[run];
                if words.is_empty() {
                    words.resize(self.runs[run].entry_count().div_ceil(64), 0);
                }
                let (word, bit) = (&mut words[row / 64], 1 << (row % 64));
                let is_new = *word & bit == 0;
                *word |= bit;
                is_new
            }
        };
        self.len += u64::from(is_new);
        is_new
    }

    /// Whether a chunk was added.
    pub fn contains(&self, id: &ChunkId) -> bool {
        let prefix = Prefix::of(id);
        match self.row_of(prefix) {
            None => self.others.contains(&prefix),
            Some((run, row)) => self.bits[run].get(row / 64).is_some_and(|word| word & 1 << (row % 64) != 0),
        }
    }

    /// Number of chunks added.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the marks take, without the runs.
    pub fn memory_bytes(&self) -> usize {
        let bits: usize = self.bits.iter().map(|words| words.capacity() * size_of::<u64>()).sum();
        bits + self.others.capacity() * (size_of::<Prefix>() + 1)
    }

    /// The run and the row that stand for every chunk with this prefix.
    fn row_of(&self, prefix: Prefix) -> Option<(usize, usize)> {
        touch(&self.runs, prefix);
        let first = |(number, run): (usize, &Arc<Run>)| Some((number, run.rows_of(prefix).next()?.0));
        self.runs.iter().enumerate().find_map(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory_store;
    use std::path::Path;

    fn id(number: u64) -> ChunkId {
        ChunkId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn a_chunk_of_no_run_is_marked_like_any_other() {
        let mut marks = RowMarks::new(&Index::new(Path::new("nowhere")));
        assert!(marks.insert(&id(1)) && !marks.insert(&id(1)) && marks.insert(&id(2)));
        assert!(marks.contains(&id(1)) && marks.contains(&id(2)) && !marks.contains(&id(3)));
        assert_eq!(marks.len(), 2);
    }

    #[test]
    fn marks_agree_with_a_set_whatever_is_indexed_and_take_a_bit_a_row() {
        let (store, _directory) = memory_store();
        let mut ids = Vec::new();
        for round in 0..3u64 {
            let mut writer = store.writer("test").unwrap();
            for number in 0..2000 {
                ids.push(writer.put_chunk(&(round * 1500 + number).to_le_bytes()).unwrap());
            }
            writer.publish(|_| Ok(())).unwrap();
        }
        assert!(store.index().runs().len() > 1);
        let (mut marks, mut set) = (RowMarks::new(store.index()), HashSet::new());
        let known = ids.iter().copied().chain((0..500).map(id));
        for (number, id) in known.clone().enumerate().filter(|(number, _)| number % 3 != 0) {
            assert_eq!(marks.insert(&id), set.insert(id), "{number}");
        }
        for id in known {
            assert_eq!(marks.contains(&id), set.contains(&id));
        }
        assert_eq!(marks.len(), set.len() as u64);
        assert!(marks.memory_bytes() < 5000 / 8 + 1024 * 24, "{}", marks.memory_bytes());
    }
}
