//! Unix sockets that carry descriptors: listen, accept, send. Receiving is in `sys`.
//!
//! Every wait has a deadline.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use store::{Error, Kind, Result};

use crate::sys::receive;

/// More than anybody here sends in one message.
const DESCRIPTORS_PER_MESSAGE: usize = 16;

/// Sends all of a short message with descriptors attached.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
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
pub fn wait_readable(descriptor: impl AsFd, deadline: Instant) -> Result<bool> {
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
pub fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A listening socket at a path, for one connection. The path is free again when the value is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Whoever removed it first has done the same thing.
        drop(std::fs::remove_file(&self.path));
    }
}

impl Listener {
    /// Listens at a path, taking the place of a socket that nobody answers any more. When the path appears, connecting
    /// works.
    ///
    /// # Errors
    /// `Conflict` when somebody listens there, `Invalid` when something else than a socket has the path.
    pub fn bind(path: &Path) -> Result<Self> {
        let failed = |error| {
            let advice =
                "the path must be shorter than 100 bytes and its directory must exist and be writable";
            Error::io("cannot listen on a socket", path.display(), error).advice(advice)
        };
        remove_stale(path)?;
        // Made under another name: between binding and listening a connection would be refused.
        let mut unready = path.as_os_str().to_owned();
        unready.push(format!(".{}", std::process::id()));
        let unready = PathBuf::from(unready);
        remove_stale(&unready)?;
        let listener = UnixListener::bind(&unready).map_err(failed)?;
        std::fs::rename(&unready, path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Accepts one connection; `None` when nobody connects in time.
    pub fn accept(&self, timeout: Duration) -> Result<Option<UnixStream>> {
        if !wait_readable(&self.listener, Instant::now() + timeout)? {
            return Ok(None);
        }
        accept(&self.listener).map(Some).map_err(|error| error.object(self.path.display()))
    }

    /// The error of waiting in vain.
    pub fn nobody_came(&self, timeout: Duration) -> Error {
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

/// Accepts a connection that waits, and asks for the credentials of whoever sends on it.
pub fn accept(listener: impl AsFd) -> Result<UnixStream> {
    let failed = |errno: Errno| Error::io("cannot accept a connection", "socket", errno.into());
    let stream = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).map_err(failed)?;
    rustix::net::sockopt::set_socket_passcred(&stream, true).map_err(failed)?;
    Ok(UnixStream::from(stream))
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

/// Whether a socket at a path is open in some process. Whoever listens on it does not notice.
fn is_in_use(path: &Path) -> rustix::io::Result<bool> {
    // A socket of another type is turned away before it would wait to be accepted.
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(false),
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Whether the other side of a connection has closed without having said a word.
pub fn is_silent_end(stream: &UnixStream) -> bool {
    let peeked = receive(stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    peeked.is_ok_and(|peeked| peeked.len_bytes == 0 && peeked.descriptors.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let listener = Listener::bind(&path).expect("bound");
        let client = UnixStream::connect(&path).expect("connected");
        let stream = listener.accept(Duration::from_secs(5)).expect("accepted").expect("somebody");
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
        assert_eq!(Listener::bind(&path).expect_err("taken").kind(), Kind::Conflict);
        listener.set_nonblocking(true).expect("set");
        let error = listener.accept().expect_err("whoever listens is not bothered");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        std::fs::write(&path, "data").expect("written");
        assert_eq!(Listener::bind(&path).expect_err("refused").kind(), Kind::Invalid);
        assert_eq!(std::fs::read(&path).expect("read"), b"data");
    }

    #[test]
    fn nobody_coming_is_told_in_time() {
        let directory = tempfile::tempdir().expect("directory");
        let listener = Listener::bind(&directory.path().join("socket")).expect("bound");
        assert!(listener.accept(Duration::from_millis(50)).expect("waited").is_none());
        assert_eq!(listener.nobody_came(Duration::ZERO).kind(), Kind::Unavailable);
    }
}
