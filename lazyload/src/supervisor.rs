//! The supervisor: a process that outlives the handler and holds a copy of every descriptor that fills memory in
//! escrow.
//!
//! Why: when the last copy of a userfaultfd closes, every fault that waits and every page still missing becomes a zero
//! page, without an error to any process. So the handler runs as a child of a supervisor, deposits each descriptor with
//! it and waits for the receipt before it fills a page. When the handler is gone with anything still in escrow, the
//! supervisor kills the processes that run on that memory, waits until their address spaces have ended, and only then
//! closes the copies. A process that escapes, such as a forked child whose parent ended before the child was seen, gets
//! SIGBUS in place of each missing page; the supervisor waits for its end and repeats in the log that it waits.
//!
//! The supervisor reads no faults while the handler lives, never touches the store, and parses nothing but the fixed
//! messages below. Either of the two may be killed: the other one stops the processes that run on the memory. Both
//! catch every signal that asks a process to end (a supervisor first stops the processes, and a handler leaves that to
//! its supervisor), are no victims when memory runs out (where the score may be lowered), and have process groups of
//! their own.
//!
//! Nothing survives SIGKILL for both at one moment: `kill -9` of both, `cgroup.kill`, the end of a container or of the
//! machine's init. The kernel then fills each missing page with zeroes, except for a process that has a copy of the
//! descriptor, as Firecracker has: that waits forever. All of them must be killed by hand. A `criu restore` in progress
//! is killed with its handler, and resumes no process.
//!
//! Messages of the handler, one datagram each, are a kind and a number (u32, little-endian); each is answered by a
//! receipt number. `1, process number or 0` deposits the attached descriptor, with the pidfd of the process. `2,
//! receipt` takes it back. `4, receipt` deposits the attached descriptor of a child that was forked by a process that
//! runs on the memory of that receipt. `3, 0` deposits the attached listening socket; `5, receipt` has the supervisor
//! accept one connection on that socket, which is attached to the answer, or answer 0 when no connection waits. `6,
//! receipt` claims a connection: the process on its other end counts as running on the memory that comes on it. If
//! there was no room for the descriptors of a message, it is answered by 2^32 - 1 once, is sent again, and is the last.

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

use crate::orphaned::wait_for_end;
pub use crate::protect::{END_SIGNALS, spawn};
use crate::protect::{ignore_stray_signals, lower_score};
use crate::socket::{Listener, accept, refuse, send, take_memory, timespec, wait_readable};
use crate::sys::{UserFault, receive};
use crate::target::{Target, kill_tree, open_descendants, peer_of, wait_for_ends};

const DEPOSIT: u8 = 1;
const RELEASE: u8 = 2;
const DEPOSIT_LISTENER: u8 = 3;
const DEPOSIT_FORKED: u8 = 4;
const ACCEPT: u8 = 5;
const CLAIM: u8 = 6;
/// No receipt has this number.
const NO_RECEIPT: u32 = 0;
const NO_ROOM: u32 = u32::MAX;
const MESSAGE_BYTES: usize = 5;
/// Descriptors that listing and killing processes takes at a time.
const RESERVED: usize = 4;
/// How long the handler may take from one message to the next, until it counts as having sent its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_millis(50);
/// How long a killed handler may take to end.
const HANDLER_END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after a fork the child is searched for, so that it is known should its parent end.
const FORK_DELAY: Duration = Duration::from_millis(20);
/// How long one wait lasts until signals are checked again.
const SIGNAL_CHECK_INTERVAL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The receipt for a descriptor in escrow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Receipt(u32);

/// The handler's end of its connection to the supervisor, which holds descriptors in escrow.
#[derive(Debug)]
pub struct Escrow {
    socket: OwnedFd,
}

impl AsFd for Escrow {
    /// The connection: hung up once the supervisor is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Escrow {
    /// The connection that [`run`] made this process's standard input. From now on this process is protected, and ends
    /// by the [`END_SIGNALS`] only; see [`spawn`] for programs that it starts.
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

