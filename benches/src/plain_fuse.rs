//! The floor of a mount that writes: a file system in user space that only passes bytes to files of the host, in each
//! way that the kernel offers. D18 in docs/DECISIONS.md says which of them snapfs takes, and why.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::measure::{Result, Row};
use crate::written;

const FOREVER: Duration = Duration::from_secs(1 << 30);
/// As many as snapfs has.
const THREADS: usize = 4;
const WRITE_MAX: u32 = 1 << 20;
/// The first inode that is no directory.
const FIRST: u64 = 2;

/// How bytes come from the application to the file of the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Each write(2) is a request, and fills the kernel's cache of the mount on its way. This is how snapfs does it.
    Through,
    /// Each write(2) is a request and passes by the cache (`FOPEN_DIRECT_IO`).
    Direct,
    /// The kernel keeps written data and sends it later (`FUSE_WRITEBACK_CACHE`).
    Writeback,
    /// The kernel writes to the file of the host by itself (`FUSE_PASSTHROUGH`).
    Passthrough,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Through, "write-through, as snapfs"),
    (Way::Direct, "FOPEN_DIRECT_IO"),
    (Way::Writeback, "FUSE_WRITEBACK_CACHE"),
    (Way::Passthrough, "FUSE_PASSTHROUGH"),
];

/// The figures of `write` for a file system that only passes bytes on.
pub(crate) fn fuse(scratch: &Path) -> Result<Vec<Row>> {
    let theirs = scratch.join("host");
    fs::create_dir(&theirs)?;
    let mut rows = Vec::new();
    for (way, name) in WAYS {
        let mountpoint = scratch.join(format!("way-{}", way as u8));
        let backing = mountpoint.with_extension("files");
        fs::create_dir(&mountpoint)?;
        fs::create_dir(&backing)?;
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let files = Files { way, backing, files: Mutex::default() };
        let session = fuser::spawn_mount(files, &mountpoint, &config)?;
        let figures = written::figures(&mountpoint, &theirs).map_err(|error| format!("{name}: {error}"))?;
        for mut row in figures {
            row.figure = format!("plain FUSE, {name}: {}", row.figure);
            rows.push(row);
        }
        drop(session);
    }
    Ok(rows)
}

/// A directory of files.
struct Files {
    way: Way,
    backing: PathBuf,
    files: Mutex<Vec<Passed>>,
}

/// One of them.
#[derive(Clone)]
struct Passed {
    name: OsString,
    file: Arc<File>,
    id: Option<Arc<BackingId>>,
}

impl Files {
    fn files(&self) -> std::sync::MutexGuard<'_, Vec<Passed>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, ino: INodeNo) -> std::result::Result<Arc<File>, Errno> {
        let index = ino.0.checked_sub(FIRST).ok_or(Errno::EISDIR)?;
        self.files().get(index as usize).map(|passed| passed.file.clone()).ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: INodeNo) -> std::result::Result<FileAttr, Errno> {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o755, 0),
            _ => (FileType::RegularFile, 0o644, self.file(ino)?.metadata()?.size()),
        };
        let (atime, mtime, ctime, crtime) = (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH);
        let (nlink, uid, gid, rdev, flags, blksize) = (1, 0, 0, 0, 0, 4096);
        let blocks = size.div_ceil(512);
        Ok(FileAttr {
            ino,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            blksize,
            flags,
        })
    }

    fn find(&self, name: &OsStr) -> Option<INodeNo> {
        let index = self.files().iter().position(|passed| passed.name == name)?;
        Some(INodeNo(FIRST + index as u64))
    }

    fn make(&self, name: &OsStr) -> std::io::Result<INodeNo> {
        let mut options = File::options();
        let file =
            options.read(true).write(true).create(true).truncate(true).open(self.backing.join(name))?;
        let mut files = self.files();
        files.push(Passed { name: name.to_owned(), file: Arc::new(file), id: None });
        Ok(INodeNo(FIRST + files.len() as u64 - 1))
    }

    fn flags(&self) -> FopenFlags {
        match self.way {
            Way::Direct => FopenFlags::FOPEN_DIRECT_IO,
            Way::Through | Way::Writeback => FopenFlags::FOPEN_KEEP_CACHE,
            // It has no cache of its own to keep.
            Way::Passthrough => FopenFlags::empty(),
        }
    }

    /// The id by which the kernel knows the file of the host: one for each, as long as the mount is there.
    fn backing_id(
        &self,
        ino: INodeNo,
        make: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> std::io::Result<Arc<BackingId>> {
        let mut files = self.files();
        let passed = &mut files[(ino.0 - FIRST) as usize];
        if passed.id.is_none() {
            passed.id = Some(Arc::new(make(&passed.file)?));
        }
        passed.id.clone().ok_or_else(|| std::io::Error::other("no backing id"))
    }
}

impl Filesystem for Files {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | match self.way {
                Way::Writeback => InitFlags::FUSE_WRITEBACK_CACHE,
                Way::Passthrough => InitFlags::FUSE_PASSTHROUGH,
                Way::Through | Way::Direct => InitFlags::empty(),
            };
        let failed = |missing| std::io::Error::other(format!("the kernel has no {missing:?}"));
        config.add_capabilities(wanted).map_err(failed)?;
        let deep = self.way != Way::Passthrough || config.set_max_stack_depth(1).is_ok();
        match deep && config.set_max_write(WRITE_MAX).is_ok() {
            true => Ok(()),
            false => Err(std::io::Error::other("the limits are not taken")),
        }
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(name).ok_or(Errno::ENOENT).and_then(|ino| self.attr(ino)) {
            Ok(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let cut = size.map_or(Ok(()), |size| self.file(ino).and_then(|file| Ok(file.set_len(size)?)));
        match cut.and_then(|()| self.attr(ino)) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.way != Way::Passthrough {
            return reply.opened(FileHandle(0), self.flags());
        }
        match self.backing_id(ino, |file| reply.open_backing(file)) {
            Ok(id) => reply.opened_passthrough(FileHandle(0), self.flags(), &id),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(name).map_err(Errno::from).and_then(|ino| self.attr(ino));
        let attr = match made {
            Ok(attr) => attr,
            Err(errno) => return reply.error(errno),
        };
        if self.way != Way::Passthrough {
            return reply.created(&FOREVER, &attr, Generation(0), FileHandle(0), self.flags());
        }
        match self.backing_id(attr.ino, |file| reply.open_backing(file)) {
            Ok(id) => {
                reply.created_passthrough(&FOREVER, &attr, Generation(0), FileHandle(0), self.flags(), &id);
            }
            Err(error) => reply.error(error.into()),
        }
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
        let mut bytes = vec![0; size as usize];
        match self.file(ino).and_then(|file| Ok(file.read_at(&mut bytes, offset)?)) {
            Ok(count) => reply.data(&bytes[..count]),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file(ino).and_then(|file| Ok(file.write_all_at(data, offset)?)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.file(ino).and_then(|file| Ok(file.sync_data()?)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}
