//! The session of one mount: threads that take requests from the kernel and answer them.

use super::Adapter;
use crate::overlay::Overlay;
use fuser::{Config, Session, SessionACL};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use store::{Error, Result};

/// Threads that serve one mount. Each has a buffer of 16 MiB, of which only the length of the longest request is
/// touched.
const THREADS: usize = 4;

/// The serving end of a kernel connection.
pub(crate) struct Server(Session<Adapter>);

impl Server {
    /// Takes over a connection that was just mounted, and agrees with the kernel on the protocol.
    ///
    /// # Errors
    /// When the kernel's protocol is too old, and those of reading from the connection.
    pub(crate) fn new(overlay: Arc<Overlay>, connection: OwnedFd, allow_other: bool) -> Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        let notifier = Arc::new(OnceLock::new());
        let adapter = Adapter { overlay, notifier: notifier.clone() };
        let session = Session::from_fd(adapter, connection, config.acl, config)
            .map_err(|error| Error::io("the kernel refuses the mount", "/dev/fuse", error))?;
        notifier.get_or_init(|| session.notifier());
        Ok(Self(session))
    }

    /// Answers until the mount is gone.
    ///
    /// # Errors
    /// When a serving thread ended early.
    pub(crate) fn run(self) -> Result<()> {
        self.0.run().map_err(|error| Error::io("serving the mount failed", "/dev/fuse", error))
    }
}
