//! Protection of supervisor and handler from dying together: signals are caught, and the kernel chooses other victims
//! when memory runs out. The programs that they start do not inherit it.
//!
//! A handler has a process group of its own, so that a signal to the group of the caller, or a key at its terminal,
//! meets the supervisor alone. Nothing protects from the end of both at one moment, by a signal that no process can
//! catch: SIGKILL to both, or to all of their control group at once. See [`crate::supervisor`] for what happens then.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{
    SIGABRT, SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU,
    SIGXFSZ,
};
use store::{Error, Result};

use crate::sys;
use crate::target::group_of;

/// Signals that ask a process to end. A supervisor first stops the processes that run on memory in escrow.
pub const END_SIGNALS: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT, SIGXCPU, SIGPWR];
/// Signals that end a process by default, but do not ask it to end: they are caught and have no effect.
const STRAY_SIGNALS: [i32; 8] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGXFSZ, SIGIO, SIGSTKFLT];
const REAL_TIME_SIGNALS: std::ops::RangeInclusive<i32> = 34..=64;
const SIGSTKFLT: i32 = 16;
const SIGPWR: i32 = 30;

const SCORE: &str = "/proc/self/oom_score_adj";
const NEVER: &str = "-1000";

/// The score of this process before it was protected.
static SCORE_BEFORE: OnceLock<String> = OnceLock::new();

/// Catches the signals that would end this process without asking it to end.
///
/// # Errors
/// When a signal cannot be caught.
pub(crate) fn ignore_stray_signals() -> Result<()> {
    // Caught rather than ignored: an ignored signal stays ignored in programs that are started.
    for signal in STRAY_SIGNALS.into_iter().chain(REAL_TIME_SIGNALS) {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))
            .map_err(|error| Error::io("cannot catch a signal", signal, error))?;
    }
    Ok(())
}

/// Has the kernel choose other victims when memory runs out, also when it kills all of a control group.
///
/// # Errors
/// Without CAP_SYS_RESOURCE. The score stays as it is then.
pub(crate) fn lower_score() -> io::Result<()> {
    let before = std::fs::read_to_string(SCORE)?;
    std::fs::write(SCORE, NEVER)?;
    // The first value is kept: later this process is protected already.
    drop(SCORE_BEFORE.set(before));
    Ok(())
}

/// Starts a program of another kind, such as `criu restore`, out of a handler: without the protection of this process,
/// in the process group of its supervisor, where a terminal reaches it, and killed when the thread that calls this
/// ends.
///
/// # Errors
/// Those of starting it.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    if let Some(group) = rustix::process::getppid().and_then(group_of) {
        command.process_group(group.as_raw_nonzero().get());
    }
    sys::kill_with_parent(command);
    // A child inherits the score that its parent has when it is made.
    let Some(before) = SCORE_BEFORE.get() else { return command.spawn() };
    std::fs::write(SCORE, before)?;
    let child = command.spawn();
    std::fs::write(SCORE, NEVER)?;
    child
}
