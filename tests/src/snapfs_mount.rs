//! Mounts for tests: a store in a temporary directory, and mounts served by helper processes that a test may kill.

use snapfs::control;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use store::{BackupOptions, Kind, SnapshotId, Store, StoreConfig, Unwatched};

/// How long a mount may be in use by processes that are just being started.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// A store, and room for sources, mount points and uppers.
pub struct World {
    /// Everything is below this.
    pub directory: tempfile::TempDir,
    /// The store.
    pub store: Store,
    helper: PathBuf,
}

impl World {
    /// A new store. `helper` is the mount_helper binary.
    pub fn new(helper: &str) -> Self {
        Self::below(&std::env::temp_dir(), helper)
    }

    /// A new store in a temporary directory below `parent`.
    pub fn below(parent: &Path, helper: &str) -> Self {
        let directory = tempfile::tempdir_in(parent).expect("a temporary directory");
        let config = StoreConfig::directory(&directory.path().join("store"));
        let store = Store::init(&config).expect("a new store");
        Self { directory, store, helper: PathBuf::from(helper) }
    }

    /// A path in this world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new empty directory.
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("a directory can be made");
        path
    }

    /// Backs `source` up into the ref `name`.
    pub fn backup(&self, source: &Path, name: &str) -> SnapshotId {
        let mut writer = self.store.writer("test").expect("nobody else writes");
        let options = BackupOptions::default();
        store::backup(&mut writer, source, name, &options, &Unwatched).expect("a backup").snapshot
    }

    /// A world whose ref `base` is an empty tree.
    pub fn with_empty_base(helper: &str) -> Self {
        let world = Self::new(helper);
        let source = world.make("source");
        world.backup(&source, "base");
        world
    }

    /// Restores a snapshot into a new directory `name`.
    pub fn restore(&self, snapshot: &SnapshotId, name: &str) -> PathBuf {
        let target = self.path(name);
        assert!(
            store::restore(&self.store, snapshot, b"", &target, &Unwatched)
                .expect("a restore")
                .refused
                .is_empty()
        );
        target
    }

    /// Mounts `snapshot` at `mnt` with the upper `upper`, which are both below this world.
    pub fn mount(&self, snapshot: &str, mnt: &str, upper: &str, flags: &[&str]) -> Served {
        self.try_mount(snapshot, mnt, upper, flags).expect("the mount answers")
    }

    /// As [`Self::mount`]; the helper's output when it failed.
    pub fn try_mount(
        &self,
        snapshot: &str,
        mnt: &str,
        upper: &str,
        flags: &[&str],
    ) -> Result<Served, String> {
        self.try_mount_at(snapshot, &self.make(mnt), upper, flags)
    }

    /// As [`Self::try_mount`] at a path that is not checked first: a dead mount may be there.
    pub fn try_mount_there(&self, snapshot: &str, mountpoint: &Path, upper: &str) -> Result<Served, String> {
        self.try_mount_at(snapshot, mountpoint, upper, &[])
    }

    fn try_mount_at(
        &self,
        snapshot: &str,
        mountpoint: &Path,
        upper: &str,
        flags: &[&str],
    ) -> Result<Served, String> {
        let mountpoint = mountpoint.to_owned();
        let upper = self.path(upper);
        let mut command = Command::new(&self.helper);
        command.arg(self.path("store")).arg(snapshot).arg(&mountpoint).arg(&upper).args(flags);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the helper can be started");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("the helper speaks");
        if line.trim() == "mounted" {
            return Ok(Served { child, mountpoint, upper });
        }
        let mut said = String::new();
        child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
        child.wait().expect("it ended");
        Err(said)
    }
}

/// A mount and the process that serves it. Dropping it kills the process and takes the mount away.
pub struct Served {
    child: Child,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its upper.
    pub upper: PathBuf,
}

impl Served {
    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// The control socket's client.
    pub fn client(&self) -> control::Client {
        control::find(&self.mountpoint).expect("the mount is there")
    }

    /// Freezes into the ref `name`.
    pub fn freeze(&self, name: &str) -> snapfs::FreezeReport {
        self.client().freeze(Some(name), &Default::default()).expect("a freeze")
    }

    /// Unmounts cleanly and waits for the process.
    pub fn unmount(mut self) {
        self.client_unmount();
        assert!(self.child.wait().expect("it ends").success());
    }

    /// Unmounts. A process that another test is just starting may hold a copy of a descriptor until it runs its
    /// program, so a mount in use is asked again for a while.
    fn client_unmount(&self) {
        let started = Instant::now();
        loop {
            match self.client().unmount() {
                Ok(()) => return,
                Err(error) if error.kind() == Kind::Conflict && started.elapsed() < BUSY_MAX => {
                    std::thread::yield_now();
                }
                Err(error) => panic!("the mount cannot be taken away: {error}"),
            }
        }
    }

    /// Kills the process as a crash would, and takes the dead mount away.
    pub fn kill(mut self) {
        self.end();
    }

    /// The serving process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("it ends")
    }

    fn end(&mut self) {
        // It may have ended, and the mount may be gone, already: both are fine.
        drop(self.child.kill());
        drop(self.child.wait());
        if is_mounted(&self.mountpoint) {
            let detached = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH);
            detached.expect("a mount can be taken away");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether something is mounted at `path`, asked of the mount table alone.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
