//! A tier that holds a commit until a test lets it go on, across processes and without time: two pipes with names.

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{Object, ObjectInfo, Result, Tier};

/// The pipe on which the held process reports, and the pipe that releases it.
#[derive(Clone, Debug)]
pub struct Hold {
    held: PathBuf,
    go: PathBuf,
}

impl Hold {
    /// The pipes in `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Self { held: directory.join("held"), go: directory.join("go") }
    }

    /// Makes the pipes.
    pub fn make(&self) {
        for pipe in [&self.held, &self.go] {
            mknodat(CWD, pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        }
    }

    /// Returns once the other process waits at its commit.
    pub fn wait(&self) {
        File::open(&self.held).expect("the pipe is there");
    }

    /// Releases it.
    pub fn release(&self) {
        File::create(&self.go).expect("the pipe is there");
    }

    /// Opening a pipe waits for the other side.
    fn stand(&self) {
        File::create(&self.held).expect("the pipe is there");
        File::open(&self.go).expect("the pipe is there");
    }
}

/// Passes every operation on, and waits at each snapshot record until it is released.
pub struct HoldTier {
    inner: Arc<dyn Tier>,
    hold: Hold,
}

impl HoldTier {
    /// A tier over `inner`.
    pub fn new(inner: Arc<dyn Tier>, hold: Hold) -> Arc<Self> {
        Arc::new(Self { inner, hold })
    }
}

impl fmt::Debug for HoldTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HoldTier({:?})", self.inner)
    }
}

impl Tier for HoldTier {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn get(&self, key: &str) -> Result<Object> {
        self.inner.get(key)
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.inner.get_range(key, offset, len)
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        self.inner.len_bytes(key)
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        if key.starts_with("snapshots/") {
            self.hold.stand();
        }
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

    fn make_durable(&self, prefix: &str) -> Result<()> {
        self.inner.make_durable(prefix)
    }
}
