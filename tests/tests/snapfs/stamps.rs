//! The fields that tell programs whether a file changed: device, inode number, length, modification and change time.

use crate::{HELPER, run};
use rustix::fs::{self as sys, AtFlags, CWD, Timespec, Timestamps};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use tests::snapfs_mount::{Served, World};

/// All that a program compares but the device, which the kernel assigns at each mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
struct Stamp {
    ctime: (i64, i64),
    mtime: (i64, i64),
    inode: u64,
    len: u64,
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::symlink_metadata(path).unwrap();
    Stamp {
        ctime: (found.ctime(), found.ctime_nsec()),
        mtime: (found.mtime(), found.mtime_nsec()),
        inode: found.ino(),
        len: found.len(),
    }
}

/// Writes over a file without changing its length, and says that it is of 2001.
fn rewrite(path: &Path, bytes: &[u8; 4]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, 0).unwrap();
    set_old(path);
}

fn set_old(path: &Path) {
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    sys::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

/// A base of files of four bytes and of 2001.
fn planted() -> World {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::create_dir(source.join("d")).unwrap();
    for name in ["d/file", "d/other", "linked"] {
        fs::write(source.join(name), "aaaa").unwrap();
        set_old(&source.join(name));
    }
    fs::hard_link(source.join("linked"), source.join("d/second")).unwrap();
    set_old(&source.join("d"));
    set_old(&source);
    world.backup(&source, "base");
    world
}

fn remount(world: &World, served: Served, name: &str) -> Served {
    served.unmount();
    run(Command::new("rm").arg("-rf").arg(world.path("upper")));
    world.mount(name, "mnt", "upper", &[])
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

const PATHS: [&str; 7] = ["", "d", "d/file", "d/other", "d/second", "linked", "d/new"];

fn stamps(served: &Served) -> Vec<Stamp> {
    PATHS.iter().filter(|path| served.path(path).exists()).map(|path| stamp(&served.path(path))).collect()
}

#[test]
fn change_times_grow_with_each_change_and_are_kept_by_freezes_and_mounts() {
    let world = planted();
    let mut served = world.mount("base", "mnt", "upper", &[]);
    let mut file = stamp(&served.path("d/file"));
    for round in 0..4_u8 {
        for change in 0..4 {
            let path = served.path("d/file");
            match change {
                0 => rewrite(&path, &[b'b' + round; 4]),
                1 => fs::set_permissions(&path, PermissionsExt::from_mode(0o600 + u32::from(round))).unwrap(),
                2 => {
                    fs::rename(&path, served.path("d/away")).unwrap();
                    fs::rename(served.path("d/away"), &path).unwrap();
                }
                _ => rewrite(&served.path("linked"), &[b'x' - round; 4]),
            }
            let now = stamp(&path);
            if change < 3 {
                assert!(now.ctime > file.ctime, "round {round}, change {change}: {file:?} -> {now:?}");
                assert_eq!((now.mtime, now.len, now.inode), ((1_000_000_000, 5), 4, file.inode));
            }
            file = now;
        }
        if round == 0 {
            fs::write(served.path("d/new"), "new!").unwrap();
            set_old(&served.path("d/new"));
        }
        let before = stamps(&served);
        served.freeze("base");
        assert_eq!(stamps(&served), before, "after freeze {round}");
        drop_caches();
        assert_eq!(stamps(&served), before, "after the kernel forgot what it knew, {round}");
        served = remount(&world, served, "base");
        assert_eq!(stamps(&served), before, "at mount {round} of the snapshot");
    }
    served.unmount();
}

#[test]
fn a_backup_of_a_mount_sees_a_change_that_keeps_length_and_time() {
    let world = planted();
    let mut served = world.mount("base", "mnt", "upper", &[]);
    world.backup(&served.mountpoint, "kept");
    for bytes in [b"bbbb", b"cccc"] {
        rewrite(&served.path("d/file"), bytes);
        rewrite(&served.path("linked"), bytes);
        served.freeze("base");
        served = remount(&world, served, "base");
        let restored =
            world.restore(&world.backup(&served.mountpoint, "kept"), &format!("restored {}", bytes[0]));
        for name in ["d/file", "linked", "d/second"] {
            assert_eq!(fs::read(restored.join(name)).unwrap(), bytes, "{name}");
        }
        assert_eq!(fs::read(restored.join("d/other")).unwrap(), b"aaaa");
    }
    served.unmount();
}

#[test]
fn mounts_of_different_snapshots_look_alike_only_where_they_are() {
    let world = planted();
    // Another backup of the same names, lengths and times; only the bytes of one file differ.
    fs::write(world.path("source/d/file"), "zzzz").unwrap();
    set_old(&world.path("source/d/file"));
    world.backup(&world.path("source"), "later");
    // Two mounts of one snapshot that change the same file alike.
    for fork in ["one", "two"] {
        let served = world.mount("base", "mnt", fork, &[]);
        rewrite(&served.path("d/file"), if fork == "one" { b"1111" } else { b"2222" });
        served.freeze(fork);
        served.unmount();
    }
    let mut seen: Vec<(&str, Vec<u8>, Stamp)> = Vec::new();
    for name in ["base", "later", "one", "two", "base", "one"] {
        let served = world.mount(name, "mnt", &format!("upper of {name}"), &["--read-only"]);
        let (bytes, found) = (fs::read(served.path("d/file")).unwrap(), stamp(&served.path("d/file")));
        for (other, other_bytes, other_found) in &seen {
            assert_eq!(found == *other_found, bytes == *other_bytes, "{name} and {other}: {found:?}");
        }
        seen.push((name, bytes, found));
        served.unmount();
    }
    let others = ["base", "later", "one"].map(|name| {
        let served = world.mount(name, "mnt", &format!("upper of {name}"), &["--read-only"]);
        let found = stamp(&served.path("d/other"));
        served.unmount();
        found
    });
    assert!(others.iter().all(|found| *found == others[0]), "what did not change looks the same: {others:?}");
}

#[test]
fn git_sees_a_change_that_keeps_length_and_time() {
    let world = planted();
    let mut served = world.mount("base", "mnt", "upper", &[]);
    let git = |served: &Served, arguments: &[&str]| {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"];
        run(Command::new("git").arg("-C").arg(&served.mountpoint).args(identity).args(arguments))
    };
    git(&served, &["init", "-q"]);
    git(&served, &["add", "d/file"]);
    git(&served, &["commit", "-q", "-m", "first"]);
    served.freeze("base");
    served = remount(&world, served, "base");
    assert_eq!(git(&served, &["status", "--porcelain", "-uno"]), "");
    rewrite(&served.path("d/file"), b"bbbb");
    served.freeze("base");
    served = remount(&world, served, "base");
    assert_eq!(git(&served, &["status", "--porcelain", "-uno"]), " M d/file\n");
    served.unmount();
}
