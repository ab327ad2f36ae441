//! A connection: the stream, the process on its other end, and its place in custody.
//!
//! A supervisor, where there is one, accepts it, so that no userfaultfd which comes on it is lost should this process die.
//! Claimed, it is the one that is served: dropped before its end, the process on the other end is killed with its
//! children, because that process would run on incomplete memory, or wait forever.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::Result;

use crate::socket::take_memory;
use crate::supervisor::{Custody, Held};
use crate::target::{Target, peer_of};

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Connection<'a> {
    stream: UnixStream,
    peer: Arc<Target>,
    held: Option<(&'a Custody, Held)>,
    since: Instant,
    is_claimed: bool,
}

impl AsFd for Connection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<'a> Connection<'a> {
    /// A connection that was accepted just now, with its place in custody.
    ///
    /// # Errors
    /// `Unavailable` when the process on its other end is gone or out of sight; the connection is closed then.
    pub(crate) fn new(stream: UnixStream, held: Option<(&'a Custody, Held)>) -> Result<Self> {
        match peer_of(&stream) {
            Ok(peer) => {
                Ok(Self { stream, peer: Arc::new(peer), held, since: Instant::now(), is_claimed: false })
            }
            Err(error) => {
                release(held);
                Err(error)
            }
        }
    }

    /// From now on the process on the other end runs on what comes here.
    ///
    /// # Errors
    /// `Unavailable` when the supervisor is gone.
    pub(crate) fn claim(&mut self) -> Result<()> {
        self.is_claimed = true;
        self.held.as_ref().map_or(Ok(()), |(custody, held)| custody.claim(held))
    }

    /// Closes a connection that is not served. If a userfaultfd came on it, now or, as `has_memory` says, before, its
    /// process is killed with its children; tells whether.
    ///
    /// # Errors
    /// When such a process may live on.
    pub(crate) fn turn_away(self, has_memory: bool) -> Result<bool> {
        // Kept until the process has ended: it sees no zero page meanwhile.
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

    /// How much is left of a time that began when the other side connected.
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

    /// The supervisor that has a copy of it.
    pub(crate) fn custody(&self) -> Option<&'a Custody> {
        self.held.as_ref().map(|(custody, _)| *custody)
    }

    /// Nothing depends on it any more.
    pub(crate) fn finish(mut self) {
        self.is_claimed = false;
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        if !self.is_claimed {
            return release(self.held.take());
        }
        // It stays in custody: the supervisor sees to it that nobody is left.
        if let Err(error) = self.peer.kill_tree() {
            tracing::error!(%error, "the other side could not be stopped");
        }
    }
}

fn release(held: Option<(&Custody, Held)>) {
    if let Some((custody, held)) = held {
        custody.release(held);
    }
}
