//! The control socket of a mount and its client: freeze, unmount, status, from another process.
//!
//! The socket is `control.sock` in the upper. A client finds it through the mount table, so it never touches a mount
//! whose process may be gone. A connection carries one request and one answer, each a u32 length and that many bytes;
//! one byte comes at once, before the answer: the mount has taken the request. Root and the owner of the mount may send
//! requests. Each is answered on a thread of its own; an unmount waits for freezes, and freezes take turns by the
//! store's writer's lock.

use crate::attachment::{STALE_MOUNT_ADVICE, Shared};
use crate::freeze::FreezeReport;
use crate::mountinfo;
use rustix::fs::{Mode, OFlags};
use rustix::net::Shutdown;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use store::wire::{Decoder, Encoder};
use store::{Error, Kind, Result, SnapshotId};

const SOCKET: &str = "control.sock";
/// The byte that a mount sends when it has taken a request.
const ALIVE: u8 = 1;
/// Longest request or answer in bytes.
const MESSAGE_MAX: u32 = 1 << 20;
/// How long a client may take over its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a mount may take until it has taken a request.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients that are answered at a time; others wait for one of these.
const CLIENTS_MAX: usize = 16;
/// When connections cannot be accepted (no descriptor is left), how long until the next attempt.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The status of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Number of its process.
    pub pid: u32,
    /// The ref that it was mounted from.
    pub ref_name: String,
    /// Its present base.
    pub snapshot: SnapshotId,
    /// Path of its upper.
    pub upper: PathBuf,
    /// Whether it refuses changes.
    pub read_only: bool,
    /// Files, directories and other nodes that differ from the snapshot.
    pub dirty_files: u64,
    /// Bytes that the upper holds.
    pub dirty_bytes: u64,
}

pub(crate) enum Request {
    Freeze { name: Option<String>, labels: BTreeMap<String, String>, wait: Option<Duration> },
    Unmount,
    Status,
}

/// The serving side.
pub(crate) struct Control {
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
    /// Where the socket is; `None` once it is removed.
    path: Option<PathBuf>,
}

impl Control {
    /// Listens in the upper of a mount.
    pub(crate) fn bind(shared: Arc<Shared>) -> Result<Self> {
        let path = shared.overlay.upper().path().join(SOCKET);
        let failed =
            |error: std::io::Error| Error::io("cannot make the control socket", path.display(), error);
        // The upper is locked, so a socket that is there belongs to a process that is gone.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let directory = open_directory(shared.overlay.upper().path())?;
        let listener = UnixListener::bind(short_path(&directory)).map_err(failed)?;
        let accepting = listener.try_clone().map_err(failed)?;
        let thread = std::thread::Builder::new().name("snapfs-control".to_owned());
        let thread = thread.spawn(move || accept(&accepting, &shared)).map_err(failed)?;
        Ok(Self { listener, thread: Some(thread), path: Some(path) })
    }

    /// Removes the socket, while the upper is still locked: later the path may be the next mount's. Connected clients
    /// are still served.
    pub(crate) fn remove_socket(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(%error, "the control socket stays; the next mount removes it");
        }
    }

    /// Ends the service once the request at hand is answered.
    pub(crate) fn stop(self) {
        drop(self);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.remove_socket();
        if let Err(errno) = rustix::net::shutdown(&self.listener, Shutdown::Both) {
            // Without it the thread would never end, so it is not waited for.
            tracing::error!(%errno, "the control socket cannot be shut down");
        } else if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread of a mount panicked");
        }
    }
}

fn accept(listener: &UnixListener, shared: &Shared) {
    let (freezes, clients) = (RwLock::new(()), AtomicUsize::new(0));
    let serve = |stream| {
        if let Err(error) = answer(stream, shared, &freezes) {
            tracing::warn!(%error, "a control request failed");
        }
    };
    let serve = &serve;
    let clients = &clients;
    std::thread::scope(|scope| {
        loop {
            match listener.accept() {
                Ok((stream, _)) if clients.fetch_add(1, Ordering::Relaxed) < CLIENTS_MAX => {
                    let thread = std::thread::Builder::new().name("snapfs-client".to_owned());
                    let thread = thread.spawn_scoped(scope, move || {
                        serve(stream);
                        clients.fetch_sub(1, Ordering::Relaxed);
                    });
                    if let Err(error) = thread {
                        clients.fetch_sub(1, Ordering::Relaxed);
                        tracing::warn!(%error, "a control connection could not be answered");
                    }
                }
                Ok((stream, _)) => {
                    serve(stream);
                    clients.fetch_sub(1, Ordering::Relaxed);
                }
                // Shut down.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
                Err(error) => {
                    tracing::warn!(%error, "a control connection could not be accepted");
                    std::thread::park_timeout(ACCEPT_AGAIN);
                }
            }
        }
    });
}

