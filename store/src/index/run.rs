//! One sorted run: an immutable, mapped table of chunk -> frame, made of the directories of some packs.
//!
//! 24 bytes an entry: 12 bytes of the id (the whole id is checked where the bytes are), pack number, frame offset and
//! length in units of [`ALIGNMENT`], slot. Opening maps the file and reads its header; a lookup is one interpolated
//! binary search. The checksum of the entries is verified by `check`, not at each opening: it would read all of them.

use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};
use crate::pack::{ALIGNMENT, PackDirectory};
use crate::tier::Object;
use crate::wire::{Decoder, ENVELOPE_LEN, Encoder, FORMAT_VERSION, MAGIC, Record, seal, unseal};
use std::cmp::Ordering;
use std::sync::OnceLock;

/// Length of an entry in bytes.
pub const ENTRY_LEN: usize = 24;
/// Bytes of an id that an entry keeps.
pub const PREFIX_LEN: usize = 12;
/// Body bytes before the pack table.
const HEADER_LEN: usize = 12;

/// Where a chunk's frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Frame offset in the pack in bytes.
    pub offset: u64,
    /// Frame length with padding in bytes.
    pub len_bytes: u64,
    /// The chunk's place in the frame.
    pub slot: u16,
}

/// A mapped run.
#[derive(Debug)]
pub struct Run {
    key: String,
    object: Object,
    packs: Vec<PackId>,
    entries_start: usize,
    entry_count: usize,
    whole: OnceLock<bool>,
}

/// The bytes of a run over these packs.
///
/// # Errors
/// `Internal` when a frame lies where an entry cannot point.
pub fn encode<'a>(directories: impl IntoIterator<Item = &'a PackDirectory>) -> Result<Vec<u8>> {
    let mut packs = Vec::new();
    let mut entries: Vec<[u8; ENTRY_LEN]> = Vec::new();
    for directory in directories {
        let pack = packs.len() as u32;
        packs.push(directory.id);
        for entry in &directory.entries {
            let frame = directory.frames[entry.frame as usize];
            let units = (
                u32::try_from(frame.offset / ALIGNMENT as u64),
                u16::try_from(frame.len_bytes as usize / ALIGNMENT),
            );
            let (Ok(offset), Ok(len), Ok(slot)) = (units.0, units.1, u16::try_from(entry.slot)) else {
                return Err(
                    Error::new(crate::Kind::Internal, "frame out of the index's range").object(directory.id)
                );
            };
            let mut out = Encoder::with_capacity(ENTRY_LEN);
            out.bytes(&entry.id.as_bytes()[..PREFIX_LEN]).u32(pack).u32(offset).u16(len).u16(slot);
            entries.push(out.finish().try_into().expect("an entry has 24 bytes"));
        }
    }
    entries.sort_unstable();
    Ok(encode_sorted(&packs, &entries))
}

fn encode_sorted(packs: &[PackId], entries: &[[u8; ENTRY_LEN]]) -> Vec<u8> {
    let mut body = Encoder::with_capacity(HEADER_LEN + packs.len() * PackId::LEN + entries.len() * ENTRY_LEN);
    body.count(packs.len()).u64(entries.len() as u64);
    packs.iter().for_each(|pack| {
        body.bytes(&pack.to_bytes());
    });
    entries.iter().for_each(|entry| {
        body.bytes(entry);
    });
    seal(Record::IndexRun, &body.finish())
}

/// One run out of several, without the packs that `keep` refuses.
pub fn merge(runs: &[&Run], keep: impl Fn(&PackId) -> bool) -> Vec<u8> {
    let mut packs: Vec<PackId> = runs.iter().flat_map(|run| &run.packs).copied().filter(&keep).collect();
    packs.sort_unstable();
    packs.dedup();
    let mut entries: Vec<[u8; ENTRY_LEN]> = Vec::new();
    for run in runs {
        let numbers: Vec<_> = run.packs.iter().map(|pack| packs.binary_search(pack).ok()).collect();
        for entry in run.entries() {
            let mut entry: [u8; ENTRY_LEN] = entry.try_into().expect("entries have 24 bytes");
            let old = u32::from_le_bytes([entry[12], entry[13], entry[14], entry[15]]);
            if let Some(Some(new)) = numbers.get(old as usize) {
                entry[12..16].copy_from_slice(&(*new as u32).to_le_bytes());
                entries.push(entry);
            }
        }
    }
    entries.sort_unstable();
    entries.dedup();
    encode_sorted(&packs, &entries)
}

impl Run {
    /// Opens a run, checking its header and pack table but not its entries.
    ///
    /// # Errors
    /// `Corrupt` for damage, `Invalid` for a newer format.
    pub fn open(key: &str, object: Object) -> Result<Self> {
        Self::parse(key, object).map_err(|error| error.object(key))
    }

