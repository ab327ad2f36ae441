//! The loop over all address spaces of one serve: events in, pages out.
//!
//! Order of a turn: read every queued event, apply all changes, answer all faults, and only when no fault waits load
//! one stretch ahead. A fault that meets a change in progress is kept and answered after the change was read. A copy of
//! every descriptor is in escrow before the first page is filled, and until its address space has ended.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use store::{Error, Result};

use crate::report::ServeReport;
use crate::served::Served;
use crate::supervisor::{Escrow, Receipt, lost};

/// How often an idle loop checks whether its address spaces still exist.
const IDLE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The same while a process is traced, whose dump may end any moment.
const TRACED: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Serves any number of address spaces from one thread.
#[derive(Debug)]
pub(crate) struct Handler<'a> {
    served: Vec<(Served, Option<Receipt>)>,
    escrow: Option<&'a Escrow>,
    report: ServeReport,
}

/// Whether a watched descriptor became readable.
pub(crate) type Ready = bool;

impl<'a> Handler<'a> {
    /// Serves nothing yet.
    pub(crate) fn new(escrow: Option<&'a Escrow>) -> Self {
        Self { served: Vec::new(), escrow, report: ServeReport::default() }
    }

    /// Serves one more address space, once its descriptor is in escrow.
    pub(crate) fn add(&mut self, served: Served) -> Result<()> {
        let receipt =
            self.escrow.map(|escrow| escrow.deposit(served.as_fd(), served.target())).transpose()?;
        self.add_deposited(served, receipt);
        Ok(())
    }

    /// Serves one more address space, whose descriptor is in escrow already.
    pub(crate) fn add_deposited(&mut self, served: Served, receipt: Option<Receipt>) {
        self.report.spaces += 1;
        self.served.push((served, receipt));
    }

    /// Whether every address space has ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.served.is_empty()
    }

    /// The report so far.
    pub(crate) fn report(&self) -> ServeReport {
        self.report
    }

    /// Ends all address spaces: their owners are gone.
    pub(crate) fn end_all(&mut self) {
        self.served.iter_mut().for_each(|(served, _)| served.end());
        self.retire();
    }

    /// Ends the address spaces that no longer exist.
    pub(crate) fn end_gone(&mut self) {
        self.served.iter_mut().for_each(|(served, _)| served.end_if_gone());
        self.retire();
    }

    /// One turn. Waits up to a second for something to do, and returns which of `others` became readable.
    ///
    /// # Errors
    /// When pages can be neither filled nor poisoned, or the supervisor is lost: stop serving, which stops the owners.
    pub(crate) fn turn(&mut self, others: &[BorrowedFd<'_>], prefetch: bool) -> Result<Vec<Ready>> {
        let is_waiting = self.served.iter().any(|(served, _)| served.has_waiting());
        let could_prefetch = prefetch && self.served.iter().any(|(served, _)| served.can_prefetch());
        let is_traced = self.served.iter_mut().fold(false, |any, (served, _)| served.check_tracer() | any);
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
            // The thread that changes the address space needs the processor to finish.
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

    /// Polls the descriptors of all address spaces, their processes, the others, and the connection to the supervisor.
    fn wait(&mut self, others: &[BorrowedFd<'_>], timeout: &Timespec) -> Result<(Vec<Ready>, Vec<Ready>)> {
        let watched: Vec<usize> =
            (0..self.served.len()).filter(|index| self.served[*index].0.watched_target().is_some()).collect();
        let mut polled: Vec<PollFd<'_>> =
            Vec::with_capacity(others.len() + self.served.len() + watched.len());
        polled.extend(others.iter().map(|other| PollFd::from_borrowed_fd(*other, PollFlags::IN)));
        polled.extend(self.served.iter().map(|(served, _)| PollFd::new(served, PollFlags::IN)));
        let targets = watched.iter().filter_map(|index| self.served[*index].0.watched_target());
        polled.extend(targets.map(|target| PollFd::new(target, PollFlags::IN)));
        // Only the end of the supervisor matters, which poll reports without being asked.
        polled.extend(self.escrow.map(|escrow| PollFd::new(escrow, PollFlags::empty())));
        match poll(&mut polled, Some(timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("cannot wait for faults", "poll", errno.into())),
        }
        if self.escrow.is_some() && polled.last().is_some_and(|escrow| !escrow.revents().is_empty()) {
            // Should this process die now, the owners would see zeroes.
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
        for ((served, receipt), is_ready) in self.served.iter_mut().zip(ready) {
            if !*is_ready && !served.has_waiting() {
                continue;
            }
            let deposit = self.escrow.zip(receipt.as_ref());
            served.drain(&mut self.report, |child| {
                let receipt = deposit
                    .map(|(escrow, parent)| escrow.deposit_forked(child.as_fd(), parent))
                    .transpose()?;
                children.push((child, receipt));
                Ok(())
            })?;
        }
        self.report.spaces += children.len() as u64;
        self.served.append(&mut children);
        Ok(())
    }

    /// Loads one stretch for the first address space that still misses pages.
    fn prefetch(&mut self) {
        if let Some((served, _)) = self.served.iter_mut().find(|(served, _)| served.can_prefetch()) {
            served.prefetch(&mut self.report);
        }
    }

    /// Drops the address spaces that have ended.
    fn retire(&mut self) {
        let mut index = 0;
        while index < self.served.len() {
            if !self.served[index].0.has_ended() {
                index += 1;
                continue;
            }
            let (served, receipt) = self.served.swap_remove(index);
            self.report.never_brought += served.conclude();
            if let (Some(escrow), Some(receipt)) = (self.escrow, receipt) {
                escrow.release(receipt);
            }
            drop(served);
        }
    }
}
