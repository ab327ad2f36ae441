//! Writes and syncs in a mount against the same on the host's own file system, and freezes of the written data.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::{SeekFrom, seek};

use crate::measure::{Pairs, Result, Row, percentiles, time};
use crate::mounted::Mounted;
use crate::workload::Noise;

const ROUNDS: usize = 9;
const BLOCK: usize = 4096;
const SEQUENTIAL_LEN: usize = 64 << 20;
const OVERWRITES: u64 = 4_000;
const SYNCS: u64 = 100;
const PIECES: u64 = 100_000;
const LARGE_LEN: u64 = 1 << 30;
const CHANGED_LEN: usize = 10 << 20;
const HOT_LEN: usize = 256 << 20;

pub(crate) fn write(scratch: &Path) -> Result<Vec<Row>> {
    let mounted = Mounted::with_large(scratch, 10, 64 << 20)?;
    let guard = mounted.mount()?;
    let rows = figures(&mounted.mountpoint, &mounted.source)?;
    guard.unmount()?;
    Ok(rows)
}

/// The figures of writing below `ours`, each against the same below `theirs`.
pub(crate) fn figures(ours: &Path, theirs: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (block, name) in [(1 << 20, "1 MiB"), (64 << 10, "64 KiB"), (BLOCK, "4 KiB")] {
        let run = |root: &Path| sequential(root, block);
        let pairs = Pairs::measure(ROUNDS, || run(ours), || run(theirs))?;
        let figure = format!("64 MiB written in blocks of {name} / ext4");
        rows.push(pairs.throughput(&figure, SEQUENTIAL_LEN as u64, "an empty file, not synced".into()));
    }
    let pairs = Pairs::measure(ROUNDS, || overwrite(ours), || overwrite(theirs))?;
    let note = format!("{OVERWRITES} blocks of a file of 64 MiB, in no order");
    rows.push(pairs.latency("4 KiB overwritten / ext4", OVERWRITES, note));
    let pairs = Pairs::measure(ROUNDS, || synced(ours, true), || synced(theirs, true))?;
    rows.push(pairs.latency("4 KiB overwritten + fdatasync / ext4", SYNCS, format!("{SYNCS} of them")));
    let pairs = Pairs::measure(ROUNDS, || synced(ours, false), || synced(theirs, false))?;
    rows.push(pairs.latency("4 KiB appended + fdatasync / ext4", SYNCS, format!("{SYNCS} of them")));
    Ok(rows)
}

/// A file of 100,000 pieces: every other block of it was written.
pub(crate) fn sparse(scratch: &Path) -> Result<Vec<Row>> {
    let mounted = Mounted::with_large(scratch, 10, 1 << 20)?;
    let guard = mounted.mount()?;
    let (theirs, ours) = (&mounted.source, &mounted.mountpoint);
    for root in [theirs, ours] {
        let file = File::create(root.join("sparse"))?;
        for piece in 0..PIECES {
            file.write_all_at(&[1; BLOCK], piece * 2 * BLOCK as u64)?;
        }
    }
    let note = || format!("{PIECES} pieces of 4 KiB");
    let mut rows = Vec::new();
    let pairs = Pairs::measure(ROUNDS, || stats(ours), || stats(theirs))?;
    rows.push(pairs.latency("stat of a file of many pieces / ext4", 100, note()));
    let pairs = Pairs::measure(ROUNDS, || seeks(ours), || seeks(theirs))?;
    rows.push(pairs.latency("SEEK_HOLE and SEEK_DATA in a file of many pieces / ext4", 200, note()));
    guard.unmount()?;
    Ok(rows)
}

pub(crate) fn freeze(scratch: &Path) -> Result<Vec<Row>> {
    let mounted = Mounted::with_large(scratch, 10, LARGE_LEN)?;
    let guard = mounted.mount()?;
    let mut rows = Vec::new();
    let mut noise = Noise::new(7);
    let source = mounted.source.join("large");
    let floor = || time(|| read_and_hash(&source));
    for (scattered, name) in [(false, "in one piece"), (true, "in blocks of 4 KiB everywhere")] {
        let ours = || {
            let bytes = noise.bytes(CHANGED_LEN);
            let file = File::options().write(true).open(mounted.mountpoint.join("large"))?;
            for (number, block) in bytes.chunks(BLOCK).enumerate() {
                let place = match scattered {
                    true => noise.below(LARGE_LEN / BLOCK as u64) * BLOCK as u64,
                    false => (100 << 20) + (number * BLOCK) as u64,
                };
                file.write_all_at(block, place)?;
            }
            mounted.freeze()
        };
        let pairs = Pairs::measure(5, ours, floor)?;
        let figure = format!("freeze of 10 MiB changed {name} of 1 GiB / reading and hashing 10 MiB");
        rows.push(pairs.latency(&figure, 1, "snapctl freeze, from its start until the ref has moved".into()));
    }
    let pairs = Pairs::measure(5, || mounted.freeze(), floor)?;
    rows.push(pairs.latency(
        "freeze of nothing / reading and hashing 10 MiB",
        1,
        "what every freeze costs".into(),
    ));
    rows.push(beside_writer(&mounted)?);
    guard.unmount()?;
    Ok(rows)
}

