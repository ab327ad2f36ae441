//! Index: chunk -> location of its frame. Only a cache of pack directories: `rebuild` makes it again from the packs,
//! and a reader that misses a chunk first looks for runs and packs that it has not seen yet.
//!
//! Writers add runs, and join short ones of packs that may not be deleted while they write; all other merges and
//! removals are done by the collector, which holds its own lock.

mod bucket;
mod build;
mod marks;
mod merge;
mod pack_entries;
mod prefix;
mod row;
mod run;

pub use build::{RunBuilder, encode};
pub use marks::RowMarks;
pub use merge::{MAX_RUN_ENTRIES, merge};
pub use pack_entries::{PackEntries, PackEntriesRow};
pub use prefix::PREFIX_LEN;
pub use row::{ENTRY_LEN, Row};
pub use run::{ENTRIES_START, HEADER_LEN, Location, Run};

use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::host::map::{Access, Mapped};
use crate::host::object::Object;
use crate::host::scratch_file::unnamed_file;
use crate::id::WriterId;
use crate::id::{ChunkId, PackId};
use crate::keys;
use crate::pack::read_directory;
use crate::sync::{Mutex, RwLock};
use crate::tier::Tier;
use merge::Candidate;
use prefix::Prefix;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

/// A run of this process only is kept in memory up to this length.
const MAX_IN_MEMORY: usize = 4 << 20;
/// A writer joins short runs when there are more; the collector does it sooner.
const MAX_WRITERS_RUNS: usize = 32;
/// Threads that open new runs.
const OPENING_THREADS: usize = 8;
/// Below one wanted row in this many, a disk reads them faster one by one than with all between them.
const SPARSE_ROWS: usize = 4096;
/// A writer joins no longer runs than these: its commit waits for it.
const MAX_WRITERS_ENTRIES: usize = 1 << 18;

/// The runs known to this process.
#[derive(Debug)]
pub struct Index {
    /// Directory of the files of long runs.
    scratch: PathBuf,
    runs: RwLock<Arc<Vec<Arc<Run>>>>,
    /// Keys of runs found damaged. Locked while runs change, including the listing the change is based on: an older
    /// listing must not replace a newer one. Readers of `runs` never wait for it.
    damaged: Mutex<HashSet<String>>,
}

/// The locations of one chunk; most have one, which costs no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    first: Option<Location>,
    more: Vec<Location>,
}

impl Places {
    fn push(&mut self, place: Location) {
        match self.first {
            None => self.first = Some(place),
            Some(_) => self.more.push(place),
        }
    }

    /// The locations, in the order they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Location> + Clone {
        self.first.iter().chain(&self.more)
    }
}

impl IntoIterator for Places {
    type Item = Location;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Location>, std::vec::IntoIter<Location>>;
    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

impl Index {
    /// An empty index; long runs of this process only are made in files in `scratch`.
    pub fn new(scratch: &Path) -> Self {
        Self { scratch: scratch.to_owned(), runs: RwLock::default(), damaged: Mutex::default() }
    }

    /// The currently known runs, newest first.
    pub fn runs(&self) -> Arc<Vec<Arc<Run>>> {
        self.runs.read().clone()
    }

    /// Adds new runs and drops those that are gone. Lists `index/` and maps the new ones.
    ///
    /// # Errors
    /// As the tier; a damaged run is skipped with a warning, since packs hold the truth.
    pub fn refresh(&self, tier: &dyn Tier) -> Result<()> {
        let damaged = self.damaged();
        let known = self.runs();
        let mut keys: Vec<String> = tier.list(keys::INDEX)?.into_iter().rev().map(|info| info.key).collect();
        keys.retain(|key| !damaged.contains(key));
        let is_new = |key: &&String| known.iter().all(|run| run.key() != **key);
        let mut opened = open_runs(tier, keys.iter().filter(is_new)).into_iter();
        let mut runs = Vec::with_capacity(keys.len());
        for key in &keys {
            if let Some(run) = known.iter().find(|run| run.key() == key) {
                runs.push(run.clone());
                continue;
            }
            match opened.next().expect("every new run was opened") {
                Ok(run) => runs.push(Arc::new(run)),
                Err(error) if error.kind() == Kind::NotFound => {} // merged since the listing
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Invalid) => {
                    tracing::warn!(run = key, %error, "index run cannot be used; reading its packs instead");
                }
                Err(error) => return Err(error),
            }
        }
        self.replace(runs);
        Ok(())
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<String>> {
        self.damaged.lock()
    }

