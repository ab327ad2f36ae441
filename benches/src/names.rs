//! Directories of a mount beside the same on the host's own file system: opening, listing, and a directory of which half is
//! removed while the kernel knows all of it. And the memory of a mount: idle, when much was looked at and read, and after
//! the kernel dropped all that.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::footprint::status_bytes;
use crate::measure::{Pairs, Result, Row, time};
use crate::mounted::Mounted;
use crate::workload::Noise;

const ROUNDS: usize = 7;
const NAMES: usize = 100_000;
const FILES: usize = 60_000;
const READ_LEN_BYTES: usize = 1280 << 20;

fn name(number: usize) -> String {
    format!("name-{number:06}")
}

pub fn names(scratch: &Path) -> Result<Vec<Row>> {
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

/// How long it takes until the mount is gone after the first of many names of a directory of the snapshot were removed, and
/// the kernel forgets all at once.
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

pub fn resident(scratch: &Path) -> Result<Vec<Row>> {
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
    let now =
        || -> Result<u64> { Ok(status_bytes(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")) };
    let idle = now()?;
    for directory in fs::read_dir(&mounted.mountpoint)?.filter_map(|found| found.ok()) {
        if directory.file_type()?.is_dir() {
            fs::read_dir(directory.path())?.try_for_each(|file| file?.metadata().map(drop))?;
        }
    }
    let looked = now()?;
    io::copy(
        &mut File::open(mounted.mountpoint.join("large"))?.take(READ_LEN_BYTES as u64),
        &mut io::sink(),
    )?;
    let read = now()?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    // Unmounting would wait for it too; this is the last thing that the mount is asked while the kernel forgets.
    let mut forgotten = now()?;
    for _ in 0..20_000 {
        drop(fs::metadata(mounted.mountpoint.join("absent")));
        forgotten = now()?.min(forgotten);
    }
    guard.unmount()?;
    let row = |what: &str, bytes: u64| Row {
        figure: format!("memory of a mount {what} / idle"),
        ours: format!("{:.1} MB", bytes as f64 / 1e6),
        floor: format!("{:.1} MB", idle as f64 / 1e6),
        ratio: bytes as f64 / idle as f64,
        note: "resident; 60,000 files of 0.2 to 3.8 kB and one of 1.25 GiB, both of noise".into(),
    };
    Ok(vec![
        row("after stat of 60,000 files", looked),
        row("after reading 1.25 GiB too", read),
        row("after the kernel dropped its caches", forgotten),
    ])
}
