//! The serving process dies, the disk is full, another process is in the way.

use crate::HELPER;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::mount::{MountFlags, UnmountFlags};
use snapfs::control;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use store::Kind;
use tests::snapfs_mount::{World, is_mounted};
use tests::snapfs_tree::assert_same;

/// A small file system of its own, taken away when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: &Path, options: &CStr) -> Self {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(options)).unwrap();
        Self(path.to_owned())
    }

    /// Leaves not a byte free.
    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        while filler.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn after_a_kill_the_next_mount_has_everything_that_was_answered() {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::write(source.join("base"), vec![3; 100_000]).unwrap();
    let snapshot = world.backup(&source, "base");
    let expected = world.restore(&snapshot, "expected");
    for round in 0..5_u8 {
        let served = world.mount("base", "mnt", "upper", &[]);
        for root in [&served.mountpoint, &expected] {
            let directory = root.join(format!("round {round}"));
            fs::create_dir(&directory).unwrap();
            let mut synced = File::create(directory.join("synced")).unwrap();
            synced.write_all(&vec![round; 50_000]).unwrap();
            synced.sync_all().unwrap();
            fs::write(directory.join("written"), vec![round; 9000]).unwrap();
            fs::rename(directory.join("written"), directory.join("renamed")).unwrap();
            let base = File::options().write(true).open(root.join("base")).unwrap();
            base.write_all_at(&[round; 100], u64::from(round) * 10_000 + 17).unwrap();
            File::open(&directory).unwrap().sync_all().unwrap();
        }
        served.kill();
    }
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_same(&served.mountpoint, &expected, "after five kills");
    served.unmount();
}

