//! A background process that outlives this one: the same command once more, in a session of its own, its log in a file.
//! It reports the result of its start on its standard output, a pipe, in one line of JSON, and then nothing more.
//!
//! Invariants: the caller returns only when the process is ready or has failed; if a process ends without a report, the
//! error names its log.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::{Error, Kind, Result};

use crate::exit::Relayed;
use crate::respawn::{self, Role};

/// The message in the ready pipe. The caller interprets the ready value.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Ready(serde_json::Value),
    Failed(Relayed),
}

/// Starts this program again in the background and waits until it is ready.
///
/// # Errors
/// The process's own report, or that it ended without one.
pub(crate) fn start<T: DeserializeOwned>(log: &Path) -> anyhow::Result<T> {
    let failed = |source| Error::io("cannot start the background process", "snapctl", source);
    let log_file = File::options().create(true).append(true).open(log).map_err(|source| {
        Error::io("cannot open the log of the background process", log.display(), source)
    })?;
    let mut child = respawn::command(Role::Background)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .map_err(failed)?;
    let pipe = child.stdout.take().expect("standard output was asked for as a pipe");
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line).map_err(failed)?;
    match serde_json::from_str(&line) {
        Ok(Word::Ready(value)) => {
            let ready = serde_json::from_value(value).map_err(|source| {
                Error::new(Kind::Internal, "the background process sent an unreadable status line")
                    .caused_by(source)
            })?;
            // Not waited for: it outlives this process, and its new parent reaps it.
            Ok(ready)
        }
        Ok(Word::Failed(error)) => {
            child.wait().map_err(failed)?;
            Err(error.into())
        }
        Err(_) => {
            let status = child.wait().map_err(failed)?;
            let what = format!("the background process ended before it was ready ({status})");
            Err(Error::new(Kind::Internal, what).object(log.display()).advice("its log says more").into())
        }
    }
}

/// Leaves the caller's session and directory: to be called by the background process at its start.
///
/// # Errors
/// As `setsid` and `chdir`.
pub(crate) fn detach() -> Result<()> {
    rustix::process::setsid()
        .map_err(|source| Error::io("cannot start a session", "the background process", source.into()))?;
    std::env::set_current_dir("/").map_err(|source| Error::io("cannot change directory", "/", source))
}

/// Reports to the caller that the process is ready, with a value.
///
/// # Errors
/// When the caller is gone.
pub(crate) fn ready(value: &impl Serialize) -> anyhow::Result<()> {
    say(&Word::Ready(serde_json::to_value(value)?))
}

/// Reports an error to the caller.
///
/// # Errors
/// When the caller is gone.
pub(crate) fn failed(error: &anyhow::Error) -> anyhow::Result<()> {
    say(&Word::Failed(Relayed::of(error)))
}

fn say(word: &Word) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(word)?;
    line.push('\n');
    std::io::stdout().lock().write_all(line.as_bytes())?;
    Ok(())
}
