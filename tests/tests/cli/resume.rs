//! Resuming through the command line: a real process by real CRIU, a real machine through the Firecracker handshake,
//! and the failures of CRIU and of the handler.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tests::snapctl::Place;

use crate::hostile_input;

const PATIENCE: Duration = Duration::from_secs(60);

/// Tries until there is an answer.
fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::yield_now();
    }
}

/// A `snapctl resume --json` under way; killed when dropped.
struct Resume {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Resume {
    fn start(place: &Place, typed: &[&OsStr]) -> Resume {
        let mut command = place.command([&[OsStr::new("resume"), OsStr::new("--json")], typed].concat());
        // In a group of its own, as a shell starts it.
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Resume { child, stdout }
    }

    /// The next document, or nothing when there is no more.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    /// The process that serves.
    fn handler(&self) -> Pid {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        Pid::from_raw(children.trim().parse().unwrap()).unwrap()
    }

    fn finish(mut self) -> (ExitStatus, String) {
        let status = wait_for("the end of the resume", || self.child.try_wait().unwrap());
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{stderr}");
        (status, stderr)
    }
}

impl Drop for Resume {
    fn drop(&mut self) {
        // Nothing is left to kill of a process that has ended.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// A place with a saved machine as `vm`.
fn saved_machine() -> Place {
    let place = Place::with_store();
    let (memory, state) = (place.path("memory"), place.path("state"));
    let mut save = Command::new(env!("CARGO_BIN_EXE_vmm"));
    save.arg("save").arg("--memory").arg(&memory).arg("--state").arg(&state).args(["--pages", "8192"]);
    assert!(save.stdout(Stdio::null()).status().unwrap().success());
    let typed = ["capture".as_ref(), "vm".as_ref(), "--firecracker".as_ref(), memory.as_os_str()];
    place.run([&typed, ["--vmstate".as_ref(), state.as_os_str()].as_slice()].concat()).expect(0);
    place
}

fn resume_machine(place: &Place, more: &[&str]) -> (Resume, PathBuf, PathBuf) {
    let (socket, state) = (place.path("socket"), place.path("state again"));
    let typed = [
        "vm".as_ref(),
        "--uffd-socket".as_ref(),
        socket.as_os_str(),
        "--vmstate".as_ref(),
        state.as_os_str(),
    ];
    let more: Vec<&OsStr> = more.iter().map(OsStr::new).collect();
    let mut resume = Resume::start(place, &[&typed, more.as_slice()].concat());
    assert_eq!(resume.next().expect("it serves")["event"], "ready");
    (resume, socket, state)
}

fn start_machine(socket: &Path, state: &Path, rounds: &str) -> Child {
    let mut machine = Command::new(env!("CARGO_BIN_EXE_vmm"));
    machine.arg("resume").arg("--socket").arg(socket).arg("--state").arg(state).args(["--rounds", rounds]);
    machine.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Until the supervisor guards a machine's memory.
fn await_escrow(resume: &Resume) {
    let descriptors = format!("/proc/{}/fd", resume.child.id());
    wait_for("the machine's memory in escrow", || {
        let open = fs::read_dir(&descriptors).ok()?.flatten();
        let mut names = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        names.any(|name| name.to_string_lossy().contains("userfaultfd")).then_some(())
    });
}

#[test]
fn a_machine_wakes_with_every_page() {
    let place = saved_machine();
    let (mut resume, socket, state) = resume_machine(&place, &[]);
    let status = start_machine(&socket, &state, "1").wait().unwrap();
    assert_eq!(status.code(), Some(0), "a page is wrong");
    let done = resume.next().expect("it reports");
    assert_eq!((&done["event"], &done["poisoned_pages"]), (&"done".into(), &0.into()));
    let served = done["pages"].as_u64().unwrap() + done["prefetched_pages"].as_u64().unwrap();
    assert!(served >= 8192, "{done}");
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(0), "{stderr}");
}

#[test]
fn a_machine_with_all_its_memory_needs_nobody_any_more() {
    let place = saved_machine();
    let (resume, socket, state) = resume_machine(&place, &[]);
    let end = place.path("end");
    let mut machine = Command::new(env!("CARGO_BIN_EXE_vmm"));
    machine.arg("resume").arg("--socket").arg(&socket).arg("--state").arg(&state);
    machine.arg("--until").arg(&end).args(["--discard", "100"]).stdout(Stdio::null());
    let mut machine = machine.spawn().unwrap();
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(machine.try_wait().unwrap().is_none(), "the machine runs on");
    fs::write(&end, "").unwrap();
    let ended = wait_for("the end of the machine", || machine.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0), "a page is wrong");
}

#[test]
fn a_machine_whose_handler_dies_is_stopped_and_never_runs_on() {
    let place = saved_machine();
    // Incomplete to its end.
    let (resume, socket, state) = resume_machine(&place, &["--no-prefetch"]);
    let mut machine = start_machine(&socket, &state, "1000000");
    await_escrow(&resume);
    kill_process(resume.handler(), Signal::KILL).unwrap();
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("the handler ended early"), "{stderr}");
    let ended = wait_for("the end of the machine", || machine.try_wait().unwrap());
    assert_eq!(ended.signal(), Some(9));
    place.run(["check", "--read-data"]).expect(0);
}

#[test]
fn the_socket_is_for_whom_it_was_made() {
    let place = saved_machine();
    for (more, expected) in [
        (&[][..], (0, 0, 0o600)),
        (&["--socket-owner", "1234:5678", "--socket-mode", "660"], (1234, 5678, 0o660)),
    ] {
        let (mut resume, socket, state) = resume_machine(&place, more);
        let found = fs::metadata(&socket).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), expected);
        let found = fs::metadata(&state).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (expected.0, expected.1, 0o600));
        kill_process(Pid::from_child(&resume.child), Signal::TERM).unwrap();
        wait_for("the end of the resume", || resume.child.try_wait().unwrap());
        assert!(!state.exists());
    }
    for wrong in ["1234", "a:b", "1:4294967295", "-1:0"] {
        let owner = format!("--socket-owner={wrong}");
        place.run(["resume", "vm", "--uffd-socket", "s", "--vmstate", "v", &owner]).expect(2);
    }
}

