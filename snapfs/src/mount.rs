//! A mount in this process: kernel connection, serving threads, control socket, and their end in the right order.
//!
//! End: the mount goes (by whoever) -> the serving threads end -> the overlay is closed (all durable, upper unlocked) ->
//! the control socket goes -> [`Mount::wait`] returns. This process never touches a file below its own mount point: the
//! answer would have to come from itself.

use crate::control::Control;
use crate::freeze::FreezeReport;
use crate::fuse::Server;
use crate::mountinfo;
use crate::overlay::Overlay;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use store::{Error, Kind, Result, SnapshotId, Store};

const DEVICE: &str = "/dev/fuse";
const ROOT_MODE: u32 = 0o40755;

/// What to mount, where, and with which local state.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The snapshot below.
    pub snapshot: SnapshotId,
    /// The ref that was asked for: where a freeze goes that names no other.
    pub ref_name: String,
    /// Where it appears: a directory.
    pub mountpoint: PathBuf,
    /// Directory of the local writable state; made if missing.
    pub upper: PathBuf,
    /// Refuse all changes.
    pub read_only: bool,
    /// Let other users in; the kernel checks permissions in any case.
    pub allow_other: bool,
}

/// A running mount. Dropping it unmounts.
#[derive(Debug)]
pub struct Mount {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the serving thread, the control thread and the owner of the mount share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) ref_name: String,
    mountpoint: PathBuf,
    stage: Mutex<Stage>,
    moved_on: Condvar,
}

/// How far the end of a mount has come.
#[derive(Debug)]
enum Stage {
    Serving,
    /// Everything is durable and the upper is free.
    Closed,
    /// Nothing of it is left.
    Over(Option<String>),
}

/// Mounts a snapshot. Returns when the mount answers; takes milliseconds whatever the size of the snapshot.
///
/// # Errors
/// `Invalid` for an impossible mount point, `Unavailable` where a dead mount is in the way or the kernel refuses,
/// `Conflict` for an upper in use or over another snapshot, and those of the store.
pub fn mount(store: &Store, options: MountOptions) -> Result<Mount> {
    let mountpoint = check_mountpoint(&options.mountpoint)?;
    let overlay = Arc::new(Overlay::open(store, &options.snapshot, &options.upper, options.read_only)?);
    if overlay.upper().path().starts_with(&mountpoint) {
        return Err(Error::new(Kind::Invalid, "the upper may not be below the mount point")
            .object(overlay.upper().path().display())
            .advice("choose an upper elsewhere"));
    }
    let shared = Arc::new(Shared {
        overlay,
        ref_name: options.ref_name,
        mountpoint,
        stage: Mutex::new(Stage::Serving),
        moved_on: Condvar::new(),
    });
    let control = Control::bind(shared.clone())?;
    let connection = attach(&shared, options.allow_other)?;
    let server = Server::new(shared.overlay.clone(), connection, options.allow_other)
        .inspect_err(|_| shared.detach())?;
    let serving = shared.clone();
    let thread =
        std::thread::Builder::new().name("snapfs".to_owned()).spawn(move || serving.serve(server, control));
    let thread = thread.map_err(|error| {
        shared.detach();
        Error::io("cannot start a thread", "snapfs", error)
    })?;
    tracing::info!(snapshot = %options.snapshot, mountpoint = %shared.mountpoint.display(), "mounted");
    Ok(Mount { shared, thread: Some(thread) })
}

impl Mount {
    /// Waits until the mount is gone, by whoever, and everything in it is durable.
    ///
    /// # Errors
    /// When not everything could be made durable, or serving failed.
    pub fn wait(&self) -> Result<()> {
        match &*self.shared.wait_for(|stage| matches!(stage, Stage::Over(_))) {
            Stage::Over(Some(failure)) => Err(Error::new(Kind::Unavailable, failure.clone())
                .object(self.shared.mountpoint.display())
                .advice("see the log; what was synced before is safe")),
            _ => Ok(()),
        }
    }

    /// Unmounts and waits.
    ///
    /// # Errors
    /// `Conflict` when files in it are in use, and as [`Self::wait`].
    pub fn unmount(&self) -> Result<()> {
        self.shared.unmount()?;
        self.wait()
    }

    /// Freezes the mount into the ref `name`.
    ///
    /// # Errors
    /// As [`crate::overlay::Overlay::freeze`].
    pub fn freeze(&self, name: &str, labels: BTreeMap<String, String>) -> Result<FreezeReport> {
        self.shared.overlay.freeze(name, labels)
    }

