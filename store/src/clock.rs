//! The only wall clock and the only randomness of the store. Times are shown to people and used by retention; deletion
//! and ordering never read them (they use the collector's logical clock, [`crate::records::condemned`]).

use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time: seconds since 1970 (may be negative) and nanoseconds below one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// The wall clock, now.
pub fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Time { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(before) => Time { seconds: -(before.duration().as_secs() as i64), nanos: 0 },
    }
}

/// Random bytes from the kernel.
///
/// # Panics
/// When the kernel cannot provide randomness, which does not happen on Linux after boot.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}
