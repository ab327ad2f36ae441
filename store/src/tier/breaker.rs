//! A breaker in front of a remote tier. When the tier has failed to answer several times in a row, calls fail at once
//! for a while, so that an outage costs nothing to callers that can go on without the tier; then one call tries again,
//! and its success closes the breaker.

use super::{Guarantees, ObjectInfo, RangeRequest, Tier};
use crate::clock::Time;
use crate::error::{Error, Kind, Result};
use crate::host::object::Object;
use crate::sync::Mutex;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

/// Failures in a row that open the breaker.
const FAILURES_MAX: u32 = 2;
/// How long it stays open before one call tries again.
const COOL_DOWN: Duration = Duration::from_secs(5);

/// Passes calls on to a tier, but fails them for a while when it does not answer.
#[derive(Debug)]
pub struct Breaker {
    inner: Arc<dyn Tier>,
    cool_down: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// A closed breaker in front of `inner`.
    pub fn new(inner: Arc<dyn Tier>) -> Self {
        Self::with_cool_down(inner, COOL_DOWN)
    }

    /// A closed breaker that tries again after `cool_down`.
    pub fn with_cool_down(inner: Arc<dyn Tier>, cool_down: Duration) -> Self {
        Self { inner, cool_down, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether a call may go through now; the first one after the cool-down goes alone.
    fn admit(&self) -> Result<()> {
        let mut state = self.state();
        let now = Instant::now();
        match state.open_until {
            Some(until) if now < until => Err(Error::new(
                Kind::Unavailable,
                format!(
                    "tier does not answer and is given up for {:.0} s",
                    (until - now).as_secs_f64().ceil()
                ),
            )
            .object(self.inner.describe())),
            Some(_) => {
                state.open_until = Some(now + self.cool_down);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn settle(&self, answered: bool) {
        let mut state = self.state();
        if answered {
            if state.open_until.is_some() {
                tracing::info!(tier = self.inner.describe(), "tier answers again");
            }
            *state = State::default();
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_MAX {
            if state.open_until.is_none() {
                tracing::warn!(
                    tier = self.inner.describe(),
                    "tier does not answer; going on with what is local"
                );
            }
            state.open_until = Some(Instant::now() + self.cool_down);
        }
    }

    fn call<T>(&self, act: impl FnOnce(&dyn Tier) -> Result<T>) -> Result<T> {
        self.admit()?;
        let outcome = act(&*self.inner);
        self.settle(outcome.as_ref().err().is_none_or(|error| error.kind() != Kind::Unavailable));
        outcome
    }
}

impl Tier for Breaker {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn get(&self, key: &str) -> Result<Object> {
        self.call(|tier| tier.get(key))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.call(|tier| tier.get_range(key, offset, len))
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        self.call(|tier| tier.len_bytes(key))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        self.call(|tier| tier.put_if_absent(key, body))
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        self.call(|tier| tier.compare_and_swap(key, expected, body))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.call(|tier| tier.list(prefix))
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.call(|tier| tier.delete(key))
    }

    fn make_durable(&self, prefix: &str) -> Result<()> {
        self.call(|tier| tier.make_durable(prefix))
    }

    fn get_many(&self, requests: &[RangeRequest]) -> Vec<Result<Vec<u8>>> {
        if let Err(error) = self.admit() {
            let refusal = error.to_string();
            return requests.iter().map(|_| Err(Error::new(Kind::Unavailable, refusal.clone()))).collect();
        }
        let outcomes = self.inner.get_many(requests);
        let silent = |outcome: &Result<Vec<u8>>| {
            outcome.as_ref().err().is_some_and(|error| error.kind() == Kind::Unavailable)
        };
        self.settle(outcomes.is_empty() || !outcomes.iter().all(silent));
        outcomes
    }

    fn guarantees(&self) -> Result<Guarantees> {
        self.call(|tier| tier.guarantees())
    }

    fn touch(&self, key: &str) {
        self.inner.touch(key);
    }

    fn last_used(&self, key: &str) -> Result<Option<Time>> {
        self.call(|tier| tier.last_used(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::MemoryTier;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// A memory tier that counts calls and can stop answering.
    #[derive(Debug, Default)]
    struct Distant {
        inner: MemoryTier,
        silent: AtomicBool,
        calls: AtomicU32,
    }

    impl Tier for Distant {
        fn describe(&self) -> String {
            "distant".to_owned()
        }
        fn get(&self, key: &str) -> Result<Object> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            match self.silent.load(Ordering::SeqCst) {
                true => Err(Error::new(Kind::Unavailable, "silent")),
                false => self.inner.get(key),
            }
        }
        fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
            self.inner.get_range(key, offset, len)
        }
        fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
            self.inner.len_bytes(key)
        }
        fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
            self.inner.put_if_absent(key, body)
        }
        fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
            self.inner.compare_and_swap(key, expected, body)
        }
        fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
            self.inner.list(prefix)
        }
        fn delete(&self, key: &str) -> Result<()> {
            self.inner.delete(key)
        }
    }

    #[test]
    fn a_silent_tier_is_given_up_for_a_while_and_taken_back_by_one_call() {
        let distant = Arc::new(Distant::default());
        distant.put_if_absent("a", b"a").unwrap();
        let breaker = Breaker::with_cool_down(distant.clone(), Duration::from_millis(50));
        let calls = || distant.calls.load(Ordering::SeqCst);
        distant.silent.store(true, Ordering::SeqCst);
        for _ in 0..10 {
            assert_eq!(breaker.get("a").unwrap_err().kind(), Kind::Unavailable);
        }
        assert_eq!(calls(), FAILURES_MAX, "no call waits for a tier that was given up");
        distant.silent.store(false, Ordering::SeqCst);
        while breaker.get("a").is_err() {
            std::thread::yield_now();
        }
        assert_eq!(calls(), FAILURES_MAX + 1, "one call tried again");
        assert!(breaker.get("a").is_ok());
        assert_eq!(breaker.get("b").unwrap_err().kind(), Kind::NotFound, "an answer, and no silence");
        assert!(breaker.get("a").is_ok());
    }
}
