//! The page fault handler of one virtual machine, until its memory is complete or its monitor is gone.
//!
//! Complete memory is unregistered, and the machine runs on by itself: the kernel answers faults on pages that it
//! releases later with zero, and no process has to read events. Firecracker keeps its copies of the userfaultfd and of
//! the socket to its end, so the end of the connection is a sign of its end; but another monitor may close both and run
//! on. So when the connection ends, the handler checks whether the address space still exists. While pages are missing
//! only this handler answers faults: if serving fails, the monitor is killed rather than left waiting.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use store::{Error, Image, Kind, Result, Store};

use super::check_kind;
use super::handshake::Handshake;
use crate::fault::AddressSpace;
use crate::handler::Handler;
use crate::options::ServeOptions;
use crate::pages::PageTable;
use crate::reception::await_greeting;
use crate::report::ServeReport;
use crate::resolver::Resolver;
use crate::served::{Abandon, ServePolicy, Served};
use crate::sys::receive;

/// Guest memory does not grow while it is served.
const POLICY: ServePolicy =
    ServePolicy { outside_is_zero: false, close_when_complete: true, kill_when_lost: true };

/// How long a monitor may take from connecting until its handshake is complete; it is sent right after connecting.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds `socket`, serves one machine that loads a snapshot with this image, and returns when its memory is complete or
/// its monitor is gone.
///
/// Connections without a complete handshake are closed and their processes left alone. A second monitor that has sent
/// its handshake too is killed, because it would wait forever.
///
/// # Errors
/// `Unavailable` when no handshake comes in time, `Invalid` when one is refused after it has brought a userfaultfd; its
/// monitor is killed then, because it would wait forever.
pub fn serve(_store: &Store, image: &Image, socket: &Path, options: &ServeOptions) -> Result<ServeReport> {
    check_kind(image)?;
    let [space] = image.spaces() else {
        return Err(
            Error::new(Kind::Corrupt, "a machine's image has not exactly one memory").object(image.id())
        );
    };
    let timeout = options.accept_timeout.min(HANDSHAKE_TIMEOUT);
    let (connection, handshake) =
        await_greeting((socket, options.access), options, timeout, || Handshake::new(space.len_bytes))?;
    let ((regions, page_bytes), fault, receipt) =
        handshake.finish().expect("await_greeting returns a complete greeting");
    let memory = AddressSpace::new(regions, Arc::new(PageTable::new(image.runs(0))));
    let abandon = Abandon::Kill(Arc::clone(connection.peer()));
    let mut handler = Handler::new(options.escrow.as_ref());
    let served = Served::new(fault, memory, Resolver::new(image.clone()), POLICY, abandon);
    handler.add_deposited(served.with_pages_of(page_bytes), receipt);
    let mut watched = Some(connection.as_fd());
    while !handler.is_idle() {
        let ready = handler.turn(watched.as_slice(), options.prefetch)?;
        if ready.contains(&true) && is_closed(connection.stream())? {
            watched = None;
            handler.end_gone();
        }
    }
    connection.finish();
    Ok(handler.report())
}

/// Whether the connection has ended. Firecracker never writes again; bytes of another monitor are ignored.
fn is_closed(stream: &UnixStream) -> Result<bool> {
    match receive(stream, &mut [0; 4096], RecvFlags::DONTWAIT) {
        Ok(received) => Ok(received.len_bytes == 0 && received.descriptors.is_empty()),
        Err(Errno::AGAIN) => Ok(false),
        Err(Errno::CONNRESET) => Ok(true),
        Err(errno) => Err(Error::io("cannot watch the virtual machine monitor", "socket", errno.into())),
    }
}
