//! Unix sockets that carry descriptors: listen, accept, send, refuse. `sys` receives a message.
//!
//! Every wait has a deadline.

use std::fs::Permissions;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};
use store::{Error, Kind, Result};

use crate::sys::{UserFault, receive};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// More than any message of this crate carries.
const DESCRIPTORS_PER_MESSAGE: usize = 16;

/// Owner and permissions of a socket's path. A process needs write permission to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// User and group; by default those of this process.
    pub owner: Option<(u32, u32)>,
    /// Permission bits, up to 0o777.
    pub mode: u32,
}

impl Default for SocketAccess {
    /// Only the owner may connect.
    fn default() -> Self {
        Self { owner: None, mode: 0o600 }
    }
}

/// Sends all of a short message with descriptors attached.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) => return Err(Errno::MSGSIZE),
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits until a descriptor is readable; false when the deadline came first.
pub(crate) fn wait_readable(descriptor: impl AsFd, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
        match poll(&mut polled, Some(&timespec(left))) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(Error::io("cannot wait for a message", "poll", errno.into())),
        }
    }
}

/// A duration as the kernel takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A listening socket at a path. The path is free again when the value is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Removed before, it is free already.
        drop(std::fs::remove_file(&self.path));
    }
}

impl Listener {
    /// Listens at a path, in place of a stale socket if one is there. As soon as the path appears, every permitted
    /// process can connect.
    ///
    /// # Errors
    /// `Conflict` when a process listens there, `Invalid` when the path is taken by something that is not a socket.
    pub(crate) fn bind(path: &Path, access: SocketAccess) -> Result<Self> {
        let failed = |error| {
            let advice =
                "the path must be shorter than 100 bytes and its directory must exist and be writable";
            Error::io("cannot listen on a socket", path.display(), error).advice(advice)
        };
        remove_stale(path)?;
        // Made under another name: a connection between binding and listening would be refused.
        let mut unready = path.as_os_str().to_owned();
        unready.push(format!(".{}", std::process::id()));
        let unready = PathBuf::from(unready);
        remove_stale(&unready)?;
        let listener = bind_private(&unready).map_err(|errno| failed(errno.into()))?;
        let ready = open_to(&unready, access).and_then(|()| std::fs::rename(&unready, path));
        if let Err(error) = ready {
            drop(std::fs::remove_file(&unready));
            return Err(failed(error));
        }
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Accepts one connection; `None` when none waits.
    pub(crate) fn accept(&self) -> Result<Option<UnixStream>> {
        accept(&self.listener).map_err(|error| error.object(self.path.display()))
    }

    /// Refuses new connections. Connections that wait can still be accepted.
    pub(crate) fn refuse(&self) {
        // The path is removed, and a process that has just resolved it is refused.
        drop(std::fs::remove_file(&self.path));
        refuse(&self.listener);
    }

    /// The error when no process has connected within `timeout`.
    pub(crate) fn nobody_came(&self, timeout: Duration) -> Error {
        Error::new(Kind::Unavailable, format!("nobody connected within {} s", timeout.as_secs()))
            .object(self.path.display())
            .advice("start the resume on the other side, or allow more time")
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A listening socket that does not block, at a path; only this user can connect.
fn bind_private(path: &Path) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The path gets the permissions that the socket has when it is bound.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn open_to(path: &Path, access: SocketAccess) -> std::io::Result<()> {
    if let Some((user, group)) = access.owner {
        std::os::unix::fs::chown(path, Some(user), Some(group))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(access.mode))
}

/// Accepts a connection that waits on a socket which does not block, if there is one, and asks for the credentials of
/// the process that sends on it.
pub(crate) fn accept(listener: impl AsFd) -> Result<Option<UnixStream>> {
    let failed = |errno: Errno| Error::io("cannot accept a connection", "socket", errno.into());
    let stream = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
        Ok(stream) => stream,
        // No connection waits; INVAL: nor on a socket that refuses.
        Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    rustix::net::sockopt::set_socket_passcred(&stream, true).map_err(failed)?;
    Ok(Some(UnixStream::from(stream)))
}

/// Has a listening socket refuse new connections.
pub(crate) fn refuse(listener: impl AsFd) {
    if let Err(error) = rustix::net::shutdown(listener, Shutdown::Read) {
        tracing::debug!(%error, "a listening socket goes on accepting until it closes");
    }
}

/// Refuses further messages on a connection, and returns the userfaultfds among those that were sent.
pub(crate) fn take_memory(stream: &UnixStream) -> Vec<UserFault> {
    // Refused first: a message sent after the last receive would be lost without a trace.
    if let Err(error) = rustix::net::shutdown(stream, Shutdown::Read) {
        tracing::debug!(%error, "the other side has closed the connection");
    }
    let mut memory = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match receive(stream, &mut buffer, RecvFlags::DONTWAIT) {
            Ok(received) if received.len_bytes == 0 && received.descriptors.is_empty() => return memory,
            Ok(received) => {
                memory.extend(received.descriptors.into_iter().flat_map(UserFault::adopt));
            }
            Err(_) => return memory,
        }
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    let failed = |error| Error::io("cannot use the socket path", path.display(), error);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(Error::new(Kind::Invalid, "the socket path is taken by something that is not a socket")
                .object(path.display())
                .advice("choose another path or remove what is there"))
        }
        Ok(_) if is_in_use(path).map_err(|errno| failed(errno.into()))? => {
            Err(Error::new(Kind::Conflict, "another process listens on the socket").object(path.display()))
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed),
    }
}

/// Whether a socket at a path is open in some process. The process that listens on it does not notice.
fn is_in_use(path: &Path) -> rustix::io::Result<bool> {
    // A socket of another type is refused before it would wait to be accepted.
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(false),
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Whether the other side of a connection has closed it, and nothing that it sent is left.
pub(crate) fn is_silent_end(stream: &UnixStream) -> bool {
    let peeked = receive(stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    peeked.is_ok_and(|peeked| peeked.len_bytes == 0 && peeked.descriptors.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_refuses_accepts_earlier_connections_and_no_others() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let listener = Listener::bind(&path, SocketAccess::default()).expect("bound");
        let early = UnixStream::connect(&path).expect("connected");
        listener.refuse();
        let late = UnixStream::connect(&path).expect_err("refused");
        assert_eq!(late.kind(), std::io::ErrorKind::NotFound);
        assert!(listener.accept().expect("accepted").is_some());
        assert!(listener.accept().expect("looked").is_none());
        drop(early);
    }

    #[test]
    fn memory_is_found_among_messages_and_nothing_more_comes() {
        let (theirs, ours) = UnixStream::pair().expect("pair");
        let memory = UserFault::create().expect("userfaultfd");
        send(&theirs, b"word", &[]).expect("sent");
        send(&theirs, b"x", &[theirs.as_fd(), memory.as_fd()]).expect("sent");
        assert_eq!(take_memory(&ours).len(), 1);
        assert_eq!(send(&theirs, b"more", &[]), Err(Errno::PIPE));
        assert!(take_memory(&ours).is_empty());
    }

    #[test]
    fn a_socket_has_the_permissions_that_were_asked_for() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        for mode in [0o600, 0o660, 0o777, 0o400] {
            let access = SocketAccess { mode, ..SocketAccess::default() };
            let _listener = Listener::bind(&path, access).expect("bound");
            let found = std::fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(found & 0o7777, mode);
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 0);
    }

    #[test]
    fn descriptors_travel_and_can_be_peeked() {
        let (left, right) = UnixStream::pair().expect("pair");
        let (reader, _writer) = std::io::pipe().expect("pipe");
        send(&left, b"x", &[reader.as_fd(), left.as_fd()]).expect("sent");
        let mut byte = [0];
        let peeked = receive(&right, &mut byte, RecvFlags::PEEK).expect("peeked");
        assert_eq!((peeked.len_bytes, peeked.descriptors.len()), (1, 2));
        let taken = receive(&right, &mut byte, RecvFlags::empty()).expect("received");
        assert_eq!((taken.len_bytes, taken.descriptors.len(), byte), (1, 2, *b"x"));
        drop(left);
        drop((peeked, taken));
        assert_eq!(receive(&right, &mut byte, RecvFlags::empty()).expect("end").len_bytes, 0);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_the_sender_is_known() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).expect("left behind"));
        let listener = Listener::bind(&path, SocketAccess::default()).expect("bound");
        let client = UnixStream::connect(&path).expect("connected");
        let stream = listener.accept().expect("accepted").expect("somebody");
        drop(listener);
        assert!(!path.exists());
        send(&client, b"hello", &[]).expect("sent");
        let received = receive(&stream, &mut [0; 5], RecvFlags::empty()).expect("received");
        assert_eq!(received.sender, Some(rustix::process::getpid()));
    }

    #[test]
    fn a_socket_in_use_is_not_taken() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        assert_eq!(Listener::bind(&path, SocketAccess::default()).expect_err("taken").kind(), Kind::Conflict);
        listener.set_nonblocking(true).expect("set");
        let error = listener.accept().expect_err("the listening process sees no connection");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        std::fs::write(&path, "data").expect("written");
        assert_eq!(
            Listener::bind(&path, SocketAccess::default()).expect_err("refused").kind(),
            Kind::Invalid
        );
        assert_eq!(std::fs::read(&path).expect("read"), b"data");
    }

    #[test]
    fn no_connection_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        let listener =
            Listener::bind(&directory.path().join("socket"), SocketAccess::default()).expect("bound");
        assert!(listener.accept().expect("looked").is_none());
        assert_eq!(listener.nobody_came(Duration::ZERO).kind(), Kind::Unavailable);
    }
}
