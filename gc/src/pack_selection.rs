//! Where chunks lie: of the packs that hold one, those that must stay for it.
//!
//! A pack that is shorter than it was when a chunk was put into it does not count as there. What is known to be lost
//! (`store::lost_frames`) stops nothing: of a chunk another copy is kept where there is one, and the damaged one where there is
//! none; what a lost record named is needed only as far as somebody else needs it.

use crate::bounded_cache::{BoundedCache, Needs};
use std::collections::{BTreeSet, HashMap, HashSet};
use store::index::{Index, Location};
use store::lost_frames::DamagedFrames;
use store::{ChunkId, Error, Kind, PackId, Result, Store};

/// Bytes of memory for the bases of deltas that lie in several packs, and what one takes.
const BASES_BYTES: usize = 32 << 20;
const BASE_BYTES: usize = 128;

/// What packs are like.
#[derive(Clone, Copy)]
pub(crate) struct PackStates<'a> {
    /// The packs that are there, with their lengths in bytes.
    pub inventory: &'a HashMap<PackId, u64>,
    /// Those that are condemned, and since when.
    pub condemned: &'a HashMap<PackId, u64>,
    /// Frames that are lost.
    pub damaged: &'a DamagedFrames,
}

/// Packs that are needed, and whether something was lost on the way to others.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Packs by number.
    pub packs: BTreeSet<u32>,
    /// Something is known to be lost, so that this is not all.
    pub is_lossy: bool,
}

impl Found {
    /// Adds what something below needs.
    pub(crate) fn add(&mut self, needs: &Needs) {
        self.packs.extend(needs.packs.iter());
        self.is_lossy |= needs.is_lossy;
    }

    /// The same, to be kept.
    pub(crate) fn needs(self) -> Needs {
        Needs { packs: self.packs.into_iter().collect(), is_lossy: self.is_lossy }
    }
}

/// The packs by number, and how far into each what was found reaches.
pub(crate) struct PackSelection<'a> {
    /// Whose tiers are looked at.
    store: &'a Store,
    states: PackStates<'a>,
    packs: Vec<(PackId, u64)>,
    numbers: HashMap<PackId, u32>,
    /// Bases of deltas by where these lie.
    bases: BoundedCache<(PackId, u64), ChunkId>,
    /// Packs that are gone and would be needed.
    missed: HashSet<PackId>,
}

impl<'a> PackSelection<'a> {
    /// Nothing found yet.
    pub(crate) fn new(store: &'a Store, states: PackStates<'a>) -> Self {
        let (packs, numbers, missed) = Default::default();
        Self { store, states, packs, numbers, bases: BoundedCache::new(BASES_BYTES), missed }
    }

    /// The index that chunks are found in.
    pub(crate) fn index(&self) -> &'a Index {
        self.store.index()
    }

    /// What packs are like.
    pub(crate) fn states(&self) -> &PackStates<'a> {
        &self.states
    }

    /// The packs that are gone although something in them is needed.
    pub(crate) fn missed(&self) -> &HashSet<PackId> {
        &self.missed
    }

    /// The pack of a number, and how far into it what was found reaches, in bytes.
    pub(crate) fn pack(&self, number: u32) -> (PackId, u64) {
        self.packs[number as usize]
    }

    /// Adds what holds a chunk.
    ///
    /// # Errors
    /// `Corrupt` when nothing does and it is not known to be lost.
    pub(crate) fn find(&mut self, id: &ChunkId, found: &mut Found) -> Result<()> {
        let packs = self.packs_of(id);
        if packs.is_empty() {
            if !self.is_known_to_be_lost(id) {
                return Err(Error::new(Kind::Corrupt, "a reachable chunk is in no pack").object(id));
            }
            found.is_lossy = true;
            self.missed.extend(self.store.index().find(id).into_iter().map(|place| place.pack));
        }
        found.packs.extend(packs);
        Ok(())
    }

    /// The packs that hold a chunk for whoever needs it: one in which it is whole by itself, and for each base one in which it
    /// is a delta against that. A page table that records its base may count on a delta, any other need may not, and of deltas
    /// against several bases each page table records one. Where it is lost it counts only as long as it is nowhere else: a tier
    /// that comes back may still heal it.
    fn packs_of(&mut self, id: &ChunkId) -> Vec<u32> {
        let PackStates { inventory, condemned, damaged } = self.states;
        let is_there = |place: &Location| {
            inventory.get(&place.pack).is_some_and(|len_bytes| end_of(place) <= *len_bytes)
        };
        let places = self.store.index().find(id).into_iter().filter(is_there);
        let (mut deltas, plain): (Vec<_>, Vec<_>) = places.partition(|place| place.is_delta());
        // Every run chooses the same one of several, in whatever order the index has them.
        let standing =
            |place: &&Location| (damaged.has(place), condemned.contains_key(&place.pack), place.pack);
        let best = plain.iter().min_by_key(standing);
        if best.into_iter().chain(&deltas).any(|place| !damaged.has(place)) {
            deltas.retain(|place| !damaged.has(place));
        }
        if deltas.len() > 1 {
            // Whoever repacks or recompresses leaves two against one base until the old pack is deleted.
            deltas.sort_unstable_by_key(|place| standing(&place));
            let mut bases = HashSet::new();
            deltas.retain(|place| self.base_of(place).is_none_or(|base| bases.insert(base)));
        }
        best.into_iter().chain(&deltas).map(|place| self.number_of(place)).collect()
    }

    /// What a delta is one against; `None` when it cannot be read. It is met again in every snapshot that has it.
    fn base_of(&mut self, place: &Location) -> Option<ChunkId> {
        let key = (place.pack, place.offset);
        let known = self.bases.get(&key);
        known.or_else(|| {
            let base = self.store.read_base_id(place).ok()?;
            self.bases.insert(key, base, BASE_BYTES);
            Some(base)
        })
    }

    /// Whether every place of a chunk is in a frame that is known to be lost.
    pub(crate) fn is_known_to_be_lost(&self, id: &ChunkId) -> bool {
        let mut places = self.store.index().find(id).into_iter().peekable();
        places.peek().is_some() && places.all(|place| self.states.damaged.has(&place))
    }

    fn number_of(&mut self, place: &Location) -> u32 {
        let packs = &mut self.packs;
        let number = *self.numbers.entry(place.pack).or_insert_with(|| {
            packs.push((place.pack, 0));
            (packs.len() - 1) as u32
        });
        let (_, end) = &mut packs[number as usize];
        *end = end_of(place).max(*end);
        number
    }
}

fn end_of(place: &Location) -> u64 {
    place.offset + place.len_bytes
}
