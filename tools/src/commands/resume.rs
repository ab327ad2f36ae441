//! `snapctl resume SPEC`: resumes a memory image. This process is the supervisor, which keeps a copy of every
//! descriptor that fills memory; it runs this program once more as the handler, which serves the faults. Returns when
//! the handler is no longer needed: all memory is present, or the resumed processes have ended. A process that ended
//! before all its memory was present makes the exit code 3.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lazyload::supervisor::{self, Escrow};
use lazyload::{ServeOptions, ServeReport, SocketAccess, firecracker};
use serde::Serialize;
use store::{Error, Image, Kind, SnapshotId, Store};

use super::ls::json_path;
use crate::args::ResumeArguments;
use crate::context::Context;
use crate::criu::{self, ImageDirectory, Restore};
use crate::exit::{Asked as _, Outcome};
use crate::output::Show;
use crate::respawn::{self, Role};

const LAZY_PAGES_SOCKET: &str = "lazy-pages.socket";

/// First document: clients may connect now.
#[derive(Serialize)]
struct Ready {
    event: &'static str,
    socket: String,
    /// Its bytes when it is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_hex: Option<String>,
    snapshot: String,
}

impl Show for Ready {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "serving {} on {}", self.snapshot, self.socket)
    }
}

/// Last document: the result.
#[derive(Serialize)]
struct Done {
    event: &'static str,
    spaces: u64,
    faults: u64,
    pages: u64,
    zero_pages: u64,
    prefetched_pages: u64,
    removed_pages: u64,
    poisoned_pages: u64,
    never_brought_pages: u64,
    killed_process: Option<i32>,
}

impl Show for Done {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "served {} faults: {} pages, {} zero pages; {} pages fetched ahead",
            self.faults, self.pages, self.zero_pages, self.prefetched_pages,
        )?;
        if self.poisoned_pages > 0 {
            writeln!(out, "{} pages are lost", self.poisoned_pages)?;
        }
        if self.never_brought_pages > 0 {
            writeln!(
                out,
                "it ended before {} of its pages were brought; `capture` of a dump takes them from this image",
                self.never_brought_pages
            )?;
        }
        Ok(())
    }
}

pub(super) fn run(arguments: ResumeArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    // Each page is served once, so that decoded ones need not be kept.
    let store = context.streaming_store()?;
    let (id, image) = open_image(&store, &arguments.spec)?;
    if arguments.restore {
        criu::check()?;
    }
    // A process that guards memory ends in order on any of these signals.
    context.signals.listen_to(&supervisor::END_SIGNALS)?;
    if Role::current() == Role::Handler {
        return handle(&store, id, &image, &arguments, context);
    }
    // The supervisor watches for signals itself: it must stop the handler before it ends.
    context.signals.on_stop(|| {});
    // Written here, so that it is removed whenever the resume fails.
    let state = arguments.vmstate.as_deref();
    if let Some(state) = state {
        let _pin = store.pin(&format!("resume {}", arguments.spec), &[id])?;
        firecracker::write_vmstate(&image, &store, state, arguments.socket_owner)?;
    }
    let directory = arguments.criu_dir.as_deref().and_then(|path| ImageDirectory::of(path, &image));
    drop((image, store));
    let outcome = supervise();
    drop(directory);
    if let Some(state) = state
        && !matches!(outcome, Ok(Outcome::Done))
        && let Err(error) = fs::remove_file(state)
    {
        tracing::warn!(%error, "the state file {} stays", state.display());
    }
    outcome
}

/// Runs the handler and passes on its outcome.
fn supervise() -> anyhow::Result<Outcome> {
    let supervised = supervisor::run(respawn::command(Role::Handler)?)?;
    // A handler that ends with an error has reported it; one that a signal ended (128 and more) has not.
    let is_told = supervised.status.code().is_some_and(|code| (1..128).contains(&code));
    if !supervised.killed.is_empty() && !is_told {
        let killed: Vec<String> = supervised.killed.iter().map(i32::to_string).collect();
        let what =
            format!("the handler ended early ({}): what ran on its memory was killed", supervised.status);
        let error = Error::new(Kind::Unavailable, what).object(format!("processes {}", killed.join(" ")));
        return Err(error.advice("resume again; the image is unharmed").into());
    }
    match supervised.status.code() {
        Some(0) => Ok(Outcome::Done),
        Some(code) => Ok(Outcome::Passed(u8::try_from(code).unwrap_or(u8::MAX))),
        None => Err(Error::new(Kind::Unavailable, "the handler was killed").object(supervised.status).into()),
    }
}

