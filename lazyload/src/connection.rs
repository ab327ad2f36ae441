//! The one connection of a serve: the stream, the process on its other end, and its place in custody.
//!
//! A supervisor, where there is one, accepts it, so that the other side is known to it before this process can die with
//! the connection in hand. Dropped before its end, the other side is killed with its children: it would run on incomplete
//! memory, or wait for ever.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::Result;

use crate::report::ServeOptions;
use crate::socket::{Listener, is_silent_end, wait_readable};
use crate::supervisor::{Custody, Held};
use crate::target::{Target, peer_of};

/// An accepted connection.
#[derive(Debug)]
pub struct Connection<'a> {
    stream: UnixStream,
    peer: Arc<Target>,
    held: Option<(&'a Custody, Held)>,
    since: Instant,
    is_finished: bool,
}

impl AsFd for Connection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<'a> Connection<'a> {
    /// Listens at a path until somebody connects and says something, within `first_word`; the path is free again when
    /// this returns. Whoever closes without a word, such as one who only tried the socket, is let go.
    ///
    /// # Errors
    /// Those of binding; `Unavailable` when nobody connects in time or whoever did is out of sight.
    pub fn await_at(path: &Path, options: &'a ServeOptions, first_word: Duration) -> Result<Self> {
        let listener = Listener::bind(path)?;
        let custody = options.custody.as_ref();
        custody.map_or(Ok(()), |custody| custody.listen(&listener))?;
        options.call_ready();
        let deadline = Instant::now() + options.accept_timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let accepted = match custody {
                Some(custody) => custody.accept(left)?.map(|(stream, held)| (stream, Some((custody, held)))),
                None => listener.accept(left)?.map(|stream| (stream, None)),
            };
            let (stream, held) = accepted.ok_or_else(|| listener.nobody_came(options.accept_timeout))?;
            let peer = peer_of(&stream);
            let since = Instant::now();
            wait_readable(&stream, since + first_word)?;
            if !is_silent_end(&stream) {
                return Ok(Self { stream, peer: Arc::new(peer?), held, since, is_finished: false });
            }
            if let Some((custody, held)) = held {
                custody.release(held);
                custody.listen(&listener)?;
            }
        }
    }

    /// How much is left of a time that began when the other side connected.
    pub fn left_of(&self, time: Duration) -> Duration {
        time.saturating_sub(self.since.elapsed())
    }

    /// The stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The process on the other end.
    pub fn peer(&self) -> &Arc<Target> {
        &self.peer
    }

    /// Nothing depends on it any more.
    pub fn finish(mut self) {
        self.is_finished = true;
        if let Some((custody, held)) = self.held.take() {
            custody.release(held);
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = self.peer.kill_tree()
        {
            tracing::error!(%error, "the other side could not be stopped");
        }
    }
}
