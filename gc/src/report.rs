//! The report of a collector run.

use crate::plan::{Planned, Verdict};
use store::{PackId, SnapshotId};

/// Result of the last run, or of a dry run.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CollectReport {
    /// The run's epoch.
    pub epoch: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Every pack and its verdict; deletions of all cycles.
    pub packs: Vec<Planned<PackId>>,
    /// Every snapshot record and its verdict; deletions of all cycles.
    pub snapshots: Vec<Planned<SnapshotId>>,
    /// Index runs that became one.
    pub merged_runs: u64,
}

impl CollectReport {
    /// This run's report with what earlier cycles deleted and merged.
    pub(crate) fn after(mut self, earlier: Self) -> Self {
        self.packs.extend(earlier.packs.into_iter().filter(|pack| pack.verdict == Verdict::Delete));
        self.snapshots
            .extend(earlier.snapshots.into_iter().filter(|record| record.verdict == Verdict::Delete));
        self.merged_runs += earlier.merged_runs;
        self
    }

    /// Bytes of the packs with this verdict.
    pub fn bytes(&self, verdict: Verdict) -> u64 {
        self.packs.iter().filter(|pack| pack.verdict == verdict).map(|pack| pack.len_bytes).sum()
    }
}
