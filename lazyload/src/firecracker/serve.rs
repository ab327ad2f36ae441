//! The page fault handler of one virtual machine, until its monitor is gone.
//!
//! Firecracker keeps its own copy of the userfaultfd and of the socket to its end, so that the end of the connection is a
//! sign of its own; but another monitor may close both and run on. What counts is whether the memory is still there.
//! Nothing but this handler answers its faults: if serving fails, the monitor is killed rather than left waiting.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use store::{Error, Image, Kind, Result, Store};

use super::{check_kind, handshake};
use crate::connection::Connection;
use crate::fault::AddressSpace;
use crate::handler::Handler;
use crate::pages::PageTable;
use crate::report::{ServeOptions, ServeReport};
use crate::resolver::Resolver;
use crate::served::{Abandon, Manners, Served};
use crate::sys::{UserFault, receive};

/// Guest memory does not grow behind our back, and the monitor's own copy keeps events coming to the end.
const MANNERS: Manners = Manners { outside_is_zero: false, close_when_complete: false };

/// Binds `socket`, serves one machine that loads a snapshot with this image, and returns when its monitor is gone.
///
/// # Errors
/// `Unavailable` when nobody connects in time or the handshake does not come, `Invalid` when it is refused; the monitor
/// is killed then, because it would wait for ever.
pub fn serve(_store: &Store, image: &Image, socket: &Path, options: &ServeOptions) -> Result<ServeReport> {
    check_kind(image)?;
    let [space] = image.spaces() else {
        return Err(
            Error::new(Kind::Corrupt, "a machine's image has not exactly one memory").object(image.id())
        );
    };
    let connection = Connection::await_at(socket, options, options.accept_timeout)?;
    let timeout = connection.left_of(options.accept_timeout);
    let handshake = handshake::accept(connection.stream(), space.len_bytes, timeout)?;
    let fault = UserFault::adopt(handshake.descriptor)?;
    let memory = AddressSpace::new(handshake.regions, Arc::new(PageTable::new(image.runs(0))));
    let abandon = Abandon::Kill(Arc::clone(connection.peer()));
    let mut handler = Handler::new(options.custody.as_ref());
    handler.add(Served::new(fault, memory, Resolver::new(image.clone()), MANNERS, abandon))?;
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
