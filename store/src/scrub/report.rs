//! The report of a scrub: damage, its location and remedy, and the affected snapshots. Lists are bounded; omitted items
//! are counted.

use crate::id::{PackId, SnapshotId};
use crate::operations::check::CheckReport;

/// Most damages that a report lists.
pub const MAX_DAMAGES: usize = 10_000;
/// Most affected snapshots that a report lists.
pub const MAX_SNAPSHOTS: usize = 1_000;
/// Most paths of one snapshot that a report lists.
pub const MAX_PATHS: usize = 1_000;

/// The remedy for damage, possible or applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Every part of the pack has an intact copy: `scrub --repair` repairs it.
    Repairable,
    /// It was repaired.
    Repaired {
        /// Key of the damaged bytes on the same tier; `None` where there were none.
        quarantine: Option<String>,
    },
    /// The repair failed.
    Failed {
        /// Why.
        error: String,
    },
    /// Parts of the pack have no intact copy.
    Missing {
        /// Why.
        reason: String,
    },
}

/// Damage at one place of one copy of a pack.
#[derive(Clone, Debug)]
pub struct Damage {
    /// The tier, as a readable description.
    pub tier: String,
    /// The pack.
    pub pack: PackId,
    /// Where it begins in the pack in bytes.
    pub offset: u64,
    /// The fault.
    pub error: String,
    /// The remedy.
    pub remedy: Remedy,
}

/// Frames of a pack that have no intact copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostFrames {
    /// The pack.
    pub pack: PackId,
    /// Where they begin in it in bytes.
    pub offsets: Vec<u64>,
    /// How many of their chunks cannot be read from another pack either.
    pub lost_chunks: u64,
    /// How many are read from other packs.
    pub read_elsewhere: u64,
}

/// An unreadable path of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedPath {
    /// The path in the tree; `memory of space N` and such for memory.
    pub path: Vec<u8>,
    /// How it is affected.
    pub how: String,
}

/// A snapshot that needs lost chunks.
#[derive(Clone, Debug)]
pub struct AffectedSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its domain.
    pub domain: String,
    /// The refs that name it.
    pub refs: Vec<String>,
    /// Its unreadable paths, up to [`MAX_PATHS`].
    pub paths: Vec<AffectedPath>,
    /// Paths beyond that limit.
    pub more_paths: u64,
}

/// The result of a scrub.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use = "it names the damage"]
pub struct ScrubReport {
    /// The check of records, refs and index runs.
    pub records: CheckReport,
    /// Packs of the subset.
    pub packs: u64,
    /// Copies of them that were read.
    pub copies: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Frames in them.
    pub frames: u64,
    /// Frames whose key is not available here: only their checksums were checked.
    pub locked_frames: u64,
    /// Damage in packs, up to [`MAX_DAMAGES`].
    pub damages: Vec<Damage>,
    /// Damages beyond that limit.
    pub more_damages: u64,
    /// Copies still damaged after this run, except those whose lost frames are all recorded and read from other packs.
    pub damaged_copies: u64,
    /// Copies repaired.
    pub repaired_copies: u64,
    /// Index runs rebuilt.
    pub repaired_runs: u64,
    /// Packs with frames that have no intact copy.
    pub lost: Vec<LostFrames>,
    /// Affected snapshots, up to [`MAX_SNAPSHOTS`].
    pub affected: Vec<AffectedSnapshot>,
    /// Snapshots beyond that limit.
    pub more_affected: u64,
}

/// Advice on a damaged record, by its key: there is one of each, and it cannot be derived from others.
fn advice(object: &str) -> Option<&'static str> {
    match object.split(['/', ' ']).next()? {
        "superblock" | "domains" => Some(
            "bring it back from a copy of the store, or from the mirror in the local state of a host that shares it",
        ),
        "refs" => Some(
            "bring it back from a copy of the store; until then its snapshots are read by their ids and nothing is collected",
        ),
        "snapshot" | "snapshots" => {
            Some("bring it back from a copy of the store, or run `snapctl forget` on the snapshot")
        }
        "gc" => Some("bring it back from a copy of the store; until then nothing is collected"),
        "sessions" => Some("remove it when nothing runs on the host whose it is"),
        _ => None,
    }
}

impl ScrubReport {
    /// Adds advice to each problem.
    pub(super) fn advise(&mut self) {
        for problem in &mut self.records.problems {
            if let Some(advice) = advice(&problem.object).filter(|_| !problem.error.contains("; ")) {
                problem.error = format!("{}; {advice}", problem.error);
            }
        }
    }

    /// Whether nothing is damaged now.
    pub fn is_intact(&self) -> bool {
        self.records.problems.is_empty() && self.damaged_copies == 0
    }

    pub(super) fn damage(&mut self, damage: Damage) {
        match self.damages.len() < MAX_DAMAGES {
            true => self.damages.push(damage),
            false => self.more_damages += 1,
        }
    }
}
