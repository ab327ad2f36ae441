//! Writing runs: from pack directories in memory, in pieces of bounded size, and the tables behind the entries.

use super::bucket;
use super::prefix::Prefix;
use super::row::{ENTRY_LEN, Row};
use super::run::{ENTRIES_START, HEADER_LEN, Layout};
use crate::error::{Error, Kind, Result};
use crate::id::PackId;
use crate::pack::PackDirectory;
use crate::wire::{ENVELOPE_LEN, Encoder, Record, envelope};

/// A run that is built in memory is closed when it has this many entries: 44 MiB.
pub(super) const PIECE_ENTRIES: usize = 2 << 20;

/// Gathers the directories of packs for one run. Memory: 24 bytes an entry.
pub struct RunBuilder {
    /// Room for envelope and header, then entries.
    bytes: Vec<u8>,
    packs: Vec<PackId>,
}

impl Default for RunBuilder {
    fn default() -> Self {
        Self { bytes: vec![0; ENTRIES_START], packs: Vec::new() }
    }
}

impl RunBuilder {
    /// Adds the chunks of a pack.
    ///
    /// # Errors
    /// `Internal` when a frame lies where an entry cannot point.
    pub fn push(&mut self, directory: &PackDirectory) -> Result<()> {
        let pack = self.packs.len() as u32;
        self.packs.push(directory.id);
        self.bytes.reserve(directory.entries.len() * ENTRY_LEN);
        for entry in &directory.entries {
            let frame = &directory.frames[entry.frame as usize];
            let row = Row::new(Prefix::of(&entry.id), pack, frame, entry.slot).ok_or_else(|| {
                Error::new(Kind::Internal, "frame out of the index's range").object(directory.id)
            })?;
            self.bytes.extend_from_slice(&row.encode());
        }
        Ok(())
    }

    /// Entries so far.
    pub fn entry_count(&self) -> usize {
        (self.bytes.len() - ENTRIES_START) / ENTRY_LEN
    }

    /// Whether it has the maximum length of a run in memory.
    pub fn is_full(&self) -> bool {
        self.entry_count() >= PIECE_ENTRIES
    }

    /// Whether it covers no pack.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// The bytes of the run.
    pub fn finish(mut self) -> Vec<u8> {
        let mut order: Vec<usize> = (0..self.packs.len()).collect();
        order.sort_unstable_by_key(|number| self.packs[*number]);
        let mut numbers = vec![0; order.len()];
        (0u32..).zip(&order).for_each(|(new, old)| numbers[*old] = new);
        let entries = self.bytes[ENTRIES_START..].as_chunks_mut::<ENTRY_LEN>().0;
        for entry in &mut *entries {
            let row = Row::decode(entry);
            *entry = Row { pack: numbers[row.pack as usize], ..row }.encode();
        }
        entries.sort_unstable();
        self.packs.sort_unstable();
        let tables = tables(entries, &self.packs);
        let head = head(entries.len(), self.packs.len());
        self.bytes.extend_from_slice(&tables);
        self.bytes[ENVELOPE_LEN..ENTRIES_START].copy_from_slice(&head);
        let envelope = envelope(Record::BucketRun, &self.bytes[ENVELOPE_LEN..]);
        self.bytes[..ENVELOPE_LEN].copy_from_slice(&envelope);
        self.bytes
    }
}

/// The bytes of one run over these packs, however many they are.
///
/// # Errors
/// `Internal` when a frame lies where an entry cannot point.
pub fn encode<'a>(directories: impl IntoIterator<Item = &'a PackDirectory>) -> Result<Vec<u8>> {
    let mut builder = RunBuilder::default();
    directories.into_iter().try_for_each(|directory| builder.push(directory))?;
    Ok(builder.finish())
}

/// The header behind the envelope.
pub(super) fn head(entry_count: usize, pack_count: usize) -> [u8; HEADER_LEN] {
    let mut out = Encoder::with_capacity(HEADER_LEN);
    out.count(pack_count).count(bucket::bucket_count(entry_count)).u64(entry_count as u64).bytes(&[0; 56]);
    out.finish().try_into().expect("the fields of a header have its length")
}

/// The tables behind the entries: buckets and packs. Memory: one byte an entry.
pub(super) fn tables(entries: &[[u8; ENTRY_LEN]], packs: &[PackId]) -> Vec<u8> {
    let buckets = bucket::build(entries);
    let layout = Layout::new(entries.len(), buckets.len(), packs.len());
    let mut out = Encoder::with_capacity(layout.packs.end - layout.entries.end);
    let start = layout.buckets.map_or(layout.entries.end, |buckets| buckets.start);
    (layout.entries.end..start).for_each(|_| {
        out.u8(0);
    });
    out.bytes(buckets.as_flattened());
    for pack in packs {
        out.bytes(&pack.to_bytes());
    }
    out.finish()
}
