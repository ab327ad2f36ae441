//! The kernel calls that safe Rust cannot make: userfaultfd ioctls, anonymous mappings, messages with credentials, and
//! calls in a child before exec.
//!
//! The crate `userfaultfd` covers creation, registration, waking and reading events. Filling pages goes through the
//! three ioctls below instead, because that crate lacks POISON and drops how far a COPY or ZEROPAGE came before it
//! stopped. Messages are received here because the sender's number may be 0 (out of sight), which rustix's type cannot
//! hold.
//!
//! Invariants: every descriptor and mapping has exactly one owner here; every ioctl is wrapped once; nothing outside
//! this module is `unsafe`.
#![expect(
    unsafe_code,
    reason = "userfaultfd ioctls, mmap, control messages and pre_exec have no safe interface"
)]

use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal};
use store::{Error, Kind, PAGE, Result};
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};

/// One message of the kernel about an address space, with addresses as that address space has them.
#[derive(Debug)]
pub(crate) enum Event {
    /// A thread waits for the page that holds this address.
    Fault { address: u64 },
    /// The owner released the bytes of `start..end`; from now on they read as zero.
    Remove { start: u64, end: u64 },
    /// `start..end` is no longer mapped.
    Unmap { start: u64, end: u64 },
    /// `len_bytes` at `source` moved to `target`.
    Remap { source: u64, target: u64, len_bytes: u64 },
    /// The owner forked; this is the descriptor of the child's address space.
    Fork(UserFault),
}

/// Why filling stopped early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The next page is already there.
    Exists,
    /// An event waits to be read, or the address space is changing: read events, then try again.
    Again,
    /// No registered mapping is there, or the range crosses a border of mappings.
    Absent,
    /// The address space has ended.
    Gone,
    /// Any other error, such as no memory.
    Failed(Errno),
}

/// How far a fill came: the bytes done, and why it stopped if it stopped early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Bytes done, a multiple of the page size.
    pub done_bytes: u64,
    /// `None` when the range is done, or when the kernel wants to be asked for the rest again.
    pub stop: Option<Stop>,
}

/// struct uffdio_copy of the kernel interface.
#[repr(C)]
struct Copy {
    target: u64,
    source: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// struct uffdio_zeropage and struct uffdio_poison: the same shape.
#[repr(C)]
struct Span {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

const COPY: Opcode = opcode::read_write::<Copy>(0xAA, 0x03);
const ZEROPAGE: Opcode = opcode::read_write::<Span>(0xAA, 0x04);
const POISON: Opcode = opcode::read_write::<Span>(0xAA, 0x08);

/// A userfaultfd: the handle by which the missing pages of one address space are filled.
///
/// Writing through it reaches only ranges that the owner of that address space registered with it.
#[derive(Debug)]
pub(crate) struct UserFault(Uffd);

impl AsFd for UserFault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl UserFault {
    /// A new userfaultfd over this process, for faults in user and kernel mode.
    pub(crate) fn create() -> Result<Self> {
        UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            .user_mode_only(false)
            .require_features(FeatureFlags::empty())
            .create()
            .map(Self)
            .map_err(|error| {
                Error::new(Kind::Unavailable, "cannot create a userfaultfd")
                    .caused_by(error)
                    .advice("run as root or give this user access to /dev/userfaultfd")
            })
    }

    /// Takes over a descriptor that another process sent.
    ///
    /// # Errors
    /// `Invalid` when it is not a userfaultfd.
    pub(crate) fn adopt(descriptor: OwnedFd) -> Result<Self> {
        let kind = rustix::fs::readlink(descriptor_path(&descriptor), Vec::new()).map_err(|errno| {
            Error::io("cannot inspect a received descriptor", "/proc/self/fd", errno.into())
        })?;
        if kind.to_bytes() != b"anon_inode:[userfaultfd]" {
            return Err(Error::new(Kind::Invalid, "the received descriptor is not a userfaultfd")
                .object(kind.to_string_lossy()));
        }
        set_nonblocking(&descriptor)?;
        Ok(Self::trust(descriptor))
    }

