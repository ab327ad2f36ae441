//! Checking a store: structure always, every stored byte on request. Read-only: it reports, it never repairs. Rebuilding
//! the index, the one repair there is, writes beside the old runs before it removes them.

use crate::collector::{self, Condemned};
use crate::domain::{Census, check_unopened};
use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, PackId, SnapshotId};
use crate::index::{Run, RunBuilder, store_run};
use crate::pack::{self, PACK_HEADER_LEN, PackDirectory, read_directory};
use crate::progress::{Progress, Work};
use crate::reach::Reached;
use crate::repo::Store;
use crate::session;
use crate::superblock::{self, Superblock};
use crate::tier::Tier;
use std::collections::{BTreeMap, HashMap, HashSet};

/// How deep to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Read and verify every frame of every pack.
    pub read_data: bool,
}

/// Something that is not as it must be.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What it concerns.
    pub object: String,
    /// What is wrong.
    pub error: String,
    /// Whether a ref needs it: if not, nothing that anybody can name is hurt.
    pub hurts: Vec<String>,
}

/// What a check saw.
#[derive(Clone, Debug, Default)]
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
    /// Domains that could not be opened: of what they hold only checksums were checked.
    pub locked_domains: Vec<String>,
    /// Frames that nobody has the key of here: only their checksums were checked.
    pub locked_frames: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    fn problem(&mut self, object: impl std::fmt::Display, error: &Error) {
        let problem = Problem { object: object.to_string(), error: error.to_string(), hurts: Vec::new() };
        self.problems.push(problem);
    }
}

/// Checks that every pack is whole, that every ref names snapshots that are there, and that every chunk they need is in
/// the index and in a pack. Memory: about 100 bytes a chunk.
///
/// # Errors
/// Only when the tier cannot be listed; whatever else is wrong is in the report.
pub fn check(store: &Store, options: CheckOptions, progress: &dyn Progress) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    check_records(store, &mut report);
    let census = Census::take(store)?;
    // Refs and their snapshots are read before the index: what a commit adds meanwhile is then never missed.
    let mut snapshots = Vec::new();
    for store in &census.open {
        snapshots.push((store, check_refs(store, &mut report)?));
    }
    check_locked(store, &census, &mut report)?;
    store.index().refresh(store.home())?;
    let chunks = check_packs(store, &census, options, progress, &mut report)?;
    check_runs(store, &mut report)?;
    for (store, snapshots) in &snapshots {
        check_snapshots(store, snapshots, &chunks, &mut report);
    }
    Ok(report)
}

/// The few records that opening, writing or collecting cannot do without.
fn check_records(store: &Store, report: &mut CheckReport) {
    let tier = store.home();
    let read = [
        (superblock::KEY, Superblock::read(tier).map(|_| ())),
        ("domains/", store.check_no_domain_is_lost()),
        (collector::STATE_KEY, collector::read_epoch(tier).map(|_| ())),
        (collector::CONDEMNED_PREFIX, Condemned::read_all(tier).map(|_| ())),
        (session::PREFIX, session::alive(store.sessions(), false).map(|_| ())),
    ];
    for (object, outcome) in read {
        if let Err(error) = outcome {
            report.problem(object, &error);
        }
    }
}

/// The snapshots that refs name and the refs that name them.
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
            _ => {} // whole, or collected since it was listed
        }
    }
    Ok(snapshots)
}

/// Domains that do not open: for want of a key that is no problem, else it is one. Their records have checksums.
fn check_locked(store: &Store, census: &Census, report: &mut CheckReport) -> Result<()> {
    for (name, error) in &census.locked {
        report.locked_domains.push(name.clone());
        if error.kind() == Kind::Corrupt {
            report.problem(format!("domains/{name}"), error);
        }
        for prefix in ["refs", "snapshots"] {
            for info in store.home().list(&format!("{prefix}/{name}/"))? {
                let read = store.home().get(&info.key).and_then(|bytes| check_unopened(&info.key, &bytes));
                match read {
                    Err(error) if error.kind() != Kind::NotFound => report.problem(&info.key, &error),
                    _ => {} // whole, or gone since it was listed
                }
            }
        }
    }
    Ok(())
}

/// Every run of the index, also those that readers pass over.
fn check_runs(store: &Store, report: &mut CheckReport) -> Result<()> {
    for info in store.home().list("index/")? {
        let run = store.home().get(&info.key).and_then(|object| Run::open(&info.key, object));
        match run.and_then(|run| run.verify()) {
            Err(error) if error.kind() != Kind::NotFound => {
                report.problem(&info.key, &error.advice("run `snapctl index rebuild`"));
            }
            _ => {} // whole, or merged away since it was listed
        }
    }
    Ok(())
}

/// Every chunk that a whole pack holds.
type StoredChunks = HashMap<ChunkId, PackId>;

fn check_packs(
    store: &Store,
    census: &Census,
    options: CheckOptions,
    progress: &dyn Progress,
    report: &mut CheckReport,
) -> Result<StoredChunks> {
    let packs = store.packs()?;
    let total = packs.iter().map(|(_, len)| *len).sum();
    progress.begin("check packs", Work::Bytes(total));
    let mut stored = StoredChunks::new();
    for (id, len_bytes) in packs {
        report.packs += 1;
        for tier in store.tiers() {
            match check_pack(census, tier, id, options, report) {
                Ok(Some(directory)) => stored.extend(directory.entries.iter().map(|entry| (entry.id, id))),
                Ok(None) => {}
                Err(error) => report.problem(format!("{} in {}", id.key(), tier.describe()), &error),
            }
        }
        progress.advance(len_bytes);
    }
    progress.end();
    Ok(stored)
}