fn answer(mut stream: UnixStream, shared: &Shared, freezes: &RwLock<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("cannot talk to a client", SOCKET, error);
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT)).map_err(failed)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|errno| failed(errno.into()))?;
    let Some(request) = receive(&mut stream)? else { return Ok(()) };
    // From now on the client knows that a thread works on the answer.
    stream.write_all(&[ALIVE]).map_err(failed)?;
    let may_ask = peer.uid.is_root() || peer.uid == rustix::process::geteuid();
    let outcome = match may_ask {
        true => decode_request(&request).and_then(|request| perform(request, shared, freezes)),
        false => Err(Error::new(Kind::Invalid, "only root and the owner of a mount may control it")),
    };
    let mut out = Encoder::new();
    match outcome {
        Ok(body) => out.u8(0).bytes(&body),
        Err(error) => out.u8(1).u8(kind_code(error.kind())).string(error.to_string().as_bytes()),
    };
    send(&mut stream, &out.finish())
}

fn perform(request: Request, shared: &Shared, freezes: &RwLock<()>) -> Result<Vec<u8>> {
    let mut out = Encoder::new();
    match request {
        Request::Unmount => {
            let _alone = freezes.write().unwrap_or_else(PoisonError::into_inner);
            shared.unmount()?;
        }
        Request::Freeze { name, labels, wait } => {
            let _freezing = freezes.read().unwrap_or_else(PoisonError::into_inner);
            let name = name.as_deref().unwrap_or(&shared.ref_name);
            let report = shared.overlay.freeze_within(wait, name, labels)?;
            out.bytes(report.snapshot.as_bytes()).u64(report.changed_files).u64(report.changed_bytes);
            out.u64(report.new_bytes).u64(report.stored_bytes).u64(report.elapsed.as_nanos() as u64);
        }
        Request::Status => {
            let dirty = shared.overlay.dirty();
            out.u32(std::process::id()).string(shared.ref_name.as_bytes());
            out.bytes(shared.overlay.base().id.as_bytes()).u8(shared.overlay.is_read_only().into());
            out.u64(dirty.files).u64(dirty.bytes);
        }
    }
    Ok(out.finish())
}

/// A mount of another process.
#[derive(Debug)]
pub struct Client {
    mountpoint: PathBuf,
    upper: PathBuf,
}

/// Finds the mount at `mountpoint` without touching it.
///
/// # Errors
/// `NotFound` where there is none of ours, `Unavailable` when its process is gone.
pub fn find(mountpoint: &Path) -> Result<Client> {
    let mountpoint = resolve_parent(mountpoint)?;
    let Some(upper) = mountinfo::upper_at(&mountpoint)? else {
        return Err(Error::new(Kind::NotFound, "not a torpor mount").object(mountpoint.display()));
    };
    let client = Client { mountpoint, upper };
    client.connect()?;
    Ok(client)
}

impl Client {
    /// Freezes the mount into the ref `name`, or into the one it was mounted from. Pages that applications changed
    /// through shared mappings are written back first.
    ///
    /// # Errors
    /// Those of the freeze; `Unavailable` when the process of the mount is gone.
    pub fn freeze(&self, name: Option<&str>, labels: &BTreeMap<String, String>) -> Result<FreezeReport> {
        self.freeze_within(None, name, labels)
    }

