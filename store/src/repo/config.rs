//! Location and use of a store: the tier of its records, the tiers of its packs, and this host's own state.
//!
//! Records (superblock, domains, snapshots, refs, sessions, index runs, the collector's state) live at the store's
//! *metadata tier*. Packs live on data tiers, fastest first. In a store of one host the metadata tier is the hot tier.
//! In a shared store the metadata tier is the bucket that all hosts see, and a host's hot tier holds only copies of
//! packs in the bucket.

use crate::domain::DomainConfig;
use crate::host::state::LocalState;
use crate::tier::{LocalTier, Tier};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

/// The levels of zstd that a store compresses at.
pub const LEVELS: RangeInclusive<i32> = 1..=22;

/// The latency class of a data tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TierClass {
    /// Local flash: first tier of writes, and the only one of metadata.
    Hot,
    /// Local disks.
    Warm,
    /// A bucket, or anything a network round trip away.
    Cold,
}

impl fmt::Display for TierClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hot => "hot",
            Self::Warm => "warm",
            Self::Cold => "cold",
        })
    }
}

/// A tier that holds packs.
#[derive(Clone, Debug)]
pub struct DataTier {
    /// Its latency class.
    pub class: TierClass,
    /// The tier itself.
    pub tier: Arc<dyn Tier>,
    /// Packs may take this many bytes; `None`: as many as fit.
    pub limit_bytes: Option<u64>,
    /// zstd level, of [`LEVELS`], that packs on no faster tier are recompressed at in the background; `None`: they stay
    /// as they are.
    pub level: Option<i32>,
}

impl DataTier {
    /// A tier without a limit and a level of its own.
    pub fn new(class: TierClass, tier: Arc<dyn Tier>) -> Self {
        Self { class, tier, limit_bytes: None, level: None }
    }
}

/// Location and use of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The tier of the records.
    pub metadata_tier: Arc<dyn Tier>,
    /// The tiers of the packs, fastest first; at least one.
    pub tiers: Vec<DataTier>,
    /// Whether other hosts use the same metadata tier. Then every pack is on the last tier before anything names it.
    pub is_shared: bool,
    /// Where a shared metadata tier has no compare-and-swap: prefix of the refs that only this host may change.
    pub owned_refs: Option<String>,
    /// Where a shared metadata tier has no compare-and-swap: whether this host is the collector.
    pub is_collector: bool,
    /// Local state of this host: locks, uppers, derived tables. Never shared between hosts.
    pub state: LocalState,
    /// Hard limit of the decoded cache in bytes.
    pub cache_bytes: u64,
    /// Hard limit of the disk cache of slower tiers' frames in bytes; 0 keeps none.
    pub disk_cache_bytes: u64,
    /// zstd level of new frames, of [`LEVELS`].
    pub level: i32,
    /// The domain to work in, and the key sources.
    pub domains: DomainConfig,
}

impl StoreConfig {
    /// A store of one host whose records and packs are on `tier`.
    pub fn on(tier: Arc<dyn Tier>, state: impl Into<LocalState>) -> Self {
        Self {
            metadata_tier: tier.clone(),
            tiers: vec![DataTier::new(TierClass::Hot, tier)],
            is_shared: false,
            owned_refs: None,
            is_collector: false,
            state: state.into(),
            cache_bytes: 256 << 20,
            disk_cache_bytes: 1 << 30,
            level: 3,
            domains: DomainConfig::default(),
        }
    }

    /// A store in one directory, its local state below it.
    pub fn directory(path: &Path) -> Self {
        Self::on(Arc::new(LocalTier::new(path)), path.join("local"))
    }

    /// The same with one more data tier, slower than those before.
    pub fn with_tier(mut self, tier: DataTier) -> Self {
        self.tiers.push(tier);
        self
    }
}
