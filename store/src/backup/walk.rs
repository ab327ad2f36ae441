//! The walk of a backup: depth first, names in order, one directory of the host beside its counterpart in the parent tree.

use super::stat_cache::StatCache;
use super::{Exclude, Root, bare_root};
use crate::clock::Time;
use crate::error::{Error, Kind, Result};
use crate::id::DirectoryId;
use crate::progress::Progress;
use crate::tree::{
    Content, Directory, Entry, EntryInode, Inode, LinkedInode, Metadata, Node, Tree, TreeRoot,
};
use crate::writer::Writer;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a walk counted.
#[derive(Debug, Default)]
pub struct Counts {
    pub files: u64,
    pub directories: u64,
    pub unchanged_files: u64,
    pub bytes: u64,
    pub unreadable: Vec<String>,
}

/// A directory of the host whose entries are being stored.
struct Open {
    relative: PathBuf,
    metadata: Metadata,
    /// Names that are still to come.
    names: std::vec::IntoIter<OsString>,
    /// Its counterpart in the parent tree.
    old: Option<Directory>,
    entries: Vec<Entry>,
}

/// What a name turned out to be.
enum Met {
    /// It vanished or cannot be read.
    Nothing,
    /// Not a directory: stored.
    Leaf(Entry),
    /// A directory to go into.
    Directory(Open),
}

/// A walk under way.
pub struct Walk<'a> {
    writer: &'a mut Writer,
    source: PathBuf,
    exclude: &'a Exclude,
    /// The one file system to stay on.
    device: Option<u64>,
    progress: &'a dyn Progress,
    cache: &'a mut StatCache,
    numbers: HashMap<(u64, u64), u64>,
    links: BTreeMap<u64, LinkedInode>,
    counts: Counts,
}

impl<'a> Walk<'a> {
    pub fn new(
        writer: &'a mut Writer,
        source: &Path,
        exclude: &'a Exclude,
        one_file_system: bool,
        progress: &'a dyn Progress,
        cache: &'a mut StatCache,
    ) -> Result<Self> {
        let failed = |error| Error::io("cannot back up", source.display(), error);
        let source = source.canonicalize().map_err(failed)?;
        let device = fs::metadata(&source).map_err(failed)?.dev();
        Ok(Self {
            writer,
            source,
            exclude,
            device: one_file_system.then_some(device),
            progress,
            cache,
            numbers: HashMap::new(),
            links: BTreeMap::new(),
            counts: Counts::default(),
        })
    }

    pub fn into_counts(self) -> Counts {
        self.counts
    }

    /// Walks it all; the source itself must be readable.
    pub fn run(&mut self, parent: Option<&Tree>) -> Result<Root> {
        let source = self.source.clone();
        let failed = |error| Error::io("cannot back up", source.display(), error);
        let stat = fs::symlink_metadata(&source).map_err(failed)?;
        let (metadata, directory) = if stat.is_dir() {
            fs::read_dir(&source).map_err(failed)?;
            let old = parent.map(|tree| &tree.root().node);
            let root = self.open(PathBuf::new(), metadata_of(&source, &stat)?, parent, old)?;
            self.directory(root, parent)?
        } else {
            let name = source.file_name().unwrap_or_default().to_owned();
            self.source.pop();
            let entries = match self.entry(Path::new(&name), &name, parent, None)? {
                Met::Leaf(entry) => vec![entry],
                Met::Nothing | Met::Directory(_) => Vec::new(),
            };
            self.counts.directories += 1;
            (bare_root(), self.writer.put_directory(&entries)?)
        };
        Ok(TreeRoot { metadata, directory, links: std::mem::take(&mut self.links) })
    }

    /// Stores a directory and everything below it, children first, without recursion: a tree may be deeper than the stack.
    fn directory(&mut self, root: Open, tree: Option<&Tree>) -> Result<(Metadata, DirectoryId)> {
        let mut stack = vec![root];
        loop {
            let open = stack.last_mut().expect("the root returns when it is done");
            let Some(name) = open.names.next() else {
                let done = stack.pop().expect("it was just looked at");
                let id = self.writer.put_directory(&done.entries)?;
                let Some(parent) = stack.last_mut() else { return Ok((done.metadata, id)) };
                let name = done.relative.file_name().unwrap_or_default().as_bytes().to_vec();
                let inode = Inode { metadata: done.metadata, node: Node::Directory(id) };
                parent.entries.push(Entry { name, inode: EntryInode::Own(inode) });
                continue;
            };
            let relative = open.relative.join(&name);
            if self.exclude.matches(&relative) {
                continue;
            }
            match self.entry(&relative, &name, tree, open.old.as_ref())? {
                Met::Nothing => {}
                Met::Leaf(entry) => open.entries.push(entry),
                Met::Directory(below) => stack.push(below),
            }
        }
    }

