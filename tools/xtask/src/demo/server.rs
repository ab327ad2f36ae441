//! A real Node server with a lot of state, seen from outside: started, asked, put to sleep by CRIU, gone.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::janitor;
use super::scene::{Answer, Scene};
use crate::shell::{Context, Failure, Result, command, run_quiet, sealed};

const SCRIPT: &str = include_str!("server.js");
/// How long anything here may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_PERIOD: Duration = Duration::from_millis(1);

/// The server: its process, which keeps its id through every sleep, and where it listens.
pub(super) struct Server {
    pub process: u32,
    port: u16,
    requests: u64,
}

impl Server {
    /// Starts one that holds `held_mib` MiB and waits for its first reply. The child is for the caller to reap.
    pub(super) fn start(scene: &Scene, node: &Path, held_mib: u32) -> Result<(Server, Child)> {
        let script = scene.path("server.js");
        fs::write(&script, SCRIPT).context(|| format!("cannot write {}", script.display()))?;
        let log = scene.path("server.log");
        let cannot = || format!("cannot write {}", log.display());
        let log = File::create(&log).context(cannot)?;
        let port = free_port()?;
        let mut node = command("setsid", [node.as_os_str(), script.as_os_str()]);
        node.args([held_mib.to_string(), port.to_string()]);
        // CRIU cannot dump an io_uring.
        node.env("UV_USE_IO_URING", "0").current_dir("/");
        let mut node = sealed(&node);
        node.stdin(Stdio::null()).stdout(log.try_clone().context(cannot)?).stderr(log);
        let child = node.spawn().context(|| "cannot start the Node server".into())?;
        let mut server = Server { process: child.id(), port, requests: 0 };
        scene.note_process(server.process)?;
        server.first_reply()?;
        Ok((server, child))
    }

    /// Asks until there is a reply; it must go on counting where the server was put to sleep.
    pub(super) fn first_reply(&mut self) -> Result<()> {
        let reply = poll("the server does not reply", || ask(self.port))?;
        let requests = reply.number("requests")?;
        if requests != self.requests + 1 {
            return Err(Failure::new(format!("request {} was answered as {requests}", self.requests + 1)));
        }
        self.requests = requests;
        Ok(())
    }

    /// How many requests it has answered.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Forgets the requests of a life that was not kept.
    pub(super) fn go_back_to(&mut self, requests: u64) {
        self.requests = requests;
    }

    /// Ends it without a dump.
    pub(super) fn kill(&self) -> Result<()> {
        janitor::kill(&self.process.to_string())
    }

    /// Has CRIU write the process to `images` and end it. The caller reaps it.
    pub(super) fn dump(&self, images: &Path) -> Result<()> {
        let process = self.process.to_string();
        run_quiet(
            command(
                "criu",
                ["dump", "--tree", &process, "--tcp-close", "--log-file", "dump.log", "--images-dir"],
            )
            .arg(images),
        )
    }

    /// Waits until the process id is free again, which a restore needs.
    pub(super) fn wait_until_gone(&self) -> Result<()> {
        let path = format!("/proc/{}", self.process);
        poll("the process does not go away", || (!Path::new(&path).exists()).then_some(()))
    }
}

/// `criu restore` of `images` as a child that ends with the restored process.
pub(super) fn restore_eagerly(images: &Path) -> Result<Child> {
    let arguments = ["restore", "--tcp-close", "--log-file", "restore.log", "--images-dir"];
    let mut restore = command("criu", arguments);
    restore.arg(images);
    restore.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    restore.spawn().context(|| "cannot start criu".into())
}

fn ask(port: u16) -> Option<Answer> {
    answer_of(port, "GET / HTTP/1.0\r\n\r\n").filter(|reply| reply.contains("200 OK")).map(Answer)
}

/// The answer of the program that listens on a port of loopback; `None` when there is none.
pub(super) fn answer_of(port: u16, request: &str) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    Some(reply)
}

fn free_port() -> Result<u16> {
    free_ports().map(|[port]| port)
}

/// Ports of loopback that nobody listens on now, each another one.
pub(super) fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let cannot = || "cannot bind a port of loopback".to_owned();
    let mut bound = Vec::with_capacity(COUNT);
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(cannot)?;
        *port = listener.local_addr().context(cannot)?.port();
        bound.push(listener); // it keeps the next from getting the same
    }
    Ok(ports)
}

/// A port that nobody listens on yet, and a foreign process's end, tell nobody: they are looked at again and again.
pub(super) fn poll<T>(complaint: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        std::thread::sleep(POLL_PERIOD);
    }
    Err(Failure::new(format!("{complaint} within {} s", PATIENCE.as_secs())))
}
