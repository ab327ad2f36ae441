//! One address space being served: its descriptor, its state, and the faults that wait.
//!
//! Invariant: no page that has data ever becomes zero. While pages are missing the descriptor stays open; a value that
//! is dropped before its end kills the owner, or poisons the missing pages, before the descriptor closes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use store::{Error, Kind, PAGE, Result};

use crate::drive::{Outcome, drive};
use crate::fault::{AddressSpace, Answer, Change, Fill};
use crate::notes::Notes;
use crate::report::ServeReport;
use crate::resolver::Resolver;
use crate::sys::{Event, Stop, UserFault};
use crate::target::{Target, kill_tree};
use crate::wake_log::{Entry, Stamp};

const PAGE_BYTES: u64 = PAGE as u64;
/// Bytes of the huge pages that memory may be made of. The kernel fills no part of one.
pub(crate) const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Events that are read before faults are answered: a flood of events cannot starve the faults.
const EVENTS_PER_TURN: usize = 1024;

/// What happens to an address space whose handler gives up.
#[derive(Clone, Debug)]
pub(crate) enum Abandon {
    /// The process is killed.
    Kill(Arc<Target>),
    /// The missing pages are poisoned.
    Poison,
}

/// How an address space is served; it differs by protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServePolicy {
    /// A fault outside every region, as in a mapping that grew, is answered with zero instead of poison.
    pub outside_is_zero: bool,
    /// The descriptor is closed once no page is missing, instead of at the end of the owner.
    pub close_when_complete: bool,
    /// An owner that waits for a page that cannot be read is killed. Otherwise it gets SIGBUS, or an error from a
    /// system call, which a virtual machine monitor may take for a device's memory, so that its guest would run on with
    /// any bytes.
    pub kill_when_lost: bool,
}

/// One address space being served.
#[derive(Debug)]
pub(crate) struct Served {
    fault: UserFault,
    space: AddressSpace,
    resolver: Resolver,
    policy: ServePolicy,
    abandon: Abandon,
    /// The record for the next capture.
    notes: Option<Notes>,
    /// Bytes of the pages that the memory is made of.
    page_bytes: u64,
    /// A forked child: the process to kill is an ancestor and may have ended before it.
    is_fork: bool,
    /// The process to kill has not been seen to end.
    is_target_alive: bool,
    /// Addresses of pages whose threads wait for an answer.
    waiting: Vec<u64>,
    /// All data pages are filled and the ranges are unregistered.
    is_complete: bool,
    /// Nothing is left to do.
    has_ended: bool,
    /// Cleared when a page could not be read ahead of time.
    may_prefetch: bool,
}

impl AsFd for Served {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fault.as_fd()
    }
}

impl Served {
    /// Serves `space` by `fault` out of `resolver`.
    pub(crate) fn new(
        fault: UserFault,
        space: AddressSpace,
        resolver: Resolver,
        policy: ServePolicy,
        abandon: Abandon,
    ) -> Self {
        Self {
            fault,
            space,
            resolver,
            policy,
            abandon,
            notes: None,
            page_bytes: PAGE_BYTES,
            is_fork: false,
            is_target_alive: true,
            waiting: Vec::new(),
            is_complete: false,
            has_ended: false,
            may_prefetch: true,
        }
    }

    /// Keeps a record for the next capture.
    pub(crate) fn keep_notes(&mut self, notes: Notes) {
        self.notes = Some(notes);
    }

    /// Checks whether its process is traced, which a dump begins and ends with.
    pub(crate) fn check_tracer(&mut self) -> bool {
        !self.is_complete && self.notes.as_mut().is_some_and(Notes::check)
    }

    /// The same for memory made of pages of `page_bytes`, such as [`HUGE_PAGE_BYTES`].
    pub(crate) fn with_pages_of(mut self, page_bytes: u64) -> Self {
        self.page_bytes = page_bytes;
        self
    }

    /// The process that would be killed if this address space were abandoned.
    pub(crate) fn target(&self) -> Option<&Target> {
        match &self.abandon {
            Abandon::Kill(target) => Some(target),
            Abandon::Poison => None,
        }
    }

    /// The same, unless its end was seen already.
    pub(crate) fn watched_target(&self) -> Option<&Target> {
        self.target().filter(|_| self.is_target_alive)
    }

    /// Notes that the process to kill has ended; the address space usually ends with it, except that of a forked child.
    pub(crate) fn target_ended(&mut self) {
        self.is_target_alive = false;
        self.end_if_gone();
    }

    /// Whether nothing is left to do.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether a fault waits for its answer.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether pages can be loaded ahead.
    pub(crate) fn can_prefetch(&self) -> bool {
        self.may_prefetch && !self.has_ended && !self.space.is_complete()
    }

