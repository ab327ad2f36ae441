//! A tier that fails: at one chosen mutating operation, once or for good, before or after it took effect.
//!
//! Mutating operations are puts, swaps and deletes, numbered from 0. Never reorders or tears: an operation is applied
//! completely or not at all, as [`Tier`] promises.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::{Error, Kind, Object, ObjectInfo, Result, Tier};

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes before it is applied: it and every later operation fails.
    PowerOffBefore,
    /// The power goes after it was applied and before it is reported.
    PowerOffAfter,
    /// It fails, unapplied; everything later works.
    FailOnce,
    /// It is applied but reported as failed; everything later works.
    FailOnceApplied,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::PowerOffBefore, Self::PowerOffAfter, Self::FailOnce, Self::FailOnceApplied];
}

/// Passes operations on to another tier until its fault is met.
#[derive(Debug)]
pub struct FaultTier {
    inner: Arc<dyn Tier>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    mutations: u64,
    plan: Option<(u64, Fault)>,
    met: bool,
    is_off: bool,
}

/// The outcome of one mutating operation.
enum Verdict {
    Apply,
    Fail,
    ApplyAndFail,
}

impl FaultTier {
    /// A tier over `inner` that never fails.
    pub fn faultless(inner: Arc<dyn Tier>) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::default() })
    }

    /// A tier over `inner` with a fault at the mutating operation of this number.
    pub fn new(inner: Arc<dyn Tier>, operation: u64, fault: Fault) -> Arc<Self> {
        let state = State { plan: Some((operation, fault)), ..State::default() };
        Arc::new(Self { inner, state: Mutex::new(state) })
    }

    /// Mutating operations so far.
    pub fn mutations(&self) -> u64 {
        self.state().mutations
    }

    /// Whether the fault has come.
    pub fn met(&self) -> bool {
        self.state().met
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verdict(&self) -> Verdict {
        let mut state = self.state();
        let number = state.mutations;
        state.mutations += 1;
        if state.is_off {
            return Verdict::Fail;
        }
        let Some((_, fault)) = state.plan.filter(|(operation, _)| *operation == number) else {
            return Verdict::Apply;
        };
        state.met = true;
        state.is_off = matches!(fault, Fault::PowerOffBefore | Fault::PowerOffAfter);
        match fault {
            Fault::PowerOffBefore | Fault::FailOnce => Verdict::Fail,
            Fault::PowerOffAfter | Fault::FailOnceApplied => Verdict::ApplyAndFail,
        }
    }

    fn mutate<T>(&self, apply: impl FnOnce(&dyn Tier) -> Result<T>) -> Result<T> {
        match self.verdict() {
            Verdict::Apply => apply(&*self.inner),
            Verdict::Fail => Err(failure()),
            Verdict::ApplyAndFail => apply(&*self.inner).and_then(|_| Err(failure())),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&dyn Tier) -> Result<T>) -> Result<T> {
        match self.state().is_off {
            true => Err(failure()),
            false => read(&*self.inner),
        }
    }
}

fn failure() -> Error {
    Error::new(Kind::Unavailable, "injected fault")
}

impl Tier for FaultTier {
    fn describe(&self) -> String {
        format!("{} with a fault", self.inner.describe())
    }

    fn get(&self, key: &str) -> Result<Object> {
        self.read(|tier| tier.get(key))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.read(|tier| tier.get_range(key, offset, len))
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        self.read(|tier| tier.len_bytes(key))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        self.mutate(|tier| tier.put_if_absent(key, body))
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        self.mutate(|tier| tier.compare_and_swap(key, expected, body))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.read(|tier| tier.list(prefix))
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.mutate(|tier| tier.delete(key))
    }

    fn make_durable(&self, prefix: &str) -> Result<()> {
        self.read(|tier| tier.make_durable(prefix))
    }
}