    /// Deposits a copy of a descriptor, with the process to kill should this one die. Returns once the supervisor has
    /// it.
    ///
    /// # Errors
    /// `Unavailable` when the supervisor is gone.
    pub(crate) fn deposit(&self, descriptor: BorrowedFd<'_>, target: Option<&Target>) -> Result<Receipt> {
        let pid = target.map_or(0, Target::number);
        let mut attached = vec![descriptor];
        attached.extend(target.map(AsFd::as_fd));
        self.ask(DEPOSIT, pid.to_le_bytes(), &attached).map(|(receipt, _)| Receipt(receipt))
    }

    /// Deposits a copy of the descriptor of a forked child, which is killed with the process of its parent.
    pub(crate) fn deposit_forked(&self, descriptor: BorrowedFd<'_>, parent: &Receipt) -> Result<Receipt> {
        self.ask(DEPOSIT_FORKED, parent.0.to_le_bytes(), &[descriptor]).map(|(receipt, _)| Receipt(receipt))
    }

    /// Takes a descriptor out of escrow: its memory is complete, or has ended.
    pub(crate) fn release(&self, receipt: Receipt) {
        if let Err(error) = self.ask(RELEASE, receipt.0.to_le_bytes(), &[]) {
            // Without a supervisor there is no copy left to close.
            tracing::warn!(%error, "a descriptor was not removed from the supervisor");
        }
    }

    /// Deposits a copy of a listening socket: should this process die, the connections that wait on it are searched for
    /// memory.
    pub(crate) fn deposit_listener(&self, listener: &Listener) -> Result<Receipt> {
        self.ask(DEPOSIT_LISTENER, [0; 4], &[listener.as_fd()]).map(|(receipt, _)| Receipt(receipt))
    }

    /// Has the supervisor accept a connection, which is in escrow from the start; `None` when none waits.
    pub(crate) fn accept(&self, listener: &Receipt) -> Result<Option<(UnixStream, Receipt)>> {
        let (receipt, connection) = self.ask(ACCEPT, listener.0.to_le_bytes(), &[])?;
        Ok(connection.map(|connection| (UnixStream::from(connection), Receipt(receipt))))
    }

    /// Has the process on the other end of a connection killed should this one die.
    pub(crate) fn claim(&self, connection: &Receipt) -> Result<()> {
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

/// The error of a handler whose supervisor is gone.
pub fn lost(source: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "the supervisor is gone").caused_by(source).advice("resume again")
}

/// How a supervised handler ended.
#[derive(Debug)]
pub struct Supervised {
    /// The exit status of the handler.
    pub status: ExitStatus,
    /// Numbers of the processes that were killed because their memory could no longer be served. Empty after a clean
    /// end.
    pub killed: Vec<i32>,
}

/// One deposit in escrow.
struct Deposit {
    descriptor: Descriptor,
    /// The receipt under which the processes that run on this memory were first named.
    tree: u32,
}

/// A descriptor in escrow.
enum Descriptor {
    /// Of an address space.
    Space(UserFault),
    /// A connection, on which descriptors of address spaces may be in flight.
    Connection(UnixStream),
    /// A listening socket, on which connections may wait.
    Listener(OwnedFd),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Space(space) => space.as_fd(),
            Self::Connection(connection) => connection.as_fd(),
            Self::Listener(listener) => listener.as_fd(),
        }
    }
}

/// A process to kill, with its descendants.
struct ProcessTree {
    root: Target,
    descendants: Vec<Target>,
}

