//! Translation between the FUSE protocol and [`Overlay`]: with `convert` below it the only files that use the FUSE library.
//!
//! All changes come through this kernel, so everything it caches stays right for ever: names, absent names, attributes and
//! pages. It may keep only listings that cannot change: in a kept listing it looks for the very line that a reader saw last,
//! and ends the reader's listing when that name is gone. Files need no handle, so opening one is answered by "not
//! implemented", after which the kernel opens and closes files without asking.

mod convert;

use crate::change::NewBody;
use crate::errno::{Answer, Errno};
use crate::node::Stat;
use crate::overlay::{Listed, Overlay, RenameMode, Seek, SetAttributes};
use convert::{absent, attr, caller, code, kind, node, reply_data, reply_xattr, time_to_set};
use fuser::{
    Config, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, XattrFlags};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use store::{Error, Result};

/// How long the kernel may believe what it is told: longer than any mount lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Threads that serve one mount. Each has a buffer of 16 MiB, touched only as far as requests are long.
const THREADS: usize = 4;
/// Largest write in one request.
const WRITE_MAX: u32 = 1 << 20;
/// Requests that the kernel may have in flight without anybody waiting for them.
const BACKGROUND_MAX: u16 = 64;
const GENERATION: Generation = Generation(0);

/// A mount that answers on a kernel connection.
pub struct Server(Session<Adapter>);

impl Server {
    /// Takes over a connection that was just mounted, and agrees with the kernel on the protocol.
    ///
    /// # Errors
    /// When the kernel's protocol is too old, and those of reading from the connection.
    pub fn new(
        overlay: Arc<Overlay>,
        connection: OwnedFd,
        allow_other: bool,
        release_memory: fn(),
    ) -> Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        let notifier = Arc::new(OnceLock::new());
        let adapter = Adapter { overlay, notifier: notifier.clone(), release_memory };
        let session = Session::from_fd(adapter, connection, config.acl, config)
            .map_err(|error| Error::io("the kernel refuses the mount", "/dev/fuse", error))?;
        notifier.get_or_init(|| session.notifier());
        Ok(Self(session))
    }

    /// Answers until the mount is gone.
    ///
    /// # Errors
    /// When a serving thread ended early.
    pub fn run(self) -> Result<()> {
        self.0.run().map_err(|error| Error::io("serving the mount failed", "/dev/fuse", error))
    }
}

struct Adapter {
    overlay: Arc<Overlay>,
    notifier: Arc<OnceLock<Notifier>>,
    release_memory: fn(),
}

impl Adapter {
    /// What follows every change once the application has its answer.
    fn after_change(&self) {
        self.overlay.compact_if_long();
    }

