//! The loop over all address spaces of one serve: events in, pages out.
//!
//! Order of a turn: read every queued event, apply all changes, answer all faults, and only when no fault waits load one
//! stretch ahead. A fault that meets a change in progress is kept and answered after the change was read. A copy of
//! every descriptor is in custody before the first page is filled, and until its address space has ended.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use store::{Error, Result};

use crate::report::ServeReport;
use crate::served::Served;
use crate::supervisor::{Custody, Held, lost};

/// How often an idle loop looks whether its address spaces still exist.
const IDLE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The same while a process is traced, whose dump may end any moment.
const TRACED: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Serves any number of address spaces from one thread.
#[derive(Debug)]
pub(crate) struct Handler<'a> {
    served: Vec<(Served, Option<Held>)>,
    custody: Option<&'a Custody>,
    report: ServeReport,
}

/// What a turn found on one of the foreign descriptors that it watched.
pub(crate) type Ready = bool;

impl<'a> Handler<'a> {
    /// Serves nothing yet.
    pub(crate) fn new(custody: Option<&'a Custody>) -> Self {
        Self { served: Vec::new(), custody, report: ServeReport::default() }
    }

    /// Serves one more address space, from the moment its descriptor is in custody.
    pub(crate) fn add(&mut self, served: Served) -> Result<()> {
        let held = self.custody.map(|custody| custody.hold(served.as_fd(), served.target())).transpose()?;
        self.add_held(served, held);
        Ok(())
    }

    /// Serves one more address space, whose descriptor has its place in custody already.
    pub(crate) fn add_held(&mut self, served: Served, held: Option<Held>) {
        self.report.spaces += 1;
        self.served.push((served, held));
    }

    /// Whether every address space has ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.served.is_empty()
    }

    /// What was done so far.
    pub(crate) fn report(&self) -> ServeReport {
        self.report
    }

    /// Nothing can go wrong in any of the address spaces any more: their owners are gone.
    pub(crate) fn end_all(&mut self) {
        self.served.iter_mut().for_each(|(served, _)| served.end());
        self.retire();
    }

    /// Ends those whose memory no longer exists.
    pub(crate) fn end_those_gone(&mut self) {
        self.served.iter_mut().for_each(|(served, _)| served.end_if_gone());
        self.retire();
    }

    /// One turn. Waits up to a second for something to do, and tells which of `others` became readable.
    ///
    /// # Errors
    /// When pages can be neither filled nor poisoned, or the supervisor is lost: stop serving, which stops the owners.
    pub(crate) fn turn(&mut self, others: &[BorrowedFd<'_>], prefetch: bool) -> Result<Vec<Ready>> {
        let is_waiting = self.served.iter().any(|(served, _)| served.has_waiting());
        let could_prefetch = prefetch && self.served.iter().any(|(served, _)| served.can_prefetch());
        let is_traced = self.served.iter_mut().fold(false, |any, (served, _)| served.look_for_tracer() | any);
        let timeout = match (is_waiting || could_prefetch, is_traced) {
            (true, _) => NO_WAIT,
            (false, true) => TRACED,
            (false, false) => IDLE,
        };
        let (ready, others_ready) = self.wait(others, &timeout)?;
        let has_events = ready.contains(&true);
        self.drain(&ready)?;
        for (served, _) in &mut self.served {
            served.answer_waiting(&mut self.report)?;
        }
        if self.served.iter().any(|(served, _)| served.has_waiting()) {
            // Whoever changes the address space needs the processor to finish.
            std::thread::yield_now();
        } else if !has_events && could_prefetch {
            self.prefetch();
        } else if !has_events {
            self.served.iter_mut().for_each(|(served, _)| served.end_if_gone());
        }
        self.served.iter_mut().for_each(|(served, _)| served.complete_if_full());
        self.retire();
        Ok(others_ready)
    }

    /// Polls the descriptors of all address spaces, the processes behind them, the others, and the line to the supervisor.
    fn wait(&mut self, others: &[BorrowedFd<'_>], timeout: &Timespec) -> Result<(Vec<Ready>, Vec<Ready>)> {
        let watched: Vec<usize> =
            (0..self.served.len()).filter(|index| self.served[*index].0.watched_target().is_some()).collect();
        let mut polled: Vec<PollFd<'_>> =
            Vec::with_capacity(others.len() + self.served.len() + watched.len());
        polled.extend(others.iter().map(|other| PollFd::from_borrowed_fd(*other, PollFlags::IN)));
        polled.extend(self.served.iter().map(|(served, _)| PollFd::new(served, PollFlags::IN)));
        let targets = watched.iter().filter_map(|index| self.served[*index].0.watched_target());
        polled.extend(targets.map(|target| PollFd::new(target, PollFlags::IN)));
        // Of this one only the end is of interest, and that is reported unasked.
        polled.extend(self.custody.map(|custody| PollFd::new(custody, PollFlags::empty())));
        match poll(&mut polled, Some(timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("cannot wait for faults", "poll", errno.into())),
        }
        if self.custody.is_some() && polled.last().is_some_and(|line| !line.revents().is_empty()) {
            // Should this process die now, nobody would keep zeroes from the owners.
            return Err(lost(std::io::ErrorKind::BrokenPipe.into()));
        }
        let ready: Vec<Ready> = polled.iter().map(|entry| !entry.revents().is_empty()).collect();
        let (others_ready, rest) = ready.split_at(others.len());
        let (served_ready, targets_ready) = rest.split_at(self.served.len());
        for (index, _) in watched.iter().zip(targets_ready).filter(|(_, is_ready)| **is_ready) {
            self.served[*index].0.target_ended();
        }
        Ok((served_ready.to_vec(), others_ready.to_vec()))
    }

    fn drain(&mut self, ready: &[Ready]) -> Result<()> {
        let mut children = Vec::new();
        for ((served, held), is_ready) in self.served.iter_mut().zip(ready) {
            if !*is_ready && !served.has_waiting() {
                continue;
            }
            let place = self.custody.zip(held.as_ref());
            served.drain(&mut self.report, |child| {
                let held =
                    place.map(|(custody, held)| custody.hold_forked(child.as_fd(), held)).transpose()?;
                children.push((child, held));
                Ok(())
            })?;
        }
        self.report.spaces += children.len() as u64;
        self.served.append(&mut children);
        Ok(())
    }

    /// One stretch for the first address space that still misses something.
    fn prefetch(&mut self) {
        if let Some((served, _)) = self.served.iter_mut().find(|(served, _)| served.can_prefetch()) {
            served.prefetch(&mut self.report);
        }
    }

    /// Lets go of what has ended.
    fn retire(&mut self) {
        let mut index = 0;
        while index < self.served.len() {
            if !self.served[index].0.has_ended() {
                index += 1;
                continue;
            }
            let (served, held) = self.served.swap_remove(index);
            self.report.never_brought += served.conclude();
            if let (Some(custody), Some(held)) = (self.custody, held) {
                custody.release(held);
            }
            drop(served);
        }
    }
}
