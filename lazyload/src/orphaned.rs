//! Orphaned memory: address spaces whose handler died, until the last of them has ended. A killed process ends soon;
//! one that escaped may run on to its end, or to a page that is lost, for which it gets SIGBUS.

use std::ops::Range;
use std::time::{Duration, Instant};

use store::PAGE;

use crate::sys::{Event, Stop, UserFault, set_nonblocking};
use crate::target::waiting_for_pages;

/// How often orphaned address spaces are checked until they have ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Events read from one address space in each check: one that changes all the time must not keep the others waiting.
const EVENTS_PER_CHECK: usize = 1000;
/// How often the log repeats that killing was not enough.
const LOG_INTERVAL: Duration = Duration::from_secs(3);

/// Returns when none of these address spaces, and none of their forked children, exists any more.
pub(crate) fn wait_for_end(mut alive: Vec<&UserFault>) {
    let mut forked: Vec<UserFault> = Vec::new();
    let mut next_log = Instant::now() + LOG_INTERVAL;
    loop {
        alive.retain(|space| space.is_alive());
        forked.retain(UserFault::is_alive);
        if alive.is_empty() && forked.is_empty() {
            return;
        }
        let children: Vec<UserFault> = alive.iter().copied().chain(&forked).flat_map(drain_events).collect();
        forked.extend(children);
        if Instant::now() > next_log {
            let waiting = waiting_for_pages();
            tracing::error!(
                address_spaces = alive.len() + forked.len(),
                candidates = ?waiting.keys(),
                "processes still run without the handler and could not be killed; kill the resumed ones among them"
            );
            for space in alive.iter().copied().chain(&forked) {
                waiting.values().flatten().for_each(|range| mark_lost(space, range.clone()));
            }
            next_log = Instant::now() + LOG_INTERVAL;
        }
        // The end of an address space is not announced to the process that fills it.
        std::thread::sleep(CHECK_INTERVAL);
    }
}

/// Reads the queued events of an address space: until its event is read, the thread that made a change waits, cannot
/// end, and cannot have lost pages marked. Returns the children that were forked meanwhile.
fn drain_events(space: &UserFault) -> Vec<UserFault> {
    let mut children = Vec::new();
    for _ in 0..EVENTS_PER_CHECK {
        // Another process with a copy of the descriptor may have made it blocking.
        match set_nonblocking(space).and_then(|()| space.read()) {
            Ok(Some(Event::Fork(child))) => children.push(child),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "an address space is looked at again later");
                break;
            }
        }
    }
    children
}

/// Marks the missing pages of a range as lost: a process that touches one gets SIGBUS. Has no effect on other address
/// spaces than that of `space`.
fn mark_lost(space: &UserFault, range: Range<u64>) {
    let mut next = range.start;
    while next < range.end {
        let filled = space.poison(next, range.end - next);
        next += filled.done_bytes;
        match filled.stop {
            None => {}
            Some(Stop::Exists) => next += PAGE as u64,
            // The range is not of this address space, or that is changing: the next round tries again.
            Some(_) => break,
        }
    }
    // Marking wakes the threads that wait for the page. One that found the page missing just before and began to wait
    // just after is not woken by it, and marking the page a second time wakes no thread.
    if let Err(error) = space.wake(range.start, range.end - range.start) {
        tracing::debug!(%error, "threads that wait for a lost page are woken the next time");
    }
}