    /// Whether anything differs from the snapshot below.
    pub fn has_changes(&self) -> bool {
        self.shared.overlay.has_changes()
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.shared.mountpoint
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.shared.unmount() {
            // Files in use keep a detached mount going until they are closed, so there is nothing to wait for.
            tracing::warn!(%error, "detaching a mount that is in use");
            self.shared.detach();
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the serving thread of a mount panicked");
        }
    }
}

impl Shared {
    /// Takes the mount away and waits until the upper is free.
    pub(crate) fn unmount(&self) -> Result<()> {
        if matches!(*self.stage(), Stage::Serving) && self.is_attached() {
            rustix::mount::unmount(&self.mountpoint, UnmountFlags::NOFOLLOW).map_err(
                |errno| match errno {
                    Errno::BUSY => Error::new(Kind::Conflict, "the mount is in use")
                        .object(self.mountpoint.display())
                        .advice("close what is open in it (`fuser -vm DIR` shows who), then try again"),
                    errno => Error::io("cannot unmount", self.mountpoint.display(), errno.into()),
                },
            )?;
        }
        drop(self.wait_for(|stage| !matches!(stage, Stage::Serving)));
        Ok(())
    }

    fn serve(&self, server: Server, control: Control) {
        let served = server.run();
        // Serving threads that ended early leave a mount that would hang whoever touches it.
        self.detach();
        let closed = self.overlay.close();
        self.move_on(Stage::Closed);
        control.stop();
        let failure = match (served, closed) {
            (Err(error), _) => Some(error.to_string()),
            (_, Err(errno)) => Some(format!("not everything could be made durable: {errno}")),
            (Ok(()), Ok(())) => None,
        };
        self.move_on(Stage::Over(failure));
    }

    fn is_attached(&self) -> bool {
        match mountinfo::upper_at(&self.mountpoint) {
            Ok(upper) => upper.as_deref() == Some(self.overlay.upper().path()),
            Err(error) => {
                tracing::warn!(%error, "taking the mount for gone");
                false
            }
        }
    }

    fn detach(&self) {
        if self.is_attached()
            && let Err(errno) =
                rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        {
            tracing::error!(%errno, mountpoint = %self.mountpoint.display(), "the mount could not be detached");
        }
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_on(&self, stage: Stage) {
        *self.stage() = stage;
        self.moved_on.notify_all();
    }

    fn wait_for(&self, reached: impl Fn(&Stage) -> bool) -> std::sync::MutexGuard<'_, Stage> {
        let waited = self.moved_on.wait_while(self.stage(), |stage| !reached(stage));
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_mountpoint(path: &Path) -> Result<PathBuf> {
    let found = path.canonicalize().and_then(|path| Ok((path.metadata()?.is_dir(), path)));
    match found {
        Ok((true, path)) => Ok(path),
        Ok((false, path)) => {
            Err(Error::new(Kind::Invalid, "the mount point is not a directory").object(path.display()))
        }
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => {
            Err(Error::new(Kind::Unavailable, "a mount whose process is gone is in the way")
                .object(path.display())
                .advice(
                    "take it away with `umount -l DIR`, then mount again; nothing that was synced is lost",
                ))
        }
        Err(error) => Err(Error::io("cannot use the mount point", path.display(), error)),
    }
}

/// Opens a kernel connection and mounts it.
fn attach(shared: &Shared, allow_other: bool) -> Result<OwnedFd> {
    let failed = |what: &str, errno: Errno| {
        Error::io(what, shared.mountpoint.display(), errno.into()).advice("mounting needs root and /dev/fuse")
    };
    let connection = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed("cannot open /dev/fuse", errno))?;
    let mut data = format!(
        "fd={},rootmode={ROOT_MODE:o},user_id={},group_id={},default_permissions",
        connection.as_raw_fd(),
        rustix::process::geteuid(),
        rustix::process::getegid(),
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("numbers and words have no NUL");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if shared.overlay.is_read_only() {
        flags |= MountFlags::RDONLY;
    }
    let source = mountinfo::source_of(shared.overlay.upper().path());
    rustix::mount::mount(source, &shared.mountpoint, "fuse.torpor", flags, data.as_c_str())
        .map_err(|errno| failed("cannot mount", errno))?;
    Ok(connection)
}
