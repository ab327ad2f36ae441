//! Planned reads of many chunks: looked up, cached ones left out, grouped by pack, sorted by offset, joined into
//! ranges, fetched with the tier's parallelism, decoded and verified into the cache.
//!
//! Chunks that a plan cannot fetch are left to `Store::read_chunk`, which can repair. Memory is bounded: ranges of one
//! round hold at most an eighth of the cache's limit (and at least [`ROUND_MIN`]).

use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;
use crate::index::Location;
use crate::pack::ChunkBytes;
use crate::pack::Frame;
use crate::repo::config::{DataTier, TierClass};
use crate::repo::store::Store;
use crate::sync::Mutex;
use crate::tier::RangeRequest;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// No range is longer, unless a single frame is.
const RANGE_MAX: u64 = 8 << 20;
/// A bucket serves several ranges at once faster than one; below this length that does not pay.
const COLD_RANGE_MIN: u64 = 1 << 20;
/// Number of ranges that a cold read is split into, about.
const COLD_RANGES: u64 = 16;
/// Stored bytes that one round may always fetch.
const ROUND_MIN: u64 = 4 << 20;
/// Fewer frames are decoded on the calling thread.
const PARALLEL_FRAMES: usize = 4;

/// Gaps up to this many bytes between two frames are read rather than skipped: reading them takes no longer than
/// another request.
const fn gap(class: TierClass) -> u64 {
    match class {
        TierClass::Hot => 16 << 10,
        TierClass::Warm => 1 << 20,
        TierClass::Cold => 256 << 10,
    }
}

/// A frame and the chunks wanted from it.
struct Wanted {
    place: Location,
    /// Each with its own slot.
    chunks: Vec<(ChunkId, Location)>,
}

/// Called with each fetched frame, on any thread.
type Sink<'a> = &'a (dyn Fn(&Wanted, &Arc<Frame>) + Sync);

/// A planned read under way.
struct Fetch<'a> {
    store: &'a Store,
    /// Threads that decode.
    threads: usize,
    /// Limit of decoded plain bytes.
    budget: u64,
    decoded: AtomicU64,
    sink: Sink<'a>,
}

impl Store {
    /// Loads chunks into the decoded cache with as few reads as their tiers need, as far as they fit.
    ///
    /// # Errors
    /// `NotFound` or as the tiers, for the first chunk that cannot be loaded; all others are.
    pub fn prefetch(&self, ids: &[ChunkId]) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        // The rest is for concurrent readers.
        let budget = self.inner.cache.capacity_bytes() / 8 * 7;
        let fetch = Fetch { store: self, threads, budget, decoded: AtomicU64::new(0), sink: &|_, _| {} };
        fetch.run(ids).map_or(Ok(()), Err)
    }

    /// Fetches chunks with as few reads as their tiers need; those missing in the result must be read singly. `budget`:
    /// limit, about, of the plain bytes held.
    pub(crate) fn fetch(&self, ids: &[ChunkId], budget: u64) -> HashMap<ChunkId, ChunkBytes> {
        let found = Mutex::new(HashMap::with_capacity(ids.len()));
        let sink = |wanted: &Wanted, frame: &Arc<Frame>| {
            let mut found = found.lock();
            for (id, place) in &wanted.chunks {
                // One that differs from the index is left to a reader that can repair.
                if let Ok(bytes) = self.chunk_in(frame, id, place) {
                    found.insert(*id, bytes);
                }
            }
        };
        let fetch = Fetch { store: self, threads: 1, budget, decoded: AtomicU64::new(0), sink: &sink };
        if let Some(error) = fetch.run(ids) {
            tracing::debug!(%error, "not all of a planned read is there");
        }
        found.into_inner()
    }
}