    fn parse(key: &str, object: Object) -> Result<Self> {
        let mut header = Decoder::new(&object);
        let magic = header.take(8)? == MAGIC;
        let (record, version, _) = (header.u16()?, header.u16()?, header.u32()?);
        let body_len = header.u64()?;
        header.take(32)?;
        if !magic || record != Record::IndexRun as u16 || body_len != header.remaining() as u64 {
            return Err(Error::corrupt("not a whole index run"));
        }
        if version != FORMAT_VERSION {
            return Err(Error::invalid(format!("index run has format version {version}"))
                .advice("use a newer snapctl"));
        }
        let pack_count = header.u32()? as usize;
        let entry_count = header.u64()?;
        let expected = (pack_count as u64).saturating_mul(PackId::LEN as u64);
        let expected = expected.saturating_add(entry_count.saturating_mul(ENTRY_LEN as u64));
        if expected != header.remaining() as u64 {
            return Err(Error::corrupt("index run's counts do not fit its length"));
        }
        let mut packs = Vec::with_capacity(pack_count);
        for _ in 0..pack_count {
            packs.push(PackId::from_bytes(header.array()?));
        }
        let entries_start = ENVELOPE_LEN + HEADER_LEN + pack_count * PackId::LEN;
        Ok(Self {
            key: key.to_owned(),
            entry_count: entry_count as usize,
            entries_start,
            packs,
            object,
            whole: OnceLock::new(),
        })
    }

    /// Verifies the checksum over all entries. Reads the whole run.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn verify(&self) -> Result<()> {
        unseal(Record::IndexRun, &self.object).map(|_| ()).map_err(|error| error.object(&self.key))
    }

    /// Whether the checksum was right when first asked.
    pub fn is_whole(&self) -> bool {
        *self.whole.get_or_init(|| self.verify().is_ok())
    }

    /// Its key on the tier.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether it is an object of the store and not of this process only.
    pub fn is_stored(&self) -> bool {
        self.key.starts_with("index/")
    }

    /// The packs that it covers.
    pub fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// How many chunks it lists.
    pub fn entry_count(&self) -> usize {
        self.entry_count
    }

    fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.object[self.entries_start..].chunks_exact(ENTRY_LEN)
    }

    fn entry(&self, index: usize) -> &[u8] {
        let start = self.entries_start + index * ENTRY_LEN;
        &self.object[start..start + ENTRY_LEN]
    }

    /// All places of a chunk in the packs of this run.
    pub fn find(&self, id: &ChunkId) -> impl Iterator<Item = Location> + '_ {
        let prefix: [u8; PREFIX_LEN] = id.as_bytes()[..PREFIX_LEN].try_into().expect("an id is longer");
        let first = self.lower_bound(&prefix);
        let matching = (first..self.entry_count).map(|index| self.entry(index));
        matching
            .take_while(move |entry| entry[..PREFIX_LEN] == prefix)
            .filter_map(|entry| self.location(entry))
    }

    fn location(&self, entry: &[u8]) -> Option<Location> {
        let mut fields = Decoder::new(&entry[PREFIX_LEN..]);
        let pack = *self.packs.get(fields.u32().ok()? as usize)?;
        let offset = u64::from(fields.u32().ok()?) * ALIGNMENT as u64;
        let len_bytes = u64::from(fields.u16().ok()?) * ALIGNMENT as u64;
        Some(Location { pack, offset, len_bytes, slot: fields.u16().ok()? })
    }

    /// Index of the first entry not below `prefix`. Ids are uniform, so the first guesses interpolate.
    fn lower_bound(&self, prefix: &[u8; PREFIX_LEN]) -> usize {
        let target = leading_word(prefix);
        let (mut low, mut high) = (0, self.entry_count);
        let mut guesses = 0;
        while low < high {
            let middle = if guesses < 4 && high - low > 64 {
                guesses += 1;
                interpolate(
                    target,
                    low,
                    high,
                    leading_word(self.entry(low)),
                    leading_word(self.entry(high - 1)),
                )
            } else {
                low + (high - low) / 2
            };
            match self.entry(middle)[..PREFIX_LEN].cmp(prefix) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        low
    }
}

fn leading_word(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"))
}

/// A guess within `low..high` for where `target` lies, given the words at both ends.
fn interpolate(target: u64, low: usize, high: usize, first: u64, last: u64) -> usize {
    if target <= first || last <= first {
        return low;
    }
    let fraction = (target.min(last) - first) as f64 / (last - first) as f64;
    (low + (fraction * (high - 1 - low) as f64) as usize).min(high - 1)
}