/// Runs a handler as a child and returns when it has ended. The child connects by [`Escrow::from_stdin`].
///
/// # Errors
/// When the handler cannot be started or waited for. That processes had to be killed is no error: see [`Supervised`].
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
    // The command owns the child's end; while it lives, the connection would never report an end.
    drop(command);
    // Only after the spawn: the handler inherits the former score and keeps it for the programs that it starts.
    if let Err(error) = lower_score() {
        tracing::warn!(
            %error,
            "the oom_score_adj of supervisor and handler stays as it is (CAP_SYS_RESOURCE is needed): should both be killed when \
             memory runs out, what is resumed sees zero pages"
        );
    }
    let mut supervisor = Supervisor::new(ours);
    let received = supervisor.receive_until_end(&interrupted);
    let is_over = supervisor.is_empty() && received.is_ok() && !interrupted.load(Ordering::Relaxed);
    let killed = if is_over { Vec::new() } else { supervisor.stop_all(&mut child)? };
    let status =
        child.wait().map_err(|error| Error::io("cannot wait for the handler", program.display(), error))?;
    received.map(|()| Supervised { status, killed })
}

/// Receives messages of a handler, each as long as a right one but for the last, for [`crate::fuzzing`].
pub(crate) fn receive_all(bytes: &[u8]) -> Result<()> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Error::io("cannot make a line to the handler", "socketpair", errno.into()))?;
    let mut supervisor = Supervisor::new(ours);
    for message in bytes.chunks(MESSAGE_BYTES) {
        send(&theirs, message, &[])
            .map_err(|errno| Error::io("cannot speak to the supervisor", "socket", errno.into()))?;
        supervisor.receive_message()?;
        receive(&theirs, &mut [0; MESSAGE_BYTES], RecvFlags::empty())
            .map_err(|errno| Error::io("cannot receive from the supervisor", "socket", errno.into()))?;
    }
    Ok(())
}

/// Raises the limit of open files, which the handler inherits: every address space costs a descriptor in both
/// processes.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let highest = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, highest) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// A flag that is set when this process is asked to end.
fn watch_signals() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in END_SIGNALS {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|error| Error::io("cannot watch for signals", signal, error))?;
    }
    Ok(interrupted)
}

/// The connection to the handler, and everything in escrow.
struct Supervisor {
    connection: OwnedFd,
    /// By receipt.
    deposits: BTreeMap<u32, Deposit>,
    /// The processes that run on deposits, by the receipt of the first deposit that they run on.
    trees: BTreeMap<u32, ProcessTree>,
    /// Copies of the connection, closed to make room for killing when no descriptor is left.
    reserve: Vec<OwnedFd>,
    /// When to search for the children that were forked meanwhile.
    next_search: Option<Instant>,
    last_receipt: u32,
}

impl Supervisor {
    fn new(connection: OwnedFd) -> Self {
        let reserve = (0..RESERVED).filter_map(|_| connection.try_clone().ok()).collect();
        let (deposits, trees) = (BTreeMap::new(), BTreeMap::new());
        Self { connection, deposits, trees, reserve, next_search: None, last_receipt: NO_RECEIPT }
    }

    fn is_empty(&self) -> bool {
        self.deposits.is_empty()
    }

    /// Receives messages until the handler is gone or this process is asked to end.
    fn receive_until_end(&mut self, interrupted: &AtomicBool) -> Result<()> {
        while !interrupted.load(Ordering::Relaxed) {
            let mut polled = [PollFd::new(&self.connection, PollFlags::IN)];
            let until_search = self.next_search.map(|time| time.saturating_duration_since(Instant::now()));
            match poll(&mut polled, Some(&until_search.map_or(SIGNAL_CHECK_INTERVAL, timespec))) {
                Ok(0) if self.next_search.take().is_some() => {
                    self.search_for_children();
                    continue;
                }
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(Error::io("cannot wait for the handler", "poll", errno.into())),
            }
            if !self.receive_message()? {
                break;
            }
        }
        Ok(())
    }

