//! Index: chunk -> where its frame lies. A cache of pack directories, never the truth: `rebuild` makes it anew from the
//! packs, and a reader that misses a chunk first looks for runs and packs that it has not seen yet.
//!
//! Writers only add runs; only the collector (which holds its own lock) merges and removes them.

mod run;

pub use run::{ENTRY_LEN, Location, PREFIX_LEN, Run, encode, merge};

use crate::error::{Kind, Result};
use crate::id::{ChunkId, PackId};
use crate::pack::read_directory;
use crate::tier::{Object, Tier};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The runs known to this process.
#[derive(Debug, Default)]
pub struct Index {
    runs: RwLock<Arc<Vec<Arc<Run>>>>,
    /// Keys of runs found damaged. Held while runs change, also over the listing that they change by: an older listing
    /// must not replace a newer one. Readers of `runs` never wait for it.
    damaged: Mutex<HashSet<String>>,
}

impl Index {
    /// The runs as they are known now; newest first.
    pub fn runs(&self) -> Arc<Vec<Arc<Run>>> {
        self.runs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Learns of runs that were added and forgets those that are gone. Lists `index/` and maps what is new.
    ///
    /// # Errors
    /// As the tier; a damaged run is skipped with a warning, since packs hold the truth.
    pub fn refresh(&self, tier: &dyn Tier) -> Result<()> {
        let damaged = self.damaged();
        let known = self.runs();
        let mut runs = Vec::new();
        for info in tier.list("index/")?.into_iter().rev() {
            if damaged.contains(&info.key) {
                continue;
            }
            if let Some(run) = known.iter().find(|run| run.key() == info.key) {
                runs.push(run.clone());
                continue;
            }
            match tier.get(&info.key).and_then(|object| Run::open(&info.key, object)) {
                Ok(run) => runs.push(Arc::new(run)),
                Err(error) if error.kind() == Kind::NotFound => {} // merged away since it was listed
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Invalid) => {
                    tracing::warn!(run = info.key, %error, "index run cannot be used; reading its packs instead");
                }
                Err(error) => return Err(error),
            }
        }
        self.replace(runs);
        Ok(())
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<String>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets runs whose entries fail their checksum, which opening does not look at. Reads each run once in its life.
    pub fn drop_damaged(&self) {
        let mut damaged = self.damaged();
        let (whole, broken): (Vec<_>, Vec<_>) = self.runs().iter().cloned().partition(|run| run.is_whole());
        for run in broken {
            tracing::warn!(run = run.key(), "index run is damaged; reading its packs instead");
            damaged.insert(run.key().to_owned());
        }
        self.replace(whole);
    }

    /// Reads the directories of packs that no run covers into a run of this process only. Lists `packs/`.
    ///
    /// # Errors
    /// As the tier; a damaged pack is skipped with a warning.
    pub fn adopt_uncovered(&self, tiers: &[&dyn Tier]) -> Result<usize> {
        let _changing = self.damaged();
        let mut runs: Vec<Arc<Run>> = self.runs().to_vec();
        let covered: HashSet<PackId> = runs.iter().flat_map(|run| run.packs().to_vec()).collect();
        let mut directories = Vec::new();
        for tier in tiers {
            for info in tier.list("packs/")? {
                let Some(id) = PackId::from_key(&info.key).filter(|id| !covered.contains(id)) else {
                    continue;
                };
                match read_directory(*tier, id) {
                    Ok(directory) => directories.push(directory),
                    Err(error) => tracing::warn!(pack = %id, %error, "pack cannot be indexed"),
                }
            }
        }
        if directories.is_empty() {
            return Ok(0);
        }
        let count = directories.len();
        runs.insert(0, Arc::new(Run::open("packs without index", Object::Owned(encode(&directories)?))?));
        self.replace(runs);
        Ok(count)
    }

    fn replace(&self, runs: Vec<Arc<Run>>) {
        *self.runs.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(runs);
    }

    /// All known places of a chunk.
    pub fn find(&self, id: &ChunkId) -> Vec<Location> {
        self.runs().iter().flat_map(|run| run.find(id).collect::<Vec<_>>()).collect()
    }

    /// The first known place of a chunk in a pack that `accept` takes.
    pub fn find_in(&self, id: &ChunkId, accept: impl Fn(&PackId) -> bool) -> Option<Location> {
        self.runs().iter().find_map(|run| run.find(id).find(|location| accept(&location.pack)))
    }
}

#[cfg(test)]
mod tests;
