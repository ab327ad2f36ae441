//! Detection of idle times: a mount frees cached memory some time after its last use. While there are no uses, no code
//! runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Uses of a cache, and the watcher that waits for their end.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// Whether there was a use since the watcher checked last.
    is_noted: AtomicBool,
    is_over: Mutex<bool>,
    changed: Condvar,
}

impl Uses {
    /// Notes a use. Costs a read of memory, except for the first use in each interval.
    pub(crate) fn note(&self) {
        if !self.is_noted.load(Ordering::Relaxed) && !self.is_noted.swap(true, Ordering::AcqRel) {
            let _watcher_waits = self.lock();
            self.changed.notify_all();
        }
    }

    /// Calls `tidy` at the end of each interval that follows a use, with true when the interval had no use; then waits
    /// for the next use. Returns at [`Self::end`].
    pub(crate) fn watch(&self, interval: Duration, mut tidy: impl FnMut(bool)) {
        let mut is_over = self.lock();
        let mut is_idle = false;
        loop {
            let asleep = |is_over: &mut bool| is_idle && !*is_over && !self.is_noted.load(Ordering::Acquire);
            is_over = self.changed.wait_while(is_over, asleep).expect("no thread panics while it has it");
            self.is_noted.store(false, Ordering::Release);
            let waited = self.changed.wait_timeout_while(is_over, interval, |is_over| !*is_over);
            is_over = waited.expect("no thread panics while it has it").0;
            if *is_over {
                return;
            }
            is_idle = !self.is_noted.load(Ordering::Acquire);
            drop(is_over);
            tidy(is_idle);
            is_over = self.lock();
        }
    }

    fn end(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    /// Returns a guard that ends [`Self::watch`] when it is dropped.
    pub(crate) fn end_at_drop(&self) -> impl Drop + '_ {
        struct End<'a>(&'a Uses);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        End(self)
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_over.lock().expect("no thread panics while it has it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    #[test]
    fn after_the_last_use_it_is_idle_once() {
        let uses = Uses::default();
        let (report, idle) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| uses.watch(Duration::from_millis(20), |is_idle| report.send(is_idle).unwrap()));
            let until_idle = || while !idle.recv().unwrap() {};
            until_idle();
            for _ in 0..3 {
                uses.note();
                until_idle();
                assert!(
                    idle.recv_timeout(Duration::from_millis(100)).is_err(),
                    "nothing runs while it is idle"
                );
            }
            uses.end();
        });
    }

    #[test]
    fn while_it_is_used_it_is_not_idle() {
        let uses = Uses::default();
        let (report, idle) = mpsc::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            scope.spawn(|| uses.watch(Duration::from_millis(20), |is_idle| report.send(is_idle).unwrap()));
            while idle.try_recv() != Ok(false) {
                uses.note();
                std::thread::yield_now();
                assert!(Instant::now() < deadline, "it never counts as used");
            }
            while !idle.recv().unwrap() {}
            uses.end();
        });
    }
}