fn open_image(store: &Store, spec: &str) -> anyhow::Result<(SnapshotId, Image)> {
    let id = store.resolve(spec).asked()?;
    let image = store.snapshot(&id)?.image.ok_or_else(|| {
        Error::new(Kind::Invalid, "the snapshot holds no memory image")
            .object(spec)
            .advice("`snapctl capture` makes one")
    })?;
    Ok((id, store.image(&image)?))
}

/// Runs in the handler process.
fn handle(
    store: &Store,
    id: SnapshotId,
    image: &Image,
    arguments: &ResumeArguments,
    context: &mut Context,
) -> anyhow::Result<Outcome> {
    let escrow = Escrow::from_stdin()?;
    let _pin = store.pin(&format!("resume {}", arguments.spec), &[id])?;
    let socket = socket_of(arguments);
    let (shown, socket_hex) = json_path(socket.as_os_str().as_bytes());
    let ready = Ready { event: "ready", socket: shown, socket_hex, snapshot: id.to_string() };
    let restore = arguments.criu_dir.as_ref().filter(|_| arguments.restore);
    let json = context.output.is_json();
    let restore = restore
        .map(|directory| Restore::prepare(arguments, directory, work_directory(arguments, directory), json))
        .transpose()?;
    let start = restore.as_ref().map(|restore| restore.start.clone());
    let announcer = context.output.announcer();
    let options = ServeOptions {
        prefetch: !arguments.no_prefetch,
        accept_timeout: Duration::from_secs(arguments.accept_timeout.into()),
        access: SocketAccess { owner: arguments.socket_owner, mode: arguments.socket_mode },
        monitor: arguments.monitor_pid,
        escrow: Some(escrow),
        ready: Some(Box::new(move || {
            announcer.report(&ready);
            if let Some(start) = &start
                && start.send(()).is_err()
            {
                tracing::error!("the thread that runs criu is gone");
            }
        })),
        ..ServeOptions::default()
    };
    let report = serve(store, image, arguments, &options)?;
    context.output.report(&done(&report))?;
    context.output.finish()?;
    restore.map_or(Ok(()), Restore::wait)?;
    if let Some(what) = lost(&report) {
        let error = Error::new(Kind::Corrupt, what).object(&arguments.spec);
        return Err(error.advice("run `snapctl check`").into());
    }
    // A virtual machine is not expected to use all its memory.
    let ended_early = arguments.criu_dir.is_some() && report.never_brought > 0;
    Ok(if ended_early { Outcome::Partial } else { Outcome::Done })
}

/// Describes a process that waited for pages which could not be read.
fn lost(report: &ServeReport) -> Option<String> {
    let pages = report.poisoned;
    match report.killed {
        Some(process) => Some(format!(
            "{pages} pages could not be read; the monitor, process {process}, was killed, because its guest would have run on \
             without them"
        )),
        None if pages > 0 => Some(format!(
            "{pages} pages could not be read; what touched them got SIGBUS, or an error from a system call"
        )),
        None => None,
    }
}

fn serve(
    store: &Store,
    image: &Image,
    arguments: &ResumeArguments,
    options: &ServeOptions,
) -> store::Result<ServeReport> {
    match (&arguments.criu_dir, &arguments.uffd_socket) {
        (Some(directory), _) => {
            lazyload::criu::materialize(image, store, directory)?;
            lazyload::criu::serve(store, image, directory, work_directory(arguments, directory), options)
        }
        (None, Some(socket)) => firecracker::serve(store, image, socket, options),
        _ => Err(Error::new(Kind::Internal, "the command line names nothing to resume")),
    }
}

fn work_directory<'a>(arguments: &'a ResumeArguments, directory: &'a Path) -> &'a Path {
    arguments.work_dir.as_deref().unwrap_or(directory)
}

fn socket_of(arguments: &ResumeArguments) -> PathBuf {
    match (&arguments.criu_dir, &arguments.uffd_socket) {
        (Some(directory), _) => work_directory(arguments, directory).join(LAZY_PAGES_SOCKET),
        (None, socket) => socket.clone().unwrap_or_default(),
    }
}

fn done(report: &ServeReport) -> Done {
    Done {
        event: "done",
        spaces: report.spaces,
        faults: report.faults,
        pages: report.pages,
        zero_pages: report.zero_pages,
        prefetched_pages: report.prefetched,
        removed_pages: report.removed_pages,
        poisoned_pages: report.poisoned,
        never_brought_pages: report.never_brought,
        killed_process: report.killed,
    }
}
