//! The process that outlives its handler: it keeps a copy of every descriptor that fills memory.
//!
//! Why: when the last copy of a userfaultfd closes, every fault that waits and every page still missing becomes a zero
//! page, without an error to anyone. So the handler runs as a child of a supervisor, hands each descriptor over and waits
//! for the receipt before it fills a page. When the handler is gone with anything still in custody, the supervisor kills
//! the processes that run on that memory, waits until their address spaces have ended, and only then closes the copies.
//! Who escapes, such as a forked child whose parent ended before it was seen, gets SIGBUS in place of each missing page,
//! and the supervisor waits for its end, saying so all the time.
//!
//! The supervisor reads no faults while the handler lives, never touches the store, and parses nothing but the fixed
//! messages below. It must not be killed itself; interrupt and termination signals make it stop the handler first.
//!
//! Messages of the handler, one datagram each, a kind and a number (u32, little-endian); each is answered by a receipt
//! number. `1, process number or 0` gives the attached descriptor away, with the pidfd of the process. `2, receipt` takes
//! it back. `4, receipt` gives away the attached descriptor of a child that what runs on the memory of that receipt has
//! forked. `3, 0` attaches a listening socket: the supervisor accepts one connection on it and tells of it, unasked, by
//! one more receipt with the connection attached; a message for whose descriptors there was no room is answered by 2^32 - 1
//! once, is sent again, and is the last; the process on its other end counts as running on what it will bring.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Resource, Rlimit};
use store::{Error, Kind, Result};

use crate::outlast::outlast;
use crate::socket::{Listener, accept, is_silent_end, send, timespec, wait_readable};
use crate::sys::{UserFault, receive};
use crate::target::{Target, kill_tree, peer_of, take_hold_of_descendants, wait_for_ends};

const HOLD: u8 = 1;
const RELEASE: u8 = 2;
const LISTEN: u8 = 3;
const HOLD_FORKED: u8 = 4;
const NO_ROOM: u32 = u32::MAX;
const MESSAGE_BYTES: usize = 5;
/// Descriptors that listing and killing processes takes at a time.
const RESERVED: usize = 4;
/// How long a handler that has something to say may take to say it.
const QUIET: Duration = Duration::from_millis(50);
/// How long a killed handler may take to end.
const END_OF_LINE: Duration = Duration::from_secs(5);
/// How long after a fork the child is looked for, so that it is known should its parent end.
const FORK_SHOWS: Duration = Duration::from_millis(20);
/// How long one wait lasts before signals are looked at again.
const ROUND: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The receipt for a descriptor in custody.
#[derive(Debug, PartialEq, Eq)]
pub struct Held(u32);

/// The handler's line to its supervisor.
#[derive(Debug)]
pub struct Custody {
    socket: OwnedFd,
}

