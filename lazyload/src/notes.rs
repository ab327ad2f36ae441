//! The notes of the handler on one address space, and the check for a tracer.
//!
//! A dump shows only by its tracer: CRIU traces every task from before it reads the first page map until after the last
//! image is written. So no event that is read while the process is not traced falls into a dump.

use std::time::{Duration, Instant};

use crate::wake_log::{Entry, SpaceLog, Stamp};

/// How often a process is checked: a dump takes longer.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The log of one address space and, where its process is known, whether that process is traced.
#[derive(Debug)]
pub(crate) struct Notes {
    log: SpaceLog,
    process: Option<Watched>,
}

#[derive(Debug)]
struct Watched {
    number: i32,
    next_check: Instant,
    /// When it was last seen without a tracer.
    free_at: Stamp,
    is_traced: bool,
}

impl Notes {
    /// The notes on a process.
    pub(crate) fn new(log: SpaceLog, number: i32) -> Self {
        let process = Watched { number, next_check: Instant::now(), free_at: Stamp::now(), is_traced: false };
        Self { log, process: Some(process) }
    }

    /// The notes on a forked child, whose number is not known. A dump of the child alone would not be seen; but it gets
    /// only the pages that it touches, and touches pages only while it runs.
    pub(crate) fn of_fork(&self, at: Stamp) -> Self {
        Self { log: self.log.fork(at), process: None }
    }

    /// The log.
    pub(crate) fn log(&self) -> &SpaceLog {
        &self.log
    }

    /// Whether the process is traced, as of the last few milliseconds.
    pub(crate) fn check(&mut self) -> bool {
        match &self.process {
            Some(process) if Instant::now() < process.next_check => process.is_traced,
            _ => self.check_now(),
        }
    }

    /// Whether the process is traced now.
    pub(crate) fn check_now(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        let now = Stamp::now();
        let is_traced = has_tracer(process.number);
        process.next_check = Instant::now() + CHECK_INTERVAL;
        if process.is_traced && !is_traced {
            self.log.note(Stamp::now(), Entry::Traced { from: process.free_at });
        }
        process.is_traced = is_traced;
        if !is_traced {
            process.free_at = now;
        }
        is_traced
    }
}

/// Whether a process has a tracer. One that has ended has none.
fn has_tracer(number: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}
