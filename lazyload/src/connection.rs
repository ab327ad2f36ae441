//! A connection: the stream, the process on its other end, and the receipt for its copy in escrow.
//!
//! A supervisor, if there is one, accepts the connection, so that no userfaultfd sent on it is lost should this process
//! die. A claimed connection is the one that is served: when it is dropped before its end, the process on the other end
//! is killed with its descendants, because it would run on incomplete memory, or wait forever.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::Result;

use crate::socket::take_memory;
use crate::supervisor::{Escrow, Receipt};
use crate::target::{Target, peer_of};

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Connection<'a> {
    stream: UnixStream,
    peer: Arc<Target>,
    deposit: Option<(&'a Escrow, Receipt)>,
    since: Instant,
    is_claimed: bool,
}

impl AsFd for Connection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<'a> Connection<'a> {
    /// A connection that was accepted just now, with its escrow and receipt.
    ///
    /// # Errors
    /// `Unavailable` when the process on its other end is gone or out of sight; the connection is closed then.
    pub(crate) fn new(stream: UnixStream, deposit: Option<(&'a Escrow, Receipt)>) -> Result<Self> {
        match peer_of(&stream) {
            Ok(peer) => {
                Ok(Self { stream, peer: Arc::new(peer), deposit, since: Instant::now(), is_claimed: false })
            }
            Err(error) => {
                release(deposit);
                Err(error)
            }
        }
    }

    /// From now on the process on the other end runs on the memory that comes here.
    ///
    /// # Errors
    /// `Unavailable` when the supervisor is gone.
    pub(crate) fn claim(&mut self) -> Result<()> {
        self.is_claimed = true;
        self.deposit.as_ref().map_or(Ok(()), |(escrow, receipt)| escrow.claim(receipt))
    }

    /// Closes a connection that is not served. If a userfaultfd came on it, now or earlier (`has_memory`), its process
    /// is killed with its descendants; returns whether one came.
    ///
    /// # Errors
    /// When such a process may live on.
    pub(crate) fn turn_away(self, has_memory: bool) -> Result<bool> {
        // Open until the process has ended: it sees no zero page meanwhile.
        let memory = take_memory(&self.stream);
        let has_memory = has_memory || !memory.is_empty();
        if has_memory {
            self.peer.kill_tree()?;
        }
        Ok(has_memory)
    }

    /// When it was accepted.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// The rest of a time limit that began when the connection was accepted.
    pub(crate) fn left_of(&self, time: Duration) -> Duration {
        time.saturating_sub(self.since.elapsed())
    }

    /// The stream.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The process on the other end.
    pub(crate) fn peer(&self) -> &Arc<Target> {
        &self.peer
    }

    /// The escrow that has a copy of the connection.
    pub(crate) fn escrow(&self) -> Option<&'a Escrow> {
        self.deposit.as_ref().map(|(escrow, _)| *escrow)
    }

    /// Closes a connection that no process depends on any more.
    pub(crate) fn finish(mut self) {
        self.is_claimed = false;
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        if !self.is_claimed {
            return release(self.deposit.take());
        }
        // The copy stays in escrow: the supervisor kills what remains.
        if let Err(error) = self.peer.kill_tree() {
            tracing::error!(%error, "the other side could not be stopped");
        }
    }
}

fn release(deposit: Option<(&Escrow, Receipt)>) {
    if let Some((escrow, receipt)) = deposit {
        escrow.release(receipt);
    }
}
