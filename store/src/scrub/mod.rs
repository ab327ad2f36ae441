//! Scrub: reads and verifies every stored byte of some or all packs on every tier of this host, at a bounded rate,
//! reports which files damage affects, and on request repairs damaged packs.
//!
//! Without `repair` nothing changes. With it, the collector and the mover wait, damaged bytes are kept in quarantine,
//! and lost frames are recorded ([`crate::records::lost_frames`]). Memory: a pack or two for each tier, a bit for each
//! chunk.
//!
//! `operations/verify_pack` verifies one pack, `assemble` rebuilds one, `repair` changes tiers, `affected` walks snapshots.

mod affected;
mod assemble;
mod repair;
mod report;

pub use report::{
    AffectedPath, AffectedSnapshot, Damage, LostFrames, MAX_DAMAGES, MAX_PATHS, MAX_SNAPSHOTS, Remedy,
    ScrubReport,
};

use crate::error::{Error, Kind, Result};
use crate::host::lock::{COLLECTOR_LOCK, MOVER_LOCK};
use crate::id::{ChunkId, PackId, SnapshotId};
use crate::index::{Location, RowMarks, Run};
use crate::keys;
use crate::operations::check::{check_all_records, index_packs};
use crate::operations::domain_inventory::DomainInventory;
use crate::operations::verify_pack::{self, Examined, PackCopy, read_copy};
use crate::progress::{Progress, Work};
use crate::records::lost_frames;
use crate::repo::store::Store;
use crate::throttle::Throttle;
use crate::wire::checksum;
use affected::Search;
use assemble::{Assembled, LostFrame, Sources};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};

/// One of `count` parts of all packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subset {
    number: u32,
    count: u32,
}

impl Subset {
    /// Part `number`, from 1, of `count`.
    ///
    /// # Errors
    /// `Invalid` when there is no such part.
    pub fn new(number: u32, count: u32) -> Result<Self> {
        match (1..=count).contains(&number) {
            true => Ok(Self { number, count }),
            false => Err(Error::invalid(format!("no part {number} of {count}"))),
        }
    }

    /// Whether a pack is in it: each pack is in one of `count` subsets, always the same.
    pub fn holds(&self, pack: PackId) -> bool {
        checksum(&pack.to_bytes()) % u64::from(self.count) == u64::from(self.number - 1)
    }
}

/// How to scrub.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScrubOptions {
    /// Only these packs.
    pub subset: Option<Subset>,
    /// Most bytes to read a second.
    pub rate: Option<NonZeroU64>,
    /// Repair damaged packs, and record lost frames.
    pub repair: bool,
}

/// A scrub under way.
struct Scrub<'a> {
    store: &'a Store,
    domains: &'a DomainInventory,
    repair: bool,
    throttle: Throttle,
    /// Packs with intact bytes staged by an interrupted repair, and on which tiers.
    staged: BTreeMap<PackId, Vec<usize>>,
    /// Chunks that have no readable copy.
    lost: RowMarks,
    report: ScrubReport,
}

/// A tier's copy of a pack.
struct Copy {
    tier: usize,
    copy: PackCopy,
    examined: Examined,
}

/// While this lives, reads from remote tiers are not cached locally: a scrub without repair changes nothing.
struct Looking<'a>(&'a AtomicBool);

