//! Times of the store and of the standard library, without overflow on either side.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::Time;

/// Nanoseconds in a second.
const SECOND: u32 = 1_000_000_000;

/// The time for the standard library; 1970 when its type cannot represent it.
pub(crate) fn to_system(time: Time) -> SystemTime {
    let (seconds, nanos) = (time.seconds.unsigned_abs(), Duration::from_nanos(time.nanos.into()));
    let at_second = match time.seconds {
        0.. => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        _ => UNIX_EPOCH.checked_sub(Duration::from_secs(seconds)),
    };
    at_second.and_then(|time| time.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// The time for the store, from one of the FUSE library, which before 1970 subtracts nanoseconds that should be added.
pub(crate) fn from_library(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => {
            let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
            Time { seconds, nanos: since.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            Time { seconds: 0_i64.saturating_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

/// The time `nanos`, less than a second, after `time`; at most the last time that can be represented.
pub(crate) fn later(time: Time, nanos: u32) -> Time {
    let sum = time.nanos + nanos;
    match (sum < SECOND, time.seconds.checked_add(1)) {
        (true, _) => Time { nanos: sum, ..time },
        (false, Some(seconds)) => Time { seconds, nanos: sum - SECOND },
        (false, None) => Time { nanos: SECOND - 1, ..time },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Time { seconds: -2, nanos: 250_000_000 };
        assert_eq!(to_system(time), UNIX_EPOCH - Duration::from_millis(1750));
        let as_the_library_says = UNIX_EPOCH - Duration::new(2, 250_000_000);
        assert_eq!(from_library(as_the_library_says), time);
        assert!(to_system(Time { seconds: i64::MIN, nanos: 5 }) <= UNIX_EPOCH, "and nothing overflows");
    }
    #[test]
    fn a_later_time_carries_into_seconds_and_stops_at_the_last_one() {
        let time = |seconds, nanos| Time { seconds, nanos };
        assert_eq!(later(time(-1, 3), 4), time(-1, 7));
        assert_eq!(later(time(-1, 999_999_999), 2), time(0, 1));
        assert_eq!(later(time(i64::MAX, 999_999_999), 1), time(i64::MAX, 999_999_999));
    }
}
