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
//! messages below. Either of the two may be killed: the other one sees to what runs on the memory. Both catch every signal
//! that asks a process to end (a supervisor stops first what it guards, and a handler leaves that to its supervisor), are no
//! victims when memory runs out (where the score may be lowered), and have process groups of their own.
//!
//! What nobody can survive is SIGKILL for both at one moment: `kill -9` of both, `cgroup.kill`, the end of a container or
//! of the machine's init. The kernel then hands out zero for each missing page, except to who holds a copy of the
//! descriptor, as Firecracker does, and waits for ever. Those must be killed by hand. A `criu restore` that was still
//! at work is killed with its handler, and resumes nobody.
//!
//! Messages of the handler, one datagram each, a kind and a number (u32, little-endian); each is answered by a receipt
//! number. `1, process number or 0` gives the attached descriptor away, with the pidfd of the process. `2, receipt` takes
//! it back. `4, receipt` gives away the attached descriptor of a child that what runs on the memory of that receipt has
//! forked. `3, 0` gives the attached listening socket away; `5, receipt` has the supervisor accept one connection on it,
//! which is attached to its receipt, or 0 when none waits. `6, receipt` claims a connection: the process on its other end
//! counts as running on what it will bring. A message for whose descriptors there was no room is answered by 2^32 - 1
//! once, is sent again, and is the last.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Resource, Rlimit};
use store::{Error, Kind, Result};

use crate::orphaned::outlast;
pub use crate::protect::{END_SIGNALS, spawn};
use crate::protect::{ignore_stray_signals, lower_score};
use crate::socket::{Listener, accept, refuse, send, take_memory, timespec, wait_readable};
use crate::sys::{UserFault, receive};
use crate::target::{Target, kill_tree, peer_of, take_hold_of_descendants, wait_for_ends};