impl AsFd for Custody {
    /// The line: hung up once the supervisor is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Custody {
    /// The line that [`run`] gave this process as its standard input.
    ///
    /// # Errors
    /// `Invalid` when standard input is something else: the process was not started by a supervisor.
    pub fn from_stdin() -> Result<Self> {
        let stdin = std::io::stdin();
        let kind = rustix::net::sockopt::socket_type(&stdin);
        if kind != Ok(SocketType::SEQPACKET) {
            return Err(Error::new(Kind::Invalid, "this process was not started by a supervisor"));
        }
        let socket = stdin
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::io("cannot keep the line to the supervisor", "standard input", error))?;
        Ok(Self { socket })
    }

    /// Gives a copy of a descriptor away, with the process to kill should this one die. Returns once it is safe.
    ///
    /// # Errors
    /// `Unavailable` when the supervisor is gone.
    pub(crate) fn hold(&self, descriptor: BorrowedFd<'_>, target: Option<&Target>) -> Result<Held> {
        let pid = target.map_or(0, Target::number);
        let mut attached = vec![descriptor];
        attached.extend(target.map(AsFd::as_fd));
        self.ask(HOLD, pid.to_le_bytes(), &attached).map(Held)
    }

    /// Gives a copy of the descriptor of a forked child away; it is killed with the process of its parent.
    pub(crate) fn hold_forked(&self, descriptor: BorrowedFd<'_>, parent: &Held) -> Result<Held> {
        self.ask(HOLD_FORKED, parent.0.to_le_bytes(), &[descriptor]).map(Held)
    }

    /// Takes a descriptor out of custody: nothing can go wrong with its memory any more.
    pub(crate) fn release(&self, held: Held) {
        if let Err(error) = self.ask(RELEASE, held.0.to_le_bytes(), &[]) {
            // Without a supervisor there is no copy left to close.
            tracing::warn!(%error, "a descriptor was not taken out of custody");
        }
    }

    /// Leaves it to the supervisor to accept one connection.
    pub(crate) fn listen(&self, listener: &Listener) -> Result<()> {
        self.ask(LISTEN, [0; 4], &[listener.as_fd()]).map(drop)
    }

    /// The connection that the supervisor accepted, in its custody from the start; `None` when nobody came in time.
    pub(crate) fn accept(&self, timeout: Duration) -> Result<Option<(UnixStream, Held)>> {
        if !wait_readable(&self.socket, Instant::now() + timeout)? {
            return Ok(None);
        }
        let (receipt, connection) = self.answer()?;
        let connection =
            connection.ok_or_else(|| Error::new(Kind::Internal, "the supervisor sent no connection"))?;
        Ok(Some((UnixStream::from(connection), Held(receipt))))
    }

    fn ask(&self, kind: u8, argument: [u8; 4], attached: &[BorrowedFd<'_>]) -> Result<u32> {
        let mut message = [kind; MESSAGE_BYTES];
        message[1..].copy_from_slice(&argument);
        loop {
            send(&self.socket, &message, attached).map_err(|errno| lost(errno.into()))?;
            let (receipt, _) = self.answer()?;
            if receipt != NO_ROOM {
                return Ok(receipt);
            }
        }
    }

    fn answer(&self) -> Result<(u32, Option<OwnedFd>)> {
        let mut receipt = [0; 4];
        let received =
            receive(&self.socket, &mut receipt, RecvFlags::empty()).map_err(|errno| lost(errno.into()))?;
        if received.len_bytes != receipt.len() {
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok((u32::from_le_bytes(receipt), received.descriptors.into_iter().next()))
    }
}

/// The error of a handler without its supervisor.
pub fn lost(source: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "the supervisor is gone").caused_by(source).advice("resume again")
}

/// How a supervised handler ended.
#[derive(Debug)]
pub struct Supervised {
    /// Of the handler.
    pub status: ExitStatus,
    /// Processes that were killed because their memory could no longer be served, by number. Empty after a clean end.
    pub killed: Vec<i32>,
}

/// One thing in custody.
struct Guarded {
    kept: Kept,
    /// The receipt under which the processes that run on it were first told of.
    family: u32,
}

/// What is kept open.
enum Kept {
    /// The pages of an address space.
    Space(UserFault),
    /// More of them may be under way on it.
    Connection(OwnedFd),
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Space(space) => space.as_fd(),
            Self::Connection(connection) => connection.as_fd(),
        }
    }
}

/// A process to kill, with all that descends from it.
struct Family {
    root: Target,
    descendants: Vec<Target>,
}

/// Runs a handler as a child and stands by until it has ended. The child finds its line by [`Custody::from_stdin`].
///
/// # Errors
/// When the handler cannot be started or waited for. That processes had to be killed is not an error but in the answer.
pub fn run(mut command: Command) -> Result<Supervised> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Error::io("cannot make a line to the handler", "socketpair", errno.into()))?;
    let interrupted = watch_signals()?;
    raise_descriptor_limit();
    let program = command.get_program().to_owned();
    let mut child = command
        .stdin(theirs)
        .spawn()
        .map_err(|error| Error::io("cannot start the handler", program.display(), error))?;
    // The command owns the child's end; while it lives, the line would never report an end.
    drop(command);
    let mut guards = Guards::new(ours);
    let attended = guards.attend(&interrupted);
    let is_over = guards.is_empty() && attended.is_ok() && !interrupted.load(Ordering::Relaxed);
    let killed = if is_over { Vec::new() } else { guards.stop_all(&mut child)? };
    let status =
        child.wait().map_err(|error| Error::io("cannot wait for the handler", program.display(), error))?;
    attended.map(|()| Supervised { status, killed })
}

/// Every address space costs a descriptor, here and in the handler, which inherits the limit.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let highest = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, highest) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Set when this process is asked to end.
fn watch_signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|error| Error::io("cannot watch for signals", signal, error))?;
    }
    Ok(interrupted)
}

