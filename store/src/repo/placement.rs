//! Placement of packs on the tiers: limits, and moves from a faster tier to the next slower one.
//!
//! A copy is released only when the next tier holds an intact one; a new copy is read back first. Metadata never leaves
//! the hot tier. Packs move in the order of their last read, longest unread first. Nothing here deletes a last copy.

use crate::error::{Error, Kind, OptionalExt, Result};
use crate::id::PackId;
use crate::keys;
use crate::pack::{self, PackKind, read_directory};
use crate::repo::config::{DataTier, StoreConfig, TierClass};
use crate::sync::Mutex;
use crate::throttle::Throttle;
use crate::tier::Tier;
use std::collections::{HashMap, HashSet};

/// Minimum interval between two notes of one pack's use, in seconds.
const TOUCH_SECONDS: u64 = 600;
/// Packs whose use is remembered as noted.
const TOUCHED_MAX: usize = 100_000;

/// The data tiers of a store and the known use of each.
#[derive(Debug)]
pub struct Placement {
    tiers: Vec<DataTier>,
    is_shared: bool,
    /// Bytes of packs on each tier with a limit, once counted.
    used: Mutex<Vec<Option<u64>>>,
}

/// Packs and bytes on a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierUsage {
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Packs moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Packs copied to a slower tier.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Packs released from a faster tier, intact on a slower one.
    pub released: u64,
    /// Their bytes.
    pub released_bytes: u64,
}

impl Placement {
    /// The placement of a store's packs.
    pub fn new(config: &StoreConfig) -> Self {
        let used = Mutex::new(vec![None; config.tiers.len()]);
        Self { tiers: config.tiers.clone(), is_shared: config.is_shared, used }
    }

    /// The data tiers, fastest first.
    pub fn tiers(&self) -> &[DataTier] {
        &self.tiers
    }

    /// Packs on the tier of this number. Lists them.
    ///
    /// # Errors
    /// As the tier.
    pub fn usage(&self, number: usize) -> Result<TierUsage> {
        let infos = self.tiers[number].tier.list(keys::PACKS)?;
        let usage =
            TierUsage { packs: infos.len() as u64, bytes: infos.iter().map(|info| info.len_bytes).sum() };
        self.set_used(number, Some(usage.bytes));
        Ok(usage)
    }

    /// Forgets the counts, so that the next use lists each tier again: other processes have put and moved packs, too.
    pub fn recount(&self) {
        self.used.lock().fill(None);
    }

    fn set_used(&self, number: usize, used: Option<u64>) {
        self.used.lock()[number] = used;
    }

    fn used(&self, number: usize) -> Result<u64> {
        let known = self.used.lock()[number];
        known.map_or_else(|| self.usage(number).map(|usage| usage.bytes), Ok)
    }

    /// Stores a new pack on the tier of this number, within the limits: packs in the way move on first. In a shared
    /// store it is stored on the last tier before any other.
    ///
    /// # Errors
    /// `Full` when the only tier it may be stored on is full and nothing on it may move; `Internal` when a pack of this
    /// name exists; else as the tiers.
    pub fn land(&self, number: usize, id: PackId, bytes: &[u8]) -> Result<()> {
        let (key, last) = (id.key(), self.tiers.len() - 1);
        if self.is_shared && number < last {
            self.put(&*self.tiers[last].tier, &key, bytes)?;
            return match self.make_room(number, bytes.len() as u64) {
                Ok(()) => self.put_counted(number, &key, bytes),
                // The local copy only saves fetches.
                Err(error) if error.kind() == Kind::Full => Ok(()),
                Err(error) => Err(error),
            };
        }
        self.make_room(number, bytes.len() as u64)?;
        self.put_counted(number, &key, bytes)
    }

    fn put(&self, tier: &dyn Tier, key: &str, bytes: &[u8]) -> Result<()> {
        match tier.put_if_absent(key, bytes)? {
            true => Ok(()),
            false => Err(Error::new(Kind::Internal, "a pack of this name is there already")
                .object(format!("{key} in {}", tier.describe()))),
        }
    }

    fn put_counted(&self, number: usize, key: &str, bytes: &[u8]) -> Result<()> {
        self.put(&*self.tiers[number].tier, key, bytes)?;
        self.add_used(number, bytes.len() as u64);
        Ok(())
    }

    fn add_used(&self, number: usize, bytes: u64) {
        if let Some(used) = &mut self.used.lock()[number] {
            *used += bytes;
        }
    }

