//! Two processes that fight for one store: one is stopped at any moment of its commits, another takes the store from
//! it, and the first goes on as if nothing had happened. Nothing that it then writes counts unless all of it is there.

use crate::kill::parse;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use store::disk::{Disk, HostDisk};
use store::{Kind, SnapshotId, Store, session};
use tests::gc_fixture::{assert_files, commit};
use tests::hosts::shared_directory;
use tests::is_long;
use tests::model::{Random, assert_clean};

/// A process that writes as the host `slow`.
struct Slow {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Slow {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_write_loop"));
        let mut child = command.arg(directory).arg("host").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Stops it, and returns when it stands still.
    fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED).unwrap().expect("it stops");
    }

    fn wake(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    fn next_line(&mut self) -> String {
        self.lines.next().expect("it goes on").unwrap()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

fn has_swap_lock(directory: &Path) -> bool {
    HostDisk.is_locked(&directory.join("store/tmp/lock")).is_ok_and(|is_locked| is_locked)
}

/// The slow host's reports of its commits.
#[derive(Debug, Default)]
struct Told {
    acknowledged: Vec<SnapshotId>,
    fenced: u64,
}

impl Told {
    /// Records its output until an acknowledgement.
    fn listen(&mut self, slow: &mut Slow) {
        loop {
            match &*slow.next_line() {
                "fenced" => self.fenced += 1,
                "refused" => {}
                line => {
                    self.acknowledged.push(parse(line).1);
                    break;
                }
            }
        }
    }
}

/// Takes the store from its writer: fences every session, and collects all that no ref names.
fn take_over(fast: &Store, round: u64) -> u64 {
    let mut fenced = 0;
    for listed in session::alive(fast.sessions(), false).unwrap() {
        fenced += u64::from(session::fence(fast.metadata_tier(), &listed).unwrap());
    }
    let mut writer = fast.writer("a fast host").unwrap();
    let newest = commit(&mut writer, "fast", &[round, round + 1]).unwrap();
    drop(writer);
    fast.forget("fast", |entry| entry.snapshot != newest).unwrap();
    let kept = fast.resolve("slow").ok();
    if kept.is_some() && !round.is_multiple_of(3) {
        // Every third time the files that a stopped commit depends on are no longer named by any ref.
        fast.forget("slow", |_| round % 3 == 1).unwrap();
    }
    gc::collect(fast, &gc::CollectOptions { dry_run: false, cycles: 4 }, &store::Unwatched).unwrap();
    fenced
}

#[test]
fn a_writer_that_lost_the_store_while_it_was_stopped_writes_nothing_that_counts() {
    let rounds = if is_long() { 10_000 } else { 1_000 };
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let config = shared_directory(directory.path(), "fast");
    Store::init(&config).unwrap();
    let mut slow = Slow::start(directory.path());
    let (mut told, mut random) = (Told::default(), Random::new(10));
    let (mut taken, mut refused) = (0, 0);
    for round in 0..rounds {
        told.listen(&mut slow);
        // Any moment of the commits to come.
        let moment = random.below(2_000_000);
        (0..moment).for_each(|_| std::hint::spin_loop());
        slow.stop();
        while has_swap_lock(directory.path()) {
            // A swap of a local tier is a moment under a lock, for whose end all others wait.
            slow.wake();
            (0..1_000).for_each(|_| std::hint::spin_loop());
            slow.stop();
        }
        // On its own host its lock is held for as long as it lives.
        let same_host = Store::open(&shared_directory(directory.path(), "slow")).unwrap();
        match same_host.writer("its own host") {
            Ok(_) => {} // it was between two commits
            Err(error) => {
                assert_eq!(error.kind(), Kind::Conflict, "{error}");
                refused += 1;
            }
        }
        taken += take_over(&Store::open(&config).unwrap(), round);
        slow.wake();
        told.listen(&mut slow);
        told.listen(&mut slow);
        let store = Store::open(&config).unwrap();
        for found in store.refs().list().unwrap() {
            for entry in found.history {
                assert_files(&store, &entry.snapshot, &format!("round {round}"));
            }
        }
        if round % 50 == 49 {
            slow.stop();
            assert_clean(&store, &format!("round {round}"));
            slow.wake();
        }
    }
    println!(
        "{rounds} rounds: {taken} sessions fenced while their writer was stopped, {} commits of theirs refused, {refused} writers \
         of the same host refused, {} commits acknowledged and whole",
        told.fenced,
        told.acknowledged.len()
    );
    assert!(
        told.fenced * 20 > rounds && refused * 10 > rounds,
        "the moments are badly chosen: {taken} taken, {refused} refused"
    );
}