/// How long single writes take while the file that they go to is frozen, and while nothing is.
fn beside_writer(mounted: &Mounted) -> Result<Row> {
    let file = File::create(mounted.mountpoint.join("hot"))?;
    file.write_all_at(&Noise::new(8).bytes(HOT_LEN), 0)?;
    let done = AtomicBool::new(false);
    let (during, alone) = std::thread::scope(|scope| -> Result<_> {
        let freeze = scope.spawn(|| {
            let frozen = mounted.freeze();
            done.store(true, Ordering::Relaxed);
            frozen
        });
        let during = write_times(&file, || !done.load(Ordering::Relaxed))?;
        freeze.join().map_err(|_| "the freeze panicked")??;
        let mut left = during.len().min(20_000);
        let alone = write_times(&file, || {
            left = left.saturating_sub(1);
            left > 0
        })?;
        Ok((during, alone))
    })?;
    let longest = during.iter().copied().fold(0.0, f64::max);
    let note = format!(
        "4 KiB writes all over 256 MiB; the longest of {} took {:.0} ms",
        during.len(),
        longest * 1e3
    );
    Ok(percentiles("write into a file that is frozen / that is not", &during, &alone, note))
}

fn write_times(file: &File, mut go_on: impl FnMut() -> bool) -> Result<Vec<f64>> {
    let mut noise = Noise::new(9);
    let mut times = Vec::new();
    while go_on() {
        let place = noise.below((HOT_LEN / BLOCK) as u64) * BLOCK as u64;
        let start = Instant::now();
        file.write_all_at(&[5; BLOCK], place)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(times)
}

fn read_and_hash(source: &Path) -> Result<()> {
    let mut bytes = vec![0; CHANGED_LEN];
    File::open(source)?.read_exact(&mut bytes)?;
    black_box(blake3::hash(&bytes));
    Ok(())
}

fn sequential(root: &Path, block: usize) -> Result<f64> {
    let bytes = Noise::new(4).bytes(block);
    let file = File::create(root.join("sequential"))?;
    time(|| {
        for number in 0..SEQUENTIAL_LEN / block {
            file.write_all_at(&bytes, (number * block) as u64)?;
        }
        Ok(())
    })
}

fn overwrite(root: &Path) -> Result<f64> {
    let path = root.join("overwritten");
    if !path.exists() {
        fs::write(&path, Noise::new(5).bytes(SEQUENTIAL_LEN))?;
    }
    let file = File::options().write(true).open(&path)?;
    let mut noise = Noise::new(6);
    time(|| {
        for number in 0..OVERWRITES {
            let place = noise.below((SEQUENTIAL_LEN / BLOCK) as u64) * BLOCK as u64;
            file.write_all_at(&[number as u8; BLOCK], place)?;
        }
        Ok(())
    })
}

fn synced(root: &Path, over: bool) -> Result<f64> {
    let path = root.join(if over { "synced over" } else { "appended" });
    let file = File::options().write(true).create(true).truncate(!over).open(&path)?;
    if over && file.metadata()?.len() == 0 {
        file.write_all_at(&[1; BLOCK * SYNCS as usize], 0)?;
        file.sync_all()?;
    }
    time(|| {
        for number in 0..SYNCS {
            file.write_all_at(&[number as u8; BLOCK], number * BLOCK as u64)?;
            file.sync_data()?;
        }
        Ok(())
    })
}

/// Each after a change, or the kernel would answer.
fn stats(root: &Path) -> Result<f64> {
    let path = root.join("sparse");
    let file = File::options().write(true).open(&path)?;
    let mut total = 0.0;
    for number in 0..100_u8 {
        file.write_all_at(&[number], 0)?;
        total += time(|| Ok(black_box(fs::metadata(&path)?.blocks())))?;
    }
    Ok(total)
}

fn seeks(root: &Path) -> Result<f64> {
    let file = File::open(root.join("sparse"))?;
    let mut noise = Noise::new(3);
    time(|| {
        for _ in 0..100 {
            let place = noise.below(PIECES) * 2 * BLOCK as u64;
            black_box(seek(&file, SeekFrom::Hole(place))?);
            black_box(seek(&file, SeekFrom::Data(place + BLOCK as u64)).ok());
        }
        Ok(())
    })
}
