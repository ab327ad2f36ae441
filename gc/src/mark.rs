//! Mark: which packs the roots need. A snapshot's packs are computed once and kept in a derived table, so a run costs
//! what is new since the last one; within a run every directory is visited once, however many snapshots share it. A pack
//! that is shorter than it was when a chunk was put into it does not count as there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use store::{ChunkId, Derived, DirectoryId, Error, Kind, PackId, Result, SnapshotId, Store, Tree, index};

/// Bytes of a pack's id and of how far into it a snapshot reaches, in the derived table.
const NEED_LEN: usize = PackId::LEN + 8;

/// Packs by number, sorted.
type PackSet = Rc<[u32]>;

/// A mark under way.
pub struct Marker<'a> {
    index: &'a index::Index,
    /// The packs that are there, with their lengths in bytes.
    inventory: &'a HashMap<PackId, u64>,
    condemned: &'a HashMap<PackId, u64>,
    table: Option<&'a Derived>,
    /// Packs by number, and how far into each what was marked reaches.
    packs: Vec<(PackId, u64)>,
    numbers: HashMap<PackId, u32>,
    directories: HashMap<DirectoryId, PackSet>,
    marked: HashSet<SnapshotId>,
    reached: BTreeSet<PackId>,
}

/// Collects the packs of chunks, remembering the first chunk that no pack holds.
struct Gather<'m, 'a> {
    marker: &'m mut Marker<'a>,
    packs: BTreeSet<u32>,
    missing: Option<ChunkId>,
}

impl Gather<'_, '_> {
    fn chunk(&mut self, id: &ChunkId) {
        let packs = self.marker.packs_of(id);
        if packs.is_empty() {
            self.missing.get_or_insert(*id);
        }
        self.packs.extend(packs);
    }

    fn finish(self) -> Result<BTreeSet<u32>> {
        match self.missing {
            Some(id) => Err(Error::new(Kind::Corrupt, "a reachable chunk is in no pack").object(id)),
            None => Ok(self.packs),
        }
    }
}

impl<'a> Marker<'a> {
    /// A mark over the packs of `inventory`; a chunk that lies in several counts for one that is not condemned.
    pub fn new(
        index: &'a index::Index,
        inventory: &'a HashMap<PackId, u64>,
        condemned: &'a HashMap<PackId, u64>,
        table: Option<&'a Derived>,
    ) -> Self {
        Self {
            index,
            inventory,
            condemned,
            table,
            packs: Vec::new(),
            numbers: HashMap::new(),
            directories: HashMap::new(),
            marked: HashSet::new(),
            reached: BTreeSet::new(),
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
                let needs = self.needs_of(store, snapshot)?;
                self.remember(snapshot, &needs);
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

    /// The packs kept for a snapshot by an earlier run, if all of them are still there and as long as they must be, and its
    /// record too. What lies in a condemned pack may lie elsewhere by now, and is looked for again.
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
            self.inventory.get(&pack).filter(|len_bytes| end <= **len_bytes)?;
            if self.condemned.contains_key(&pack) {
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

    /// The packs that a snapshot needs, and how far into each.
    fn needs_of(&mut self, store: &Store, id: &SnapshotId) -> Result<Vec<(PackId, u64)>> {
        let snapshot = store.snapshot(id)?;
        let mut packs = BTreeSet::new();
        if let Some(image) = &snapshot.image {
            packs.extend(self.gather(|visit| store::chunks_of_image(store, image, visit))?.1);
        }
        if let Some(tree) = &snapshot.tree {
            let ((tree, root), own) = self.gather(|visit| store::chunks_of_tree(store, tree, visit))?;
            packs.extend(own);
            if let Some(root) = root {
                packs.extend(self.packs_of_directory(&tree, root)?.iter());
            }
        }
        Ok(packs.into_iter().map(|number| self.packs[number as usize]).collect())
    }

    /// The packs of a directory and all below it, without recursion: a tree may be deeper than the stack.
    fn packs_of_directory(&mut self, tree: &Tree, root: DirectoryId) -> Result<PackSet> {
        struct Open {
            id: DirectoryId,
            packs: BTreeSet<u32>,
            children: Vec<DirectoryId>,
        }
        let mut stack: Vec<Open> = Vec::new();
        let mut next = Some(root);
        loop {
            if let Some(id) = next.take() {
                let known = self.directories.get(&id).cloned();
                match (known, stack.last_mut()) {
                    (Some(packs), Some(parent)) => parent.packs.extend(packs.iter()),
                    (Some(packs), None) => return Ok(packs),
                    (None, _) => {
                        let (children, packs) =
                            self.gather(|visit| store::chunks_of_directory(tree, &id, visit))?;
                        stack.push(Open { id, packs, children });
                    }
                }
            }
            let Some(open) = stack.last_mut() else { unreachable!("the root returns when it is known") };
            next = open.children.pop();
            if next.is_none() {
                let Open { id, packs, .. } = stack.pop().expect("one was just looked at");
                self.directories.insert(id, packs.into_iter().collect());
                next = Some(id);
            }
        }
    }

    fn gather<T>(
        &mut self,
        walk: impl FnOnce(&mut store::Visit<'_>) -> Result<T>,
    ) -> Result<(T, BTreeSet<u32>)> {
        let mut gather = Gather { marker: self, packs: BTreeSet::new(), missing: None };
        let found = walk(&mut |id| gather.chunk(id))?;
        Ok((found, gather.finish()?))
    }

    /// The packs that hold a chunk for whoever needs it: one in which it is whole by itself, and every one in which it is
    /// a delta. A page table that records its base may count on a delta, any other need may not, and of deltas against
    /// several bases each page table records one.
    fn packs_of(&mut self, id: &ChunkId) -> Vec<u32> {
        let whole =
            |pack: &PackId, end: u64| self.inventory.get(pack).is_some_and(|len_bytes| end <= *len_bytes);
        let places = self.index.find(id).into_iter().filter(|place| whole(&place.pack, end_of(place)));
        let (deltas, plain): (Vec<_>, Vec<_>) = places.partition(|place| place.is_delta());
        // Every run chooses the same one of several, in whatever order the index has them.
        let chosen = plain.iter().min_by_key(|place| (self.condemned.contains_key(&place.pack), place.pack));
        chosen.into_iter().chain(&deltas).map(|place| self.number_of(place)).collect()
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
