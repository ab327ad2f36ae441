//! Rows of snapfs/SEMANTICS.md that the kernel decides for a mount: remounting it, and what it refuses.

use crate::{HELPER, run};
use rustix::fs::{self as sys, XattrFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tests::snapfs_mount::World;

/// How long a mount may be in use by processes that are just being started.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// Tries calls on `file` in a directory and prints the result of each: `ok`, or the name of the error.
const TRY_CALLS: &str = r#"
import ctypes, errno, fcntl, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
directory = sys.argv[1].encode()
path = directory + b"/file"
file, other, root = os.open(path, os.O_RDWR), os.open(path + b" too", os.O_RDWR), os.open(directory, os.O_RDONLY)
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000

def outcome(result):
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]

def ioctl(number, argument=0):
    try:
        fcntl.ioctl(file, number, argument)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]

def birth_time():
    asked, answer = 0xfff, ctypes.create_string_buffer(256)
    assert libc.statx(AT_FDCWD, path, 0, asked, answer) == 0
    given = struct.unpack_from("I", answer)[0]
    return "given" if given & 0x800 else "left out"

def file_handle():
    answer, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136), ctypes.c_int()
    return outcome(libc.name_to_handle_at(AT_FDCWD, path, answer, ctypes.byref(mount), 0))

def id_map():
    (ready, say_ready), (end, say_end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        assert libc.unshare(0x10000000) == 0
        os.write(say_ready, b"x")
        os.close(say_end)
        os.read(end, 1)
        os._exit(0)
    os.read(ready, 1)
    for name in "uid_map", "gid_map":
        with open(f"/proc/{child}/{name}", "w") as map:
            map.write("0 100000 1000")
    users = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    os.close(say_end)
    os.waitpid(child, 0)
    tree = libc.syscall(428, AT_FDCWD, directory, 1)
    assert tree >= 0
    idmap = struct.pack("QQQQ", 0x00100000, 0, 0, users)
    return outcome(libc.syscall(442, tree, b"", AT_EMPTY_PATH, idmap, len(idmap)))

def allocate(mode):
    return outcome(libc.fallocate(file, mode, ctypes.c_long(0), ctypes.c_long(4096)))

print("birth time", birth_time())
print("idmapped", id_map())
print("FIEMAP", ioctl(0xc020660b, struct.pack("QQIIII", 0, 2**64 - 1, 0, 0, 0, 0)))
print("inode flags", ioctl(0x80086601, bytes(8)))
print("reflink", ioctl(0x40049409, other))
print("file handle", file_handle())
print("quota", outcome(libc.syscall(443, root, 0x800004 << 8, 0, ctypes.create_string_buffer(256))))
print("collapse", allocate(0x08))
print("insert", allocate(0x20))
"#;

fn try_calls(directory: &Path) -> String {
    for name in ["file", "file too"] {
        fs::write(directory.join(name), [7; 16384]).unwrap();
    }
    run(Command::new("python3").args(["-c", TRY_CALLS]).arg(directory))
}

/// An ext4 of its own; unmounted when dropped.
struct Ext4(PathBuf);

impl Ext4 {
    fn new(world: &World) -> Self {
        let (image, path) = (world.path("image"), world.make("ext4"));
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &path]));
        Self(path)
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(gone.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn what_a_mount_does_not_do_is_refused_with_the_error_that_says_so() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(
        try_calls(&served.mountpoint),
        "birth time left out\nidmapped EINVAL\nFIEMAP ENOTSUP\ninode flags ENOTTY\nreflink ENOTSUP\n\
         file handle ENOTSUP\nquota ENOSYS\ncollapse ENOTSUP\ninsert ENOTSUP\n"
    );
    served.unmount();
    // The same calls are answered by a file system that has all this but reflinks and quotas.
    let expected =
        "birth time given\nidmapped ok\nFIEMAP ok\ninode flags ok\nreflink ENOTSUP\nfile handle ok\n";
    let said = try_calls(&Ext4::new(&world).0);
    assert!(said.starts_with(expected) && said.ends_with("collapse ok\ninsert ok\n"), "{said}");
}

fn remount(options: &str, mountpoint: &Path) -> std::process::Output {
    let options = format!("remount,{options}");
    Command::new("mount").args(["-o", &options]).arg(mountpoint).output().unwrap()
}

