//! Processes that connect to the socket on which a machine is served: probes, clients of other protocols, other
//! machines. None is harmed that has not handed its memory over, none is left waiting, and the machine is served.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lazyload::{ServeOptions, firecracker};
use rustix::process::Signal;
use store::Kind;

use crate::guest::Saved;
use crate::support::{Running, json, start_handler, wait_for};

/// A complete list of regions, such as a monitor sends with its userfaultfd.
const LIST: &str = r#"[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]"#;

/// A process that connects, sends something that is no handshake, and stays; returns once that was sent.
fn knock(socket: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    let mut knocking = Running::start(command.arg("knock").arg("--socket").arg(socket).args(arguments));
    assert_eq!(knocking.line().as_deref(), Some("knocked"));
    knocking
}

fn machine(saved: &Saved, socket: &Path) -> Running {
    let mut resume = Command::new(env!("CARGO_BIN_EXE_vmm"));
    Running::start(resume.arg("resume").arg("--socket").arg(socket).arg("--state").arg(&saved.state))
}

/// The process lives, and so does its child; the connection was closed.
fn expect_unharmed(knocking: Running) {
    let (status, _) = knocking.finish();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn callers_that_send_no_memory_are_let_be_and_the_machine_is_served() {
    let saved = Saved::new(1024);
    let socket = saved.fixture.path("socket");
    for flags in [&["--supervised", "--prefetch"][..], &["--prefetch"]] {
        let (serving, _) = start_handler(flags, "firecracker", &saved.fixture, &saved.image, &socket);
        let said: [&[&str]; 6] = [
            &[],
            &["--text", "GET / HTTP/1.0\r\n\r\n"],
            &["--text", "[{"],
            &["--text", LIST],
            &["--text", LIST, "--descriptor"],
            &["--text", "[]"],
        ];
        let knocking: Vec<Running> = said.into_iter().map(|arguments| knock(&socket, arguments)).collect();
        let (status, line) = machine(&saved, &socket).finish();
        assert_eq!((status.code(), &json(line)["pages"]), (Some(0), &1024.into()));
        assert!(serving.finish().0.success());
        knocking.into_iter().for_each(expect_unharmed);
    }
}

#[test]
fn more_callers_than_are_kept_do_not_keep_the_machine_out() {
    let saved = Saved::new(1024);
    let socket = saved.fixture.path("socket");
    let flags = ["--supervised", "--prefetch"];
    let (serving, _) = start_handler(&flags, "firecracker", &saved.fixture, &saved.image, &socket);
    let knocking: Vec<Running> = (0..24).map(|_| knock(&socket, &[])).collect();
    let (status, line) = machine(&saved, &socket).finish();
    assert_eq!(status.code(), Some(0), "{line:?}");
    assert!(serving.finish().0.success());
    knocking.into_iter().for_each(expect_unharmed);
}

#[test]
fn a_caller_that_stays_silent_is_let_be_when_the_time_is_over() {
    let saved = Saved::new(1024);
    let socket = saved.fixture.path("socket");
    let options = ServeOptions { accept_timeout: Duration::from_secs(1), ..ServeOptions::default() };
    for arguments in [&[][..], &["--text", "[{"]] {
        std::thread::scope(|scope| {
            let served =
                scope.spawn(|| firecracker::serve(&saved.fixture.store, &saved.image, &socket, &options));
            wait_for("the socket", || socket.exists().then_some(()));
            expect_unharmed(knock(&socket, arguments));
            let error = served.join().expect("serving does not panic").expect_err("no machine came");
            assert_eq!(error.kind(), Kind::Unavailable);
        });
        assert!(!socket.exists());
    }
}

#[test]
fn of_machines_that_come_at_once_one_is_served_and_none_hangs() {
    let saved = Saved::new(1024);
    let socket = saved.fixture.path("socket");
    for prefetch in [true, true, false, false] {
        let flags: &[&str] = if prefetch { &["--supervised", "--prefetch"] } else { &["--supervised"] };
        let (serving, _) = start_handler(flags, "firecracker", &saved.fixture, &saved.image, &socket);
        let machines: Vec<Running> = (0..4).map(|_| machine(&saved, &socket)).collect();
        let ends: Vec<_> = machines.into_iter().map(|machine| machine.finish().0).collect();
        assert_eq!(ends.iter().filter(|status| status.code() == Some(0)).count(), 1, "{ends:?}");
        for status in ends.iter().filter(|status| status.code() != Some(0)) {
            // Killed after it had handed its memory over, or unable to do that.
            let is_turned_away = status.signal() == Some(Signal::KILL.as_raw()) || status.code() == Some(101);
            assert!(is_turned_away, "{ends:?}");
        }
        assert!(serving.finish().0.success());
    }
}

#[test]
fn a_machine_that_waits_behind_a_handler_that_dies_is_not_left_waiting() {
    let saved = Saved::new(1024);
    let socket = saved.fixture.path("socket");
    let (serving, handler) =
        start_handler(&["--supervised"], "firecracker", &saved.fixture, &saved.image, &socket);
    let handler = rustix::process::Pid::from_raw(handler).expect("a number");
    rustix::process::kill_process(handler, Signal::STOP).expect("stopped");
    let knocking = knock(&socket, &[]);
    let mut machine = machine(&saved, &socket);
    let waiting = format!("/proc/{}/task/{}/wchan", machine.pid(), machine.pid());
    wait_for("the machine waits for its first page", || {
        std::fs::read_to_string(&waiting).ok()?.contains("userfault").then_some(())
    });
    rustix::process::kill_process(handler, Signal::KILL).expect("killed");
    assert_eq!(machine.wait().signal(), Some(Signal::KILL.as_raw()));
    expect_unharmed(knocking);
    serving.finish();
}
