//! What the handler takes down about one address space, and the look for a tracer.
//!
//! A dump is seen only by its tracer: CRIU traces every task from before it reads the first page map until after the last
//! image is written. So nothing that was seen while nobody traced falls into a dump.

use std::time::{Duration, Instant};

use crate::wake_log::{Entry, SpaceLog, Stamp};

/// How often a process is looked at: a dump takes longer.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The log of one address space and, where its process is known, whether that is traced.
#[derive(Debug)]
pub(crate) struct Notes {
    log: SpaceLog,
    process: Option<Watched>,
}

#[derive(Debug)]
struct Watched {
    number: i32,
    next_look: Instant,
    /// When it was last seen without a tracer.
    free_at: Stamp,
    is_traced: bool,
}

impl Notes {
    /// Of a process.
    pub(crate) fn new(log: SpaceLog, number: i32) -> Self {
        let process = Watched { number, next_look: Instant::now(), free_at: Stamp::now(), is_traced: false };
        Self { log, process: Some(process) }
    }

    /// Of a forked child, whose number nobody tells. Dumped alone it would not be seen; but it gets only what it touches,
    /// and does that only while it runs.
    pub(crate) fn of_fork(&self, at: Stamp) -> Self {
        Self { log: self.log.fork(at), process: None }
    }

    /// The log.
    pub(crate) fn log(&self) -> &SpaceLog {
        &self.log
    }

    /// Whether somebody traces the process, as of the last few milliseconds.
    pub(crate) fn look(&mut self) -> bool {
        match &self.process {
            Some(process) if Instant::now() < process.next_look => process.is_traced,
            _ => self.look_now(),
        }
    }

    /// Whether somebody traces the process now.
    pub(crate) fn look_now(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        let now = Stamp::now();
        let is_traced = has_tracer(process.number);
        process.next_look = Instant::now() + LOOK_EVERY;
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
