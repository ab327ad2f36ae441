//! SIGINT, SIGTERM and SIGHUP. By default they end the process at once: every write of the store is safe against
//! interruption, and a lock ends with its process. A command that holds something outside (a mount, a child) sets its
//! own action.
//!
//! SIGXFSZ does nothing, so that a write beyond the largest file that a limit or a file system allows is an error of
//! that file and not the end of the process.
//!
//! The exit code is 128 plus the signal's number, as shells expect.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals as SignalIterator};
use store::Error;

use crate::exit::complain;

/// The action of a signal.
pub(crate) type Action = Box<dyn Fn() + Send>;

/// The listening thread's handle.
pub(crate) struct Signals {
    action: Arc<Mutex<Option<Action>>>,
    arriving: Handle,
}

impl Signals {
    /// Starts the thread that waits for signals; it lives as long as the process.
    pub(crate) fn listen() -> store::Result<Signals> {
        let failed = |source| Error::io("cannot listen for signals", "SIGINT, SIGTERM, SIGHUP", source);
        let mut arriving = SignalIterator::new([SIGINT, SIGTERM, SIGHUP, SIGXFSZ]).map_err(failed)?;
        let action = Arc::new(Mutex::new(None::<Action>));
        let current = Arc::clone(&action);
        let handle = arriving.handle();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in arriving.forever().filter(|signal| *signal != SIGXFSZ) {
                    match current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                        Some(action) => action(),
                        None => end(signal),
                    }
                }
            })
            .map_err(failed)?;
        Ok(Signals { action, arriving: handle })
    }

    /// Adds signals with the same action.
    ///
    /// # Errors
    /// When one cannot be caught.
    pub(crate) fn listen_to(&self, signals: &[i32]) -> store::Result<()> {
        let add = |signal: &i32| {
            let failed = |source| Error::io("cannot listen for a signal", signal, source);
            self.arriving.add_signal(*signal).map_err(failed)
        };
        signals.iter().try_for_each(add)
    }

    /// From now on a signal runs this action, on the listening thread, and the process goes on.
    pub(crate) fn on_stop(&self, action: impl Fn() + Send + 'static) {
        *self.lock() = Some(Box::new(action));
    }

    /// A signal that arrives during `begin` waits for it, and then runs the action that `begin` returned.
    ///
    /// # Errors
    /// Those of `begin`; the action of signals is then unchanged.
    pub(crate) fn on_stop_of<T, E>(&self, begin: impl FnOnce() -> Result<(T, Action), E>) -> Result<T, E> {
        let mut action = self.lock();
        let (made, on_stop) = begin()?;
        *action = Some(on_stop);
        Ok(made)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Action>> {
        self.action.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(signal: i32) -> ! {
    complain("snapctl: interrupted; what was committed before is safe");
    std::process::exit(128 + signal)
}