/// Remounts. A process that another test is just starting may have a file open for writing for a moment: busy is tried
/// again.
fn remounted(options: &str, mountpoint: &Path) {
    let started = Instant::now();
    loop {
        let output = remount(options, mountpoint);
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("busy") && started.elapsed() < BUSY_MAX, "{options}: {said}");
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn a_mount_can_be_made_read_only_and_writable_again() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let file = served.path("file");
    let open = File::create(&file).unwrap();
    let busy = remount("ro", &served.mountpoint);
    assert!(String::from_utf8_lossy(&busy.stderr).contains("busy"), "a file is open for writing: {busy:?}");
    drop(open);
    fs::write(&file, "before").unwrap();
    remounted("ro", &served.mountpoint);
    assert_eq!(errno(fs::write(&file, "refused")), Some(Errno::ROFS));
    assert_eq!(errno(File::create(served.path("new"))), Some(Errno::ROFS));
    assert_eq!(fs::read(&file).unwrap(), b"before");
    // Earlier changes can be made a snapshot.
    let report = served.freeze("base");
    assert_eq!(fs::read(world.restore(&report.snapshot, "restored").join("file")).unwrap(), b"before");
    remounted("rw", &served.mountpoint);
    fs::write(&file, "after").unwrap();
    served.unmount();

    let served = world.mount("base", "mnt", "upper", &["--read-only"]);
    remounted("rw", &served.mountpoint);
    assert_eq!(errno(fs::write(served.path("file"), "refused")), Some(Errno::ROFS));
    assert_eq!(errno(File::create(served.path("new"))), Some(Errno::ROFS));
    assert_eq!(fs::read(served.path("file")).unwrap(), b"after");
    served.unmount();
}

/// The user that a set-user-id program of root runs as when `nobody` starts it; `None` when it cannot be run.
fn runs_as(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("-u").uid(65_534).gid(65_534).output().ok()?;
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn the_flags_of_a_mount_point_change_with_a_remount() {
    let world = World::with_empty_base(HELPER);
    fs::set_permissions(world.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let served = world.mount("base", "mnt", "upper", &[]);
    let remounted = |options: &str| remounted(options, &served.mountpoint);
    let (program, null, link) = (served.path("id"), served.path("null"), served.path("link"));
    run(Command::new("cp").arg("/usr/bin/id").arg(&program));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    run(Command::new("mknod").arg(&null).args(["c", "1", "3"]));
    symlink("id", &link).unwrap();

    let (nobody, root) = (Some("65534".to_owned()), Some("0".to_owned()));
    assert_eq!(runs_as(&program), nobody, "as it is mounted");
    assert_eq!(errno(fs::read(&null)), Some(Errno::ACCESS), "as it is mounted");
    remounted("suid");
    assert_eq!(runs_as(&program), root);
    assert_eq!(errno(fs::read(&null)), Some(Errno::ACCESS), "other flags stay");
    remounted("dev,nosuid");
    assert_eq!(fs::read(&null).unwrap(), b"");
    assert_eq!(runs_as(&program), nobody);
    remounted("nodev,noexec");
    assert_eq!(errno(fs::read(&null)), Some(Errno::ACCESS));
    assert_eq!(runs_as(&program), None);
    remounted("exec,nosymfollow");
    assert_eq!(runs_as(&program), nobody);
    assert_eq!(errno(File::open(&link)), Some(Errno::LOOP));
    remounted("symfollow");
    File::open(&link).unwrap();
    served.unmount();
}

#[test]
fn reading_moves_no_access_time_whatever_the_flags_say() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let file = served.path("file");
    fs::write(&file, "read").unwrap();
    run(Command::new("touch").args(["-a", "-d", "@1000"]).arg(&file));
    for flag in ["strictatime", "relatime", "noatime", "nodiratime", "diratime"] {
        remounted(flag, &served.mountpoint);
        assert_eq!(fs::read(&file).unwrap(), b"read");
        assert_eq!(fs::metadata(&file).unwrap().atime(), 1000, "{flag}");
    }
    served.unmount();
}

#[test]
fn a_file_without_a_label_is_said_to_be_unable_to_have_one_and_can_have_one() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let file = served.path("file");
    fs::write(&file, "").unwrap();
    let mut label = [0; 32];
    let mut get = || sys::getxattr(&file, "security.selinux", &mut label);
    assert_eq!(get(), Err(Errno::OPNOTSUPP));
    sys::setxattr(&file, "security.selinux", b"system_u:object_r:etc_t:s0", XattrFlags::empty()).unwrap();
    assert_eq!(get(), Ok(26));
    served.unmount();
}