    /// The kernel goes by its own copy of the mode when it runs a file; this makes it ask again.
    fn mode_changed(&self, node: INodeNo) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(node, -1, 0)
        {
            tracing::debug!(%error, "the kernel keeps an old mode until it asks by itself");
        }
    }

    /// Adds the lines of a directory from a cookie on until `add` says that the reply is full. An error behind the first
    /// line is left to the next request.
    fn each_line(&self, ino: INodeNo, cookie: u64, mut add: impl FnMut(&Listed) -> bool) -> Answer<()> {
        let mut next = cookie;
        loop {
            let lines = match self.overlay.list(node(ino), next) {
                Ok(lines) if lines.is_empty() => return Ok(()),
                Ok(lines) => lines,
                Err(_) if next != cookie => return Ok(()),
                Err(errno) => return Err(errno),
            };
            for line in &lines {
                if add(line) {
                    return Ok(());
                }
                next = line.next;
            }
        }
    }

    fn reply_made(&self, made: Answer<Stat>, reply: ReplyEntry) {
        match made {
            Ok(stat) => reply.entry(&FOREVER, &attr(&stat), GENERATION),
            Err(errno) => reply.error(code(errno)),
        }
        self.after_change();
    }

    fn reply_empty(&self, done: Answer<()>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
        }
        self.after_change();
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            // Without it every write asks for file capabilities first.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for capability in wanted {
            if let Err(missing) = config.add_capabilities(capability) {
                tracing::debug!(?missing, "the kernel lacks a capability");
            }
        }
        let limits =
            [config.set_max_write(WRITE_MAX).is_ok(), config.set_max_background(BACKGROUND_MAX).is_ok()];
        assert!(limits.iter().all(|set| *set), "the limits are within those of the protocol");
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.overlay.lookup(node(parent), name.as_bytes()) {
            Ok(Some(stat)) => reply.entry(&FOREVER, &attr(&stat), GENERATION),
            Ok(None) => reply.entry(&FOREVER, &absent(), GENERATION),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        if self.overlay.forget(node(ino), nlookup) {
            (self.release_memory)();
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.overlay.stat(node(ino)) {
            Ok(stat) => reply.attr(&FOREVER, &attr(&stat)),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(time_to_set), mtime.map(time_to_set));
        let set = SetAttributes { mode, uid, gid, len_bytes: size, atime, mtime };
        match self.overlay.set_attributes(node(ino), set, request.uid() == 0) {
            Ok(stat) => reply.attr(&FOREVER, &attr(&stat)),
            Err(errno) => reply.error(code(errno)),
        }
        self.after_change();
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        reply_data(self.overlay.readlink(node(ino)), reply);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(body) = NewBody::of_mode(mode, rdev.into()) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        self.reply_made(self.overlay.make(node(parent), name.as_bytes(), mode, caller(request), body), reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let body = NewBody::Directory;
        self.reply_made(self.overlay.make(node(parent), name.as_bytes(), mode, caller(request), body), reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let body = NewBody::Symlink(target.as_os_str().as_bytes().to_vec());
        self.reply_made(
            self.overlay.make(node(parent), link_name.as_bytes(), 0o777, caller(request), body),
            reply,
        );
    }

    fn link(&self, _request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.reply_made(self.overlay.link(node(ino), node(newparent), newname.as_bytes()), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.reply_empty(self.overlay.unlink(node(parent), name.as_bytes()), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.reply_empty(self.overlay.rmdir(node(parent), name.as_bytes()), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = RenameMode::of_flags(flags.bits()) else { return reply.error(fuser::Errno::EINVAL) };
        let (from, to) = ((node(parent), name.as_bytes()), (node(newparent), newname.as_bytes()));
        self.reply_empty(self.overlay.rename(from, to, mode), reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let flags = FopenFlags::FOPEN_KEEP_CACHE;
        match self.overlay.make(node(parent), name.as_bytes(), mode, caller(request), NewBody::File) {
            Ok(stat) => reply.created(&FOREVER, &attr(&stat), GENERATION, FileHandle(0), flags),
            Err(errno) => reply.error(code(errno)),
        }
        self.after_change();
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply_data(self.overlay.read(node(ino), offset, size as usize), reply);
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let drops_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.overlay.write(node(ino), offset, data, drops_set_id) {
            Ok(mode_changed) => {
                reply.written(data.len() as u32);
                if mode_changed {
                    self.mode_changed(ino);
                }
            }
            Err(errno) => reply.error(code(errno)),
        }
        self.after_change();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.reply_empty(self.overlay.sync(node(ino)), reply);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.reply_empty(self.overlay.sync_names(), reply);
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.overlay.open_listing(node(ino)) {
            Ok(true) => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
            }
            Ok(false) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.each_line(ino, offset, |line| {
            reply.add(INodeNo(line.id.0), line.next, kind(line.kind), OsStr::from_bytes(&line.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.each_line(ino, offset, |line| {
            let name = OsStr::from_bytes(&line.name);
            // The kernel takes no hold on these two.
            if matches!(line.name.as_slice(), b"." | b"..") {
                let attr = FileAttr { ino: INodeNo(line.id.0), kind: FileType::Directory, ..absent() };
                return reply.add(attr.ino, line.next, name, &FOREVER, &attr, GENERATION);
            }
            let stat = match self.overlay.lookup(node(ino), &line.name) {
                Ok(Some(stat)) => stat,
                // It went since the line was made, or cannot be read: whoever asks for it by name is told why.
                Ok(None) | Err(_) => return false,
            };
            let attr = attr(&stat);
            let is_full = reply.add(attr.ino, line.next, name, &FOREVER, &attr, GENERATION);
            if is_full {
                self.overlay.forget(stat.id, 1);
            }
            is_full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.overlay.close_listing(node(ino));
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.overlay.space() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                space.f_bsize as u32,
                255,
                space.f_frsize as u32,
            ),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags as u32);
        self.reply_empty(self.overlay.set_xattr(node(ino), name.as_bytes(), value, flags), reply);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.overlay.xattr(node(ino), name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(self.overlay.xattr_names(node(ino)), size, reply);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.reply_empty(self.overlay.remove_xattr(node(ino), name.as_bytes()), reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let range = offset..offset.saturating_add(length);
        let allocated = self.overlay.allocate(node(ino), range, mode, request.uid() != 0);
        self.reply_empty(allocated, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(what) = Seek::of_whence(whence) else { return reply.error(fuser::Errno::EINVAL) };
        let found = u64::try_from(offset).map_err(|_| Errno::NXIO);
        match found.and_then(|offset| self.overlay.seek(node(ino), offset, what)) {
            Ok(offset) => reply.offset(offset as i64),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((node(ino_in), offset_in), (node(ino_out), offset_out));
        match self.overlay.copy(from, to, len, request.uid() != 0) {
            Ok(copied) => reply.written(copied as u32),
            Err(errno) => reply.error(code(errno)),
        }
        self.after_change();
    }
}