    /// Opens a directory beside its counterpart `old`; a mount point that is not to be crossed is empty.
    fn open(
        &mut self,
        relative: PathBuf,
        metadata: Metadata,
        tree: Option<&Tree>,
        old: Option<&Node>,
    ) -> Result<Open> {
        self.counts.directories += 1;
        let old = match (tree, old) {
            (Some(tree), Some(Node::Directory(id))) => Some(tree.directory(id)?),
            _ => None,
        };
        let names = self.names(&self.source.join(&relative)).into_iter();
        Ok(Open { relative, metadata, names, old, entries: Vec::new() })
    }

    /// The names in a directory in order; one that cannot be read is noted and counts as empty.
    fn names(&mut self, path: &Path) -> Vec<OsString> {
        let read = fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect());
        let mut names: Vec<OsString> = match read {
            Ok(names) => names,
            Err(error) => {
                self.unreadable(path, &Error::io("cannot read directory", path.display(), error));
                Vec::new()
            }
        };
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        names
    }

    fn unreadable(&mut self, path: &Path, error: &Error) {
        self.counts.unreadable.push(format!("{}: {error}", path.display()));
    }

    /// One name: a leaf is stored, a directory is opened.
    fn entry(
        &mut self,
        relative: &Path,
        name: &OsStr,
        tree: Option<&Tree>,
        old: Option<&Directory>,
    ) -> Result<Met> {
        let path = self.source.join(relative);
        let stat = match fs::symlink_metadata(&path) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Met::Nothing),
            Err(error) => {
                self.unreadable(&path, &Error::io("cannot look at file", path.display(), error));
                return Ok(Met::Nothing);
            }
        };
        let name = name.as_bytes().to_vec();
        let old = match (tree, old) {
            (Some(tree), Some(old)) => old.get(&name)?.map(|entry| tree.inode(entry)).transpose()?,
            _ => None,
        };
        if stat.is_dir() {
            return self.subdirectory(relative, &stat, tree, old.as_ref().map(|inode| &inode.node));
        }
        let inode = match stat.nlink() > 1 {
            true => self.linked(relative, &stat, old)?,
            false => self.inode(relative, &stat, old)?.map(EntryInode::Own),
        };
        Ok(inode.map_or(Met::Nothing, |inode| Met::Leaf(Entry { name, inode })))
    }

    /// Opens a directory below the source; a mount point that is not to be crossed counts as empty.
    fn subdirectory(
        &mut self,
        relative: &Path,
        stat: &fs::Metadata,
        tree: Option<&Tree>,
        old: Option<&Node>,
    ) -> Result<Met> {
        let path = self.source.join(relative);
        let metadata = match metadata_of(&path, stat) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.unreadable(&path, &error);
                return Ok(Met::Nothing);
            }
        };
        let relative = relative.to_owned();
        if self.device.is_some_and(|device| device != stat.dev()) {
            self.counts.directories += 1;
            let (names, entries) = (Vec::new().into_iter(), Vec::new());
            return Ok(Met::Directory(Open { relative, metadata, names, old: None, entries }));
        }
        self.open(relative, metadata, tree, old).map(Met::Directory)
    }

    /// A name of an inode that has several: the first one met stores the inode.
    fn linked(
        &mut self,
        relative: &Path,
        stat: &fs::Metadata,
        old: Option<Inode>,
    ) -> Result<Option<EntryInode>> {
        let key = (stat.dev(), stat.ino());
        if let Some(number) = self.numbers.get(&key) {
            if let Some(linked) = self.links.get_mut(number) {
                linked.count += 1;
            }
            self.counts.files += 1;
            return Ok(Some(EntryInode::Link(*number)));
        }
        let Some(inode) = self.inode(relative, stat, old)? else { return Ok(None) };
        let mut number = stat.ino();
        while self.links.contains_key(&number) {
            number = number.wrapping_add(1 << 48); // the same inode number on another device
        }
        self.numbers.insert(key, number);
        self.links.insert(number, LinkedInode { count: 1, inode });
        Ok(Some(EntryInode::Link(number)))
    }

    /// An inode that is not a directory; `None` when it cannot be read.
    fn inode(&mut self, relative: &Path, stat: &fs::Metadata, old: Option<Inode>) -> Result<Option<Inode>> {
        let path = self.source.join(relative);
        self.counts.files += 1;
        let read = self
            .leaf(relative, &path, stat, old)
            .and_then(|node| Ok(Inode { metadata: metadata_of(&path, stat)?, node }));
        match read {
            Ok(inode) => Ok(Some(inode)),
            // Not a file that cannot be read but a store that cannot be written or is damaged.
            Err(error)
                if self.writer.check_usable().is_err()
                    || matches!(error.kind(), Kind::Full | Kind::Corrupt | Kind::Internal) =>
            {
                Err(error)
            }
            Err(error) => {
                self.unreadable(&path, &error);
                Ok(None)
            }
        }
    }

    fn leaf(
        &mut self,
        relative: &Path,
        path: &Path,
        stat: &fs::Metadata,
        old: Option<Inode>,
    ) -> Result<Node> {
        let kind = stat.file_type();
        if kind.is_symlink() {
            let target =
                fs::read_link(path).map_err(|error| Error::io("cannot read link", path.display(), error))?;
            return Ok(Node::Symlink(target.into_os_string().into_vec()));
        }
        Ok(match () {
            () if kind.is_char_device() => Node::CharDevice(stat.rdev()),
            () if kind.is_block_device() => Node::BlockDevice(stat.rdev()),
            () if kind.is_fifo() => Node::Fifo,
            () if kind.is_socket() => Node::Socket,
            () => Node::File(self.file(relative, path, stat, old)?),
        })
    }

    fn file(
        &mut self,
        relative: &Path,
        path: &Path,
        stat: &fs::Metadata,
        old: Option<Inode>,
    ) -> Result<Content> {
        self.counts.bytes += stat.size();
        self.progress.advance(stat.size());
        let unchanged = self.cache.is_unchanged(relative, stat);
        if let Some(Inode { node: Node::File(content), .. }) = old
            && unchanged
            && content.len_bytes() == stat.size()
        {
            self.counts.unchanged_files += 1;
            return Ok(content);
        }
        self.read_file(path, stat).inspect_err(|_| self.cache.forget_last())
    }

    fn read_file(&mut self, path: &Path, stat: &fs::Metadata) -> Result<Content> {
        let failed = |error| Error::io("cannot read file", path.display(), error);
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path).map_err(failed)?;
        let is_sparse = stat.blocks() * 512 < stat.size();
        match is_sparse {
            true => self.read_sparse(file, path),
            false => self.writer.put_content(&mut { file }).map_err(|error| error.object(path.display())),
        }
    }

    /// Copies the data and keeps the holes. The file is synced first: while pages are dirty some file systems report data
    /// as a hole.
    fn read_sparse(&mut self, mut file: File, path: &Path) -> Result<Content> {
        let failed = |error: io::Error| Error::io("cannot read file", path.display(), error);
        file.sync_data().map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        let mut out = self.writer.content_writer();
        let mut at = 0;
        while at < len {
            let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(data) => data.min(len),
                Err(Errno::NXIO) => len,
                Err(error) => return Err(failed(error.into())),
            };
            out.hole(data - at)?;
            if data == len {
                break;
            }
            let end = rustix::fs::seek(&file, SeekFrom::Hole(data)).map_err(|e| failed(e.into()))?.min(len);
            file.seek(io::SeekFrom::Start(data)).map_err(failed)?;
            let copied = out.copy_from(&mut (&mut file).take(end - data))?;
            if copied < end - data {
                break; // it shrank meanwhile
            }
            at = end;
        }
        out.finish()
    }
}

/// What every inode has, from what the host says.
fn metadata_of(path: &Path, stat: &fs::Metadata) -> Result<Metadata> {
    let mtime = Time { seconds: stat.mtime(), nanos: stat.mtime_nsec() as u32 };
    let xattrs = xattrs_of(path)
        .map_err(|error| Error::io("cannot read extended attributes", path.display(), error.into()))?;
    Ok(Metadata { mode: stat.mode() & 0o7777, uid: stat.uid(), gid: stat.gid(), mtime, xattrs })
}

fn xattrs_of(path: &Path) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 1024];
    let len = loop {
        match rustix::fs::llistxattr(path, &mut names) {
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(Vec::new()),
            Ok(len) => break len,
            Err(Errno::RANGE) => names.resize(names.len() * 8, 0),
            Err(error) => return Err(error),
        }
    };
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10]; // XATTR_SIZE_MAX
        match rustix::fs::lgetxattr(path, name, &mut value) {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            Err(Errno::NODATA) => {} // removed meanwhile
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable();
    Ok(found)
}
