//! Backups one after the other: unchanged files are not read, changed ones are, and unreadable ones are reported.

use crate::scratch::Scratch;
use crate::trees::back_up;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use store::{BackupOptions, Kind, Unwatched};
use tests::model::{Body, Random, files_of_host, files_of_store};

fn fill(source: &Path) {
    let mut random = Random::new(1);
    fs::create_dir(source.join("sub")).unwrap();
    for number in 0..20 {
        fs::write(source.join(format!("file-{number}")), random.bytes(30_000)).unwrap();
        fs::write(source.join(format!("sub/file-{number}")), random.bytes(1000)).unwrap();
    }
}

/// Waits until everything below `source` is old enough that its times can be trusted: files changed within the last two
/// seconds are read again, since they could change once more in the same tick.
fn settle(source: &Path) {
    let files = files_of_host(source);
    let newest = files.keys().map(|path| {
        let path = source.join(std::str::from_utf8(path).unwrap());
        fs::symlink_metadata(path).unwrap().ctime()
    });
    let newest = newest.max().unwrap();
    let started = Instant::now();
    while store::clock::now().seconds - 1 <= newest {
        assert!(started.elapsed() < Duration::from_secs(10), "the clock stands still");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_second_backup_of_the_same_reads_nothing_and_adds_almost_nothing() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    settle(source.path());
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let first = back_up(&store, source.path(), "web");
    assert_eq!((first.files, first.directories, first.unchanged_files), (40, 2, 0));
    assert_eq!(first.bytes, 20 * 31_000);
    let second = back_up(&store, source.path(), "web");
    assert_eq!(second.unchanged_files, 40);
    assert_eq!(second.stats.new_chunks, 0);
    assert_eq!(second.stats.stored_bytes, 0);
    assert_eq!(
        files_of_store(&store, &first.snapshot).unwrap(),
        files_of_store(&store, &second.snapshot).unwrap()
    );
    // Without the look of files all are read again, and still nothing is stored.
    fs::remove_dir_all(store.state_dir().join("stat")).unwrap();
    let third = back_up(&store, source.path(), "web");
    assert_eq!((third.unchanged_files, third.stats.new_chunks), (0, 0));
    // Another ref has no look of its own, and shares the bytes.
    let other = back_up(&store, source.path(), "other");
    assert_eq!((other.unchanged_files, other.stats.new_chunks), (0, 0));
}

#[test]
fn a_file_of_the_same_length_and_time_is_still_seen_to_have_changed() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    settle(source.path());
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    drop(back_up(&store, source.path(), "web"));
    let path = source.path().join("file-3");
    let before = fs::metadata(&path).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"other bytes", 7).unwrap();
    let time = Timespec { tv_sec: before.mtime(), tv_nsec: before.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (after.len(), after.mtime(), after.mtime_nsec()),
        (before.len(), before.mtime(), before.mtime_nsec())
    );
    let second = back_up(&store, source.path(), "web");
    assert_eq!(second.unchanged_files, 39);
    assert_eq!(files_of_store(&store, &second.snapshot).unwrap(), files_of_host(source.path()));
}

