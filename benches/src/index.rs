//! The index at the size of a large host: 100 million synthetic chunks in runs of the real format, made by the real
//! builder and joined by the real policy. `TORPOR_INDEX_CHUNKS` sets another number.
//!
//! The floor of a warm lookup is one read of a random entry through the same maps: the cache and TLB misses that no
//! index can avoid.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use store::index::{Index, RunBuilder, store_run};
use store::{ChunkId, LocalTier, Tier};

use crate::footprint::{cool, status_bytes};
use crate::measure::{Pairs, Result, Row, duration, median, time};
use crate::synthetic::{CHUNKS_OF_PACK, chunk, directory};
use crate::workload::Noise;

const CHUNKS: u64 = 100_000_000;
const ROUNDS: usize = 5;
const LOOKUPS: u64 = 1_000_000;
const COLD_LOOKUPS: u64 = 2_000;

/// The kind of time that a figure counts.
#[derive(Clone, Copy)]
enum Clock {
    /// Time that passed.
    Wall,
    /// Time that this thread had a core: others use this machine, too.
    Core,
}

impl Clock {
    fn now(self) -> f64 {
        let time = clock_gettime(match self {
            Clock::Wall => ClockId::Monotonic,
            Clock::Core => ClockId::ThreadCPUTime,
        });
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    }
}

/// Stores runs of so many chunks and joins them; returns the seconds of joining.
fn fill(tier: &LocalTier, scratch: &Path, count: u64) -> Result<f64> {
    let mut builder = RunBuilder::default();
    for number in 0..count.div_ceil(CHUNKS_OF_PACK) {
        let start = number * CHUNKS_OF_PACK;
        builder.push(&directory(number, start..count.min(start + CHUNKS_OF_PACK)))?;
        if builder.is_full() {
            store_run(tier, "bench", &std::mem::take(&mut builder).finish())?;
        }
    }
    if !builder.is_empty() {
        store_run(tier, "bench", &builder.finish())?;
    }
    let index = Index::new(scratch);
    index.refresh(tier)?;
    time(|| {
        while index.compact(tier, &HashSet::new())? > 0 {}
        Ok(())
    })
}

/// Bytes of the filters and of the rows of mapped runs that are in this process's page table. The filters are what is
/// advised to be in huge pages.
fn mapped_bytes() -> Result<(u64, u64)> {
    let (mut filters, mut rows, mut part) = (0, 0, None);
    for line in fs::read_to_string("/proc/self/smaps")?.lines() {
        let field = |name| line.strip_prefix(name).map(str::trim);
        if let Some(kib) = field("Rss:").and_then(|rest| rest.strip_suffix(" kB")) {
            part = part.map(|_| kib.parse::<u64>().unwrap_or(0));
        } else if let (Some(flags), Some(kib)) = (field("VmFlags:"), part) {
            match flags.split(' ').any(|flag| flag == "hg") {
                true => filters += kib * 1024,
                false => rows += kib * 1024,
            }
            part = None;
        } else if line.contains(" r--s ") {
            part = line.contains("/index/").then_some(0);
        }
    }
    Ok((filters, rows))
}

/// Bytes that this process had read from disk.
fn read_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io")?;
    Ok(text.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).unwrap_or(0))
}

/// Memory of this process's own.
fn own_bytes() -> Result<u64> {
    Ok(status_bytes(&fs::read_to_string("/proc/self/status")?, "RssAnon:"))
}

fn open(scratch: &Path, tier: &LocalTier) -> Result<Index> {
    let index = Index::new(scratch);
    index.refresh(tier)?;
    Ok(index)
}

/// Looks up so many random chunks of which all or none are there.
fn look_up(index: &Index, noise: &mut Noise, numbers: Range<u64>, lookups: u64, clock: Clock) -> Result<f64> {
    let ids: Vec<ChunkId> =
        (0..lookups).map(|_| chunk(numbers.start + noise.below(numbers.end - numbers.start))).collect();
    let (mut found, start) = (0, clock.now());
    for id in &ids {
        found += u64::from(index.find_in(id, |_| true).is_some());
    }
    let seconds = clock.now() - start;
    let expected = if numbers.start == 0 { lookups } else { 0 };
    if found == expected { Ok(seconds) } else { Err(format!("{found} of {lookups} found").into()) }
}

