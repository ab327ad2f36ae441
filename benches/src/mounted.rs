//! Mount time at 10 and at 100,000 files, and warm reads through the mount against the same files on the host's own
//! file system. The mount is a `snapctl` of its own, as a user has it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use store::{Store, StoreConfig};

use crate::measure::{Pairs, Result, Row, snapctl, time};
use crate::storage::back_up;
use crate::workload::{Noise, files};

const MOUNT_ROUNDS: usize = 11;
const READ_ROUNDS: usize = 7;
const SMALL_FILES: usize = 5_000;
const LARGE_LEN_BYTES: u64 = 256 << 20;
const RANDOM_READS: u64 = 20_000;
const PAGE: u64 = 4096;

pub(crate) fn mount(scratch: &Path) -> Result<Vec<Row>> {
    let few = Mounted::prepare(&scratch.join("few"), 10)?;
    let many = Mounted::prepare(&scratch.join("many"), 100_000)?;
    let pairs = Pairs::measure(MOUNT_ROUNDS, || many.mount_and_unmount(), || few.mount_and_unmount())?;
    let note =
        "snapctl mount, from its start until the mount answers; the floor is the mount of 10 files".into();
    Ok(vec![pairs.latency("mount of 100,000 files / of 10 files", 1, note)])
}

pub(crate) fn read(scratch: &Path) -> Result<Vec<Row>> {
    let mounted = Mounted::prepare(scratch, SMALL_FILES)?;
    let guard = mounted.mount()?;
    let (theirs, ours) = (&mounted.source, &mounted.mountpoint);
    let mut rows = Vec::new();
    let pairs = Pairs::measure(READ_ROUNDS, || sequential(ours), || sequential(theirs))?;
    let note = format!("{} MiB in blocks of 128 KiB", LARGE_LEN_BYTES >> 20);
    rows.push(pairs.throughput("warm sequential read / ext4", LARGE_LEN_BYTES, note));
    let pairs = Pairs::measure(READ_ROUNDS, || random(ours), || random(theirs))?;
    rows.push(pairs.latency("warm random 4 KiB read / ext4", RANDOM_READS, format!("{RANDOM_READS} reads")));
    let pairs = Pairs::measure(READ_ROUNDS, || small(ours), || small(theirs))?;
    let note = format!("{SMALL_FILES} files of 4 KiB");
    rows.push(pairs.latency("warm open + read + close / ext4", SMALL_FILES as u64, note));
    guard.unmount()?;
    Ok(rows)
}

/// A tree on the host and its snapshot, ready to be mounted.
pub(crate) struct Mounted {
    pub source: PathBuf,
    store: PathBuf,
    pub mountpoint: PathBuf,
}

/// Unmounts when it is dropped, so that a bench that fails leaves no mount.
pub(crate) struct MountGuard<'a>(Option<&'a Mounted>);

impl Mounted {
    /// A tree of so many files of 4 KiB and one large one.
    fn prepare(scratch: &Path, count: usize) -> Result<Mounted> {
        Self::with_large(scratch, count, LARGE_LEN_BYTES)
    }

    /// The same, the large one of this length.
    pub(crate) fn with_large(scratch: &Path, count: usize, len_bytes: u64) -> Result<Mounted> {
        let source = scratch.join("source");
        fs::create_dir_all(&source)?;
        files(&source, count, PAGE as usize, 1)?;
        fs::write(source.join("large"), Noise::new(2).bytes(len_bytes as usize))?;
        Self::of(scratch)
    }

    /// The tree in `source` below `scratch`, and its snapshot.
    pub(crate) fn of(scratch: &Path) -> Result<Mounted> {
        let [source, store, mountpoint] = ["source", "store", "mount"].map(|name| scratch.join(name));
        fs::create_dir_all(&mountpoint)?;
        back_up(&Store::init(&StoreConfig::directory(&store))?, &source)?;
        Ok(Mounted { source, store, mountpoint })
    }

    fn snapctl(&self, arguments: &[&str]) -> Result<()> {
        let mut snapctl = Command::new(snapctl()?);
        snapctl.arg("--quiet").arg("--store").arg(&self.store).args(arguments);
        let status = snapctl.arg(&self.mountpoint).stdin(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err(format!("snapctl {} failed", arguments.join(" ")).into()) }
    }

    pub(crate) fn mount(&self) -> Result<MountGuard<'_>> {
        self.snapctl(&["mount", "bench"])?;
        Ok(MountGuard(Some(self)))
    }

    /// Seconds that a freeze takes.
    pub(crate) fn freeze(&self) -> Result<f64> {
        time(|| self.snapctl(&["freeze"]))
    }

    fn mount_and_unmount(&self) -> Result<f64> {
        let mut guard = None;
        let elapsed = time(|| {
            guard = Some(self.mount()?);
            Ok(())
        })?;
        guard.map_or(Ok(()), MountGuard::unmount)?;
        Ok(elapsed)
    }
}

impl MountGuard<'_> {
    pub(crate) fn unmount(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |mounted| mounted.snapctl(&["umount"]))
    }
}

impl Drop for MountGuard<'_> {
    fn drop(&mut self) {
        if let Some(mounted) = self.0.take()
            && let Err(error) = mounted.snapctl(&["umount", "--force"])
        {
            eprintln!("benches: {} stays mounted: {error}", mounted.mountpoint.display());
        }
    }
}

fn sequential(root: &Path) -> Result<f64> {
    let mut block = vec![0; 128 << 10];
    time(|| {
        let file = File::open(root.join("large"))?;
        let mut offset = 0;
        while offset < LARGE_LEN_BYTES {
            offset += file.read_at(&mut block, offset)? as u64;
        }
        Ok(())
    })
}

fn random(root: &Path) -> Result<f64> {
    let mut noise = Noise::new(3);
    let mut page = vec![0; PAGE as usize];
    let file = File::open(root.join("large"))?;
    time(|| {
        for _ in 0..RANDOM_READS {
            file.read_exact_at(&mut page, noise.below(LARGE_LEN_BYTES / PAGE) * PAGE)?;
        }
        Ok(())
    })
}

fn small(root: &Path) -> Result<f64> {
    time(|| {
        for number in 0..SMALL_FILES {
            let path = root.join(format!("{:04}/{:02}", number / 100, number % 100));
            std::hint::black_box(fs::read(path)?);
        }
        Ok(())
    })
}
