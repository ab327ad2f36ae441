//! A tier that runs a piece of code right before its n-th operation: the way to put one process's step between any two
//! of another's, without threads or time. Or it cannot be reached for a while, from that operation on.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::{Error, Kind, Object, ObjectInfo, Result, Tier};

type Step = Box<dyn FnOnce() + Send>;

/// Passes every operation on; see [`InterleavingTier::arm`] and [`InterleavingTier::fail`].
pub struct InterleavingTier {
    inner: Arc<dyn Tier>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    operations: u64,
    step: Option<(u64, Step)>,
    outage: Range<u64>,
}

impl InterleavingTier {
    /// A tier over `inner` with no step armed.
    pub fn new(inner: Arc<dyn Tier>) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::default() })
    }

    /// Runs `step` before the operation number `operation` from now, counting from 0.
    pub fn arm(&self, operation: u64, step: impl FnOnce() + Send + 'static) {
        *self.state() = State { step: Some((operation, Box::new(step))), ..State::default() };
    }

    /// Whether the armed step has not run.
    pub fn is_armed(&self) -> bool {
        self.state().step.is_some()
    }

    /// Fails the operations of these numbers from now, counting from 0, as a server that cannot be reached.
    pub fn fail(&self, outage: Range<u64>) {
        *self.state() = State { outage, ..State::default() };
    }

    /// Operations since it was last armed or set to fail.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn before_operation(&self) -> Result<()> {
        let mut state = self.state();
        let now = state.operations;
        state.operations += 1;
        if state.outage.contains(&now) {
            return Err(Error::new(Kind::Unavailable, "injected outage"));
        }
        let due = state.step.take_if(|(operation, _)| *operation == now);
        drop(state); // the step may use this tier
        if let Some((_, step)) = due {
            step();
        }
        Ok(())
    }
}

impl fmt::Debug for InterleavingTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InterleavingTier({:?})", self.inner)
    }
}

impl Tier for InterleavingTier {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn get(&self, key: &str) -> Result<Object> {
        self.before_operation()?;
        self.inner.get(key)
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.before_operation()?;
        self.inner.get_range(key, offset, len)
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        self.before_operation()?;
        self.inner.len_bytes(key)
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        self.before_operation()?;
        self.inner.put_if_absent(key, body)
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        self.before_operation()?;
        self.inner.compare_and_swap(key, expected, body)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.before_operation()?;
        self.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.before_operation()?;
        self.inner.delete(key)
    }

    fn make_durable(&self, prefix: &str) -> Result<()> {
        self.before_operation()?;
        self.inner.make_durable(prefix)
    }
}
