//! A server process: started, waited for, killed.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a server may take until it answers.
const START_MAX: Duration = Duration::from_secs(60);
/// Ports that are tried: below those that the kernel hands out, and with room for a second one 10,000 above.
const PORTS: std::ops::Range<u16> = 12_000..22_000;

/// A running server. Killed when dropped, and by the kernel when the test's process ends.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    name: String,
    log: PathBuf,
    ended: Mutex<Receiver<()>>,
}

impl Process {
    /// Starts `program` in `directory`, with its output in a log file there.
    pub fn start(program: &str, arguments: &[String], directory: &Path) -> Self {
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let role = arguments.first().filter(|word| !word.starts_with('-'));
        let name = role.map_or(name.clone(), |role| format!("{name} {role}"));
        std::fs::create_dir_all(directory).expect("a server's directory can be made");
        let log = directory.join("log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]).args(arguments).current_dir(directory);
        let output = File::options().create(true).append(true).open(&log).expect("a log can be made");
        let errors = output.try_clone().expect("a descriptor can be had");
        command.env("HOME", directory).stdin(Stdio::null()).stdout(output).stderr(errors);
        let (started, pid) = channel();
        let (tell_end, ended) = channel();
        // The kernel's signal comes when the thread that started a process ends: this one lasts as long as the process.
        std::thread::spawn(move || {
            let mut child = command.spawn().expect("setpriv can be started");
            let _ = started.send(child.id());
            let _ = child.wait();
            let _ = tell_end.send(());
        });
        let pid = pid.recv().expect("the process starts");
        let pid = Pid::from_raw(pid.cast_signed()).expect("a process has an id");
        Self { pid, name, log, ended: Mutex::new(ended) }
    }

    /// Kills it and waits until it is gone.
    pub fn kill(self) {
        drop(self);
    }

    /// Suspends it: it keeps its connections and answers nothing.
    pub fn suspend(&self) {
        kill_process(self.pid, Signal::STOP).expect("a process of ours can be stopped");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        kill_process(self.pid, Signal::CONT).expect("a process of ours can be continued");
    }

    /// Waits until `is_ready`.
    ///
    /// # Panics
    /// With the end of its log when it ends before, or takes too long.
    pub fn wait_until(&self, mut is_ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_ready() {
            let ended = self.has_ended(Duration::ZERO);
            if ended || start.elapsed() > START_MAX {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(20).collect();
                let what = if ended { "ended" } else { "is not ready" };
                panic!("{} {what}; its log, last line first:\n{}", self.name, end.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it ends within `time`; asked until it has.
    fn has_ended(&self, time: Duration) -> bool {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(time).is_ok()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended(Duration::ZERO) {
            let _ = kill_process(self.pid, Signal::KILL);
            self.has_ended(Duration::from_secs(10));
        }
    }
}

/// A port that is free now, as is the one 10,000 above it.
pub fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let random = u64::from_le_bytes(store::clock::random_bytes());
    let span = u64::from(PORTS.end - PORTS.start);
    let mut candidates = (0..span).map(|step| PORTS.start + ((random % span + step * 7919) % span) as u16);
    candidates.find(|port| is_free(*port) && is_free(port + 10_000)).expect("some port is free")
}

/// The complete answer to a GET, its head too; `None` when no server answers.
pub fn http_get(port: u16, path: &str) -> Option<String> {
    http(port, &format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n"))
}

/// The complete answer to a request.
pub(super) fn http(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned()).filter(|answer| !answer.is_empty())
}
