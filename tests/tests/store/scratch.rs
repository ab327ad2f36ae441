//! Stores of a test's own: in memory or in a directory, gone with the test.

use std::sync::Arc;
use store::{LocalTier, MemoryTier, Store, StoreConfig, Tier};
use tempfile::TempDir;

/// A store and the directory of its local state.
pub(crate) struct Scratch {
    pub config: StoreConfig,
    pub directory: TempDir,
}

impl Scratch {
    /// A new store on a tier in memory, and the tier.
    pub(crate) fn in_memory() -> (Self, MemoryTier) {
        let tier = MemoryTier::new();
        (Self::init(Arc::new(tier.clone())), tier)
    }

    /// A new store in a directory.
    pub(crate) fn in_directory() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hot = Arc::new(LocalTier::new(directory.path().join("store")));
        let scratch = Self { config: config(hot, &directory), directory };
        Store::init(&scratch.config).unwrap();
        scratch
    }

    /// A new store on a tier.
    pub(crate) fn init(hot: Arc<dyn Tier>) -> Self {
        let scratch = Self::over(hot);
        Store::init(&scratch.config).unwrap();
        scratch
    }

    /// Fresh local state for a tier that may hold a store or not.
    pub(crate) fn over(hot: Arc<dyn Tier>) -> Self {
        // In memory where that is possible: nothing here is about the durability of local state.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { config: config(hot, &directory), directory }
    }

    /// Opens the store as another process would.
    pub(crate) fn open(&self) -> Store {
        Store::open(&self.config).unwrap()
    }
}

fn config(hot: Arc<dyn Tier>, directory: &TempDir) -> StoreConfig {
    StoreConfig { cache_bytes: 4 << 20, level: 1, ..StoreConfig::on(hot, directory.path().join("state")) }
}

/// A tier in memory with the same objects as another tier.
pub(crate) fn copy_of(tier: &dyn Tier) -> MemoryTier {
    let copy = MemoryTier::new();
    for info in tier.list("").unwrap() {
        copy.put_if_absent(&info.key, &tier.get(&info.key).unwrap()).unwrap();
    }
    copy
}

/// Replaces an object's bytes, as damage would.
pub(crate) fn overwrite(tier: &dyn Tier, key: &str, body: &[u8]) {
    tier.delete(key).unwrap();
    assert!(tier.put_if_absent(key, body).unwrap());
}