    /// Takes over a descriptor whose sender has checked that it is a userfaultfd.
    pub(crate) fn trust(descriptor: OwnedFd) -> Self {
        // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, and `Uffd` becomes its only owner; on another
        // kind of descriptor every call fails.
        Self(unsafe { Uffd::from_raw_fd(descriptor.into_raw_fd()) })
    }

    /// Registers a mapping of this process: from now on faults on its missing pages come to this descriptor.
    pub(crate) fn register(&self, mapping: &Mapping) -> Result<()> {
        self.0.register(mapping.address.as_ptr(), mapping.len_bytes).map(drop).map_err(|error| {
            Error::new(Kind::Unavailable, "cannot register memory with a userfaultfd").caused_by(error)
        })
    }

    /// Stops fault delivery for a range and wakes the threads that wait in it: missing pages there are zero from now
    /// on.
    ///
    /// The kernel wakes them too, but before it detaches the range from the descriptor. A thread that faults under the
    /// lock of the mapping alone (Linux 6.6 and newer) can begin to wait between the two, and while the owner keeps a
    /// copy of the descriptor, closing this one does not end that wait. So the range is woken once more after the
    /// kernel detached it.
    pub(crate) fn unregister(&self, start: u64, len_bytes: u64) -> Result<()> {
        self.0.unregister(start as *mut c_void, len_bytes as usize).map_err(|error| {
            Error::new(Kind::Unavailable, "cannot unregister memory from a userfaultfd").caused_by(error)
        })?;
        self.wake(start, len_bytes)
    }

    /// Makes the threads that wait in a range try their access again.
    pub(crate) fn wake(&self, start: u64, len_bytes: u64) -> Result<()> {
        self.0
            .wake(start as *mut c_void, len_bytes as usize)
            .map_err(|error| Error::new(Kind::Internal, "cannot wake a faulting thread").caused_by(error))
    }

    /// Reads the next event, if one is queued. One at a time, so that a forked child can be made safe before the next.
    pub(crate) fn read(&self) -> Result<Option<Event>> {
        let event = self.0.read_event().map_err(|error| {
            Error::new(Kind::Unavailable, "cannot read userfaultfd events").caused_by(error)
        })?;
        let event = event.map(Event::from);
        if let Some(Event::Fork(child)) = &event {
            // The child's descriptor has the flags that the parent's was made with, not its present ones.
            set_nonblocking(child)?;
        }
        Ok(event)
    }