    /// The same, waiting so long for the store's writer's lock; `None`: as long as the mount was told.
    ///
    /// # Errors
    /// As [`Self::freeze`].
    pub fn freeze_within(
        &self,
        wait: Option<Duration>,
        name: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<FreezeReport> {
        // A process that touches a mount that does not answer waits forever.
        self.status()?;
        self.write_back()?;
        let mut out = Encoder::new();
        out.u8(1).u8(name.is_some().into()).string(name.unwrap_or_default().as_bytes()).count(labels.len());
        for (key, value) in labels {
            out.string(key.as_bytes()).string(value.as_bytes());
        }
        // A mount of an older build does not know the wait, which is sent only if the caller asks for one.
        if let Some(wait) = wait {
            out.u64(wait.as_millis() as u64);
        }
        let body = self.ask(&out.finish())?;
        let mut input = Decoder::new(&body);
        Ok(FreezeReport {
            snapshot: SnapshotId::from_bytes(input.array()?),
            changed_files: input.u64()?,
            changed_bytes: input.u64()?,
            new_bytes: input.u64()?,
            stored_bytes: input.u64()?,
            elapsed: Duration::from_nanos(input.u64()?),
        })
    }

    /// Unmounts; everything is durable and the upper is free when this returns.
    ///
    /// # Errors
    /// `Conflict` when files in it are in use; `Unavailable` when the process of the mount is gone.
    pub fn unmount(&self) -> Result<()> {
        self.ask(&[2]).map(drop)
    }

    /// The status of the mount.
    ///
    /// # Errors
    /// `Unavailable` when the process of the mount is gone.
    pub fn status(&self) -> Result<Status> {
        let body = self.ask(&[3])?;
        let mut input = Decoder::new(&body);
        Ok(Status {
            pid: input.u32()?,
            ref_name: input.text()?,
            snapshot: SnapshotId::from_bytes(input.array()?),
            upper: self.upper.clone(),
            read_only: input.u8()? != 0,
            dirty_files: input.u64()?,
            dirty_bytes: input.u64()?,
        })
    }

    fn ask(&self, request: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.connect()?;
        send(&mut stream, request)?;
        let answer = self.await_answer(&mut stream)?;
        let mut input = Decoder::new(&answer);
        if input.u8()? == 0 {
            return Ok(answer[1..].to_vec());
        }
        let kind = kind_of(input.u8()?);
        Err(Error::new(kind, input.text()?))
    }

    /// The wait for the first byte has a time limit, because a stopped process accepts nothing; the wait for the answer
    /// has none.
    fn await_answer(&self, stream: &mut UnixStream) -> Result<Vec<u8>> {
        let silent = |error: std::io::Error| {
            Error::new(Kind::Unavailable, "the process of the mount does not answer")
                .object(self.mountpoint.display())
                .caused_by(error)
                .advice("continue the process if it is stopped, or run `snapctl umount --force DIR`, which needs no answer")
        };
        stream.set_read_timeout(Some(ALIVE_TIMEOUT)).map_err(silent)?;
        stream.read_exact(&mut [0]).map_err(silent)?;
        stream.set_read_timeout(None).map_err(silent)?;
        receive(stream)?.ok_or_else(|| silent(std::io::ErrorKind::UnexpectedEof.into()))
    }

    fn connect(&self) -> Result<UnixStream> {
        let gone = |error: std::io::Error| {
            Error::new(Kind::Unavailable, "the process of the mount is gone")
                .object(self.mountpoint.display())
                .caused_by(error)
                .advice(STALE_MOUNT_ADVICE)
        };
        let directory = open_directory(&self.upper)?;
        UnixStream::connect(short_path(&directory)).map_err(gone)
    }

    /// Has the kernel write back the changed pages of shared mappings.
    fn write_back(&self) -> Result<()> {
        let failed = |errno: rustix::io::Errno| {
            Error::io("cannot sync the mount", self.mountpoint.display(), errno.into())
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.mountpoint, flags, Mode::empty()).map_err(failed)?;
        rustix::fs::syncfs(&root).map_err(failed)
    }
}

/// The path with all but its last name resolved: the last one may be a dead mount.
fn resolve_parent(path: &Path) -> Result<PathBuf> {
    let failed = |error: std::io::Error| Error::io("cannot find the mount point", path.display(), error);
    let path = std::path::absolute(path).map_err(failed)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
    let resolved = parent.canonicalize().map_err(failed)?.join(name);
    // A symbolic link to a mount point is not a mount point itself, so it can be followed.
    match mountinfo::upper_at(&resolved)?.is_none() && resolved.is_symlink() {
        true => resolved.canonicalize().map_err(failed),
        false => Ok(resolved),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::io("cannot open the upper", path.display(), errno.into()))
}

/// Socket addresses are short, uppers need not be.
fn short_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

pub(crate) fn decode_request(bytes: &[u8]) -> Result<Request> {
    let mut input = Decoder::new(bytes);
    let request = match input.u8()? {
        1 => {
            let named = input.u8()? != 0;
            let name = input.text()?;
            let count = input.count(8)?;
            let mut label = || Ok((input.text()?, input.text()?));
            let labels = (0..count).map(|_| label()).collect::<Result<_>>()?;
            let wait = match input.remaining() {
                0 => None,
                _ => Some(Duration::from_millis(input.u64()?)),
            };
            Request::Freeze { name: named.then_some(name), labels, wait }
        }
        2 => Request::Unmount,
        3 => Request::Status,
        unknown => return Err(Error::new(Kind::Invalid, format!("unknown control request {unknown}"))),
    };
    input.end()?;
    Ok(request)
}

fn send(stream: &mut UnixStream, message: &[u8]) -> Result<()> {
    let len = u32::try_from(message.len()).ok().filter(|len| *len <= MESSAGE_MAX);
    let len = len.ok_or_else(|| Error::new(Kind::Invalid, "a control message is too long"))?;
    let framed = [&len.to_le_bytes()[..], message].concat();
    stream.write_all(&framed).map_err(|error| Error::io("cannot write to the control socket", SOCKET, error))
}

/// Receives one message; `None` when the other side closed the connection before any byte.
fn receive(stream: &mut UnixStream) -> Result<Option<Vec<u8>>> {
    let failed = |error: std::io::Error| Error::io("cannot read from the control socket", SOCKET, error);
    let mut len = [0; 4];
    if stream.read(&mut len[..1]).map_err(failed)? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut len[1..]).map_err(failed)?;
    let len = u32::from_le_bytes(len);
    if len == 0 || len > MESSAGE_MAX {
        return Err(Error::new(Kind::Invalid, format!("a control message of {len} bytes")));
    }
    let mut message = vec![0; len as usize];
    stream.read_exact(&mut message).map_err(failed)?;
    Ok(Some(message))
}

