//! Restore: a tree becomes a directory of the host. Only new names in directories made here are written, so nothing
//! stored can reach outside the target, whatever it holds.

use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::progress::{Progress, Work};
use crate::repo::Store;
use crate::tree::{Content, Directory, EntryInode, Extent, Inode, Metadata, Node, Tree};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How much of a file is written at once.
const WRITE_LEN: usize = 1 << 20;
/// Mode bits that lend the rights of owner and group.
const SET_ID: u32 = 0o6000;

/// What a restore did.
#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    /// Names that are not directories.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Owners, devices or attributes that this user may not set, and where.
    pub not_permitted: Vec<String>,
}

/// Restores what stands at `path` in the snapshot's tree as `target`, which must not exist or be an empty directory.
///
/// # Errors
/// `NotFound` for the path, `Conflict` when the target is in use; those of the store and of the target's file system.
pub fn restore(
    store: &Store,
    snapshot: &SnapshotId,
    path: &[u8],
    target: &Path,
    progress: &dyn Progress,
) -> Result<RestoreReport> {
    let record = store.snapshot(snapshot)?;
    let tree =
        record.tree.ok_or_else(|| Error::new(Kind::NotFound, "snapshot holds no files").object(snapshot))?;
    let tree = store.tree(&tree)?;
    let inode = tree.lookup_path(path)?.ok_or_else(|| {
        Error::new(Kind::NotFound, "no such path in the snapshot").object(String::from_utf8_lossy(path))
    })?;
    progress
        .begin("restore", if path.is_empty() { Work::Bytes(record.totals.bytes) } else { Work::SomeBytes });
    let mut job = Job { store, tree, progress, linked: HashMap::new(), report: RestoreReport::default() };
    match &inode.node {
        Node::Directory(_) => job.root(&inode, target)?,
        _ => job.inode(&inode, target)?,
    }
    progress.end();
    Ok(job.report)
}

/// A directory being filled.
struct Open {
    directory: Directory,
    metadata: Metadata,
    path: PathBuf,
    /// The entry that comes next.
    next: usize,
}

struct Job<'a> {
    store: &'a Store,
    tree: Tree,
    progress: &'a dyn Progress,
    /// Where the first name of each hard-linked inode went.
    linked: HashMap<u64, PathBuf>,
    report: RestoreReport,
}

fn failed(what: &'static str, path: &Path) -> impl Fn(Errno) -> Error {
    move |error| Error::io(what, path.display(), error.into())
}

