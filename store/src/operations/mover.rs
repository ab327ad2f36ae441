//! The mover: brings every tier below its limit, pinned snapshots to the hot tier, and drops packs that other hosts
//! deleted. It works beside readers, writers and the collector; one mover works at a time on a host.

use crate::error::{Error, Result};
use crate::host::lock::FileLock;
use crate::host::lock::MOVER_LOCK;
use crate::id::{ChunkId, PackId, SnapshotId};
use crate::operations::reachable::Reached;
use crate::progress::{Progress, Work};
use crate::repo::config::TierClass;
use crate::repo::placement::{Moved, TierUsage};
use crate::repo::store::Store;
use crate::throttle::Throttle;
use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroU64;

/// The snapshots that are pinned to the hot tier, one id a line, in this host's local state.
const PINS: &str = "pins";

/// The result of a run of the mover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MoveReport {
    /// Packs moved to slower tiers or promoted.
    pub moved: Moved,
    /// Local copies dropped, since another host's collector deleted the pack.
    pub strays: TierUsage,
    /// Packs of pinned snapshots for which the hot tier had no room.
    pub pinned_elsewhere: u64,
}

/// Runs the mover once, at most at `rate` bytes a second.
///
/// # Errors
/// `Conflict` while another mover works; as the tiers: packs moved by then stay moved.
pub fn rebalance(store: &Store, rate: Option<NonZeroU64>, progress: &dyn Progress) -> Result<MoveReport> {
    let _lock = lock(store)?;
    let (mut throttle, mut report) = (Throttle::new(rate), MoveReport::default());
    let placement = store.placement();
    report.strays = placement.drop_strays()?;
    let mut pinned = HashSet::new();
    for snapshot in pins(store)? {
        match store.domains().store_of(&snapshot).and_then(|store| packs_of(&store, &snapshot)) {
            Ok(packs) => pinned.extend(packs),
            Err(error) => progress.note(&format!("pin of snapshot {snapshot} has no effect: {error}")),
        }
    }
    placement.make_room_for(&pinned, &pinned, &mut throttle, &mut report.moved)?;
    progress.begin("promote pinned packs", Work::Items(pinned.len() as u64));
    for pack in &pinned {
        let there = placement.promote(*pack, &mut throttle, &mut report.moved)?;
        report.pinned_elsewhere += u64::from(!there);
        progress.advance(1);
    }
    progress.end();
    for (number, tier) in placement.tiers().iter().enumerate() {
        let Some(limit) = tier.limit_bytes else { continue };
        progress.begin("move to slower tiers", Work::SomeBytes);
        placement.shrink(number, limit, &pinned, &mut throttle, &mut report.moved)?;
        progress.end();
    }
    Ok(report)
}

/// Moves the packs of a snapshot to a tier: to the hot one, or step by step to a slower one. Metadata stays hot, and so
/// do packs that pinned snapshots need.
///
/// # Errors
/// `Invalid` when the store has no such tier; as [`rebalance`].
pub fn move_snapshot(
    store: &Store,
    snapshot: &SnapshotId,
    class: TierClass,
    rate: Option<NonZeroU64>,
    progress: &dyn Progress,
) -> Result<MoveReport> {
    let placement = store.placement();
    let target = placement.tiers().iter().position(|tier| tier.class == class).ok_or_else(|| {
        Error::invalid(format!("the store has no {class} tier")).advice("`snapctl tier status` lists them")
    })?;
    let _lock = lock(store)?;
    let mut kept = HashSet::new();
    for pin in pins(store)? {
        kept.extend(packs_of(&store.domains().store_of(&pin)?, &pin)?);
    }
    let packs = packs_of(store, snapshot)?;
    let (mut throttle, mut report) = (Throttle::new(rate), MoveReport::default());
    if target == 0 {
        let wanted: HashSet<PackId> = packs.iter().copied().collect();
        kept.extend(&wanted);
        placement.make_room_for(&wanted, &kept, &mut throttle, &mut report.moved)?;
    }
    progress.begin("move packs", Work::Items(packs.len() as u64));
    for pack in packs {
        if target == 0 {
            let there = placement.promote(pack, &mut throttle, &mut report.moved)?;
            report.pinned_elsewhere += u64::from(!there);
        } else if !kept.contains(&pack) {
            for number in 0..target {
                placement.demote(number, pack, &mut throttle, &mut report.moved)?;
            }
        }
        progress.advance(1);
    }
    progress.end();
    Ok(report)
}

fn lock(store: &Store) -> Result<FileLock> {
    let lock = store.state().lock(MOVER_LOCK, "moving packs")?;
    store.placement().recount();
    Ok(lock)
}

/// The packs that a snapshot needs, one for each chunk, those of bases included. Walks the snapshot.
///
/// # Errors
/// `NotFound` or `Corrupt` when it cannot be walked.
pub fn packs_of(store: &Store, snapshot: &SnapshotId) -> Result<BTreeSet<PackId>> {
    let mut packs = BTreeSet::new();
    Reached::new(store).walk(store, snapshot, &mut |chunk: &ChunkId| {
        packs.extend(store.index().find_in(chunk, |_| true).map(|place| place.pack));
    })?;
    Ok(packs)
}

/// Reads every chunk of a snapshot that is not on the hot tier, so that its frames are in the disk cache. Returns
/// how many chunks were read.
///
/// # Errors
/// As reading.
pub fn warm(store: &Store, snapshot: &SnapshotId, progress: &dyn Progress) -> Result<u64> {
    let mut chunks = BTreeSet::new();
    Reached::new(store).walk(store, snapshot, &mut |chunk: &ChunkId| {
        chunks.insert(*chunk);
    })?;
    let hot = &store.placement().tiers()[0];
    let mut on_hot = std::collections::HashMap::new();
    progress.begin("warm", Work::Items(chunks.len() as u64));
    let mut read = 0;
    for chunk in chunks {
        let place = store.index().find_in(&chunk, |_| true);
        let is_hot = match place {
            Some(place) => match on_hot.get(&place.pack) {
                Some(known) => *known,
                None => {
                    let known = hot.tier.len_bytes(&place.pack.key())?.is_some();
                    on_hot.insert(place.pack, known);
                    known
                }
            },
            None => false,
        };
        if !is_hot {
            store.read_chunk(&chunk)?;
            read += 1;
        }
        progress.advance(1);
    }
    progress.end();
    Ok(read)
}

/// The snapshots pinned to the hot tier.
///
/// # Errors
/// As the system calls; a line that is no id is passed over.
pub fn pins(store: &Store) -> Result<BTreeSet<SnapshotId>> {
    match store.state().read(PINS) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(Error::io("cannot read the pins", store.state_dir().join(PINS).display(), error)),
    }
}

/// Pins a snapshot to the hot tier of this host, or unpins it. The next run of the mover acts on it. False when nothing
/// changed.
///
/// # Errors
/// `Conflict` while a mover works; as the system calls.
pub fn set_pin(store: &Store, snapshot: &SnapshotId, pinned: bool) -> Result<bool> {
    let _lock = lock(store)?;
    let mut all = pins(store)?;
    let changed = if pinned { all.insert(*snapshot) } else { all.remove(snapshot) };
    if changed {
        let text: String = all.iter().map(|id| format!("{id}\n")).collect();
        store.state().replace(PINS, text.as_bytes())?;
    }
    Ok(changed)
}
