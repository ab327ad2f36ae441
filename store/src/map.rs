//! Read-only memory maps of immutable files: the one place of this crate with `unsafe`.
//!
//! Safe Rust could read the file instead; index runs are mapped because opening a store must cost nothing however many
//! chunks it holds (a 4 GB run opens in microseconds and only touched pages become resident).
#![expect(unsafe_code, reason = "memmap2 cannot promise that nobody truncates the file")]

use crate::error::{Error, Result};
use std::fs::File;
use std::path::Path;

/// A mapped file.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps the whole of `file`, whose name is only for the error text.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn open(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the map is undefined only if somebody changes or truncates the file below it. Files mapped here are
        // objects of a tier: linked under their name once, whole, never written again; deletion unlinks and leaves the
        // mapped inode alone.
        let map = unsafe { memmap2::Mmap::map(file) };
        map.map(Self).map_err(|error| Error::io("cannot map object", path.display(), error))
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
