//! Disks that are full, and disks that cannot be written.

use crate::scratch::Scratch;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use store::{Kind, LocalTier, SnapshotDraft, Store, StoreConfig, Unwatched};
use tests::model::{Histories, Item, Random, State, assert_clean, assert_holds, put_files, sample_files};

/// A small file system of its own.
pub(crate) struct Disk(tempfile::TempDir);

impl Disk {
    pub(crate) fn new(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), &*options).unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = unmount(self.path(), UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

fn commit(store: &Store, version: u64, extra: usize) -> store::Result<(store::SnapshotId, State)> {
    let mut files = sample_files(6, version);
    files.insert(b"extra".to_vec(), Item::file(Random::new(version).bytes(extra)));
    let mut writer = store.writer("test")?;
    let tree = put_files(&mut writer, &files)?;
    let id = writer.commit("web", SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() })?;
    Ok((id, State { files: Some(files), memory: None }))
}

fn fill_until_full(disk: &Disk) {
    let store = Store::init(&StoreConfig::directory(disk.path())).unwrap();
    let mut model = Histories::new();
    let mut version = 0;
    let error = loop {
        match commit(&store, version, 200_000) {
            Ok((id, state)) => {
                model.entry("web".to_owned()).or_default().push((id, Arc::new(state)));
            }
            Err(error) => break error,
        }
        assert_holds(&store, &model, "before the disk is full");
        version += 1;
    };
    assert_eq!(error.kind(), Kind::Full, "{error}");
    assert!(version > 2, "only {version} commits fit");
    for attempt in 0..5 {
        let error = commit(&store, 1000 + attempt, 4 << 20).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Full, "{error}");
    }
    let cold = Store::open(&StoreConfig::directory(disk.path())).unwrap();
    assert_holds(&cold, &model, "on a full disk");
    assert_clean(&cold, "on a full disk");
    assert_eq!(store::stats(&cold).unwrap().snapshots, version);
}

#[test]
fn a_disk_without_space_keeps_what_was_acknowledged_and_says_that_it_is_full() {
    fill_until_full(&Disk::new("size=8m"));
}

#[test]
fn a_disk_without_inodes_keeps_what_was_acknowledged_and_says_that_it_is_full() {
    fill_until_full(&Disk::new("size=64m,nr_inodes=60"));
}

/// Not a byte is left: the reserve lets the disk be freed, and is kept again.
#[test]
fn a_disk_full_to_the_last_byte_can_be_freed_and_written_again() {
    let disk = Disk::new("size=8m");
    let store = Store::init(&StoreConfig::directory(disk.path())).unwrap();
    let mut kept = Vec::new();
    while let Ok(committed) = commit(&store, kept.len() as u64, 200_000) {
        kept.push(committed);
    }
    for round in 0..3 {
        let (last, state) = kept.pop().unwrap();
        let mut filler = fs::File::create(disk.path().join("filler")).unwrap();
        let noise = [1; 4096];
        while std::io::Write::write(&mut filler, &noise).is_ok_and(|written| written > 0) {}
        store.forget("web", |entry| entry.snapshot != last).unwrap();
        gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 4 }, &Unwatched).unwrap();
        let (next, next_state) = commit(&store, 5000 + round, 200_000).unwrap();
        let history = vec![(last, Arc::new(state)), (next, Arc::new(next_state))];
        assert_holds(&store, &[("web".to_owned(), history)].into(), "after it was freed");
        assert_clean(&store, "after it was freed");
        fs::remove_file(disk.path().join("filler")).unwrap();
        while let Ok(committed) = commit(&store, 100 * round + kept.len() as u64, 200_000) {
            kept.push(committed);
        }
    }
}

#[test]
fn a_disk_that_cannot_be_written_is_read_and_stays_as_it_is() {
    let disk = Disk::new("size=8m");
    let config = StoreConfig::directory(disk.path());
    let (id, state) = commit(&Store::init(&config).unwrap(), 0, 1000).unwrap();
    mount_remount(disk.path(), MountFlags::RDONLY, c"").unwrap();
    let store = Store::open(&config).unwrap();
    assert_holds(&store, &[("web".to_owned(), vec![(id, Arc::new(state))])].into(), "read-only");
    assert_clean(&store, "read-only");
    drop(store.pin("a reader", &[id]).unwrap());
    for error in [
        store.writer("test").map(|_| ()).unwrap_err(),
        store.forget("web", |_| true).map(|_| ()).unwrap_err(),
        store::rebuild_index(&store, &Unwatched).map(|_| ()).unwrap_err(),
        Store::init(&StoreConfig::directory(&disk.path().join("new"))).map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains("read-only"), "{error}");
    }
    // Local state elsewhere does not make it writable.
    let elsewhere = Scratch::over(Arc::new(LocalTier::new(disk.path())));
    let error = elsewhere.open().writer("test").map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    assert!(fs::read_dir(disk.path().join("sessions")).unwrap().next().is_none());
}
