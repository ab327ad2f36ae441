//! Content-defined chunking of files: FastCDC (Xia et al., USENIX ATC 2016) with normalised chunking at level 2.
//!
//! Pure: the cut depends on the bytes alone, so an insertion moves only the cuts near it. The gear table and the masks are
//! part of the format's habit but not of any identity: files chunked otherwise still read.

/// No chunk but the last of a file is shorter.
pub const MIN_LEN: usize = 16 * 1024;
/// Chunks are around this length.
pub const AVERAGE_LEN: usize = 64 * 1024;
/// No chunk is longer.
pub const MAX_LEN: usize = 256 * 1024;

/// Harder to meet than one in [`AVERAGE_LEN`], used below it.
const MASK_SHORT: u64 = !0 << (64 - 18);
/// Easier to meet, used above it.
const MASK_LONG: u64 = !0 << (64 - 14);

/// 256 fixed random words: SplitMix64 from seed 0.
const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state: u64 = 0;
    let mut index = 0;
    while index < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[index] = word ^ (word >> 31);
        index += 1;
    }
    table
};

/// Length of the first chunk of `data`; all of it when it holds no cut.
///
/// Unless `data` reaches to the end of the stream it must be at least [`MAX_LEN`] long, else the cut would depend on how
/// much was read.
pub fn cut(data: &[u8]) -> usize {
    if data.len() <= MIN_LEN {
        return data.len();
    }
    let end = data.len().min(MAX_LEN);
    let middle = end.min(AVERAGE_LEN);
    let (short, long) = (&data[MIN_LEN..middle], &data[middle..end]);
    let mut hash: u64 = 0;
    let mut first_match = |bytes: &[u8], mask: u64| {
        bytes.iter().position(|byte| {
            hash = (hash << 1).wrapping_add(GEAR[*byte as usize]);
            hash & mask == 0
        })
    };
    if let Some(position) = first_match(short, MASK_SHORT) {
        return MIN_LEN + position + 1;
    }
    first_match(long, MASK_LONG).map_or(end, |position| middle + position + 1)
}

/// Cuts a whole byte string.
pub fn chunks(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (chunk, tail) = rest.split_at(cut(rest));
        rest = tail;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"chunker").finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn chunks_cover_the_input_within_their_bounds() {
        let data = noise(4 << 20);
        let lengths: Vec<usize> = chunks(&data).map(<[u8]>::len).collect();
        assert_eq!(lengths.iter().sum::<usize>(), data.len());
        let (_, all_but_last) = lengths.split_last().unwrap();
        assert!(all_but_last.iter().all(|len| (MIN_LEN..=MAX_LEN).contains(len)));
        let average = data.len() / lengths.len();
        assert!((AVERAGE_LEN / 2..AVERAGE_LEN * 2).contains(&average), "average {average}");
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_near_it() {
        let before = noise(4 << 20);
        let mut after = before.clone();
        after.splice(1_000_000..1_000_000, *b"inserted");
        let old: HashSet<&[u8]> = chunks(&before).collect();
        let new = chunks(&after).filter(|chunk| !old.contains(chunk)).count();
        assert!(new <= 4, "{new} new chunks");
    }
}
