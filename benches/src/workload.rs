//! Seeded trees and memory: the same bytes in every run. Half of each block is noise and half repeats, so that zstd
//! makes about half of it, as with program files and heaps.

use std::fs;
use std::path::{Path, PathBuf};

use crate::measure::Result;

/// splitmix64: small, seeded, good enough for bytes that must not compress.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Bytes that compress to about half.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for (number, word) in bytes.chunks_mut(8).enumerate() {
            let value = if number % 64 < 32 { self.next() } else { number as u64 & 0xff };
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
    }

    pub(crate) fn bytes(&mut self, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        self.fill(&mut bytes);
        bytes
    }
}

/// So many files of one size, 100 to a directory.
pub(crate) fn files(directory: &Path, count: usize, len_bytes: usize, seed: u64) -> Result<Vec<PathBuf>> {
    let mut noise = Noise::new(seed);
    let mut paths = Vec::with_capacity(count);
    for number in 0..count {
        let parent = directory.join(format!("{:04}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&parent)?;
        }
        let path = parent.join(format!("{:02}", number % 100));
        fs::write(&path, noise.bytes(len_bytes))?;
        paths.push(path);
    }
    Ok(paths)
}

/// 512 MiB in 2,082 files from 16 KiB to 8 MiB.
pub(crate) fn mixed_tree(directory: &Path) -> Result<(Vec<PathBuf>, u64)> {
    const SHAPES: [(usize, usize); 3] = [(32, 8 << 20), (224, 1 << 20), (2048, 16 << 10)];
    let mut paths = Vec::new();
    let mut len_bytes = 0;
    for (seed, (count, size)) in SHAPES.into_iter().enumerate() {
        paths.extend(files(&directory.join(size.to_string()), count, size, seed as u64)?);
        len_bytes += (count * size) as u64;
    }
    Ok((paths, len_bytes))
}
