//! Checking a store: structure always, every stored byte on request. Read-only: it reports, it never repairs.
//! Rebuilding the index writes new runs before it removes the old ones; all other repairs belong to [`crate::scrub`].

use crate::error::{Error, Kind, OptionalExt, Result};
use crate::host::lock::COLLECTOR_LOCK;
use crate::id::{ChunkId, PackId, SnapshotId};
use crate::index::{RowMarks, Run, RunBuilder, store_run};
use crate::keys;
use crate::operations::domain_inventory::{DomainInventory, check_unopened};
use crate::operations::reachable::Reached;
use crate::operations::verify_pack::read_copy;
use crate::pack::{PackDirectory, read_directory};
use crate::progress::{Progress, Work};
use crate::records::condemned::{self, Condemned};
use crate::records::lost_frames::DamagedFrames;
use crate::records::session;
use crate::records::superblock::Superblock;
use crate::repo::store::Store;
use crate::tier::Tier;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How deep to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Read and verify every frame of every pack.
    pub read_data: bool,
}

/// A fault that a check found.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The object at fault.
    pub object: String,
    /// The fault.
    pub error: String,
    /// Names of the refs that need the object; may be empty.
    pub affects: Vec<String>,
}

/// The result of a check.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use = "it names the damage"]
pub struct CheckReport {
    /// Refs read.
    pub refs: u64,
    /// Snapshots walked.
    pub snapshots: u64,
    /// Chunks that they need, each counted once.
    pub chunks: u64,
    /// Packs looked at.
    pub packs: u64,
    /// Bytes of data read and verified.
    pub read_bytes: u64,
    /// Domains that could not be opened: only the checksums of their records and frames were checked.
    pub locked_domains: Vec<String>,
    /// Frames whose key is not available here: only their checksums were checked.
    pub locked_frames: u64,
    /// Packs with frames that a scrub found to be lost, and how many frames. Only objects named in `problems` are
    /// affected.
    pub damaged_packs: Vec<(PackId, u64)>,
    /// Problems, up to [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// Problems beyond that limit.
    pub more_problems: u64,
}

/// Most passes over the store, when snapshots are forgotten or packs collected meanwhile.
const LOOKS: usize = 3;
/// Chunks looked up together: 64 MiB of ids.
const BATCH_CHUNKS: usize = 2 << 20;
/// Most problems that a report lists; others are counted.
pub const MAX_PROBLEMS: usize = 10_000;

impl CheckReport {
    pub(crate) fn problem(&mut self, object: impl std::fmt::Display, error: &Error) {
        self.problem_affecting(object, error, Vec::new());
    }

    pub(crate) fn problem_affecting(
        &mut self,
        object: impl std::fmt::Display,
        error: &Error,
        affects: Vec<String>,
    ) {
        if self.problems.len() == MAX_PROBLEMS {
            self.more_problems += 1;
            return;
        }
        self.problems.push(Problem { object: object.to_string(), error: error.to_string(), affects });
    }
}

/// Checks that every pack is intact, that every ref names existing snapshots, and that every chunk they need is in the
/// index and in a pack. Checks again when a snapshot looks affected and anything was forgotten or collected meanwhile.
/// Memory: a byte for every two chunks, 64 MiB, and one pack.
///
/// # Errors
/// Only when the tier cannot be listed; all other errors are in the report.
pub fn check(store: &Store, options: CheckOptions, progress: &dyn Progress) -> Result<CheckReport> {
    for _ in 1..LOOKS {
        let look = Look::new(store, options, progress)?;
        // Missing chunks may have gone with forgotten snapshots, or lie in packs that replaced others.
        if !look.is_damaged || look.is_all_there(store)? {
            return Ok(look.report);
        }
        progress.note("something was forgotten or collected meanwhile; looking again");
    }
    Ok(Look::new(store, options, progress)?.report)
}

/// The result of one pass.
struct Look {
    report: CheckReport,
    /// Whether a snapshot has a missing part.
    is_damaged: bool,
    packs: Vec<(PackId, u64)>,
    /// Of each domain.
    snapshots: Vec<(Store, BTreeMap<SnapshotId, Vec<String>>)>,
}

