//! `snapctl stats [REF]`: logical size against stored size; of the whole store, of a ref's complete history, or of one
//! snapshot. Reads records and the index, no data.

use std::collections::HashMap;
use std::io::{self, Write};

use serde::Serialize;
use store::index::{Location, RowMarks};
use store::{ChunkId, Error, Kind, PackId, Reached, SnapshotId, Store, StoreStats};

use crate::args::StatsArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::human;
use crate::output::Show;

/// Figures of the whole store.
#[derive(Serialize)]
struct Whole {
    refs: u64,
    snapshots: u64,
    logical_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    dedup_ratio: Option<f64>,
    compression_ratio: Option<f64>,
    chunks: u64,
    packs: u64,
    condemned_packs: u64,
    index_runs: u64,
}

impl Show for Whole {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "snapshots    {} of {} refs", self.snapshots, self.refs)?;
        writeln!(out, "logical      {}", human::size(self.logical_bytes))?;
        let dedup = human::ratio(self.logical_bytes, self.unique_bytes);
        writeln!(out, "unique       {} (dedup {dedup})", human::size(self.unique_bytes))?;
        let compression = human::ratio(self.unique_bytes, self.stored_bytes);
        writeln!(out, "stored       {} (compression {compression})", human::size(self.stored_bytes))?;
        writeln!(out, "chunks       {} in {} index runs", self.chunks, self.index_runs)?;
        writeln!(out, "packs        {}, of them condemned {}", self.packs, self.condemned_packs)
    }
}

/// Figures of some snapshots, including data shared with others.
#[derive(Serialize)]
struct Part {
    spec: String,
    snapshots: u64,
    logical_bytes: u64,
    stored_bytes: u64,
    ratio: Option<f64>,
    chunks: u64,
    packs: u64,
}

impl Show for Part {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "snapshots    {}", self.snapshots)?;
        writeln!(out, "logical      {}", human::size(self.logical_bytes))?;
        let ratio = human::ratio(self.logical_bytes, self.stored_bytes);
        writeln!(out, "stored       {} ({ratio})", human::size(self.stored_bytes))?;
        writeln!(out, "chunks       {}", self.chunks)?;
        writeln!(out, "packs        {}", self.packs)
    }
}

pub(super) fn run(arguments: &StatsArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    match &arguments.spec {
        None => context.output.answer(&whole(store::stats(&store)?))?,
        Some(spec) => {
            let snapshots = snapshots_of(&store, spec)?;
            context.output.answer(&part(&store, spec, &snapshots)?)?;
        }
    }
    Ok(Outcome::Done)
}

fn ratio(plain: u64, stored: u64) -> Option<f64> {
    (stored > 0).then(|| plain as f64 / stored as f64)
}

fn whole(stats: StoreStats) -> Whole {
    Whole {
        refs: stats.refs,
        snapshots: stats.snapshots,
        logical_bytes: stats.logical_bytes,
        unique_bytes: stats.unique_bytes,
        stored_bytes: stats.stored_bytes,
        dedup_ratio: ratio(stats.logical_bytes, stats.unique_bytes),
        compression_ratio: ratio(stats.unique_bytes, stats.stored_bytes),
        chunks: stats.chunks,
        packs: stats.packs,
        condemned_packs: stats.condemned_packs,
        index_runs: stats.index_runs,
    }
}

/// A ref's name means its complete history, any other SPEC one snapshot.
fn snapshots_of(store: &Store, spec: &str) -> anyhow::Result<Vec<SnapshotId>> {
    let found = if store::check_name(spec).is_ok() { store.refs().get(spec)? } else { None };
    match found {
        Some(found) => Ok(found.history.iter().map(|entry| entry.snapshot).collect()),
        None => Ok(vec![store.resolve(spec).asked()?]),
    }
}

/// Frames, each counted once, in 8 bytes of memory, or 16 while it grows: the number of its pack, its offset in units
/// of 64 bytes, and its length in the same units, as in a row of the index.
#[derive(Default)]
struct Frames {
    packs: HashMap<PackId, u64>,
    frames: Vec<u64>,
    /// Number of frames before duplicates are dropped again.
    limit: usize,
}

impl Frames {
    fn insert(&mut self, place: &Location) {
        let next = self.packs.len() as u64;
        let pack = *self.packs.entry(place.pack).or_insert(next);
        self.frames.push((pack << 40) | ((place.offset / 64) << 16) | (place.len_bytes / 64));
        if self.frames.len() > self.limit {
            self.settle();
            self.limit = (2 * self.frames.len()).max(1 << 20);
        }
    }

    fn settle(&mut self) {
        self.frames.sort_unstable();
        self.frames.dedup();
    }

    /// Bytes of all frames, and how many packs they are in.
    fn finish(mut self) -> (u64, u64) {
        self.settle();
        (self.frames.iter().map(|frame| (frame & 0xffff) * 64).sum(), self.packs.len() as u64)
    }
}

/// Adds up the frames that the snapshots need.
fn part(store: &Store, spec: &str, snapshots: &[SnapshotId]) -> store::Result<Part> {
    store.index().refresh(store.metadata_tier())?;
    let mut chunks = RowMarks::new(store.index());
    let mut reached = Reached::new(store);
    let mut logical_bytes = 0_u64;
    let (mut frames, mut missing) = (Frames::default(), None);
    for id in snapshots {
        logical_bytes = logical_bytes.saturating_add(store.snapshot(id)?.totals.bytes);
        reached.walk(store, id, &mut |chunk: &ChunkId| {
            if chunks.insert(chunk) {
                match store.index().find_in(chunk, |_| true) {
                    Some(place) => frames.insert(&place),
                    None => missing = missing.or(Some(*chunk)),
                }
            }
        })?;
    }
    if let Some(chunk) = missing {
        return Err(Error::new(Kind::Corrupt, "the index lacks a chunk")
            .object(chunk)
            .advice("run `snapctl check`"));
    }
    let (stored_bytes, packs) = frames.finish();
    Ok(Part {
        spec: spec.to_owned(),
        snapshots: snapshots.len() as u64,
        logical_bytes,
        stored_bytes,
        ratio: ratio(logical_bytes, stored_bytes),
        chunks: chunks.len(),
        packs,
    })
}
