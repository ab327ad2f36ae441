//! Mark: which packs the roots need. A snapshot's packs are computed once and kept in a derived table, so a run costs
//! what is new since the last one; within a run every directory is visited once, however many snapshots share it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use store::{ChunkId, Derived, DirectoryId, Error, Kind, PackId, Result, SnapshotId, Store, Tree};

/// Packs by number, sorted.
type PackSet = Rc<[u32]>;

/// A mark under way.
pub struct Marker<'a> {
    store: &'a Store,
    inventory: &'a HashSet<PackId>,
    condemned: &'a HashMap<PackId, u64>,
    table: Option<&'a Derived>,
    packs: Vec<PackId>,
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
        match self.marker.pack_of(id) {
            Some(pack) => {
                self.packs.insert(pack);
            }
            None => {
                self.missing.get_or_insert(*id);
            }
        }
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
        store: &'a Store,
        inventory: &'a HashSet<PackId>,
        condemned: &'a HashMap<PackId, u64>,
        table: Option<&'a Derived>,
    ) -> Self {
        Self {
            store,
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

    /// Marks what a snapshot needs.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when anything it needs is missing or unreadable: then nothing may be deleted.
    pub fn mark(&mut self, snapshot: &SnapshotId) -> Result<()> {
        if self.marked.contains(snapshot) {
            return Ok(());
        }
        let packs = match self.remembered(snapshot)? {
            Some(packs) => packs,
            None => {
                let refuse = |error: Error| error.advice("nothing was deleted; run `snapctl check`");
                let packs = self.packs_of(snapshot).map_err(refuse)?;
                self.remember(snapshot, &packs)?;
                packs
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

    /// The packs kept for a snapshot by an earlier run, if all of them are still there, and its record too.
    fn remembered(&self, snapshot: &SnapshotId) -> Result<Option<Vec<PackId>>> {
        let Some(table) = self.table else { return Ok(None) };
        self.store.snapshot(snapshot)?;
        let Some(bytes) = table.get(snapshot.as_bytes())? else { return Ok(None) };
        let (packs, rest) = bytes.as_chunks();
        let packs: Vec<PackId> = packs.iter().copied().map(PackId::from_bytes).collect();
        let whole = rest.is_empty() && packs.iter().all(|pack| self.inventory.contains(pack));
        Ok(whole.then_some(packs))
    }

    fn remember(&self, snapshot: &SnapshotId, packs: &[PackId]) -> Result<()> {
        let Some(table) = self.table else { return Ok(()) };
        let bytes: Vec<u8> = packs.iter().flat_map(|pack| pack.to_bytes()).collect();
        table.put(snapshot.as_bytes(), &bytes)
    }

    fn packs_of(&mut self, id: &SnapshotId) -> Result<Vec<PackId>> {
        let (store, snapshot) = (self.store, self.store.snapshot(id)?);
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

    fn pack_of(&mut self, id: &ChunkId) -> Option<u32> {
        let (inventory, condemned) = (self.inventory, self.condemned);
        let index = self.store.index();
        let live = index.find_in(id, |pack| inventory.contains(pack) && !condemned.contains_key(pack));
        let place = live.or_else(|| index.find_in(id, |pack| inventory.contains(pack)))?;
        let packs = &mut self.packs;
        Some(*self.numbers.entry(place.pack).or_insert_with(|| {
            packs.push(place.pack);
            (packs.len() - 1) as u32
        }))
    }
}
