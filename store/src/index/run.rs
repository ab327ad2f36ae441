//! One sorted run: an immutable, mapped table of chunk -> frame, made of the directories of some packs.
//!
//! 22 bytes an entry ([`Row`]): 12 bytes of the id (the whole id is checked where the bytes are), pack number, frame
//! offset and length in units of [`ALIGNMENT`], slot. After the entries come the [`bucket`]s. Opening maps the file and
//! reads its header; a lookup is one cache line for a chunk that is absent, and about two more for one that is there.
//! The checksum is verified by `check`, not at each opening: it would read all of it. Runs of the first layout have no
//! buckets and are searched in full.

use super::bucket::{self, BUCKET_LEN};
use super::prefix::Prefix;
use super::row::{ENTRY_LEN, OLD_ENTRY_LEN, Row};
use crate::error::{Error, Result};
use crate::host::map::Access;
use crate::host::object::Object;
use crate::id::{ChunkId, PackId};
use crate::keys;
use crate::pack::{ALIGNMENT, DELTA_SLOT};
use crate::wire::{Decoder, ENVELOPE_LEN, FORMAT_VERSION, MAGIC, Record, unseal};
use std::ops::Range;
use std::sync::OnceLock;

/// Body bytes before the entries; with the envelope, a multiple of a cache line.
pub const HEADER_LEN: usize = 72;
/// Where the entries begin.
pub const ENTRIES_START: usize = ENVELOPE_LEN + HEADER_LEN;
/// Body bytes of the first layout before its pack table.
const OLD_HEADER_LEN: usize = 12;

/// Location of a chunk's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Frame offset in the pack in bytes.
    pub offset: u64,
    /// Frame length with padding in bytes.
    pub len_bytes: u64,
    /// The chunk's slot in the frame; [`DELTA_SLOT`] for the one chunk of a delta.
    pub slot: u16,
}

impl Location {
    /// Whether the chunk is stored as a delta there.
    pub fn is_delta(&self) -> bool {
        self.slot == DELTA_SLOT
    }

    /// The chunk's slot in the frame.
    pub fn slot_index(&self) -> usize {
        if self.is_delta() { 0 } else { self.slot.into() }
    }
}

/// Where the parts of a run lie in its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub entries: Range<usize>,
    /// `None` in the first layout.
    pub buckets: Option<Range<usize>>,
    pub packs: Range<usize>,
}

impl Layout {
    /// The layout of a run with buckets.
    pub(super) fn new(entry_count: usize, bucket_count: usize, pack_count: usize) -> Self {
        let entries = ENTRIES_START..ENTRIES_START + entry_count * ENTRY_LEN;
        let start = entries.end.next_multiple_of(BUCKET_LEN);
        let buckets = start..start + bucket_count * BUCKET_LEN;
        let packs = buckets.end..buckets.end + pack_count * PackId::LEN;
        Self { entries, buckets: Some(buckets), packs }
    }

    fn old(entry_count: usize, pack_count: usize) -> Self {
        let start = ENVELOPE_LEN + OLD_HEADER_LEN;
        let packs = start..start + pack_count * PackId::LEN;
        let entries = packs.end..packs.end + entry_count * OLD_ENTRY_LEN;
        Self { entries, buckets: None, packs }
    }

    fn end(&self) -> usize {
        self.packs.end.max(self.entries.end)
    }

    fn entry_len(&self) -> usize {
        if self.buckets.is_some() { ENTRY_LEN } else { OLD_ENTRY_LEN }
    }
}

/// A mapped run.
#[derive(Debug)]
pub struct Run {
    key: String,
    object: Object,
    layout: Layout,
    entry_count: usize,
    whole: OnceLock<bool>,
}

impl Run {
    /// Opens a run, checking its header but not its entries.
    ///
    /// # Errors
    /// `Corrupt` for damage, `Invalid` for a newer format.
    pub fn open(key: &str, object: Object) -> Result<Self> {
        let layout = parse(&object).map_err(|error| error.object(key))?;
        let entry_count = layout.entries.len() / layout.entry_len();
        let run = Self { key: key.to_owned(), object, layout, entry_count, whole: OnceLock::new() };
        run.expect(Access::Random);
        run.expect_of(&run.layout.packs, Access::Whole);
        run.layout.buckets.iter().for_each(|buckets| run.expect_of(buckets, Access::Often));
        Ok(run)
    }

