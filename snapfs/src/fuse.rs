//! Translation between the FUSE protocol and [`Overlay`]: only it and its `values` use the FUSE library.
//!
//! All changes come through this kernel, so everything it caches stays right for ever: names, absent names, attributes,
//! pages and listings. Files need no handle, so opening one is answered by "not implemented", after which the kernel opens
//! and closes files without asking.

mod values;

use crate::change::NewBody;
use crate::errno::{Answer, Errno};
use crate::node::Stat;
use crate::overlay::{Caller, Overlay, RenameMode, Seek, SetAttributes};
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
use values::{absent, attr, bytes, caller, code, kind, node, reply_data, reply_xattr, time_to_set};

/// How long the kernel may believe what it is told: longer than any mount lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Threads that serve one mount. Each has a buffer of 16 MiB, touched only as far as requests are long.
const THREADS: usize = 4;
/// Largest write in one request.
const WRITE_MAX: u32 = 1 << 20;
/// Requests that the kernel may have in flight without anybody waiting for them.
const BACKGROUND_MAX: u16 = 64;
/// A change of a few bytes has a freeze store the chunk again that they are in, or two.
const CHANGE_WEIGHT: u64 = 128 << 10;
const GENERATION: Generation = Generation(0);

/// A mount that answers on a kernel connection.
pub struct Server(Session<Adapter>);

impl Server {
    /// Takes over a connection that was just mounted, and agrees with the kernel on the protocol.
    ///
    /// # Errors
    /// When the kernel's protocol is too old, and those of reading from the connection.
    pub fn new(overlay: Arc<Overlay>, connection: OwnedFd, allow_other: bool) -> Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        let notifier = Arc::new(OnceLock::new());
        let adapter = Adapter { overlay, notifier: notifier.clone() };
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

#[derive(Clone)]
struct Adapter {
    overlay: Arc<Overlay>,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    /// Makes a change: now, or in a thread of its own once changes go on again.
    fn change(&self, change: impl FnOnce(&Self) + Send + 'static) {
        self.change_bytes(0, change);
    }

    /// As [`Self::change`], for one that gives a file so many bytes.
    fn change_bytes(&self, len_bytes: u64, change: impl FnOnce(&Self) + Send + 'static) {
        let adapter = self.clone();
        let weight_bytes = len_bytes.saturating_add(CHANGE_WEIGHT);
        if self.overlay.gate().run(weight_bytes, move || change(&adapter)) {
            self.after_change();
        }
    }

    /// What follows every change once the application has its answer.
    fn after_change(&self) {
        self.overlay.compact_if_long();
    }

    fn answer_write(&self, ino: INodeNo, offset: u64, data: &[u8], drops_set_id: bool, reply: ReplyWrite) {
        match self.overlay.write(node(ino), offset, data, drops_set_id) {
            Ok(mode_changed) => {
                reply.written(data.len() as u32);
                if mode_changed {
                    self.mode_changed(ino);
                }
            }
            Err(errno) => reply.error(code(errno)),
        }
    }

    /// The kernel goes by its own copy of the mode when it runs a file; this makes it ask again.
    fn mode_changed(&self, node: INodeNo) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(node, -1, 0)
        {
            tracing::debug!(%error, "the kernel keeps an old mode until it asks by itself");
        }
    }

    fn make(
        &self,
        (parent, name): (INodeNo, &OsStr),
        mode: u32,
        caller: Caller,
        body: NewBody,
        reply: ReplyEntry,
    ) {
        let name = bytes(name);
        self.change(move |this| {
            this.reply_made(this.overlay.make(node(parent), &name, mode, caller, body), reply);
        });
    }