#[test]
fn a_monitor_that_ends_before_it_connects_ends_the_resume() {
    let place = saved_machine();
    let mut monitor = Command::new("sleep").arg("1000").spawn().unwrap();
    let begun = Instant::now();
    let (resume, _, state) = resume_machine(&place, &["--monitor-pid", &monitor.id().to_string()]);
    monitor.kill().and_then(|()| monitor.wait()).unwrap();
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("ended before its memory was served"), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited for a process that cannot come");
    assert!(!state.exists());
}

/// A signal to the supervisor's process group, and one to each of the two, in the middle of a machine's faults: it is
/// stopped, and sees no wrong page before.
#[test]
fn signals_for_everybody_stop_a_machine_and_show_it_no_zero_page() {
    let place = saved_machine();
    let mut signals = vec![Signal::QUIT, Signal::INT, Signal::HUP, Signal::TERM, Signal::KILL, Signal::ABORT];
    signals.extend([Signal::XCPU, Signal::POWER]);
    for signal in signals {
        let (resume, socket, state) = resume_machine(&place, &["--no-prefetch"]);
        let mut machine = start_machine(&socket, &state, "1000000");
        await_escrow(&resume);
        let (supervisor, handler) = (Pid::from_child(&resume.child), resume.handler());
        kill_process_group(supervisor, signal).unwrap();
        if signal != Signal::KILL {
            // It may have ended by itself in the meantime.
            let _ = kill_process(handler, signal);
        }
        let ended = wait_for("the end of the machine", || machine.try_wait().unwrap());
        assert_eq!(ended.signal(), Some(9), "after {signal:?}");
        let (status, stderr) = resume.finish();
        assert!(status.code() == Some(2) || signal == Signal::KILL, "{signal:?}: {status} {stderr}");
        // Killed, it could not remove it.
        assert_eq!(state.exists(), signal == Signal::KILL);
        drop(fs::remove_file(&state));
    }
}

#[test]
fn signals_that_concern_nobody_do_nothing() {
    let place = saved_machine();
    let (resume, socket, state) = resume_machine(&place, &["--no-prefetch"]);
    let (supervisor, handler) = (Pid::from_child(&resume.child), resume.handler());
    let mut machine = start_machine(&socket, &state, "3");
    for signal in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::IO] {
        kill_process_group(supervisor, signal).unwrap();
        kill_process(handler, signal).unwrap();
    }
    let ended = wait_for("the end of the machine", || machine.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0), "a page is wrong");
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(0), "{stderr}");
}

#[test]
fn neither_process_is_a_victim_when_memory_runs_out() {
    let place = saved_machine();
    let (mut resume, ..) = resume_machine(&place, &[]);
    let processes = [Pid::from_child(&resume.child), resume.handler()];
    let score = |process: Pid| {
        let path = format!("/proc/{}/oom_score_adj", process.as_raw_nonzero());
        fs::read_to_string(path).unwrap().trim_end().to_owned()
    };
    let scores = processes.map(score);
    kill_process(processes[0], Signal::TERM).unwrap();
    wait_for("the end of the resume", || resume.child.try_wait().unwrap());
    let (_, stderr) = resume.finish();
    // Where this takes a capability that is missing, it is said, once.
    let is_said = stderr.matches("oom_score_adj").count();
    let own = score(rustix::process::getpid());
    assert!(
        (scores == ["-1000", "-1000"] && is_said == 0) || (scores == [own.clone(), own] && is_said == 1),
        "{scores:?} {stderr}"
    );
}

