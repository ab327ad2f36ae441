//! Runs `criu restore --lazy-pages`, detached, on a thread of its own, and reports a failure once, in CRIU's words.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use lazyload::supervisor;
use store::{Error, Kind, Result};

use crate::args::ResumeArguments;
use crate::exit;
use crate::respawn;

const CRIU: &str = "criu";
const LOG: &str = "restore.log";
/// Other files left in the directory: CRIU's statistics, and the socket when this process had to end at once.
const LEFT: [&str; 2] = ["stats-restore", "lazy-pages.socket"];
/// Number of error lines quoted from the end of CRIU's log.
const QUOTED: usize = 6;

/// A restore under way. When it fails this process ends, and the supervisor ends any partially restored process.
pub(crate) struct Restore {
    /// Starts it.
    pub start: Sender<()>,
    thread: JoinHandle<()>,
}

impl Restore {
    /// Prepares a restore, which runs at the message on `start`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn prepare(
        arguments: &ResumeArguments,
        images: &Path,
        work: &Path,
        json: bool,
    ) -> Result<Restore> {
        let mut command = respawn::foreign(CRIU);
        command
            .args(["restore", "--lazy-pages", "--restore-detached", "-o", LOG, "--images-dir"])
            .arg(images);
        command.arg("--work-dir").arg(work).args(&arguments.criu_arguments);
        // Its errors go to its log; earlier messages, such as about an option, to standard error.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = work.join(LOG);
        let (start, word) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("criu".to_owned())
            .spawn(move || run(command, &log, &word, json))
            .map_err(|source| Error::io("cannot start a thread", CRIU, source))?;
        Ok(Restore { start, thread })
    }

    /// Waits for the end of criu, which detaches from the processes it restored.
    ///
    /// # Errors
    /// When the thread is gone.
    pub(crate) fn wait(self) -> Result<()> {
        drop(self.start);
        self.thread.join().map_err(|_| Error::new(Kind::Internal, "the thread that runs criu ended early"))
    }
}

fn run(mut command: Command, log: &Path, word: &Receiver<()>, json: bool) {
    if word.recv().is_err() {
        return;
    }
    let ended = supervisor::spawn(&mut command).and_then(|mut criu| criu.wait());
    let error = match ended {
        Ok(status) if status.success() => return forget(log),
        Ok(status) => Error::new(Kind::Unavailable, format!("criu restore failed ({status}){}", quoted(log)))
            .object(log.display()),
        Err(source) => Error::io("cannot run criu", CRIU, source),
    };
    // The code of every error; as one, it is reported once.
    exit::finish(Err(error.into()), json);
    std::process::exit(exit::FAILED.into());
}

/// Removes the log of a successful restore.
fn forget(log: &Path) {
    if let Err(error) = fs::remove_file(log) {
        tracing::debug!(%error, "the log of a restore stays");
    }
}

/// The error lines of CRIU's log, the last ones, without their times.
fn quoted(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter_map(|line| Some(&line[line.find("Error (")?..])).collect();
    let last = &lines[lines.len().saturating_sub(QUOTED)..];
    last.iter().map(|line| format!("\n  {line}")).collect()
}

/// Checks early that CRIU is installed.
///
/// # Errors
/// When it is not.
pub(crate) fn check() -> Result<()> {
    let found = respawn::foreign(CRIU).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    match found {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::io("cannot run criu", CRIU, source).advice("install CRIU 4.2.1 or newer")),
    }
}

/// The image directory of a resume, removed in every case when the resume ends: it is useless afterwards.
pub(crate) struct ImageDirectory {
    path: PathBuf,
    names: Vec<String>,
}

impl ImageDirectory {
    /// The directory to be created for an image; `None` when it already has entries, which belong to others.
    pub(crate) fn of(path: &Path, image: &store::Image) -> Option<Self> {
        let is_ours = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        let mut names = lazyload::criu::file_names(image);
        names.extend(LEFT.map(str::to_owned));
        is_ours.then(|| Self { path: path.to_owned(), names })
    }
}

impl Drop for ImageDirectory {
    fn drop(&mut self) {
        if let Err(error) = lazyload::criu::remove(&self.path, &self.names) {
            tracing::warn!(%error, "the image directory stays");
        }
    }
}
