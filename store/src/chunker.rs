//! Content-defined chunking of files: FastCDC (Xia et al., USENIX ATC 2016) with normalised chunking at level 2.
//!
//! Pure: the cut depends on the bytes alone, so an insertion moves only the cuts close to it. The gear table and the
//! masks are a convention of the format but not part of any identity: files chunked otherwise still read.

/// No chunk but the last of a file is shorter.
pub const MIN_LEN: usize = 16 * 1024;
/// Average length of chunks, about.
pub const AVERAGE_LEN: usize = 64 * 1024;
/// No chunk is longer.
pub const MAX_LEN: usize = 256 * 1024;

/// A hash below this is a cut while the chunk is shorter than [`AVERAGE_LEN`]: its first 18 bits are 0.
const BELOW_SHORT: u64 = 1 << (64 - 18);
/// And from there on: its first 14 bits are 0.
const BELOW_LONG: u64 = 1 << (64 - 14);

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

/// The same words moved by one bit: the share of the first of two bytes in the hash after the second.
const GEAR_BEFORE: [u64; 256] = {
    let mut table = GEAR;
    let mut index = 0;
    while index < 256 {
        table[index] <<= 1;
        index += 1;
    }
    table
};

/// Length of the first chunk of `data`; all of it when it holds no cut.
///
/// Unless `data` reaches the end of the stream it must be at least [`MAX_LEN`] long, else the cut would depend on the
/// length read.
pub(crate) fn cut(data: &[u8]) -> usize {
    if data.len() <= MIN_LEN {
        return data.len();
    }
    let end = data.len().min(MAX_LEN);
    let middle = end.min(AVERAGE_LEN);
    match scan(&data[MIN_LEN..middle], 0, BELOW_SHORT) {
        Ok(position) => MIN_LEN + position + 1,
        Err(hash) => scan(&data[middle..end], hash, BELOW_LONG).map_or(end, |position| middle + position + 1),
    }
}

/// The position of the first byte after which the hash is below `below`, or the hash after all bytes.
///
/// Two bytes a step (Xia et al., IEEE TPDS 2020): a step then depends on the step before it through one shift and one
/// addition, not two of each.
fn scan(bytes: &[u8], mut hash: u64, below: u64) -> Result<usize, u64> {
    let (blocks, tail) = bytes.as_chunks::<8>();
    for (number, block) in blocks.iter().enumerate() {
        for (half, [one, two]) in block.as_chunks().0.iter().enumerate() {
            let first = (hash << 1).wrapping_add(GEAR[usize::from(*one)]);
            let both = GEAR_BEFORE[usize::from(*one)].wrapping_add(GEAR[usize::from(*two)]);
            hash = (hash << 2).wrapping_add(both);
            if first < below {
                return Ok(number * 8 + half * 2);
            }
            if hash < below {
                return Ok(number * 8 + half * 2 + 1);
            }
        }
    }
    for (position, byte) in tail.iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if hash < below {
            return Ok(blocks.len() * 8 + position);
        }
    }
    Err(hash)
}

/// Cuts a complete byte string.
pub(crate) fn chunks(data: &[u8]) -> impl Iterator<Item = &[u8]> {
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

    /// The definition, byte by byte.
    fn plain_cut(data: &[u8]) -> usize {
        let mut hash: u64 = 0;
        for (position, byte) in data.iter().enumerate().take(MAX_LEN).skip(MIN_LEN) {
            hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
            let zeroes = if position < AVERAGE_LEN { 18 } else { 14 };
            if hash.leading_zeros() >= zeroes {
                return position + 1;
            }
        }
        data.len().min(MAX_LEN)
    }

    /// Old stores were cut at these positions; data cut elsewhere is stored again.
    #[test]
    fn cuts_are_where_they_always_were() {
        let data = noise(16 << 20);
        let mut at = 0;
        while at < data.len() {
            assert_eq!(cut(&data[at..]), plain_cut(&data[at..]), "from byte {at} on");
            at += cut(&data[at..]).min(9_999); // odd and even, and short remainders
        }
        let digest = chunks(&data).fold(blake3::Hasher::new(), |mut hasher, chunk| {
            hasher.update(&(chunk.len() as u64).to_le_bytes());
            hasher
        });
        assert_eq!(&digest.finalize().to_hex()[..16], "217843b0cdc710c7");
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
