//! Bytes <-> compressed bytes of one frame. What is compressed is decoded and compared before it is trusted (an encoder
//! bug or bad memory must not reach a pack), and nothing is decoded past its declared length.

use crate::error::{Error, Kind, Result};

/// How a frame's bytes are stored; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One zstd frame (RFC 8878).
    Zstd = 1,
}

impl Codec {
    /// The codec with this number.
    ///
    /// # Errors
    /// `Invalid` for a codec of a newer version.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            _ => Err(Error::invalid(format!("frame has codec {number}")).advice("use a newer snapctl")),
        }
    }
}

/// Compresses; raw when that saves less than a 32nd.
///
/// # Errors
/// `Internal` when the encoder fails or its output does not decode to the input.
pub fn compress(plain: &[u8], level: i32) -> Result<(Codec, Vec<u8>)> {
    let failed = |error| Error::new(Kind::Internal, "zstd failed to compress").caused_by(error);
    let stored = zstd::bulk::compress(plain, level).map_err(failed)?;
    if stored.len() + plain.len() / 32 >= plain.len() {
        return Ok((Codec::Raw, plain.to_vec()));
    }
    if decompress(Codec::Zstd, &stored, plain.len())? != plain {
        return Err(Error::new(Kind::Internal, "zstd output does not decode to its input")
            .advice("check this machine's memory"));
    }
    Ok((Codec::Zstd, stored))
}

/// Decodes to exactly `plain_len` bytes, which the caller has bounded.
///
/// # Errors
/// `Corrupt` for anything else.
pub fn decompress(codec: Codec, stored: &[u8], plain_len: usize) -> Result<Vec<u8>> {
    let plain = match codec {
        Codec::Raw => stored.to_vec(),
        Codec::Zstd => zstd::bulk::decompress(stored, plain_len)
            .map_err(|error| Error::corrupt("frame does not decompress").caused_by(error))?,
    };
    if plain.len() != plain_len {
        let found = plain.len();
        return Err(Error::corrupt(format!("frame should hold {plain_len} bytes, holds {found}")));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back_at_every_level(
            runs in prop::collection::vec((any::<u8>(), 1..2000usize), 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..500),
            level in 1..=22,
        ) {
            let mut plain: Vec<u8> = runs.into_iter().flat_map(|(byte, len)| vec![byte; len]).collect();
            plain.extend(noise);
            let (codec, stored) = compress(&plain, level).unwrap();
            prop_assert!(stored.len() <= plain.len());
            prop_assert_eq!(decompress(codec, &stored, plain.len()).unwrap(), plain.clone());
            prop_assert!(decompress(codec, &stored, plain.len() + 1).is_err());
            if let Some(less) = plain.len().checked_sub(1) {
                prop_assert!(decompress(codec, &stored, less).is_err());
            }
        }
    }

    #[test]
    fn a_bomb_is_not_decoded_past_its_declared_length() {
        let stored = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        assert!(stored.len() < 10_000);
        for declared in [0, 1, 4096, 2 << 20] {
            assert!(decompress(Codec::Zstd, &stored, declared).is_err());
        }
        assert_eq!(Codec::from_number(2).unwrap_err().kind(), Kind::Invalid);
    }
}
