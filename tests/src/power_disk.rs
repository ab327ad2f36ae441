//! A real power cut: a file system that is shut down with its journal unflushed, and can be mounted again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MADE: &str = "a file system can be made and mounted";
/// How long another process may keep the file system after it was unmounted.
const PATIENCE: Duration = Duration::from_secs(120);

/// An ext4 file system in a file, mounted while this lives.
pub struct PowerDisk {
    image: PathBuf,
    /// Where it is mounted.
    pub mounted: PathBuf,
    _directory: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output().expect(MADE);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Default for PowerDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl PowerDisk {
    /// A new one, mounted.
    pub fn new() -> Self {
        Self::of(256 << 20)
    }

    /// A new one of so many bytes, mounted.
    pub fn of(len_bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect(MADE);
        let (image, mounted) = (directory.path().join("image"), directory.path().join("mounted"));
        std::fs::File::create(&image)
            .expect(MADE)
            .set_len(len_bytes)
            .expect("a file system can be made, mounted and taken away");
        std::fs::create_dir(&mounted).expect(MADE);
        run("mkfs.ext4", &["-q", "-F"], &image);
        let disk = Self { image, mounted, _directory: directory };
        disk.mount();
        disk
    }

    /// Mounts it.
    pub fn mount(&self) {
        run("mount", &["-o", "loop", &self.image.display().to_string()], &self.mounted);
    }

    /// Unmounts it, and waits until the kernel has released it. A process with a mount namespace of its own may keep it
    /// for a moment, and a new mount meanwhile would be of the same file system, which is shut down.
    pub fn unmount(&self) {
        run("umount", &[], &self.mounted);
        let deadline = Instant::now() + PATIENCE;
        while self.has_loop_device() {
            assert!(Instant::now() < deadline, "{} is still mounted elsewhere", self.image.display());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn has_loop_device(&self) -> bool {
        let output = Command::new("losetup").arg("--associated").arg(&self.image).output().expect(MADE);
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        !output.stdout.is_empty()
    }

    /// EXT4_IOC_SHUTDOWN without flushing the journal: from here on every operation fails and nothing more is written.
    pub fn cut_power(&self) {
        let script =
            "open(my $d, '<', $ARGV[0]) or die $!; my $f = pack('L', 2); ioctl($d, 0x8004587d, $f) or die $!";
        run("perl", &["-e", script], &self.mounted);
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        // A failed test may leave it busy: detached, it goes when its last user does.
        let detached = Command::new("umount").arg("-l").arg(&self.mounted).status();
        assert!(detached.is_ok());
    }
}