    /// Advises the kernel how the entries will be read.
    pub(super) fn expect(&self, access: Access) {
        self.expect_of(&self.layout.entries, access);
    }

    fn expect_of(&self, part: &Range<usize>, access: Access) {
        if let Object::Mapped(map) = &self.object {
            map.expect(access, part.clone());
        }
    }

    /// Verifies the checksum over all entries. Reads the whole run.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn verify(&self) -> Result<()> {
        let record = if self.has_buckets() { Record::BucketRun } else { Record::IndexRun };
        self.expect(Access::Whole);
        let unsealed = unseal(record, &self.object).map(|_| ()).map_err(|error| error.object(&self.key));
        self.expect(Access::Random);
        unsealed
    }

    /// Whether the checksum was right when first verified.
    pub fn is_intact(&self) -> bool {
        *self.whole.get_or_init(|| self.verify().is_ok())
    }

    /// Its key on the tier.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether it is an object of the store, not of this process only.
    pub fn is_stored(&self) -> bool {
        self.key.starts_with(keys::INDEX)
    }

    /// Whether it has the current layout.
    pub fn has_buckets(&self) -> bool {
        self.layout.buckets.is_some()
    }

    /// All bytes of the object.
    pub fn bytes(&self) -> &[u8] {
        &self.object
    }

    /// How many chunks it lists.
    pub fn entry_count(&self) -> usize {
        self.entry_count
    }

    /// How many packs it covers.
    pub fn pack_count(&self) -> usize {
        self.layout.packs.len() / PackId::LEN
    }

    /// The packs that it covers.
    pub fn packs(&self) -> impl Iterator<Item = PackId> + '_ {
        let ids = self.object[self.layout.packs.clone()].as_chunks::<{ PackId::LEN }>().0;
        ids.iter().map(|id| PackId::from_bytes(*id))
    }

    /// The pack of this number in the run.
    pub fn pack(&self, number: u32) -> Option<PackId> {
        let packs = &self.object[self.layout.packs.clone()];
        let id = packs.get(number as usize * PackId::LEN..)?.first_chunk()?;
        Some(PackId::from_bytes(*id))
    }

    /// The row of this number.
    pub fn row(&self, number: usize) -> Option<Row> {
        let entries = &self.object[self.layout.entries.clone()];
        match self.has_buckets() {
            true => entries.as_chunks().0.get(number).map(Row::decode),
            false => entries.as_chunks().0.get(number).map(Row::decode_old),
        }
    }

    /// The prefix of the row of this number.
    fn prefix(&self, number: usize) -> Prefix {
        Prefix::at_front(&self.object[self.layout.entries.start + number * self.layout.entry_len()..])
    }

    fn buckets(&self) -> Option<&[[u8; BUCKET_LEN]]> {
        self.layout.buckets.as_ref().map(|buckets| self.object[buckets.clone()].as_chunks().0)
    }

    /// Reads a byte of the bucket that a search for `prefix` will use. A lookup in several runs does this for all of
    /// them first, so that memory answers at once.
    pub(super) fn touch(&self, prefix: Prefix) -> u8 {
        self.buckets().map_or(0, |buckets| bucket::touch(buckets, prefix))
    }

    /// All locations of a chunk in the packs of this run.
    pub fn find(&self, id: &ChunkId) -> impl Iterator<Item = Location> + '_ {
        self.find_prefix(Prefix::of(id))
    }

    /// [`Self::find`] for a lookup in several runs.
    pub(super) fn find_prefix(&self, prefix: Prefix) -> impl Iterator<Item = Location> + '_ {
        self.rows_of(prefix).filter_map(|(_, row)| self.location(&row))
    }

    /// The rows of a chunk, with their numbers.
    pub(super) fn rows_of(&self, prefix: Prefix) -> impl Iterator<Item = (usize, Row)> + '_ {
        let first = self.first_row(prefix).unwrap_or(self.entry_count);
        (first..self.entry_count).map_while(move |number| {
            let row = self.row(number).filter(|row| row.prefix == prefix)?;
            Some((number, row))
        })
    }

    /// Number of the first row that is not below `prefix`; `None` where its bucket shows that no row has it.
    fn first_row(&self, prefix: Prefix) -> Option<usize> {
        let guess = match self.buckets() {
            Some(buckets) => bucket::look(buckets, prefix)?,
            None => self.entry_count / 2,
        };
        self.touch_rows(guess);
        Some(gallop(self.entry_count, guess, |number| self.prefix(number) < prefix))
    }

    /// Reads a byte of the cache lines around a guess, all at once: the wanted row is seldom further, and the search
    /// would wait for one after the other.
    fn touch_rows(&self, guess: usize) {
        let entries = &self.object[self.layout.entries.clone()];
        let at = guess * self.layout.entry_len();
        let places = [at.saturating_sub(BUCKET_LEN), at, at + BUCKET_LEN];
        let touched = places.map(|place| entries.get(place).copied().unwrap_or(0));
        std::hint::black_box(touched);
    }

    /// The location that a row points to.
    pub fn location(&self, row: &Row) -> Option<Location> {
        Some(Location {
            pack: self.pack(row.pack)?,
            offset: u64::from(row.offset) * ALIGNMENT as u64,
            len_bytes: u64::from(row.len) * ALIGNMENT as u64,
            slot: row.slot,
        })
    }
}

