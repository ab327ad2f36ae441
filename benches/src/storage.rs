//! Ingest against its unavoidable work (read, BLAKE3, zstd of the same bytes at the same level on every core), and
//! restore against `cp -a` of the tree that was stored. Sources are in the page cache for both sides.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use store::{BackupOptions, Store, StoreConfig, Unwatched};

use crate::measure::{Pairs, Result, Row, time};
use crate::peers::regular_files;
use crate::workload::mixed_tree;

const ROUNDS: usize = 7;
/// How long a file must not have changed to be taken for unchanged, and some more.
const RECENT: Duration = Duration::from_millis(1200);
/// What the floor compresses at once: the length of a frame of file data.
const FRAME_LEN_BYTES: usize = 512 << 10;

pub(crate) fn ingest(scratch: &Path) -> Result<Vec<Row>> {
    let source = scratch.join("source");
    let (paths, len_bytes) = mixed_tree(&source)?;
    let level = StoreConfig::directory(scratch).level;
    let ours = || {
        let path = scratch.join("store");
        let store = Store::init(&StoreConfig::directory(&path))?;
        rustix::fs::sync();
        let elapsed = time(|| back_up(&store, &source))?;
        drop(store);
        fs::remove_dir_all(&path)?;
        Ok(elapsed)
    };
    let floor = || {
        rustix::fs::sync();
        time(|| hash_and_compress(&paths, level))
    };
    let pairs = Pairs::measure(ROUNDS, ours, floor)?;
    let note = format!("{} MiB in {} files, ours also writes and fsyncs", len_bytes >> 20, paths.len());
    Ok(vec![pairs.throughput("ingest / read + BLAKE3 + zstd", len_bytes, note)])
}

pub(crate) fn restore(scratch: &Path) -> Result<Vec<Row>> {
    let source = scratch.join("source");
    let (paths, len_bytes) = mixed_tree(&source)?;
    let store = Store::init(&StoreConfig::directory(&scratch.join("store")))?;
    let snapshot = back_up(&store, &source)?;
    let target = scratch.join("target");
    let ours = || {
        rustix::fs::sync();
        let elapsed = time(|| Ok(store::restore(&store, &snapshot, b"", &target, &Unwatched)?))?;
        fs::remove_dir_all(&target)?;
        Ok(elapsed)
    };
    let floor = || {
        rustix::fs::sync();
        let elapsed = time(|| copy(&source, &target))?;
        fs::remove_dir_all(&target)?;
        Ok(elapsed)
    };
    let pairs = Pairs::measure(ROUNDS, ours, floor)?;
    let note =
        format!("{} MiB in {} files, ours also decompresses and verifies", len_bytes >> 20, paths.len());
    Ok(vec![pairs.throughput("restore / cp -a", len_bytes, note)])
}

/// Backs a directory up into a new snapshot of one ref.
pub(crate) fn back_up(store: &Store, source: &Path) -> Result<store::SnapshotId> {
    let mut writer = store.writer("bench")?;
    let report = store::backup(&mut writer, source, "bench", &BackupOptions::default(), &Unwatched)?;
    Ok(report.snapshot)
}

/// One file in so many is changed.
const CHANGED: usize = 100;

/// Ingest of a tree of which one file in a hundred changed. The floor looks at every file, and reads, hashes and
/// compresses those that changed.
pub(crate) fn changed(scratch: &Path) -> Result<Vec<Row>> {
    let source = scratch.join("source");
    let (paths, _) = mixed_tree(&source)?;
    let level = StoreConfig::directory(scratch).level;
    let store = Store::init(&StoreConfig::directory(&scratch.join("store")))?;
    back_up(&store, &source)?;
    // A file changed in the second before a backup is never taken for unchanged by the next: so one runs first without
    // changes.
    std::thread::sleep(RECENT);
    back_up(&store, &source)?;
    let round = Cell::new(0);
    let changing = || -> Result<Vec<PathBuf>> {
        let first = round.replace(round.get() + 1);
        let changed: Vec<PathBuf> = paths.iter().skip(first).step_by(CHANGED).cloned().collect();
        for path in &changed {
            let file = File::options().write(true).open(path)?;
            file.write_all_at(&(first as u64 + 1).to_le_bytes(), file.metadata()?.len() / 2)?;
        }
        std::thread::sleep(RECENT);
        rustix::fs::sync();
        Ok(changed)
    };
    let ours = || {
        changing()?;
        time(|| back_up(&store, &source))
    };
    let floor = || {
        let changed = changing()?;
        let elapsed = time(|| {
            regular_files(&source, &mut Vec::new())?;
            hash_and_compress(&changed, level)
        })?;
        back_up(&store, &source)?;
        Ok(elapsed)
    };
    let pairs = Pairs::measure(ROUNDS, ours, floor)?;
    let note = format!("{} of {} files; ours also commits", paths.len().div_ceil(CHANGED), paths.len());
    Ok(vec![pairs.latency(
        "ingest, 1 % of the files changed / look at all, read + hash + zstd those",
        1,
        note,
    )])
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(source).arg(target).status()?;
    if status.success() { Ok(()) } else { Err("cp -a failed".into()) }
}

/// The floor as a program of its own: the unavoidable work of an ingest of this directory.
pub(crate) fn floor_of_ingest(source: &Path) -> Result<()> {
    let mut paths = Vec::new();
    regular_files(source, &mut paths)?;
    hash_and_compress(&paths, StoreConfig::directory(source).level)
}

/// Every core takes files in turn.
fn hash_and_compress(paths: &[PathBuf], level: i32) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        let mut plain = vec![0; FRAME_LEN_BYTES];
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut file = File::open(path)?;
            loop {
                let len_bytes = file.read(&mut plain)?;
                if len_bytes == 0 {
                    break;
                }
                std::hint::black_box(blake3::hash(&plain[..len_bytes]));
                std::hint::black_box(compressor.compress(&plain[..len_bytes])?);
            }
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })
}
