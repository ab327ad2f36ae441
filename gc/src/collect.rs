//! One run of the collector.
//!
//! Order, and why: raise the epoch, then list sessions, then refs (so a writer is seen in one of the two); mark; refuse
//! if anything is missing; write the condemned list, and note the epoch when it is visible; take deleted packs out of the
//! index; delete; shorten the lists. Each step leaves a state from which the next run goes on. No wall clock is read.

use crate::fence::fence_stale;
use crate::mark::Marker;
use crate::places::Scene;
use crate::plan::{Clock, Planned, Verdict};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use store::COLLECTOR_LOCK;
use store::DomainInventory;
use store::condemned::{self, Condemned};
use store::keys;
use store::lost_frames::{self, DamagedFrames};
use store::session::Listed;
use store::{Derived, Kind, PackId, Progress, Result, SnapshotId, Store, Tier, Work, session};

/// How to collect.
#[derive(Clone, Copy, Debug)]
pub struct CollectOptions {
    /// Only tell what a run would do.
    pub dry_run: bool,
    /// How many runs, one after the other; three free what is dead now, if no writer is at work.
    pub cycles: u32,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { dry_run: false, cycles: 1 }
    }
}

/// What the last run did, or would do.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CollectReport {
    /// The run's epoch.
    pub epoch: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Every pack and what happens to it; deletions of all cycles.
    pub packs: Vec<Planned<PackId>>,
    /// Every snapshot record and what happens to it; deletions of all cycles.
    pub snapshots: Vec<Planned<SnapshotId>>,
    /// Index runs that became one.
    pub merged_runs: u64,
}

impl CollectReport {
    /// This run's report with what earlier cycles deleted and merged.
    fn after(mut self, earlier: Self) -> Self {
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
            // What is kept back is too little for the table, too.
            let table = if is_full { None } else { open_marks(state.path())? };
            is_full = true;
            run(store, false, table.as_ref(), progress)
        })?;
        total = last.after(total);
    }
    Ok(total)
}

