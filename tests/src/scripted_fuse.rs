//! A small FUSE file system that a test scripts: before each request is answered the test may change the nodes, so that
//! a race has one outcome, and any answer may be an error. Speaks the kernel's protocol (`linux/fuse.h`, version 7.31)
//! itself; nothing is cached by the kernel.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The number of the root.
pub const ROOT: u64 = 1;
/// Requests are no longer than this.
const REQUEST_LEN: usize = 1 << 20;
/// Replies to reads are no longer than this, and neither is a listing.
const REPLY_LEN: usize = 128 << 10;

/// The answer of `SEEK_DATA` and `SEEK_HOLE` for an offset and `whence`.
pub type Seek = fn(u64, u32) -> Result<u64, i32>;

/// An inode. Errors are numbers of `errno`.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Type and permissions.
    pub mode: u32,
    /// Length in `stat`; the bytes may be more or fewer.
    pub len_bytes: u64,
    /// Blocks in `stat`, in units of 512.
    pub blocks: u64,
    /// Number of names.
    pub links: u32,
    /// Time of the last change of bytes, and of anything.
    pub times: (u64, u64),
    /// Bytes of a file, or the target of a link.
    pub bytes: Vec<u8>,
    /// Names of a directory.
    pub names: BTreeMap<String, u64>,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Result<Vec<u8>, i32>>,
    /// Why the names of extended attributes cannot be listed.
    pub list_error: Option<i32>,
    /// Why it cannot be synced.
    pub sync_error: Option<i32>,
    /// Where its holes are said to be.
    pub seek: Option<Seek>,
}

impl Node {
    /// A directory of these names.
    pub fn directory(names: &[(&str, u64)]) -> Self {
        let names = names.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        Self { mode: libc::S_IFDIR | 0o755, links: 1, times: (1000, 1000), names, ..Self::default() }
    }

    /// A file of these bytes.
    pub fn file(mode: u32, bytes: &[u8]) -> Self {
        let blocks = (bytes.len() as u64).div_ceil(512);
        let (len_bytes, bytes) = (bytes.len() as u64, bytes.to_vec());
        let mode = libc::S_IFREG | mode;
        Self { mode, len_bytes, blocks, links: 1, times: (1000, 1000), bytes, ..Self::default() }
    }

    /// A symbolic link.
    pub fn link(target: &str) -> Self {
        Self { mode: libc::S_IFLNK | 0o777, ..Self::file(0, target.as_bytes()) }
    }
}

/// All inodes by number.
pub type Nodes = BTreeMap<u64, Node>;

/// The requests of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A name of a directory.
    Lookup,
    /// How an inode looks.
    Stat,
    /// To open a file.
    Open,
    /// To open a directory.
    OpenDirectory,
    /// Bytes.
    Read,
    /// Anything else.
    Other,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its kind.
    pub asked: Asked,
    /// Its inode.
    pub node: u64,
    /// The name that is looked up.
    pub name: String,
    opcode: u32,
    body: Vec<u8>,
}

type Before = Box<dyn FnMut(&Request, &mut Nodes) -> Result<(), i32> + Send>;

/// A mount, served by a thread of its own until it is dropped.
pub struct ScriptedMount {
    place: CString,
    nodes: Arc<Mutex<Nodes>>,
    server: Option<JoinHandle<()>>,
}

impl ScriptedMount {
    /// Mounts `nodes` at a directory. `before` is called before each request is answered and may change the nodes, or
    /// answer with an error.
    pub fn new(
        place: &Path,
        nodes: Nodes,
        before: impl FnMut(&Request, &mut Nodes) -> Result<(), i32> + Send + 'static,
    ) -> Self {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).expect("there is FUSE");
        let place = CString::new(place.as_os_str().as_encoded_bytes()).expect("a path has no zero");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).expect("options have no zero");
        rustix::mount::mount(c"scripted", &place, c"fuse", MountFlags::empty(), options.as_c_str())
            .expect("root may mount");
        let nodes = Arc::new(Mutex::new(nodes));
        let server = Server { device, nodes: nodes.clone(), before: Box::new(before) };
        let server = std::thread::Builder::new().name("scripted".to_owned()).spawn(move || server.run());
        Self { place, nodes, server: Some(server.expect("a thread")) }
    }

    /// The current nodes.
    pub fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ScriptedMount {
    fn drop(&mut self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
        if rustix::mount::unmount(&self.place, flags).is_ok()
            && let Some(server) = self.server.take()
            && server.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the script of the file system panicked");
        }
    }
}

struct Server {
    device: OwnedFd,
    nodes: Arc<Mutex<Nodes>>,
    before: Before,
}

