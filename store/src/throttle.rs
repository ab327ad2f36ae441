//! A bound on bytes a second for work in the background.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Limits work to a given average rate.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: Option<NonZeroU64>,
    due: Instant,
}

impl Throttle {
    /// At most this many bytes a second; `None`: unlimited.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { bytes_per_second, due: Instant::now() }
    }

    /// Accounts for `bytes` and waits until they are due.
    pub fn pass(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        // Unused time is no credit for a burst.
        self.due = self.due.max(now) + Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        while let Some(wait) = self.due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
        {
            std::thread::park_timeout(wait);
        }
    }
}