impl<'a> Looking<'a> {
    fn at(store: &'a Store) -> Self {
        store.inner.keeps_local.store(false, Ordering::Relaxed);
        Self(&store.inner.keeps_local)
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Scrubs the store.
///
/// # Errors
/// `Conflict` for a repair while a collector or a mover works; as the tiers when they cannot be listed. All other
/// errors are in the report.
pub fn scrub(store: &Store, options: &ScrubOptions, progress: &dyn Progress) -> Result<ScrubReport> {
    let lock = |name| store.state().lock(name, "scrub");
    let _locks = match options.repair {
        true => Some((lock(COLLECTOR_LOCK)?, lock(MOVER_LOCK)?)),
        false => None,
    };
    let _looking = Looking::at(store);
    let mut report = ScrubReport::default();
    let domains = DomainInventory::take(store)?;
    let snapshots = check_all_records(store, &domains, &mut report.records)?;
    for (store, snapshots) in domains.open.iter().zip(&snapshots) {
        for (id, refs) in snapshots {
            if let Err(error) = store.snapshot(id) {
                report.records.problem_affecting(format!("snapshot {id}"), &error, refs.clone());
            }
        }
    }
    store.index().refresh(store.metadata_tier())?;
    store.index().adopt_uncovered(&store.tiers())?;
    let mut scrub = Scrub {
        store,
        domains: &domains,
        repair: options.repair,
        throttle: Throttle::new(options.rate),
        staged: repair::staged(store)?,
        lost: RowMarks::new(store.index()),
        report,
    };
    scrub.scrub_packs(options.subset, progress)?;
    if options.repair {
        scrub.scrub_runs(progress);
    }
    scrub.find_affected(&snapshots, progress);
    scrub.report.advise();
    Ok(scrub.report)
}

impl Scrub<'_> {
    /// Scrubs all packs of the subset that are on a tier, or should be.
    fn scrub_packs(&mut self, subset: Option<Subset>, progress: &dyn Progress) -> Result<()> {
        let mut packs: BTreeMap<PackId, u64> =
            self.store.index().named_packs().into_iter().map(|pack| (pack, 0)).collect();
        packs.extend(self.store.packs()?);
        let mut noted = BTreeMap::new();
        for info in self.store.metadata_tier().list(keys::LOST_FRAMES)? {
            let Some(pack) = lost_frames::pack_of(&info.key) else { continue };
            packs.entry(pack).or_insert(0);
            let offsets = match lost_frames::read(self.store.metadata_tier(), &info.key) {
                Ok(found) => found.map(|found| found.offsets).unwrap_or_default(),
                Err(error) => {
                    if !self.repair {
                        self.report.records.problem(&info.key, &error);
                    }
                    Vec::new()
                }
            };
            noted.insert(pack, offsets);
        }
        packs.retain(|pack, _| subset.is_none_or(|subset| subset.holds(*pack)));
        progress.begin("scrub", Work::Bytes(packs.values().sum()));
        for (pack, len_bytes) in packs {
            self.report.packs += 1;
            self.scrub_pack(pack, noted.get(&pack).map(Vec::as_slice))?;
            progress.advance(len_bytes);
        }
        progress.end();
        Ok(())
    }

    /// Scrubs one pack, of which these frames are known to be lost.
    fn scrub_pack(&mut self, id: PackId, noted: Option<&[u64]>) -> Result<()> {
        let is_noted = noted.is_some();
        let copies = self.read_copies(id);
        let is_missing = copies.is_empty();
        if is_missing && !self.is_missed(id)? && !is_noted {
            return Ok(()); // collected meanwhile
        }
        if !is_missing && copies.iter().all(|copy| copy.examined.faults.is_empty()) {
            if is_noted && self.repair {
                self.note_lost(id, &[]);
            }
            if let Some(copy) = copies.first() {
                self.end_staging(id, &copy.copy.bytes);
            }
            return Ok(());
        }
        let staged = self.staged(id);
        let bytes = copies.iter().map(|copy| copy.copy.bytes.as_slice());
        let sources = Sources {
            domains: self.domains,
            id,
            copies: bytes.chain(staged.iter().map(Vec::as_slice)).collect(),
            entries: match copies.iter().any(|copy| copy.examined.directory.is_some()) {
                true => None,
                false => self.store.index().entries_of(id),
            },
            disk_cache: self.store.disk_cache(),
        };
        match sources.assemble() {
            Assembled::Whole(whole) => self.settle_intact(id, &copies, &whole, is_noted),
            Assembled::Missing { lost, reason } => {
                self.report_lost_frames(id, &copies, &lost, &reason, noted)
            }
        }
        Ok(())
    }

    /// Reads and verifies the pack on every tier that has it.
    fn read_copies(&mut self, id: PackId) -> Vec<Copy> {
        let mut copies = Vec::new();
        for (number, tier) in self.store.tiers().into_iter().enumerate() {
            let throttle = &mut self.throttle;
            match read_copy(tier, id, &mut |bytes| throttle.pass(bytes)) {
                Ok(copy) => {
                    let examined = copy.examine(self.domains, id);
                    self.report.copies += 1;
                    self.report.read_bytes += copy.bytes.len() as u64;
                    self.report.frames += examined.frames;
                    self.report.locked_frames += examined.locked_frames;
                    copies.push(Copy { tier: number, copy, examined });
                }
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => {
                    self.report.records.problem(format!("{} in {}", id.key(), tier.describe()), &error);
                }
            }
        }
        copies
    }

    /// Whether the index still names a pack that no tier has.
    fn is_missed(&self, id: PackId) -> Result<bool> {
        let (index, metadata_tier) = (self.store.index(), self.store.metadata_tier());
        let listed = metadata_tier.list(keys::INDEX)?;
        let runs = index.runs();
        let mut naming = runs.iter().filter(|run| run.is_stored() && run.packs().any(|pack| pack == id));
        if naming.any(|run| listed.iter().any(|info| info.key == run.key())) {
            return Ok(true);
        }
        index.refresh(metadata_tier)?;
        let is_named = index.named_packs().contains(&id);
        index.adopt_uncovered(&self.store.tiers())?;
        Ok(is_named)
    }

    /// Intact bytes that a repair staged for a copy that it could not replace in one step.
    fn staged(&self, id: PackId) -> Vec<Vec<u8>> {
        let tiers = self.store.tiers();
        let numbers = self.staged.get(&id).into_iter().flatten();
        let read = |number: &usize| Some(tiers[*number].get(&repair::staged_key(id)).ok()?.to_vec());
        numbers.filter_map(read).collect()
    }

    /// Completes an interrupted repair: stores the pack where it was, and removes the staged bytes.
    fn end_staging(&mut self, id: PackId, whole: &[u8]) {
        for number in self.staged.remove(&id).filter(|_| self.repair).unwrap_or_default() {
            let tier = self.store.tiers()[number];
            if let Err(error) = repair::put_back(self.store, tier, id, whole) {
                self.report.records.problem(repair::staged_key(id), &error);
            }
        }
    }

    /// The pack is recoverable: repairs its damaged copies, or reports that it could.
    fn settle_intact(&mut self, id: PackId, copies: &[Copy], whole: &[u8], is_noted: bool) {
        let store = self.store;
        let tiers = store.tiers();
        let mut has_failed = false;
        for Copy { tier, copy, examined } in copies.iter().filter(|copy| !copy.examined.faults.is_empty()) {
            let remedy = match self.repair {
                false => Remedy::Repairable,
                true => match repair::replace(store, tiers[*tier], id, copy, whole) {
                    Ok(quarantine) => Remedy::Repaired { quarantine: Some(quarantine) },
                    Err(error) => Remedy::Failed { error: error.to_string() },
                },
            };
            let is_repaired = matches!(remedy, Remedy::Repaired { .. });
            self.report.repaired_copies += u64::from(is_repaired);
            has_failed |= !is_repaired;
            self.report_damage(id, tiers[*tier].describe(), examined, &remedy);
        }
        if copies.is_empty() {
            let remedy = match (self.repair, store.is_shared()) {
                (_, true) => {
                    Remedy::Failed { error: "another host's collector may have deleted it".to_owned() }
                }
                (false, _) => Remedy::Repairable,
                (true, false) => match repair::put_back(store, tiers[0], id, whole) {
                    Ok(()) => Remedy::Repaired { quarantine: None },
                    Err(error) => Remedy::Failed { error: error.to_string() },
                },
            };
            has_failed |= !matches!(remedy, Remedy::Repaired { .. });
            self.report_missing_pack(id, remedy);
        }
        if is_noted && self.repair && !has_failed {
            self.note_lost(id, &[]);
        }
        self.end_staging(id, whole);
    }

    /// Reports a pack with lost frames. Lost frames that are recorded and read from other packs are no damage any more.
    fn report_lost_frames(
        &mut self,
        id: PackId,
        copies: &[Copy],
        lost: &[LostFrame],
        reason: &Error,
        noted: Option<&[u64]>,
    ) {
        let offsets: Vec<u64> = lost.iter().map(|frame| frame.extent.offset).collect();
        let mut is_noted = noted == Some(&offsets);
        if self.repair && !offsets.is_empty() && !is_noted {
            is_noted = self.note_lost(id, &offsets);
        }
        let (mut lost_chunks, mut read_elsewhere) = (0, 0);
        let mut known = HashMap::new();
        for frame in lost {
            for chunk in &frame.chunks {
                match self.is_elsewhere(chunk, id, frame.extent.offset, &mut known) {
                    true => read_elsewhere += 1,
                    false => lost_chunks += u64::from(self.lost.insert(chunk)),
                }
            }
        }
        let is_harmless = is_noted && lost_chunks == 0;
        let what = if is_harmless { ", and their chunks are read from other packs" } else { "" };
        let remedy = Remedy::Missing { reason: format!("{reason}{what}") };
        let tiers = self.store.tiers();
        let before = self.report.damaged_copies;
        for copy in copies.iter().filter(|copy| !copy.examined.faults.is_empty()) {
            self.report_damage(id, tiers[copy.tier].describe(), &copy.examined, &remedy);
        }
        if copies.is_empty() {
            self.report_missing_pack(id, remedy);
        }
        if is_harmless {
            self.report.damaged_copies = before;
        }
        if !offsets.is_empty() {
            self.report.lost.push(LostFrames { pack: id, offsets, lost_chunks, read_elsewhere });
        }
    }

    fn report_damage(&mut self, pack: PackId, tier: String, examined: &Examined, remedy: &Remedy) {
        self.report.damaged_copies += u64::from(!matches!(remedy, Remedy::Repaired { .. }));
        for fault in &examined.faults {
            let (tier, remedy) = (tier.clone(), remedy.clone());
            let error = fault.error.to_string();
            self.report.damage(Damage { tier, pack, offset: fault.offset, error, remedy });
        }
    }

    fn report_missing_pack(&mut self, pack: PackId, remedy: Remedy) {
        self.report.damaged_copies += u64::from(!matches!(remedy, Remedy::Repaired { .. }));
        let error = "the index names it, and no tier has it".to_owned();
        self.report.damage(Damage { tier: "no tier".to_owned(), pack, offset: 0, error, remedy });
    }

    /// Records the lost frames of a pack; false when that failed.
    fn note_lost(&mut self, id: PackId, offsets: &[u64]) -> bool {
        let noted = repair::note_lost(self.store.metadata_tier(), id, offsets);
        noted.inspect_err(|error| self.report.records.problem(lost_frames::key_of(id), error)).is_ok()
    }

    /// Whether a chunk is intact in another frame than the lost one. `known`: frames verified already.
    fn is_elsewhere(
        &self,
        chunk: &ChunkId,
        pack: PackId,
        offset: u64,
        known: &mut HashMap<(PackId, u64), bool>,
    ) -> bool {
        let others = self.store.index().find(chunk).into_iter();
        let mut others = others.filter(|place| (place.pack, place.offset) != (pack, offset));
        others.any(|place| {
            *known.entry((place.pack, place.offset)).or_insert_with(|| self.is_frame_intact(&place))
        })
    }

    fn is_frame_intact(&self, place: &Location) -> bool {
        let verify = |bytes: &[u8]| verify_pack::verify(self.domains, bytes).is_ok();
        let (key, offset, len) = (place.pack.key(), place.offset, place.len_bytes);
        let is_on = |tier: &&dyn crate::tier::Tier| {
            tier.get_range(&key, offset, len).is_ok_and(|bytes| verify(&bytes))
        };
        self.store.tiers().iter().any(is_on)
            || self.store.disk_cache().get(place.pack, offset, len).is_some_and(|bytes| verify(&bytes))
    }

    /// Replaces damaged index runs by runs made from the packs.
    fn scrub_runs(&mut self, progress: &dyn Progress) {
        match self.replace_runs(progress) {
            Ok(0) => {}
            Ok(count) => {
                self.report.repaired_runs = count;
                self.report.records.problems.retain(|problem| !problem.object.starts_with(keys::INDEX));
            }
            Err(error) => {
                self.report.records.problem(keys::INDEX, &error.further_advice("the index stays as it is"))
            }
        }
    }

    fn replace_runs(&self, progress: &dyn Progress) -> Result<u64> {
        let metadata_tier = self.store.metadata_tier();
        let (mut damaged, mut covered) = (Vec::new(), BTreeSet::new());
        for info in metadata_tier.list(keys::INDEX)? {
            let object = metadata_tier.get(&info.key)?;
            match Run::open(&info.key, object).and_then(|run| run.verify().map(|()| run)) {
                Ok(run) => covered.extend(run.packs()),
                Err(error) if error.kind() == Kind::Corrupt => damaged.push(info.key),
                Err(error) => return Err(error),
            }
        }
        if damaged.is_empty() {
            return Ok(0);
        }
        let packs = self.store.packs()?.into_iter().map(|(pack, _)| pack);
        let uncovered: Vec<PackId> = packs.filter(|pack| !covered.contains(pack)).collect();
        index_packs(self.store, &uncovered, progress)?;
        for key in &damaged {
            repair::keep_aside(metadata_tier, key, &metadata_tier.get(key)?)?;
            metadata_tier.delete(key)?;
        }
        self.store.index().refresh(metadata_tier)?;
        Ok(damaged.len() as u64)
    }

    /// Finds the snapshots that need lost chunks.
    fn find_affected(&mut self, snapshots: &[BTreeMap<SnapshotId, Vec<String>>], progress: &dyn Progress) {
        if self.lost.is_empty() {
            return;
        }
        let count = snapshots.iter().map(BTreeMap::len).sum::<usize>();
        progress.begin("find affected files", Work::Items(count as u64));
        for (store, snapshots) in self.domains.open.iter().zip(snapshots) {
            let mut search = Search::new(store, &self.lost);
            for (id, refs) in snapshots {
                match search.look(*id, refs) {
                    Some(affected) if self.report.affected.len() < MAX_SNAPSHOTS => {
                        self.report.affected.push(affected)
                    }
                    Some(_) => self.report.more_affected += 1,
                    None => {}
                }
                progress.advance(1);
            }
        }
        progress.end();
    }
}