impl Job<'_> {
    fn root(&mut self, inode: &Inode, target: &Path) -> Result<()> {
        let in_use = fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some());
        if in_use {
            return Err(Error::new(Kind::Conflict, "target is not empty")
                .object(target.display())
                .advice("restore into a new or empty directory"));
        }
        if !target.is_dir() {
            fs::create_dir_all(target)
                .map_err(|error| Error::io("cannot create directory", target.display(), error))?;
        }
        self.fill(inode, target)
    }

    /// Fills an empty directory and all below it, without recursion: a tree may be deeper than the stack. A directory gets
    /// its metadata last, when nothing in it changes any more.
    fn fill(&mut self, inode: &Inode, path: &Path) -> Result<()> {
        let mut stack: Vec<Open> = self.open(inode, path)?.into_iter().collect();
        while let Some(open) = stack.last_mut() {
            if open.next == open.directory.len() {
                self.metadata(&open.metadata, &open.path)?;
                stack.pop();
                continue;
            }
            let entry = open.directory.entry(open.next)?;
            open.next += 1;
            let path = open.path.join(OsStr::from_bytes(&entry.name));
            match entry.inode {
                EntryInode::Link(number) => self.link(number, &path)?,
                EntryInode::Own(inode) => match self.open(&inode, &path)? {
                    None => self.inode(&inode, &path)?,
                    Some(below) => {
                        let created = rustix::fs::mkdir(&path, Mode::RWXU);
                        created.map_err(failed("cannot create directory", &path))?;
                        stack.push(below);
                    }
                },
            }
        }
        Ok(())
    }

    /// The directory to be filled at `path`; `None` for any other inode.
    fn open(&mut self, inode: &Inode, path: &Path) -> Result<Option<Open>> {
        let Node::Directory(id) = &inode.node else { return Ok(None) };
        self.report.directories += 1;
        let (directory, metadata) = (self.tree.directory(id)?, inode.metadata.clone());
        Ok(Some(Open { directory, metadata, path: path.to_owned(), next: 0 }))
    }

    fn link(&mut self, number: u64, path: &Path) -> Result<()> {
        if let Some(first) = self.linked.get(&number) {
            self.report.files += 1;
            return rustix::fs::linkat(CWD, first, CWD, path, AtFlags::empty())
                .map_err(failed("cannot link", path));
        }
        let inode = self.tree.link(number)?.inode;
        self.linked.insert(number, path.to_owned());
        self.inode(&inode, path)
    }

    /// Makes anything but a directory.
    fn inode(&mut self, inode: &Inode, path: &Path) -> Result<()> {
        self.report.files += 1;
        match &inode.node {
            Node::File(content) => self.file(content, path)?,
            Node::Symlink(target) => {
                rustix::fs::symlink(target.as_slice(), path).map_err(failed("cannot link", path))?
            }
            Node::CharDevice(number) => self.special(path, FileType::CharacterDevice, *number)?,
            Node::BlockDevice(number) => self.special(path, FileType::BlockDevice, *number)?,
            Node::Fifo => self.special(path, FileType::Fifo, 0)?,
            Node::Socket => self.special(path, FileType::Socket, 0)?,
            Node::Directory(_) => {}
        }
        self.metadata(&inode.metadata, path)
    }

    fn special(&mut self, path: &Path, kind: FileType, number: u64) -> Result<()> {
        match rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), number) {
            Err(Errno::PERM) => {
                self.not_permitted(path, "device");
                Ok(())
            }
            other => other.map_err(failed("cannot create special file", path)),
        }
    }

    fn not_permitted(&mut self, path: &Path, what: &str) {
        self.report.not_permitted.push(format!("{}: {what}", path.display()));
    }

    fn file(&mut self, content: &Content, path: &Path) -> Result<()> {
        let failed = |error| Error::io("cannot write file", path.display(), error);
        let file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let reader = self.store.content(content)?;
        let len_bytes = reader.len_bytes();
        let mut buffer = vec![0; WRITE_LEN.min(len_bytes as usize)];
        let pieces: Vec<(u64, Extent)> = match reader.extents() {
            [] => Vec::new(),
            extents => {
                extents.iter().filter(|(_, extent)| matches!(extent, Extent::Chunk { .. })).copied().collect()
            }
        };
        let ranges = pieces.iter().map(|(start, extent)| (*start, start + extent.len_bytes()));
        let whole = reader.extents().is_empty().then_some((0, len_bytes));
        for (mut at, end) in ranges.chain(whole) {
            while at < end {
                let len = ((end - at) as usize).min(buffer.len());
                reader.read_at(at, &mut buffer[..len]).map_err(|error| error.object(path.display()))?;
                file.write_all_at(&buffer[..len], at).map_err(failed)?;
                at += len as u64;
            }
        }
        if pieces.last().is_none_or(|(start, extent)| start + extent.len_bytes() < len_bytes) {
            file.set_len(len_bytes).map_err(failed)?;
        }
        self.report.bytes += len_bytes;
        self.progress.advance(len_bytes);
        Ok(())
    }

    /// Owner first (it clears setuid), then attributes, mode and time. What runs with its owner's rights is not given those
    /// of whoever restores it.
    fn metadata(&mut self, metadata: &Metadata, path: &Path) -> Result<()> {
        let Ok(stat) = rustix::fs::lstat(path) else { return Ok(()) }; // a device that was not permitted
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut mode = metadata.mode;
        if (stat.st_uid, stat.st_gid) != (metadata.uid, metadata.gid) {
            let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            match rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::PERM) => {
                    self.not_permitted(path, "owner");
                    mode &= !SET_ID;
                }
                other => other.map_err(failed("cannot set owner", path))?,
            }
        }
        for (name, value) in &metadata.xattrs {
            match rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty()) {
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {
                    self.not_permitted(path, "extended attribute")
                }
                other => other.map_err(failed("cannot set extended attribute", path))?,
            }
        }
        if kind != FileType::Symlink {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(failed("cannot set mode", path))?;
        }
        let time = Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: metadata.mtime.nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("cannot set time", path))
    }
}
