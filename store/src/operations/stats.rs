//! Sizes of a store: logical bytes against stored bytes.

use crate::error::Result;
use crate::id::SnapshotId;
use crate::repo::store::Store;
use std::collections::HashSet;

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Refs.
    pub refs: u64,
    /// Snapshots that refs name, each once.
    pub snapshots: u64,
    /// Their logical bytes together.
    pub logical_bytes: u64,
    /// Plain bytes of all chunks that were new when they came.
    pub unique_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs.
    pub stored_bytes: u64,
    /// Rows of the index.
    pub chunks: u64,
    /// Index runs.
    pub index_runs: u64,
    /// Packs that the collector condemned.
    pub condemned_packs: u64,
}

/// Adds up the store's sizes. Reads every ref and every snapshot record, no data.
///
/// # Errors
/// As the tiers; `Corrupt` for a damaged record.
pub fn stats(store: &Store) -> Result<StoreStats> {
    let mut sum = StoreStats::default();
    let mut seen: HashSet<SnapshotId> = HashSet::new();
    for found in store.refs().list()? {
        sum.refs += 1;
        for entry in found.history {
            if seen.insert(entry.snapshot) {
                let totals = store.snapshot(&entry.snapshot)?.totals;
                sum.snapshots += 1;
                sum.logical_bytes += totals.bytes;
                sum.unique_bytes += totals.new_bytes;
            }
        }
    }
    for (_, len_bytes) in store.packs()? {
        sum.packs += 1;
        sum.stored_bytes += len_bytes;
    }
    store.index().refresh(store.metadata_tier())?;
    for run in store.index().runs().iter() {
        sum.index_runs += 1;
        sum.chunks += run.entry_count() as u64;
    }
    sum.condemned_packs = store.condemned()?.iter().map(|list| list.packs.len() as u64).sum();
    Ok(sum)
}
