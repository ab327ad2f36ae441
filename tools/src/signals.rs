//! SIGINT and SIGTERM. By default they end the process at once: every write of the store is safe against being cut off there,
//! and a lock ends with its process. A command that holds something outside (a mount, a child) sets its own action.
//!
//! The exit code is 128 plus the signal's number, as shells expect.

use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals as SignalIterator;
use store::{Error, Result};

use crate::exit::complain;

type Action = Box<dyn Fn() + Send>;

/// The listening thread's handle.
pub struct Signals {
    action: Arc<Mutex<Option<Action>>>,
}

impl Signals {
    /// Starts the thread that waits for signals; it lives as long as the process.
    pub fn listen() -> Result<Signals> {
        let failed = |source| Error::io("cannot listen for signals", "SIGINT, SIGTERM", source);
        let mut arriving = SignalIterator::new([SIGINT, SIGTERM]).map_err(failed)?;
        let action = Arc::new(Mutex::new(None::<Action>));
        let current = Arc::clone(&action);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in arriving.forever() {
                    match current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                        Some(action) => action(),
                        None => end(signal),
                    }
                }
            })
            .map_err(failed)?;
        Ok(Signals { action })
    }

    /// From now on a signal does this, on the listening thread, and the process goes on.
    pub fn on_stop(&self, action: impl Fn() + Send + 'static) {
        *self.action.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(action));
    }
}

fn end(signal: i32) -> ! {
    complain("snapctl: interrupted; what was committed before is safe");
    std::process::exit(128 + signal)
}