    fn reply_made(&self, made: Answer<Stat>, reply: ReplyEntry) {
        match made {
            Ok(stat) => reply.entry(&FOREVER, &attr(&stat), GENERATION),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn reply_empty(&self, done: Answer<()>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
        }
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
        self.overlay.forget(node(ino), nlookup);
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
        let privileged = request.uid() == 0;
        self.change(move |this| match this.overlay.set_attributes(node(ino), set, privileged) {
            Ok(stat) => reply.attr(&FOREVER, &attr(&stat)),
            Err(errno) => reply.error(code(errno)),
        });
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
        self.make((parent, name), mode, caller(request), body, reply);
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
        self.make((parent, name), mode, caller(request), NewBody::Directory, reply);
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
        self.make((parent, link_name), 0o777, caller(request), body, reply);
    }

    fn link(&self, _request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let name = bytes(newname);
        self.change(move |this| this.reply_made(this.overlay.link(node(ino), node(newparent), &name), reply));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.change(move |this| this.reply_empty(this.overlay.unlink(node(parent), &name), reply));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.change(move |this| this.reply_empty(this.overlay.rmdir(node(parent), &name), reply));
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
        let (from, to) = (bytes(name), bytes(newname));
        self.change(move |this| {
            let (from, to) = ((node(parent), &from[..]), (node(newparent), &to[..]));
            this.reply_empty(this.overlay.rename(from, to, mode), reply);
        });
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
        let (name, caller) = (bytes(name), caller(request));
        self.change(move |this| match this.overlay.make(node(parent), &name, mode, caller, NewBody::File) {
            Ok(stat) => reply.created(&FOREVER, &attr(&stat), GENERATION, FileHandle(0), flags),
            Err(errno) => reply.error(code(errno)),
        });
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
        // Bytes are copied only where they have to wait.
        if let Some(inside) = self.overlay.gate().enter() {
            self.answer_write(ino, offset, data, drops_set_id, reply);
            drop(inside);
            return self.after_change();
        }
        let data = data.to_vec();
        self.change_bytes(data.len() as u64, move |this| {
            this.answer_write(ino, offset, &data, drops_set_id, reply);
        });
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.change(move |this| this.reply_empty(this.overlay.sync(node(ino), datasync), reply));
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.change(move |this| this.reply_empty(this.overlay.sync_names(), reply));
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        reply.opened(FileHandle(self.overlay.open_listing()), flags);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let lines = match self.overlay.listing(fh.0, node(ino), offset == 0) {
            Ok(lines) => lines,
            Err(errno) => return reply.error(code(errno)),
        };
        for (line, next) in lines.iter().zip(1_u64..).skip(offset as usize) {
            if reply.add(INodeNo(line.id.0), next, kind(line.kind), OsStr::from_bytes(&line.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let lines = match self.overlay.listing(fh.0, node(ino), offset == 0) {
            Ok(lines) => lines,
            Err(errno) => return reply.error(code(errno)),
        };
        for (line, next) in lines.iter().zip(1_u64..).skip(offset as usize) {
            let name = OsStr::from_bytes(&line.name);
            // The kernel takes no hold on these two.
            if matches!(line.name.as_slice(), b"." | b"..") {
                let attr = FileAttr { ino: INodeNo(line.id.0), kind: FileType::Directory, ..absent() };
                if reply.add(attr.ino, next, name, &FOREVER, &attr, GENERATION) {
                    break;
                }
                continue;
            }
            let stat = match self.overlay.lookup(node(ino), &line.name) {
                Ok(Some(stat)) => stat,
                // It went since the listing was made, or cannot be read: whoever asks for it by name is told why.
                Ok(None) | Err(_) => continue,
            };
            if reply.add(INodeNo(stat.id.0), next, name, &FOREVER, &attr(&stat), GENERATION) {
                self.overlay.forget(stat.id, 1);
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.overlay.close_listing(fh.0);
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
        let (name, value) = (bytes(name), value.to_vec());
        self.change(move |this| {
            this.reply_empty(this.overlay.set_xattr(node(ino), &name, &value, flags), reply);
        });
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.overlay.xattr(node(ino), name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(self.overlay.xattr_names(node(ino)), size, reply);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.change(move |this| this.reply_empty(this.overlay.remove_xattr(node(ino), &name), reply));
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
        let drops_set_id = request.uid() != 0;
        self.change_bytes(length, move |this| {
            this.reply_empty(this.overlay.allocate(node(ino), range, mode, drops_set_id), reply);
        });
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
        let drops_set_id = request.uid() != 0;
        self.change_bytes(len, move |this| match this.overlay.copy(from, to, len, drops_set_id) {
            Ok(copied) => reply.written(copied as u32),
            Err(errno) => reply.error(code(errno)),
        });
    }
}
