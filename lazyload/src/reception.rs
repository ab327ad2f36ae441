//! The choice of the connection that is served: connections are accepted while the serve waits, and the first one whose
//! greeting is complete is served. All others are turned away.
//!
//! Any process may connect: a readiness probe, a client of another protocol, a second monitor. Such a connection is
//! closed, its process is left alone, and the serve keeps waiting. Only a process that has sent a userfaultfd and is
//! not served is killed: it would wait for its pages forever. At most [`OPEN_LIMIT`] connections are open at a time;
//! with one more, the oldest is turned away.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use store::{Error, Kind, Result};

use crate::connection::Connection;
use crate::options::ServeOptions;
use crate::socket::{Listener, SocketAccess, is_silent_end, timespec, wait_readable};
use crate::supervisor::{Escrow, Receipt, lost};
use crate::target::Target;

/// Connections that may be open before their greetings are complete.
const OPEN_LIMIT: usize = 16;

/// How soon a connection is read again whose incomplete greeting is still in the socket.
const PEEK_INTERVAL: Duration = Duration::from_millis(10);

/// The first message of a protocol.
pub(crate) trait Greeting {
    /// Receives, or peeks at, the bytes that have come on the connection, without waiting; true once the greeting is
    /// complete.
    ///
    /// # Errors
    /// When the bytes are not, and will not become, a greeting of the protocol.
    fn receive(&mut self, connection: &Connection<'_>) -> Result<bool>;

    /// Whether a userfaultfd has been taken from the connection.
    fn has_memory(&self) -> bool;
}

/// Listens at a path, with the permissions of `access`, until a connection has sent a complete greeting, for which it
/// may take `greeting_timeout`; the path is free again when this returns.
///
/// # Errors
/// Those of binding; `NotFound` when the monitor that was named is not there; `Unavailable` when no greeting came in
/// time or that monitor ended; that of a greeting that was refused after it had brought a userfaultfd.
pub(crate) fn await_greeting<'a, G: Greeting>(
    (path, access): (&Path, SocketAccess),
    options: &'a ServeOptions,
    greeting_timeout: Duration,
    greeting: impl Fn() -> G,
) -> Result<(Connection<'a>, G)> {
    let mut reception = Reception::open(Listener::bind(path, access)?, options, greeting_timeout)?;
    options.call_ready();
    loop {
        reception.wait()?;
        if let Some(chosen) = reception.receive_greetings()? {
            return Ok(chosen);
        }
        reception.close_expired()?;
        reception.check_monitor()?;
        if reception.accept_deadline > Instant::now() {
            reception.accept_waiting(&greeting)?;
        } else if reception.open.is_empty() {
            return Err(reception.nobody_came());
        }
    }
}

/// A connection whose greeting is not complete.
struct Open<'a, G> {
    connection: Connection<'a>,
    greeting: G,
    /// The incomplete greeting is still in the socket, so the connection stays readable and polling for that is in
    /// vain.
    is_peeked: bool,
}

struct Reception<'a, G: Greeting> {
    listener: Listener,
    /// The escrow, and the receipt for the listening socket.
    deposit: Option<(&'a Escrow, Receipt)>,
    /// Once this process has ended, no connection is expected any more.
    monitor: Option<Target>,
    options: &'a ServeOptions,
    accept_deadline: Instant,
    greeting_timeout: Duration,
    /// The oldest first.
    open: Vec<Open<'a, G>>,
    /// Why a connection was turned away last.
    last_refusal: Option<Error>,
}

impl<'a, G: Greeting> Reception<'a, G> {
    fn open(listener: Listener, options: &'a ServeOptions, greeting_timeout: Duration) -> Result<Self> {
        let monitor = options.monitor.and_then(Pid::from_raw).map(Target::open).transpose()?;
        let escrow = options.escrow.as_ref();
        let deposit = escrow.map(|escrow| Ok((escrow, escrow.deposit_listener(&listener)?))).transpose()?;
        let accept_deadline = Instant::now() + options.accept_timeout;
        let (open, last_refusal) = (Vec::new(), None);
        Ok(Self {
            listener,
            deposit,
            monitor,
            options,
            accept_deadline,
            greeting_timeout,
            open,
            last_refusal,
        })
    }