const HOLD: u8 = 1;
const RELEASE: u8 = 2;
const LISTEN: u8 = 3;
const HOLD_FORKED: u8 = 4;
const ACCEPT: u8 = 5;
const CLAIM: u8 = 6;
/// No receipt has this number.
const NOTHING: u32 = 0;
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
    /// The line that [`run`] gave this process as its standard input. From now on this process is protected, and ends by
    /// the [`END_SIGNALS`] only; see [`spawn`] for programs that it starts.
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
        ignore_stray_signals()?;
        if let Err(error) = lower_score() {
            tracing::debug!(%error, "the oom_score_adj stays as it is, as the supervisor has said");
        }
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
        self.ask(HOLD, pid.to_le_bytes(), &attached).map(|(receipt, _)| Held(receipt))
    }

    /// Gives a copy of the descriptor of a forked child away; it is killed with the process of its parent.
    pub(crate) fn hold_forked(&self, descriptor: BorrowedFd<'_>, parent: &Held) -> Result<Held> {
        self.ask(HOLD_FORKED, parent.0.to_le_bytes(), &[descriptor]).map(|(receipt, _)| Held(receipt))
    }

    /// Takes a descriptor out of custody: nothing can go wrong with its memory any more.
    pub(crate) fn release(&self, held: Held) {
        if let Err(error) = self.ask(RELEASE, held.0.to_le_bytes(), &[]) {
            // Without a supervisor there is no copy left to close.
            tracing::warn!(%error, "a descriptor was not removed from the supervisor");
        }
    }

    /// Gives a copy of a listening socket away: connections that wait on it are looked at should this process die.
    pub(crate) fn listen(&self, listener: &Listener) -> Result<Held> {
        self.ask(LISTEN, [0; 4], &[listener.as_fd()]).map(|(receipt, _)| Held(receipt))
    }

    /// Has the supervisor accept a connection, which is in its custody from the start; `None` when none waits.
    pub(crate) fn accept(&self, listener: &Held) -> Result<Option<(UnixStream, Held)>> {
        let (receipt, connection) = self.ask(ACCEPT, listener.0.to_le_bytes(), &[])?;
        Ok(connection.map(|connection| (UnixStream::from(connection), Held(receipt))))
    }

    /// Has the process on the other end of a connection killed should this one die.
    pub(crate) fn claim(&self, connection: &Held) -> Result<()> {
        self.ask(CLAIM, connection.0.to_le_bytes(), &[]).map(drop)
    }

    fn ask(
        &self,
        kind: u8,
        argument: [u8; 4],
        attached: &[BorrowedFd<'_>],
    ) -> Result<(u32, Option<OwnedFd>)> {
        let mut message = [kind; MESSAGE_BYTES];
        message[1..].copy_from_slice(&argument);
        loop {
            send(&self.socket, &message, attached).map_err(|errno| lost(errno.into()))?;
            let answer = self.answer()?;
            if answer.0 != NO_ROOM {
                return Ok(answer);
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
    Connection(UnixStream),
    /// More connections may wait on it.
    Listener(OwnedFd),
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Space(space) => space.as_fd(),
            Self::Connection(connection) => connection.as_fd(),
            Self::Listener(listener) => listener.as_fd(),
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
    ignore_stray_signals()?;
    raise_descriptor_limit();
    let program = command.get_program().to_owned();
    let mut child = command
        .stdin(theirs)
        .process_group(0)
        .spawn()
        .map_err(|error| Error::io("cannot start the handler", program.display(), error))?;
    // The command owns the child's end; while it lives, the line would never report an end.
    drop(command);
    // Not before: the handler does the same, and knows then what the score was.
    if let Err(error) = lower_score() {
        tracing::warn!(
            %error,
            "the oom_score_adj of supervisor and handler stays as it is (CAP_SYS_RESOURCE is needed): should both be killed when \
             memory runs out, what is resumed sees zero pages"
        );
    }
    let mut guards = Guards::new(ours);
    let attended = guards.attend(&interrupted);
    let is_over = guards.is_empty() && attended.is_ok() && !interrupted.load(Ordering::Relaxed);
    let killed = if is_over { Vec::new() } else { guards.stop_all(&mut child)? };
    let status =
        child.wait().map_err(|error| Error::io("cannot wait for the handler", program.display(), error))?;
    attended.map(|()| Supervised { status, killed })
}

/// Hears messages of a handler, each as long as a right one but for the last, for [`crate::fuzzing`].
pub(crate) fn hear_all(bytes: &[u8]) -> Result<()> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Error::io("cannot make a line to the handler", "socketpair", errno.into()))?;
    let mut guards = Guards::new(ours);
    for message in bytes.chunks(MESSAGE_BYTES) {
        send(&theirs, message, &[])
            .map_err(|errno| Error::io("cannot speak to the supervisor", "socket", errno.into()))?;
        guards.hear()?;
        receive(&theirs, &mut [0; MESSAGE_BYTES], RecvFlags::empty())
            .map_err(|errno| Error::io("cannot hear the supervisor", "socket", errno.into()))?;
    }
    Ok(())
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
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in END_SIGNALS {
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
        Self { line, guarded, families, reserve, next_look: None, next: NOTHING }
    }

    fn is_empty(&self) -> bool {
        self.guarded.is_empty()
    }

    /// Takes and returns descriptors until the handler is gone or this process is asked to end.
    fn attend(&mut self, interrupted: &AtomicBool) -> Result<()> {
        while !interrupted.load(Ordering::Relaxed) {
            let mut polled = [PollFd::new(&self.line, PollFlags::IN)];
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
            if !self.hear()? {
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
            LISTEN => self.guard(Kept::Listener(attached()?), None),
            ACCEPT => return self.accept(argument),
            CLAIM => {
                self.claim(argument);
                argument
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

    /// Accepts a connection, if one waits, and gives the handler a copy.
    fn accept(&mut self, listener: u32) -> Result<bool> {
        let accepted = match self.guarded.get(&listener) {
            Some(Guarded { kept: Kept::Listener(listener), .. }) => accept(listener)?,
            _ => None,
        };
        let Some(connection) = accepted else { return Ok(self.answer(NOTHING, &[])) };
        let receipt = self.guard(Kept::Connection(connection), None);
        Ok(self.answer(receipt, &[self.guarded[&receipt].kept.as_fd()]))
    }

    /// The process on the other end of a connection runs on what comes there.
    fn claim(&mut self, receipt: u32) {
        let Some(guarded) = self.guarded.get(&receipt) else { return };
        match peer_of(&guarded.kept) {
            Ok(root) => {
                self.families.insert(guarded.family, Family { root, descendants: Vec::new() });
            }
            // The handler has one that it holds by itself.
            Err(error) => tracing::warn!(%error, "the process of a connection is gone"),
        }
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
        self.take_what_came();
        killed.append(&mut self.kill_families());
        // A connection has no address space of its own.
        let spaces = self.guarded.values().filter_map(|guarded| match &guarded.kept {
            Kept::Space(space) => Some(space),
            Kept::Connection(_) | Kept::Listener(_) => None,
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

    /// Takes the memory that came on connections and that the handler has not given away: its process is to be killed.
    fn take_what_came(&mut self) {
        let mut connections = Vec::new();
        for guarded in self.guarded.values() {
            match &guarded.kept {
                Kept::Space(_) => {}
                Kept::Connection(connection) => connections.extend(connection.try_clone()),
                Kept::Listener(listener) => {
                    refuse(listener);
                    connections.extend(std::iter::from_fn(|| accept(listener).unwrap_or_default()));
                }
            }
        }
        for connection in connections {
            for space in take_memory(&connection) {
                self.guard(Kept::Space(space), peer_of(&connection).ok());
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
