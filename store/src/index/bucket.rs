//! Buckets: one cache line for each slice of the id space in a run, with the number of the slice's first entry and a
//! Bloom filter over its entries. A chunk that the run does not have costs that line and reads no entry; for one that
//! it has the search starts close to its entry. Buckets are mapped with the run, so they cost nothing to open, and two
//! bytes of memory an entry. Pure.

use super::prefix::Prefix;
use super::row::ENTRY_LEN;

/// Length of a bucket in bytes: one cache line.
pub(super) const BUCKET_LEN: usize = 64;
/// Entries of a bucket, on average.
const BUCKET_ENTRIES: usize = 34;
/// Bytes of the number of the first entry.
const NUMBER_LEN: usize = 4;
/// Bits of a bucket's filter: 14 an entry, so that 3 in 1000 absent chunks pass.
const FILTER_BITS: u64 = ((BUCKET_LEN - NUMBER_LEN) * 8) as u64;
/// Bits that an entry sets.
const PROBES: u32 = 6;
/// Bits of an id that choose one of them.
const PROBE_BITS: u32 = 10;

impl Prefix {
    /// Its bucket, and its position in the bucket's slice, in 2^32ths.
    fn slice(self, bucket_count: usize) -> (usize, u64) {
        let product = (self.word >> 32) * bucket_count as u64;
        ((product >> 32) as usize, product & 0xffff_ffff)
    }

    /// The bits of a bucket that it sets.
    fn bits(self) -> impl Iterator<Item = usize> {
        let noise = self.word << 32 | u64::from(self.tail);
        (0..PROBES).map(move |probe| {
            let part = (noise >> (probe * PROBE_BITS)) % (1 << PROBE_BITS);
            NUMBER_LEN * 8 + ((part * FILTER_BITS) >> PROBE_BITS) as usize
        })
    }
}

/// Number of buckets over this many entries.
pub(super) fn bucket_count(entry_count: usize) -> usize {
    entry_count.div_ceil(BUCKET_ENTRIES)
}

/// The buckets over sorted entries.
pub(super) fn build(entries: &[[u8; ENTRY_LEN]]) -> Vec<[u8; BUCKET_LEN]> {
    let count = bucket_count(entries.len());
    let mut buckets: Vec<[u8; BUCKET_LEN]> = Vec::with_capacity(count);
    let empty = |first: u32| {
        let mut bucket = [0; BUCKET_LEN];
        bucket[..NUMBER_LEN].copy_from_slice(&first.to_le_bytes());
        bucket
    };
    for (number, entry) in (0u32..).zip(entries) {
        let prefix = Prefix::at_front(entry);
        let (index, _) = prefix.slice(count);
        while buckets.len() <= index {
            buckets.push(empty(number));
        }
        prefix.bits().for_each(|bit| buckets[index][bit / 8] |= 1 << (bit % 8));
    }
    buckets.resize(count, empty(entries.len() as u32));
    buckets
}

/// A byte of a prefix's bucket.
pub(super) fn touch(buckets: &[[u8; BUCKET_LEN]], prefix: Prefix) -> u8 {
    buckets.get(prefix.slice(buckets.len()).0).map_or(0, |bucket| bucket[0])
}

/// Where to begin the search for a prefix among the entries; `None`: it is certainly absent. All bits are tested: a
/// branch on each, which is unpredictable, would make the next run's bucket wait for this one's.
pub(super) fn look(buckets: &[[u8; BUCKET_LEN]], prefix: Prefix) -> Option<usize> {
    let (index, fraction) = prefix.slice(buckets.len());
    let bucket = buckets.get(index)?;
    if prefix.bits().fold(1, |all, bit| all & (bucket[bit / 8] >> (bit % 8))) & 1 == 0 {
        return None;
    }
    let first = bucket.first_chunk().map_or(0, |first| u32::from_le_bytes(*first));
    Some(first as usize + ((fraction * BUCKET_ENTRIES as u64) >> 32) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;

    fn prefix(seed: u64) -> Prefix {
        Prefix::of(&ChunkId::from_bytes(*blake3::hash(&seed.to_le_bytes()).as_bytes()))
    }

    fn entries(count: u64) -> Vec<[u8; ENTRY_LEN]> {
        let mut entries: Vec<[u8; ENTRY_LEN]> = (0..count)
            .map(|seed: u64| *blake3::hash(&seed.to_le_bytes()).as_bytes().first_chunk().unwrap())
            .collect();
        entries.sort_unstable();
        entries
    }

    #[test]
    fn nothing_that_is_there_is_refused_and_little_that_is_not_passes() {
        for count in [0, 1, 73, 20_000] {
            let (entries, absent) = (entries(count), count..count + 20_000);
            let buckets = build(&entries);
            assert_eq!(buckets.len(), bucket_count(entries.len()));
            for (number, entry) in entries.iter().enumerate() {
                let guess = look(&buckets, Prefix::at_front(entry)).unwrap();
                assert!(guess.abs_diff(number) < 60, "{guess} for {number} of {count}");
            }
            let passed = absent.filter(|seed| look(&buckets, prefix(*seed)).is_some()).count();
            assert!(passed < 120, "{passed} of 20000 pass the buckets over {count}");
        }
    }

    #[test]
    fn prefixes_order_as_their_bytes() {
        assert!(entries(500).is_sorted_by_key(|entry| Prefix::at_front(entry)));
    }
}
