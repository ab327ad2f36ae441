//! Directories of a mount beside the same on the host's own file system: opening, listing, and a directory of which
//! half is removed while the kernel knows all of it. And the memory of a mount: idle, after many lookups and reads, and
//! after the kernel dropped all that.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::footprint::{resident as resident_bytes, settled};
use crate::measure::{Pairs, Result, Row, time};
use crate::mounted::Mounted;
use crate::workload::Noise;

const ROUNDS: usize = 7;
const NAMES: usize = 100_000;
const FILES: usize = 60_000;
const SETTLE_SECONDS: u64 = 6;
const READ_LEN_BYTES: usize = 1280 << 20;

fn name(number: usize) -> String {
    format!("name-{number:06}")
}

pub(crate) fn names(scratch: &Path) -> Result<Vec<Row>> {
    let directory = scratch.join("source/d");
    fs::create_dir_all(&directory)?;
    (0..NAMES).try_for_each(|number| File::create(directory.join(name(number))).map(drop))?;
    let mounted = Mounted::of(scratch)?;
    let guard = mounted.mount()?;
    let (theirs, ours) = (mounted.source.join("d"), mounted.mountpoint.join("d"));
    let open = |path: &Path| time(|| Ok(fs::read_dir(path)?));
    let list = |path: &Path| {
        time(|| match fs::read_dir(path)?.count() {
            NAMES => Ok(()),
            count => Err(format!("{} shows {count} names", path.display()).into()),
        })
    };
    let pairs = Pairs::measure(ROUNDS, || list(&ours), || list(&theirs))?;
    let mut rows = vec![pairs.latency("listing 100,000 names / ext4", 1, "warm".into())];
    let pairs = Pairs::measure(ROUNDS, || open(&ours), || open(&theirs))?;
    rows.push(pairs.latency("opendir + closedir of 100,000 names / ext4", 1, "warm".into()));
    guard.unmount()?;
    let pairs = Pairs::measure(1, || forgetting(&mounted, NAMES / 2), || forgetting(&mounted, 0))?;
    let note = "drop_caches and unmount; the kernel knows all names; floor: none was removed";
    rows.push(pairs.latency("forgetting 100,000 names of which 50,000 were removed / none", 1, note.into()));
    Ok(rows)
}

/// How long it takes until the mount is gone after the first of many names of a directory of the snapshot were removed,
/// and the kernel forgets all at once.
fn forgetting(mounted: &Mounted, removed: usize) -> Result<f64> {
    let directory = mounted.mountpoint.join("d");
    let guard = mounted.mount()?;
    (0..NAMES).try_for_each(|number| fs::metadata(directory.join(name(number))).map(drop))?;
    (0..removed).try_for_each(|number| fs::remove_file(directory.join(name(number))))?;
    let elapsed = time(|| {
        fs::write("/proc/sys/vm/drop_caches", "2")?;
        guard.unmount()
    })?;
    let guard = mounted.mount()?;
    (0..removed).try_for_each(|number| File::create(directory.join(name(number))).map(drop))?;
    guard.unmount()?;
    Ok(elapsed)
}

pub(crate) fn resident(scratch: &Path) -> Result<Vec<Row>> {
    let source = scratch.join("source");
    let mut noise = Noise::new(3);
    for number in 0..FILES {
        let directory = source.join(format!("{:03}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        fs::write(directory.join(name(number)), noise.bytes(200 + number * 7919 % 3600))?;
    }
    fs::write(source.join("large"), noise.bytes(READ_LEN_BYTES))?;
    let mounted = Mounted::of(scratch)?;
    let guard = mounted.mount()?;
    let pid = snapfs::control::find(&mounted.mountpoint)?.status()?.pid;
    let now = || resident_bytes(pid);
    let later = || settled(pid, SETTLE_SECONDS);
    let idle = now()?;
    for directory in fs::read_dir(&mounted.mountpoint)?.filter_map(|found| found.ok()) {
        if directory.file_type()?.is_dir() {
            fs::read_dir(directory.path())?.try_for_each(|file| file?.metadata().map(drop))?;
        }
    }
    let looked = [now()?, later()?];
    io::copy(
        &mut File::open(mounted.mountpoint.join("large"))?.take(READ_LEN_BYTES as u64),
        &mut io::sink(),
    )?;
    let read = [now()?, later()?];
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let forgotten = later()?;
    guard.unmount()?;
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let row = |what: &str, [all, own]: [u64; 2]| Row {
        figure: format!("memory of a mount {what} / idle"),
        ours: megabytes(all),
        floor: megabytes(idle[0]),
        ratio: all as f64 / idle[0] as f64,
        note: format!("resident, of which no file's: {}; idle {}", megabytes(own), megabytes(idle[1])),
    };
    Ok(vec![
        row("after stat of 60,000 files", looked[0]),
        row("some seconds later", looked[1]),
        row("after reading 1.25 GiB too", read[0]),
        row("some seconds later", read[1]),
        row("some seconds after the kernel dropped its caches", forgotten),
    ])
}
