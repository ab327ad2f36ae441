//! The options of a serve.

use std::time::Duration;

use crate::socket::SocketAccess;
use crate::supervisor::Escrow;

/// How to serve.
pub struct ServeOptions {
    /// Load the remaining pages in image order while no fault waits.
    pub prefetch: bool,
    /// How long to wait for a connection that is to be served.
    pub accept_timeout: Duration,
    /// How long CRIU may take from connecting until every task is in place.
    pub restore_timeout: Duration,
    /// Who may connect to the socket of a virtual machine monitor.
    pub access: SocketAccess,
    /// The number of the monitor's process: when it ends before it has connected, the serve ends too.
    pub monitor: Option<i32>,
    /// Called once the socket listens.
    pub ready: Option<Box<dyn Fn() + Send + Sync>>,
    /// The supervisor that holds a copy of every descriptor; without one, this process must not be killed while it
    /// serves.
    pub escrow: Option<Escrow>,
}

impl Default for ServeOptions {
    /// Prefetch, ten seconds to connect and ten minutes to restore, no callback, no supervisor.
    fn default() -> Self {
        Self {
            prefetch: true,
            accept_timeout: Duration::from_secs(10),
            restore_timeout: Duration::from_secs(600),
            access: SocketAccess::default(),
            monitor: None,
            ready: None,
            escrow: None,
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
