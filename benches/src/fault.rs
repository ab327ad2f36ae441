//! Page faults of a mapped image: the first touch of each group of pages, and the touch of every page.
//!
//! Floors: a raw handler that copies one page it has; one that copies as many as ours fills at once; for a group that
//! must be read, decompressed and verified, one that does just that.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use store::{GROUP_PAGES, Image, ImageBuilder, ImageId, ImageKind, PAGE, SnapshotDraft, Store, StoreConfig};

use crate::measure::{Pairs, Result, Row, percentiles, time};
use crate::raw_uffd::{RawMapping, Source};
use crate::workload::Noise;

const ROUNDS: usize = 9;
const LEN_BYTES: usize = 64 << 20;
const PAGES: usize = LEN_BYTES / PAGE;

pub(crate) fn fault(scratch: &Path) -> Result<Vec<Row>> {
    let memory = Arc::new(Noise::new(4).bytes(LEN_BYTES));
    let path = scratch.join("store");
    let id = store_image(&Store::init(&StoreConfig::directory(&path))?, &memory)?;
    let open = |cache_bytes| -> Result<Image> {
        let config = StoreConfig { cache_bytes, ..StoreConfig::directory(&path) };
        Ok(Store::open(&config)?.image(&id)?)
    };
    let (warm, cold) = (open(2 * LEN_BYTES as u64)?, open(1 << 20)?);
    let raw = |fill_len_bytes| Source::Bytes { bytes: Arc::clone(&memory), fill_len_bytes };
    let (page, group) = (raw(PAGE), raw(GROUP_PAGES * PAGE));
    let decoded = compressed(&memory)?;
    Ok(vec![
        first_touches("page fault, group cached / raw handler, 1 page", &warm, &page, &memory)?,
        first_touches("page fault, group cached / raw handler, 16 pages", &warm, &group, &memory)?,
        first_touches("page fault, group in its pack / raw handler, 1 page", &cold, &page, &memory)?,
        first_touches("page fault, group in its pack / raw handler that decodes", &cold, &decoded, &memory)?,
        all_touches(&cold, &page, &memory)?,
    ])
}

/// Latency of one fault in each group, in a random order; a first round is not counted.
fn first_touches(figure: &str, image: &Image, floor_source: &Source, memory: &[u8]) -> Result<Row> {
    let order = shuffled(PAGES / GROUP_PAGES);
    let pages: Vec<usize> = order.into_iter().map(|group| group * GROUP_PAGES).collect();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let raw = RawMapping::new(floor_source.clone())?;
        let raw_seconds: Vec<f64> =
            pages.iter().map(|page| timed(memory, *page, |page| raw.touch(page))).collect();
        raw.unmap()?;
        let mapping = lazyload::map::map(image, 0)?;
        let our_seconds: Vec<f64> =
            pages.iter().map(|page| timed(memory, *page, |page| mapping[page * PAGE])).collect();
        mapping.unmap()?;
        if round > 0 {
            floor.extend(raw_seconds);
            ours.extend(our_seconds);
        }
    }
    let note = format!("{} faults, each in another group; ours fills {GROUP_PAGES} pages", ours.len());
    Ok(percentiles(figure, &ours, &floor, note))
}

/// Time until every page has been touched, in order.
fn all_touches(image: &Image, floor_source: &Source, memory: &[u8]) -> Result<Row> {
    let ours = || {
        let mapping = lazyload::map::map(image, 0)?;
        let elapsed = time(|| touch_all(memory, |page| mapping[page * PAGE]))?;
        mapping.unmap()?;
        Ok(elapsed)
    };
    let floor = || {
        let raw = RawMapping::new(floor_source.clone())?;
        let elapsed = time(|| touch_all(memory, |page| raw.touch(page)))?;
        raw.unmap()?;
        Ok(elapsed)
    };
    let pairs = Pairs::measure(ROUNDS, ours, floor)?;
    Ok(pairs.latency("page, all touched in order / raw handler", PAGES as u64, format!("{PAGES} pages")))
}

fn touch_all(memory: &[u8], touch: impl Fn(usize) -> u8) -> Result<()> {
    match (0..PAGES).find(|page| touch(*page) != memory[page * PAGE]) {
        Some(page) => Err(format!("page {page} is wrong").into()),
        None => Ok(()),
    }
}

/// Seconds that one touch takes; a wrong byte stops the bench.
fn timed(memory: &[u8], page: usize, touch: impl Fn(usize) -> u8) -> f64 {
    let start = Instant::now();
    let byte = std::hint::black_box(touch(page));
    let elapsed = start.elapsed().as_secs_f64();
    assert_eq!(byte, memory[page * PAGE], "page {page} is right");
    elapsed
}

fn shuffled(count: usize) -> Vec<usize> {
    let mut noise = Noise::new(5);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, noise.below(last as u64 + 1) as usize);
    }
    order
}

/// The memory in groups as a store has them: compressed, each with its hash.
fn compressed(memory: &[u8]) -> Result<Source> {
    let group_len_bytes = GROUP_PAGES * PAGE;
    let level = StoreConfig::directory(Path::new("")).level;
    let frames: std::io::Result<Vec<_>> = memory
        .chunks(group_len_bytes)
        .map(|group| Ok((zstd::bulk::compress(group, level)?, blake3::hash(group))))
        .collect();
    Ok(Source::Groups { frames: Arc::new(frames?), group_len_bytes })
}

fn store_image(store: &Store, memory: &[u8]) -> Result<ImageId> {
    let mut writer = store.writer("bench")?;
    let mut builder = ImageBuilder::new(&mut writer, ImageKind::Raw, None);
    builder.begin_space(0, LEN_BYTES as u64)?;
    for (page, bytes) in memory.as_chunks::<PAGE>().0.iter().enumerate() {
        builder.page(page as u64, bytes)?;
    }
    let (image, _) = builder.finish()?;
    let draft = SnapshotDraft { image: Some(image), bytes: LEN_BYTES as u64, ..SnapshotDraft::default() };
    writer.commit("bench", draft)?;
    Ok(image)
}
