//! The operations matrix: each call does on a mount what it does on a local file system.

use crate::{HELPER, as_nobody, run};
use rustix::fs::{
    self as sys, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags,
};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use tests::snapfs_mount::{Served, World};

fn empty() -> (World, Served) {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    (world, served)
}

/// A base with a file of 300,000 sevens, `a/b/c`, two names of one file, and a symbolic link.
fn planted() -> (World, Served) {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/c"), "below").unwrap();
    fs::write(source.join("top"), vec![7; 300_000]).unwrap();
    fs::write(source.join("first"), "one file").unwrap();
    fs::hard_link(source.join("first"), source.join("a/second")).unwrap();
    symlink("a/b/c", source.join("link")).unwrap();
    world.backup(&source, "base");
    let served = world.mount("base", "mnt", "upper", &[]);
    (world, served)
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn files_of_the_base_can_be_read_changed_and_removed() {
    let (world, served) = planted();
    assert_eq!(fs::read(served.path("link")).unwrap(), b"below");
    assert_eq!(fs::read(served.path("top")).unwrap(), vec![7; 300_000]);
    fs::write(served.path("a/b/c"), "changed").unwrap();
    fs::write(served.path("a/new"), "new").unwrap();
    fs::remove_file(served.path("top")).unwrap();
    assert_eq!(names(&served.mountpoint), ["a", "first", "link"]);
    let report = served.freeze("base");
    let restored = world.restore(&report.snapshot, "restored");
    assert_eq!(fs::read(restored.join("a/b/c")).unwrap(), b"changed");
    assert_eq!(fs::read(restored.join("a/new")).unwrap(), b"new");
    assert!(!restored.join("top").exists());
    fs::write(served.path("a/after"), "after").unwrap();
    served.unmount();
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(fs::read(served.path("a/after")).unwrap(), b"after");
    served.unmount();
}

#[test]
fn impossible_operations_are_refused_with_the_right_error() {
    let (world, served) = planted();
    let long = "n".repeat(256);
    assert_eq!(errno(fs::create_dir(served.path("a"))), Some(Errno::EXIST));
    assert_eq!(errno(fs::remove_dir(served.path("a"))), Some(Errno::NOTEMPTY));
    assert_eq!(errno(fs::remove_dir(served.path("top"))), Some(Errno::NOTDIR));
    assert_eq!(sys::unlink(served.path("a")), Err(Errno::ISDIR));
    assert_eq!(errno(File::open(served.path("nothing"))), Some(Errno::NOENT));
    assert_eq!(errno(File::open(served.path("top/below"))), Some(Errno::NOTDIR));
    assert_eq!(errno(File::create(served.path(&long))), Some(Errno::NAMETOOLONG));
    assert!(File::create(served.path(&long[..255])).is_ok());
    assert_eq!(errno(fs::hard_link(served.path("top"), world.path("outside"))), Some(Errno::XDEV));
    assert_eq!(errno(fs::hard_link(served.path("a"), served.path("second"))), Some(Errno::PERM));
    assert_eq!(errno(fs::rename(served.path("a"), served.path("a/b/d"))), Some(Errno::INVAL));
    assert_eq!(errno(fs::rename(served.path("a"), served.path("top"))), Some(Errno::NOTDIR));
    assert_eq!(errno(fs::rename(served.path("top"), served.path("a"))), Some(Errno::ISDIR));
    assert_eq!(errno(fs::read_link(served.path("top"))), Some(Errno::INVAL));
    let unnamed = sys::open(&served.mountpoint, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR);
    assert_eq!(unnamed.err(), Some(Errno::OPNOTSUPP), "as SEMANTICS.md says");
    served.unmount();
}

#[test]
fn renames_replace_exchange_and_refuse() {
    let (_world, served) = planted();
    let rename =
        |from: &str, to: &str, flags| sys::renameat_with(CWD, served.path(from), CWD, served.path(to), flags);
    fs::write(served.path("new"), "new").unwrap();
    assert_eq!(rename("new", "top", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename("new", "nothing", RenameFlags::EXCHANGE), Err(Errno::NOENT));
    rename("new", "a", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(served.path("a")).unwrap(), b"new");
    assert_eq!(fs::read(served.path("new/b/c")).unwrap(), b"below");
    rename("a", "new/b/c", RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(served.path("new/b/c")).unwrap(), b"new");
    fs::create_dir(served.path("empty")).unwrap();
    assert_eq!(rename("empty", "new", RenameFlags::empty()), Err(Errno::NOTEMPTY));
    fs::remove_file(served.path("new/b/c")).unwrap();
    rename("empty", "new/b", RenameFlags::empty()).unwrap();
    assert_eq!(names(&served.path("new/b")), [""; 0]);
    served.unmount();
}

/// An overlayfs on top of a mount marks removed names by this.
#[test]
fn a_rename_can_leave_a_whiteout() {
    let (world, served) = planted();
    let rename = |from: &str, to: &str, flags| {
        sys::renameat_with(CWD, served.path(from), CWD, served.path(to), RenameFlags::WHITEOUT | flags)
    };
    let is_whiteout = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        (stat.mode(), stat.rdev(), stat.nlink()) == (0o20000, 0, 1)
    };
    rename("top", "a/b/c", RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(served.path("a/b/c")).unwrap(), vec![7; 300_000]);
    assert_eq!(rename("first", "link", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("first", "moved", RenameFlags::NOREPLACE).unwrap();
    assert!(is_whiteout(&served.path("top")) && is_whiteout(&served.path("first")));
    let report = served.freeze("base");
    assert!(is_whiteout(&served.path("top")));
    let restored = world.restore(&report.snapshot, "restored");
    assert!(is_whiteout(&restored.join("top")) && restored.join("moved").exists());
    served.unmount();
}

/// Changes a tree through an overlayfs whose upper directory is on the mount, and shows it.
const OVERLAY: &str = r#"
set -e
cd "$0"; mkdir -p lower/a merged mnt/up mnt/work
echo low > lower/a/file; echo low > lower/gone; echo low > lower/moved
mount -t overlay overlay -o lowerdir=lower,upperdir=mnt/up,workdir=mnt/work merged
echo high >> merged/a/file; rm merged/gone; mv merged/moved merged/there; mkdir merged/new; rm -r merged/a; mkdir merged/a
echo again > merged/a/other
umount merged
mount -t overlay overlay -o lowerdir=lower,upperdir=mnt/up,workdir=mnt/work merged
(cd merged; find . | sort; cat a/other there)
umount merged
"#;

/// Mounts an overlayfs over the same upper directory once more, and shows it.
const OVERLAY_AGAIN: &str = r#"
set -e
cd "$0"
mount -t overlay overlay -o lowerdir=lower,upperdir=mnt/up,workdir=mnt/work merged
(cd merged; find . | sort; cat a/other there; echo more >> a/other; rm there)
umount merged
"#;

#[test]
fn a_mount_can_be_the_upper_directory_of_an_overlayfs() {
    let (world, served) = empty();
    let sh = |script: &str| run(Command::new("sh").arg("-c").arg(script).arg(world.directory.path()));
    let expected = ".\n./a\n./a/other\n./new\n./there\nagain\nlow\n";
    assert_eq!(sh(OVERLAY), expected);
    let mut opaque = [0; 8];
    let found = sys::getxattr(served.path("up/a"), "trusted.overlay.opaque", &mut opaque);
    assert_eq!(found.map(|len| &opaque[..len]), Ok(&b"y"[..]));
    // A snapshot keeps all that makes it one.
    served.freeze("base");
    served.unmount();
    let served = world.mount("base", "mnt", "another", &[]);
    assert_eq!(sh(OVERLAY_AGAIN), expected);
    served.unmount();
}

#[test]
fn a_file_without_a_name_goes_on_as_long_as_it_is_open() {
    let (_world, served) = planted();
    for name in ["top", "made"] {
        let path = served.path(name);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all_at(b"goes on", 100_000).unwrap();
        served.freeze("base");
        file.write_all_at(b"after a freeze", 200_000).unwrap();
        let mut bytes = vec![0; 14];
        file.read_exact_at(&mut bytes, 200_000).unwrap();
        assert_eq!(bytes, b"after a freeze");
        file.read_exact_at(&mut bytes[..7], 100_000).unwrap();
        assert_eq!(&bytes[..7], b"goes on");
        if name == "top" {
            file.read_exact_at(&mut bytes, 50_000).unwrap();
            assert_eq!(bytes, [7; 14], "what the base had");
        }
        assert!(!path.exists());
    }
    served.unmount();
}

#[test]
fn all_names_of_a_hard_linked_file_show_what_is_written_through_one() {
    let (world, served) = planted();
    let stat = |name: &str| fs::metadata(served.path(name)).unwrap();
    assert_eq!((stat("first").ino(), stat("first").nlink()), (stat("a/second").ino(), 2));
    fs::write(served.path("a/second"), "through the second").unwrap();
    assert_eq!(fs::read(served.path("first")).unwrap(), b"through the second");
    fs::hard_link(served.path("first"), served.path("a/b/third")).unwrap();
    fs::hard_link(served.path("top"), served.path("a/top too")).unwrap();
    let report = served.freeze("base");
    let restored = world.restore(&report.snapshot, "restored");
    let restored = |name: &str| fs::metadata(restored.join(name)).unwrap();
    assert_eq!((restored("first").ino(), restored("first").nlink()), (restored("a/b/third").ino(), 3));
    assert_eq!(restored("top").ino(), restored("a/top too").ino());
    fs::remove_file(served.path("first")).unwrap();
    fs::write(served.path("a/b/third"), "after").unwrap();
    assert_eq!(
        (stat("a/second").nlink(), fs::read(served.path("a/second")).unwrap()),
        (2, b"after".to_vec())
    );
    served.unmount();
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(fs::read(served.path("a/second")).unwrap(), b"after");
    served.unmount();
}

#[test]
fn sparse_files_keep_their_holes_and_fallocate_does_what_it_says() {
    let (world, served) = empty();
    let file = File::options().read(true).write(true).create_new(true).open(served.path("sparse")).unwrap();
    file.write_all_at(&[1; 8192], 1 << 20).unwrap();
    assert_eq!(sys::seek(&file, SeekFrom::Data(0)), Ok(1 << 20));
    assert_eq!(sys::seek(&file, SeekFrom::Hole(1 << 20)), Ok((1 << 20) + 8192));
    assert_eq!(sys::seek(&file, SeekFrom::Data((1 << 20) + 8192)), Err(Errno::NXIO));
    assert_eq!(file.metadata().unwrap().blocks(), 16);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    sys::fallocate(&file, punch, (1 << 20) + 100, 4096).unwrap();
    let mut bytes = vec![0; 8192];
    file.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert!(
        bytes[100..4196].iter().all(|byte| *byte == 0)
            && bytes[..100] == [1; 100]
            && bytes[4196..] == [1; 3996]
    );
    sys::fallocate(&file, FallocateFlags::empty(), 0, 3 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3 << 20);
    sys::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3 << 20);
    sys::fallocate(&file, FallocateFlags::ZERO_RANGE, 1 << 20, 8192).unwrap();
    file.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert_eq!(sys::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
    file.write_all_at(b"end", (3 << 20) - 3).unwrap();
    drop(file);
    let report = served.freeze("base");
    let restored = fs::metadata(world.restore(&report.snapshot, "restored").join("sparse")).unwrap();
    assert!(
        restored.len() == 3 << 20 && restored.blocks() < 512,
        "holes are still holes: {}",
        restored.blocks()
    );
    let frozen = File::open(served.path("sparse")).unwrap();
    let data = sys::seek(&frozen, SeekFrom::Data(0)).unwrap();
    assert!(data > 2 << 20, "a hole of the base is one of the mount: {data}");
    drop(frozen);
    served.unmount();
}

#[test]
fn appending_truncating_and_copying() {
    let (_world, served) = planted();
    let mut file = File::options().append(true).open(served.path("a/b/c")).unwrap();
    let mut other = File::options().append(true).open(served.path("a/b/c")).unwrap();
    file.write_all(b" one").unwrap();
    other.write_all(b" two").unwrap();
    file.write_all(b" three").unwrap();
    assert_eq!(fs::read(served.path("a/b/c")).unwrap(), b"below one two three");
    File::options().write(true).truncate(true).open(served.path("a/b/c")).unwrap();
    assert_eq!(fs::metadata(served.path("a/b/c")).unwrap().len(), 0);
    let top = File::options().read(true).write(true).open(served.path("top")).unwrap();
    top.set_len(5000).unwrap();
    top.set_len(9000).unwrap();
    assert_eq!(fs::read(served.path("top")).unwrap(), [vec![7; 5000], vec![0; 4000]].concat());
    let copy = File::create(served.path("copy")).unwrap();
    let (mut from, mut to) = (1000, 10);
    assert_eq!(sys::copy_file_range(&top, Some(&mut from), &copy, Some(&mut to), 6000), Ok(6000));
    assert_eq!(fs::read(served.path("copy")).unwrap(), [vec![0; 10], vec![7; 4000], vec![0; 2000]].concat());
    drop((file, other, top, copy));
    served.unmount();
}

#[test]
fn extended_attributes() {
    let (world, served) = planted();
    let path = served.path("top");
    let get = |size: usize| {
        let mut value = vec![0; size];
        sys::getxattr(&path, "user.one", &mut value).map(|len| value[..len].to_vec())
    };
    assert_eq!(get(10), Err(Errno::NODATA));
    assert_eq!(sys::setxattr(&path, "user.one", b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
    sys::setxattr(&path, "user.one", b"value", XattrFlags::CREATE).unwrap();
    assert_eq!(sys::setxattr(&path, "user.one", b"1", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!((get(10), get(3)), (Ok(b"value".to_vec()), Err(Errno::RANGE)));
    sys::setxattr(&path, "user.two", &[9; 3000], XattrFlags::empty()).unwrap();
    let report = served.freeze("base");
    let restored = world.restore(&report.snapshot, "restored").join("top");
    let mut value = vec![0; 65_536];
    assert_eq!(sys::getxattr(&restored, "user.two", &mut value), Ok(3000));
    sys::removexattr(&path, "user.one").unwrap();
    assert_eq!(sys::removexattr(&path, "user.one"), Err(Errno::NODATA));
    let mut list = vec![0; 100];
    let len = sys::listxattr(&path, &mut list).unwrap();
    assert_eq!(&list[..len], b"user.two\0");
    served.unmount();
}

#[test]
fn special_files_and_links_keep_what_they_are() {
    let (world, served) = empty();
    let make = |name: &str, kind, device| {
        sys::mknodat(CWD, served.path(name), kind, Mode::from_raw_mode(0o640), device)
    };
    make("pipe", FileType::Fifo, 0).unwrap();
    make("socket", FileType::Socket, 0).unwrap();
    make("null", FileType::CharacterDevice, sys::makedev(1, 3)).unwrap();
    make("disk", FileType::BlockDevice, sys::makedev(259, 70_000)).unwrap();
    let target = "x".repeat(4095);
    symlink(&target, served.path("long")).unwrap();
    let report = served.freeze("base");
    let restored = world.restore(&report.snapshot, "restored");
    for root in [&served.mountpoint, &restored] {
        let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((stat("pipe").mode(), stat("socket").mode()), (0o10640, 0o140640));
        assert_eq!((stat("null").mode(), stat("null").rdev()), (0o20640, sys::makedev(1, 3)));
        assert_eq!((stat("disk").mode(), stat("disk").rdev()), (0o60640, sys::makedev(259, 70_000)));
        assert_eq!(fs::read_link(root.join("long")).unwrap().to_str(), Some(target.as_str()));
    }
    assert_eq!(
        errno(File::open(served.path("null"))),
        Some(Errno::ACCESS),
        "devices are data here, mounts are nodev"
    );
    served.unmount();
}

#[test]
fn the_kernel_checks_permissions_and_set_id_bits_go_when_others_write() {
    let (_world, served) = empty();
    let path = served.path("file");
    fs::write(&path, "x").unwrap();
    let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    set_mode(0o600);
    assert!(!as_nobody("cat \"$0\"", &path));
    set_mode(0o6777);
    assert!(as_nobody("echo more >> \"$0\"", &path));
    assert_eq!(mode(), 0o777, "a write by another user takes set-user-id away");
    set_mode(0o6777);
    sys::chownat(CWD, &path, Some(sys::Uid::from_raw(1)), None, AtFlags::empty()).unwrap();
    assert_eq!(mode(), 0o777, "so does a change of owner");
    let shared = served.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(shared.join("mine"), "x").unwrap();
    assert!(!as_nobody("rm -f \"$0/mine\"", &shared), "the sticky bit keeps others' files");
    assert!(as_nobody("echo x > \"$0/own\" && rm \"$0/own\"", &shared));
    let inherit = served.path("inherit");
    fs::create_dir(&inherit).unwrap();
    sys::chownat(CWD, &inherit, None, Some(sys::Gid::from_raw(1234)), AtFlags::empty()).unwrap();
    fs::set_permissions(&inherit, fs::Permissions::from_mode(0o2775)).unwrap();
    fs::create_dir(inherit.join("below")).unwrap();
    let below = fs::metadata(inherit.join("below")).unwrap();
    assert_eq!((below.gid(), below.mode() & 0o2000), (1234, 0o2000), "set-group-id goes down");
    served.unmount();
}

#[test]
fn times_follow_changes_of_content_names_and_attributes() {
    let (_world, served) = planted();
    let stat = |name: &str| {
        let stat = fs::metadata(served.path(name)).unwrap();
        ((stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec()))
    };
    let before = stat("top");
    File::options().append(true).open(served.path("top")).unwrap().write_all(b"x").unwrap();
    let written = stat("top");
    assert!(written.0 > before.0 && written.1 > before.1);
    fs::set_permissions(served.path("top"), fs::Permissions::from_mode(0o600)).unwrap();
    let changed = stat("top");
    assert!(changed.0 == written.0 && changed.1 > written.1);
    let directory = stat("a");
    fs::write(served.path("a/new"), "x").unwrap();
    let added = stat("a");
    assert!(added.0 > directory.0 && added.1 > directory.1);
    fs::remove_file(served.path("a/new")).unwrap();
    assert!(stat("a").0 > added.0);
    let link = served.path("link to top");
    fs::hard_link(served.path("top"), &link).unwrap();
    assert!(stat("top").1 > changed.1, "a new name is a change of the file");
    served.unmount();
}

#[test]
fn times_far_from_now_are_kept() {
    let (world, served) = planted();
    let path = served.path("top");
    for seconds in [i64::MIN + 1, -9_000_000_000_000, -1, 0, 253_402_300_800, i64::MAX - 1, i64::MAX] {
        let time = sys::Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = sys::Timestamps { last_access: time, last_modification: time };
        sys::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.mtime(), stat.atime()), (seconds, seconds));
    }
    served.unmount();
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(fs::metadata(served.path("top")).unwrap().mtime(), i64::MAX);
    served.unmount();
}

#[test]
fn a_long_listing_shows_every_name_once_while_files_go() {
    let (_world, served) = empty();
    let directory = served.path("many");
    fs::create_dir(&directory).unwrap();
    let name = |number: usize| format!("a rather long name to fill the buffer {number:05}");
    (0..3000).for_each(|number| drop(File::create(directory.join(name(number))).unwrap()));
    served.freeze("base");
    (3000..6000).for_each(|number| drop(File::create(directory.join(name(number))).unwrap()));
    let mut seen = Vec::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        fs::remove_file(entry.path()).unwrap();
        seen.push(entry.file_name().into_string().unwrap());
    }
    seen.sort();
    assert_eq!(seen, (0..6000).map(name).collect::<Vec<_>>());
    fs::remove_dir(&directory).unwrap();
    served.unmount();
}

#[test]
fn locks_are_seen_by_other_processes_on_the_mount() {
    let (_world, served) = planted();
    let file = File::open(served.path("top")).unwrap();
    rustix::fs::flock(&file, sys::FlockOperation::LockExclusive).unwrap();
    let second = File::open(served.path("top")).unwrap();
    let refused = rustix::fs::flock(&second, sys::FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(Errno::WOULDBLOCK));
    drop(file);
    rustix::fs::flock(&second, sys::FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(second);
    served.unmount();
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let (world, served) = planted();
    fs::write(served.path("written"), "before").unwrap();
    served.unmount();
    let served = world.mount("base", "mnt", "upper", &["--read-only"]);
    assert_eq!(fs::read(served.path("written")).unwrap(), b"before", "changes of the upper are shown");
    let top = served.path("top");
    let mut content = Vec::new();
    File::open(&top).unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 300_000);
    assert_eq!(errno(File::create(served.path("new"))), Some(Errno::ROFS));
    assert_eq!(errno(File::options().write(true).open(&top)), Some(Errno::ROFS));
    assert_eq!(errno(fs::remove_file(&top)), Some(Errno::ROFS));
    assert_eq!(errno(fs::rename(&top, served.path("other"))), Some(Errno::ROFS));
    assert_eq!(errno(fs::set_permissions(&top, fs::Permissions::from_mode(0o600))), Some(Errno::ROFS));
    assert_eq!(sys::setxattr(&top, "user.x", b"x", XattrFlags::empty()), Err(Errno::ROFS));
    let frozen = served.client().freeze(Some("base"), &Default::default());
    assert_eq!(frozen.unwrap_err().kind(), store::Kind::Invalid);
    assert!(served.client().status().unwrap().read_only);
    served.unmount();
}

#[test]
fn space_is_that_of_the_disk_below_the_upper() {
    let (world, served) = empty();
    let (mount, disk) =
        (sys::statvfs(&served.mountpoint).unwrap(), sys::statvfs(world.directory.path()).unwrap());
    assert_eq!((mount.f_blocks, mount.f_frsize, mount.f_namemax), (disk.f_blocks, disk.f_frsize, 255));
    served.unmount();
}
