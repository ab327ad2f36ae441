//! Translation between the FUSE protocol and [`Overlay`]: only this file and those below it use the FUSE library.
//!
//! All changes come through this kernel, so all that it caches stays valid: names, absent names, attributes and pages.
//! It may cache only listings that cannot change: in a cached listing it searches for the line that a reader saw last,
//! and ends the reader's listing when that name is gone. Files need no handle, so opening one is answered by "not
//! implemented", after which the kernel opens and closes files without asking.

mod answers;
mod convert;
mod server;

pub(crate) use server::Server;

use crate::change::NewBody;
use crate::errno::Errno;
use crate::overlay::{Overlay, RenameMode, Seek, SetAttributes};
use answers::bytes;
use convert::{absent, attr, caller, code, kind, node, reply_data, reply_xattr, time_to_set};
use fuser::{
    CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use rustix::fs::{FallocateFlags, XattrFlags};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// How long the kernel may cache names and attributes: longer than any mount lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Largest write in one request.
const WRITE_MAX: u32 = 1 << 20;
/// Requests that the kernel may have in flight without a process that waits for them.
const BACKGROUND_MAX: u16 = 64;
const GENERATION: Generation = Generation(0);

#[derive(Clone)]
struct Adapter {
    overlay: Arc<Overlay>,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Without this the kernel asks for file capabilities before every write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            // A node that the kernel forgot cannot be found by its number: file handles would go stale at any time.
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
        ];
        // Not FUSE_ASYNC_DIO: after an asynchronous direct write the kernel leaves old pages in its cache.
        // Without these two, access lists would be stored and not enforced, so there is no mount without them.
        let needed = InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK;
        config.add_capabilities(needed).map_err(|missing| {
            std::io::Error::other(format!("it has no access control lists for FUSE ({missing:?})"))
        })?;
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
        let caller = caller(request, 0);
        self.change(move |this| match this.overlay.set_attributes(node(ino), set, &caller) {
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
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(body) = NewBody::of_mode(mode, rdev.into()) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        self.make((parent, name), mode, caller(request, umask), body, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.make((parent, name), mode, caller(request, umask), NewBody::Directory, reply);
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
        self.make((parent, link_name), 0o777, caller(request, 0), body, reply);
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
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let whiteout = flags.contains(RenameFlags::RENAME_WHITEOUT).then(|| caller(request, 0));
        let mode = RenameMode::of_flags((flags - RenameFlags::RENAME_WHITEOUT).bits());
        let Some(mode) = mode else { return reply.error(fuser::Errno::EINVAL) };
        let (from, to) = (bytes(name), bytes(newname));
        self.change(move |this| {
            let (from, to) = ((node(parent), &from[..]), (node(newparent), &to[..]));
            this.reply_empty(this.overlay.rename(from, to, mode, whiteout), reply);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let flags = FopenFlags::FOPEN_KEEP_CACHE;
        let (name, caller) = (bytes(name), caller(request, umask));
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
        // Bytes are copied only if the write has to wait.
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
            // The kernel does not count a lookup for these two.
            if matches!(line.name.as_slice(), b"." | b"..") {
                let attr = FileAttr { ino: INodeNo(line.id.0), kind: FileType::Directory, ..absent() };
                return reply.add(attr.ino, line.next, name, &FOREVER, &attr, GENERATION);
            }
            let stat = match self.overlay.lookup(node(ino), &line.name) {
                Ok(Some(stat)) => stat,
                // It was removed since the line was made, or cannot be read: a lookup of its name returns the error.
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
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let (name, value, caller) = (bytes(name), value.to_vec(), caller(request, 0));
        self.change(move |this| {
            this.reply_empty(this.overlay.set_xattr(node(ino), &name, &value, flags, &caller), reply);
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
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let range = offset..offset.saturating_add(length);
        self.change_bytes(length, move |this| {
            this.reply_empty(this.overlay.allocate(node(ino), range, mode), reply);
        });
    }

    /// Every program that checks whether a file is a terminal sends this. The library would log each of these requests.
    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    /// Not implemented: from then on the kernel answers by itself that files are always ready.
    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(fuser::Errno::ENOSYS);
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
        _request: &Request,
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
        self.change_bytes(len, move |this| match this.overlay.copy(from, to, len) {
            Ok(copied) => reply.written(copied as u32),
            Err(errno) => reply.error(code(errno)),
        });
    }
}