impl Look {
    fn new(store: &Store, options: CheckOptions, progress: &dyn Progress) -> Result<Self> {
        let mut report = CheckReport::default();
        let domains = DomainInventory::take(store)?;
        // Refs and their snapshots are read before the index, so that chunks of a concurrent commit are never missed.
        let snapshots = check_all_records(store, &domains, &mut report)?;
        store.index().refresh(store.metadata_tier())?;
        // Chunks are marked by index row: packs that no run covers get rows in this process only.
        store.index().adopt_uncovered(&store.tiers())?;
        let packs = store.packs()?;
        let whole = check_packs(store, &domains, &packs, options, progress, &mut report)?;
        let mut is_damaged = false;
        for (store, snapshots) in domains.open.iter().zip(&snapshots) {
            is_damaged |= Needs::new(store, &whole).check(store, snapshots, &mut report);
        }
        Ok(Self { report, is_damaged, packs, snapshots: domains.open.into_iter().zip(snapshots).collect() })
    }

    /// Whether all packs of this pass still exist, and refs still name all its snapshots.
    fn is_all_there(&self, store: &Store) -> Result<bool> {
        let there: HashSet<PackId> = store.packs()?.into_iter().map(|(pack, _)| pack).collect();
        let mut is_there = self.packs.iter().all(|(pack, _)| there.contains(pack));
        for (store, snapshots) in &self.snapshots {
            let refs = store.refs().each_by_key()?;
            let histories =
                refs.iter().filter_map(|(_, found)| found.as_ref().ok()).map(|found| &found.history);
            let named: HashSet<SnapshotId> = histories.flatten().map(|entry| entry.snapshot).collect();
            is_there &= snapshots.keys().all(|snapshot| named.contains(snapshot));
        }
        Ok(is_there)
    }
}

/// Checks records, refs, domains that do not open, and index runs, but neither packs nor the chunks of snapshots.
/// Returns the snapshots of the open domains with the refs that name them.
pub(crate) fn check_all_records(
    store: &Store,
    domains: &DomainInventory,
    report: &mut CheckReport,
) -> Result<Vec<BTreeMap<SnapshotId, Vec<String>>>> {
    check_records(store, report);
    let mut snapshots = Vec::new();
    for store in &domains.open {
        snapshots.push(check_refs(store, report)?);
    }
    check_locked(store, domains, report)?;
    check_runs(store, report)?;
    report.snapshots += snapshots.iter().map(|snapshots| snapshots.len() as u64).sum::<u64>();
    Ok(snapshots)
}

/// Checks the few records required to open, write or collect.
fn check_records(store: &Store, report: &mut CheckReport) {
    let tier = store.metadata_tier();
    let read = [
        (keys::SUPERBLOCK, Superblock::read(tier).map(|_| ())),
        (keys::DOMAINS, store.domains().check_none_is_lost()),
        (keys::COLLECTOR_STATE, condemned::read_epoch(tier).map(|_| ())),
        (keys::CONDEMNED, Condemned::read_all(tier).map(|_| ())),
        (keys::SESSIONS, session::alive(store.sessions(), false).map(|_| ())),
    ];
    for (object, outcome) in read {
        if let Err(error) = outcome {
            report.problem(object, &error);
        }
    }
}

/// Checks refs; returns the snapshots with the refs that name them.
fn check_refs(store: &Store, report: &mut CheckReport) -> Result<BTreeMap<SnapshotId, Vec<String>>> {
    let mut snapshots: BTreeMap<SnapshotId, Vec<String>> = BTreeMap::new();
    for (key, read) in store.refs().each_by_key()? {
        match read {
            Ok(found) => {
                report.refs += 1;
                for entry in found.history {
                    snapshots.entry(entry.snapshot).or_default().push(found.name.clone());
                }
            }
            Err(error) => report.problem(&key, &error),
        }
    }
    for id in store.snapshot_ids()?.iter().filter(|id| !snapshots.contains_key(id)) {
        match store.snapshot(id) {
            Err(error) if error.kind() != Kind::NotFound => report.problem(format!("snapshot {id}"), &error),
            _ => {} // intact, or collected since it was listed
        }
    }
    Ok(snapshots)
}

/// Checks the domains that do not open: a problem, unless only the key is missing. Their records have checksums.
fn check_locked(store: &Store, domains: &DomainInventory, report: &mut CheckReport) -> Result<()> {
    for (name, error) in &domains.locked {
        report.locked_domains.push(name.clone());
        if error.kind() == Kind::Corrupt {
            report.problem(keys::domain(name), error);
        }
        for prefix in [keys::refs_of(name), keys::snapshots_of(name)] {
            for info in store.metadata_tier().list(&prefix)? {
                let read =
                    store.metadata_tier().get(&info.key).and_then(|bytes| check_unopened(&info.key, &bytes));
                match read {
                    Err(error) if error.kind() != Kind::NotFound => report.problem(&info.key, &error),
                    _ => {} // intact, or gone since it was listed
                }
            }
        }
    }
    Ok(())
}

