//! Replaces CRIU's lazy-pages daemon: serves all tasks of one restore until each has all its memory or has ended.
//!
//! Faults are served from the first announcement on; prefetch waits for the mark that every task is in place. If CRIU
//! gives up, or this serve fails, the restored tasks are killed: they must not run on incomplete memory. Changes that
//! the next capture needs are recorded as they happen.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Pid;
use store::{Error, Image, Kind, PAGE, Result, Store};

use super::announce::{Announcement, Announcements, FirstAnnouncement};
use super::entries::{AnonymousMapping, lazy_mappings};
use super::lazy_form::{check_same, set_marks};
use super::page_map::PageMap;
use super::{check_kind, mappings_name, page_map_name, read_file};
use crate::connection::Connection;
use crate::fault::AddressSpace;
use crate::handler::Handler;
use crate::notes::Notes;
use crate::options::ServeOptions;
use crate::pages::PageTable;
use crate::reception::await_greeting;
use crate::region::{Region, RegionMap};
use crate::report::ServeReport;
use crate::resolver::Resolver;
use crate::served::{Abandon, ServePolicy, Served};
use crate::socket::SocketAccess;
use crate::sys::UserFault;
use crate::target::Target;
use crate::wake_log::{Entry, Stamp, WakeLog};

/// CRIU connects to this name in its work directory.
const SOCKET: &str = "lazy-pages.socket";

/// Memory that grew after the restore is zero, and closing the descriptor tells the kernel that this process is done.
const POLICY: ServePolicy =
    ServePolicy { outside_is_zero: true, close_when_complete: true, kill_when_lost: false };

/// Serves one `criu restore --lazy-pages` of `images`, which [`super::materialize`] wrote from the same image. Binds
/// `lazy-pages.socket` in `work_dir` (CRIU's `--work-dir`, by default the image directory) and returns when every task
/// has all its memory or is gone.
///
/// # Errors
/// `Invalid` when the directory is of another image or the protocol is broken, `Unavailable` when nobody connects in
/// time or CRIU gives up. Restored tasks are killed first.
pub fn serve(
    store: &Store,
    image: &Image,
    images: &Path,
    work_dir: &Path,
    options: &ServeOptions,
) -> Result<ServeReport> {
    check_kind(image)?;
    check_same(store, image, images)?;
    let (mark, log) = WakeLog::create(store, image.id())?;
    set_marks(image, images, mark)?;
    let socket = work_dir.join(SOCKET);
    let place = (socket.as_path(), SocketAccess::default());
    let (connection, _) = await_greeting(place, options, options.restore_timeout, || FirstAnnouncement)?;
    let deadline = Instant::now() + connection.left_of(options.restore_timeout);
    let mut serve = Serve {
        store,
        image,
        handler: Handler::new(options.escrow.as_ref()),
        connection: Some(connection),
        announcements: Announcements::default(),
        log,
    };
    while let Some(connection) = &serve.connection {
        let ready = serve.handler.turn(&[connection.as_fd()], false)?;
        if ready.contains(&true) {
            serve.receive_announcements()?;
        } else if Instant::now() > deadline {
            return Err(Error::new(Kind::Unavailable, "CRIU did not finish the restore in time")
                .object(images.display())
                .advice("see CRIU's log, or allow more time"));
        }
    }
    while !serve.handler.is_idle() {
        serve.handler.turn(&[], options.prefetch)?;
    }
    Ok(serve.handler.report())
}

/// Fields drop in order: the tasks are stopped before the connection and CRIU.
struct Serve<'a> {
    store: &'a Store,
    image: &'a Image,
    handler: Handler<'a>,
    /// Until every task is in place.
    connection: Option<Connection<'a>>,
    announcements: Announcements,
    log: Arc<WakeLog>,
}

impl Serve<'_> {
    /// Receives and serves every announcement that has come.
    fn receive_announcements(&mut self) -> Result<()> {
        while let Some(connection) = &self.connection {
            match self.announcements.next(connection.stream())? {
                None => return Ok(()),
                Some(Announcement::Zombie) => {}
                Some(Announcement::Task { task, sender, descriptor }) => {
                    let fault = UserFault::adopt(descriptor)?;
                    let target = target_of(sender)?;
                    let space = address_space(self.store, self.image, task)?;
                    let notes = Notes::new(self.log.begin(Stamp::now(), Entry::Task(task)), target.number());
                    let abandon = Abandon::Kill(Arc::new(target));
                    let resolver = Resolver::new(self.image.clone());
                    let mut served = Served::new(fault, space, resolver, POLICY, abandon);
                    served.keep_notes(notes);
                    self.handler.add(served)?;
                    self.announcements.take_descriptor(connection.stream())?;
                }
                Some(Announcement::Finished) => {
                    if let Some(connection) = self.connection.take() {
                        connection.finish();
                    }
                }
                Some(Announcement::Closed) => {
                    return Err(Error::new(Kind::Unavailable, "CRIU gave up the restore")
                        .object(self.image.id())
                        .advice("see CRIU's log for the reason"));
                }
            }
        }
        Ok(())
    }
}

/// Opens the process of a task: the sender of its announcement. The announced number is of the task's own PID
/// namespace, and may be another process's number here.
fn target_of(sender: Option<Pid>) -> Result<Target> {
    let invisible = || {
        Error::new(Kind::Invalid, "the process that announced a task is not visible in this PID namespace")
    };
    Target::open(sender.ok_or_else(invisible)?)
}

/// The state of a task's memory before its first page is served.
pub(super) fn address_space(store: &Store, image: &Image, task: u32) -> Result<AddressSpace> {
    let mappings = lazy_mappings(&read_file(store, image, &mappings_name(task))?)?;
    let map = PageMap::parse(&read_file(store, image, &page_map_name(task))?)?;
    let region = |mapping: &AnonymousMapping| Region {
        start: mapping.range.start,
        len_bytes: mapping.range.end - mapping.range.start,
        first_page: mapping.range.start / PAGE as u64,
    };
    let regions = RegionMap::new(mappings.iter().map(region).collect())?;
    let runs = image.space(task.into()).map_or(&[][..], |space| image.runs(space));
    let mut space = AddressSpace::new(regions, Arc::new(PageTable::new(runs)));
    for entry in map.entries.iter().filter(|entry| !entry.is_lazy) {
        space.set_present(entry.pages());
    }
    for AnonymousMapping { range, .. } in mappings.iter().filter(|mapping| mapping.is_wiped_on_fork) {
        space.wipe_on_fork(range.start / PAGE as u64..range.end / PAGE as u64);
    }
    Ok(space)
}