    /// Drops runs whose entries fail their checksum, which opening does not verify. Reads each run once in its life.
    pub fn drop_damaged(&self) {
        let mut damaged = self.damaged();
        let (whole, broken): (Vec<_>, Vec<_>) = self.runs().iter().cloned().partition(|run| run.is_intact());
        for run in broken {
            tracing::warn!(run = run.key(), "index run is damaged; reading its packs instead");
            damaged.insert(run.key().to_owned());
        }
        self.replace(whole);
    }

    /// Reads the directories of packs that no run covers into runs of this process only. Lists `packs/`.
    ///
    /// # Errors
    /// As the tier; a damaged pack is skipped with a warning.
    pub fn adopt_uncovered(&self, tiers: &[&dyn Tier]) -> Result<usize> {
        let _changing = self.damaged();
        let mut runs: Vec<Arc<Run>> = self.runs().to_vec();
        let mut covered: HashSet<PackId> = runs.iter().flat_map(|run| run.packs()).collect();
        let mut builder = RunBuilder::default();
        let mut adopted = 0;
        for tier in tiers {
            for info in tier.list(keys::PACKS)? {
                let Some(id) = PackId::from_key(&info.key).filter(|id| !covered.contains(id)) else {
                    continue;
                };
                match read_directory(*tier, id) {
                    Ok(directory) => {
                        builder.push(&directory)?;
                        covered.insert(id);
                        adopted += 1;
                    }
                    Err(error) => tracing::warn!(pack = %id, %error, "pack cannot be indexed"),
                }
                if builder.is_full() {
                    runs.insert(0, self.own_run(std::mem::take(&mut builder))?);
                }
            }
        }
        if !builder.is_empty() {
            runs.insert(0, self.own_run(builder)?);
        }
        if adopted > 0 {
            self.replace(runs);
        }
        Ok(adopted)
    }

    /// A run of this process only: a long one in a mapped scratch file, if one can be made.
    fn own_run(&self, builder: RunBuilder) -> Result<Arc<Run>> {
        let mut object = Object::Owned(builder.finish());
        if object.len() > MAX_IN_MEMORY {
            match self.spill(&object) {
                Ok(mapped) => object = Object::Mapped(mapped),
                Err(error) => tracing::warn!(%error, "a long index run is kept in memory"),
            }
        }
        Run::open("packs without index", object).map(Arc::new)
    }

    fn spill(&self, bytes: &[u8]) -> Result<Mapped> {
        let mut file: File = unnamed_file(&self.scratch)?;
        let written = file.write_all(bytes).and_then(|()| Mapped::open(&file));
        written.map_err(|error| Error::io("cannot write a scratch file", self.scratch.display(), error))
    }

    /// Removes packs that are gone, stores the runs that are of this process only, and joins runs so that few are left.
    /// Only for the collector. Runs that writers add meanwhile stay. Returns how many stored runs it replaced.
    ///
    /// # Errors
    /// As the tier: every chunk is then still in some run.
    pub fn compact(&self, tier: &dyn Tier, gone: &HashSet<PackId>) -> Result<u64> {
        let runs = self.runs();
        let must = |run: &Run| {
            !run.is_stored() || !run.has_buckets() || run.packs().any(|pack| gone.contains(&pack))
        };
        let candidates: Vec<Candidate> =
            runs.iter().map(|run| Candidate { entry_count: run.entry_count(), must: must(run) }).collect();
        let mut replaced = 0;
        for group in merge::plan(&candidates, merge::MAX_SHORT_RUNS) {
            let group: Vec<&Run> = group.into_iter().map(|index| &*runs[index]).collect();
            replaced += self.join(tier, &group, |pack| !gone.contains(pack))?;
        }
        if replaced > 0 || runs.iter().any(|run| !run.is_stored()) {
            self.refresh(tier)?;
        }
        Ok(replaced)
    }