    /// Waits until a connection can be accepted or read, or a time is over.
    fn wait(&self) -> Result<()> {
        let now = Instant::now();
        let ends = self.open.iter().map(|open| match open.is_peeked {
            true => now + PEEK_INTERVAL,
            false => open.connection.since() + self.greeting_timeout,
        });
        let accepts = now < self.accept_deadline;
        let next_end = ends.chain(accepts.then_some(self.accept_deadline)).min().unwrap_or(now);
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(self.open.len() + 2);
        // Only the end of the supervisor matters, which poll reports without being asked.
        polled.extend(self.deposit.iter().map(|(escrow, _)| PollFd::new(*escrow, PollFlags::empty())));
        let of_interest =
            |open: &Open<'_, G>| if open.is_peeked { PollFlags::empty() } else { PollFlags::IN };
        polled.extend(self.open.iter().map(|open| PollFd::new(&open.connection, of_interest(open))));
        polled.extend(self.monitor.iter().map(|monitor| PollFd::new(monitor, PollFlags::IN)));
        polled.extend(accepts.then(|| PollFd::new(&self.listener, PollFlags::IN)));
        match poll(&mut polled, Some(&timespec(next_end.saturating_duration_since(now)))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("cannot wait for a connection", "poll", errno.into())),
        }
        if self.deposit.is_some() && polled.first().is_some_and(|escrow| !escrow.revents().is_empty()) {
            return Err(lost(std::io::ErrorKind::BrokenPipe.into()));
        }
        Ok(())
    }

    /// Accepts every connection that waits.
    fn accept_waiting(&mut self, greeting: impl Fn() -> G) -> Result<()> {
        while let Some(accepted) = self.accept()? {
            match accepted {
                Ok(connection) => {
                    self.open.push(Open { connection, greeting: greeting(), is_peeked: false });
                }
                Err(error) => self.note_refusal(error),
            }
            if self.open.len() > OPEN_LIMIT {
                let crowded = Error::new(Kind::Unavailable, "too many connections are open");
                self.turn_away(0, crowded)?;
            }
        }
        Ok(())
    }

    /// Accepts the next connection that waits; an error stands for one that was closed, because its process is out of
    /// sight.
    fn accept(&self) -> Result<Option<Result<Connection<'a>>>> {
        let accepted = match &self.deposit {
            Some((escrow, listener)) => {
                escrow.accept(listener)?.map(|(stream, receipt)| (stream, Some((*escrow, receipt))))
            }
            None => self.listener.accept()?.map(|stream| (stream, None)),
        };
        Ok(accepted.map(|(stream, deposit)| Connection::new(stream, deposit)))
    }

    /// Reads every connection, and returns the first whose greeting is complete.
    fn receive_greetings(&mut self) -> Result<Option<(Connection<'a>, G)>> {
        let mut index = 0;
        while index < self.open.len() {
            let Open { connection, greeting, is_peeked } = &mut self.open[index];
            if is_silent_end(connection.stream()) && !greeting.has_memory() {
                drop(self.open.remove(index));
                continue;
            }
            match greeting.receive(connection) {
                Ok(false) => {
                    *is_peeked = wait_readable(&*connection, Instant::now())?;
                    index += 1;
                }
                Ok(true) => {
                    let Open { mut connection, greeting, .. } = self.open.remove(index);
                    connection.claim()?;
                    return Ok(Some((connection, greeting)));
                }
                Err(error) => self.turn_away(index, error)?,
            }
        }
        Ok(None)
    }

    /// Turns away the connections whose time is over.
    fn close_expired(&mut self) -> Result<()> {
        let timeout = self.greeting_timeout;
        while let Some(index) = self.open.iter().position(|open| open.connection.since().elapsed() >= timeout)
        {
            let what = format!("no complete handshake came within {} s", timeout.as_secs());
            self.turn_away(index, Error::new(Kind::Unavailable, what))?;
        }
        Ok(())
    }

    /// # Errors
    /// `Unavailable` when the monitor has ended.
    fn check_monitor(&self) -> Result<()> {
        let Some(ended) = self.monitor.as_ref().filter(|monitor| monitor.has_ended()) else { return Ok(()) };
        let what = format!("the monitor, process {}, ended before its memory was served", ended.number());
        Err(Error::new(Kind::Unavailable, what).advice("see its log, and resume again"))
    }

    /// # Errors
    /// `why`, when the connection had brought memory: its process is killed then.
    fn turn_away(&mut self, index: usize, why: Error) -> Result<()> {
        let Open { connection, greeting, .. } = self.open.remove(index);
        let process = connection.peer().number();
        if connection.turn_away(greeting.has_memory())? {
            return Err(
                why.object(format!("process {process}, which was killed: its memory cannot be served"))
            );
        }
        self.note_refusal(why.object(format!("process {process}")));
        Ok(())
    }

    fn note_refusal(&mut self, error: Error) {
        tracing::warn!(%error, "a connection was closed; waiting for another");
        self.last_refusal = Some(error);
    }

    fn nobody_came(&mut self) -> Error {
        let error = self.listener.nobody_came(self.options.accept_timeout);
        match self.last_refusal.take() {
            Some(refusal) => error.caused_by(refusal),
            None => error,
        }
    }
}

impl<G: Greeting> Drop for Reception<'_, G> {
    /// Leaves no process waiting: frees the path and turns away all connections but the one that is served.
    fn drop(&mut self) {
        self.listener.refuse();
        loop {
            match self.accept() {
                Ok(Some(Ok(connection))) => turn_away_late(connection, false),
                Ok(Some(Err(error))) => tracing::warn!(%error, "a connection was closed"),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "connections that waited were not looked at");
                    break;
                }
            }
        }
        for Open { connection, greeting, .. } in self.open.drain(..) {
            turn_away_late(connection, greeting.has_memory());
        }
        if let Some((escrow, receipt)) = self.deposit.take() {
            escrow.release(receipt);
        }
    }
}

/// Turns away a connection when another one is served.
fn turn_away_late(connection: Connection<'_>, has_memory: bool) {
    let process = connection.peer().number();
    match connection.turn_away(has_memory) {
        Ok(true) => tracing::error!(
            process,
            "a process came to have its memory served and was killed: this serve is not for it"
        ),
        Ok(false) => tracing::debug!(process, "a connection was closed"),
        Err(error) => {
            tracing::error!(%error, process, "a process waits for memory that is not served; kill it")
        }
    }
}