/// The line to the handler, and everything in custody.
struct Guards {
    line: OwnedFd,
    guarded: BTreeMap<u32, Guarded>,
    /// By the receipt of the first thing in custody that they run on.
    families: BTreeMap<u32, Family>,
    /// A socket on which one connection is still to be accepted.
    listener: Option<OwnedFd>,
    /// Copies of the line, closed to make room for killing when no descriptor is left.
    reserve: Vec<OwnedFd>,
    /// When to look for the children that were forked meanwhile.
    next_look: Option<Instant>,
    next: u32,
}

impl Guards {
    fn new(line: OwnedFd) -> Self {
        let reserve = (0..RESERVED).filter_map(|_| line.try_clone().ok()).collect();
        let (guarded, families) = (BTreeMap::new(), BTreeMap::new());
        Self { line, guarded, families, listener: None, reserve, next_look: None, next: 0 }
    }

    fn is_empty(&self) -> bool {
        self.guarded.is_empty() && self.listener.is_none()
    }

    /// Takes and returns descriptors until the handler is gone or this process is asked to end.
    fn attend(&mut self, interrupted: &AtomicBool) -> Result<()> {
        while !interrupted.load(Ordering::Relaxed) {
            let mut polled = vec![PollFd::new(&self.line, PollFlags::IN)];
            polled.extend(self.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
            let until_look = self.next_look.map(|time| time.saturating_duration_since(Instant::now()));
            match poll(&mut polled, Some(&until_look.map_or(ROUND, timespec))) {
                Ok(0) if self.next_look.take().is_some() => {
                    self.look_for_children();
                    continue;
                }
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(Error::io("cannot wait for the handler", "poll", errno.into())),
            }
            let ready: Vec<bool> = polled.iter().map(|entry| !entry.revents().is_empty()).collect();
            let goes_on = match ready[..] {
                [true, ..] => self.hear()?,
                _ => self.accept()?,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Does what one message says. False at the end of the line.
    fn hear(&mut self) -> Result<bool> {
        let mut message = [0; MESSAGE_BYTES];
        let received = match receive(&self.line, &mut message, RecvFlags::empty()) {
            Ok(received) if received.len_bytes == 0 => return Ok(false),
            Ok(received) => received,
            Err(Errno::CONNRESET) => return Ok(false),
            Err(Errno::MFILE) if !self.reserve.is_empty() => {
                self.reserve.clear();
                // It sends the same again, and that is the last.
                if self.answer(NO_ROOM, &[]) {
                    self.hear()?;
                }
                return Err(Error::io("cannot hear the handler", "socket", Errno::MFILE.into())
                    .advice("allow more open files"));
            }
            Err(errno) => return Err(Error::io("cannot hear the handler", "socket", errno.into())),
        };
        let argument = u32::from_le_bytes([message[1], message[2], message[3], message[4]]);
        let mut descriptors = received.descriptors.into_iter();
        let mut attached =
            || descriptors.next().ok_or_else(|| Error::new(Kind::Internal, "the handler sent no descriptor"));
        let receipt = match message[0] {
            HOLD => {
                let space = Kept::Space(UserFault::trust(attached()?));
                let pid = i32::try_from(argument).ok().and_then(Pid::from_raw);
                let target = pid.zip(descriptors.next()).map(|(pid, pidfd)| Target::adopt(pid, pidfd));
                self.guard(space, target)
            }
            HOLD_FORKED => {
                let space = Kept::Space(UserFault::trust(attached()?));
                let receipt = self.guard(space, None);
                self.join_family(receipt, argument);
                self.next_look.get_or_insert_with(|| Instant::now() + FORK_SHOWS);
                receipt
            }
            RELEASE => {
                self.release(argument);
                argument
            }
            LISTEN => {
                self.listener = Some(attached()?);
                0
            }
            other => return Err(Error::new(Kind::Internal, format!("the handler sent message {other}"))),
        };
        Ok(self.answer(receipt, &[]))
    }

    /// Takes hold of what was forked meanwhile.
    fn look_for_children(&mut self) {
        for Family { root, descendants } in self.families.values_mut() {
            if let Err(error) = take_hold_of_descendants(root, descendants) {
                tracing::warn!(%error, "a forked child may be missed");
            }
        }
    }

    fn guard(&mut self, kept: Kept, target: Option<Target>) -> u32 {
        self.next += 1;
        self.guarded.insert(self.next, Guarded { kept, family: self.next });
        self.families.extend(target.map(|root| (self.next, Family { root, descendants: Vec::new() })));
        self.next
    }

    /// What runs on one thing in custody descends from what runs on another.
    fn join_family(&mut self, receipt: u32, parent: u32) {
        let Some(family) = self.guarded.get(&parent).map(|parent| parent.family) else { return };
        if let Some(guarded) = self.guarded.get_mut(&receipt) {
            guarded.family = family;
        }
    }

    fn release(&mut self, receipt: u32) {
        let Some(Guarded { family, .. }) = self.guarded.remove(&receipt) else { return };
        if self.guarded.values().all(|other| other.family != family) {
            self.families.remove(&family);
        }
    }

    /// A handler that died before its answer shows as the end of the line, too.
    fn answer(&self, receipt: u32, attached: &[BorrowedFd<'_>]) -> bool {
        send(&self.line, &receipt.to_le_bytes(), attached).is_ok()
    }

    /// Accepts the one connection and tells the handler of it.
    fn accept(&mut self) -> Result<bool> {
        let Some(listener) = self.listener.take() else { return Ok(true) };
        let connection = accept(&listener)?;
        // One that is gone already, or out of sight, is for the handler to refuse.
        let target = peer_of(&connection).ok();
        let receipt = self.guard(Kept::Connection(connection.into()), target);
        Ok(self.answer(receipt, &[self.guarded[&receipt].kept.as_fd()]))
    }

    /// Kills everything that runs on memory in custody and the handler, and lets go only when all of it has ended.
    fn stop_all(mut self, handler: &mut Child) -> Result<Vec<i32>> {
        self.reserve.clear();
        let mut killed = self.kill_families();
        // Only now, because a child's descriptor may be on its way here: while the handler lives, it holds that one open.
        self.hear_out(QUIET);
        // A handler that merely closed the line could go on filling: its work is over.
        let stopped = handler.kill();
        self.hear_out(END_OF_LINE);
        self.accept_waiting();
        killed.append(&mut self.kill_families());
        // A connection has no address space of its own.
        let spaces = self.guarded.values().filter_map(|guarded| match &guarded.kept {
            Kept::Space(space) => Some(space),
            Kept::Connection(_) => None,
        });
        outlast(spaces.collect());
        stopped.map_err(|error| Error::io("cannot stop the handler", handler.id(), error))?;
        Ok(killed.into_iter().collect())
    }

    /// Takes what the handler still has to say, until it says nothing for a while.
    fn hear_out(&mut self, patience: Duration) {
        while wait_readable(&self.line, Instant::now() + patience).unwrap_or(false) {
            match self.hear() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "the memory of a forked child may be lost");
                    return;
                }
            }
        }
    }

    /// Whoever connected meanwhile may have sent descriptors already.
    fn accept_waiting(&mut self) {
        while let Some(listener) = self.listener.take_if(|listener| is_ready(listener)) {
            match accept(&listener) {
                Ok(connection) => {
                    self.listener = Some(listener);
                    if !is_silent_end(&connection) {
                        let target = peer_of(&connection).ok();
                        self.guard(Kept::Connection(connection.into()), target);
                    }
                }
                Err(error) => tracing::warn!(%error, "a waiting connection is gone"),
            }
        }
    }

    /// Kills everybody, then waits a moment for their ends, and tells who was still there.
    fn kill_families(&mut self) -> BTreeSet<i32> {
        let mut killed = BTreeSet::new();
        for family in self.families.values_mut() {
            let (members, outcome) = kill_tree(&family.root, &mut family.descendants);
            killed.extend(members);
            if let Err(error) = outcome {
                // Its faults go on waiting, because the copies stay open until it has ended.
                tracing::error!(%error, "not everybody was killed who runs on memory without its handler");
            }
        }
        if !killed.is_empty() {
            tracing::warn!(?killed, "the handler is gone: what ran on its memory was killed");
        }
        wait_for_ends(self.families.values().flat_map(Family::members));
        // Room for what the handler may still have to hand over.
        self.families.values_mut().for_each(|family| family.descendants.clear());
        killed
    }
}

impl Family {
    /// The root first.
    fn members(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.root).chain(&self.descendants)
    }
}

/// Whether a listening socket has a connection to accept.
fn is_ready(listener: &OwnedFd) -> bool {
    wait_readable(listener, Instant::now()).unwrap_or(false)
}
