//! The survey of a collector run, in phases whose order matters: list, find the roots, look again, mark, judge.

use crate::fence::fence_stale;
use crate::mark::Marker;
use crate::pack_selection::PackStates;
use crate::plan::{Clock, Planned};
use crate::report::CollectReport;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use store::condemned::{self, Condemned};
use store::lost_frames::DamagedFrames;
use store::session::{self, Listed};
use store::{Derived, DomainInventory, PackId, Progress, Result, SnapshotId, Store, Tier, Work};

/// Stored and reachable objects, and the plan.
pub(crate) struct Survey {
    /// Every pack and snapshot record with its verdict.
    pub report: CollectReport,
    /// The condemned lists of earlier runs.
    pub lists: Vec<Condemned>,
    pub sessions: Vec<Listed>,
    /// Packs that are gone and are condemned, lost and unneeded, or named by the index.
    pub vanished: HashSet<PackId>,
    /// Packs with a record of lost frames.
    pub noted: HashSet<PackId>,
    /// The snapshots that must stay.
    pub marked: HashSet<SnapshotId>,
    /// Keys of the snapshot records.
    pub keys: HashMap<SnapshotId, String>,
    /// Domains whose records can no longer be read.
    pub destroyed: Vec<String>,
}

impl Survey {
    /// Surveys the store. A dry run changes nothing. Any other run raises the epoch, fences stale sessions, sweeps ended
    /// ones, confirms condemned lists and withdraws dead proposals; `table` takes notes of sessions and marks.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when a root or anything reachable cannot be read; as the tiers.
    pub(crate) fn take(
        store: &Store,
        dry_run: bool,
        table: Option<&Derived>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let listing = Listing::take(store, dry_run, table)?;
        let records = listing.records()?;
        let roots = listing.roots(store, &records, dry_run)?;
        let packs = PacksAfterRefs::take(store, &listing)?;
        let marker = mark(store, &roots, packs.states(&listing), table, progress)?;
        let report = judge(store, &listing, &records, &packs, &marker, dry_run);
        let vanished = packs.vanished(&listing, &marker);
        let marked = marker.marked().clone();
        let keys = records.iter().map(|(id, store)| (*id, store.domain().snapshot_key(id))).collect();
        let noted = listing.noted();
        let Listing { lists, sessions, destroyed, .. } = listing;
        Ok(Self { report, lists, sessions, vanished, noted, marked, keys, destroyed })
    }
}

/// Phase 1: listed before the refs are read. A pack that a commit adds later is needed and not judged.
struct Listing {
    epoch: u64,
    sessions: Vec<Listed>,
    lists: Vec<Condemned>,
    /// Packs to be judged, with their lengths in bytes.
    packs: Vec<(PackId, u64)>,
    damaged: DamagedFrames,
    /// The store in each domain.
    domains: Vec<Store>,
    destroyed: Vec<String>,
}

impl Listing {
    fn take(store: &Store, dry_run: bool, table: Option<&Derived>) -> Result<Self> {
        let tier = store.metadata_tier();
        let epoch = if dry_run { condemned::read_epoch(tier)? + 1 } else { condemned::raise_epoch(tier)? };
        let may_fence = store.is_shared() && !dry_run && tier.guarantees()?.compare_and_swap;
        if let Some(table) = table.filter(|_| may_fence) {
            fence_stale(store, table, epoch)?;
        }
        let sessions = session::alive(store.sessions(), !dry_run)?;
        let lists = lists(tier, dry_run)?;
        let packs = store.packs()?;
        let damaged = DamagedFrames::read_all(tier)?;
        let inventory = DomainInventory::take(store)?;
        let destroyed = inventory.destroyed.clone();
        let domains = inventory.all_open()?;
        store.domains().check_none_is_lost()?;
        Ok(Self { epoch, sessions, lists, packs, damaged, domains, destroyed })
    }

    /// Every snapshot record, and the store in its domain.
    fn records(&self) -> Result<HashMap<SnapshotId, &Store>> {
        let mut records = HashMap::new();
        for domain in &self.domains {
            records.extend(domain.snapshot_ids()?.into_iter().map(|id| (id, domain)));
        }
        Ok(records)
    }

    /// Phase 2: every snapshot that must stay, and the store in its domain. A snapshot that a writer proposed stays if
    /// the writer's session was just seen; else the proposal is withdrawn. Where this host cannot sign, proposals stay.
    fn roots<'a>(
        &'a self,
        store: &'a Store,
        records: &HashMap<SnapshotId, &'a Store>,
        dry_run: bool,
    ) -> Result<BTreeMap<SnapshotId, &'a Store>> {
        let mut roots = BTreeMap::new();
        for id in self.sessions.iter().flat_map(|listed| &listed.record.pinned) {
            roots.insert(*id, records.get(id).copied().unwrap_or(store));
        }
        let is_dead = |session: &str| self.sessions.iter().all(|listed| listed.key != session);
        for domain in &self.domains {
            for found in domain.refs().list()? {
                let dead = found.proposals.iter().any(|proposal| is_dead(&proposal.session));
                let withdraw = dead && !dry_run && domain.may_change_refs();
                let found = if withdraw { domain.refs().withdraw(found, is_dead)? } else { found };
                roots.extend(found.history.iter().map(|entry| (entry.snapshot, domain)));
                let proposed =
                    found.proposals.iter().filter(|proposal| !dry_run || !is_dead(&proposal.session));
                roots.extend(proposed.map(|proposal| (proposal.entry.snapshot, domain)));
            }
        }
        Ok(roots)
    }

    /// Packs with a record of lost frames.
    fn noted(&self) -> HashSet<PackId> {
        self.damaged.packs().map(|(id, _)| id).collect()
    }
}

