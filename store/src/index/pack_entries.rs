//! The index's entries of one pack: the locations of its frames and the prefixes of its chunks' ids. With them a pack
//! whose directory is lost can be told from a part of it.

use super::prefix::Prefix;
use super::row::Row;
use super::{Index, Run};
use crate::id::{ChunkId, PackId};
use crate::pack::{ALIGNMENT, PackDirectory};
use std::collections::HashSet;

/// One chunk of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackEntriesRow {
    prefix: Prefix,
    /// Offset of its frame in bytes.
    pub offset: u64,
    /// Length of the frame with padding in bytes.
    pub len_bytes: u32,
    slot: u32,
}

impl PackEntriesRow {
    fn of(row: &Row) -> Self {
        Self {
            prefix: row.prefix,
            offset: u64::from(row.offset) * ALIGNMENT as u64,
            len_bytes: u32::from(row.len) * ALIGNMENT as u32,
            slot: row.slot.into(),
        }
    }

    /// The chunk's id as far as the index holds it, then zeroes: enough to look it up, and to mark it.
    pub fn chunk(&self) -> ChunkId {
        let mut bytes = [0; ChunkId::LEN];
        let known = self.prefix.to_bytes();
        bytes[..known.len()].copy_from_slice(&known);
        ChunkId::from_bytes(bytes)
    }
}

/// All entries of a pack in intact runs.
#[derive(Clone, Debug)]
pub struct PackEntries {
    /// Its chunks, each once.
    pub rows: Vec<PackEntriesRow>,
}

impl PackEntries {
    /// Offset and length of each frame.
    pub fn frames(&self) -> impl Iterator<Item = (u64, u32)> {
        self.rows.iter().map(|row| (row.offset, row.len_bytes))
    }

    /// Whether a directory lists exactly these chunks at these locations.
    pub fn matches(&self, directory: &PackDirectory) -> bool {
        let row = |entry: &crate::pack::DirectoryEntry| {
            let frame = &directory.frames[entry.frame as usize];
            let (offset, len_bytes) = (frame.offset, frame.len_bytes);
            PackEntriesRow { prefix: Prefix::of(&entry.id), offset, len_bytes, slot: entry.slot }
        };
        let mut rows: Vec<PackEntriesRow> = directory.entries.iter().map(row).collect();
        rows.sort_unstable();
        rows.dedup();
        rows == self.rows
    }
}

impl Index {
    /// The entries of a pack in runs with a right checksum; `None` when none covers it. Reads such runs completely.
    pub fn entries_of(&self, pack: PackId) -> Option<PackEntries> {
        let covers =
            |run: &&std::sync::Arc<Run>| run.packs().any(|covered| covered == pack) && run.is_intact();
        let runs = self.runs();
        let mut rows: Option<Vec<PackEntriesRow>> = None;
        for run in runs.iter().filter(covers) {
            let number = run.packs().position(|covered| covered == pack)? as u32;
            let all = (0..run.entry_count()).filter_map(|row| run.row(row));
            rows.get_or_insert_default()
                .extend(all.filter(|row| row.pack == number).map(|row| PackEntriesRow::of(&row)));
        }
        let mut rows = rows?;
        rows.sort_unstable();
        rows.dedup();
        Some(PackEntries { rows })
    }

    /// The packs that stored runs name.
    pub fn named_packs(&self) -> HashSet<PackId> {
        self.runs().iter().filter(|run| run.is_stored()).flat_map(|run| run.packs()).collect()
    }
}
