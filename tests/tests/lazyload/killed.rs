//! Handlers killed at any moment: the processes they served see right pages or die, never a zero page.
//!
//! The last test is the control: without a supervisor the same death does produce zero pages, and they are found.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lazyload::criu;
use rustix::process::{Pid, Signal, kill_process};
use store::Image;

use crate::guest::Saved;
use crate::process::{PatternWriter, capture};
use crate::support::{Fixture, Random, Running, json, start_handler, wait_for};

/// How many handlers are killed at least,
const KILLS: u64 = 40;
/// and more until so many of them still served a process.
const IN_TIME: u64 = 5;
/// How often that is tried.
const KILLS_MAX: u64 = 400;

/// Whether one more is to be killed, after `number` of which `in_time` still served a process.
fn more(number: u64, in_time: u64) -> bool {
    assert!(number < KILLS_MAX, "of {number} handlers {in_time} were killed in time");
    number < KILLS || in_time < IN_TIME
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a process number"), signal).expect("signalled");
}

fn wait(random: &mut Random, longest_us: u64) {
    std::thread::park_timeout(Duration::from_micros(random.below(longest_us)));
}

#[test]
fn a_guest_never_sees_a_zero_page_when_its_handler_is_killed() {
    let saved = Saved::new(4096);
    let mut random = Random(0xDEAD);
    let (mut number, mut killed) = (0, 0);
    while more(number, killed) {
        let socket = saved.fixture.path("socket");
        let flags: &[&str] =
            if number % 2 == 0 { &["--supervised"] } else { &["--supervised", "--prefetch"] };
        let (supervisor, handler) =
            start_handler(flags, "firecracker", &saved.fixture, &saved.image, &socket);
        let mut resume = Command::new(env!("CARGO_BIN_EXE_vmm"));
        resume.arg("resume").arg("--socket").arg(&socket).arg("--state").arg(&saved.state);
        let machine = Running::start(resume.args(["--rounds", "2"]));
        let pid = machine.pid();
        wait(&mut random, 300_000);
        // It may have ended with its machine already; its supervisor reaps it then.
        let was_killed = kill_process(Pid::from_raw(handler).expect("a number"), Signal::KILL).is_ok();
        let (status, line) = machine.finish();
        match (status.code(), status.signal()) {
            (Some(0), _) => {}
            (_, Some(9)) => {
                assert!(was_killed, "nobody killed the handler");
                killed += 1;
            }
            // It never connected: the handler died before it accepted.
            (Some(101), _) if line.is_none() => {}
            other => panic!("run {number}: {other:?} {line:?}"),
        }
        let (_, last) = supervisor.finish();
        if status.signal() == Some(9) {
            assert_eq!(json(last)["killed"], serde_json::json!([pid]), "run {number}");
        }
        number += 1;
    }
}

/// A dumped process and the image of it.
struct Asleep {
    /// Dropped before the directory, which has the log of its restore.
    writer: PatternWriter,
    fixture: Fixture,
    image: Image,
}

impl Asleep {
    fn new(pages: usize) -> Self {
        let fixture = Fixture::new();
        let mut writer = PatternWriter::start(&fixture, pages, &[]);
        let dumped = fixture.path("dumped");
        writer.dump(&dumped);
        let (image, _) = capture(&fixture, &dumped, None);
        criu::materialize(&image, &fixture.store, &fixture.path("images")).expect("materialized");
        Self { writer, fixture, image }
    }

    /// Starts a handler and a restore that it serves.
    fn wake(&mut self, flags: &[&str]) -> (Running, i32) {
        let images = self.fixture.path("images");
        let (running, handler) = start_handler(flags, "criu", &self.fixture, &self.image, &images);
        self.writer.restore(&images, &[]);
        (running, handler)
    }

    /// Until the process has ended and its number is free.
    fn settle(&mut self) {
        self.writer.reap();
        self.writer.wait_until_free();
    }
}

