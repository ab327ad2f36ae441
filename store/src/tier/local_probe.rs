//! The examination of a directory for a local tier: tries each required operation of the file system.

use super::examination::{Examination, Finding, Property, median_us};
use super::{LocalTier, Tier};
use crate::clock;
use crate::error::{Error, Result};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Synced writes timed.
const TIMED: usize = 15;
/// Numbers of network and user-space file systems, as in `statfs(2)`.
const DISTANT: [(u64, &str); 6] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x00c3_6400, "Ceph"),
];

/// Tries the operations of a local tier in a directory, which need not exist. Leaves nothing.
///
/// # Errors
/// When no file can be made there at all.
pub fn examine_directory(root: &Path) -> Result<Examination> {
    let made: Vec<PathBuf> = missing_directories(root);
    let place = root.join(format!("doctor-{:016x}", u64::from_le_bytes(clock::random_bytes())));
    let failed = |error| Error::io("cannot create directory", place.display(), error);
    fs::create_dir_all(&place).map_err(failed)?;
    let examination = examine(&place);
    let mut removed = fs::remove_dir_all(&place);
    for directory in made {
        removed = removed.and_then(|()| fs::remove_dir(directory));
    }
    if let Err(error) = removed {
        tracing::warn!(place = %place.display(), %error, "files of the examination stay");
    }
    Ok(examination)
}

/// The missing directories of a path, innermost first.
fn missing_directories(path: &Path) -> Vec<PathBuf> {
    path.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_path_buf).collect()
}

fn examine(place: &Path) -> Examination {
    let mut findings = Vec::new();
    let mut add = |property, seen: io::Result<(bool, String)>| {
        let (holds, evidence) = seen.unwrap_or_else(|error| (false, error.to_string()));
        findings.push(Finding { property, holds, evidence });
    };
    add(Property::OwnDisk, own_disk(place));
    add(Property::UnnamedFiles, unnamed_files(place));
    add(Property::Rename, rename(place));
    add(Property::Sync, sync(place));
    add(Property::Locks, locks(place));
    let (put_us, get_us) = time(place);
    Examination { findings, put_us, get_us }
}

fn own_disk(place: &Path) -> io::Result<(bool, String)> {
    let kind = rustix::fs::statfs(place)?.f_type as u64 & 0xffff_ffff;
    Ok(match DISTANT.iter().find(|(number, _)| *number == kind) {
        Some((_, name)) => (false, format!("this is {name}")),
        None => (true, format!("file system {kind:#x} is none of a network")),
    })
}

fn unnamed_files(place: &Path) -> io::Result<(bool, String)> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(place, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(b"whole")?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = place.join("linked");
    rustix::fs::linkat(CWD, &unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
    let again = rustix::fs::linkat(CWD, &unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW);
    let holds = again == Err(rustix::io::Errno::EXIST) && fs::read(&path)? == b"whole";
    Ok((holds, "a file got its name when it was complete, and only once".to_owned()))
}

fn rename(place: &Path) -> io::Result<(bool, String)> {
    let (old, new) = (place.join("old"), place.join("new"));
    fs::write(&old, "old")?;
    fs::write(&new, "new")?;
    let reader = File::open(&old)?;
    fs::rename(&new, &old)?;
    let holds = fs::read(&old)? == b"new" && !new.exists() && io::read_to_string(reader)? == "old";
    Ok((holds, "a file took another's place, and its readers kept theirs".to_owned()))
}

fn sync(place: &Path) -> io::Result<(bool, String)> {
    let mut file = File::create(place.join("synced"))?;
    file.write_all(b"bytes")?;
    file.sync_all()?;
    File::open(place)?.sync_all()?;
    Ok((true, "a file and its directory were synced without an error".to_owned()))
}

fn locks(place: &Path) -> io::Result<(bool, String)> {
    let path = place.join("lock");
    let one = File::create(&path)?;
    let other = File::open(&path)?;
    rustix::fs::flock(&one, FlockOperation::LockExclusive)?;
    let refused = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    rustix::fs::flock(&one, FlockOperation::Unlock)?;
    let granted = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    let holds = refused == Err(rustix::io::Errno::WOULDBLOCK) && granted.is_ok();
    Ok((holds, "a second lock was refused until the first was given back".to_owned()))
}

/// Medians of a small object stored durably, and read again; 0 where that fails.
fn time(place: &Path) -> (u32, u32) {
    let tier = LocalTier::new(place);
    let body = clock::random_bytes::<4096>();
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for number in 0..TIMED {
        let key = format!("timed/{number}");
        let start = Instant::now();
        if tier.put_if_absent(&key, &body).is_err() {
            break;
        }
        puts.push(start.elapsed());
        let start = Instant::now();
        if tier.get(&key).is_err() {
            break;
        }
        gets.push(start.elapsed());
    }
    (median_us(puts), median_us(gets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_this_machine_is_fit_and_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        for root in [directory.path().to_owned(), directory.path().join("not/there/yet")] {
            let examination = examine_directory(&root).unwrap();
            assert!(examination.findings.iter().all(|finding| finding.holds), "{:#?}", examination.findings);
            assert_eq!(examination.findings.len(), 5);
            assert!(examination.put_us > 0 && examination.get_us > 0);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_cannot_hold_files_is_an_error() {
        assert!(examine_directory(Path::new("/proc/self/nothing")).is_err());
    }
}