/// Checks every run of the index, also those that readers skip.
fn check_runs(store: &Store, report: &mut CheckReport) -> Result<()> {
    for info in store.metadata_tier().list(keys::INDEX)? {
        let run = store.metadata_tier().get(&info.key).and_then(|object| Run::open(&info.key, object));
        match run.and_then(|run| run.verify()) {
            Err(error) if error.kind() != Kind::NotFound => {
                report.problem(&info.key, &error.advice("run `snapctl index rebuild`"));
            }
            _ => {} // intact, or merged away since it was listed
        }
    }
    Ok(())
}

fn check_packs(
    store: &Store,
    domains: &DomainInventory,
    packs: &[(PackId, u64)],
    options: CheckOptions,
    progress: &dyn Progress,
    report: &mut CheckReport,
) -> Result<RowMarks> {
    let lost = DamagedFrames::read_all(store.metadata_tier()).unwrap_or_else(|error| {
        report.problem(keys::LOST_FRAMES, &error);
        DamagedFrames::default()
    });
    report.damaged_packs = lost.packs().map(|(pack, count)| (pack, count as u64)).collect();
    report.damaged_packs.sort_unstable();
    let total = packs.iter().map(|(_, len)| *len).sum();
    progress.begin("check packs", Work::Bytes(total));
    let mut whole = RowMarks::new(store.index());
    let mut waiting: Vec<ChunkId> = Vec::new();
    let mut mark = |waiting: &mut Vec<ChunkId>| {
        store.index().in_order(waiting, |id| {
            whole.insert(&id);
        });
    };
    for (id, len_bytes) in packs.iter().copied() {
        report.packs += 1;
        let mut has_directory = false;
        for tier in store.tiers() {
            match check_pack(domains, tier, id, options, &lost, report) {
                Ok(Some(directory)) => {
                    has_directory = true;
                    let frames = &directory.frames;
                    let is_lost = |frame: u32| lost.has_frame(&id, frames[frame as usize].offset);
                    let left = directory.entries.iter().filter(|entry| !is_lost(entry.frame));
                    waiting.extend(left.map(|entry| entry.id));
                }
                Ok(None) => {}
                Err(_) if lost.names(&id) => {} // a scrub noted this, and which frames are left
                Err(error) => report.problem(format!("{} in {}", id.key(), tier.describe()), &error),
            }
        }
        if !has_directory && lost.names(&id) {
            let rows = store.index().entries_of(id).into_iter().flat_map(|entries| entries.rows);
            let left = rows.filter(|row| !lost.has_frame(&id, row.offset));
            waiting.extend(left.map(|row| row.chunk()));
        }
        if waiting.len() >= BATCH_CHUNKS {
            mark(&mut waiting);
        }
        progress.advance(len_bytes);
    }
    mark(&mut waiting);
    progress.end();
    Ok(whole)
}

/// The directory of a pack, without the chunks of damaged frames.
fn check_pack(
    domains: &DomainInventory,
    tier: &dyn Tier,
    id: PackId,
    options: CheckOptions,
    lost: &DamagedFrames,
    report: &mut CheckReport,
) -> Result<Option<PackDirectory>> {
    if !options.read_data {
        return read_directory(tier, id).optional();
    }
    let Some(copy) = read_copy(tier, id, &mut |_| {}).optional()? else { return Ok(None) };
    let examined = copy.examine(domains, id);
    report.read_bytes += copy.bytes.len() as u64;
    report.locked_frames += examined.locked_frames;
    let is_known =
        |offset: u64| lost.has_frame(&id, offset) || (examined.directory.is_none() && lost.names(&id));
    for fault in examined.faults.iter().filter(|fault| !is_known(fault.offset)) {
        let object = format!("{} byte {} in {}", id.key(), fault.offset, tier.describe());
        report.problem(object, &fault.error);
    }
    let damaged: BTreeSet<u64> = examined.faults.iter().map(|fault| fault.offset).collect();
    Ok(examined.directory.map(|mut directory| {
        let frames = &directory.frames;
        directory.entries.retain(|entry| !damaged.contains(&frames[entry.frame as usize].offset));
        directory
    }))
}

/// The chunks that the snapshots of a domain need, against the chunks that exist.
struct Needs<'a> {
    whole: &'a RowMarks,
    seen: RowMarks,
    missing: RowMarks,
}

