//! The one connection of a serve: the stream, the process on its other end, and its place in custody.
//!
//! A supervisor, where there is one, accepts it, so that the other side is known to it before this process can die with
//! the connection in hand. Dropped before its end, the other side is killed with its children: it would run on incomplete
//! memory, or wait for ever.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use store::Result;

use crate::report::ServeOptions;
use crate::socket::Listener;
use crate::supervisor::{Custody, Held};
use crate::target::{Target, peer_of};

/// An accepted connection.
#[derive(Debug)]
pub struct Connection<'a> {
    stream: UnixStream,
    peer: Arc<Target>,
    held: Option<(&'a Custody, Held)>,
    is_finished: bool,
}

impl AsFd for Connection<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<'a> Connection<'a> {
    /// Listens at a path until somebody connects; the path is free again when this returns.
    ///
    /// # Errors
    /// Those of binding; `Unavailable` when nobody connects in time or whoever did is out of sight.
    pub fn await_at(path: &Path, options: &'a ServeOptions) -> Result<Self> {
        let listener = Listener::bind(path)?;
        let Some(custody) = &options.custody else {
            options.call_ready();
            let stream = listener.accept(options.accept_timeout)?;
            let peer = Arc::new(peer_of(&stream)?);
            return Ok(Self { stream, peer, held: None, is_finished: false });
        };
        custody.listen(&listener)?;
        options.call_ready();
        let accepted = custody.accept(options.accept_timeout)?;
        let (stream, held) = accepted.ok_or_else(|| listener.nobody_came(options.accept_timeout))?;
        let peer = Arc::new(peer_of(&stream)?);
        Ok(Self { stream, peer, held: Some((custody, held)), is_finished: false })
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
