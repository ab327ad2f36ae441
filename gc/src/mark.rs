//! Mark: which packs the roots need. A snapshot's packs are computed once and kept in a derived table, so a run costs
//! what is new since the last one; within a run a directory is visited once, however many snapshots share it, as far as a
//! bounded memo reaches. A pack that is shorter than it was when a chunk was put into it does not count as there.
//!
//! Chunks are not looked up as they are met but many at once and in order ([`crate::walk`]): an index that is larger than
//! memory is then read from end to end now and then, and not page by page all the time.
//!
//! What is known to be lost (`store::damaged`) stops nothing: of a chunk another copy is kept where there is one, and the
//! damaged one where there is none; what a lost record named is needed only as far as somebody else needs it.

use crate::memo::{BUDGET_BYTES, Memo};
use crate::walk::{Found, Walk};
use std::collections::{BTreeSet, HashMap, HashSet};
use store::damaged::DamagedFrames;
use store::{ChunkId, Derived, Error, Kind, PackId, Result, SnapshotId, Store, index};

/// Bytes of a pack's id and of how far into it a snapshot reaches, in the derived table.
const NEED_LEN: usize = PackId::LEN + 8;

/// What packs are like.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The packs that are there, with their lengths in bytes.
    pub inventory: &'a HashMap<PackId, u64>,
    /// Those that are condemned, and since when.
    pub condemned: &'a HashMap<PackId, u64>,
    /// Frames that are lost.
    pub damaged: &'a DamagedFrames,
}

/// A mark under way.
pub struct Marker<'a> {
    /// Whose tiers are looked at.
    store: &'a Store,
    pub(crate) index: &'a index::Index,
    scene: Scene<'a>,
    table: Option<&'a Derived>,
    /// Packs by number, and how far into each what was marked reaches.
    packs: Vec<(PackId, u64)>,
    numbers: HashMap<PackId, u32>,
    pub(crate) directories: Memo,
    marked: HashSet<SnapshotId>,
    reached: BTreeSet<PackId>,
    /// Packs that are gone and would be needed.
    missed: HashSet<PackId>,
}

impl<'a> Marker<'a> {
    /// A mark over the packs of a scene; a chunk that lies in several counts for one that is not condemned, and where it is
    /// not lost.
    pub fn new(store: &'a Store, scene: Scene<'a>, table: Option<&'a Derived>) -> Self {
        Self {
            store,
            index: store.index(),
            scene,
            table,
            packs: Vec::new(),
            numbers: HashMap::new(),
            directories: Memo::new(BUDGET_BYTES),
            marked: HashSet::new(),
            reached: BTreeSet::new(),
            missed: HashSet::new(),
        }
    }

    /// Marks what a snapshot of the domain that `store` is seen from needs.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when anything it needs is missing or unreadable: then nothing may be deleted.
    pub fn mark(&mut self, store: &Store, snapshot: &SnapshotId) -> Result<()> {
        if self.marked.contains(snapshot) {
            return Ok(());
        }
        let packs = match self.remembered(store, snapshot)? {
            Some(packs) => packs,
            None => {
                let (needs, is_lossy) = self.needs_of(store, snapshot)?;
                if !is_lossy {
                    self.remember(snapshot, &needs);
                }
                needs.into_iter().map(|(pack, _)| pack).collect()
            }
        };
        self.reached.extend(packs);
        self.marked.insert(*snapshot);
        Ok(())
    }

    /// The snapshots marked so far.
    pub fn marked(&self) -> &HashSet<SnapshotId> {
        &self.marked
    }

    /// The packs that they need.
    pub fn reached(&self) -> &BTreeSet<PackId> {
        &self.reached
    }

    /// The packs that are gone although something in them is needed.
    pub fn missed(&self) -> &HashSet<PackId> {
        &self.missed
    }

    /// The packs kept for a snapshot by an earlier run, if all of them are still there and as long as they must be, and its
    /// record too. What lies in a condemned or damaged pack may lie elsewhere by now, and is looked for again.
    fn remembered(&self, store: &Store, snapshot: &SnapshotId) -> Result<Option<Vec<PackId>>> {
        let Some(table) = self.table else { return Ok(None) };
        store.snapshot(snapshot)?;
        let bytes = table.get(snapshot.as_bytes()).unwrap_or_else(|error| {
            tracing::warn!(%snapshot, %error, "what it needs is computed again");
            None
        });
        Ok(bytes.and_then(|bytes| self.decode_needs(&bytes)))
    }

