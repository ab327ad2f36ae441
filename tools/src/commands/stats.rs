//! `snapctl stats [REF]`: what is stood for against what it takes; of the whole store, of a ref's whole history, or of one
//! snapshot. Reads records and the index, no data.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use serde::Serialize;
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

/// Figures of some snapshots, what they share with others counted in.
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

pub fn run(arguments: &StatsArguments, context: &mut Context) -> anyhow::Result<Outcome> {
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

/// A ref's name means its whole history, any other SPEC one snapshot.
fn snapshots_of(store: &Store, spec: &str) -> anyhow::Result<Vec<SnapshotId>> {
    let found = if store::check_name(spec).is_ok() { store.refs().get(spec)? } else { None };
    match found {
        Some(found) => Ok(found.history.iter().map(|entry| entry.snapshot).collect()),
        None => Ok(vec![store.resolve(spec).asked()?]),
    }
}

/// Adds up the frames that hold what the snapshots need.
fn part(store: &Store, spec: &str, snapshots: &[SnapshotId]) -> store::Result<Part> {
    let mut chunks: HashSet<ChunkId> = HashSet::new();
    let mut reached = Reached::new();
    let mut logical_bytes = 0_u64;
    for id in snapshots {
        logical_bytes = logical_bytes.saturating_add(store.snapshot(id)?.totals.bytes);
        reached.walk(store, id, &mut |chunk| {
            chunks.insert(*chunk);
        })?;
    }
    let mut frames: HashMap<(PackId, u64), u64> = HashMap::new();
    for chunk in &chunks {
        let place = store.index().find_in(chunk, |_| true).ok_or_else(|| {
            Error::new(Kind::Corrupt, "the index lacks a chunk").object(chunk).advice("run `snapctl check`")
        })?;
        frames.insert((place.pack, place.offset), place.len_bytes);
    }
    let packs: HashSet<PackId> = frames.keys().map(|(pack, _)| *pack).collect();
    let stored_bytes = frames.values().sum();
    Ok(Part {
        spec: spec.to_owned(),
        snapshots: snapshots.len() as u64,
        logical_bytes,
        stored_bytes,
        ratio: ratio(logical_bytes, stored_bytes),
        chunks: chunks.len() as u64,
        packs: packs.len() as u64,
    })
}