#[test]
fn a_mount_whose_process_is_gone_is_found_without_hanging_and_can_be_taken_away() {
    let world = World::with_empty_base(HELPER);
    let mut served = world.mount("base", "mnt", "upper", &[]);
    fs::write(served.path("file"), "kept").unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(served.pid() as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    served.wait();
    let error = control::find(&served.mountpoint).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("umount --force"), "{error}");
    let refused = world.try_mount_there("base", &served.mountpoint, "upper").err().unwrap();
    assert!(refused.contains("umount --force"), "mounting over it says the same: {refused}");
    served.kill();
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(fs::read(served.path("file")).unwrap(), b"kept");
    served.unmount();
    assert_eq!(control::find(&world.path("mnt")).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn whoever_unmounts_ends_the_process_and_a_mount_in_use_says_so() {
    let world = World::with_empty_base(HELPER);
    let mut served = world.mount("base", "mnt", "upper", &[]);
    let open = File::create(served.path("open")).unwrap();
    let error = served.client().unmount().unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    drop(open);
    // A process that another test is just starting may hold a copy of the descriptor until it runs its program.
    let started = Instant::now();
    while !Command::new("umount").arg(&served.mountpoint).status().unwrap().success() {
        assert!(started.elapsed() < Duration::from_secs(5), "nothing is open any more");
    }
    assert!(served.wait().success(), "the process ends by itself");
    assert!(!is_mounted(&served.mountpoint));
    assert!(!served.upper.join("control.sock").exists());
}

#[test]
fn a_serving_thread_that_dies_ends_the_mount_instead_of_hanging_whoever_waits() {
    let world = World::with_empty_base(HELPER);
    let mut served = world.mount("base", "mnt", "upper", &[]);
    fs::write(served.path("file"), "kept").unwrap();
    // With overflow checks, as in tests and not in releases, the FUSE library panics over this time.
    let impossible = Timespec { tv_sec: i64::MIN, tv_nsec: 1 };
    let times = Timestamps { last_access: impossible, last_modification: impossible };
    let answer = utimensat(CWD, served.path("file"), &times, AtFlags::empty());
    assert!(answer.is_err(), "it is answered at all");
    assert!(!served.wait().success(), "the process ends and says that something was wrong");
    assert!(!is_mounted(&served.mountpoint), "nothing is left to hang on");
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(fs::read(served.path("file")).unwrap(), b"kept");
    served.unmount();
}

/// umount(8) returns once the mount point is free, and the serving process has yet to make everything durable.
#[test]
fn a_mount_may_follow_at_once_on_an_unmount_with_the_same_upper() {
    let world = World::with_empty_base(HELPER);
    for round in 0..5 {
        let mut served = world.mount("base", "mnt", "upper", &[]);
        fs::write(served.path(&format!("file {round}")), vec![round; 3 << 20]).unwrap();
        let started = Instant::now();
        while !Command::new("umount").arg(&served.mountpoint).status().unwrap().success() {
            assert!(started.elapsed() < Duration::from_secs(5), "nothing is open any more");
        }
        let next = world.mount("base", "mnt", "upper", &[]);
        assert!(served.wait().success());
        assert!(next.client().status().is_ok(), "the old process left the new socket alone");
        assert_eq!(fs::read(next.path(&format!("file {round}"))).unwrap(), vec![round; 3 << 20]);
        next.unmount();
    }
}

#[test]
fn two_mounts_never_share_an_upper() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let refused = world.try_mount("base", "mnt2", "upper", &[]).err().unwrap();
    assert!(refused.contains("another mount uses this upper"), "{refused}");
    let beside = world.mount("base", "mnt2", "upper2", &[]);
    fs::write(beside.path("only here"), "x").unwrap();
    assert!(!served.path("only here").exists());
    beside.unmount();
    served.unmount();
}

#[test]
fn an_upper_below_its_own_mount_point_is_refused() {
    let world = World::with_empty_base(HELPER);
    let refused = world.try_mount("base", "mnt", "mnt/upper", &[]).err().unwrap();
    assert!(refused.contains("below the mount point"), "{refused}");
    assert_eq!(world.store.metadata_tier().list("sessions/").unwrap(), [], "nothing is held for it");
    assert!(!is_mounted(&world.path("mnt")));
}

#[test]
fn a_full_disk_refuses_writes_keeps_the_rest_and_recovers_when_files_go() {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::write(source.join("base"), vec![3; 100_000]).unwrap();
    world.backup(&source, "base");
    let _disk = SmallDisk::at(&world.make("small"), c"size=3m");
    let served = world.mount("base", "mnt", "small/upper", &[]);
    fs::write(served.path("kept"), vec![1; 500_000]).unwrap();
    let filler = File::create(served.path("filler")).unwrap();
    let full = (0..100).find_map(|piece| filler.write_all_at(&[2; 65_536], piece * 65_536).err());
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    drop(filler);
    // Not one byte more, and not one name more.
    let fill = |number: u32| fs::write(served.path(&format!("small {number}")), [2; 4096]);
    let small = (0..1000).find(|number| fill(*number).is_err()).unwrap();
    let name = (small..100_000).find(|number| File::create(served.path(&format!("name {number}"))).is_err());
    assert!(name.is_some());
    assert!(fs::read(served.path("kept")).unwrap() == vec![1; 500_000]);
    assert!(fs::read(served.path("base")).unwrap() == vec![3; 100_000]);
    fs::remove_file(served.path("filler")).unwrap();
    fs::write(served.path("again"), vec![4; 500_000]).unwrap();
    served.kill();
    let served = world.mount("base", "mnt", "small/upper", &[]);
    assert!(fs::read(served.path("again")).unwrap() == vec![4; 500_000]);
    assert!(fs::read(served.path("kept")).unwrap() == vec![1; 500_000]);
    served.unmount();
}

/// However the disk was filled, small changes included: removing, cutting and punching go on.
#[test]
fn a_disk_full_of_small_changes_can_still_be_emptied() {
    let world = World::new(HELPER);
    let source = world.make("source");
    for name in ["base-1", "base-2"] {
        fs::write(source.join(name), vec![1; 65_536]).unwrap();
    }
    world.backup(&source, "base");
    let disk = SmallDisk::at(&world.make("small"), c"size=4m");
    let served = world.mount("base", "mnt", "small/upper", &[]);
    fs::write(served.path("big"), vec![1; 65_536]).unwrap();
    fs::write(served.path("cut"), vec![1; 65_536]).unwrap();
    disk.fill();
    let refused = (0..1_000_000).find_map(|round| {
        let mode = fs::Permissions::from_mode(0o600 + (round & 1));
        fs::set_permissions(served.path("big"), mode).err()
    });
    assert_eq!(refused.unwrap().kind(), std::io::ErrorKind::StorageFull);
    fs::remove_file(served.path("base-1")).unwrap();
    fs::rename(served.path("big"), served.path("base-2")).unwrap();
    let cut = File::options().write(true).open(served.path("cut")).unwrap();
    cut.set_len(10).unwrap();
    cut.sync_all().unwrap();
    drop(cut);
    fs::remove_file(served.path("base-2")).unwrap();
    served.unmount();
    let served = world.mount("base", "mnt", "small/upper", &[]);
    assert_eq!(names_in(&served.mountpoint), ["cut"]);
}

/// A freeze takes what it needs before it commits: a full disk cannot leave a ref that the mount does not follow.
#[test]
fn a_freeze_without_space_for_the_next_journal_commits_nothing() {
    let world = World::with_empty_base(HELPER);
    let disk = SmallDisk::at(&world.make("small"), c"size=4m");
    let served = world.mount("base", "mnt", "small/upper", &[]);
    fs::write(served.path("kept"), "kept").unwrap();
    disk.fill();
    let before = world.store.refs().get("base").unwrap();
    let error = served.client().freeze(Some("base"), &Default::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Full, "{error}");
    assert_eq!(world.store.refs().get("base").unwrap(), before);
    fs::remove_file(world.path("small/filler")).unwrap();
    served.freeze("base");
    fs::write(served.path("more"), "more").unwrap();
    served.unmount();
    let served = world.mount("base", "mnt", "small/upper", &[]);
    assert_eq!(names_in(&served.mountpoint), ["kept", "more"]);
}
