//! The process that runs on served memory: watched and, when its memory can no longer be served, killed.
//!
//! It is opened by pidfd as soon as its number is known, so a process that reuses the number is never hit.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroI32;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use store::{Error, Kind, Result};

use crate::socket::wait_readable;
use crate::sys;

/// How long killed processes are waited for.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How long processes may take to stop before they count as stopped: one that waits in the kernel for a page does not
/// stop, and does not finish a fork either; nor does one whose child runs in its memory and was stopped.
const HALT_TIMEOUT: Duration = Duration::from_millis(50);
/// Descriptors that listing processes takes at a time.
const LISTING: usize = 3;

/// A process, by pidfd.
#[derive(Debug)]
pub(crate) struct Target {
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
    /// Opens a running process.
    ///
    /// # Errors
    /// `NotFound` when no process has this number.
    pub(crate) fn open(pid: Pid) -> Result<Self> {
        let what = "cannot take hold of a process";
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Self { pid, descriptor }),
            Err(Errno::SRCH) => Err(Error::new(Kind::NotFound, what).object(pid.as_raw_nonzero())),
            Err(errno) => Err(Error::io(what, pid.as_raw_nonzero(), errno.into())),
        }
    }

    /// Takes over a pidfd that another process opened.
    pub(crate) fn adopt(pid: Pid, descriptor: OwnedFd) -> Self {
        Self { pid, descriptor }
    }

    /// The process number.
    pub(crate) fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Kills the process, and returns whether it was still there.
    pub(crate) fn kill(&self) -> Result<bool> {
        match rustix::process::pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(Error::io("cannot kill a process", self.pid.as_raw_nonzero(), errno.into())
                .advice("kill it by hand: its memory is incomplete")),
        }
    }

    /// Stops the process, and returns whether all its threads are stopped already.
    fn halt(&self) -> Result<bool> {
        match rustix::process::pidfd_send_signal(&self.descriptor, Signal::STOP) {
            // A thread that ends while it is read leaves the answer open.
            Ok(()) => Ok(is_stopped(self.pid).unwrap_or_else(|error| is_gone(&error) && self.has_ended())),
            Err(Errno::SRCH) => Ok(true),
            Err(errno) => Err(Error::io("cannot stop a process", self.pid.as_raw_nonzero(), errno.into())),
        }
    }

    /// Whether the process has ended; another process may have its number then.
    pub(crate) fn has_ended(&self) -> bool {
        wait_readable(self, Instant::now()).unwrap_or(false)
    }

    /// Kills the process and its present descendants, and waits a moment for their end.
    ///
    /// # Errors
    /// When one may live on. All others are killed in any case.
    pub(crate) fn kill_tree(&self) -> Result<()> {
        let mut descendants = Vec::new();
        let killed = kill_tree(self, &mut descendants).1;
        wait_for_ends(descendants.iter().chain([self]));
        killed
    }
}