/// Damages every pack of pages below a directory.
fn lose_pages(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            lose_pages(&path);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        // The eleventh byte of a pack is its kind, 0 for data.
        if bytes.starts_with(b"TORPACK\n") && bytes[10] == 0 {
            bytes[64..].iter_mut().for_each(|byte| *byte ^= 0x5A);
            fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn a_machine_that_waits_for_a_lost_page_is_killed_and_that_is_said() {
    let place = saved_machine();
    let (mut resume, socket, state) = resume_machine(&place, &["--no-prefetch"]);
    lose_pages(&place.store.join("packs"));
    let mut machine = start_machine(&socket, &state, "1");
    let ended = wait_for("the end of the machine", || machine.try_wait().unwrap());
    assert_eq!(ended.signal(), Some(9));
    let done = resume.next().expect("it reports");
    assert_eq!(done["killed_process"], machine.id());
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(&format!("process {}, was killed", machine.id())), "{stderr}");
}

/// A process with stamped memory that answers on a socket.
struct PatternWriter {
    socket: PathBuf,
    pid: Pid,
}

impl PatternWriter {
    fn start(place: &Place) -> (PatternWriter, Child) {
        let socket = place.path("pattern_writer");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pattern_writer"));
        command.arg(&socket).arg("4096").current_dir("/").stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let writer = PatternWriter { socket, pid: Pid::from_child(&child) };
        assert_eq!(writer.ask("check"), "ok");
        (writer, child)
    }

    fn ask(&self, question: &str) -> String {
        wait_for(question, || {
            let mut stream = UnixStream::connect(&self.socket).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            writeln!(stream, "{question}").ok()?;
            stream.shutdown(std::net::Shutdown::Write).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer.trim_end().to_owned()).filter(|answer| !answer.is_empty())
        })
    }

    /// Resumes it as soon as its number is free.
    fn wake(&self, place: &Place, more: &[&str]) -> (Resume, PathBuf) {
        self.wait_until_free();
        let images = place.path("images");
        let mut typed: Vec<&OsStr> = vec!["app".as_ref(), "--criu-dir".as_ref(), images.as_os_str()];
        typed.extend(more.iter().map(OsStr::new));
        typed.push("--restore".as_ref());
        (Resume::start(place, &typed), images)
    }

    /// Reaped by its adopter.
    fn wait_until_free(&self) {
        let status = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        wait_for("a free process number", || (!Path::new(&status).exists()).then_some(()));
    }

    /// Dumps it, which ends it, and captures the dump.
    fn sleep(&self, place: &Place, name: &str) -> Value {
        let images = place.path(name);
        fs::create_dir(&images).unwrap();
        let mut criu = Command::new("criu");
        criu.args(["dump", "-o", "dump.log", "-t"]).arg(self.pid.to_string()).arg("-D").arg(&images);
        let status = criu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let log = fs::read_to_string(images.join("dump.log")).unwrap_or_default();
        assert!(status.success(), "{log}");
        let typed =
            ["capture".as_ref(), "app".as_ref(), "--criu".as_ref(), images.as_os_str(), "--json".as_ref()];
        place.run(typed).expect(0).json()
    }
}

#[test]
fn a_process_sleeps_wakes_and_sleeps_again_for_what_it_changed() {
    let place = Place::with_store();
    let (writer, mut child) = PatternWriter::start(&place);
    let first = writer.sleep(&place, "first");
    wait_for("the process is gone", || child.try_wait().unwrap());
    assert!(first["new_pages"].as_u64().unwrap() >= 4096, "{first}");

    let (mut resume, images) = writer.wake(&place, &[]);
    assert_eq!(resume.next().expect("it serves")["event"], "ready");
    assert_eq!(writer.ask("check"), "ok");
    assert_eq!(writer.ask("change 50 3"), "done");
    assert_eq!(writer.ask("check"), "ok");
    let done = resume.next().expect("it reports");
    assert_eq!((&done["event"], &done["poisoned_pages"]), (&"done".into(), &0.into()));
    // Nothing that protects the handler is passed on.
    let score = |process: &str| fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
    assert_eq!(score(&writer.pid.as_raw_nonzero().to_string()), score("self"));
    // Nothing of it stays once all memory is there, and the process goes on.
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(!images.exists(), "the directory with holes stays");
    assert_eq!(writer.ask("check"), "ok");
    let second = writer.sleep(&place, "second");
    assert!(second["new_pages"].as_u64().unwrap() < 400, "{second}");
    assert_eq!(second["pages_not_brought"], 0, "{second}");
}

