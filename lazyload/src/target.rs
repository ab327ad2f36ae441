//! The process that runs on served memory: watched and, when its memory can no longer be served, killed.
//!
//! Held by pidfd from the moment its number is learned, so a reused number is never hit.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use store::{Error, Kind, Result};

use crate::socket::wait_readable;
use crate::sys;

/// How long killed processes may take to end before nobody waits for them any more.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A process, by pidfd.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    descriptor: OwnedFd,
}

impl AsFd for Target {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Target {
    /// Takes hold of a running process.
    ///
    /// # Errors
    /// `NotFound` when there is none with this number.
    pub fn open(pid: Pid) -> Result<Self> {
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
            Error::io("cannot take hold of a process", pid.as_raw_nonzero(), errno.into())
        })?;
        Ok(Self { pid, descriptor })
    }

    /// Takes over a pidfd that another process opened.
    pub fn adopt(pid: Pid, descriptor: OwnedFd) -> Self {
        Self { pid, descriptor }
    }

    /// The process number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills the process, and tells whether it was still there.
    pub fn kill(&self) -> Result<bool> {
        match rustix::process::pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(errno) => Err(Error::io("cannot kill a process", self.pid.as_raw_nonzero(), errno.into())
                .advice("kill it by hand: its memory is incomplete")),
        }
    }

    /// Kills the process and all that descend from it now, and waits a moment for their end.
    pub fn kill_tree(&self) -> Result<()> {
        // Children are listed before the parent dies: afterwards they would belong to somebody else.
        let descendants: Vec<Self> =
            descendants(self.pid)?.into_iter().filter_map(|pid| Self::open(pid).ok()).collect();
        if !self.kill()? {
            // Its number may be another process's by now, and the list above that one's children.
            return Ok(());
        }
        descendants.iter().try_for_each(|descendant| descendant.kill().map(drop))?;
        let deadline = Instant::now() + END_TIMEOUT;
        for killed in descendants.iter().chain([self]) {
            // One that takes longer hangs in the kernel, and runs no instruction of its own any more.
            wait_readable(killed, deadline)?;
        }
        Ok(())
    }
}

/// All processes below one, parents before children.
fn descendants(root: Pid) -> Result<Vec<Pid>> {
    let listed =
        std::fs::read_dir("/proc").map_err(|error| Error::io("cannot list processes", "/proc", error))?;
    let mut parents = Vec::new();
    for entry in listed {
        let name = entry.map_err(|error| Error::io("cannot list processes", "/proc", error))?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // A process that ends while the list is read has no parent any more, and needs no killing.
        if let Ok(stat) = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero()))
            && let Some(parent) = parent_in(&stat)
        {
            parents.push((pid, parent));
        }
    }
    let mut known = BTreeSet::from([root.as_raw_nonzero()]);
    let mut found = Vec::new();
    loop {
        let before = found.len();
        for (pid, parent) in &parents {
            if known.contains(&parent.as_raw_nonzero()) && known.insert(pid.as_raw_nonzero()) {
                found.push(*pid);
            }
        }
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// The parent named in a `/proc/PID/stat` line; the command name before it may hold anything.
fn parent_in(stat: &[u8]) -> Option<Pid> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(&stat[after_name..]).ok()?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok().and_then(Pid::from_raw)
}

/// The process that connected the other end of a socket.
///
/// # Errors
/// `Unavailable` when it is gone or cannot be seen from here, as from another pid namespace.
pub fn peer_of(socket: impl AsFd) -> Result<Target> {
    let out_of_sight = || Error::new(Kind::Unavailable, "the process that connected is gone or out of sight");
    let pid = sys::peer(&socket).map_err(|errno| out_of_sight().caused_by(std::io::Error::from(errno)))?;
    Target::open(pid.ok_or_else(out_of_sight)?).map_err(|error| out_of_sight().caused_by(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_is_read_past_a_hostile_name() {
        let pid = |stat: &[u8]| parent_in(stat).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(pid(b"12 (a) R 7 (b) 1) S 34 12 12 0"), Some(34));
        assert_eq!(pid(b"12 (sh) S 0 12"), None);
        assert_eq!(pid(b"12 (sh"), None);
        assert_eq!(pid(b""), None);
    }

    #[test]
    fn a_tree_of_processes_is_killed_whole() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & sleep 1000 & echo ready; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let mut line = [0; 6];
        std::io::Read::read_exact(shell.stdout.as_mut().expect("piped"), &mut line).expect("ready");
        let pid = Pid::from_raw(shell.id() as i32).expect("pid");
        let open = |pid: Pid| Target::open(pid).expect("opened");
        let children: Vec<Target> = descendants(pid).expect("listed").into_iter().map(open).collect();
        assert_eq!(children.len(), 2);
        let target = open(pid);
        target.kill_tree().expect("killed");
        shell.wait().expect("reaped");
        for child in children {
            assert!(wait_readable(&child, Instant::now()).expect("polled"), "a child runs on");
        }
        assert!(!target.kill().expect("gone"));
    }
}
