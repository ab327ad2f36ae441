//! The walk of a backup: what the host has, beside its counterpart in the parent tree. Names in order; a directory's own
//! files come before its subdirectories, so that files of one directory lie together in packs.
//!
//! It runs ahead of the assembler on a thread of its own, by as many segments as the channel holds.

use super::Exclude;
use super::events::{Draft, Event, Form, InodeKey, Leaf, Old, Segment};
use super::host::{self, Host, Name, Source};
use super::read::{Batch, Job, PIECES_AHEAD};
use super::stat_cache::StatCache;
use crate::error::{Error, Kind, Result};
use crate::tree::{Content, EntryInode, Inode, Node, Tree};
use crossbeam_channel::{Sender, bounded};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A segment ends when its files have so many bytes,
const SEGMENT_LEN: u64 = 1 << 20;
/// or when it has so many steps.
const SEGMENT_EVENTS: usize = 512;
/// Directories above this depth stay open while what is below them is walked; deeper ones are opened again.
const OPEN_DEPTH: usize = 64;

/// A walk under way.
pub struct Walk<'a> {
    pub source: PathBuf,
    pub exclude: &'a Exclude,
    /// The one file system to stay on.
    pub device: Option<u64>,
    pub cache: &'a StatCache,
    pub parent: Option<&'a Tree>,
    pub segments: Sender<Segment>,
    pub batches: Sender<Batch>,
    pub state: State,
}

/// What changes during a walk.
pub struct State {
    host: Host,
    /// The path below the source of what is looked at.
    relative: PathBuf,
    draft: Draft,
    /// Inodes with several names that were met.
    met: HashSet<InodeKey>,
}

impl State {
    pub fn new() -> Self {
        Self { host: Host::new(), relative: PathBuf::new(), draft: Draft::default(), met: HashSet::new() }
    }
}

/// A directory of the host whose subdirectories are still to be walked.
struct Level {
    /// Itself, unless it is to be opened again.
    directory: Option<OwnedFd>,
    subdirectories: std::vec::IntoIter<Subdirectory>,
}

struct Subdirectory {
    name: Name,
    stat: Stat,
    old: Option<Inode>,
}

/// Why a walk ends early.
enum Stop {
    /// It must not go on.
    Failed(Error),
    /// Nobody listens.
    GaveUp,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Walk<'_> {
    /// Walks it all. `root`: how the source looks.
    pub fn run(mut self, root: &Stat) {
        let walked = match host::file_type(root) == FileType::Directory {
            true => self.tree(root),
            false => self.single(root),
        };
        if let Err(Stop::Failed(error)) = walked {
            self.state.draft.events.push(Event::Failed(error));
        }
        let _ = self.send();
    }

    /// A source that is no directory becomes the only entry of a bare root.
    fn single(&mut self, stat: &Stat) -> Result<(), Stop> {
        let old = self.parent.map(|tree| self.old(&tree.root().node)).transpose()?.flatten();
        let name = self.source.file_name().unwrap_or_default().as_bytes().to_vec();
        self.source.pop();
        self.state.relative.push(OsStr::from_bytes(&name));
        let position = self.position(old.as_ref(), &name)?;
        self.push(Event::Enter { name: Vec::new(), metadata: super::bare_root(), old })?;
        self.leaf(name, stat, position)?;
        self.push(Event::Leave)
    }