/// Kills a process, its known descendants, and the present descendants of all of these, which are added to `known`.
/// Does not wait for their end. Returns the numbers of those that were still there.
pub(crate) fn kill_tree(root: &Target, known: &mut Vec<Target>) -> (BTreeSet<i32>, Result<()>) {
    let mut killed = BTreeSet::new();
    let mut kill = |one: &Target| one.kill().map(|was_there| killed.extend(was_there.then(|| one.number())));
    // Children are found before the parent dies: afterwards they have another parent. But an error with one must not
    // save the others: processes that cannot be opened are listed at least.
    let listed = match halt_tree(root, known) {
        Ok(()) => Ok(Vec::new()),
        Err(error) => {
            tracing::warn!(%error, "not everybody was stopped before they are killed: a child may be missed");
            unknown_descendants(root, known)
        }
    };
    let (found, mut outcome) = match listed {
        Ok(found) => (found, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    for pid in found {
        let mut opened = Target::open(pid);
        while is_refused(&opened)
            && let Some(other) = known.pop()
        {
            // There may be no room for another descriptor: close one.
            outcome = outcome.and(kill(&other));
            drop(other);
            opened = Target::open(pid);
        }
        match opened {
            Ok(one) => {
                outcome = outcome.and(kill(&one));
                known.push(one);
            }
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    // Children first: when a parent ends, the kernel may continue its stopped children.
    outcome = known.iter().rev().chain([root]).map(&mut kill).fold(outcome, Result::and);
    (killed, outcome)
}

/// Stops a process, its known descendants, and the present descendants of all of these, which are added to `known`:
/// while one runs, it may fork a child that no list shows yet.
///
/// # Errors
/// When one may have been missed. `known` has those that were stopped in any case.
fn halt_tree(root: &Target, known: &mut Vec<Target>) -> Result<()> {
    // Closed at the end: should there be no room to open all processes, there is room to list them.
    let _room: Vec<OwnedFd> = (0..LISTING).filter_map(|_| root.descriptor.try_clone().ok()).collect();
    let (begun, mut last_found) = (Instant::now(), Instant::now());
    loop {
        let mut all_stopped = true;
        for one in std::iter::once(root).chain(known.iter()) {
            all_stopped &= one.halt()?;
        }
        if !all_stopped && last_found.elapsed() < HALT_TIMEOUT {
            std::thread::yield_now();
            continue;
        }
        if open_descendants(root, known)? == 0 {
            return Ok(());
        }
        last_found = Instant::now();
        if begun.elapsed() > END_TIMEOUT {
            return Err(Error::new(Kind::Unavailable, "processes are forked faster than they are stopped"));
        }
    }
}

/// Whether a process that could not be opened may exist.
fn is_refused(opened: &Result<Target>) -> bool {
    opened.as_ref().is_err_and(|error| error.kind() != Kind::NotFound)
}

/// Waits a moment for the end of killed processes.
pub(crate) fn wait_for_ends<'a>(killed: impl Iterator<Item = &'a Target>) {
    let deadline = Instant::now() + END_TIMEOUT;
    for one in killed {
        // A process that takes longer hangs in the kernel, and runs no instruction of its own any more.
        if let Err(error) = wait_readable(one, deadline) {
            tracing::warn!(%error, "the end of a killed process was not waited for");
        }
    }
}

/// Opens every process that descends from `root`, or from a known one, and adds it to `known`; returns how many were
/// new.
///
/// # Errors
/// When one may have been missed.
pub(crate) fn open_descendants(root: &Target, known: &mut Vec<Target>) -> Result<usize> {
    let found = unknown_descendants(root, known)?;
    let before = known.len();
    for pid in found {
        match Target::open(pid) {
            Ok(one) => known.push(one),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(known.len() - before)
}

/// Lists every process that descends from `root`, or from a known one, and is not known yet. Drops known ones that have
/// ended.
fn unknown_descendants(root: &Target, known: &mut Vec<Target>) -> Result<Vec<Pid>> {
    let mut parents = parents()?;
    // This process must not stop and kill itself, should it descend from the root.
    parents.retain(|(pid, _)| *pid != rustix::process::getpid());
    // Checked after the list was made: a process that is alive now had its number when the list was made.
    known.retain(|one| !one.has_ended());
    let living = known.iter().chain([root]).filter(|one| !one.has_ended());
    Ok(below(living.map(|one| one.pid.as_raw_nonzero()).collect(), &parents))
}

/// Every visible process, with its parent.
fn parents() -> Result<Vec<(Pid, Pid)>> {
    let failed = |error| Error::io("cannot list processes", "/proc", error);
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        match std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
            Ok(stat) => parents.extend(parent_in(&stat).map(|parent| (pid, parent))),
            // It ended while the list was read, and needs no killing.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(parents)
}

/// The visible processes that have memory registered with a userfaultfd, and its address ranges.
pub(crate) fn waiting_for_pages() -> BTreeMap<i32, Vec<Range<u64>>> {
    let listed = parents().unwrap_or_default().into_iter().map(|(pid, _)| pid.as_raw_nonzero().get());
    let with_ranges = listed.map(|pid| {
        let maps = std::fs::read(format!("/proc/{pid}/smaps")).unwrap_or_default();
        (pid, waiting_in(&String::from_utf8_lossy(&maps)))
    });
    with_ranges.filter(|(_, ranges)| !ranges.is_empty()).collect()
}

/// The mappings in a `/proc/PID/smaps` text with the flag `um`: userfaultfd, missing pages.
fn waiting_in(maps: &str) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut current = 0..0;
    for line in maps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if flags.split_ascii_whitespace().any(|flag| flag == "um") {
                ranges.push(current.clone());
            }
        } else if let Some((start, rest)) = line.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
            && let Some(Ok(end)) = rest.split(' ').next().map(|end| u64::from_str_radix(end, 16))
        {
            current = start..end;
        }
    }
    ranges
}

/// The descendants of the known processes, without these, parents before children.
fn below(mut known: BTreeSet<NonZeroI32>, parents: &[(Pid, Pid)]) -> Vec<Pid> {
    let mut found = Vec::new();
    loop {
        let before = found.len();
        for (pid, parent) in parents {
            if known.contains(&parent.as_raw_nonzero()) && known.insert(pid.as_raw_nonzero()) {
                found.push(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Whether all threads of a process are stopped or have ended.
fn is_stopped(pid: Pid) -> std::io::Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))? {
        let stat = std::fs::read(thread?.path().join("stat"))?;
        if !matches!(fields_of(&stat).next(), Some("T" | "t" | "Z" | "X")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a file of a process could not be read because the process has ended.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

/// The parent named in a `/proc/PID/stat` line.
fn parent_in(stat: &[u8]) -> Option<Pid> {
    fields_of(stat).nth(1)?.parse().ok().and_then(Pid::from_raw)
}

/// The process group of a process; `None` when the process is gone, or when the group is of another pid namespace and
/// has no number in this one. (`getpgid` of rustix panics on the 0 that the kernel returns then.)
pub(crate) fn group_of(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    group_in(&stat)
}

/// The process group named in a `/proc/PID/stat` line.
fn group_in(stat: &[u8]) -> Option<Pid> {
    fields_of(stat).nth(2)?.parse().ok().and_then(Pid::from_raw)
}

/// The fields of a `/proc/PID/stat` line from the state on; the command name before it may have any bytes.
fn fields_of(stat: &[u8]) -> impl Iterator<Item = &str> {
    let after_name = stat.iter().rposition(|byte| *byte == b')').map_or(stat.len(), |place| place + 1);
    std::str::from_utf8(&stat[after_name..]).unwrap_or_default().split_ascii_whitespace()
}

/// The process that connected the other end of a socket.
///
/// # Errors
/// `Unavailable` when the process is gone or out of sight, as in another pid namespace.
pub(crate) fn peer_of(socket: impl AsFd) -> Result<Target> {
    let out_of_sight = || Error::new(Kind::Unavailable, "the process that connected is gone or out of sight");
    let pid = sys::peer(&socket).map_err(|errno| out_of_sight().caused_by(std::io::Error::from(errno)))?;
    Target::open(pid.ok_or_else(out_of_sight)?).map_err(|error| out_of_sight().caused_by(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_and_group_are_read_past_a_hostile_name() {
        let pid = |stat: &[u8]| parent_in(stat).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(pid(b"12 (a) R 7 (b) 1) S 34 12 12 0"), Some(34));
        assert_eq!(pid(b"12 (sh) S 0 12"), None);
        assert_eq!(pid(b"12 (sh"), None);
        assert_eq!(pid(b""), None);
        let group = |stat: &[u8]| group_in(stat).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(group(b"12 (a) R 7 (b) 1) S 34 56 12 0"), Some(56));
        assert_eq!(group(b"12 (sh) S 34 0 0"), None, "a group of another namespace");
    }

    #[test]
    fn mappings_that_wait_are_found() {
        let maps = "7f00-8000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd wr um sd\n\
                    9000-a000 r--p 00000000 00:00 0  /a-b um\nVmFlags: rd mr\n\
                    ffffa000-ffffb000 rw-p 00000000 00:00 0\nVmFlags: um\n";
        assert_eq!(waiting_in(maps), [0x7F00..0x8000, 0xFFFF_A000..0xFFFF_B000]);
        assert!(waiting_in("").is_empty());
    }

    #[test]
    fn a_tree_that_keeps_forking_is_killed_completely() {
        use std::os::unix::process::CommandExt;
        let forking = "echo ready; i=0; while [ $i -lt 300 ]; do sleep 60 & i=$((i+1)); done; wait";
        for _ in 0..5 {
            let mut shell = std::process::Command::new("sh")
                .args(["-c", forking])
                .stdout(std::process::Stdio::piped())
                .process_group(0)
                .spawn()
                .expect("sh");
            let mut line = [0; 6];
            std::io::Read::read_exact(shell.stdout.as_mut().expect("piped"), &mut line).expect("ready");
            let target = Target::open(Pid::from_raw(shell.id() as i32).expect("pid")).expect("opened");
            target.kill_tree().expect("killed");
            assert_eq!(running_in_group(shell.id()), Vec::<String>::new());
            shell.wait().expect("reaped");
        }
    }

    /// The `/proc/PID/stat` of each process of a group that has not ended.
    fn running_in_group(group: u32) -> Vec<String> {
        let entries = std::fs::read_dir("/proc").expect("listed").flatten();
        let stats = entries.flat_map(|entry| std::fs::read(entry.path().join("stat")));
        let of_group = stats.filter(|stat| {
            let fields: Vec<&str> = fields_of(stat).collect();
            matches!(fields[..], [state, _, number, ..] if number == group.to_string() && !"ZX".contains(state))
        });
        of_group.map(|stat| String::from_utf8_lossy(&stat).into_owned()).collect()
    }

    #[test]
    fn the_killing_process_is_not_found_in_the_tree() {
        let parent = Target::open(rustix::process::getppid().expect("a parent")).expect("opened");
        let found = unknown_descendants(&parent, &mut Vec::new()).expect("listed");
        assert!(!found.contains(&rustix::process::getpid()));
    }

    #[test]
    fn a_tree_of_processes_is_killed_completely() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & sleep 1000 & echo ready; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let mut line = [0; 6];
        std::io::Read::read_exact(shell.stdout.as_mut().expect("piped"), &mut line).expect("ready");
        let pid = Pid::from_raw(shell.id() as i32).expect("pid");
        let target = Target::open(pid).expect("opened");
        let children = unknown_descendants(&target, &mut Vec::new()).expect("listed");
        let mut children: Vec<Target> =
            children.into_iter().map(|pid| Target::open(pid).expect("opened")).collect();
        assert_eq!(children.len(), 2);
        assert!(unknown_descendants(&target, &mut children).expect("listed").is_empty());
        target.kill_tree().expect("killed");
        shell.wait().expect("reaped");
        for child in children {
            assert!(wait_readable(&child, Instant::now()).expect("polled"), "a child runs on");
        }
        assert!(!target.kill().expect("gone"));
    }
}
