//! Bytes <-> compressed bytes of one frame. Compressed output is decoded and compared before it is trusted (an encoder
//! bug or bad memory must not reach a pack), and nothing is decoded past its declared length.
//!
//! A delta is compressed with other bytes, its base, as prefix: parts shared with the base cost nearly nothing, and it
//! decodes only with the same base. The base is content, never read as a formatted dictionary, whatever it begins with.

use crate::error::{Error, Kind, Result};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, ErrorCode, compress_bound, find_frame_compressed_size, get_dict_id_from_frame,
    get_error_name,
};

/// A delta is kept when it takes at most this share of the compressed bytes without a base, in percent: a smaller
/// saving does not pay for the base that every reader has to fetch (docs/TUNING.md).
const DELTA_PERCENT: usize = 75;
/// And when it saves at least this many bytes: frames are padded, and a short one costs little in any case.
const DELTA_SAVED_BYTES: usize = 256;

/// The level whose match tables are narrowed where frames are of [`NARROWED_LENGTHS`].
const NARROWED_LEVEL: i32 = 3;
/// zstd's tables for such lengths take 768 KiB at that level, more than the L2 cache of many cores.
const NARROWED_LENGTHS: std::ops::RangeInclusive<usize> = (256 << 10) + 1..=1 << 20;
/// Logarithm of the entries of each of the two tables then, of 4 bytes: 256 KiB. A sixth faster for 0.6 % more bytes
/// (docs/TUNING.md).
const NARROWED_LOG: u32 = 15;

/// First bytes of a zstd frame that is not skippable.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// How a frame's bytes are stored; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
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

/// A thread's compressor and decoder: setting up contexts and buffers costs as much as a small frame.
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
    /// The compressor for this many bytes at a level.
    fn compressor(&mut self, level: i32, len: usize) -> std::io::Result<&mut Compressor<'static>> {
        match &mut self.compressor {
            Some((current, _)) if *current == level => {}
            Some((current, compressor)) => {
                compressor.set_compression_level(level)?;
                *current = level;
            }
            empty => *empty = Some((level, Compressor::new(level)?)),
        }
        let compressor = &mut self.compressor.as_mut().expect("it was just made").1;
        let is_narrowed = level == NARROWED_LEVEL && NARROWED_LENGTHS.contains(&len);
        // 0: zstd's own choice.
        let log = if is_narrowed { NARROWED_LOG } else { 0 };
        compressor.set_parameter(CParameter::HashLog(log))?;
        compressor.set_parameter(CParameter::ChainLog(log))?;
        Ok(compressor)
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
        stored.reserve(compress_bound(plain.len()));
        let outcome =
            self.compressor(level, plain.len()).and_then(|zstd| zstd.compress_to_buffer(plain, &mut stored));
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
pub(crate) fn compress(plain: &[u8], level: i32) -> Result<(Codec, Vec<u8>)> {
    WORKSPACE.with_borrow_mut(|workspace| {
        workspace.compress(plain, level)?;
        if workspace.stored.len() + plain.len() / 32 >= plain.len() {
            return Ok((Codec::Raw, plain.to_vec()));
        }
        workspace.check(plain)?;
        Ok((Codec::Zstd, workspace.stored.clone()))
    })
}

/// Refuses all but one zstd frame that needs no dictionary, with nothing before or behind it: the decoder would pass
/// over skippable frames.
fn expect_one_frame(stored: &[u8]) -> Result<()> {
    let is_one = stored.starts_with(&ZSTD_MAGIC)
        && get_dict_id_from_frame(stored).is_none()
        && find_frame_compressed_size(stored).is_ok_and(|len| len == stored.len());
    match is_one {
        true => Ok(()),
        false => Err(Error::corrupt("not one zstd frame")),
    }
}