/// What earlier runs found; without it everything is walked.
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
    let survey = survey(store, dry_run, table, progress).map_err(|error| match error.kind() {
        Kind::Corrupt | Kind::NotFound => error.further_advice("nothing was deleted; run `snapctl check`"),
        _ => error,
    })?;
    let Survey { mut report, lists, sessions, vanished, noted, marked, keys, destroyed } = survey;
    if !dry_run {
        // What is acted on must not be undone by a power cut: whoever wrote it may have died before it was durable.
        [keys::REFS, keys::DOMAINS, keys::INDEX]
            .iter()
            .try_for_each(|prefix| store.home().make_durable(prefix))?;
        store.make_packs_durable()?;
        destroyed.iter().try_for_each(|domain| store.domains().remove_records_of(domain))?;
        let noted_and_gone: Vec<PackId> = noted.intersection(&vanished).copied().collect();
        execute(store, &lists, vanished, &keys, &mut report)?;
        let deleted = report.packs.iter().filter(|pack| pack.verdict == Verdict::Delete);
        for pack in deleted.map(|pack| pack.id).filter(|id| noted.contains(id)).chain(noted_and_gone) {
            store.home().delete(&lost_frames::key_of(pack))?;
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

/// What is there, what is reached, and what is to happen.
struct Survey {
    report: CollectReport,
    lists: Vec<Condemned>,
    sessions: Vec<Listed>,
    /// Packs that are condemned, lost and unneeded, or named by the index, and gone.
    vanished: HashSet<PackId>,
    /// Packs with a record of what is lost in them.
    noted: HashSet<PackId>,
    marked: HashSet<SnapshotId>,
    /// Keys of the snapshot records.
    keys: HashMap<SnapshotId, String>,
    /// Domains whose records nobody can read any more.
    destroyed: Vec<String>,
}

fn survey(store: &Store, dry_run: bool, table: Option<&Derived>, progress: &dyn Progress) -> Result<Survey> {
    let tier = store.home();
    let epoch = match dry_run {
        true => condemned::read_epoch(tier)? + 1,
        false => condemned::raise_epoch(tier)?,
    };
    let may_fence = store.is_shared() && !dry_run && tier.guarantees()?.compare_and_swap;
    if let Some(table) = table.filter(|_| may_fence) {
        fence_stale(store, table, epoch)?;
    }
    let sessions = session::alive(store.sessions(), !dry_run)?;
    let lists = lists(tier, dry_run)?;
    let packs = store.packs()?;
    let damaged = DamagedFrames::read_all(tier)?;
    let domains = DomainInventory::take(store)?;
    let destroyed = domains.destroyed.clone();
    let domains = domains.all_open()?;
    store.domains().check_none_is_lost()?;
    let mut records: HashMap<SnapshotId, &Store> = HashMap::new();
    for domain in &domains {
        records.extend(domain.snapshot_ids()?.into_iter().map(|id| (id, domain)));
    }
    let roots = roots(store, &domains, &records, &sessions, dry_run)?;
    // The index is read after the refs: what they name was indexed before they named it.
    store.index().refresh(tier)?;
    store.index().drop_damaged();
    store.index().adopt_uncovered(&store.tiers())?;

    // Packs are listed before the refs, to be judged, and after them, to be counted on: what a commit adds between the two
    // is needed and not judged. What the index names is taken before that: a pack that it names later is not on the list.
    let named = store.index().named_packs();
    let inventory: HashMap<PackId, u64> = store.packs()?.into_iter().collect();
    // What nobody noted to be visible counts as condemned now.
    let condemned = epochs(&lists, epoch, |list| &list.packs);
    let scene = Scene { inventory: &inventory, condemned: &condemned, damaged: &damaged };
    let mut marker = Marker::new(store, scene, table);
    progress.begin("mark snapshots", Work::Items(roots.len() as u64));
    for (root, store) in &roots {
        marker.mark(store, root)?;
        progress.advance(1);
    }
    progress.end();

    let oldest_writer = sessions.iter().filter_map(|listed| listed.record.writer_epoch).min();
    let clock = Clock { epoch, oldest_writer, is_shared: store.is_shared() };
    let plan = |reached, condemned: Option<&u64>| clock.decide(reached, condemned.copied());
    let mut report = CollectReport { epoch, dry_run, ..CollectReport::default() };
    for (id, len_bytes) in packs {
        let (verdict, reason) = plan(marker.reached().contains(&id), condemned.get(&id));
        report.packs.push(Planned { id, len_bytes, verdict, reason });
    }
    let marked = marker.marked().clone();
    let condemned_records = epochs(&lists, epoch, |list| &list.snapshots);
    let mut keys = HashMap::new();
    for (id, store) in records {
        let (verdict, reason) = plan(marked.contains(&id), condemned_records.get(&id));
        report.snapshots.push(Planned { id, len_bytes: 0, verdict, reason });
        keys.insert(id, store.domain().snapshot_key(&id));
    }
    report.snapshots.sort_unstable_by_key(|planned| planned.id);
    // A lost pack that nothing needs any more goes from the index, and with it what was noted of it. So does one that a fenced
    // writer told of after it was collected.
    let noted: HashSet<PackId> = damaged.packs().map(|(id, _)| id).collect();
    let mut vanished: HashSet<PackId> = condemned.keys().copied().chain(noted.iter().copied()).collect();
    vanished.extend(named);
    vanished.retain(|id| !inventory.contains_key(id) && !marker.missed().contains(id));
    Ok(Survey { report, lists, sessions, vanished, noted, marked, keys, destroyed })
}

/// Every snapshot that must stay, and the store in its domain. What a writer proposed is one if its session was just seen;
/// else it is withdrawn. Where this host cannot sign, what was proposed stays.
fn roots<'a>(
    store: &'a Store,
    domains: &'a [Store],
    records: &HashMap<SnapshotId, &'a Store>,
    sessions: &[Listed],
    dry_run: bool,
) -> Result<BTreeMap<SnapshotId, &'a Store>> {
    let mut roots = BTreeMap::new();
    for id in sessions.iter().flat_map(|listed| &listed.record.pinned) {
        roots.insert(*id, records.get(id).copied().unwrap_or(store));
    }
    let is_dead = |session: &str| sessions.iter().all(|listed| listed.key != session);
    for domain in domains {
        for found in domain.refs().list()? {
            let dead = found.proposals.iter().any(|proposal| is_dead(&proposal.session));
            let withdraw = dead && !dry_run && domain.may_change_refs();
            let found = if withdraw { domain.refs().withdraw(found, is_dead)? } else { found };
            roots.extend(found.history.iter().map(|entry| (entry.snapshot, domain)));
            let proposed = found.proposals.iter().filter(|proposal| !dry_run || !is_dead(&proposal.session));
            roots.extend(proposed.map(|proposal| (proposal.entry.snapshot, domain)));
        }
    }
    Ok(roots)
}

/// The condemned lists. Whoever wrote one may have died before it noted when the list was visible, so that is noted here.
fn lists(tier: &dyn Tier, dry_run: bool) -> Result<Vec<Condemned>> {
    let mut lists = Condemned::read_all(tier)?;
    for list in lists.iter_mut().filter(|list| list.since.is_none() && !dry_run) {
        list.confirm(tier)?;
    }
    Ok(lists)
}

/// The epoch since when each object is condemned.
fn epochs<Id: Copy + Eq + std::hash::Hash>(
    lists: &[Condemned],
    now: u64,
    ids: impl Fn(&Condemned) -> &Vec<Id>,
) -> HashMap<Id, u64> {
    let of_list = |list| ids(list).iter().map(|id| (*id, list.since.unwrap_or(now)));
    lists.iter().flat_map(of_list).collect()
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
    let tier = store.home();
    // Waiting and doomed objects stay listed until they are gone, from the index too; what was taken back is dropped.
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
    // Also puts in packs whose writer died before it did: a mark may count on them in place of others.
    let merged = match store.index().compact(tier, &gone) {
        // On a full disk the packs have to go first. Until the index is merged, writers that lean on them are refused.
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

/// Drops from the lists what is not to stay on them.
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
            shorter.write(store.home())?;
        }
    }
    Ok(())
}
