//! A real process of a few hundred MB: time from the command to its first reply when `snapctl resume` brings it back
//! lazily, and when `criu restore` brings all of it back first. With the images in the page cache, and without.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};

use crate::measure::{Pairs, Result, Row};

const ROUNDS: usize = 7;
const HELD_MIB: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);
const SERVER: &str = include_str!("server.py");

pub(crate) fn resume(scratch: &Path) -> Result<Vec<Row>> {
    let asleep = Asleep::prepare(scratch)?;
    let note = format!("Python server of {HELD_MIB} MiB, to its first reply");
    let mut rows = Vec::new();
    for (figure, is_cold) in
        [("lazy resume / eager criu restore, warm", false), ("lazy resume / eager criu restore, cold", true)]
    {
        let pairs = Pairs::measure(ROUNDS, || asleep.wake_lazily(is_cold), || asleep.wake_eagerly(is_cold))?;
        rows.push(pairs.latency(figure, 1, note.clone()));
    }
    Ok(rows)
}

/// A hibernated server, both as CRIU's image directory and in a store.
struct Asleep {
    images: PathBuf,
    store: PathBuf,
    resumed: PathBuf,
    process: Pid,
    port: u16,
}

/// A resumed server and the process that waits for its end; a bench that fails leaves neither.
struct Awake<'a> {
    asleep: &'a Asleep,
    parent: Child,
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        // It may have ended by itself; what matters is that it is gone.
        let _gone = kill_process(self.asleep.process, Signal::KILL);
        let _reaped = self.parent.wait();
    }
}

impl Asleep {
    fn prepare(scratch: &Path) -> Result<Asleep> {
        let [images, store, resumed] = ["images", "store", "resumed"].map(|name| scratch.join(name));
        fs::create_dir(&images)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut server = Command::new("setsid");
        server.args(["python3", "-c", SERVER, &HELD_MIB.to_string(), &port.to_string()]);
        let parent = server
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let process = Pid::from_raw(parent.id().try_into()?).ok_or("a process has a number")?;
        let asleep = Asleep { images, store, resumed, process, port };
        let awake = Awake { asleep: &asleep, parent };
        asleep.first_reply()?;
        let dump = ["dump", "--tcp-close", "--log-file", "dump.log", "--tree"];
        let mut criu = Command::new("criu");
        run(criu.args(dump).arg(process.to_string()).arg("--images-dir").arg(&asleep.images))?;
        drop(awake);
        asleep.wait_until_gone()?;
        run(&mut asleep.snapctl(&["init"])?)?;
        run(asleep.snapctl(&["capture", "bench", "--criu"])?.arg(&asleep.images))?;
        Ok(asleep)
    }

    fn snapctl(&self, arguments: &[&str]) -> Result<Command> {
        let mut snapctl = Command::new(std::env::current_exe()?.with_file_name("snapctl"));
        snapctl.arg("--quiet").arg("--store").arg(&self.store).args(arguments);
        Ok(snapctl)
    }

    fn wake_eagerly(&self, is_cold: bool) -> Result<f64> {
        if is_cold {
            forget_cached(&self.images)?;
        }
        let mut criu = Command::new("criu");
        criu.args(["restore", "--tcp-close", "--log-file", "restore.log", "--images-dir"]).arg(&self.images);
        self.wake(criu)
    }

    fn wake_lazily(&self, is_cold: bool) -> Result<f64> {
        if is_cold {
            forget_cached(&self.store)?;
        }
        let mut resume = self.snapctl(&["resume", "bench", "--restore", "--criu-dir"])?;
        resume.arg(&self.resumed).args(["--", "--tcp-close"]);
        let elapsed = self.wake(resume)?;
        fs::remove_dir_all(&self.resumed)?;
        Ok(elapsed)
    }

    /// Seconds to the first reply; then the server is ended.
    fn wake(&self, mut command: Command) -> Result<f64> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let awake = Awake { asleep: self, parent: command.spawn()? };
        self.first_reply()?;
        let elapsed = start.elapsed().as_secs_f64();
        drop(awake);
        self.wait_until_gone()?;
        Ok(elapsed)
    }

    fn first_reply(&self) -> Result<()> {
        poll("the server does not reply", || ask(self.port))
    }

    /// A restore needs the process's number to be free.
    fn wait_until_gone(&self) -> Result<()> {
        let path = format!("/proc/{}", self.process);
        poll("the server does not go away", || (!Path::new(&path).exists()).then_some(()))
    }
}

/// Asks the server once; `None` when it does not answer.
pub(crate) fn ask(port: u16) -> Option<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    reply.contains("200 OK").then_some(())
}

/// Neither a port that is opened nor the end of a foreign process is announced.
pub(crate) fn poll(complaint: &str, mut look: impl FnMut() -> Option<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if look().is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(complaint.into())
}

/// Drops the files below a directory from the page cache, and no others.
fn forget_cached(directory: &Path) -> Result<()> {
    rustix::fs::sync();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_cached(&path)?;
        } else if path.is_file() {
            rustix::fs::fadvise(File::open(&path)?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} failed: {}", command.get_program().display(), errors.trim()).into())
}
