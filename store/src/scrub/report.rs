//! What a scrub tells: what is damaged where, what can or could be done about it, and which snapshots it affects. Lists are bounded, what
//! is left out is counted.

use crate::id::{PackId, SnapshotId};
use crate::operations::check::CheckReport;

/// No report lists more places of damage.
pub const MAX_DAMAGES: usize = 10_000;
/// No report lists more snapshots that are affected.
pub const MAX_SNAPSHOTS: usize = 1_000;
/// No report lists more paths of one snapshot.
pub const MAX_PATHS: usize = 1_000;

/// What can be done about damage, or was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// All of the pack is whole somewhere: `scrub --repair` puts it together again.
    Repairable,
    /// It was put together again.
    Repaired {
        /// Key of the damaged bytes on the same tier; `None` where there were none.
        quarantine: Option<String>,
    },
    /// It could be put together again, and that failed.
    Failed {
        /// Why.
        error: String,
    },
    /// Not all of the pack is whole somewhere.
    Missing {
        /// Why.
        reason: String,
    },
}

/// Damage at one place of one copy of a pack.
#[derive(Clone, Debug)]
pub struct Damage {
    /// The tier, for people.
    pub tier: String,
    /// The pack.
    pub pack: PackId,
    /// Where it begins in the pack in bytes.
    pub offset: u64,
    /// What is wrong.
    pub error: String,
    /// What about it.
    pub remedy: Remedy,
}

/// Frames that are whole on no tier.
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

/// Something in a snapshot that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedPath {
    /// The path in the tree; `memory of space N` and such for memory.
    pub path: Vec<u8>,
    /// What about it.
    pub how: String,
}

/// A snapshot that needs what cannot be read.
#[derive(Clone, Debug)]
pub struct AffectedSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// The domain that it is of.
    pub domain: String,
    /// The refs that name it.
    pub refs: Vec<String>,
    /// What of it cannot be read, up to [`MAX_PATHS`].
    pub paths: Vec<AffectedPath>,
    /// How many paths more.
    pub more_paths: u64,
}

/// What a scrub saw and did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use = "it names the damage"]
pub struct ScrubReport {
    /// Records, refs and index runs, and what is wrong with them.
    pub records: CheckReport,
    /// Packs of the subset.
    pub packs: u64,
    /// Copies of them that were read.
    pub copies: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Frames in them.
    pub frames: u64,
    /// Frames that nobody has the key of here: only their checksums were checked.
    pub locked_frames: u64,
    /// What is wrong with packs, up to [`MAX_DAMAGES`].
    pub damages: Vec<Damage>,
    /// How many places more.
    pub more_damages: u64,
    /// Copies that are not whole after this run, but for those of which all that is lost is noted and read from other packs.
    pub damaged_copies: u64,
    /// Copies that were put together again.
    pub repaired_copies: u64,
    /// Index runs that were made again.
    pub repaired_runs: u64,
    /// Packs of which not all is whole anywhere.
    pub lost: Vec<LostFrames>,
    /// The snapshots that are affected, up to [`MAX_SNAPSHOTS`].
    pub affected: Vec<AffectedSnapshot>,
    /// How many snapshots more.
    pub more_affected: u64,
}

/// What to do about a record that is damaged, by its key: there is one of each, and nothing it follows from.
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
    /// Adds to each problem what to do about it.
    pub(super) fn advise(&mut self) {
        for problem in &mut self.records.problems {
            if let Some(advice) = advice(&problem.object).filter(|_| !problem.error.contains("; ")) {
                problem.error = format!("{}; {advice}", problem.error);
            }
        }
    }

    /// Whether something is damaged now.
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
