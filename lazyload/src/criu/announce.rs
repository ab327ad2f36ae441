//! The messages of CRIU on the lazy-pages socket: one announcement per task, then one mark.
//!
//! An announcement is the task's number (four bytes, host order) and, in a second message of one byte, its userfaultfd;
//! a zombie is announced by its number negated and sends no descriptor. The mark 0x52535446 says that every task is in
//! place. The protocol has no answers. This module keeps partial words between calls and never waits.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::Pid;
use store::{Error, Kind, Result};

use crate::connection::Connection;
use crate::reception::Greeting;
use crate::sys::{UserFault, receive};

const RESTORE_FINISHED: i32 = 0x5253_5446;
/// No task has this number or a higher one.
const TASK_LIMIT: i32 = 1 << 22;

/// The first announcement of a restore. It stays in the socket.
#[derive(Debug, Default)]
pub(crate) struct FirstAnnouncement;

impl Greeting for FirstAnnouncement {
    fn receive(&mut self, connection: &Connection<'_>) -> Result<bool> {
        let mut buffer = [0; 5];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let Some(seen) = unless_empty(receive(connection.stream(), &mut buffer, flags))? else {
            return Ok(false);
        };
        let [first, second, third, fourth, _] = buffer;
        match (seen.len_bytes, i32::from_ne_bytes([first, second, third, fourth])) {
            (0..4, _) => Ok(false),
            (_, RESTORE_FINISHED) => Ok(true),
            (_, word) if word == 0 || word.unsigned_abs() >= TASK_LIMIT.unsigned_abs() => {
                Err(broken("what came is no announcement of a task"))
            }
            (_, ..0) => Ok(true),
            (4, _) => Ok(false),
            _ => match seen.descriptors.into_iter().map(UserFault::adopt).next() {
                Some(Ok(_)) => Ok(true),
                _ => Err(broken("a task came without its userfaultfd")),
            },
        }
    }

    fn has_memory(&self) -> bool {
        false
    }
}

/// One message.
#[derive(Debug)]
pub(crate) enum Announcement {
    /// A task; its descriptor also stays in the socket until [`Announcements::take_descriptor`].
    Task { task: u32, sender: Option<Pid>, descriptor: OwnedFd },
    /// A task without memory.
    Zombie,
    /// Every task is in place.
    Finished,
    /// The other side has closed.
    Closed,
}

/// Reads announcements from a connection.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    word: Vec<u8>,
    /// The task whose descriptor comes next.
    expected: Option<u32>,
}

impl Announcements {
    /// Receives the next announcement; `None` when more bytes must come first.
    ///
    /// # Errors
    /// `Invalid` when the other side breaks the protocol.
    pub(crate) fn next(&mut self, stream: &UnixStream) -> Result<Option<Announcement>> {
        match self.expected {
            Some(task) => peek_descriptor(stream, task),
            None => self.read_word(stream),
        }
    }

    fn read_word(&mut self, stream: &UnixStream) -> Result<Option<Announcement>> {
        let mut buffer = [0; 4];
        let wanted = buffer.len() - self.word.len();
        let Some(received) = unless_empty(receive(stream, &mut buffer[..wanted], RecvFlags::DONTWAIT))?
        else {
            return Ok(None);
        };
        if received.len_bytes == 0 {
            return Ok(Some(Announcement::Closed));
        }
        self.word.extend_from_slice(&buffer[..received.len_bytes]);
        let Ok(word) = <[u8; 4]>::try_from(self.word.as_slice()) else { return Ok(None) };
        self.word.clear();
        match i32::from_ne_bytes(word) {
            RESTORE_FINISHED => Ok(Some(Announcement::Finished)),
            0 => Err(broken("a task has the number 0")),
            zombie @ ..0 => {
                tracing::debug!(zombie, "a task without memory");
                Ok(Some(Announcement::Zombie))
            }
            task => {
                self.expected = Some(task.unsigned_abs());
                self.next(stream)
            }
        }
    }

    /// Takes the descriptor that was announced last out of the socket, once its copy is in escrow.
    pub(crate) fn take_descriptor(&mut self, stream: &UnixStream) -> Result<()> {
        unless_empty(receive(stream, &mut [0], RecvFlags::DONTWAIT))?;
        self.expected = None;
        Ok(())
    }
}

/// Receives the descriptor and leaves it in the socket, which the supervisor has too: should this process die before
/// its deposit, the one in the socket keeps the userfaultfd open.
fn peek_descriptor(stream: &UnixStream, task: u32) -> Result<Option<Announcement>> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let Some(received) = unless_empty(receive(stream, &mut [0], flags))? else { return Ok(None) };
    if received.len_bytes == 0 {
        return Ok(Some(Announcement::Closed));
    }
    let sender = received.sender;
    match <[OwnedFd; 1]>::try_from(received.descriptors) {
        Ok([descriptor]) => Ok(Some(Announcement::Task { task, sender, descriptor })),
        Err(_) => Err(broken("a task came without exactly one descriptor")),
    }
}

/// `None` when nothing has come yet.
fn unless_empty<T>(received: rustix::io::Result<T>) -> Result<Option<T>> {
    match received {
        Ok(received) => Ok(Some(received)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Error::io("cannot read announcements", "lazy-pages.socket", errno.into())),
    }
}

fn broken(what: &str) -> Error {
    Error::new(Kind::Invalid, what)
        .object("lazy-pages.socket")
        .caused_by(std::io::Error::from(ErrorKind::InvalidData))
        .advice("only criu restore --lazy-pages may connect")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::send;
    use std::os::fd::AsFd;

    #[test]
    fn tasks_zombies_and_the_mark_in_any_pieces() {
        let (criu, ours) = UnixStream::pair().expect("pair");
        let (reader, _writer) = std::io::pipe().expect("pipe");
        let mut announcements = Announcements::default();
        assert!(announcements.next(&ours).expect("quiet").is_none());
        send(&criu, &[0x2A, 0], &[]).expect("sent");
        assert!(announcements.next(&ours).expect("half a word").is_none());
        send(&criu, &[0, 0], &[]).expect("sent");
        assert!(announcements.next(&ours).expect("no descriptor yet").is_none());
        send(&criu, &[0], &[reader.as_fd()]).expect("sent");
        for _ in 0..2 {
            let next = announcements.next(&ours).expect("peeked twice");
            assert!(matches!(next, Some(Announcement::Task { task: 42, .. })), "{next:?}");
        }
        announcements.take_descriptor(&ours).expect("taken");
        send(&criu, &(-7i32).to_ne_bytes(), &[]).expect("sent");
        assert!(matches!(announcements.next(&ours), Ok(Some(Announcement::Zombie))));
        send(&criu, &0x5253_5446u32.to_ne_bytes(), &[]).expect("sent");
        assert!(matches!(announcements.next(&ours), Ok(Some(Announcement::Finished))));
        drop(criu);
        assert!(matches!(announcements.next(&ours), Ok(Some(Announcement::Closed))));
    }

    #[test]
    fn a_task_without_its_descriptor_is_refused() {
        let (criu, ours) = UnixStream::pair().expect("pair");
        let mut announcements = Announcements::default();
        send(&criu, &5i32.to_ne_bytes(), &[]).expect("sent");
        send(&criu, &[0], &[]).expect("sent");
        assert_eq!(announcements.next(&ours).expect_err("refused").kind(), Kind::Invalid);
    }
}