    fn decode_needs(&self, bytes: &[u8]) -> Option<Vec<PackId>> {
        let (needs, rest) = bytes.as_chunks::<NEED_LEN>();
        let mut packs = Vec::with_capacity(needs.len());
        for need in needs {
            let (pack, end) = need.split_first_chunk()?;
            let (pack, end) = (PackId::from_bytes(*pack), u64::from_le_bytes(end.try_into().ok()?));
            self.scene.inventory.get(&pack).filter(|len_bytes| end <= **len_bytes)?;
            if self.scene.condemned.contains_key(&pack) || self.scene.damaged.names(&pack) {
                return None;
            }
            packs.push(pack);
        }
        rest.is_empty().then_some(packs)
    }

    /// Keeps what a snapshot needs for later runs. A disk that cannot keep it costs them time and nothing else.
    fn remember(&self, snapshot: &SnapshotId, needs: &[(PackId, u64)]) {
        let Some(table) = self.table else { return };
        let mut bytes = Vec::with_capacity(needs.len() * NEED_LEN);
        for (pack, end) in needs {
            bytes.extend_from_slice(&pack.to_bytes());
            bytes.extend_from_slice(&end.to_le_bytes());
        }
        if let Err(error) = table.put(snapshot.as_bytes(), &bytes) {
            tracing::warn!(%snapshot, %error, "what it needs is not remembered");
        }
    }

    /// The packs that a snapshot needs, and how far into each; and whether something was lost on the way to others.
    fn needs_of(&mut self, store: &Store, id: &SnapshotId) -> Result<(Vec<(PackId, u64)>, bool)> {
        let found = Walk::new(self).run(store, &store.snapshot(id)?)?;
        let needs = found.packs.into_iter().map(|number| self.packs[number as usize]).collect();
        Ok((needs, found.is_lossy))
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
            self.missed.extend(self.index.find(id).into_iter().map(|place| place.pack));
        }
        found.packs.extend(packs);
        Ok(())
    }

    /// The packs that hold a chunk for whoever needs it: one in which it is whole by itself, and for each base one in which it
    /// is a delta against that. A page table that records its base may count on a delta, any other need may not, and of deltas
    /// against several bases each page table records one. Where it is lost it counts only as long as it is nowhere else: a tier
    /// that comes back may still heal it.
    fn packs_of(&mut self, id: &ChunkId) -> Vec<u32> {
        let Scene { inventory, condemned, damaged } = self.scene;
        let is_there = |place: &index::Location| {
            inventory.get(&place.pack).is_some_and(|len_bytes| end_of(place) <= *len_bytes)
        };
        let places = self.index.find(id).into_iter().filter(is_there);
        let (mut deltas, plain): (Vec<_>, Vec<_>) = places.partition(|place| place.is_delta());
        // Every run chooses the same one of several, in whatever order the index has them.
        let standing =
            |place: &&index::Location| (damaged.has(place), condemned.contains_key(&place.pack), place.pack);
        let best = plain.iter().min_by_key(standing);
        if best.into_iter().chain(&deltas).any(|place| !damaged.has(place)) {
            deltas.retain(|place| !damaged.has(place));
        }
        if deltas.len() > 1 {
            // Whoever repacks or recompresses leaves two against one base until the old pack is deleted.
            deltas.sort_unstable_by_key(|place| standing(&place));
            let mut bases = HashSet::new();
            deltas.retain(|place| self.store.read_base_id(place).map_or(true, |base| bases.insert(base)));
        }
        best.into_iter().chain(&deltas).map(|place| self.number_of(place)).collect()
    }

    /// Whether every place of a chunk is in a frame that is known to be lost.
    pub(crate) fn is_known_to_be_lost(&self, id: &ChunkId) -> bool {
        let mut places = self.index.find(id).into_iter().peekable();
        places.peek().is_some() && places.all(|place| self.scene.damaged.has(&place))
    }

    fn number_of(&mut self, place: &index::Location) -> u32 {
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

fn end_of(place: &index::Location) -> u64 {
    place.offset + place.len_bytes
}
