//! The floor of a served page fault: a thread that answers each with one UFFDIO_COPY, either of pages that it has in
//! memory, or of a group of pages that it decompresses and verifies first.
#![expect(
    unsafe_code,
    reason = "the floor is what safe code would add to: mmap, UFFDIO_COPY, a volatile read"
)]

use std::ffi::c_void;
use std::io::PipeWriter;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use userfaultfd::{Event, Uffd, UffdBuilder};

use crate::measure::Result;

const PAGE: usize = store::PAGE;

/// The source of a raw handler's pages.
#[derive(Clone)]
pub(crate) enum Source {
    /// The bytes themselves, so many of them a fault.
    Bytes { bytes: Arc<Vec<u8>>, fill_len_bytes: usize },
    /// Compressed groups of so many plain bytes, each with its hash: one group a fault.
    Groups { frames: Arc<Vec<(Vec<u8>, blake3::Hash)>>, group_len_bytes: usize },
}

impl Source {
    fn len_bytes(&self) -> usize {
        match self {
            Source::Bytes { bytes, .. } => bytes.len(),
            Source::Groups { frames, group_len_bytes } => frames.len() * group_len_bytes,
        }
    }

    /// Calls `fill` with the bytes that answer a fault at `offset`, and where they begin.
    fn answer(&self, offset: usize, fill: impl FnOnce(usize, &[u8]) -> Result<()>) -> Result<()> {
        match self {
            Source::Bytes { bytes, fill_len_bytes } => {
                let start = offset / fill_len_bytes * fill_len_bytes;
                fill(start, &bytes[start..start + fill_len_bytes])
            }
            Source::Groups { frames, group_len_bytes } => {
                let (frame, hash) = &frames[offset / group_len_bytes];
                let plain = zstd::bulk::decompress(frame, *group_len_bytes)?;
                if blake3::hash(&plain) != *hash {
                    return Err("a group is wrong".into());
                }
                fill(offset / group_len_bytes * group_len_bytes, &plain)
            }
        }
    }
}

/// Memory that a raw handler fills.
pub(crate) struct RawMapping {
    address: *mut c_void,
    len_bytes: usize,
    stop: Option<PipeWriter>,
    handler: Option<JoinHandle<Result<()>>>,
}

impl RawMapping {
    /// Maps memory that reads as `source`, whole pages.
    pub(crate) fn new(source: Source) -> Result<RawMapping> {
        let len_bytes = source.len_bytes();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address the kernel chooses overlaps nothing.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), len_bytes, ProtFlags::READ, flags)? };
        let uffd = UffdBuilder::new().close_on_exec(true).non_blocking(true).create()?;
        uffd.register(address, len_bytes)?;
        let (stopped, stop) = std::io::pipe()?;
        let start = address as usize;
        let handler = std::thread::spawn(move || serve(&uffd, start, &source, &stopped));
        Ok(RawMapping { address, len_bytes, stop: Some(stop), handler: Some(handler) })
    }

    /// First byte of a page; waits for the handler when the page is missing.
    pub(crate) fn touch(&self, page: usize) -> u8 {
        assert!((page + 1) * PAGE <= self.len_bytes, "page {page} lies in the mapping");
        // SAFETY: the byte lies in this value's mapping, which stays readable while the value lives.
        unsafe { self.address.cast::<u8>().add(page * PAGE).read_volatile() }
    }

    /// Stops the handler and unmaps.
    pub(crate) fn unmap(mut self) -> Result<()> {
        drop(self.stop.take());
        match self.handler.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            _ => Err("the raw handler panicked".into()),
        }
    }
}

impl Drop for RawMapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own mapping and nothing borrows from it.
        if let Err(error) = unsafe { munmap(self.address, self.len_bytes) } {
            eprintln!("benches: a mapping stays: {error}");
        }
    }
}

fn serve(uffd: &Uffd, start: usize, source: &Source, stopped: &impl AsFd) -> Result<()> {
    loop {
        let mut ready = [PollFd::new(uffd, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        poll(&mut ready, None)?;
        if !ready[1].revents().is_empty() {
            return Ok(());
        }
        while let Some(event) = uffd.read_event()? {
            let Event::Pagefault { addr, .. } = event else { continue };
            source.answer(addr as usize - start, |offset, bytes| {
                let target = (start + offset) as *mut c_void;
                // SAFETY: `bytes` is a live borrow of whole pages. The target lies in the registered mapping, which is
                // as long as the source, and the kernel reported a fault there.
                unsafe { uffd.copy(bytes.as_ptr().cast(), target, bytes.len(), true)? };
                Ok(())
            })?;
        }
    }
}
