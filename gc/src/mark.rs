//! Mark: the packs that the roots need. A snapshot's packs are computed once and kept in a derived table, so a run
//! costs only the snapshots new since the last one; within a run a directory is visited once, however many snapshots
//! share it, as far as a bounded cache reaches ([`crate::walk`]). [`crate::pack_selection`] decides between several
//! packs with a chunk.

use crate::bounded_cache::BoundedCache;
use crate::pack_selection::{PackSelection, PackStates};
use crate::walk::{Directories, Walk};
use std::collections::{BTreeSet, HashSet};
use store::{Derived, PackId, Result, SnapshotId, Store};

/// Bytes of memory for the needs of directories.
const CACHE_BYTES: usize = 64 << 20;

/// Bytes of a pack's id and of how far into it a snapshot reaches, in the derived table.
const NEED_LEN: usize = PackId::LEN + 8;

/// A mark under way.
pub(crate) struct Marker<'a> {
    selection: PackSelection<'a>,
    table: Option<&'a Derived>,
    directories: Directories,
    marked: HashSet<SnapshotId>,
    reached: BTreeSet<PackId>,
}

impl<'a> Marker<'a> {
    /// A mark over the packs in these states; a chunk in several packs counts for one that is not condemned, and where
    /// it is not lost.
    pub(crate) fn new(store: &'a Store, states: PackStates<'a>, table: Option<&'a Derived>) -> Self {
        let (marked, reached) = Default::default();
        Self {
            selection: PackSelection::new(store, states),
            table,
            directories: BoundedCache::new(CACHE_BYTES),
            marked,
            reached,
        }
    }

    /// Marks the packs that a snapshot of the domain that `store` is seen from needs.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when anything it needs is missing or unreadable: then nothing may be deleted.
    pub(crate) fn mark(&mut self, store: &Store, snapshot: &SnapshotId) -> Result<()> {
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
    pub(crate) fn marked(&self) -> &HashSet<SnapshotId> {
        &self.marked
    }

    /// The packs that they need.
    pub(crate) fn reached(&self) -> &BTreeSet<PackId> {
        &self.reached
    }

    /// The missing packs that are needed.
    pub(crate) fn missed(&self) -> &HashSet<PackId> {
        self.selection.missed()
    }

    /// The packs kept for a snapshot by an earlier run, if all of them are still there and as long as they must be, and
    /// its record too. Chunks of a condemned or damaged pack may be elsewhere by now, and are looked for again.
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
            let PackStates { inventory, condemned, damaged } = self.selection.states();
            inventory.get(&pack).filter(|len_bytes| end <= **len_bytes)?;
            if condemned.contains_key(&pack) || damaged.names(&pack) {
                return None;
            }
            packs.push(pack);
        }
        rest.is_empty().then_some(packs)
    }

    /// Stores a snapshot's needs for later runs. A disk error only costs them time.
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
        let walk = Walk::new(&mut self.selection, &mut self.directories);
        let found = walk.run(store, &store.snapshot(id)?)?;
        let needs = found.packs.into_iter().map(|number| self.selection.pack(number)).collect();
        Ok((needs, found.is_lossy))
    }
}