    /// Receives one message and acts on it. False when the handler has closed the connection.
    fn receive_message(&mut self) -> Result<bool> {
        let mut message = [0; MESSAGE_BYTES];
        let received = match receive(&self.connection, &mut message, RecvFlags::empty()) {
            Ok(received) if received.len_bytes == 0 => return Ok(false),
            Ok(received) => received,
            Err(Errno::CONNRESET) => return Ok(false),
            Err(Errno::MFILE) if !self.reserve.is_empty() => {
                self.reserve.clear();
                // The handler sends the same message again, and that is the last.
                if self.answer(NO_ROOM, &[]) {
                    self.receive_message()?;
                }
                return Err(Error::io("cannot receive from the handler", "socket", Errno::MFILE.into())
                    .advice("allow more open files"));
            }
            Err(errno) => return Err(Error::io("cannot receive from the handler", "socket", errno.into())),
        };
        let argument = u32::from_le_bytes([message[1], message[2], message[3], message[4]]);
        let mut descriptors = received.descriptors.into_iter();
        let mut attached =
            || descriptors.next().ok_or_else(|| Error::new(Kind::Internal, "the handler sent no descriptor"));
        let receipt = match message[0] {
            DEPOSIT => {
                let space = Descriptor::Space(UserFault::trust(attached()?));
                let pid = i32::try_from(argument).ok().and_then(Pid::from_raw);
                let target = pid.zip(descriptors.next()).map(|(pid, pidfd)| Target::adopt(pid, pidfd));
                self.add(space, target)
            }
            DEPOSIT_FORKED => {
                let space = Descriptor::Space(UserFault::trust(attached()?));
                let receipt = self.add(space, None);
                self.join_tree(receipt, argument);
                self.next_search.get_or_insert_with(|| Instant::now() + FORK_DELAY);
                receipt
            }
            RELEASE => {
                self.release(argument);
                argument
            }
            DEPOSIT_LISTENER => self.add(Descriptor::Listener(attached()?), None),
            ACCEPT => return self.accept(argument),
            CLAIM => {
                self.claim(argument);
                argument
            }
            other => return Err(Error::new(Kind::Internal, format!("the handler sent message {other}"))),
        };
        Ok(self.answer(receipt, &[]))
    }

    /// Opens the processes that were forked meanwhile.
    fn search_for_children(&mut self) {
        for ProcessTree { root, descendants } in self.trees.values_mut() {
            if let Err(error) = open_descendants(root, descendants) {
                tracing::warn!(%error, "a forked child may be missed");
            }
        }
    }

    /// Adds a deposit, with the process that runs on it, and returns its receipt.
    fn add(&mut self, descriptor: Descriptor, target: Option<Target>) -> u32 {
        self.last_receipt += 1;
        let receipt = self.last_receipt;
        self.deposits.insert(receipt, Deposit { descriptor, tree: receipt });
        self.trees.extend(target.map(|root| (receipt, ProcessTree { root, descendants: Vec::new() })));
        receipt
    }

    /// Notes that the processes that run on one deposit descend from those that run on another.
    fn join_tree(&mut self, receipt: u32, parent: u32) {
        let Some(tree) = self.deposits.get(&parent).map(|parent| parent.tree) else { return };
        if let Some(deposit) = self.deposits.get_mut(&receipt) {
            deposit.tree = tree;
        }
    }

    fn release(&mut self, receipt: u32) {
        let Some(Deposit { tree, .. }) = self.deposits.remove(&receipt) else { return };
        if self.deposits.values().all(|other| other.tree != tree) {
            self.trees.remove(&tree);
        }
    }