/// The first number below `len` for which `is_below` is false, or `len`; searched around `guess` in steps that double.
fn gallop(len: usize, guess: usize, is_below: impl Fn(usize) -> bool) -> usize {
    let guess = guess.min(len);
    let (mut low, mut high, mut step) = (guess, guess, 1);
    if guess < len && is_below(guess) {
        while high < len && is_below(high) {
            low = high + 1;
            high = low + step;
            step *= 2;
        }
        high = high.min(len);
    } else {
        while low > 0 && !is_below(low - 1) {
            high = low - 1;
            low = high.saturating_sub(step);
            step *= 2;
        }
    }
    while low < high {
        let middle = low + (high - low) / 2;
        match is_below(middle) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

fn parse(object: &[u8]) -> Result<Layout> {
    let mut header = Decoder::new(object);
    let magic = header.take(8)? == MAGIC;
    let (record, version, _) = (header.u16()?, header.u16()?, header.u32()?);
    let body_len = header.u64()?;
    header.take(32)?;
    let has_buckets = record == Record::BucketRun as u16;
    let known = has_buckets || record == Record::IndexRun as u16;
    if !magic || !known || body_len != header.remaining() as u64 {
        return Err(Error::corrupt("not a complete index run"));
    }
    if version != FORMAT_VERSION {
        return Err(
            Error::invalid(format!("index run has format version {version}")).advice("use a newer snapctl")
        );
    }
    let pack_count = header.u32()? as usize;
    let unfit = || Error::corrupt("index run's counts do not fit its length");
    let fits = |count: u64, len: usize| {
        let count = usize::try_from(count).ok().filter(|count| *count <= object.len() / len);
        count.ok_or_else(unfit)
    };
    fits(pack_count as u64, PackId::LEN)?;
    let layout = if has_buckets {
        let bucket_count = fits(header.u32()?.into(), BUCKET_LEN)?;
        Layout::new(fits(header.u64()?, ENTRY_LEN)?, bucket_count, pack_count)
    } else {
        Layout::old(fits(header.u64()?, OLD_ENTRY_LEN)?, pack_count)
    };
    match layout.end() == object.len() {
        true => Ok(layout),
        false => Err(unfit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn galloping_finds_the_partition_point_from_everywhere() {
        for len in 0..40 {
            let slice: Vec<usize> = (0..len).map(|n| n / 3).collect();
            for wanted in 0..15 {
                let expected = slice.partition_point(|n| *n < wanted);
                for guess in 0..45 {
                    assert_eq!(gallop(len, guess, |n| slice[n] < wanted), expected, "{len} {wanted} {guess}");
                }
            }
        }
    }
}
