//! Retries: the one place that decides whether, when and how often. The client's own retries are off.
//!
//! Waits are drawn evenly from nothing to a limit that doubles with every attempt (so that many hosts do not come back
//! together), and are at least as long as the server asked. Number of attempts and time of a call are bounded.

use super::failure::Failure;
use super::settings::Patience;
use crate::clock;
use crate::error::{Error, Result};
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// If a server asks for a longer wait, the call is not retried.
const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(30);

/// One call of a tier, as described in errors and events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    /// The operation: "get", "put", ...
    pub verb: &'static str,
    /// Bucket, prefix and key.
    pub object: &'a str,
    /// Bytes that one request may move.
    pub bytes: u64,
}

/// Passed to an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// An earlier attempt failed after it may have been applied: the stored object may be its result.
    pub is_unsure: bool,
}

impl Patience {
    /// The time limit of one request that moves this many bytes.
    fn request_for(&self, bytes: u64) -> Duration {
        self.request + Duration::from_secs(bytes >> 20)
    }

    /// The longest wait after the attempt of this number, counted from 1.
    fn wait_limit(&self, attempt: u32) -> Duration {
        let factor = 1u32.checked_shl(attempt - 1).unwrap_or(u32::MAX);
        self.first_wait.saturating_mul(factor).min(self.longest_wait)
    }
}

/// Makes calls with retries, and no more requests at once than allowed.
#[derive(Debug)]
pub(super) struct Caller {
    patience: Patience,
    permits: Semaphore,
}

impl Caller {
    /// At most `parallelism` requests under way.
    pub(super) fn new(patience: Patience, parallelism: usize) -> Self {
        Self { patience, permits: Semaphore::new(parallelism) }
    }

    /// Calls `attempt` until it succeeds, fails for good, or the limits are reached. Waiting for a turn is not counted.
    ///
    /// # Errors
    /// The attempt's own; after the last one it reports how many there were and how long they took.
    pub(super) async fn run<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        call: Call<'_>,
        mut attempt: impl FnMut(Attempt) -> F,
    ) -> Result<T> {
        let bound = self.patience.request_for(call.bytes);
        let mut is_unsure = false;
        let mut spent = Duration::ZERO;
        for number in 1.. {
            let permit = self.permits.acquire().await.expect("it is never closed");
            let start = Instant::now();
            let left = self.patience.call.max(bound).saturating_sub(spent);
            let outcome = tokio::time::timeout(bound.min(left), attempt(Attempt { is_unsure })).await;
            drop(permit);
            spent += start.elapsed();
            let failure = match outcome {
                Ok(Ok(value)) => {
                    if number > 1 {
                        let seconds = spent.as_secs_f64();
                        tracing::info!(
                            call.verb,
                            call.object,
                            attempts = number,
                            seconds,
                            "succeeded at last"
                        );
                    }
                    return Ok(value);
                }
                Ok(Err(failure)) => failure,
                Err(_elapsed) => Failure::timeout(start.elapsed()),
            };
            let (error, asked) = match failure {
                Failure::Final(error) | Failure::Denied(error) => return Err(error.object(call.object)),
                Failure::Again { error, wait, may_be_applied } => {
                    is_unsure |= may_be_applied;
                    (error, wait.unwrap_or_default())
                }
            };
            let wait = asked.max(jittered(self.patience.wait_limit(number)));
            let is_late = spent + wait >= self.patience.call || wait > LONGEST_ASKED_WAIT;
            if number >= self.patience.attempts || is_late {
                return Err(given_up(call, number, spent, error));
            }
            let wait_ms = wait.as_millis() as u64;
            tracing::debug!(call.verb, call.object, attempt = number, wait_ms, %error, "will try again");
            tokio::time::sleep(wait).await;
            spent += wait;
        }
        unreachable!("the loop ends by returning")
    }
}

fn given_up(call: Call<'_>, attempts: u32, elapsed: Duration, last: Error) -> Error {
    let seconds = elapsed.as_secs_f64();
    let times = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    let what = format!("cannot {} after {times} in {seconds:.1} s", call.verb);
    Error::new(last.kind(), what).object(call.object).caused_by(last)
}