#[test]
fn a_process_never_sees_a_zero_page_when_its_handler_is_killed() {
    let mut asleep = Asleep::new(4096);
    let mut random = Random(0xBEEF);
    let (mut number, mut died) = (0, 0);
    while more(number, died) {
        let flags: &[&str] =
            if number % 2 == 0 { &["--supervised"] } else { &["--supervised", "--prefetch"] };
        let (supervisor, handler) = asleep.wake(flags);
        let killer = std::thread::spawn({
            let mut random = Random(random.next() | 1);
            move || {
                wait(&mut random, 400_000);
                kill_process(Pid::from_raw(handler).expect("a number"), Signal::KILL).is_ok()
            }
        });
        // Looks at every page again and again until the handler is dead and the outcome is clear.
        let answer = wait_for("the outcome", || match asleep.writer.try_ask("", "check") {
            Some(answer) if answer != "ok" => Some(Some(answer)),
            Some(_) if killer.is_finished() => asleep.writer.try_ask("", "check").map(Some),
            Some(_) => None,
            None => asleep.writer.has_ended().then_some(None),
        });
        killer.join().expect("the killer ends");
        assert!(answer.is_none() || answer.as_deref() == Some("ok"), "run {number}: {answer:?}");
        assert_eq!(asleep.writer.bad_page(), None, "run {number}");
        if answer.is_some() {
            asleep.writer.end();
        } else {
            died += 1;
            asleep.settle();
        }
        let (status, _) = supervisor.finish();
        assert!(status.success(), "the supervisor does its work to the end");
        number += 1;
    }
}

/// Resumes the process without prefetch, lets it touch a little, and makes it wait for a page that never comes.
fn wait_for_a_page(
    asleep: &mut Asleep,
    flags: &[&str],
) -> (Running, i32, std::thread::JoinHandle<Option<String>>) {
    let (running, handler) = asleep.wake(flags);
    asleep.writer.ask("where");
    signal(handler, Signal::STOP);
    let question = asleep.writer.question("check");
    wait_for("a page is waited for", || is_waiting(asleep.writer.pid).then_some(()));
    (running, handler, question)
}

/// Whether the supervisor says that it killed a process.
fn was_killed(last_line: Option<String>, pid: i32) -> bool {
    json(last_line)["killed"].as_array().expect("a list").iter().any(|killed| *killed == pid)
}

fn is_waiting(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|place| place.contains("userfault"))
}

#[test]
fn a_process_in_the_middle_of_a_fault_dies_with_its_handler() {
    let mut asleep = Asleep::new(1024);
    for _ in 0..5 {
        let (supervisor, handler, question) = wait_for_a_page(&mut asleep, &["--supervised"]);
        signal(handler, Signal::KILL);
        assert_eq!(question.join().expect("asked"), None, "it answered without its memory");
        asleep.settle();
        let (_, last) = supervisor.finish();
        assert!(was_killed(last, asleep.writer.pid));
    }
    assert_eq!(asleep.writer.bad_page(), None);
}

#[test]
fn a_supervisor_asked_to_end_stops_what_it_guards() {
    let mut asleep = Asleep::new(1024);
    for asked in [Signal::TERM, Signal::INT] {
        let (supervisor, _, question) = wait_for_a_page(&mut asleep, &["--supervised"]);
        signal(supervisor.pid() as i32, asked);
        assert_eq!(question.join().expect("asked"), None, "it answered without its memory");
        asleep.settle();
        let (status, last) = supervisor.finish();
        assert!(status.success());
        assert!(was_killed(last, asleep.writer.pid));
    }
    assert_eq!(asleep.writer.bad_page(), None);
}

#[test]
fn whoever_only_tries_the_socket_is_let_go_and_the_machine_is_served() {
    let saved = Saved::new(1024);
    for flags in [&["--supervised"][..], &[]] {
        let socket = saved.fixture.path("socket");
        let (serving, _) = start_handler(flags, "firecracker", &saved.fixture, &saved.image, &socket);
        for _ in 0..2 {
            drop(std::os::unix::net::UnixStream::connect(&socket).expect("somebody listens"));
        }
        let mut resume = Command::new(env!("CARGO_BIN_EXE_vmm"));
        resume.arg("resume").arg("--socket").arg(&socket).arg("--state").arg(&saved.state);
        let (status, line) = Running::start(&mut resume).finish();
        assert_eq!(status.code(), Some(0), "{line:?}");
        assert!(serving.finish().0.success());
    }
}

#[test]
fn a_handler_without_its_supervisor_stops_what_it_serves() {
    let mut asleep = Asleep::new(256);
    let (mut supervisor, handler) = asleep.wake(&["--supervised"]);
    asleep.writer.ask("where");
    signal(supervisor.pid() as i32, Signal::KILL);
    supervisor.wait();
    asleep.settle();
    wait_for("the end of the handler", || (!Path::new(&format!("/proc/{handler}")).exists()).then_some(()));
    assert_eq!(asleep.writer.bad_page(), None);
}

