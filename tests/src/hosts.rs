//! Hosts that share a store: one bucket, and for each host local state and a hot tier of its own.

use crate::gc_fixture;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{DataTier, LocalTier, MirrorTier, SnapshotId, Store, StoreConfig, Tier, TierClass};

/// The configuration of one of several processes that use DIRECTORY/store as hosts of their own, each with its own
/// state.
pub fn shared_directory(directory: &Path, host: &str) -> StoreConfig {
    let bucket = Arc::new(LocalTier::new(directory.join("store")));
    StoreConfig {
        is_shared: true,
        cache_bytes: 1 << 20,
        level: 1,
        ..StoreConfig::on(bucket, directory.join(host))
    }
}

/// One host of a shared store.
pub struct Host {
    scratch: tempfile::TempDir,
    bucket: Arc<dyn Tier>,
}

impl Host {
    /// A host that sees `bucket`.
    pub fn new(bucket: Arc<dyn Tier>) -> Self {
        // In memory where that is possible: nothing here is about the durability of local state.
        let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self { scratch: scratch.expect("a scratch directory"), bucket }
    }

    /// Its local state.
    pub fn state(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    /// Its configuration over another view of the bucket.
    pub fn config_on(&self, bucket: Arc<dyn Tier>) -> StoreConfig {
        let mirror = Arc::new(LocalTier::new(self.state().join("mirror")));
        let hot = Arc::new(LocalTier::new(self.scratch.path().join("hot")));
        StoreConfig {
            metadata_tier: Arc::new(MirrorTier::new(mirror, bucket.clone())),
            tiers: vec![DataTier::new(TierClass::Hot, hot), DataTier::new(TierClass::Cold, bucket.clone())],
            is_shared: true,
            cache_bytes: 1 << 20,
            level: 1,
            ..StoreConfig::on(bucket, self.state())
        }
    }

    /// Its configuration.
    pub fn config(&self) -> StoreConfig {
        self.config_on(self.bucket.clone())
    }

    /// Opens the store as a process of this host would.
    pub fn open(&self) -> Store {
        Store::open(&self.config()).expect("the store opens")
    }

    /// Makes the store.
    pub fn init(&self) -> Store {
        Store::init(&self.config()).expect("an empty bucket takes a store")
    }

    /// One commit by a process of this host.
    pub fn commit(&self, name: &str, files: &[u64]) -> SnapshotId {
        let store = self.open();
        let mut writer = store.writer("test").expect("nobody else writes on this host");
        gc_fixture::commit(&mut writer, name, files).expect("the commit succeeds")
    }

    /// Runs the collector on this host.
    pub fn collect(&self, cycles: u32) -> gc::CollectReport {
        let options = gc::CollectOptions { dry_run: false, cycles };
        gc::collect(&self.open(), &options, &store::Unwatched).expect("the collector runs")
    }
}