    /// Joins short runs when there are many, for a writer whose session is open. Runs that cover a pack condemned when
    /// the session began are left alone: such a pack may be deleted at any time, and must not come back into the index.
    /// Other packs stay while the session lives.
    ///
    /// # Errors
    /// As the tier: every chunk is then still in some run.
    pub fn compact_short(&self, tier: &dyn Tier, condemned: &HashSet<PackId>) -> Result<u64> {
        let runs = self.runs();
        let is_free = |run: &&Arc<Run>| {
            run.is_stored()
                && run.has_buckets()
                && run.entry_count() <= MAX_WRITERS_ENTRIES
                && !run.packs().any(|pack| condemned.contains(&pack))
        };
        let free: Vec<&Run> = runs.iter().filter(is_free).map(|run| &**run).collect();
        let candidates: Vec<Candidate> =
            free.iter().map(|run| Candidate { entry_count: run.entry_count(), must: false }).collect();
        let mut replaced = 0;
        for group in merge::plan(&candidates, MAX_WRITERS_RUNS) {
            let group: Vec<&Run> =
                group.into_iter().map(|index| free[index]).filter(|run| run.is_intact()).collect();
            replaced += self.join(tier, &group, |_| true)?;
        }
        if replaced > 0 {
            self.refresh(tier)?;
        }
        Ok(replaced)
    }

    /// Stores one run in place of several.
    fn join(&self, tier: &dyn Tier, group: &[&Run], keep: impl Fn(&PackId) -> bool) -> Result<u64> {
        let merged = merge(group, keep, &self.scratch)?;
        let merged = Run::open("merged", merged)?;
        if merged.pack_count() > 0 {
            store_run(tier, "merged", merged.bytes())?;
        }
        let stored = group.iter().filter(|run| run.is_stored());
        stored.clone().try_for_each(|run| tier.delete(run.key()))?;
        Ok(stored.count() as u64)
    }

    fn replace(&self, runs: Vec<Arc<Run>>) {
        *self.runs.write() = Arc::new(runs);
    }

    /// Calls `visit` with each of `things`, which begin with a chunk id, in order; equal ones once. Look-ups then read
    /// rows in order, so that this costs little however little of the index is in memory. Empties `things`.
    pub fn in_order<T: Ord>(&self, things: &mut Vec<T>, visit: impl FnMut(T)) {
        let runs = self.runs();
        things.sort_unstable();
        things.dedup();
        let count = things.len();
        let dense: Vec<_> = runs.iter().filter(|run| run.entry_count() / SPARSE_ROWS < count).collect();
        dense.iter().for_each(|run| run.expect(Access::Whole));
        things.drain(..).for_each(visit);
        dense.iter().for_each(|run| run.expect(Access::Random));
    }

    /// All known locations of a chunk.
    pub fn find(&self, id: &ChunkId) -> Places {
        let prefix = Prefix::of(id);
        let mut places = Places::default();
        let runs = self.runs();
        touch(&runs, prefix);
        for run in runs.iter() {
            run.find_prefix(prefix).for_each(|place| places.push(place));
        }
        places
    }

    /// The first known location of a chunk in a pack that `accept` accepts.
    pub fn find_in(&self, id: &ChunkId, accept: impl Fn(&PackId) -> bool) -> Option<Location> {
        let prefix = Prefix::of(id);
        let runs = self.runs();
        touch(&runs, prefix);
        runs.iter().find_map(|run| run.find_prefix(prefix).find(|location| accept(&location.pack)))
    }
}

/// Opens runs in the order of their keys, on several threads: each waits for a page of its own from a disk, or a whole
/// object from a bucket.
fn open_runs<'a>(tier: &dyn Tier, keys: impl Iterator<Item = &'a String>) -> Vec<Result<Run>> {
    let keys: Vec<&String> = keys.collect();
    let open = |key: &&String| tier.get(key).and_then(|object| Run::open(key, object));
    if keys.len() < 2 {
        return keys.iter().map(open).collect();
    }
    std::thread::scope(|scope| {
        let shares = keys.chunks(keys.len().div_ceil(OPENING_THREADS));
        let threads: Vec<_> =
            shares.map(|keys| scope.spawn(move || keys.iter().map(open).collect::<Vec<_>>())).collect();
        let share = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().expect("opening a run does not panic")
        };
        threads.into_iter().flat_map(share).collect()
    })
}

/// Reads the buckets of a prefix into the CPU cache, all at once.
fn touch(runs: &[Arc<Run>], prefix: Prefix) {
    std::hint::black_box(runs.iter().fold(0, |all, run| all ^ run.touch(prefix)));
}

/// Stores a run under a new name.
///
/// # Errors
/// As the tier.
pub fn store_run(tier: &dyn Tier, what: &str, bytes: &[u8]) -> Result<String> {
    let name = WriterId::from_bytes(clock::random_bytes());
    let key = format!("index/{what}/{name}"); // in an existing directory
    match tier.put_if_absent(&key, bytes)? {
        true => Ok(key),
        false => Err(Error::new(Kind::Internal, "an index run of this name is there already").object(key)),
    }
}

#[cfg(test)]
mod tests;
