//! Disks that are full or read-only.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::snapctl::{Place, fingerprint};

use crate::mounts::Mounted;
use crate::sample;

/// A small file system of its own, unmounted when dropped.
pub(crate) struct Disk(pub PathBuf);

impl Disk {
    pub(crate) fn new(place: &Place, size: &str) -> Disk {
        let path = place.path("disk");
        fs::create_dir(&path).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &path);
        Disk(path)
    }

    pub(crate) fn remount(&self, option: &str) {
        mount(&["-o", &format!("remount,{option}")], &self.0);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(gone.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

pub(crate) fn mount(arguments: &[&str], path: &Path) {
    let output = Command::new("mount").args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A place whose store lies on a small disk and holds the sample as `web`.
fn on_disk(size: &str) -> (Place, Disk, PathBuf) {
    let mut place = Place::new();
    let disk = Disk::new(&place, size);
    place.store = disk.0.join("store");
    place.run(["init"]).expect(0);
    let source = place.path("source");
    sample::make(&source);
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    (place, disk, source)
}

#[test]
fn a_full_disk_fails_the_write_and_hurts_nothing() {
    let (place, _disk, source) = on_disk("8m");
    let before = fingerprint(&place.store);
    let big = place.path("big");
    fs::create_dir(&big).unwrap();
    fs::write(big.join("noise"), sample::noise(9, 24 << 20)).unwrap();
    let memory = place.path("memory");
    fs::write(&memory, sample::noise(10, 24 << 20)).unwrap();
    for arguments in [
        ["backup".as_ref(), big.as_os_str(), "web".as_ref(), "--json".as_ref()].as_slice(),
        &["capture".as_ref(), "--raw".as_ref(), memory.as_os_str(), "memory".as_ref(), "--json".as_ref()],
    ] {
        let error = place.run(arguments).expect(2).json_error();
        assert_eq!(error["kind"], "full", "{error}");
        assert!(error["message"].as_str().unwrap().contains("free some space"), "{error}");
    }
    let after = fingerprint(&place.store);
    for (name, file) in &before {
        assert_eq!(after.get(name), Some(file), "{name} was changed");
    }
    assert_eq!(place.run(["snapshots", "--json"]).expect(0).json_lines().len(), 1);
    place.run(["check", "--read-data"]).expect(0);
    let target = place.path("target");
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&source, &target);

    // There is a way out: the rest of the failed writes is collected, and data that fits can be written again.
    place.run(["gc", "--cycles", "3"]).expect(0);
    fs::write(source.join("more"), "fits").unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
}

#[test]
fn a_freeze_to_a_full_disk_keeps_the_changes_for_the_next_one() {
    let mut place = Place::new();
    let upper = place.path("upper");
    let upper = upper.to_str().unwrap();
    let disk = Disk::new(&place, "8m");
    place.store = disk.0.join("store");
    place.run(["init"]).expect(0);
    let mounted = Mounted::on(place);
    // Declared last, it goes first: before the directory that it is mounted in.
    let _disk = disk;
    mounted.run(&["mount", "web", "DIR", "--upper", upper]).expect(0);
    let (big, small) = (mounted.directory.join("big"), mounted.directory.join("small"));
    fs::write(&big, sample::noise(13, 24 << 20)).unwrap();
    fs::write(&small, "small").unwrap();
    let error = mounted.run(&["freeze", "DIR", "--json"]).expect(2).json_error();
    assert_eq!(error["kind"], "full", "{error}");
    assert!(fs::read(&big).unwrap() == sample::noise(13, 24 << 20));
    fs::remove_file(&big).unwrap();
    mounted.run(&["gc", "--cycles", "3"]).expect(0);
    mounted.run(&["freeze", "DIR"]).expect(0);
    assert_eq!(mounted.run(&["cat", "web:small"]).expect(0).text(), "small");
    mounted.run(&["check", "--read-data"]).expect(0);
    mounted.run(&["umount", "DIR"]).expect(0);
}

#[test]
fn a_restore_to_a_full_disk_says_so() {
    let place = Place::with_store();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("noise"), sample::noise(11, 4 << 20)).unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let disk = Disk::new(&place, "1m");
    let target = disk.0.join("target");
    let error = place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str(), "--json".as_ref()]);
    assert_eq!(error.expect(2).complains("noise").json_error()["kind"], "full");
}

#[test]
fn a_read_only_store_is_read_and_refuses_writes() {
    let (place, disk, source) = on_disk("32m");
    let before = fingerprint(&place.store);
    disk.remount("ro");
    for reading in [
        ["snapshots"].as_slice(),
        &["show", "web"],
        &["ls", "-R", "web"],
        &["cat", "web:docs/text"],
        &["diff", "web", "web"],
        &["check", "--read-data"],
        &["stats"],
        &["gc", "--dry-run"],
        &["forget", "web", "--keep-last", "1", "--dry-run"],
    ] {
        let run = place.run(reading);
        assert_eq!(run.code, 0, "{reading:?}: {}", run.stderr);
    }
    let target = place.path("target");
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&source, &target);

    let id = place.run(["show", "web", "--json"]).expect(0).json()["snapshot"].as_str().unwrap().to_owned();
    let memory = place.path("memory");
    fs::write(&memory, sample::noise(12, 1 << 16)).unwrap();
    for writing in [
        vec!["backup".as_ref(), source.as_os_str(), "web".as_ref()],
        vec!["capture".as_ref(), "--raw".as_ref(), memory.as_os_str(), "memory".as_ref()],
        vec!["forget".as_ref(), "web".as_ref(), id.as_ref()],
        vec!["gc".as_ref()],
        vec!["index".as_ref(), "rebuild".as_ref()],
    ] {
        place.run(&writing).expect(2).complains("ead-only");
    }
    let elsewhere = disk.0.join("elsewhere");
    place.run(["init".as_ref(), "--store".as_ref(), elsewhere.as_os_str()]).expect(2).complains("ead-only");
    disk.remount("rw");
    assert_eq!(fingerprint(&place.store), before);
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
}

#[test]
fn a_mount_whose_log_cannot_be_written_goes_on_answering() {
    let mounted = Mounted::new();
    let disk = Disk::new(&mounted.place, "2m");
    let upper = disk.0.join("upper");
    mounted.run(&["mount", "web", "DIR", "--upper", upper.to_str().unwrap()]).expect(0);
    fs::write(disk.0.join("filler"), vec![1; 4 << 20]).unwrap_err();
    for _ in 0..200 {
        // Something to complain about; the connection ends when that was done.
        let mut client = UnixStream::connect(upper.join("control.sock")).unwrap();
        client.write_all(&[0; 4]).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
    }
    mounted.run(&["umount", "DIR"]).expect(0);
}
