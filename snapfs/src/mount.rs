//! A mount in this process: kernel connection, serving threads, control socket, and their end in the right order.
//!
//! End: the mount is removed (by any process) -> the serving threads end -> the control socket is removed -> the
//! overlay is closed (all durable, upper unlocked) -> the control thread ends -> [`Mount::wait`] returns. This process
//! never touches a file below its own mount point: the answer would have to come from itself.

use crate::attachment::{Shared, Stage, attach, check_mountpoint};
use crate::control::Control;
use crate::freeze::FreezeReport;
use crate::fuse::Server;
use crate::overlay::Overlay;
use crate::panics;
use crate::upper;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use store::{Error, Kind, Result, SnapshotId, Store};

/// How long after the last use cached memory is freed.
const IDLE_AFTER: Duration = Duration::from_secs(2);

/// The snapshot to mount, the mount point and the local state.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The base.
    pub snapshot: SnapshotId,
    /// The ref of the snapshot: the target of a freeze that names no other.
    pub ref_name: String,
    /// The mount point: a directory.
    pub mountpoint: PathBuf,
    /// The upper: directory of the local writable state; made if missing.
    pub upper: PathBuf,
    /// Refuse all changes.
    pub read_only: bool,
    /// Let other users in; the kernel checks permissions in any case.
    pub allow_other: bool,
    /// Returns memory that this process has freed to the kernel: called some seconds after the last use, and when the
    /// kernel has forgotten many files.
    pub release_memory: fn(),
}

/// A running mount. Dropping it unmounts.
#[derive(Debug)]
pub struct Mount {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Mounts a snapshot. Returns when the mount answers; takes milliseconds whatever the size of the snapshot.
///
/// # Errors
/// `Invalid` for an impossible mount point, `Unavailable` when a stale mount occupies it or the kernel refuses,
/// `Conflict` for an upper in use or over another snapshot, and those of the store.
pub fn mount(store: &Store, options: MountOptions) -> Result<Mount> {
    let mountpoint = check_mountpoint(&options.mountpoint)?;
    upper::await_release(&options.upper)?;
    let overlay = Arc::new(Overlay::open(store, &options.snapshot, &options.upper, options.read_only)?);
    let started = start(overlay.clone(), options, mountpoint);
    if started.is_err()
        && let Err(errno) = overlay.close()
    {
        tracing::warn!(%errno, "the upper of a mount that did not come about could not be closed");
    }
    started
}

fn start(overlay: Arc<Overlay>, options: MountOptions, mountpoint: PathBuf) -> Result<Mount> {
    if overlay.upper().path().starts_with(&mountpoint) {
        return Err(Error::new(Kind::Invalid, "the upper may not be below the mount point")
            .object(overlay.upper().path().display())
            .advice("choose an upper elsewhere"));
    }
    let shared = Arc::new(Shared::new(overlay, options.ref_name, mountpoint));
    let control = Control::bind(shared.clone())?;
    let connection = attach(&shared, options.allow_other)?;
    let server = Server::new(shared.overlay.clone(), connection, options.allow_other)
        .inspect_err(|_| shared.detach())?;
    panics::watch(&shared);
    let serving = shared.clone();
    let release = options.release_memory;
    let thread = std::thread::Builder::new()
        .name("snapfs".to_owned())
        .spawn(move || serve(&serving, server, control, release));
    let thread = thread.map_err(|error| {
        shared.detach();
        Error::io("cannot start a thread", "snapfs", error)
    })?;
    tracing::info!(snapshot = %options.snapshot, mountpoint = %shared.mountpoint.display(), "mounted");
    Ok(Mount { shared, thread: Some(thread) })
}

impl Mount {
    /// Waits until the mount is gone, whichever process removed it, and all changes are durable.
    ///
    /// # Errors
    /// When not all changes could be made durable, or serving failed.
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

    /// Whether any node differs from the base.
    pub fn has_changes(&self) -> bool {
        self.shared.overlay.has_changes()
    }

    /// The mount point.
    pub fn mountpoint(&self) -> &Path {
        &self.shared.mountpoint
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.shared.unmount() {
            // Files in use keep a detached mount alive until they are closed, so this does not wait for its end.
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

/// Serves until the mount is removed, then ends all parts in order.
fn serve(shared: &Shared, server: Server, mut control: Control, release_memory: fn()) {
    let served = std::thread::scope(|scope| {
        let tidy = std::thread::Builder::new().name("snapfs-tidy".to_owned());
        let tidying = tidy.spawn_scoped(scope, || {
            shared.overlay.uses().watch(IDLE_AFTER, |is_idle| {
                if shared.overlay.tidy(is_idle) {
                    release_memory();
                }
            });
        });
        if let Err(error) = tidying {
            tracing::warn!(%error, "memory that the mount no longer needs will not be given back");
        }
        // Also when serving panics: the scope waits for the thread.
        let _end = shared.overlay.uses().end_at_drop();
        server.run()
    });
    // If serving threads ended early, the mount is still there and would hang any process that touches it.
    shared.abort();
    control.remove_socket();
    let closed = shared.overlay.close();
    shared.move_on(Stage::Closed);
    control.stop();
    let failure = match (served, closed) {
        (Err(error), _) => Some(error.to_string()),
        (_, Err(errno)) => Some(format!("not everything could be made durable: {errno}")),
        (Ok(()), Ok(())) => None,
    };
    shared.move_on(Stage::Over(failure));
}