/// The numbers that kinds of errors have on the socket.
const KINDS: [Kind; 8] = [
    Kind::NotFound,
    Kind::Conflict,
    Kind::Fenced,
    Kind::Unavailable,
    Kind::Invalid,
    Kind::Corrupt,
    Kind::Full,
    Kind::Internal,
];

fn kind_code(kind: Kind) -> u8 {
    KINDS.iter().position(|other| *other == kind).map_or(u8::MAX, |code| code as u8)
}

fn kind_of(code: u8) -> Kind {
    KINDS.get(usize::from(code)).copied().unwrap_or(Kind::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_cut_anywhere_is_refused() {
        let mut out = Encoder::new();
        out.u8(1).u8(1).string(b"name").count(1).string(b"key").string(b"value");
        let complete = out.finish();
        let freeze = |request: &[u8]| match decode_request(request).unwrap() {
            Request::Freeze { name, labels, wait } => (name, labels.get("key").cloned(), wait),
            _ => panic!("it is a freeze"),
        };
        let (name, value) = (Some("name".to_owned()), Some("value".to_owned()));
        assert_eq!(freeze(&complete), (name.clone(), value.clone(), None));
        let waiting = [&complete[..], &7u64.to_le_bytes()].concat();
        assert_eq!(freeze(&waiting), (name, value, Some(Duration::from_millis(7))));
        for len in (0..waiting.len()).filter(|len| *len != complete.len()) {
            assert!(decode_request(&waiting[..len]).is_err(), "cut at {len}");
        }
        assert!(decode_request(&[&waiting[..], &[0]].concat()).is_err());
        assert!(decode_request(&[9]).is_err());
    }

    #[test]
    fn every_kind_of_error_crosses_the_socket() {
        for kind in KINDS {
            assert_eq!(kind_of(kind_code(kind)), kind);
        }
        assert_eq!(kind_of(200), Kind::Internal);
    }
}
