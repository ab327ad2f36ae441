//! Bytes <-> compressed bytes of one frame. What is compressed is decoded and compared before it is trusted (an encoder
//! bug or bad memory must not reach a pack), and nothing is decoded past its declared length.

use crate::error::{Error, Kind, Result};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

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

/// What one thread compresses and decodes with: setting up contexts and buffers costs as much as a small frame.
#[derive(Default)]
struct Workspace {
    compressor: Option<(i32, Compressor<'static>)>,
    decompressor: Option<Decompressor<'static>>,
    stored: Vec<u8>,
    decoded: Vec<u8>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

impl Workspace {
    fn compressor(&mut self, level: i32) -> std::io::Result<&mut Compressor<'static>> {
        match &mut self.compressor {
            Some((current, _)) if *current == level => {}
            Some((current, compressor)) => {
                compressor.set_compression_level(level)?;
                *current = level;
            }
            empty => *empty = Some((level, Compressor::new(level)?)),
        }
        Ok(&mut self.compressor.as_mut().expect("it was just made").1)
    }

    fn decompressor(&mut self) -> std::io::Result<&mut Decompressor<'static>> {
        if self.decompressor.is_none() {
            self.decompressor = Some(Decompressor::new()?);
        }
        Ok(self.decompressor.as_mut().expect("it was just made"))
    }

    /// Compresses `plain` into `stored` and decodes it again into `decoded`.
    fn compress(&mut self, plain: &[u8], level: i32) -> Result<()> {
        let failed = |error| Error::new(Kind::Internal, "zstd failed to compress").caused_by(error);
        let mut stored = std::mem::take(&mut self.stored);
        stored.clear();
        stored.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let outcome = self.compressor(level).and_then(|zstd| zstd.compress_to_buffer(plain, &mut stored));
        self.stored = stored;
        outcome.map(|_| ()).map_err(failed)
    }

    fn check(&mut self, plain: &[u8]) -> Result<()> {
        let (stored, mut decoded) = (std::mem::take(&mut self.stored), std::mem::take(&mut self.decoded));
        decoded.clear();
        decoded.reserve(plain.len());
        let outcome = self.decompressor().and_then(|zstd| zstd.decompress_to_buffer(&stored, &mut decoded));
        let is_same = outcome.is_ok() && decoded == plain;
        (self.stored, self.decoded) = (stored, decoded);
        match is_same {
            true => Ok(()),
            false => Err(Error::new(Kind::Internal, "zstd output does not decode to its input")
                .advice("check this machine's memory")),
        }
    }
}

/// Compresses; raw when that saves less than a 32nd.
///
/// # Errors
/// `Internal` when the encoder fails or its output does not decode to the input.
pub fn compress(plain: &[u8], level: i32) -> Result<(Codec, Vec<u8>)> {
    WORKSPACE.with_borrow_mut(|workspace| {
        workspace.compress(plain, level)?;
        if workspace.stored.len() + plain.len() / 32 >= plain.len() {
            return Ok((Codec::Raw, plain.to_vec()));
        }
        workspace.check(plain)?;
        Ok((Codec::Zstd, workspace.stored.clone()))
    })
}

/// Decodes to exactly `plain_len` bytes, which the caller has bounded.
///
/// # Errors
/// `Corrupt` for anything else.
pub fn decompress(codec: Codec, stored: &[u8], plain_len: usize) -> Result<Vec<u8>> {
    let plain = match codec {
        Codec::Raw => stored.to_vec(),
        Codec::Zstd => WORKSPACE.with_borrow_mut(|workspace| {
            let mut plain = Vec::with_capacity(plain_len);
            let decoded =
                workspace.decompressor().and_then(|zstd| zstd.decompress_to_buffer(stored, &mut plain));
            decoded.map_err(|error| Error::corrupt("frame does not decompress").caused_by(error))?;
            Ok::<_, Error>(plain)
        })?,
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
