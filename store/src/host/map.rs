//! Read-only memory maps of immutable files: the one place of this crate with `unsafe`.
//!
//! Safe Rust could read the file instead; index runs are mapped because opening a store must cost nothing however many
//! chunks it holds (a 4 GB run opens in microseconds and only touched pages become resident).
#![expect(unsafe_code, reason = "memmap2 cannot promise that nobody truncates the file")]

use memmap2::Advice;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Advice applies to full pages.
const PAGE: usize = 4096;

/// How a part of a map will be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// At random.
    Random,
    /// At random, but so often that all of it should be in memory, in huge pages where the file system has them: they
    /// save most lookups a page table walk.
    Often,
    /// Sequentially.
    Whole,
}

/// A mapped file.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps the whole of `file`.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: the map is undefined only if the file is changed or truncated while mapped. Files mapped here are
        // objects of a tier: linked under their name once, complete, never written again; deletion unlinks and leaves
        // the mapped inode alone. Or they are scratch files without a name, which only the mapping process has open,
        // and which it writes only while no map of them lives.
        let map = unsafe { memmap2::Mmap::map(file) };
        map.map(Self)
    }

    /// Advises the kernel how a part will be read. Only a hint.
    pub fn expect(&self, access: Access, range: Range<usize>) {
        let advice = match access {
            Access::Random => Advice::Random,
            Access::Often => Advice::HugePage,
            Access::Whole => Advice::Sequential,
        };
        // A range that starts within a page is advised from that page's start.
        let start = range.start / PAGE * PAGE;
        if let Err(error) = self.0.advise_range(advice, start, range.end.saturating_sub(start)) {
            tracing::debug!(%error, "the kernel takes no advice on a map");
        }
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