impl Server {
    fn run(mut self) {
        let mut buffer = vec![0; REQUEST_LEN + 4096];
        loop {
            let len = match rustix::io::read(&self.device, &mut buffer) {
                Ok(len) => len,
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(_) => return, // unmounted
            };
            let (opcode, unique) = (word(&buffer, 4), long(&buffer, 8));
            let node = long(&buffer, 16);
            if [FORGET, BATCH_FORGET, INTERRUPT].contains(&opcode) {
                continue;
            }
            let answer = self.answer(Request::parse(opcode, node, &buffer[40..len]));
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (-error, Vec::new()),
            };
            let mut reply = Bytes::default();
            reply.word(16 + body.len() as u32).word(error as u32).long(unique);
            reply.0.extend_from_slice(&body);
            // The caller may have been interrupted, or the mount may be gone.
            let _ = rustix::io::write(&self.device, &reply.0);
        }
    }

    fn answer(&mut self, request: Request) -> Result<Vec<u8>, i32> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if request.opcode == INIT {
            return Ok(init());
        }
        (self.before)(&request, &mut nodes)?;
        let number = request.node;
        let node = nodes.get(&number).ok_or(libc::ENOENT)?;
        let mut reply = Bytes::default();
        match request.opcode {
            LOOKUP => {
                let number = *node.names.get(&request.name).ok_or(libc::ENOENT)?;
                let node = nodes.get(&number).ok_or(libc::ENOENT)?;
                reply.long(number).long(0).long(0).long(0).long(0).attributes(number, node);
            }
            GETATTR => reply.long(0).long(0).attributes(number, node),
            READLINK => reply.0.extend_from_slice(&node.bytes),
            OPEN | OPENDIR => {
                reply.long(0).word(1).word(0); // direct I/O: reads return exactly the answer
            }
            READ | READDIR => {
                let (offset, len) = (long(&request.body, 8) as usize, word(&request.body, 16) as usize);
                let listing = (request.opcode == READDIR).then(|| listing(node));
                let bytes = listing.as_ref().unwrap_or(&node.bytes);
                let rest = bytes.get(offset..).unwrap_or_default();
                reply.0.extend_from_slice(&rest[..rest.len().min(len).min(REPLY_LEN)]);
            }
            FSYNC => return node.sync_error.map_or(Ok(Vec::new()), Err),
            LISTXATTR => {
                let names = node.list_error.map_or(Ok(()), Err).map(|()| listed_xattrs(node))?;
                sized(&mut reply, word(&request.body, 0) as usize, &names)?;
            }
            GETXATTR => {
                let name = text(&request.body[8..]);
                let value = node.xattrs.get(&name).ok_or(libc::ENODATA)?.clone()?;
                sized(&mut reply, word(&request.body, 0) as usize, &value)?;
            }
            LSEEK => {
                let answer = node.seek.ok_or(libc::ENOSYS)?;
                reply.long(answer(long(&request.body, 8), word(&request.body, 16))?);
            }
            STATFS => reply.0.extend_from_slice(&[0; 80]),
            RELEASE | RELEASEDIR | FLUSH | ACCESS | DESTROY => {}
            _ => return Err(libc::ENOSYS),
        }
        Ok(reply.0)
    }
}

impl Request {
    fn parse(opcode: u32, node: u64, body: &[u8]) -> Self {
        let asked = match opcode {
            LOOKUP => Asked::Lookup,
            GETATTR => Asked::Stat,
            OPEN => Asked::Open,
            OPENDIR => Asked::OpenDirectory,
            READ => Asked::Read,
            _ => Asked::Other,
        };
        let name = if opcode == LOOKUP { text(body) } else { String::new() };
        Self { asked, node, name, opcode, body: body.to_vec() }
    }
}

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const READLINK: u32 = 5;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const ACCESS: u32 = 34;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;
const LSEEK: u32 = 46;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A string that ends with a zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Bytes of a reply.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn word(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn long(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn attributes(&mut self, number: u64, node: &Node) {
        let (changed, touched) = node.times;
        self.long(number).long(node.len_bytes).long(node.blocks).long(changed).long(changed).long(touched);
        self.word(0).word(0).word(0).word(node.mode).word(node.links).word(0).word(0).word(0);
        self.word(4096).word(0);
    }
}

fn init() -> Vec<u8> {
    let mut reply = Bytes::default();
    reply.word(7).word(31).word(0).word(0); // no readahead, no flags
    reply.word(0).word(64 << 10).word(1).word(0); // of which the second is the longest write, the third the grain of times
    reply.0.resize(64, 0);
    reply.0
}

fn listing(node: &Node) -> Vec<u8> {
    let mut listing = Bytes::default();
    for (name, number) in &node.names {
        let end = listing.0.len() + (24 + name.len()).next_multiple_of(8);
        listing.long(*number).long(end as u64).word(name.len() as u32).word(0);
        listing.0.extend_from_slice(name.as_bytes());
        listing.0.resize(end, 0);
    }
    listing.0
}

fn listed_xattrs(node: &Node) -> Vec<u8> {
    node.xattrs.keys().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect()
}

/// An answer whose length the kernel may ask for first.
fn sized(reply: &mut Bytes, room: usize, bytes: &[u8]) -> Result<(), i32> {
    match room {
        0 => {
            reply.word(bytes.len() as u32).word(0);
        }
        room if room < bytes.len() => return Err(libc::ERANGE),
        _ => reply.0.extend_from_slice(bytes),
    }
    Ok(())
}
