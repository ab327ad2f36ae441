//! `snapctl resume SPEC`: wakes a memory image. This process is the supervisor, which keeps a copy of every descriptor that
//! fills memory; it runs this program once more as the handler, which serves the faults. Returns when nothing needs the
//! handler any more, and with `--restore` also not before `criu restore` has ended.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use lazyload::supervisor::{self, Custody};
use lazyload::{ServeOptions, ServeReport, criu, firecracker};
use serde::Serialize;
use store::{Error, Image, Kind, SnapshotId, Store};

use super::ls::json_path;
use crate::args::ResumeArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome, complain};
use crate::output::Show;
use crate::respawn::{self, Role};

const CRIU: &str = "criu";
const CRIU_LOG: &str = "restore.log";
const LAZY_PAGES_SOCKET: &str = "lazy-pages.socket";

/// First document: somebody may connect now.
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

/// Last document: what was done.
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
        Ok(())
    }
}

pub fn run(arguments: ResumeArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let (id, image) = open_image(&store, &arguments.spec)?;
    if arguments.restore {
        check_criu()?;
    }
    if Role::current() == Role::Handler {
        return handle(&store, id, &image, &arguments, context);
    }
    drop((image, store));
    supervise(context)
}

/// Runs the handler and passes on how it ended.
fn supervise(context: &Context) -> anyhow::Result<Outcome> {
    // The supervisor watches for signals itself: it must stop the handler before it ends.
    context.signals.on_stop(|| {});
    let supervised = supervisor::run(respawn::command(Role::Handler)?)?;
    if !supervised.killed.is_empty() {
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

/// What the handler process does.
fn handle(
    store: &Store,
    id: SnapshotId,
    image: &Image,
    arguments: &ResumeArguments,
    context: &mut Context,
) -> anyhow::Result<Outcome> {
    let custody = Custody::from_stdin()?;
    let _pin = store.pin(&format!("resume {}", arguments.spec), &[id])?;
    let socket = socket_of(arguments);
    let (shown, socket_hex) = json_path(socket.as_os_str().as_bytes());
    let ready = Ready { event: "ready", socket: shown, socket_hex, snapshot: id.to_string() };
    let restore = arguments.criu_dir.as_ref().filter(|_| arguments.restore);
    let restore = restore.map(|directory| Restore::prepare(arguments, directory)).transpose()?;
    let start = restore.as_ref().map(|restore| restore.start.clone());
    let announcer = context.output.announcer();
    let options = ServeOptions {
        prefetch: !arguments.no_prefetch,
        accept_timeout: Duration::from_secs(arguments.accept_timeout.into()),
        custody: Some(custody),
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
    if report.poisoned > 0 {
        let lost =
            format!("{} pages could not be read; what touched them was ended by SIGBUS", report.poisoned);
        return Err(Error::new(Kind::Corrupt, lost)
            .object(&arguments.spec)
            .advice("run `snapctl check`")
            .into());
    }
    Ok(Outcome::Done)
}

fn serve(
    store: &Store,
    image: &Image,
    arguments: &ResumeArguments,
    options: &ServeOptions,
) -> store::Result<ServeReport> {
    match (&arguments.criu_dir, &arguments.uffd_socket, &arguments.vmstate) {
        (Some(directory), ..) => {
            criu::materialize(image, store, directory)?;
            criu::serve(store, image, directory, work_directory(arguments, directory), options)
        }
        (None, Some(socket), Some(state)) => {
            firecracker::write_vmstate(image, store, state)?;
            firecracker::serve(store, image, socket, options)
        }
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
    }
}

/// A `criu restore --lazy-pages` on a thread of its own. When it fails this process ends, and with it whatever was
/// restored in part: the supervisor sees to that.
struct Restore {
    start: Sender<()>,
    thread: JoinHandle<()>,
}

impl Restore {
    /// Makes all ready; it runs at the word on `start`.
    fn prepare(arguments: &ResumeArguments, directory: &Path) -> store::Result<Restore> {
        let mut command = respawn::foreign(CRIU);
        command.args(["restore", "--lazy-pages", "-o", CRIU_LOG, "--images-dir"]).arg(directory);
        let work_directory = work_directory(arguments, directory);
        command.arg("--work-dir").arg(work_directory).args(&arguments.criu_arguments);
        command.stdin(Stdio::null()).stdout(io::stderr());
        let log = work_directory.join(CRIU_LOG);
        let (start, word) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("criu".to_owned())
            .spawn(move || restore(command, &log, &word))
            .map_err(|source| Error::io("cannot start a thread", CRIU, source))?;
        Ok(Restore { start, thread })
    }

    /// Waits for the end of criu: of the restore alone if it was told to detach, else of what it restored.
    fn wait(self) -> store::Result<()> {
        drop(self.start);
        self.thread.join().map_err(|_| Error::new(Kind::Internal, "the thread that runs criu ended early"))
    }
}

fn restore(mut command: Command, log: &Path, word: &Receiver<()>) {
    if word.recv().is_err() {
        return;
    }
    let failed = match command.status() {
        Ok(status) if status.success() => return,
        Ok(status) => format!("ended: {status}; {} says why", log.display()),
        Err(source) => format!("could not be started: {source}"),
    };
    complain(&format!("snapctl: criu restore {failed}"));
    std::process::exit(2);
}

/// Finds out early whether there is a CRIU at all.
fn check_criu() -> store::Result<()> {
    let found = respawn::foreign(CRIU).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    match found {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::io("cannot run criu", CRIU, source).advice("install CRIU 4.2.1 or newer")),
    }
}
