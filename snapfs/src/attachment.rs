//! The state of a mount that its threads and its owner share: its kernel mount, and how far its end has come.

use crate::mountinfo;
use crate::overlay::Overlay;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use store::{Error, Kind, Result};

const DEVICE: &str = "/dev/fuse";
const ROOT_MODE: u32 = 0o40755;

/// The state that the serving thread, the control thread and the owner of the mount share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) ref_name: String,
    pub(crate) mountpoint: PathBuf,
    stage: Mutex<Stage>,
    moved_on: Condvar,
}

/// How far the end of a mount has come.
#[derive(Debug)]
pub(crate) enum Stage {
    Serving,
    /// Everything is durable and the upper is free.
    Closed,
    /// The end is complete.
    Over(Option<String>),
}

impl Shared {
    pub(crate) fn new(overlay: Arc<Overlay>, ref_name: String, mountpoint: PathBuf) -> Self {
        Self { overlay, ref_name, mountpoint, stage: Mutex::new(Stage::Serving), moved_on: Condvar::new() }
    }

    /// Unmounts and waits until the upper is free.
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

    fn is_attached(&self) -> bool {
        match mountinfo::upper_at(&self.mountpoint) {
            Ok(upper) => upper.as_deref() == Some(self.overlay.upper().path()),
            Err(error) => {
                tracing::warn!(%error, "taking the mount for gone");
                false
            }
        }
    }

    /// Detaches the mount even if it is in use; its open files are still served.
    pub(crate) fn detach(&self) {
        self.take_away(UnmountFlags::DETACH);
    }

    /// Unmounts and fails all requests that wait for an answer.
    pub(crate) fn abort(&self) {
        self.take_away(UnmountFlags::DETACH | UnmountFlags::FORCE);
    }

    fn take_away(&self, how: UnmountFlags) {
        if self.is_attached()
            && let Err(errno) = rustix::mount::unmount(&self.mountpoint, how | UnmountFlags::NOFOLLOW)
        {
            tracing::error!(%errno, mountpoint = %self.mountpoint.display(), "the mount could not be detached");
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn move_on(&self, stage: Stage) {
        *self.stage() = stage;
        self.moved_on.notify_all();
    }

    pub(crate) fn wait_for(&self, reached: impl Fn(&Stage) -> bool) -> MutexGuard<'_, Stage> {
        let waited = self.moved_on.wait_while(self.stage(), |stage| !reached(stage));
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one way to replace a mount whose process is gone.
pub(crate) const STALE_MOUNT_ADVICE: &str =
    "run `snapctl umount --force DIR`, then mount again; nothing that was synced is lost";

/// The canonical path of a directory to mount on.
///
/// # Errors
/// `Invalid` when the path is no directory, `Unavailable` below a mount whose process is gone, and those of the path.
pub fn check_mountpoint(path: &Path) -> Result<PathBuf> {
    let found = path.canonicalize().and_then(|path| Ok((path.metadata()?.is_dir(), path)));
    match found {
        Ok((true, path)) => Ok(path),
        Ok((false, path)) => {
            Err(Error::new(Kind::Invalid, "the mount point is not a directory").object(path.display()))
        }
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => {
            Err(Error::new(Kind::Unavailable, "a stale mount occupies the mount point: its process is gone")
                .object(path.display())
                .advice(STALE_MOUNT_ADVICE))
        }
        Err(error) => Err(Error::io("cannot use the mount point", path.display(), error)),
    }
}

/// Opens a kernel connection and mounts it.
pub(crate) fn attach(shared: &Shared, allow_other: bool) -> Result<OwnedFd> {
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
