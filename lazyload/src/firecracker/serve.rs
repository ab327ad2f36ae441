//! The page fault handler of one virtual machine, until its monitor is gone.
//!
//! The monitor keeps its own copy of the userfaultfd and of the socket, so its end shows as the end of the connection.
//! Nothing but this handler answers its faults: if serving fails, the monitor is killed rather than left waiting.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use store::{Error, Image, Kind, Result, Store};

use super::{check_kind, handshake};
use crate::fault::AddressSpace;
use crate::handler::Handler;
use crate::pages::PageTable;
use crate::report::{ServeOptions, ServeReport};
use crate::resolver::Resolver;
use crate::served::{Abandon, Manners, Served};
use crate::socket::{Listener, receive};
use crate::sys::UserFault;
use crate::target::{Target, peer_of};

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
    let listener = Listener::bind(socket)?;
    options.call_ready();
    let stream = listener.accept(options.accept_timeout)?;
    let monitor = Monitor::new(peer_of(&stream)?);
    let custody = options.custody.as_ref();
    let held = custody.map(|custody| custody.hold(stream.as_fd(), Some(&monitor.target))).transpose()?;
    let handshake = handshake::accept(&stream, space.len_bytes, options.accept_timeout)?;
    let fault = UserFault::adopt(handshake.descriptor)?;
    let memory = AddressSpace::new(handshake.regions, Arc::new(PageTable::new(image.runs(0))));
    let abandon = Abandon::Kill(Arc::clone(&monitor.target));
    let mut handler = Handler::new(custody);
    handler.add(Served::new(fault, memory, Resolver::new(image.clone()), MANNERS, abandon))?;
    while !handler.is_idle() {
        let ready = handler.turn(&[stream.as_fd()], options.prefetch)?;
        if ready.contains(&true) && is_closed(&stream)? {
            handler.end_all();
        }
    }
    monitor.finish();
    if let (Some(custody), Some(held)) = (custody, held) {
        custody.release(held);
    }
    Ok(handler.report())
}

/// The monitor's process. Dropped before the end, it is killed.
struct Monitor {
    target: Arc<Target>,
    is_finished: bool,
}

impl Monitor {
    fn new(target: Target) -> Self {
        Self { target: Arc::new(target), is_finished: false }
    }

    fn finish(mut self) {
        self.is_finished = true;
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = self.target.kill()
        {
            tracing::error!(%error, "the virtual machine monitor could not be stopped");
        }
    }
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