#[test]
fn a_child_whose_parent_has_ended_dies_with_the_handler() {
    let mut asleep = Asleep::new(256);
    let (supervisor, handler) = asleep.wake(&["--supervised"]);
    let child = asleep.writer.ask("brood 1");
    let held = format!("/proc/{}/fdinfo", supervisor.pid());
    wait_for("the child is known", || {
        let files = std::fs::read_dir(&held).ok()?.flatten();
        let mut texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        texts.any(|text| text.lines().any(|line| line == format!("Pid:\t{child}"))).then_some(())
    });
    signal(asleep.writer.pid, Signal::KILL);
    asleep.writer.reap();
    signal(handler, Signal::KILL);
    let (_, last) = supervisor.finish();
    assert!(was_killed(last, child.parse().expect("a number")));
    asleep.writer.release_brood();
    see_the_group_end(&asleep.writer);
    assert_eq!(asleep.writer.bad_page(), None);
}

#[test]
fn a_child_that_nobody_saw_dies_rather_than_see_zero() {
    let mut asleep = Asleep::new(256);
    let (supervisor, handler) = asleep.wake(&["--supervised"]);
    asleep.writer.ask("where");
    signal(supervisor.pid() as i32, Signal::STOP);
    // The handler waits for its receipt, and with it all other forking processes.
    let question = asleep.writer.question("brood 1");
    wait_for("the child", || asleep.writer.has_child().then_some(()));
    signal(asleep.writer.pid, Signal::KILL);
    asleep.writer.reap();
    question.join().expect("asked");
    signal(supervisor.pid() as i32, Signal::CONT);
    wait_for("the child in escrow", || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", supervisor.pid())).ok()?.flatten();
        let names = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        (names.filter(|name| name.to_string_lossy().contains("userfaultfd")).count() == 1).then_some(())
    });
    // It has what it needs to wait, so it meets nothing missing before it changes its memory.
    let here = asleep.fixture.path("pattern_writer.here");
    wait_for("the child waits", || here.exists().then_some(()));
    signal(handler, Signal::KILL);
    asleep.writer.release_brood();
    supervisor.finish();
    see_the_group_end(&asleep.writer);
    assert_eq!(asleep.writer.bad_page(), None);
}

/// Waits until the process's group is empty.
fn see_the_group_end(writer: &PatternWriter) {
    let group = Pid::from_raw(writer.pid).expect("a process number");
    wait_for("the end of the whole group", || {
        (rustix::process::test_kill_process_group(group) == Err(rustix::io::Errno::SRCH)).then_some(())
    });
}

#[test]
fn a_supervisor_without_room_for_one_more_descriptor_kills_them_all() {
    let mut asleep = Asleep::new(256);
    let (supervisor, _) = asleep.wake(&["--supervised"]);
    asleep.writer.ask("where");
    let number = Pid::from_raw(supervisor.pid() as i32);
    let limit = rustix::process::Rlimit { current: Some(30), maximum: Some(30) };
    rustix::process::prlimit(number, rustix::process::Resource::Nofile, limit).expect("limited");
    // Killed in the middle of it.
    assert_eq!(asleep.writer.try_ask("", "brood 60"), None);
    asleep.writer.release_brood();
    let (status, _) = supervisor.finish();
    assert!(!status.success(), "the supervisor says what went wrong");
    see_the_group_end(&asleep.writer);
    assert_eq!(asleep.writer.bad_page(), None);
}

#[test]
fn a_supervised_handler_that_does_its_work_leaves_the_process_alone() {
    let mut asleep = Asleep::new(1024);
    let (supervisor, _) = asleep.wake(&["--supervised", "--prefetch"]);
    let (status, last) = supervisor.finish();
    assert!(status.success());
    let last = json(last);
    assert_eq!(last["killed"], serde_json::json!([]), "{last}");
    assert_eq!(last["handler"], "exit status: 0", "{last}");
    assert_eq!(asleep.writer.ask("check"), "ok");
    asleep.writer.end();
}

#[test]
fn without_a_supervisor_the_same_death_gives_zero_pages() {
    let mut asleep = Asleep::new(1024);
    let (_handler, pid, question) = wait_for_a_page(&mut asleep, &[]);
    signal(pid, Signal::KILL);
    let answer = question.join().expect("asked");
    assert!(answer.as_deref().is_some_and(|answer| answer.starts_with("bad")), "{answer:?}");
    assert!(asleep.writer.bad_page().is_some());
    asleep.writer.end();
}