    /// Ends it: its owner is gone.
    pub(crate) fn end(&mut self) {
        self.has_ended = true;
    }

    /// Ends it if the address space no longer exists.
    pub(crate) fn end_if_gone(&mut self) {
        self.has_ended |= !self.fault.is_alive();
    }

    /// Reads the queued events and applies them. A forked child is passed to `adopt` before the next event is read:
    /// until its descriptor is in escrow, the death of this process would show the child zeroes.
    pub(crate) fn drain(
        &mut self,
        report: &mut ServeReport,
        mut adopt: impl FnMut(Self) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..EVENTS_PER_TURN {
            // Taken before the event is read: until then its process cannot be dumped.
            let at = Stamp::now();
            let Some(event) = self.fault.read()? else { break };
            if let Some(child) = self.apply(event, at, report) {
                adopt(child)?;
            }
        }
        Ok(())
    }

    /// Applies one event; returns a forked child.
    fn apply(&mut self, event: Event, at: Stamp, report: &mut ServeReport) -> Option<Self> {
        match event {
            Event::Fault { address } => {
                report.faults += 1;
                self.waiting.push(address - address % self.page_bytes);
            }
            Event::Remove { start, end } => {
                report.removed_pages += end.saturating_sub(start) / PAGE_BYTES;
                self.change(Change::Remove { start, end }, at);
            }
            Event::Unmap { start, end } => self.change(Change::Unmap { start, end }, at),
            Event::Remap { source, target, len_bytes } => {
                self.change(Change::Remap { source, target, len_bytes }, at);
            }
            Event::Fork(fault) => return Some(self.fork(fault, at)),
        }
        None
    }

    fn change(&mut self, change: Change, at: Stamp) {
        let makes_a_difference = self.space.change(change);
        if let Some(notes) = self.notes.as_ref().filter(|_| makes_a_difference && !self.is_complete) {
            notes.log().note(at, change.into());
        }
    }

    /// The child starts from the parent's state at the moment of the fork.
    fn fork(&self, fault: UserFault, at: Stamp) -> Self {
        let mut child =
            Self::new(fault, self.space.forked(), self.resolver.fork(), self.policy, self.abandon.clone());
        child.notes = self.notes.as_ref().map(|notes| notes.of_fork(at));
        child.is_fork = true;
        // A parent shares pages with its children; prefetch would give each child its own copy. They get what they
        // touch.
        child.may_prefetch = false;
        child.is_target_alive = self.is_target_alive;
        child
    }

