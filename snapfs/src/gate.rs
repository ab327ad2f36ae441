//! The queue of changes that must wait: no serving thread waits with them, so reads are answered.
//!
//! A caller of the kernel has one request at a time, so there are never more tasks than callers.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Threads that make the changes that waited once the gate opens.
const THREADS: usize = 4;

/// A change that waits.
struct Task {
    /// About how many bytes of files have to be stored again after the change.
    weight_bytes: u64,
    make: Box<dyn FnOnce() + Send>,
}

/// Lets changes in, or keeps them out.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    left: Condvar,
    came: Condvar,
}

#[derive(Default)]
struct State {
    /// How many callers keep changes out.
    closed: usize,
    /// How many changes are being made.
    inside: usize,
    waiting: VecDeque<Task>,
}

/// A change that is being made; it is over when this is dropped.
pub(crate) struct Inside<'a>(&'a Gate);

/// Keeps changes out until it is dropped.
#[derive(Debug)]
pub(crate) struct Closed(Arc<Gate>);

impl Gate {
    /// Permission to make a change now; `None` when it has to wait: see [`Self::run`].
    pub(crate) fn enter(&self) -> Option<Inside<'_>> {
        let mut state = self.state();
        if state.closed > 0 {
            return None;
        }
        state.inside += 1;
        Some(Inside(self))
    }

    /// Makes a change now, or when the gate opens; after it about `weight_bytes` bytes of files have to be stored
    /// again. Returns whether the change was made at once.
    pub(crate) fn run(&self, weight_bytes: u64, change: impl FnOnce() + Send + 'static) -> bool {
        let mut state = self.state();
        if state.closed > 0 {
            state.waiting.push_back(Task { weight_bytes, make: Box::new(change) });
            self.came.notify_one();
            return false;
        }
        state.inside += 1;
        drop(state);
        let _inside = Inside(self);
        change();
        true
    }

    /// For the caller that keeps changes out: makes some of the changes that wait or come within a time. The weight of
    /// all but the last is at most `weight_bytes`.
    pub(crate) fn let_through(&self, mut weight_bytes: u64, time: Duration) {
        let until = Instant::now() + time;
        while weight_bytes > 0 {
            let left = until.saturating_duration_since(Instant::now());
            let waited = self.came.wait_timeout_while(self.state(), left, |state| state.waiting.is_empty());
            let Some(task) = waited.unwrap_or_else(PoisonError::into_inner).0.waiting.pop_front() else {
                return;
            };
            weight_bytes = weight_bytes.saturating_sub(task.weight_bytes);
            (task.make)();
        }
    }

    /// Keeps changes out, and waits for those that are being made.
    pub(crate) fn close(self: &Arc<Self>) -> Closed {
        self.state().closed += 1;
        self.finish_closing()
    }

    /// As [`Self::close`]; `None` when another caller keeps changes out.
    pub(crate) fn try_close(self: &Arc<Self>) -> Option<Closed> {
        let mut state = self.state();
        if state.closed > 0 {
            return None;
        }
        state.closed += 1;
        drop(state);
        Some(self.finish_closing())
    }

    fn finish_closing(self: &Arc<Self>) -> Closed {
        let waited = self.left.wait_while(self.state(), |state| state.inside > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Closed(self.clone())
    }

    /// The next change that waits, entered.
    fn next(&self) -> Option<(Inside<'_>, Task)> {
        let mut state = self.state();
        if state.closed > 0 {
            return None;
        }
        let task = state.waiting.pop_front()?;
        state.inside += 1;
        Some((Inside(self), task))
    }

    fn run_waiting(&self) {
        while let Some((_inside, task)) = self.next() {
            (task.make)();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.inside -= 1;
        if state.inside == 0 && state.closed > 0 {
            self.0.left.notify_all();
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed -= 1;
        let threads = if state.closed > 0 { 0 } else { state.waiting.len().min(THREADS) };
        drop(state);
        for number in 0..threads {
            let gate = self.0.clone();
            // Named as serving threads, which they are: a panic in one ends the mount.
            let name = format!("fuser-waiting-{number}");
            if let Err(error) = std::thread::Builder::new().name(name).spawn(move || gate.run_waiting()) {
                tracing::warn!(%error, "changes that waited are made one after the other");
                self.0.run_waiting();
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "Gate({} inside, {} waiting)", state.inside, state.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn changes_wait_in_a_queue_while_the_gate_is_closed_and_are_made_when_it_opens() {
        let gate = Arc::new(Gate::default());
        let (made, seen) = mpsc::channel();
        let offer = |number: u32| {
            let made = made.clone();
            gate.run(10, move || made.send(number).unwrap())
        };
        assert!(offer(0));
        let closed = gate.close();
        assert!(gate.enter().is_none() && gate.try_close().is_none());
        assert!((1..100).all(|number| !offer(number)), "none is made, and no offer waits");
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [0]);
        gate.let_through(35, Duration::ZERO);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4], "as many as their weights allow");
        drop(closed);
        let mut rest: Vec<u32> = seen.iter().take(95).collect();
        rest.sort_unstable();
        assert!(rest.into_iter().eq(5..100));
    }

    #[test]
    fn closing_waits_for_changes_that_are_being_made() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().unwrap();
        let closer = gate.clone();
        let closing = std::thread::spawn(move || drop(closer.close()));
        while gate.enter().is_some() {
            std::thread::yield_now();
        }
        assert!(!closing.is_finished());
        drop(inside);
        closing.join().unwrap();
        assert!(gate.enter().is_some());
    }
}