/// Reads so many random entries.
fn read_entries(index: &Index, noise: &mut Noise, lookups: u64) -> f64 {
    let runs = index.runs();
    let places: Vec<(usize, usize)> = (0..lookups)
        .map(|_| {
            let run = noise.below(runs.len() as u64) as usize;
            (run, noise.below(runs[run].entry_count() as u64) as usize)
        })
        .collect();
    let (mut sum, start) = (0u64, Clock::Core.now());
    for (run, entry) in places {
        sum = sum.wrapping_add(runs[run].row(entry).map_or(0, |row| row.slot.into()));
    }
    std::hint::black_box(sum);
    Clock::Core.now() - start
}

pub(crate) fn index(scratch: &Path) -> Result<Vec<Row>> {
    let count = std::env::var("TORPOR_INDEX_CHUNKS").ok().and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(CHUNKS);
    let root = scratch.join("store");
    let tier = LocalTier::new(&root);
    let joined = fill(&tier, scratch, count)?;
    let stored: u64 = tier.list("index/")?.iter().map(|info| info.len_bytes).sum();

    let mut opened = Vec::new();
    for _ in 0..ROUNDS {
        cool(&root.join("index"))?;
        opened.push(time(|| open(scratch, &tier).map(drop))?);
    }
    cool(&root.join("index"))?;
    let before = own_bytes()?;
    let index = open(scratch, &tier)?;
    let run_count = index.runs().len();
    let mut noise = Noise::new(3);
    let cold = |noise: &mut Noise, numbers: Range<u64>| -> Result<(f64, f64)> {
        let read = read_bytes()?;
        let seconds = look_up(&index, noise, numbers, COLD_LOOKUPS, Clock::Wall)?;
        Ok((seconds / COLD_LOOKUPS as f64, (read_bytes()? - read) as f64 / COLD_LOOKUPS as f64))
    };
    let absent = count..2 * count;
    let misses = cold(&mut noise, absent.clone())?;
    // All filters are read now, as in a process that has run for a while.
    look_up(&index, &mut noise, absent.clone(), LOOKUPS, Clock::Wall)?;
    let mapped = mapped_bytes()?;
    let filtered = cold(&mut noise, absent.clone())?;
    let hits = cold(&mut noise, 0..count)?;
    let resident = own_bytes()?.saturating_sub(before);
    index.runs().iter().for_each(|run| assert!(run.is_intact()));

    let mut noises = (Noise::new(5), Noise::new(6), Noise::new(7), Noise::new(8));
    let warm_hits = Pairs::measure(
        ROUNDS,
        || look_up(&index, &mut noises.0, 0..count, LOOKUPS, Clock::Core),
        || Ok(read_entries(&index, &mut noises.1, LOOKUPS)),
    )?;
    let warm_misses = Pairs::measure(
        ROUNDS,
        || look_up(&index, &mut noises.2, absent.clone(), LOOKUPS, Clock::Core),
        || Ok(read_entries(&index, &mut noises.3, LOOKUPS)),
    )?;
    let rate = |pairs: &Pairs| LOOKUPS as f64 / median(&pairs.ours) / 1e6;
    println!("{count} chunks in {run_count} runs, joined in {}", duration(joined));
    println!(
        "opened cold: {} ({:?})",
        duration(median(&opened)),
        opened.iter().map(|s| duration(*s)).collect::<Vec<_>>()
    );
    println!("disk: {:.2} bytes a chunk", stored as f64 / count as f64);
    let each = |bytes: u64| bytes as f64 / count as f64;
    println!(
        "memory: {:.4} bytes a chunk of the process's own; once {LOOKUPS} misses touched all filters, {:.2} mapped of \
         these and {:.2} of rows",
        each(resident),
        each(mapped.0),
        each(mapped.1),
    );
    println!("cold misses: {} and {:.0} bytes read each", duration(misses.0), misses.1);
    println!(
        "misses, filters warm, entries cold: {} and {:.0} bytes read each",
        duration(filtered.0),
        filtered.1
    );
    println!("hits, filters warm, entries cold: {} and {:.0} bytes read each", duration(hits.0), hits.1);
    println!("warm: {:.2} M hits/s, {:.2} M misses/s on one core", rate(&warm_hits), rate(&warm_misses));
    let note = format!("{count} chunks in {run_count} runs");
    Ok(vec![
        warm_hits.latency("index hit, warm / one random entry read", LOOKUPS, note.clone()),
        warm_misses.latency("index miss, warm / one random entry read", LOOKUPS, note),
    ])
}