    /// Walks without recursion: a tree may be deeper than the stack.
    fn tree(&mut self, root: &Stat) -> Result<(), Stop> {
        let old = self.parent.map(|tree| tree.root().clone());
        let root = Subdirectory { name: Vec::new(), stat: *root, old };
        let source = self.source.clone();
        let Some(level) = self.enter(root, host::open_directory(&source))? else {
            let error = Error::new(Kind::Unavailable, "cannot back up: attributes cannot be read");
            return Err(Stop::Failed(error.object(source.display())));
        };
        let mut levels = vec![level];
        while let Some(level) = levels.last_mut() {
            let Some(subdirectory) = level.subdirectories.next() else {
                self.push(Event::Leave)?;
                self.state.relative.pop();
                levels.pop();
                continue;
            };
            if level.directory.is_none() {
                level.directory = host::open_directory(&self.path()).ok();
            }
            self.state.relative.push(OsStr::from_bytes(&subdirectory.name));
            let opened = match &level.directory {
                Some(directory) => host::open_directory_at(directory, &subdirectory.name),
                None => host::open_directory(&self.path()),
            };
            if levels.len() > OPEN_DEPTH
                && let Some(level) = levels.last_mut()
            {
                level.directory = None;
            }
            match self.enter(subdirectory, opened)? {
                Some(level) => levels.push(level),
                None => {
                    self.state.relative.pop();
                }
            }
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.source.join(&self.state.relative)
    }

    fn push(&mut self, event: Event) -> Result<(), Stop> {
        self.state.draft.events.push(event);
        let draft = &self.state.draft;
        match draft.len_bytes >= SEGMENT_LEN || draft.events.len() >= SEGMENT_EVENTS {
            true => self.send(),
            false => Ok(()),
        }
    }

    fn send(&mut self) -> Result<(), Stop> {
        let Draft { events, jobs, .. } = std::mem::take(&mut self.state.draft);
        let (pieces, batch) = match jobs.is_empty() {
            true => (None, None),
            false => {
                let (give, take) = bounded(PIECES_AHEAD);
                (Some(take), Some(Batch { jobs, pieces: give }))
            }
        };
        self.segments.send(Segment { events, pieces }).map_err(|_| Stop::GaveUp)?;
        batch.map_or(Ok(()), |batch| self.batches.send(batch).map_err(|_| Stop::GaveUp))
    }

    fn unreadable(&mut self, path: &Path, error: &Error) -> Result<(), Stop> {
        self.push(Event::Unreadable(format!("{}: {error}", path.display())))
    }

    fn old(&self, node: &Node) -> Result<Option<Old>> {
        match (self.parent, node) {
            (Some(tree), Node::Directory(id)) => Ok(Some(Old { id: *id, directory: tree.directory(id)? })),
            _ => Ok(None),
        }
    }

    fn position(&self, old: Option<&Old>, name: &[u8]) -> Result<Option<usize>> {
        old.map_or(Ok(None), |old| old.directory.find(name))
    }

    /// Enters a directory and goes through its files. One whose names cannot be read is noted and counts as empty, and so
    /// does a mount point that is not to be crossed; one without readable attributes is left out.
    fn enter(
        &mut self,
        subdirectory: Subdirectory,
        opened: rustix::io::Result<OwnedFd>,
    ) -> Result<Option<Level>, Stop> {
        let Subdirectory { name, stat, old } = subdirectory;
        let path = self.path();
        let source = match &opened {
            Ok(directory) => Source::Open(directory),
            Err(_) => Source::At(&path),
        };
        let metadata = match self.state.host.metadata(&source, &path, &stat) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.unreadable(&path, &error)?;
                return Ok(None);
            }
        };
        if self.device.is_some_and(|device| device != stat.st_dev) {
            self.push(Event::Enter { name, metadata, old: None })?;
            return Ok(Some(Level { directory: None, subdirectories: Vec::new().into_iter() }));
        }
        let old = old.map(|inode| self.old(&inode.node)).transpose()?.flatten();
        let listed = opened.map_err(Into::into).and_then(|directory| {
            let names = self.state.host.names(&directory)?;
            Ok((directory, names))
        });
        let (directory, names) = match listed {
            Ok((directory, names)) => (Some(directory), names),
            Err(error) => {
                self.unreadable(&path, &Error::io("cannot read directory", path.display(), error))?;
                (None, Vec::new())
            }
        };
        let mut subdirectories = Vec::new();
        // The assembler needs the old directory, too; opening one parses nothing.
        let compared = old.as_ref().map(|old| Old { id: old.id, directory: old.directory.clone() });
        self.push(Event::Enter { name, metadata, old })?;
        if let Some(directory) = &directory {
            for name in names {
                self.entry(directory, name, compared.as_ref(), &mut subdirectories)?;
            }
        }
        Ok(Some(Level { directory, subdirectories: subdirectories.into_iter() }))
    }

    /// One name of a directory: a file is told of, a subdirectory kept for later.
    fn entry(
        &mut self,
        directory: &OwnedFd,
        name: Name,
        old: Option<&Old>,
        subdirectories: &mut Vec<Subdirectory>,
    ) -> Result<(), Stop> {
        self.state.relative.push(OsStr::from_bytes(&name));
        let outcome = self.entry_at(directory, name, old, subdirectories);
        self.state.relative.pop();
        outcome
    }

    fn entry_at(
        &mut self,
        directory: &OwnedFd,
        name: Name,
        old: Option<&Old>,
        subdirectories: &mut Vec<Subdirectory>,
    ) -> Result<(), Stop> {
        if self.exclude.matches(&self.state.relative) {
            return Ok(());
        }
        let stat = match host::stat_at(directory, &name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => {
                let path = self.path();
                let error = Error::io("cannot look at file", path.display(), error.into());
                return self.unreadable(&path, &error);
            }
        };
        let position = self.position(old, &name)?;
        if host::file_type(&stat) == FileType::Directory {
            if self.exclude.matches_directory(&self.state.relative) {
                return Ok(());
            }
            let old = match (position, old) {
                (Some(position), Some(old)) => Some(old.directory.entry(position)?.inode),
                _ => None,
            };
            // The link table holds no directories.
            let old =
                old.and_then(|inode| if let EntryInode::Own(inode) = inode { Some(inode) } else { None });
            subdirectories.push(Subdirectory { name, stat, old });
            return Ok(());
        }
        self.leaf(name, &stat, position)
    }

    /// An entry that is no directory. `position`: where the old directory has its name.
    fn leaf(&mut self, name: Name, stat: &Stat, position: Option<usize>) -> Result<(), Stop> {
        let kind = host::file_type(stat);
        let file_len = (kind == FileType::RegularFile).then_some(stat.st_size as u64);
        let linked = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
        let is_again = linked.is_some_and(|key| !self.state.met.insert(key));
        let (is_unchanged, look) = self.cache.look(self.state.relative.as_os_str().as_bytes(), stat);
        let form = match position {
            _ if is_again => Form::Again,
            Some(position) if is_unchanged => Form::Same(position),
            _ if file_len.is_some() => Form::Read(host::bare_metadata(stat)),
            _ => self.special(kind, stat).map_or_else(Form::Unreadable, Form::Whole),
        };
        if let (Form::Read(_), Some(len_bytes)) = (&form, file_len) {
            let is_sparse = stat.st_blocks as u64 * 512 < len_bytes;
            let path = self.path();
            self.state.draft.len_bytes += len_bytes;
            self.state.draft.jobs.push(Job { path, len_bytes, is_sparse });
        }
        self.push(Event::Leaf(Leaf { name, file_len, look, linked, form }))
    }

    /// An inode that is neither a directory nor a regular file.
    fn special(&mut self, kind: FileType, stat: &Stat) -> Result<Inode> {
        let path = self.path();
        let node = match kind {
            FileType::Symlink => {
                let target = rustix::fs::readlink(&path, Vec::new());
                let target =
                    target.map_err(|error| Error::io("cannot read link", path.display(), error.into()))?;
                Node::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => Node::CharDevice(stat.st_rdev),
            FileType::BlockDevice => Node::BlockDevice(stat.st_rdev),
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            _ => Node::File(Content::empty()),
        };
        Ok(Inode { metadata: self.state.host.metadata(&Source::At(&path), &path, stat)?, node })
    }
}
