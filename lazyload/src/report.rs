//! What a serve did, and how it is asked to do it.

use std::time::Duration;

use store::{ImageId, ImageStats};

use crate::supervisor::Custody;

/// What a capture stored.
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// The image, to be named in a snapshot.
    pub image: ImageId,
    /// Its pages.
    pub stats: ImageStats,
    /// Bytes of memory that were looked at.
    pub bytes: u64,
    /// Pages of the parent that a lazily woken process had not been given yet, and still has for its next wake.
    pub not_brought: u64,
}

/// Owner and permissions of a socket's path. To connect takes the permission to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// User and group; by default those of this process.
    pub owner: Option<(u32, u32)>,
    /// Permission bits, up to 0o777.
    pub mode: u32,
}

impl Default for SocketAccess {
    /// For the owner alone.
    fn default() -> Self {
        Self { owner: None, mode: 0o600 }
    }
}

/// How to serve.
pub struct ServeOptions {
    /// Load the rest in image order while no fault waits.
    pub prefetch: bool,
    /// How long to wait for a connection that is to be served.
    pub accept_timeout: Duration,
    /// How long CRIU may take from connecting until every task is in place.
    pub restore_timeout: Duration,
    /// Who may connect to the socket of a virtual machine monitor.
    pub access: SocketAccess,
    /// The number of a process without which nobody will connect: its end ends the waiting.
    pub monitor: Option<i32>,
    /// Called once the socket listens.
    pub ready: Option<Box<dyn Fn() + Send + Sync>>,
    /// The supervisor that keeps a copy of every descriptor; without one, this process must not be killed while it serves.
    pub custody: Option<Custody>,
}

impl Default for ServeOptions {
    /// Prefetch, ten seconds to connect and ten minutes to restore, nobody told, no supervisor.
    fn default() -> Self {
        Self {
            prefetch: true,
            accept_timeout: Duration::from_secs(10),
            restore_timeout: Duration::from_secs(600),
            access: SocketAccess::default(),
            monitor: None,
            ready: None,
            custody: None,
        }
    }
}

impl ServeOptions {
    pub(crate) fn call_ready(&self) {
        if let Some(ready) = &self.ready {
            ready();
        }
    }
}

/// What was done by the time a serve ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeReport {
    /// Address spaces served: one for a virtual machine, one for each process and forked child.
    pub spaces: u64,
    /// Faults that waited for an answer.
    pub faults: u64,
    /// Pages filled from the image because of faults, neighbours included.
    pub pages: u64,
    /// Pages filled with zeroes because of faults.
    pub zero_pages: u64,
    /// Pages that the owner gave back while being served.
    pub removed_pages: u64,
    /// Pages filled from the image before anybody asked.
    pub prefetched: u64,
    /// Pages that were waited for, could not be read, and were marked lost.
    pub poisoned: u64,
    /// Pages that were still missing when their owners ended, forked children aside.
    pub never_brought: u64,
    /// The process that was killed because it waited for such a page, where marking does not do.
    pub killed: Option<i32>,
}