    /// Fills the pages from `address` on with `bytes` and wakes the threads that wait for them. Both are page-aligned.
    pub(crate) fn copy(&self, address: u64, bytes: &[u8]) -> Filled {
        debug_assert!(bytes.len().is_multiple_of(PAGE) && address.is_multiple_of(PAGE as u64));
        let mut request = Copy {
            target: address,
            source: bytes.as_ptr() as u64,
            len: bytes.len() as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: COPY is the opcode of exactly this structure. `source..source + len` is the live borrow `bytes`, only
        // read. The kernel writes only to missing pages of ranges registered with this descriptor, never to others.
        let outcome = unsafe { rustix::ioctl::ioctl(self, Updater::<COPY, Copy>::new(&mut request)) };
        filled(outcome, request.copied, request.len)
    }

    /// Fills a page-aligned range with zeroes and wakes the threads that wait for its pages.
    pub(crate) fn zero(&self, start: u64, len_bytes: u64) -> Filled {
        let mut request = Span { start, len: len_bytes, mode: 0, done: 0 };
        // SAFETY: ZEROPAGE is the opcode of exactly this structure; only missing registered pages are written.
        let outcome = unsafe { rustix::ioctl::ioctl(self, Updater::<ZEROPAGE, Span>::new(&mut request)) };
        filled(outcome, request.done, len_bytes)
    }

    /// Marks the pages of a page-aligned range as lost: a thread that touches one gets SIGBUS instead of wrong bytes.
    pub(crate) fn poison(&self, start: u64, len_bytes: u64) -> Filled {
        let mut request = Span { start, len: len_bytes, mode: 0, done: 0 };
        // SAFETY: POISON is the opcode of exactly this structure; only missing registered pages are marked.
        let outcome = unsafe { rustix::ioctl::ioctl(self, Updater::<POISON, Span>::new(&mut request)) };
        filled(outcome, request.done, len_bytes)
    }

    /// Whether the address space still exists. Changes nothing in it.
    pub(crate) fn is_alive(&self) -> bool {
        self.probe() != Errno::SRCH.raw_os_error()
    }

    /// Whether a thread of the owner is making a change that has an event, or waits for that event to be read. Changes
    /// nothing.
    pub(crate) fn is_changing(&self) -> bool {
        self.probe() == Errno::AGAIN.raw_os_error()
    }

    /// The error of a request that has no effect: nothing is registered for write protection, so lifting it finds no
    /// range (ENOENT), unless the owner is gone (ESRCH) or its address space is changing (EAGAIN).
    fn probe(&self) -> i32 {
        match self.0.remove_write_protection(PROBE_ADDRESS as *mut c_void, PAGE, false) {
            Err(userfaultfd::Error::SystemError(errno)) => errno as i32,
            _ => 0,
        }
    }
}

/// Any address that a range check accepts: above the lowest mappable one.
const PROBE_ADDRESS: u64 = 1 << 20;

/// Returns memory that this process has freed to the kernel, wherever in its heaps it lies. Takes a moment for each
/// piece; other threads wait meanwhile when they allocate.
pub fn release_free_memory() {
    // SAFETY: it takes the allocator's own locks and touches only free memory. The result says only whether any memory
    // was returned.
    unsafe { libc::malloc_trim(0) };
}

/// Has threads that are started from now on allocate from the heap of the first. With a heap for each, freed memory
/// stays at the end of the thread's heap, where [`release_free_memory`] does not reach it.
pub fn share_one_heap() {
    // SAFETY: it sets a parameter of the allocator, under its lock. It fails only for an unknown parameter.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Has reads of a userfaultfd return when no event is queued. Applies to all copies of the descriptor, in any process.
pub(crate) fn set_nonblocking(descriptor: impl AsFd) -> Result<()> {
    rustix::fs::fcntl_getfl(&descriptor)
        .and_then(|flags| rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK))
        .map_err(|errno| Error::io("cannot make a userfaultfd non-blocking", "userfaultfd", errno.into()))
}

fn descriptor_path(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Reads the kernel's two ways of answering: an error number, and a count or negative error in the structure.
fn filled(outcome: rustix::io::Result<()>, done: i64, asked: u64) -> Filled {
    let done_bytes = u64::try_from(done).unwrap_or(0).min(asked);
    let stop = match outcome {
        Ok(()) => None,
        Err(Errno::AGAIN) if done_bytes > 0 => None,
        Err(Errno::AGAIN) => Some(Stop::Again),
        Err(Errno::EXIST) => Some(Stop::Exists),
        Err(Errno::NOENT) => Some(Stop::Absent),
        Err(Errno::SRCH | Errno::NOSPC) => Some(Stop::Gone),
        Err(errno) => Some(Stop::Failed(errno)),
    };
    Filled { done_bytes, stop }
}

impl From<userfaultfd::Event> for Event {
    fn from(event: userfaultfd::Event) -> Self {
        match event {
            userfaultfd::Event::Pagefault { addr, .. } => Self::Fault { address: addr as u64 },
            userfaultfd::Event::Remove { start, end } => {
                Self::Remove { start: start as u64, end: end as u64 }
            }
            userfaultfd::Event::Unmap { start, end } => Self::Unmap { start: start as u64, end: end as u64 },
            userfaultfd::Event::Remap { from, to, len } => {
                Self::Remap { source: from as u64, target: to as u64, len_bytes: len as u64 }
            }
            userfaultfd::Event::Fork { uffd } => Self::Fork(UserFault(uffd)),
        }
    }
}

/// The result of one receive.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Zero when the other side has closed.
    pub len_bytes: usize,
    /// In the order in which they were sent, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// The process that sent the message, if the socket asks for credentials and the process is in sight.
    pub sender: Option<Pid>,
}

/// Room for control messages: the 253 descriptors of the longest, and credentials, aligned as the kernel wants.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; CONTROL_BYTES]);

const CONTROL_BYTES: usize = 1280;

/// Receives once from a socket, up to `buffer.len()` bytes.
///
/// # Errors
/// `MFILE` when this process had no room for all descriptors; those that were received are closed.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> rustix::io::Result<Received> {
    let mut control = Control([MaybeUninit::uninit(); CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all of a message header may be zero: null pointers and no lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    let flags = flags.bits() as i32 | libc::MSG_CMSG_CLOEXEC;
    let len = loop {
        // SAFETY: the header points at `buffer` and `control`, both live and as long as it says, neither borrowed.
        let len = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
        if let Ok(len) = usize::try_from(len) {
            break len;
        }
        match Errno::from_io_error(&std::io::Error::last_os_error()) {
            Some(Errno::INTR) => {}
            errno => return Err(errno.unwrap_or(Errno::IO)),
        }
    };
    let received = read_control(&message, len);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::MFILE);
    }
    Ok(received)
}

/// Takes ownership of the descriptors in the control messages of a received message.
fn read_control(message: &libc::msghdr, len_bytes: usize) -> Received {
    let mut received = Received { len_bytes, ..Received::default() };
    // SAFETY: the kernel filled the header's control buffer, which is still live; the macros walk inside its length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it is a complete control header inside the buffer, with its data behind it.
        let (kind, data, data_bytes) = unsafe {
            let data = libc::CMSG_DATA(header);
            let head_bytes = data.offset_from_unsigned(header.cast::<u8>());
            (((*header).cmsg_level, (*header).cmsg_type), data, (*header).cmsg_len.saturating_sub(head_bytes))
        };
        match kind {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                let count = data_bytes / size_of::<RawFd>();
                // SAFETY: the kernel put `count` descriptors there, new in this process and not owned yet.
                let descriptors = (0..count).map(|index| unsafe {
                    OwnedFd::from_raw_fd(data.cast::<RawFd>().add(index).read_unaligned())
                });
                received.descriptors.extend(descriptors);
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if data_bytes >= size_of::<libc::ucred>() => {
                // SAFETY: the data holds at least one such structure of plain integers.
                let credentials = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                received.sender = Pid::from_raw(credentials.pid);
            }
            _ => {}
        }
        // SAFETY: `header` came from these macros over the same live message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    received
}

/// Has the program of a command killed when the thread that starts it ends.
pub(crate) fn kill_with_parent(command: &mut Command) {
    let ask = || rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into);
    // SAFETY: between fork and exec this makes one system call, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(ask) };
}

/// The process that connected the other end of a socket; `None` when it is out of sight, as in another pid namespace.
pub(crate) fn peer(socket: impl AsFd) -> rustix::io::Result<Option<Pid>> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the option writes at most `len` bytes of plain integers into `credentials`.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    match outcome {
        0 => Ok(Pid::from_raw(credentials.pid)),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Private anonymous memory of this process that is only ever read through it.
///
/// Invariant: `address..address + len_bytes` is mapped readable until the value is dropped, is not inherited by a
/// forked child, and no byte of it changes once it has been seen.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<c_void>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent reads are fine.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len_bytes` (a multiple of the page size, not zero) of address space; no memory is used until pages are
    /// filled.
    pub(crate) fn reserve(len_bytes: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of anyone.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len_bytes,
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let address = mapped.ok().and_then(NonNull::new).ok_or_else(|| {
            Error::new(Kind::Unavailable, "cannot map memory").object(format!("{len_bytes} bytes"))
        })?;
        let mapping = Self { address, len_bytes };
        // A forked child would see missing pages as zero: its faults do not come here.
        // SAFETY: the range is the mapping just made; keeping it from children changes nothing in this process.
        unsafe { rustix::mm::madvise(address.as_ptr(), len_bytes, Advice::LinuxDontFork) }
            .map_err(|errno| Error::io("cannot keep a mapping from children", "madvise", errno.into()))?;
        Ok(mapping)
    }

    /// Where it starts in this process.
    pub(crate) fn address(&self) -> u64 {
        self.address.as_ptr() as u64
    }

    /// The bytes. Reading a page that is not filled yet waits for it.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped readable for the life of `self`, and its owner fills each page once, atomically,
        // before any read of it returns (type invariant).
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast::<u8>(), self.len_bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own mapping and no borrow of it can outlive the value.
        let unmapped = unsafe { rustix::mm::munmap(self.address.as_ptr(), self.len_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_those_of_the_kernel_interface() {
        assert_eq!((COPY, ZEROPAGE, POISON), (0xC028_AA03, 0xC020_AA04, 0xC020_AA08));
    }

    #[test]
    fn answers_of_the_kernel_are_read_in_both_their_places() {
        assert_eq!(filled(Ok(()), 8192, 8192), Filled { done_bytes: 8192, stop: None });
        assert_eq!(filled(Err(Errno::AGAIN), 4096, 8192), Filled { done_bytes: 4096, stop: None });
        assert_eq!(filled(Err(Errno::AGAIN), -11, 8192), Filled { done_bytes: 0, stop: Some(Stop::Again) });
        assert_eq!(filled(Err(Errno::EXIST), -17, 8192), Filled { done_bytes: 0, stop: Some(Stop::Exists) });
        assert_eq!(filled(Err(Errno::SRCH), 0, 8192).stop, Some(Stop::Gone));
        assert_eq!(filled(Err(Errno::NOMEM), 0, 8192).stop, Some(Stop::Failed(Errno::NOMEM)));
    }

    #[test]
    fn a_pipe_is_not_adopted_as_a_userfaultfd() {
        let (reader, _writer) = std::io::pipe().expect("pipe");
        let refused = UserFault::adopt(reader.into()).expect_err("refused");
        assert_eq!(refused.kind(), Kind::Invalid);
    }

    /// A thread reads a missing page in the moment at which its range is unregistered, while the descriptor stays open.
    #[test]
    fn a_reader_does_not_wait_in_a_range_that_is_unregistered() {
        use std::sync::mpsc;
        let fault = UserFault::create().expect("userfaultfd");
        let (send_mapping, mappings) = mpsc::channel::<std::sync::Arc<Mapping>>();
        let (send_byte, bytes) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            mappings.iter().all(|mapping| send_byte.send(mapping.bytes()[0]).is_ok());
        });
        for round in 0..2_000_u32 {
            let mapping = std::sync::Arc::new(Mapping::reserve(PAGE).expect("mapping"));
            fault.register(&mapping).expect("registered");
            let start = mapping.address();
            send_mapping.send(mapping).expect("the reader reads");
            // The reader reads before, during and after the unregistering.
            (0..round % 50 * 100).for_each(|_| std::hint::spin_loop());
            fault.unregister(start, PAGE as u64).expect("unregistered");
            let byte = bytes.recv_timeout(std::time::Duration::from_secs(10));
            if byte.is_err() {
                // Wakes the reader, so that the test ends instead of hanging.
                fault.wake(start, PAGE as u64).expect("woken");
            }
            assert_eq!(byte, Ok(0), "round {round}");
        }
        drop(send_mapping);
        reader.join().expect("the reader ends");
    }

    #[test]
    fn fills_wakes_and_poisons_real_memory() {
        let mapping = Mapping::reserve(4 * PAGE).expect("mapping");
        let fault = UserFault::create().expect("userfaultfd");
        fault.register(&mapping).expect("registered");
        let start = mapping.address();
        assert_eq!(fault.copy(start, &[7; PAGE]), Filled { done_bytes: PAGE as u64, stop: None });
        assert_eq!(fault.copy(start, &[8; PAGE]).stop, Some(Stop::Exists));
        assert_eq!(fault.zero(start + PAGE as u64, PAGE as u64).stop, None);
        assert_eq!(fault.poison(start + 2 * PAGE as u64, PAGE as u64).stop, None);
        assert_eq!(fault.copy(start + 4 * PAGE as u64, &[8; PAGE]).stop, Some(Stop::Absent));
        assert!(fault.is_alive());
        assert!(mapping.bytes()[..PAGE].iter().all(|byte| *byte == 7));
        assert!(mapping.bytes()[PAGE..2 * PAGE].iter().all(|byte| *byte == 0));
        fault.unregister(start, 4 * PAGE as u64).expect("unregistered");
    }
}
