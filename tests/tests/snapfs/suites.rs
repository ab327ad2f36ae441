//! Suites of others, run on a mount: pjdfstest, fsx, fio, stress-ng. A slice of each here, more of them with time.

use crate::{HELPER, run};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tests::is_long;
use tests::snapfs_mount::World;

/// Cases of pjdfstest that fail on a mount, and why. The suite takes one that passes for a failure, too.
const PJDFSTEST_FAILS: &[(&str, &str)] =
    &[("rename::updates_link_parent", "directories have one link, whatever is in them")];

const PJDFSTEST_CONFIG: &str = "
[dummy_auth]
entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.02
";

#[test]
fn pjdfstest_fails_where_it_is_known_to() {
    let world = World::with_empty_base(HELPER);
    fs::set_permissions(world.directory.path(), Permissions::from_mode(0o755)).unwrap();
    let config = world.path("pjdfstest.toml");
    let expected: Vec<&str> = PJDFSTEST_FAILS.iter().map(|(case, _)| *case).collect();
    fs::write(&config, format!("{PJDFSTEST_CONFIG}expected_failures = {expected:?}\n")).unwrap();
    let served = world.mount("base", "mnt", "upper", &[]);
    let mut command = Command::new("pjdfstest");
    let said = run(command.arg("-c").arg(&config).arg("-p").arg(&served.mountpoint));
    assert!(said.contains("Summary: 0 failed"), "{said}");
    served.unmount();
}

/// Each of these operations for ten reads, writes and truncations, through the file and through mappings of it.
const FSX_CONFIG: &str = "
[weights]
close_open = 1.0
fsync = 1.0
fdatasync = 1.0
invalidate = 1.0
posix_fallocate = 1.0
";

/// Runs fsx on a file of the base for each seed, and freezes the mount as often as it can meanwhile.
#[test]
fn fsx_finds_every_byte_through_freezes() {
    let (seeds, operations) = if is_long() { (6, "20000") } else { (2, "1500") };
    for seed in 1..=seeds {
        let world = World::new(HELPER);
        let source = world.make("source");
        fs::write(source.join("file"), vec![7; 200_000]).unwrap();
        world.backup(&source, "base");
        let served = world.mount("base", "mnt", "upper", &[]);
        let config = world.path("fsx.toml");
        fs::write(&config, FSX_CONFIG).unwrap();
        let mut command = Command::new("fsx");
        command.args(["-N", operations, "-S", &seed.to_string(), "-P"]).arg(world.directory.path());
        command.arg("-f").arg(config).arg(served.path("file"));
        let output = fs::File::create(world.path("fsx.log")).unwrap();
        let mut fsx =
            command.stdout(output.try_clone().unwrap()).stderr(output).spawn().expect("fsx is installed");
        let mut freezes = 0;
        let status = loop {
            if let Some(status) = fsx.try_wait().unwrap() {
                break status;
            }
            served.freeze("base");
            freezes += 1;
        };
        let said = fs::read_to_string(world.path("fsx.log")).unwrap();
        assert!(status.success(), "seed {seed}: {status}\n{said}");
        assert!(freezes > 2, "seed {seed}: it was frozen meanwhile");
        served.unmount();
    }
}

/// Random reads and writes of two processes whose every block says where it belongs.
fn fio(directory: &Path, engine: &str, direct: &str, size: &str) {
    let mut command = Command::new("fio");
    command.args(["--name=verify", "--rw=randrw", "--bsrange=4k-64k", "--numjobs=2", "--iodepth=8"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--group_reporting"]);
    // It leaves its state where it runs.
    command.arg(format!("--directory={}", directory.display())).current_dir(directory);
    command.args([format!("--ioengine={engine}"), format!("--direct={direct}"), format!("--size={size}")]);
    run(&mut command);
}

#[test]
fn fio_reads_what_it_wrote_by_every_way_of_writing() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let size = if is_long() { "512M" } else { "16M" };
    for (engine, direct) in
        [("psync", "0"), ("mmap", "0"), ("libaio", "1"), ("io_uring", "1"), ("io_uring", "0")]
    {
        fio(&served.mountpoint, engine, direct, size);
        served.freeze("base");
    }
    served.unmount();
}

/// A few stressors of stress-ng's class of file systems, or all of them.
#[test]
fn stress_ng_finds_nothing_wrong() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let mut command = Command::new("stress-ng");
    match is_long() {
        // All but the one of binderfs, which mounts a file system of its own.
        true => {
            command.args(["--class", "filesystem", "--exclude", "binderfs", "--seq", "2", "--timeout", "5s"])
        }
        false => command.args([
            "--timeout",
            "2s",
            "--dentry",
            "1",
            "--rename",
            "1",
            "--link",
            "1",
            "--fallocate",
            "1",
            "--hdd",
            "1",
            "--xattr",
            "1",
            "--copy-file",
            "1",
            "--getdent",
            "1",
        ]),
    };
    let output =
        command.arg("--verify").arg("--temp-path").arg(&served.mountpoint).stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = output.expect("stress-ng is installed");
    let said = [stdout, stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(status.success() && !said.contains("stress-ng: fail"), "{status}\n{said}");
    served.unmount();
}