    fn sub_used(&self, number: usize, bytes: u64) {
        if let Some(used) = &mut self.used.lock()[number] {
            *used = used.saturating_sub(bytes);
        }
    }

    /// Makes sure that `bytes` more fit within the limit of a tier.
    ///
    /// # Errors
    /// `Full` when the packs there may not move; else as the tiers.
    pub fn make_room(&self, number: usize, bytes: u64) -> Result<()> {
        let Some(limit) = self.tiers[number].limit_bytes else { return Ok(()) };
        if self.used(number)?.saturating_add(bytes) <= limit {
            return Ok(());
        }
        let target = limit.saturating_sub(bytes);
        let left =
            self.shrink(number, target, &HashSet::new(), &mut Throttle::new(None), &mut Moved::default())?;
        if left <= target && bytes <= limit {
            return Ok(());
        }
        let tier = &self.tiers[number];
        Err(Error::new(
            Kind::Full,
            format!(
                "the {} tier may hold {limit} bytes, and what it holds cannot move to a slower one",
                tier.class
            ),
        )
        .object(tier.tier.describe())
        .advice("raise its limit, add a tier, or run `snapctl forget` and `snapctl gc`"))
    }

    /// Moves packs off a tier, longest unread first, until at most `target` bytes are left or nothing more may move;
    /// those in `pinned` stay. Returns the bytes left.
    ///
    /// # Errors
    /// As the tiers: packs moved by then stay moved.
    pub fn shrink(
        &self,
        number: usize,
        target: u64,
        pinned: &HashSet<PackId>,
        throttle: &mut Throttle,
        moved: &mut Moved,
    ) -> Result<u64> {
        let tier = &self.tiers[number];
        let infos = tier.tier.list(keys::PACKS)?;
        let mut left: u64 = infos.iter().map(|info| info.len_bytes).sum();
        self.set_used(number, Some(left));
        if left <= target || number + 1 == self.tiers.len() {
            return Ok(left);
        }
        let mut candidates = Vec::with_capacity(infos.len());
        for info in infos {
            if let Some(id) = PackId::from_key(&info.key).filter(|id| !pinned.contains(id)) {
                candidates.push((tier.tier.last_used(&info.key)?, id, info.len_bytes));
            }
        }
        candidates.sort_unstable();
        for (_, id, len_bytes) in candidates {
            if left <= target {
                break;
            }
            match self.demote(number, id, throttle, moved) {
                Ok(true) => left -= len_bytes,
                Ok(false) => {}
                // Another process made room at the same time.
                Err(error) if error.kind() == Kind::NotFound && tier.tier.len_bytes(&id.key())?.is_none() => {
                    left -= len_bytes;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    /// Moves one pack to the next slower tier; false when it may not move.
    ///
    /// # Errors
    /// As the tiers: the pack stays where it was.
    pub fn demote(
        &self,
        number: usize,
        id: PackId,
        throttle: &mut Throttle,
        moved: &mut Moved,
    ) -> Result<bool> {
        let (source, target) = (&self.tiers[number], &self.tiers[number + 1]);
        let key = id.key();
        let Some(kind) = pack::read_kind(&*source.tier, id).optional()? else { return Ok(false) };
        if kind == PackKind::Meta && source.class == TierClass::Hot {
            return Ok(false);
        }
        let len_bytes = match target.tier.len_bytes(&key)? {
            Some(_) => {
                // It was verified when it was stored. A bucket keeps checksums, so its directory shows that it is still
                // intact; disks rot, so their copies are read again.
                let here = read_directory(&*source.tier, id)?;
                if read_directory(&*target.tier, id)? != here {
                    return Err(copies_differ(id, target));
                }
                if target.class == TierClass::Warm {
                    let body = source.tier.get(&key)?;
                    if *target.tier.get(&key)? != *body {
                        return Err(copies_differ(id, target));
                    }
                    // A process that copied it may have died before its name was durable: this only syncs it.
                    target.tier.put_if_absent(&key, &body)?;
                }
                source.tier.len_bytes(&key)?.unwrap_or(0)
            }
            None => {
                let len_bytes = source.tier.len_bytes(&key)?.unwrap_or(0);
                self.make_room(number + 1, len_bytes)?;
                let copied = self.copy(id, source, number + 1)?;
                throttle.pass(copied);
                moved.copied += 1;
                moved.copied_bytes += copied;
                copied
            }
        };
        source.tier.delete(&key)?;
        self.sub_used(number, len_bytes);
        moved.released += 1;
        moved.released_bytes += len_bytes;
        tracing::debug!(pack = %id, from = %source.class, to = %target.class, "released");
        Ok(true)
    }

    /// Copies a pack to the tier of a number and reads the copy back.
    fn copy(&self, id: PackId, source: &DataTier, number: usize) -> Result<u64> {
        let (key, target) = (id.key(), &self.tiers[number]);
        let body = source.tier.get(&key)?;
        // A damaged pack must not take the place of a good one elsewhere.
        read_directory(&*source.tier, id)?;
        if target.tier.put_if_absent(&key, &body)? {
            self.add_used(number, body.len() as u64);
        }
        if *target.tier.get(&key)? != *body {
            return Err(copies_differ(id, target));
        }
        Ok(body.len() as u64)
    }

    /// Promotes a pack to the hot tier, if there is room without moving anything. True when it is there now.
    ///
    /// # Errors
    /// As the tiers.
    pub fn promote(&self, id: PackId, throttle: &mut Throttle, moved: &mut Moved) -> Result<bool> {
        let key = id.key();
        let hot = &self.tiers[0];
        if hot.tier.len_bytes(&key)?.is_some() {
            return Ok(true);
        }
        for source in &self.tiers[1..] {
            let Some(len_bytes) = source.tier.len_bytes(&key)? else { continue };
            if let Some(limit) = hot.limit_bytes
                && self.used(0)?.saturating_add(len_bytes) > limit
            {
                return Ok(false);
            }
            let copied = self.copy(id, source, 0)?;
            throttle.pass(copied);
            moved.copied += 1;
            moved.copied_bytes += copied;
            return Ok(true);
        }
        Err(Error::new(Kind::NotFound, "no tier holds pack").object(id))
    }

    /// Makes room on the hot tier for those of `packs` that are not there, without moving any of `kept`.
    ///
    /// # Errors
    /// As the tiers.
    pub fn make_room_for(
        &self,
        packs: &HashSet<PackId>,
        kept: &HashSet<PackId>,
        throttle: &mut Throttle,
        moved: &mut Moved,
    ) -> Result<()> {
        let Some(limit) = self.tiers[0].limit_bytes else { return Ok(()) };
        let mut missing = 0;
        for pack in packs {
            let key = pack.key();
            if self.tiers[0].tier.len_bytes(&key)?.is_none() {
                for source in &self.tiers[1..] {
                    if let Some(len_bytes) = source.tier.len_bytes(&key)? {
                        missing += len_bytes;
                        break;
                    }
                }
            }
        }
        self.shrink(0, limit.saturating_sub(missing), kept, throttle, moved).map(drop)
    }

    /// In a shared store: drops local copies of packs that the collector of another host deleted from the bucket.
    /// Returns the freed space.
    ///
    /// # Errors
    /// As the tiers.
    pub fn drop_strays(&self) -> Result<TierUsage> {
        let mut freed = TierUsage::default();
        let Some((shared, near)) = self.tiers.split_last().filter(|_| self.is_shared) else {
            return Ok(freed);
        };
        for (number, tier) in near.iter().enumerate() {
            for info in tier.tier.list(keys::PACKS)? {
                // A pack is stored in the bucket first, so a local pack that is missing there was deleted.
                if shared.tier.len_bytes(&info.key)?.is_none() {
                    tier.tier.delete(&info.key)?;
                    freed.packs += 1;
                    freed.bytes += info.len_bytes;
                }
            }
            self.set_used(number, None);
        }
        Ok(freed)
    }
}

fn copies_differ(id: PackId, target: &DataTier) -> Error {
    Error::corrupt("copy of a pack differs from its source, which stays")
        .object(format!("{id} in {}", target.tier.describe()))
        .advice("run `snapctl scrub`")
}

/// Packs whose use this process noted lately, so that not every read does.
#[derive(Debug, Default)]
pub(crate) struct Touched(Mutex<HashMap<PackId, i64>>);

impl Touched {
    /// Notes that a pack on `tier` was read now.
    pub(crate) fn note(&self, tier: &dyn Tier, pack: PackId) {
        let now = crate::clock::now().seconds;
        let mut noted = self.0.lock();
        if noted.get(&pack).is_some_and(|then| now.abs_diff(*then) < TOUCH_SECONDS) {
            return;
        }
        if noted.len() >= TOUCHED_MAX {
            noted.clear();
        }
        noted.insert(pack, now);
        drop(noted);
        tier.touch(&pack.key());
    }
}
