//! The process that outlives its handler: it keeps a copy of every descriptor that fills memory.
//!
//! Why: when the last copy of a userfaultfd closes, every fault that waits and every page still missing becomes a zero
//! page, without an error to anyone. So the handler runs as a child of a supervisor, hands each descriptor over and waits
//! for the receipt before it fills a page. When the handler is gone with anything still in custody, the supervisor kills
//! the processes that run on that memory, waits until their address spaces have ended, and only then closes the copies.
//!
//! The supervisor never reads faults, never touches the store, and parses nothing but the fixed messages below. It must
//! not be killed itself; interrupt and termination signals make it stop the handler first.
//!
//! Messages of the handler, one datagram each: `1, process number (i32 little-endian, 0 = none)` with the descriptor and
//! the process's pidfd attached, answered by a receipt number (u32); `2, receipt number (u32)`, answered by the same.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use store::{Error, Kind, Result};

use crate::socket::{Received, receive, send};
use crate::sys::UserFault;
use crate::target::Target;

const HOLD: u8 = 1;
const RELEASE: u8 = 2;
const MESSAGE_BYTES: usize = 5;
/// How often killed address spaces are looked at until they have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
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
        let pid = target.map_or(0, |target| target.pid().as_raw_nonzero().get());
        let mut attached = vec![descriptor];
        attached.extend(target.map(AsFd::as_fd));
        self.ask(HOLD, pid.to_le_bytes(), &attached).map(Held)
    }

    /// Takes a descriptor out of custody: nothing can go wrong with its memory any more.
    pub(crate) fn release(&self, held: Held) {
        if let Err(error) = self.ask(RELEASE, held.0.to_le_bytes(), &[]) {
            // Without a supervisor there is no copy left to close.
            tracing::warn!(%error, "a descriptor was not taken out of custody");
        }
    }

    fn ask(&self, kind: u8, argument: [u8; 4], attached: &[BorrowedFd<'_>]) -> Result<u32> {
        let mut message = [kind; MESSAGE_BYTES];
        message[1..].copy_from_slice(&argument);
        let lost = |source: std::io::Error| {
            Error::new(Kind::Unavailable, "the supervisor is gone").caused_by(source).advice("resume again")
        };
        send(&self.socket, &message, attached).map_err(|errno| lost(errno.into()))?;
        let mut answer = [0; 4];
        let received =
            receive(&self.socket, &mut answer, RecvFlags::empty()).map_err(|errno| lost(errno.into()))?;
        if received.len_bytes != answer.len() {
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(u32::from_le_bytes(answer))
    }
}

/// How a supervised handler ended.
#[derive(Debug)]
pub struct Supervised {
    /// Of the handler.
    pub status: ExitStatus,
    /// Processes that were killed because their memory could no longer be served, by number. Empty after a clean end.
    pub killed: Vec<i32>,
}

/// One thing in custody: a userfaultfd, or a connection on which more of them may be under way.
struct Guarded {
    descriptor: OwnedFd,
    target: Option<Target>,
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
    let program = command.get_program().to_owned();
    let mut child = command
        .stdin(theirs)
        .spawn()
        .map_err(|error| Error::io("cannot start the handler", program.display(), error))?;
    // The command owns the child's end; while it lives, the line would never report an end.
    drop(command);
    let mut guarded = BTreeMap::new();
    let served = attend(&ours, &interrupted, &mut guarded);
    if !guarded.is_empty() || served.is_err() || interrupted.load(Ordering::Relaxed) {
        // A handler that merely closed the line could go on filling: its work is over.
        child.kill().map_err(|error| Error::io("cannot stop the handler", child.id(), error))?;
    }
    let killed = stop_all(guarded);
    let status =
        child.wait().map_err(|error| Error::io("cannot wait for the handler", program.display(), error))?;
    served.map(|()| Supervised { status, killed })
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

/// Takes and returns descriptors until the handler is gone or this process is asked to end.
fn attend(line: &OwnedFd, interrupted: &AtomicBool, guarded: &mut BTreeMap<u32, Guarded>) -> Result<()> {
    let mut next = 0;
    while !interrupted.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&ROUND)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(Error::io("cannot wait for the handler", "poll", errno.into())),
        }
        let mut message = [0; MESSAGE_BYTES];
        let received = match receive(line, &mut message, RecvFlags::empty()) {
            Ok(received) if received.len_bytes == 0 => return Ok(()),
            Ok(received) => received,
            Err(Errno::CONNRESET) => return Ok(()),
            Err(errno) => return Err(Error::io("cannot hear the handler", "socket", errno.into())),
        };
        let argument = [message[1], message[2], message[3], message[4]];
        let receipt = match message[0] {
            HOLD => {
                next += 1;
                guarded.insert(next, guard(received, i32::from_le_bytes(argument))?);
                next
            }
            RELEASE => {
                let receipt = u32::from_le_bytes(argument);
                guarded.remove(&receipt);
                receipt
            }
            other => return Err(Error::new(Kind::Internal, format!("the handler sent message {other}"))),
        };
        // A handler that died before its answer shows as the end of the line in the next round.
        if send(line, &receipt.to_le_bytes(), &[]).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn guard(received: Received, pid: i32) -> Result<Guarded> {
    let mut descriptors = received.descriptors.into_iter();
    let descriptor =
        descriptors.next().ok_or_else(|| Error::new(Kind::Internal, "the handler sent no descriptor"))?;
    let target = Pid::from_raw(pid).zip(descriptors.next()).map(|(pid, pidfd)| Target::adopt(pid, pidfd));
    Ok(Guarded { descriptor, target })
}

/// Kills everything that runs on memory in custody, and lets go only when all of it has ended.
fn stop_all(guarded: BTreeMap<u32, Guarded>) -> Vec<i32> {
    let mut killed = Vec::new();
    for target in guarded.values().filter_map(|guarded| guarded.target.as_ref()) {
        let pid = target.pid().as_raw_nonzero().get();
        if killed.contains(&pid) {
            continue;
        }
        tracing::warn!(pid, "the handler died: killing a process whose memory it served");
        killed.push(pid);
        if let Err(error) = target.kill_tree() {
            // Its faults go on waiting, because the copies below stay open until it has ended.
            tracing::error!(%error, "kill it by hand");
        }
    }
    // What is not a userfaultfd (a connection) has no address space of its own to outlive.
    let mut alive: Vec<UserFault> =
        guarded.into_values().filter_map(|guarded| UserFault::adopt(guarded.descriptor).ok()).collect();
    alive.retain(UserFault::is_alive);
    while !alive.is_empty() {
        // The end of an address space is not announced to whoever fills it.
        std::thread::sleep(LOOK_AGAIN);
        alive.retain(UserFault::is_alive);
    }
    killed
}