impl<'a> Needs<'a> {
    fn new(store: &Store, whole: &'a RowMarks) -> Self {
        let marks = || RowMarks::new(store.index());
        Self { whole, seen: marks(), missing: marks() }
    }

    /// Whether any of the snapshots is affected; reports which, and how.
    fn check(
        mut self,
        store: &Store,
        snapshots: &BTreeMap<SnapshotId, Vec<String>>,
        report: &mut CheckReport,
    ) -> bool {
        let mut reached = Reached::new(store);
        let affected = snapshots.keys().any(|id| self.unreadable_part(store, id, &mut reached).is_some());
        if affected {
            // Shared parts were walked for the first snapshot only: now walk each alone, to name all that are affected.
            for (id, names) in snapshots {
                if let Some(error) = self.unreadable_part(store, id, &mut Reached::new(store)) {
                    report.problem_affecting(format!("snapshot {id}"), &error, names.clone());
                }
            }
        }
        report.chunks += self.seen.len();
        affected
    }

    /// The first error in the parts of a snapshot that this walk has not visited yet.
    fn unreadable_part(&mut self, store: &Store, id: &SnapshotId, reached: &mut Reached) -> Option<Error> {
        let mut missing = None;
        let mut waiting = Vec::new();
        let walked = reached.walk(store, id, &mut |chunk: &ChunkId| {
            waiting.push(*chunk);
            if waiting.len() >= BATCH_CHUNKS {
                missing = missing.or(self.missing_of(store, &mut waiting));
            }
        });
        let missing = missing.or(self.missing_of(store, &mut waiting));
        let missing = missing.map(|chunk| match self.whole.contains(&chunk) {
            true => Error::new(Kind::NotFound, "a chunk that it needs is not in the index")
                .object(chunk)
                .advice("run `snapctl index rebuild`"),
            false => Error::new(Kind::NotFound, "a chunk that it needs is in no intact pack").object(chunk),
        });
        walked.err().or(missing)
    }

    /// The first of some chunks that is missing.
    fn missing_of(&mut self, store: &Store, chunks: &mut Vec<ChunkId>) -> Option<ChunkId> {
        let mut missing = None;
        store.index().in_order(chunks, |chunk| {
            if self.seen.insert(&chunk) && !(self.whole.contains(&chunk) && is_indexed(store, &chunk)) {
                self.missing.insert(&chunk);
            }
            if !self.missing.is_empty() && self.missing.contains(&chunk) {
                missing.get_or_insert(chunk);
            }
        });
        missing
    }
}

/// Whether a stored run, visible to other processes, has the chunk.
fn is_indexed(store: &Store, chunk: &ChunkId) -> bool {
    let runs = store.index().runs();
    runs.iter().any(|run| run.is_stored() && run.find(chunk).next().is_some())
}

/// Rebuilds the index from the directories of all packs and removes the old runs. Takes the collector's lock. Memory:
/// 100 MiB at most, however many chunks there are. Returns how many packs and chunks it holds now.
///
/// # Errors
/// `Conflict` while a collector works; `Corrupt` when a pack's directory cannot be read: nothing is removed then.
pub fn rebuild_index(store: &Store, progress: &dyn Progress) -> Result<(u64, u64)> {
    let _lock = store.state().lock(COLLECTOR_LOCK, "index rebuild")?;
    let old = store.metadata_tier().list(keys::INDEX)?;
    let packs: Vec<PackId> = store.packs()?.into_iter().map(|(pack, _)| pack).collect();
    store.make_packs_durable()?;
    let chunks = index_packs(store, &packs, progress)?;
    for run in old {
        store.metadata_tier().delete(&run.key)?;
    }
    store.index().refresh(store.metadata_tier())?;
    store.index().compact(store.metadata_tier(), &HashSet::new())?;
    Ok((packs.len() as u64, chunks))
}

/// Stores index runs over these packs; returns how many chunks they list.
pub(crate) fn index_packs(store: &Store, packs: &[PackId], progress: &dyn Progress) -> Result<u64> {
    progress.begin("read pack directories", Work::Items(packs.len() as u64));
    let mut chunks = 0;
    let mut builder = RunBuilder::default();
    for id in packs {
        let directory = store.pack_directory(*id)?;
        chunks += directory.entries.len() as u64;
        builder.push(&directory)?;
        if builder.is_full() {
            store_run(store.metadata_tier(), "rebuilt", &std::mem::take(&mut builder).finish())?;
        }
        progress.advance(1);
    }
    progress.end();
    if !builder.is_empty() {
        store_run(store.metadata_tier(), "rebuilt", &builder.finish())?;
    }
    Ok(chunks)
}