#[test]
fn changes_of_every_kind_are_kept() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fill(source.path());
    settle(source.path());
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let first = back_up(&store, source.path(), "web");
    let before = files_of_host(source.path());
    fs::rename(at("file-1"), at("sub/moved")).unwrap();
    fs::remove_file(at("file-2")).unwrap();
    fs::create_dir(at("file-2")).unwrap();
    fs::remove_dir_all(at("sub")).unwrap();
    fs::write(at("sub"), "a file where a directory was").unwrap();
    fs::set_permissions(at("file-4"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(at("file-5"), at("file-5-again")).unwrap();
    File::options().append(true).open(at("file-6")).unwrap().write_all_at(b"more", 30_000).unwrap();
    File::options().write(true).open(at("file-7")).unwrap().set_len(10).unwrap();
    fs::write(at("file-8"), "").unwrap();
    let second = back_up(&store, source.path(), "web");
    assert_eq!(files_of_store(&store, &second.snapshot).unwrap(), files_of_host(source.path()));
    assert_eq!(files_of_store(&store, &first.snapshot).unwrap(), before);
    assert_eq!(store.snapshot(&second.snapshot).unwrap().parent, Some(first.snapshot));
}

#[test]
fn patterns_leave_out_what_they_name_and_no_more() {
    let source = tempfile::tempdir().unwrap();
    let all = [
        "a.log",
        "a.txt",
        "build/out/z",
        "cache/x",
        "sub/b.log",
        "sub/build/out/w",
        "sub/cache/y",
        "sub/deep/b.log",
        "sub/keep",
        "sub/link.log",
    ];
    for path in all {
        let path = source.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let kept = |patterns: &[&str]| {
        let exclude = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let options = BackupOptions { exclude, ..BackupOptions::default() };
        let mut writer = store.writer("test").unwrap();
        let report = store::backup(&mut writer, source.path(), "web", &options, &Unwatched).unwrap();
        let files = files_of_store(&store, &report.snapshot).unwrap();
        let files = files.into_iter().filter(|(_, item)| item.body != Body::Directory);
        files.map(|(path, _)| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
    };
    let without = |gone: &[&str]| all.iter().filter(|path| !gone.contains(path)).copied().collect::<Vec<_>>();
    let cases: [(&[&str], &[&str]); 10] = [
        (&[], &[]),
        (&["*.log"], &["a.log", "sub/b.log", "sub/deep/b.log", "sub/link.log"]),
        (&["/*.log"], &["a.log"]),
        (&["sub/*.log"], &["sub/b.log", "sub/link.log"]),
        (&["sub/**/*.log"], &["sub/b.log", "sub/deep/b.log", "sub/link.log"]),
        (&["sub/b?log", "sub/deep[!x]b.log"], &["sub/b.log"]),
        (&["cache"], &["cache/x", "sub/cache/y"]),
        (&["/build/out", "cache/"], &["build/out/z", "cache/x", "sub/cache/y"]),
        (&["keep/", "a.txt/"], &[]),
        (&["**/out/**", "/a.*"], &["a.log", "a.txt", "build/out/z", "sub/build/out/w"]),
    ];
    for (patterns, gone) in cases {
        assert_eq!(kept(patterns), without(gone), "{patterns:?}");
    }
    let bad =
        BackupOptions { exclude: vec!["good".to_owned(), "a/[".to_owned()], ..BackupOptions::default() };
    let mut writer = store.writer("test").unwrap();
    let error = store::backup(&mut writer, source.path(), "web", &bad, &Unwatched).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("`a/[`"), "{error}");
}

/// Nobody may read another's files; as this user is root, a thread of another user does the backup.
#[test]
fn unreadable_files_are_told_and_the_rest_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (source, place) = (directory.path().join("source"), directory.path().join("place"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&place).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fill(&source);
    fs::set_permissions(source.join("file-1"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(source.join("sub"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&place, Some(1234), Some(1234)).unwrap();
    let report = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            become_user(1234);
            let config = store::StoreConfig::directory(&place.join("store"));
            let store = store::Store::init(&config).unwrap();
            let mut writer = store.writer("test").unwrap();
            store::backup(&mut writer, &source, "web", &BackupOptions::default(), &Unwatched).unwrap()
        });
        other.join().unwrap()
    });
    assert_eq!(report.unreadable.len(), 2, "{:?}", report.unreadable);
    assert!(report.unreadable[0].contains("file-1"), "{:?}", report.unreadable);
    assert!(report.unreadable[1].contains("sub"), "{:?}", report.unreadable);
    let store = store::Store::open(&store::StoreConfig::directory(&place.join("store"))).unwrap();
    let files = files_of_store(&store, &report.snapshot).unwrap();
    assert!(!files.contains_key(b"file-1".as_slice()));
    assert_eq!(files.len(), 1 + 19 + 1);
    let error = store::backup(
        &mut store.writer("test").unwrap(),
        &source.join("absent"),
        "web",
        &BackupOptions::default(),
        &Unwatched,
    );
    assert_eq!(error.unwrap_err().kind(), Kind::NotFound);
}

/// A program that runs with its owner's rights must not be restored with those of the restoring user.
#[test]
fn a_restore_by_another_user_lends_nobody_that_users_rights() {
    let directory = tempfile::tempdir().unwrap();
    let (source, place) = (directory.path().join("source"), directory.path().join("place"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&place).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(source.join("tool"), "#!").unwrap();
    fs::set_permissions(source.join("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::chown(&place, Some(1234), Some(1234)).unwrap();
    let refused = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            become_user(1234);
            let store = store::Store::init(&store::StoreConfig::directory(&place.join("store"))).unwrap();
            let report = back_up(&store, &source, "web");
            let target = place.join("target");
            let restored = store::restore(&store, &report.snapshot, b"", &target, &Unwatched).unwrap();
            restored.refused
        });
        other.join().unwrap()
    });
    assert!(
        refused.iter().any(|one| one.path.ends_with("tool") && one.what.starts_with("owner")),
        "{refused:?}"
    );
    assert_eq!(mode_of(&place.join("target/tool")), 0o755);
    // Root restores it as it was.
    let store = store::Store::open(&store::StoreConfig::directory(&place.join("store"))).unwrap();
    let snapshot = store.resolve("web").unwrap();
    assert!(
        store::restore(&store, &snapshot, b"", &place.join("again"), &Unwatched).unwrap().refused.is_empty()
    );
    assert_eq!(mode_of(&place.join("again/tool")), 0o6755);
    assert_eq!(mode_of(&place.join("store")), 0o700, "a store is its owner's alone");
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Sets the rights of this thread alone to another user's.
pub(crate) fn become_user(uid: u32) {
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_gid(rustix::fs::Gid::from_raw(uid)).unwrap();
    rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(uid)).unwrap();
}

#[test]
fn a_backup_of_what_changes_meanwhile_ends_and_is_whole() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(5);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let path = source.path().join(format!("file-{}", random.below(20)));
                let len = random.below(200_000);
                match random.below(3) {
                    0 => fs::remove_file(&path).unwrap_or_default(),
                    _ => fs::write(&path, random.bytes(len)).unwrap(),
                }
            }
        });
        for _ in 0..10 {
            let report = back_up(&store, source.path(), "web");
            files_of_store(&store, &report.snapshot).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let last = back_up(&store, source.path(), "web");
    assert_eq!(files_of_store(&store, &last.snapshot).unwrap(), files_of_host(source.path()));
    tests::model::assert_clean(&store, "after a restless source");
}

#[test]
fn other_file_systems_are_left_out_when_asked() {
    let source = tempfile::tempdir().unwrap();
    let mounted = source.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    fs::write(source.path().join("here"), "x").unwrap();
    rustix::mount::mount("tmpfs", &mounted, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    fs::write(mounted.join("there"), "y").unwrap();
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let kept = |one_file_system: bool| {
        let options = BackupOptions { one_file_system, ..BackupOptions::default() };
        let mut writer = store.writer("test").unwrap();
        let report = store::backup(&mut writer, source.path(), "web", &options, &Unwatched).unwrap();
        let files = files_of_store(&store, &report.snapshot).unwrap();
        files.into_keys().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
    };
    let (crossed, stayed) = (kept(false), kept(true));
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(crossed, ["", "here", "mounted", "mounted/there"]);
    assert_eq!(stayed, ["", "here", "mounted"], "the mount point itself stays, empty");
}
