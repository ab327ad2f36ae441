//! A space of an image as memory of this process, filled as it is read.
//!
//! A thread serves the faults. Reading a page for the first time waits for the store; a page that cannot be read is
//! SIGBUS, never zero. A forked child does not have the mapping.

use std::io::PipeWriter;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use store::{Error, Image, Kind, PAGE, Result};

use crate::fault::AddressSpace;
use crate::handler::Handler;
use crate::pages::PageTable;
use crate::region::{Region, RegionMap};
use crate::report::ServeReport;
use crate::resolver::Resolver;
use crate::served::{Abandon, ServePolicy, Served};
use crate::sys::{Mapping, UserFault};

const POLICY: ServePolicy =
    ServePolicy { outside_is_zero: false, close_when_complete: true, kill_when_lost: false };

/// Bytes of an image space, read-only. Dropping it stops its thread and unmaps it.
#[derive(Debug)]
pub struct LazyMapping {
    /// Dropped before the mapping: the thread ends first.
    thread: Option<JoinHandle<Result<ServeReport>>>,
    stop: Option<PipeWriter>,
    mapping: Mapping,
    len_bytes: usize,
}

/// Maps a space of an image by its index. Costs no reads; the length in bytes is that of the space.
///
/// # Errors
/// `NotFound` when the image has no such space, `Invalid` when it is empty or does not fit, `Unavailable` when the
/// kernel refuses a userfaultfd.
pub fn map(image: &Image, space: usize) -> Result<LazyMapping> {
    let found = image.spaces().get(space).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("the image has no address space {space}")).object(image.id())
    })?;
    let len_bytes = usize::try_from(found.len_bytes).ok().filter(|len| *len > 0);
    let mapped_bytes = len_bytes.and_then(|len| len.checked_next_multiple_of(PAGE));
    let (Some(len_bytes), Some(mapped_bytes)) = (len_bytes, mapped_bytes) else {
        return Err(Error::new(Kind::Invalid, "the address space cannot be mapped").object(found.len_bytes));
    };
    let mapping = Mapping::reserve(mapped_bytes)?;
    let fault = UserFault::create()?;
    fault.register(&mapping)?;
    let region = Region { start: mapping.address(), len_bytes: mapped_bytes as u64, first_page: 0 };
    let memory =
        AddressSpace::new(RegionMap::new(vec![region])?, Arc::new(PageTable::new(image.runs(space))));
    let served = Served::new(fault, memory, Resolver::new(image.clone()), POLICY, Abandon::Poison);
    let (stopped, stop) =
        std::io::pipe().map_err(|error| Error::io("cannot start serving a mapping", "pipe", error))?;
    let thread = std::thread::Builder::new()
        .name("lazy mapping".to_owned())
        .spawn(move || serve(served, &stopped))
        .map_err(|error| Error::io("cannot start serving a mapping", "thread", error))?;
    Ok(LazyMapping { thread: Some(thread), stop: Some(stop), mapping, len_bytes })
}

fn serve(served: Served, stopped: &std::io::PipeReader) -> Result<ServeReport> {
    let mut handler = Handler::new(None);
    handler.add(served)?;
    while !handler.is_idle() {
        if handler.turn(&[stopped.as_fd()], false)?.contains(&true) {
            // The mapping is being dropped: no thread reads it any more.
            handler.end_all();
        }
    }
    Ok(handler.report())
}

impl Deref for LazyMapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.mapping.bytes()[..self.len_bytes]
    }
}

impl LazyMapping {
    /// Unmaps the space and returns what was served.
    ///
    /// # Errors
    /// Those of the serving thread.
    pub fn unmap(mut self) -> Result<ServeReport> {
        self.finish()
    }

    fn finish(&mut self) -> Result<ServeReport> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(_)) => Err(Error::new(Kind::Internal, "the thread of a mapping panicked")),
            None => Ok(ServeReport::default()),
        }
    }
}

impl Drop for LazyMapping {
    fn drop(&mut self) {
        if self.thread.is_some()
            && let Err(error) = self.finish()
        {
            tracing::error!(%error, "a mapping was not served to its end");
        }
    }
}