    /// Sends an answer. False when the handler has died, which the next receive finds as well.
    fn answer(&self, receipt: u32, attached: &[BorrowedFd<'_>]) -> bool {
        send(&self.connection, &receipt.to_le_bytes(), attached).is_ok()
    }

    /// Accepts a connection, if one waits, and gives the handler a copy.
    fn accept(&mut self, listener: u32) -> Result<bool> {
        let accepted = match self.deposits.get(&listener) {
            Some(Deposit { descriptor: Descriptor::Listener(listener), .. }) => accept(listener)?,
            _ => None,
        };
        let Some(connection) = accepted else { return Ok(self.answer(NO_RECEIPT, &[])) };
        let receipt = self.add(Descriptor::Connection(connection), None);
        Ok(self.answer(receipt, &[self.deposits[&receipt].descriptor.as_fd()]))
    }

    /// The process on the other end of a connection runs on the memory that comes on it.
    fn claim(&mut self, receipt: u32) {
        let Some(deposit) = self.deposits.get(&receipt) else { return };
        match peer_of(&deposit.descriptor) {
            Ok(root) => {
                self.trees.insert(deposit.tree, ProcessTree { root, descendants: Vec::new() });
            }
            // The handler opened that process when it took the connection.
            Err(error) => tracing::warn!(%error, "the process of a connection is gone"),
        }
    }

    /// Kills the processes that run on memory in escrow, and the handler. Returns, and closes the copies, only when all
    /// of their address spaces have ended.
    fn stop_all(mut self, handler: &mut Child) -> Result<Vec<i32>> {
        self.reserve.clear();
        let mut killed = self.kill_trees();
        // The handler is killed only now: the descriptor of a forked child may be in flight, and the handler has it
        // open.
        self.receive_remaining(MESSAGE_TIMEOUT);
        // Also a handler that merely closed the connection, which could go on filling pages.
        let stopped = handler.kill();
        self.receive_remaining(HANDLER_END_TIMEOUT);
        self.take_undeposited_memory();
        killed.append(&mut self.kill_trees());
        // A connection has no address space of its own.
        let spaces = self.deposits.values().filter_map(|deposit| match &deposit.descriptor {
            Descriptor::Space(space) => Some(space),
            Descriptor::Connection(_) | Descriptor::Listener(_) => None,
        });
        wait_for_end(spaces.collect());
        stopped.map_err(|error| Error::io("cannot stop the handler", handler.id(), error))?;
        Ok(killed.into_iter().collect())
    }

    /// Receives the remaining messages of the handler, until none comes for `timeout`.
    fn receive_remaining(&mut self, timeout: Duration) {
        while wait_readable(&self.connection, Instant::now() + timeout).unwrap_or(false) {
            match self.receive_message() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "the memory of a forked child may be lost");
                    return;
                }
            }
        }
    }

    /// Takes the userfaultfds that came on connections and that the handler has not deposited: their processes are
    /// killed.
    fn take_undeposited_memory(&mut self) {
        let mut connections = Vec::new();
        for deposit in self.deposits.values() {
            match &deposit.descriptor {
                Descriptor::Space(_) => {}
                Descriptor::Connection(connection) => connections.extend(connection.try_clone()),
                Descriptor::Listener(listener) => {
                    refuse(listener);
                    connections.extend(std::iter::from_fn(|| accept(listener).unwrap_or_default()));
                }
            }
        }
        for connection in connections {
            for space in take_memory(&connection) {
                self.add(Descriptor::Space(space), peer_of(&connection).ok());
            }
        }
    }

    /// Kills all processes that run on deposits and waits a moment for their ends. Returns the numbers of those that
    /// were still there.
    fn kill_trees(&mut self) -> BTreeSet<i32> {
        let mut killed = BTreeSet::new();
        for tree in self.trees.values_mut() {
            let (members, outcome) = kill_tree(&tree.root, &mut tree.descendants);
            killed.extend(members);
            if let Err(error) = outcome {
                // The faults of a process that lives on keep waiting: the copies stay open until it has ended.
                tracing::error!(%error, "not everybody was killed who runs on memory without its handler");
            }
        }
        if !killed.is_empty() {
            tracing::warn!(?killed, "the handler is gone: what ran on its memory was killed");
        }
        wait_for_ends(self.trees.values().flat_map(ProcessTree::members));
        // Room for descriptors that the handler may still deposit.
        self.trees.values_mut().for_each(|tree| tree.descendants.clear());
        killed
    }
}

impl ProcessTree {
    /// The root first.
    fn members(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.root).chain(&self.descendants)
    }
}