impl Fetch<'_> {
    /// Fetches the chunks that are not cached; returns why one is missing.
    fn run(&self, ids: &[ChunkId]) -> Option<Error> {
        let (mut wanted, mut failure) = self.plan(ids);
        for (number, DataTier { class, .. }) in self.store.placement().tiers().iter().enumerate() {
            if *class != TierClass::Hot {
                wanted.retain(|wanted| !self.take_from_disk_cache(wanted));
            }
            if wanted.is_empty() {
                break;
            }
            let (left, error) = self.get_from_tier(number, wanted);
            wanted = left;
            failure = failure.or(error);
        }
        // A pack missing on one tier is no failure as long as a later one has it.
        match wanted.is_empty() {
            true => failure.filter(|error| error.kind() != Kind::NotFound || self.is_unknown(ids)),
            false => failure,
        }
    }

    fn is_unknown(&self, ids: &[ChunkId]) -> bool {
        ids.iter().any(|id| self.store.index().find_in(id, |_| true).is_none())
    }

    /// The frames to fetch in the order of packs and offsets.
    fn plan(&self, ids: &[ChunkId]) -> (Vec<Wanted>, Option<Error>) {
        let mut frames: HashMap<_, Wanted> = HashMap::new();
        let mut failure = None;
        let mut seen = HashSet::new();
        for id in ids.iter().filter(|id| seen.insert(**id)) {
            match self.store.index().find_in(id, |_| true) {
                Some(place) => {
                    let wanted = frames.entry((place.pack, place.offset));
                    wanted.or_insert_with(|| Wanted { place, chunks: Vec::new() }).chunks.push((*id, place));
                }
                None => {
                    let error = || Error::new(Kind::NotFound, "no pack holds chunk").object(id);
                    failure = failure.or_else(|| Some(error()));
                }
            }
        }
        let mut wanted: Vec<Wanted> = frames.into_values().collect();
        wanted.retain(|wanted| match self.cached(&wanted.place) {
            Some(frame) => {
                self.take(wanted, &frame);
                false
            }
            None => true,
        });
        wanted.sort_unstable_by_key(|wanted| (wanted.place.pack, wanted.place.offset));
        (wanted, failure)
    }

    fn take(&self, wanted: &Wanted, frame: &Arc<Frame>) {
        self.decoded.fetch_add(frame.plain.len() as u64, Ordering::Relaxed);
        (self.sink)(wanted, frame);
    }

    /// The frame, when it is in the decoded cache.
    fn cached(&self, place: &Location) -> Option<Arc<Frame>> {
        self.store.inner.cache.get(place.pack, place.offset)
    }

    /// Decodes `bytes`, the frame as read from the tier of this number, into the decoded cache.
    fn load_from(&self, number: usize, place: &Location, bytes: &[u8]) -> Result<Arc<Frame>> {
        let DataTier { class, tier, .. } = &self.store.placement().tiers()[number];
        self.store.inner.cache.get_or_load(place.pack, place.offset, || {
            let frame = self.store.accept_frame(place, *class, &**tier, bytes);
            frame.map_err(|error| error.object(format!("{} at byte {}", place.pack.key(), place.offset)))
        })
    }

    /// The frame from the disk cache, into the decoded one.
    fn load_from_disk_cache(&self, place: &Location) -> Option<Arc<Frame>> {
        let absent = || Error::new(Kind::NotFound, "not in the disk cache");
        let load = || self.store.cached_frame(place).ok_or_else(absent);
        self.store.inner.cache.get_or_load(place.pack, place.offset, load).ok()
    }

    fn is_over_budget(&self) -> bool {
        self.decoded.load(Ordering::Relaxed) >= self.budget
    }

    fn take_from_disk_cache(&self, wanted: &Wanted) -> bool {
        if self.is_over_budget() {
            return false;
        }
        let frame = self.load_from_disk_cache(&wanted.place);
        frame.inspect(|frame| self.take(wanted, frame)).is_some()
    }

    /// Fetches the frames that one tier has; returns those that it does not have, and why.
    fn get_from_tier(&self, number: usize, wanted: Vec<Wanted>) -> (Vec<Wanted>, Option<Error>) {
        let class = self.store.placement().tiers()[number].class;
        let total = wanted.iter().map(|wanted| wanted.place.len_bytes).sum::<u64>();
        let range_max = match class {
            TierClass::Cold => (total / COLD_RANGES).clamp(COLD_RANGE_MIN, RANGE_MAX),
            TierClass::Hot | TierClass::Warm => RANGE_MAX,
        };
        let round_max = (self.store.inner.cache.capacity_bytes() / 8).max(ROUND_MIN);
        let ranges = join(&wanted, gap(class), range_max);
        let mut left = HashSet::new();
        let mut failure = None;
        let mut rest = ranges.as_slice();
        while !rest.is_empty() && !self.is_over_budget() {
            let mut sum = 0;
            let count = rest.iter().take_while(|range| {
                let is_first = sum == 0;
                sum += range.len(&wanted);
                is_first || sum <= round_max
            });
            let (round, later) = rest.split_at(count.count());
            rest = later;
            failure = failure.or(self.round(number, &wanted, round, &mut left));
        }
        // Frames that exceed the budget are not missing.
        let left = wanted.into_iter().enumerate().filter(|(index, _)| left.contains(index));
        (left.map(|(_, wanted)| wanted).collect(), failure)
    }

    /// Fetches some ranges at once and decodes their frames.
    fn round(
        &self,
        number: usize,
        wanted: &[Wanted],
        ranges: &[Joined],
        left: &mut HashSet<usize>,
    ) -> Option<Error> {
        let tier = &self.store.placement().tiers()[number].tier;
        let requests: Vec<RangeRequest> = ranges.iter().map(|range| range.request(wanted)).collect();
        let answers = tier.get_many(&requests);
        let mut failure = None;
        let mut frames = Vec::new();
        for (range, answer) in ranges.iter().zip(answers) {
            match answer {
                Ok(bytes) => {
                    let bytes = Arc::new(bytes);
                    frames.extend(
                        range.frames.clone().map(|index| (index, range.start(wanted), bytes.clone())),
                    );
                }
                Err(error) => {
                    left.extend(range.frames.clone());
                    failure.get_or_insert(error);
                }
            }
        }
        let outcome = Mutex::new((left, failure));
        let decode = |(index, start, bytes): &(usize, u64, Arc<Vec<u8>>)| {
            let Wanted { place, .. } = &wanted[*index];
            let from = (place.offset - start) as usize;
            match self.load_from(number, place, &bytes[from..from + place.len_bytes as usize]) {
                Ok(frame) => self.take(&wanted[*index], &frame),
                Err(error) => {
                    let mut outcome = outcome.lock();
                    outcome.0.insert(*index);
                    outcome.1.get_or_insert(error);
                }
            }
        };
        in_parallel(self.threads, &frames, &decode);
        outcome.into_inner().1
    }
}

