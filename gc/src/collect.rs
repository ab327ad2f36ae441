//! One run of the collector: a survey ([`crate::survey`]), then the changes that follow from it.
//!
//! Order, and why: raise the epoch, then list sessions, then refs (so a writer is seen in one of the two); mark; refuse
//! if anything is missing; write the condemned list, and note the epoch when it is visible; remove deleted packs from
//! the index; delete; shorten the lists. The next run goes on from any step. No wall clock is read.

use crate::plan::{Planned, Verdict};
use crate::report::CollectReport;
use crate::survey::Survey;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use store::condemned::Condemned;
use store::{COLLECTOR_LOCK, Derived, Kind, PackId, Progress, Result, SnapshotId, Store, keys, lost_frames};

/// Options of a collection.
#[derive(Clone, Copy, Debug)]
pub struct CollectOptions {
    /// Only report; change nothing.
    pub dry_run: bool,
    /// Number of consecutive runs; three free the data dead now, if no writer is active.
    pub cycles: u32,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { dry_run: false, cycles: 1 }
    }
}

/// Collects, beside writers and readers. One collector at a time.
///
/// # Errors
/// `Conflict` when another collector works; `Corrupt` or `NotFound` when a root or anything reachable cannot be read:
/// nothing was deleted then; else as the tiers: the next run goes on.
pub fn collect(store: &Store, options: &CollectOptions, progress: &dyn Progress) -> Result<CollectReport> {
    let state = store.state();
    let _lock = match options.dry_run {
        true => None,
        false => Some(store.with_reserve(|| state.lock(COLLECTOR_LOCK, "snapctl gc"))?),
    };
    if options.dry_run {
        return run(store, true, None, progress);
    }
    store.check_may_collect()?;
    let mut total = CollectReport::default();
    for _ in 0..options.cycles.max(1) {
        let mut is_full = false;
        let last = store.with_reserve(|| {
            // The reserve is too small for the table, too.
            let table = if is_full { None } else { open_marks(state.path())? };
            is_full = true;
            run(store, false, table.as_ref(), progress)
        })?;
        total = last.after(total);
    }
    Ok(total)
}

/// Opens the results of earlier runs; without them everything is walked.
fn open_marks(state: &Path) -> Result<Option<Derived>> {
    match Derived::open(&state.join("marks")) {
        Ok(table) => Ok(Some(table)),
        Err(error) if error.kind() == Kind::Conflict => Err(error),
        Err(error) => {
            tracing::warn!(%error, "what earlier runs found is not used");
            Ok(None)
        }
    }
}

fn run(
    store: &Store,
    dry_run: bool,
    table: Option<&Derived>,
    progress: &dyn Progress,
) -> Result<CollectReport> {
    let survey = Survey::take(store, dry_run, table, progress).map_err(|error| match error.kind() {
        Kind::Corrupt | Kind::NotFound => error.further_advice("nothing was deleted; run `snapctl check`"),
        _ => error,
    })?;
    let Survey { mut report, lists, sessions, vanished, noted, marked, keys, destroyed } = survey;
    if !dry_run {
        // A power cut must not undo a write that this run depends on: its writer may have died before it was durable.
        [keys::REFS, keys::DOMAINS, keys::INDEX]
            .iter()
            .try_for_each(|prefix| store.metadata_tier().make_durable(prefix))?;
        store.make_packs_durable()?;
        destroyed.iter().try_for_each(|domain| store.domains().remove_records_of(domain))?;
        let noted_and_gone: Vec<PackId> = noted.intersection(&vanished).copied().collect();
        execute(store, &lists, vanished, &keys, &mut report)?;
        let deleted = report.packs.iter().filter(|pack| pack.verdict == Verdict::Delete);
        for pack in deleted.map(|pack| pack.id).filter(|id| noted.contains(id)).chain(noted_and_gone) {
            store.metadata_tier().delete(&lost_frames::key_of(pack))?;
        }
        if let Some(table) = table {
            let mut live: HashSet<&[u8]> = marked.iter().map(|id| id.as_bytes().as_slice()).collect();
            live.extend(sessions.iter().map(|listed| listed.key.as_bytes()));
            if let Err(error) = table.retain(|key| live.contains(key)).and_then(|()| table.flush()) {
                tracing::warn!(%error, "what this run found may be computed again");
            }
        }
    }
    Ok(report)
}

fn with_verdict<Id: Copy + Eq + std::hash::Hash>(
    planned: &[Planned<Id>],
    verdicts: &[Verdict],
) -> HashSet<Id> {
    planned.iter().filter(|object| verdicts.contains(&object.verdict)).map(|object| object.id).collect()
}

fn execute(
    store: &Store,
    lists: &[Condemned],
    vanished: HashSet<PackId>,
    keys: &HashMap<SnapshotId, String>,
    report: &mut CollectReport,
) -> Result<()> {
    let tier = store.metadata_tier();
    // Waiting and doomed objects stay listed until they are gone, from the index too; those taken back are dropped.
    let listed = [Verdict::Wait, Verdict::Avoid, Verdict::Delete];
    let mut listed_packs = with_verdict(&report.packs, &listed);
    listed_packs.extend(&vanished);
    shorten(store, lists, &listed_packs, &with_verdict(&report.snapshots, &listed))?;
    let fresh = Condemned {
        epoch: report.epoch,
        since: None,
        packs: with_verdict(&report.packs, &[Verdict::Condemn]).into_iter().collect(),
        snapshots: with_verdict(&report.snapshots, &[Verdict::Condemn]).into_iter().collect(),
    };
    if !fresh.is_empty() {
        fresh.publish(tier)?;
    }
    let packs = with_verdict(&report.packs, &[Verdict::Delete]);
    let snapshots = with_verdict(&report.snapshots, &[Verdict::Delete]);
    let gone = vanished.into_iter().chain(packs.iter().copied()).collect();
    // Also adds packs whose writer died before it did: a mark may count on them in place of others.
    let merged = match store.index().compact(tier, &gone) {
        // On a full disk the packs go first. Until the index is merged, writers that depend on them are refused.
        Err(error) if error.kind() == Kind::Full && !packs.is_empty() => None,
        merged => Some(merged?),
    };
    for key in snapshots.iter().filter_map(|snapshot| keys.get(snapshot)) {
        tier.delete(key)?;
    }
    for pack in &packs {
        for tier in store.tiers() {
            tier.delete(&pack.key())?;
        }
    }
    report.merged_runs = match merged {
        Some(merged) => merged,
        None => store.index().compact(tier, &gone)?,
    };
    let waiting = [Verdict::Wait, Verdict::Avoid];
    shorten(store, lists, &with_verdict(&report.packs, &waiting), &with_verdict(&report.snapshots, &waiting))
}

/// Drops from the lists all objects but these packs and snapshots.
fn shorten(
    store: &Store,
    lists: &[Condemned],
    packs: &HashSet<PackId>,
    snapshots: &HashSet<SnapshotId>,
) -> Result<()> {
    for list in lists {
        let mut shorter = list.clone();
        shorter.packs.retain(|id| packs.contains(id));
        shorter.snapshots.retain(|id| snapshots.contains(id));
        if shorter != *list {
            shorter.write(store.metadata_tier())?;
        }
    }
    Ok(())
}