#[test]
fn a_process_that_sleeps_again_at_once_is_said_to_have_and_wakes_whole() {
    let place = Place::with_store();
    let (writer, mut child) = PatternWriter::start(&place);
    writer.sleep(&place, "first");
    wait_for("the process is gone", || child.try_wait().unwrap());
    let (mut resume, _) = writer.wake(&place, &["--no-prefetch"]);
    assert_eq!(resume.next().expect("it serves")["event"], "ready");
    writer.ask("where");
    let second = writer.sleep(&place, "second");
    assert!(second["pages_not_brought"].as_u64().unwrap() > 3000, "{second}");
    let done = resume.next().expect("it reports");
    assert!(done["never_brought_pages"].as_u64().unwrap() > 3000, "{done}");
    let (status, stderr) = resume.finish();
    assert_eq!(status.code(), Some(3), "{stderr}");

    // Without the record of the resume the same dump is refused, and the ref stays.
    let shown = || place.run(["show", "app", "--json"]).expect(0).json()["snapshot"].clone();
    let before = shown();
    fs::remove_dir_all(place.store.join("local/wakes")).unwrap();
    let dump = place.path("second");
    let typed = ["capture", "app", "--parent", "app~1", "--criu"].map(OsStr::new);
    place.run([&typed[..], &[dump.as_os_str()]].concat()).expect(2).complains("no record");
    assert_eq!(shown(), before);

    // A complete directory needs no handler.
    let whole = place.path("whole");
    place.run(["restore".as_ref(), "app".as_ref(), whole.as_os_str()]).expect(0);
    writer.wait_until_free();
    let mut criu = Command::new("criu");
    criu.args(["restore", "-d", "-o", "restore.log", "-D"]).arg(&whole);
    let status = criu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{}", fs::read_to_string(whole.join("restore.log")).unwrap());
    assert_eq!(writer.ask("check"), "ok");
    kill_process(writer.pid, Signal::KILL).unwrap();
}

#[test]
fn memory_of_machines_and_plain_memory_is_restored() {
    let place = saved_machine();
    let (target, raw) = (place.path("target"), place.path("raw"));
    place.run(["restore".as_ref(), "vm".as_ref(), target.as_os_str()]).expect(0);
    let equal = |one: &Path, other: &Path| fs::read(one).unwrap() == fs::read(other).unwrap();
    assert!(equal(&place.path("memory"), &target.join("memory")));
    assert!(equal(&place.path("state"), &target.join("vmstate")));
    place.run(["restore".as_ref(), "vm".as_ref(), target.as_os_str()]).expect(2).complains("memory");
    place.run(["restore".as_ref(), "vm:etc".as_ref(), raw.as_os_str()]).expect(2).complains("memory");
    let memory = place.path("memory");
    place.run(["capture".as_ref(), "plain".as_ref(), "--raw".as_ref(), memory.as_os_str()]).expect(0);
    place.run(["restore".as_ref(), "plain".as_ref(), raw.as_os_str()]).expect(0);
    assert!(equal(&memory, &raw));
}

/// A place with a made-up dump as `app`: good enough for everything but a restore.
fn captured_dump() -> (Place, PathBuf) {
    let place = Place::with_store();
    let dump = place.path("dump");
    hostile_input::write_dump(&dump, &hostile_input::dump());
    place.run(["capture".as_ref(), "--criu".as_ref(), dump.as_os_str(), "app".as_ref()]).expect(0);
    let images = place.path("images");
    (place, images)
}

#[test]
fn a_restore_that_fails_is_told_at_once() {
    let (place, images) = captured_dump();
    let begun = Instant::now();
    let typed = ["app".as_ref(), "--criu-dir".as_ref(), images.as_os_str(), "--restore".as_ref()];
    let (status, stderr) = Resume::start(&place, &typed).finish();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.matches("{\"error\"").count(), 1, "said more than once: {stderr}");
    assert!(!stderr.contains("snapctl:"), "said more than once: {stderr}");
    assert!(stderr.contains("criu restore failed") && stderr.contains("restore.log"), "{stderr}");
    assert!(stderr.contains("\\n  Error ("), "CRIU's own words are missing: {stderr}");
    assert!(!images.join("inventory.img").exists(), "the directory with holes stays");
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited for a process that cannot come");
}

#[test]
fn a_machine_without_criu_is_told_so() {
    let (place, images) = captured_dump();
    let typed =
        ["resume".as_ref(), "app".as_ref(), "--criu-dir".as_ref(), images.as_os_str(), "--restore".as_ref()];
    let output = place.command(typed).env("PATH", place.path("nothing")).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("cannot run criu"), "{stderr}");
    assert!(!images.exists());
}
