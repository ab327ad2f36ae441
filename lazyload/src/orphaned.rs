//! What is left of memory whose handler died, until nobody runs on it any more: who was killed ends soon; who escaped may
//! go on to its end, or to a page that is lost, for which it gets SIGBUS.

use std::ops::Range;
use std::time::{Duration, Instant};

use store::PAGE;

use crate::sys::{Event, Stop, UserFault, set_nonblocking};
use crate::target::waiting_for_pages;

/// How often killed address spaces are looked at until they have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What is read of one address space then: one that changes all the time must not keep the others waiting.
const EVENTS_AT_A_TIME: usize = 1000;
/// How often it is said that killing was not enough.
const NEXT_WORD: Duration = Duration::from_secs(3);

/// Returns when none of these address spaces exists any more.
pub(crate) fn outlast(mut alive: Vec<&UserFault>) {
    let mut forked: Vec<UserFault> = Vec::new();
    let mut next_word = Instant::now() + NEXT_WORD;
    loop {
        alive.retain(|space| space.is_alive());
        forked.retain(UserFault::is_alive);
        if alive.is_empty() && forked.is_empty() {
            return;
        }
        let children: Vec<UserFault> = alive.iter().copied().chain(&forked).flat_map(let_go).collect();
        forked.extend(children);
        if Instant::now() > next_word {
            let waiting = waiting_for_pages();
            tracing::error!(
                address_spaces = alive.len() + forked.len(),
                candidates = ?waiting.keys(),
                "processes still run without the handler and could not be killed; kill the resumed ones among them"
            );
            for space in alive.iter().copied().chain(&forked) {
                waiting.values().flatten().for_each(|range| mark_lost(space, range.clone()));
            }
            next_word = Instant::now() + NEXT_WORD;
        }
        // The end of an address space is not announced to whoever fills it.
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Reads what an address space tells of its changes: whoever makes one waits until that is read, and neither ends before
/// nor can have lost pages marked. Gives the children that were forked meanwhile.
fn let_go(space: &UserFault) -> Vec<UserFault> {
    let mut children = Vec::new();
    for _ in 0..EVENTS_AT_A_TIME {
        // Whoever has a copy may have changed that.
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

/// Has whoever touches what is missing in a range killed. Harmless to other address spaces than the one of `space`.
fn mark_lost(space: &UserFault, range: Range<u64>) {
    let mut next = range.start;
    while next < range.end {
        let filled = space.poison(next, range.end - next);
        next += filled.done_bytes;
        match filled.stop {
            None => {}
            Some(Stop::Exists) => next += PAGE as u64,
            // Nothing of this address space, or it is changing: there is a next time.
            Some(_) => break,
        }
    }
    // The kernel wakes whoever waits when it marks a page. Who met the page missing just before and waits since just after
    // is not woken by that, and the mark is there already when it is set again.
    if let Err(error) = space.wake(range.start, range.end - range.start) {
        tracing::debug!(%error, "whoever waits for a lost page is woken the next time");
    }
}