/// Applies `work` to each item, on several threads when there are enough items.
fn in_parallel<T: Sync>(threads: usize, all: &[T], work: &(impl Fn(&T) + Sync)) {
    if threads < 2 || all.len() < PARALLEL_FRAMES {
        return all.iter().for_each(work);
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(all.len()) {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}

/// Frames of one pack that are fetched as one range.
struct Joined {
    /// Positions in the sorted list of wanted frames.
    frames: Range<usize>,
}

impl Joined {
    fn start(&self, wanted: &[Wanted]) -> u64 {
        wanted[self.frames.start].place.offset
    }

    fn len(&self, wanted: &[Wanted]) -> u64 {
        let last = &wanted[self.frames.end - 1].place;
        last.offset + last.len_bytes - self.start(wanted)
    }

    fn request(&self, wanted: &[Wanted]) -> RangeRequest {
        let key = wanted[self.frames.start].place.pack.key();
        RangeRequest { key, offset: self.start(wanted), len_bytes: self.len(wanted) }
    }
}

/// Joins sorted frames with small gaps between them.
fn join(wanted: &[Wanted], gap: u64, range_max: u64) -> Vec<Joined> {
    let mut ranges: Vec<Joined> = Vec::new();
    for (index, Wanted { place, .. }) in wanted.iter().enumerate() {
        let joins = ranges.last().is_some_and(|range| {
            let before = &wanted[range.frames.end - 1].place;
            let end = before.offset + before.len_bytes;
            before.pack == place.pack
                && place.offset - end <= gap
                && place.offset + place.len_bytes - range.start(wanted) <= range_max
        });
        match (joins, ranges.last_mut()) {
            (true, Some(range)) => range.frames.end = index + 1,
            _ => ranges.push(Joined { frames: index..index + 1 }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{PackId, WriterId};

    #[test]
    fn near_frames_of_a_pack_are_one_range() {
        let wanted = |sequence, offset, len_bytes| {
            let pack = PackId { writer: WriterId::from_bytes([1; 8]), epoch: 0, sequence };
            Wanted { place: Location { pack, offset, len_bytes, slot: 0 }, chunks: Vec::new() }
        };
        let frames = [
            wanted(0, 64, 1000),
            wanted(0, 1064, 1000),
            wanted(0, 2164, 1000), // after a gap of 100
            wanted(0, 3365, 1000), // after a gap of 201
            wanted(1, 4365, 1000), // in another pack
            wanted(1, 5365, 9000), // too long to join
        ];
        let ranges = join(&frames, 200, 4000);
        let ranges: Vec<_> = ranges.iter().map(|range| (range.frames.clone(), range.len(&frames))).collect();
        assert_eq!(ranges, [(0..3, 3100), (3..4, 1000), (4..5, 1000), (5..6, 9000)]);
    }
}
