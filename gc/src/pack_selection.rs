//! Selects, of the packs that hold a chunk, those that must stay for it.
//!
//! A pack that is shorter than when a chunk was put into it counts as missing. Known losses (`store::lost_frames`) stop
//! nothing: another copy of a lost chunk is kept where there is one, else the damaged one; what a lost record named
//! stays only if something else needs it.

use crate::bounded_cache::{BoundedCache, Needs};
use std::collections::{BTreeSet, HashMap, HashSet};
use store::index::{Index, Location};
use store::lost_frames::DamagedFrames;
use store::{ChunkId, Error, Kind, PackId, Result, Store};

/// Bytes of memory for the bases of deltas that lie in several packs, and the size of one.
const BASES_BYTES: usize = 32 << 20;
const BASE_BYTES: usize = 128;

/// States of packs.
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
    /// Adds the needs of something below.
    pub(crate) fn add(&mut self, needs: &Needs) {
        self.packs.extend(needs.packs.iter());
        self.is_lossy |= needs.is_lossy;
    }

    /// The same, for the cache.
    pub(crate) fn needs(self) -> Needs {
        Needs { packs: self.packs.into_iter().collect(), is_lossy: self.is_lossy }
    }
}

/// Packs by number, and how far into each the found chunks reach.
pub(crate) struct PackSelection<'a> {
    /// The store whose tiers are read.
    store: &'a Store,
    states: PackStates<'a>,
    packs: Vec<(PackId, u64)>,
    numbers: HashMap<PackId, u32>,
    /// Bases of deltas by pack and offset.
    bases: BoundedCache<(PackId, u64), ChunkId>,
    /// Missing packs that are needed.
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

    /// States of packs.
    pub(crate) fn states(&self) -> &PackStates<'a> {
        &self.states
    }

    /// The missing packs that are needed.
    pub(crate) fn missed(&self) -> &HashSet<PackId> {
        &self.missed
    }

    /// The pack of a number, and how far into it the found chunks reach, in bytes.
    pub(crate) fn pack(&self, number: u32) -> (PackId, u64) {
        self.packs[number as usize]
    }

    /// Adds the packs that hold a chunk.
    ///
    /// # Errors
    /// `Corrupt` when no pack does and it is not known to be lost.
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

    /// The packs that must stay for a chunk: one that holds it other than as a delta, and for each base one that holds
    /// a delta against that. A page table that records its base may depend on a delta, any other need may not, and of
    /// deltas against several bases each page table records one. A lost copy counts only while there is no other: a
    /// tier that comes back may still repair it.
    fn packs_of(&mut self, id: &ChunkId) -> Vec<u32> {
        let PackStates { inventory, condemned, damaged } = self.states;
        let is_there = |place: &Location| {
            inventory.get(&place.pack).is_some_and(|len_bytes| end_of(place) <= *len_bytes)
        };
        let places = self.store.index().find(id).into_iter().filter(is_there);
        let (mut deltas, plain): (Vec<_>, Vec<_>) = places.partition(|place| place.is_delta());
        // Every run selects the same one, in any order of the index.
        let standing =
            |place: &&Location| (damaged.has(place), condemned.contains_key(&place.pack), place.pack);
        let best = plain.iter().min_by_key(standing);
        if best.into_iter().chain(&deltas).any(|place| !damaged.has(place)) {
            deltas.retain(|place| !damaged.has(place));
        }
        if deltas.len() > 1 {
            // Repacking and recompression leave two against one base until the old pack is deleted.
            deltas.sort_unstable_by_key(|place| standing(&place));
            let mut bases = HashSet::new();
            deltas.retain(|place| self.base_of(place).is_none_or(|base| bases.insert(base)));
        }
        best.into_iter().chain(&deltas).map(|place| self.number_of(place)).collect()
    }

    /// The base of a delta; `None` when it cannot be read. It is asked for again in every snapshot that has it.
    fn base_of(&mut self, place: &Location) -> Option<ChunkId> {
        let key = (place.pack, place.offset);
        let known = self.bases.get(&key);
        known.or_else(|| {
            let base = self.store.read_base_id(place).ok()?;
            self.bases.insert(key, base, BASE_BYTES);
            Some(base)
        })
    }

    /// Whether every location of a chunk is in a frame that is known to be lost.
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
