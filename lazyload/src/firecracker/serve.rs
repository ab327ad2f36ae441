//! The page fault handler of one virtual machine, until its memory is whole or its monitor is gone.
//!
//! Whole memory is unregistered, and the machine runs on by itself: the kernel answers what it gives back later, with
//! zero, and nobody has to read of it. Firecracker keeps its own copy of the userfaultfd and of the socket to its end, so
//! that the end of the connection is a sign of its own; but another monitor may close both and run on. What counts is
//! whether the memory is still there. While pages are missing nothing but this handler answers its faults: if serving
//! fails, the monitor is killed rather than left waiting.

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
use crate::served::{Abandon, Manners, Served};
use crate::sys::receive;

/// Guest memory does not grow behind our back.
const MANNERS: Manners = Manners { outside_is_zero: false, close_when_complete: true, kill_when_lost: true };

/// How long a monitor may take from connecting until its handshake is whole; it is sent right after connecting.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds `socket`, serves one machine that loads a snapshot with this image, and returns when its
/// memory is whole or its monitor is gone.
///
/// Connections without a whole handshake are closed and their processes left alone. A second monitor, whose handshake came
/// too, is killed, because it would wait for ever.
///
/// # Errors
/// `Unavailable` when no handshake comes in time, `Invalid` when one is refused after it has brought a userfaultfd; its
/// monitor is killed then, because it would wait for ever.
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
    let ((regions, page_bytes), fault, held) =
        handshake.finish().expect("a greeting is whole when it is given");
    let memory = AddressSpace::new(regions, Arc::new(PageTable::new(image.runs(0))));
    let abandon = Abandon::Kill(Arc::clone(connection.peer()));
    let mut handler = Handler::new(options.custody.as_ref());
    let served = Served::new(fault, memory, Resolver::new(image.clone()), MANNERS, abandon);
    handler.add_held(served.with_pages_of(page_bytes), held);
    let mut watched = Some(connection.as_fd());
    while !handler.is_idle() {
        let ready = handler.turn(watched.as_slice(), options.prefetch)?;
        if ready.contains(&true) && is_closed(connection.stream())? {
            watched = None;
            handler.end_those_gone();
        }
    }
    connection.finish();
    Ok(handler.report())
}

/// Whether the connection has ended. Firecracker never writes again; what another monitor writes is not for us.
fn is_closed(stream: &UnixStream) -> Result<bool> {
    match receive(stream, &mut [0; 4096], RecvFlags::DONTWAIT) {
        Ok(received) => Ok(received.len_bytes == 0 && received.descriptors.is_empty()),
        Err(Errno::AGAIN) => Ok(false),
        Err(Errno::CONNRESET) => Ok(true),
        Err(errno) => Err(Error::io("cannot watch the virtual machine monitor", "socket", errno.into())),
    }
}