    /// Answers all faults that wait, then fills the neighbours of their pages. A fault that meets a change in progress
    /// keeps waiting.
    ///
    /// # Errors
    /// When a page can neither be filled nor poisoned.
    pub(crate) fn answer_waiting(&mut self, report: &mut ServeReport) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_unstable();
        waiting.dedup();
        for (index, address) in waiting.iter().enumerate() {
            match self.answer(*address, report)? {
                Outcome::Done => {}
                Outcome::Again => {
                    self.waiting.extend_from_slice(&waiting[index..]);
                    return Ok(());
                }
                Outcome::Gone => {
                    self.has_ended = true;
                    return Ok(());
                }
                Outcome::Failed(errno) => return Err(refused(*address, errno)),
            }
        }
        if !self.is_complete && !self.is_huge() {
            waiting.iter().for_each(|address| self.fill_neighbours(*address, report));
        }
        Ok(())
    }

    /// Fills the missing pages around a page that was answered. No fault waits for them, so a failure is left to the
    /// fault that one day does.
    fn fill_neighbours(&mut self, address: u64, report: &mut ServeReport) {
        for fill in self.space.neighbours(address).into_iter().flatten() {
            match self.copy(&fill) {
                Ok((_, filled_pages)) => report.pages += filled_pages,
                Err(error) => tracing::debug!(%error, address, "neighbours of a page were not filled"),
            }
        }
    }

    fn answer(&mut self, address: u64, report: &mut ServeReport) -> Result<Outcome> {
        if self.is_complete {
            self.fault.wake(address, self.page_bytes)?;
            return Ok(Outcome::Done);
        }
        if self.is_huge() {
            return self.answer_huge(address, report);
        }
        match self.space.answer(address) {
            Answer::Copy(fill) => self.copy_or_poison(&fill, report),
            Answer::Zero { start, len_bytes } => self.zero(start, len_bytes, report),
            Answer::Outside if self.policy.outside_is_zero => self.zero(address, PAGE_BYTES, report),
            Answer::Outside => {
                tracing::error!(address, "a fault lies outside all regions of the image");
                self.lose(address, PAGE_BYTES, report)
            }
        }
    }

    fn is_huge(&self) -> bool {
        self.page_bytes != PAGE_BYTES
    }

    /// The same for a huge page, which is made of many pages of the image.
    fn answer_huge(&mut self, address: u64, report: &mut ServeReport) -> Result<Outcome> {
        let failure = match self.copy_huge(address) {
            Ok((Outcome::Failed(errno), _)) => refused(address, errno),
            Ok((outcome, (data_pages, zero_pages))) => {
                report.pages += data_pages;
                report.zero_pages += zero_pages;
                return Ok(outcome);
            }
            Err(error) => error,
        };
        tracing::error!(address, bytes = self.page_bytes, %failure, "a page is lost");
        let outcome = self.lose(address, self.page_bytes, report)?;
        if outcome == Outcome::Done {
            self.space.filled_range(address, address + self.page_bytes);
        }
        Ok(outcome)
    }

    /// Fills a huge page with the image's bytes, and with zero where the image has none or they were released. Returns
    /// how many pages of the image were data and how many zero.
    ///
    /// # Errors
    /// Those of reading the store.
    fn copy_huge(&mut self, address: u64) -> Result<(Outcome, (u64, u64))> {
        let mut bytes = vec![0; self.page_bytes as usize];
        let mut data_pages = 0;
        for (page, start) in bytes.chunks_exact_mut(PAGE).zip((address..).step_by(PAGE)) {
            if let Answer::Copy(fill) = self.space.answer(start) {
                let (group, range) = self.resolver.read(&fill)?;
                page.copy_from_slice(&group[range]);
                data_pages += 1;
            }
        }
        let outcome = match self.fault.copy(address, &bytes).stop {
            None => Outcome::Done,
            Some(Stop::Exists | Stop::Absent) => {
                self.fault.wake(address, self.page_bytes)?;
                Outcome::Done
            }
            Some(Stop::Again) => Outcome::Again,
            Some(Stop::Gone) => Outcome::Gone,
            Some(Stop::Failed(errno)) => Outcome::Failed(errno),
        };
        if outcome != Outcome::Done {
            return Ok((outcome, (0, 0)));
        }
        self.space.filled_range(address, address + self.page_bytes);
        Ok((outcome, (data_pages, self.page_bytes / PAGE_BYTES - data_pages)))
    }

    /// Fills with the image's bytes; when those cannot be read, the pages are marked lost.
    fn copy_or_poison(&mut self, fill: &Fill, report: &mut ServeReport) -> Result<Outcome> {
        let failure = match self.copy(fill) {
            Ok((Outcome::Failed(errno), _)) => refused(fill.address, errno),
            Ok((outcome, filled_pages)) => {
                report.pages += filled_pages;
                return Ok(outcome);
            }
            Err(error) => error,
        };
        tracing::error!(address = fill.address, pages = fill.page_count, %failure, "pages are lost");
        let outcome = self.lose(fill.address, u64::from(fill.page_count) * PAGE_BYTES, report)?;
        if outcome == Outcome::Done {
            self.space.filled(fill, 0..fill.page_count);
        }
        Ok(outcome)
    }

    /// # Errors
    /// Those of reading the store.
    fn copy(&mut self, fill: &Fill) -> Result<(Outcome, u64)> {
        let (group, range) = self.resolver.read(fill)?;
        let bytes = &group[range];
        let (fault, space) = (&self.fault, &mut self.space);
        drive(
            fault,
            fill.address..fill.address + bytes.len() as u64,
            PAGE_BYTES,
            |part| {
                let place = |address: u64| (address - fill.address) as usize;
                fault.copy(part.start, &bytes[place(part.start)..place(part.end)])
            },
            |part| {
                let place = |address: u64| ((address - fill.address) / PAGE_BYTES) as u32;
                space.filled(fill, place(part.start)..place(part.end));
            },
        )
    }

    fn zero(&mut self, start: u64, len_bytes: u64, report: &mut ServeReport) -> Result<Outcome> {
        let zero = |part: std::ops::Range<u64>| self.fault.zero(part.start, part.end - part.start);
        let (outcome, filled_pages) = drive(&self.fault, start..start + len_bytes, PAGE_BYTES, zero, drop)?;
        report.zero_pages += filled_pages;
        Ok(outcome)
    }

    /// Marks pages that cannot be read as lost, and kills the owner if the policy says so.
    fn lose(&mut self, start: u64, len_bytes: u64, report: &mut ServeReport) -> Result<Outcome> {
        if self.policy.kill_when_lost
            && let Abandon::Kill(target) = &self.abandon
            && report.killed.is_none()
        {
            report.killed = Some(target.number());
            kill_tree(target, &mut Vec::new()).1?;
        }
        // Also for a killed process: the kernel may wait for the page on its behalf, and the process could not end.
        let poison = |part: std::ops::Range<u64>| self.fault.poison(part.start, part.end - part.start);
        let (outcome, _) = drive(&self.fault, start..start + len_bytes, self.page_bytes, poison, drop)?;
        if outcome != Outcome::Again {
            report.poisoned += len_bytes / PAGE_BYTES;
        }
        Ok(outcome)
    }

    /// Loads one stretch that no fault asked for yet.
    pub(crate) fn prefetch(&mut self, report: &mut ServeReport) {
        if !self.can_prefetch() {
            return;
        }
        let Some(fill) = self.space.prefetch() else { return };
        let copied = match self.is_huge() {
            true => self
                .copy_huge(fill.address - fill.address % self.page_bytes)
                .map(|(outcome, (data_pages, _))| (outcome, data_pages)),
            false => self.copy(&fill),
        };
        match copied {
            Ok((Outcome::Done, filled_pages)) => report.prefetched += filled_pages,
            Ok((Outcome::Again, _)) => std::thread::yield_now(),
            Ok((Outcome::Gone, _)) => self.has_ended = true,
            // No fault waits for these pages; one that does later has its own attempt and answer.
            Ok((Outcome::Failed(errno), _)) => self.stop_prefetch(&refused(fill.address, errno)),
            Err(error) => self.stop_prefetch(&error),
        }
    }

    fn stop_prefetch(&mut self, error: &Error) {
        tracing::warn!(%error, "prefetch stopped");
        self.may_prefetch = false;
    }

    /// Unregisters the memory once no data page is missing: the kernel then answers faults by itself, with zero, and
    /// the owner no longer depends on this process. While the owner is traced this waits: a dump that began before the
    /// last page came must find all changes on record.
    pub(crate) fn complete_if_full(&mut self) {
        if self.has_ended || !self.space.is_complete() {
            return;
        }
        if !self.is_complete {
            if self.notes.as_mut().is_some_and(Notes::check_now) {
                return;
            }
            // Taken after the check: a dump that ended before the check is older than this stamp.
            let at = Stamp::now();
            for region in self.space.regions() {
                if let Err(error) = self.fault.unregister(region.start, region.len_bytes) {
                    // Faults in the range are answered, with zero, until a later attempt succeeds.
                    tracing::debug!(%error, start = region.start, "a range stays registered");
                    return;
                }
            }
            self.is_complete = true;
            if let Some(notes) = &self.notes {
                notes.log().note(at, Entry::Complete);
            }
        }
        // A thread that began a change earlier waits until its event is read, and a child that it forks may miss pages.
        // The owner may have a copy of the descriptor, so closing this one would not end such a wait.
        self.has_ended = self.policy.close_when_complete && !self.fault.is_changing();
    }

    /// Records the end, and returns how many pages the owner never got: 0 for a forked child, which seldom uses all
    /// that it inherits.
    pub(crate) fn conclude(&self) -> u64 {
        if self.is_complete {
            return 0;
        }
        let missing_pages = self.space.missing_pages();
        if let Some(notes) = &self.notes {
            notes.log().note(Stamp::now(), Entry::Ended { missing_pages });
        }
        if self.is_fork { 0 } else { missing_pages }
    }

    /// Marks all missing pages as lost.
    ///
    /// # Errors
    /// When the kernel cannot poison.
    fn poison_rest(&mut self) -> Result<()> {
        for region in self.space.regions().to_vec() {
            let poison = |part: std::ops::Range<u64>| self.fault.poison(part.start, part.end - part.start);
            loop {
                match drive(&self.fault, region.start..region.end(), self.page_bytes, poison, drop)?.0 {
                    Outcome::Done | Outcome::Gone => break,
                    // Events are read only so that the kernel continues; their content no longer matters.
                    Outcome::Again => while self.fault.read()?.is_some() {},
                    Outcome::Failed(errno) => return Err(refused(region.start, errno)),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.has_ended || self.is_complete {
            return;
        }
        let stopped = match self.abandon.clone() {
            Abandon::Kill(target) if self.is_fork => target.kill_tree().and_then(|()| self.poison_rest()),
            Abandon::Kill(target) => target.kill_tree(),
            Abandon::Poison => self.poison_rest(),
        };
        if let Err(error) = stopped {
            // Continuing would show zero in place of data: nothing is worse.
            tracing::error!(%error, "memory can be neither served nor stopped");
            std::process::abort();
        }
    }
}

fn refused(address: u64, errno: Errno) -> Error {
    Error::new(Kind::Unavailable, "the kernel refused to fill a page")
        .object(format!("{address:#x}"))
        .caused_by(std::io::Error::from(errno))
}