/// Decodes to exactly `plain_len` bytes, which the caller has bounded.
///
/// # Errors
/// `Corrupt` for anything else.
pub(crate) fn decompress(codec: Codec, stored: &[u8], plain_len: usize) -> Result<Vec<u8>> {
    let plain = match codec {
        Codec::Raw => stored.to_vec(),
        Codec::Zstd => WORKSPACE.with_borrow_mut(|workspace| {
            expect_one_frame(stored)?;
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

/// Compresses with `base` as prefix; `None` when that is not clearly shorter than `alone` bytes.
///
/// # Errors
/// `Internal` when the encoder fails or its output does not decode to the input.
pub(crate) fn compress_delta(plain: &[u8], base: &[u8], level: i32, alone: usize) -> Result<Option<Vec<u8>>> {
    let failed = |code| {
        Error::new(Kind::Internal, format!("zstd failed to compress a delta: {}", get_error_name(code)))
    };
    let compress = || -> std::result::Result<Vec<u8>, ErrorCode> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level))?;
        context.ref_prefix(base)?;
        let mut stored = Vec::with_capacity(compress_bound(plain.len()));
        context.compress2(&mut stored, plain)?;
        Ok(stored)
    };
    let stored = compress().map_err(failed)?;
    if stored.len() * 100 > alone * DELTA_PERCENT || stored.len() + DELTA_SAVED_BYTES > alone {
        return Ok(None);
    }
    if decompress_delta(&stored, base, plain.len())? != plain {
        return Err(Error::new(Kind::Internal, "zstd output does not decode to its input")
            .advice("check this machine's memory"));
    }
    Ok(Some(stored))
}

/// Decodes bytes compressed with `base` to exactly `plain_len` bytes, which the caller has bounded.
///
/// # Errors
/// `Corrupt` for anything else.
pub(crate) fn decompress_delta(stored: &[u8], base: &[u8], plain_len: usize) -> Result<Vec<u8>> {
    expect_one_frame(stored)?;
    let decompress = || -> std::result::Result<Vec<u8>, ErrorCode> {
        let mut context = DCtx::create();
        context.ref_prefix(base)?;
        let mut plain = Vec::with_capacity(plain_len);
        context.decompress(&mut plain, stored)?;
        Ok(plain)
    };
    let plain = decompress()
        .map_err(|code| Error::corrupt(format!("delta does not decompress: {}", get_error_name(code))))?;
    match plain.len() == plain_len {
        true => Ok(plain),
        false => {
            let found = plain.len();
            Err(Error::corrupt(format!("delta should hold {plain_len} bytes, holds {found}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_delta_comes_back_behind_its_base_and_behind_no_other(
            base in prop::collection::vec(any::<u8>(), 2000..9000),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            level in crate::LEVELS,
            is_formatted in any::<bool>(),
        ) {
            let mut base = base;
            if is_formatted {
                base[..4].copy_from_slice(&0xEC30_A437_u32.to_le_bytes()); // magic of a trained dictionary
            }
            let mut plain = base.clone();
            for (place, byte) in changes {
                plain[place.index(base.len())] = byte;
            }
            let alone = compress(&plain, level).unwrap().1.len();
            let stored = compress_delta(&plain, &base, level, alone).unwrap().expect("nearly all of it is the base");
            prop_assert!(stored.len() < 500);
            prop_assert_eq!(decompress_delta(&stored, &base, plain.len()).unwrap(), plain.clone());
            prop_assert!(decompress_delta(&stored, &base, plain.len() + 1).is_err());
            prop_assert!(decompress_delta(&stored, &base, plain.len() - 1).is_err());
            let other: Vec<u8> = base.iter().map(|byte| byte.wrapping_add(1)).collect();
            prop_assert!(decompress_delta(&stored, &other, plain.len()).map_or(true, |found| found != plain));
        }
    }

    #[test]
    fn a_delta_that_saves_little_is_declined() {
        let mut noise = vec![0; 40_000];
        blake3::Hasher::new().update(b"delta").finalize_xof().fill(&mut noise);
        let (base, plain) = noise.split_at(20_000);
        assert_eq!(compress_delta(plain, base, 3, plain.len()).unwrap(), None);
        assert_eq!(compress_delta(plain, &[], 3, plain.len()).unwrap(), None);
        let half = [&base[..10_000], &plain[..10_000]].concat();
        assert!(compress_delta(&half, base, 3, half.len()).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn bytes_come_back_at_every_level(
            runs in prop::collection::vec((any::<u8>(), 1..2000usize), 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..500),
            level in crate::LEVELS,
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

    /// One thread's compressor keeps nothing of the frame before.
    #[test]
    fn tables_are_narrowed_for_long_frames_of_one_level_only() {
        let line = |number: u32| format!("{number} {:x}\n", number.wrapping_mul(0x9E37_79B1) >> 20);
        let plain: Vec<u8> = (0..50_000).flat_map(|number| line(number).into_bytes()).collect();
        let (long, short) = (&plain[..400 << 10], &plain[..200 << 10]);
        let stored = |plain: &[u8], level| compress(plain, level).unwrap().1;
        let by_zstd = |plain: &[u8], level| zstd::bulk::compress(plain, level).unwrap();
        let narrowed = stored(long, 3);
        assert_ne!(narrowed, by_zstd(long, 3));
        assert_eq!(stored(short, 3), by_zstd(short, 3));
        assert_eq!(stored(long, 3), narrowed);
        for level in [1, 4, 9] {
            assert_eq!(stored(long, level), by_zstd(long, level));
        }
        assert_eq!(stored(long, 3), narrowed);
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
