//! One process writes at a time, is named, and others wait for it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use store::{FileLock, Store, StoreConfig};
use tests::snapctl::{Place, fingerprint};

use crate::mounts::Mounted;
use crate::sample;
use crate::signals::await_lock;

#[test]
fn a_locked_store_is_read_by_all_and_written_by_none() {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let memory = place.path("memory");
    fs::write(&memory, sample::noise(5, 1 << 16)).unwrap();

    let store = Store::open(&StoreConfig::directory(&place.store)).unwrap();
    let writer = store.writer("the test").unwrap();
    let before = fingerprint(&place.store);
    let holder = format!("the test (pid {})", std::process::id());
    let backup = ["backup".as_ref(), source.as_os_str(), "web".as_ref(), "--wait=0".as_ref()];
    let error = place.run(backup).expect(2).complains(&holder);
    assert!(error.stderr.contains("wait"), "{}", error.stderr);
    place
        .run([
            "capture".as_ref(),
            "--raw".as_ref(),
            memory.as_os_str(),
            "memory".as_ref(),
            "--wait=0".as_ref(),
        ])
        .expect(2)
        .complains(&holder);
    for reading in
        [["snapshots"].as_slice(), &["ls", "-R", "web"], &["cat", "web:hello.txt"], &["check"], &["stats"]]
    {
        place.run(reading).expect(0);
    }
    let target = place.path("target");
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    assert_eq!(fingerprint(&place.store), before);

    drop(writer);
    place.run(backup).expect(0);
}

#[test]
fn one_collector_works_at_a_time() {
    let place = Place::with_store();
    let before = fingerprint(&place.store);
    let lock = FileLock::take(&place.store.join("local/gc.lock"), "the test").unwrap();
    for arguments in [
        ["gc", "--wait", "0"].as_slice(),
        &["gc", "--wait=0", "--cycles", "3"],
        &["index", "rebuild", "--wait=0"],
    ] {
        place.run(arguments).expect(2).complains("the test (pid ");
    }
    place.run(["gc", "--dry-run"]).expect(0);
    assert_eq!(fingerprint(&place.store), before);
    drop(lock);
    place.run(["gc"]).expect(0);
}

/// A command under way that has reported on standard error that it waits, and for which process.
struct Waiting {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Waiting {
    fn start(place: &Place, typed: &[&std::ffi::OsStr], holder: &str) -> Waiting {
        let mut command = place.command(typed);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains(&format!("waiting for {holder}")) && line.contains("local/lock"), "{line}");
        Waiting { child, stderr }
    }

    fn expect_success(mut self) {
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        assert!(status.success(), "{rest}");
    }
}

#[test]
fn two_backups_that_wait_for_a_third_writer_both_succeed() {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    let store = Store::open(&StoreConfig::directory(&place.store)).unwrap();
    let writer = store.writer("the test").unwrap();
    let holder = format!("the test (pid {}), at most 100 s", std::process::id());
    let waiting = ["one", "two"].map(|name| {
        Waiting::start(
            &place,
            &["backup".as_ref(), source.as_os_str(), name.as_ref(), "--wait=100".as_ref()],
            &holder,
        )
    });
    drop(writer);
    waiting.into_iter().for_each(Waiting::expect_success);
    for name in ["one", "two"] {
        let target = place.path(name);
        place.run(["restore".as_ref(), name.as_ref(), target.as_os_str()]).expect(0);
        sample::assert_same(&source, &target);
    }
}

/// As one on a full disk does, or one that has only just begun.
#[test]
fn a_holder_without_a_name_is_waited_for_aloud() {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    let path = place.store.join("local/lock");
    let lock = FileLock::take(&path, "the test").unwrap();
    fs::write(&path, "").unwrap();
    let holder = format!("a process that has not said its name (pid {}), at most 100 s", std::process::id());
    let typed = ["backup".as_ref(), source.as_os_str(), "web".as_ref(), "--wait=100".as_ref()];
    let waiting = Waiting::start(&place, &typed, &holder);
    drop(lock);
    waiting.expect_success();
    place.run(["cat", "web:hello.txt"]).expect(0);
}

#[test]
fn a_holder_that_is_killed_lets_the_next_one_in() {
    let place = Place::with_store();
    let (small, big) = (place.path("small"), place.path("big"));
    sample::make(&small);
    fs::create_dir(&big).unwrap();
    fs::write(big.join("noise"), sample::noise(7, 48 << 20)).unwrap();
    let mut first = place.command(["backup".as_ref(), big.as_os_str(), "web".as_ref()]);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    await_lock(&place, &mut first);
    let pid = Pid::from_child(&first);
    kill_process(pid, Signal::STOP).unwrap();
    let holder = format!("backup web (pid {})", first.id());
    let second = ["backup".as_ref(), small.as_os_str(), "web".as_ref(), "--wait".as_ref(), "100".as_ref()];
    let second = Waiting::start(&place, &second, &holder);
    kill_process(pid, Signal::KILL).unwrap();
    first.wait().unwrap();
    second.expect_success();
    place.run(["cat", "web:hello.txt"]).expect(0);
}

#[test]
fn a_freeze_waits_for_a_writer_and_nobody_waits_for_the_freeze() {
    let mounted = Mounted::new();
    let upper = mounted.place.path("upper");
    mounted.run(&["mount", "web", "DIR", "--upper", upper.to_str().unwrap(), "--wait=100"]).expect(0);
    let store = Store::open(&StoreConfig::directory(&mounted.place.store)).unwrap();
    let writer = store.writer("the test").unwrap();
    let holder = format!("the test (pid {})", std::process::id());
    fs::write(mounted.directory.join("before"), "before").unwrap();
    mounted.run(&["freeze", "DIR", "--wait", "0"]).expect(2).complains(&holder);

    let freeze = ["freeze".as_ref(), mounted.directory.as_os_str()];
    let mut freeze = mounted.place.command(freeze).stdout(Stdio::null()).spawn().unwrap();
    let log = upper.join("log");
    while !fs::read_to_string(&log).unwrap_or_default().contains("waiting for the test") {
        assert!(freeze.try_wait().unwrap().is_none(), "the freeze did not wait");
        std::thread::yield_now();
    }
    // While the freeze waits, the mount serves changes and answers other calls.
    fs::write(mounted.directory.join("meanwhile"), "meanwhile").unwrap();
    mounted.run(&["freeze", "DIR", "--wait", "0"]).expect(2).complains(&holder);
    drop(writer);
    assert!(freeze.wait().unwrap().success());
    for name in ["before", "meanwhile"] {
        assert_eq!(mounted.run(&["cat", &format!("web:{name}")]).expect(0).text(), name);
    }
    mounted.run(&["umount", "DIR"]).expect(0);
}