fn check_pack(
    census: &Census,
    tier: &dyn Tier,
    id: PackId,
    options: CheckOptions,
    report: &mut CheckReport,
) -> Result<Option<PackDirectory>> {
    let mut directory = match read_directory(tier, id) {
        Ok(directory) => directory,
        Err(error) if error.kind() == Kind::NotFound => return Ok(None), // on another tier, or collected meanwhile
        Err(error) => return Err(error),
    };
    if !options.read_data {
        return Ok(Some(directory));
    }
    let header = tier.get_range(&id.key(), 0, PACK_HEADER_LEN as u64)?;
    if header != pack::header(id, directory.kind) {
        // No read goes by it, only a scan of a pack whose directory is lost.
        report.problem(id.key(), &Error::corrupt("pack header is damaged"));
    }
    let mut damaged = HashSet::new();
    for (number, extent) in (0u32..).zip(&directory.frames) {
        let bytes = tier.get_range(&id.key(), extent.offset, extent.len_bytes.into());
        let frame = bytes.and_then(|bytes| census.verify(&bytes));
        let frame = frame.and_then(|frame| match frame {
            None => {
                report.locked_frames += 1;
                Ok(())
            }
            Some(frame) if directory.names(number, &frame) => Ok(()),
            Some(_) => Err(Error::corrupt("frame holds other chunks than the pack directory says")),
        });
        report.read_bytes += u64::from(extent.len_bytes);
        if let Err(error) = frame {
            damaged.insert(number);
            // A delta whose base was collected is garbage that shares its pack; if anybody needs it, that shows below.
            if error.kind() != Kind::NotFound {
                report.problem(format!("{} frame {number}", id.key()), &error);
            }
        }
    }
    directory.entries.retain(|entry| !damaged.contains(&entry.frame));
    Ok(Some(directory))
}

fn check_snapshots(
    store: &Store,
    snapshots: &BTreeMap<SnapshotId, Vec<String>>,
    stored: &StoredChunks,
    report: &mut CheckReport,
) {
    let mut seen: HashMap<ChunkId, bool> = HashMap::new();
    let mut reached = Reached::new();
    report.snapshots += snapshots.len() as u64;
    let hurt = snapshots.keys().any(|id| hurt_by(store, id, stored, &mut reached, &mut seen).is_some());
    if hurt {
        // What snapshots share was walked for the first of them alone: now each on its own, to name all that are hurt.
        for (id, names) in snapshots {
            if let Some(error) = hurt_by(store, id, stored, &mut Reached::new(), &mut seen) {
                report.problem(format!("snapshot {id}"), &error);
                if let Some(problem) = report.problems.last_mut() {
                    problem.hurts.clone_from(names);
                }
            }
        }
    }
    report.chunks += seen.len() as u64;
}

/// What is wrong with a snapshot, as far as this walk has not been there before.
fn hurt_by(
    store: &Store,
    id: &SnapshotId,
    stored: &StoredChunks,
    reached: &mut Reached,
    seen: &mut HashMap<ChunkId, bool>,
) -> Option<Error> {
    let mut missing = None;
    let walked = reached.walk(store, id, &mut |chunk| {
        let there = *seen.entry(*chunk).or_insert_with(|| {
            stored.contains_key(chunk) && store.index().find_in(chunk, |_| true).is_some()
        });
        if !there {
            missing.get_or_insert(*chunk);
        }
    });
    let missing = missing.map(|chunk| match stored.contains_key(&chunk) {
        true => Error::new(Kind::NotFound, "a chunk that it needs is not in the index")
            .object(chunk)
            .advice("run `snapctl index rebuild`"),
        false => Error::new(Kind::NotFound, "a chunk that it needs is in no whole pack").object(chunk),
    });
    walked.err().or(missing)
}

/// Makes the index anew from the directories of all packs and removes the old runs. Takes the collector's lock. Memory: 100
/// MiB at most, however many chunks there are. Gives how many packs and chunks it holds now.
///
/// # Errors
/// `Conflict` while a collector works; `Corrupt` when a pack's directory cannot be read: nothing is removed then.
pub fn rebuild_index(store: &Store, progress: &dyn Progress) -> Result<(u64, u64)> {
    let _lock = store.state().lock("gc.lock", "index rebuild")?;
    let old = store.home().list("index/")?;
    let packs = store.packs()?;
    store.make_packs_durable()?;
    progress.begin("read pack directories", Work::Items(packs.len() as u64));
    let (mut chunks, pack_count) = (0, packs.len() as u64);
    let mut builder = RunBuilder::default();
    for (id, _) in packs {
        let directory = store.pack_directory(id)?;
        chunks += directory.entries.len() as u64;
        builder.push(&directory)?;
        if builder.is_full() {
            store_run(store.home(), "rebuilt", &std::mem::take(&mut builder).finish())?;
        }
        progress.advance(1);
    }
    progress.end();
    if !builder.is_empty() {
        store_run(store.home(), "rebuilt", &builder.finish())?;
    }
    for run in old {
        store.home().delete(&run.key)?;
    }
    store.index().refresh(store.home())?;
    store.index().compact(store.home(), &HashSet::new())?;
    Ok((pack_count, chunks))
}