/// A wait between nothing and `limit`.
fn jittered(limit: Duration) -> Duration {
    let fraction = f64::from(u32::from_le_bytes(clock::random_bytes())) / f64::from(u32::MAX);
    limit.mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::cell::RefCell;

    const CALL: Call<'static> = Call { verb: "get", object: "s3://b/key", bytes: 0 };

    fn patience() -> Patience {
        Patience {
            attempts: 4,
            first_wait: Duration::from_millis(1),
            request: Duration::from_millis(200),
            ..Patience::default()
        }
    }

    fn again(may_be_applied: bool, wait: Option<Duration>) -> Failure {
        Failure::Again { error: Error::new(Kind::Unavailable, "status 503"), wait, may_be_applied }
    }

    /// Runs until the outcomes are used up; returns the result and the attempts' `is_unsure`.
    fn tried(patience: &Patience, outcomes: Vec<Result<u32, Failure>>) -> (Result<u32>, Vec<bool>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (outcomes, seen) = (RefCell::new(outcomes.into_iter()), RefCell::new(Vec::new()));
        let caller = Caller::new(*patience, 1);
        let result = runtime.block_on(caller.run(CALL, |attempt| {
            seen.borrow_mut().push(attempt.is_unsure);
            let outcome = outcomes.borrow_mut().next();
            async move {
                match outcome {
                    Some(outcome) => outcome,
                    None => std::future::pending().await,
                }
            }
        }));
        (result, seen.into_inner())
    }

    #[test]
    fn it_is_tried_again_until_it_succeeds_and_told_what_it_may_have_done() {
        let (result, seen) = tried(&patience(), vec![Err(again(false, None)), Err(again(true, None)), Ok(7)]);
        assert_eq!(result.unwrap(), 7);
        assert_eq!(seen, [false, false, true]);
    }

    #[test]
    fn attempts_are_bounded_and_told() {
        let (result, seen) = tried(&patience(), (0..9).map(|_| Err(again(true, None))).collect());
        let text = result.unwrap_err().to_string();
        assert_eq!(seen.len(), 4);
        assert!(text.starts_with("cannot get after 4 attempts in 0."), "{text}");
        assert!(text.contains("s3://b/key") && text.contains("status 503"), "{text}");
    }

    #[test]
    fn time_is_bounded_too() {
        let patience =
            Patience { request: Duration::from_millis(50), call: Duration::from_millis(120), ..patience() };
        let (result, seen) = tried(&patience, Vec::new());
        assert_eq!(result.unwrap_err().kind(), Kind::Unavailable);
        assert!((2..=3).contains(&seen.len()), "{seen:?}");
        assert!(seen[1], "a request without an answer may have been applied");
    }

    #[test]
    fn what_is_final_is_not_tried_again() {
        let (result, seen) =
            tried(&patience(), vec![Err(Failure::Final(Error::invalid("status 403"))), Ok(1)]);
        assert_eq!(result.unwrap_err().kind(), Kind::Invalid);
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn a_server_is_waited_for_as_long_as_it_asks_within_reason() {
        let start = Instant::now();
        let asked = Duration::from_millis(80);
        assert_eq!(tried(&patience(), vec![Err(again(false, Some(asked))), Ok(1)]).0.unwrap(), 1);
        assert!(start.elapsed() >= asked);
        let asked = Duration::from_secs(3600);
        assert_eq!(tried(&patience(), vec![Err(again(false, Some(asked))), Ok(1)]).1.len(), 1);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn waits_grow_to_their_limit() {
        let patience = Patience::default();
        assert_eq!(patience.wait_limit(1), patience.first_wait);
        assert_eq!(patience.wait_limit(3), patience.first_wait * 4);
        assert_eq!(patience.wait_limit(30), patience.longest_wait);
        assert_eq!(patience.wait_limit(300), patience.longest_wait);
    }
}
