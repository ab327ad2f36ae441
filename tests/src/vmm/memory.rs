//! Guest memory of the tests' machine: anonymous mappings, filled by the guest or by a page fault handler.
//!
//! The owner of each mapping is a [`Region`]; bytes are read and written through copies, because the guest changes them
//! at any time.

#![expect(unsafe_code, reason = "guest memory is shared with a guest: raw mappings and volatile access")]

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags};
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// One guest memory region: a private anonymous mapping shown to the guest at an address.
#[derive(Debug)]
pub struct Region {
    /// Where it starts in this process.
    pub host: u64,
    /// Where it starts in the guest.
    pub guest: u64,
    /// Where it starts in the memory file.
    pub offset: u64,
    /// Its length.
    pub len: usize,
}

impl Region {
    /// Maps `len` zero bytes in pages of `page_size` bytes, 4096 or 2 MiB.
    pub fn map(guest: u64, offset: u64, len: usize, page_size: u64) -> Self {
        let kind = if page_size == PAGE as u64 { MapFlags::NORESERVE } else { MapFlags::HUGETLB };
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | kind);
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let host = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }
            .expect("guest memory is mapped");
        Self { host: host as u64, guest, offset, len }
    }

    /// Copies a page out; the guest may change it meanwhile, so each word is read for itself.
    pub fn read_page(&self, page: usize, into: &mut [u8; PAGE]) {
        assert!((page + 1) * PAGE <= self.len);
        let start = (self.host as usize + page * PAGE) as *const u64;
        for (index, word) in into.chunks_exact_mut(8).enumerate() {
            // SAFETY: inside the mapping (asserted), aligned, and volatile because others write it.
            let value = unsafe { start.add(index).read_volatile() };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The first word of a page.
    pub fn read_word(&self, page: usize) -> u64 {
        assert!((page + 1) * PAGE <= self.len);
        // SAFETY: inside the mapping (asserted), aligned, and volatile because others write it.
        unsafe { ((self.host as usize + page * PAGE) as *const u64).read_volatile() }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        let target = (self.host as usize + offset) as *mut u8;
        // SAFETY: inside the mapping (asserted), which nobody borrows; the source is another allocation.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// Discards pages, as a balloon does.
    pub fn discard(&self, page: usize, pages: usize) {
        assert!((page + pages) * PAGE <= self.len);
        let start = (self.host as usize + page * PAGE) as *mut std::ffi::c_void;
        // SAFETY: inside the mapping (asserted), of which no reference exists.
        unsafe { rustix::mm::madvise(start, pages * PAGE, Advice::LinuxDontNeed) }
            .expect("pages are given back");
    }

    /// Discards stretches of some pages, `times` over, and asserts that each reads as zero at once. Every seed, which
    /// is not zero, selects others; stretches are multiples of `unit` pages, which divides the range.
    ///
    /// # Panics
    /// When a discarded page is not zero.
    pub fn discard_at_random(&self, pages: Range<u64>, times: u64, seed: u64, unit: u64) {
        let mut random = 0x2545_F491_4F6C_DD1D_u64.wrapping_mul(seed);
        for _ in 0..times {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let first = pages.start + random % ((pages.end - pages.start) / unit) * unit;
            let count = ((1 + (random >> 40) % 8) * unit).min(pages.end - first);
            self.discard(first as usize, count as usize);
            for page in first..first + count {
                assert_eq!(self.read_word(page as usize), 0, "page {page} was given back");
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it exists.
        unsafe { rustix::mm::munmap(self.host as *mut std::ffi::c_void, self.len) }
            .expect("guest memory is unmapped");
    }
}

/// The machine's own end of its page faults: created and registered as Firecracker does it.
#[derive(Debug)]
pub struct Faults(Uffd);

impl Faults {
    /// Registers every region for missing pages, with removal events.
    pub fn register(regions: &[Arc<Region>]) -> Self {
        let uffd = UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            .user_mode_only(false)
            .require_features(FeatureFlags::EVENT_REMOVE)
            .create()
            .expect("a userfaultfd with removal events");
        for region in regions {
            uffd.register(region.host as *mut std::ffi::c_void, region.len)
                .expect("guest memory is registered");
        }
        Self(uffd)
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
