//! Sessions of other hosts that have stopped renewing. One that did not renew for some runs of the collector, and for
//! some time, is fenced: its writer cannot commit any more. The time only favours slow hosts; chunks are safe because a
//! fenced writer cannot commit, however late it resumes.

use store::{Derived, Kind, Result, Store, clock, session};

/// Runs of the collector without a renewal.
const STALE_RUNS: u64 = 3;
/// Seconds without a renewal; sessions renew themselves each minute.
const STALE_SECONDS: i64 = 900;

/// The observed state of a session, and when it was first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    renewals: u64,
    epoch: u64,
    seconds: i64,
}

impl Seen {
    fn encode(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.renewals.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..].copy_from_slice(&self.seconds.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let ([renewals, epoch, seconds], []) = bytes.as_chunks::<8>() else { return None };
        Some(Self {
            renewals: u64::from_le_bytes(*renewals),
            epoch: u64::from_le_bytes(*epoch),
            seconds: i64::from_le_bytes(*seconds),
        })
    }

    /// The state to store after another look, and whether the session is stale.
    fn look_again(before: Option<Self>, now: Self) -> (Self, bool) {
        match before {
            // A clock that was set back proves nothing.
            Some(before) if before.renewals == now.renewals && before.seconds <= now.seconds => {
                let is_stale = now.epoch.saturating_sub(before.epoch) >= STALE_RUNS
                    && now.seconds.saturating_sub(before.seconds) >= STALE_SECONDS;
                (before, is_stale)
            }
            _ => (now, false),
        }
    }
}

/// Fences the stale sessions of other hosts. The state of each is kept in `table`; without it none is ever stale. An
/// upper's session has no process and is left alone.
///
/// # Errors
/// As the store's metadata tier.
pub(crate) fn fence_stale(store: &Store, table: &Derived, epoch: u64) -> Result<()> {
    let place = store.sessions();
    let foreign =
        |listed: &session::Listed| listed.record.host != place.host && listed.record.upper.is_none();
    for listed in session::alive(place, true)?.iter().filter(|listed| foreign(listed)) {
        let now = Seen { renewals: listed.record.renewals, epoch, seconds: clock::now().seconds };
        let before = match table.get(listed.key.as_bytes()) {
            Ok(bytes) => bytes.and_then(|bytes| Seen::decode(&bytes)),
            Err(error) if error.kind() == Kind::Unavailable => None,
            Err(error) => return Err(error),
        };
        let (seen, is_stale) = Seen::look_again(before, now);
        if !is_stale {
            table.put(listed.key.as_bytes(), &seen.encode())?;
        } else if session::fence(&*place.metadata_tier, listed)? {
            tracing::warn!(
                session = listed.key,
                purpose = listed.record.purpose,
                "fenced a session that stopped"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stood_still_over_runs_and_time_is_stale() {
        let seen = |renewals, epoch, seconds| Seen { renewals, epoch, seconds };
        let first = seen(5, 10, 1000);
        assert_eq!(Seen::look_again(None, first), (first, false));
        for (now, is_stale) in [
            (seen(5, 12, 9000), false),
            (seen(5, 13, 1899), false),
            (seen(5, 13, 1900), true),
            (seen(5, 13, 999), false),
            (seen(6, 13, 1900), false),
        ] {
            assert_eq!(Seen::look_again(Some(first), now).1, is_stale, "{now:?}");
        }
        assert_eq!(
            Seen::look_again(Some(first), seen(6, 13, 1900)).0,
            seen(6, 13, 1900),
            "the wait begins again"
        );
        assert_eq!(Seen::decode(&first.encode()), Some(first));
    }
}