/// Phase 3: the packs that a mark may depend on, read after the refs: chunks are indexed before a ref names them.
struct PacksAfterRefs {
    /// Packs that the index named before they were listed: one that it names later is not on the list.
    named: HashSet<PackId>,
    /// Existing packs, with their lengths in bytes.
    inventory: HashMap<PackId, u64>,
    /// The epoch since when each pack is condemned. One whose list was never noted as visible counts as condemned now.
    condemned: HashMap<PackId, u64>,
}

impl PacksAfterRefs {
    fn take(store: &Store, listing: &Listing) -> Result<Self> {
        store.index().refresh(store.metadata_tier())?;
        store.index().drop_damaged();
        store.index().adopt_uncovered(&store.tiers())?;
        let named = store.index().named_packs().into_iter().collect();
        let inventory = store.packs()?.into_iter().collect();
        let condemned = epochs(&listing.lists, listing.epoch, |list| &list.packs);
        Ok(Self { named, inventory, condemned })
    }

    fn states<'a>(&'a self, listing: &'a Listing) -> PackStates<'a> {
        PackStates { inventory: &self.inventory, condemned: &self.condemned, damaged: &listing.damaged }
    }

    /// Packs to remove from the index because they are gone: a lost one that is not needed any more, and with it its
    /// record of lost frames; also one that a fenced writer named after it was collected.
    fn vanished(&self, listing: &Listing, marker: &Marker<'_>) -> HashSet<PackId> {
        let mut vanished: HashSet<PackId> = self.condemned.keys().copied().collect();
        vanished.extend(listing.noted());
        vanished.extend(&self.named);
        vanished.retain(|id| !self.inventory.contains_key(id) && !marker.missed().contains(id));
        vanished
    }
}

/// Phase 4: the packs that the roots need.
fn mark<'a>(
    store: &'a Store,
    roots: &BTreeMap<SnapshotId, &Store>,
    states: PackStates<'a>,
    table: Option<&'a Derived>,
    progress: &dyn Progress,
) -> Result<Marker<'a>> {
    let mut marker = Marker::new(store, states, table);
    progress.begin("mark snapshots", Work::Items(roots.len() as u64));
    for (root, store) in roots {
        marker.mark(store, root)?;
        progress.advance(1);
    }
    progress.end();
    Ok(marker)
}

/// Phase 5: the verdict on every pack and snapshot record.
fn judge(
    store: &Store,
    listing: &Listing,
    records: &HashMap<SnapshotId, &Store>,
    packs: &PacksAfterRefs,
    marker: &Marker<'_>,
    dry_run: bool,
) -> CollectReport {
    let oldest_writer = listing.sessions.iter().filter_map(|listed| listed.record.writer_epoch).min();
    let clock = Clock { epoch: listing.epoch, oldest_writer, is_shared: store.is_shared() };
    let mut report = CollectReport { epoch: listing.epoch, dry_run, ..CollectReport::default() };
    for (id, len_bytes) in &listing.packs {
        let (verdict, reason) = clock.decide(marker.reached().contains(id), packs.condemned.get(id).copied());
        report.packs.push(Planned { id: *id, len_bytes: *len_bytes, verdict, reason });
    }
    let condemned = epochs(&listing.lists, listing.epoch, |list| &list.snapshots);
    for id in records.keys() {
        let (verdict, reason) = clock.decide(marker.marked().contains(id), condemned.get(id).copied());
        report.snapshots.push(Planned { id: *id, len_bytes: 0, verdict, reason });
    }
    report.snapshots.sort_unstable_by_key(|planned| planned.id);
    report
}

/// The condemned lists. A collector that wrote one may have died before it noted when the list was visible: it is noted
/// here.
fn lists(tier: &dyn Tier, dry_run: bool) -> Result<Vec<Condemned>> {
    let mut lists = Condemned::read_all(tier)?;
    for list in lists.iter_mut().filter(|list| list.since.is_none() && !dry_run) {
        list.confirm(tier)?;
    }
    Ok(lists)
}

/// The epoch since when each object is condemned.
fn epochs<Id: Copy + Eq + Hash>(
    lists: &[Condemned],
    now: u64,
    ids: impl Fn(&Condemned) -> &Vec<Id>,
) -> HashMap<Id, u64> {
    let of_list = |list| ids(list).iter().map(|id| (*id, list.since.unwrap_or(now)));
    lists.iter().flat_map(of_list).collect()
}
