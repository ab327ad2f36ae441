//! The walk of a backup: the entries of the host, each with its counterpart in the parent tree. Names in order; a
//! directory's own files come before its subdirectories, so that files of one directory lie together in packs.
//!
//! It runs ahead of the assembler on a thread of its own, by as many segments as the channel holds. Every name is
//! looked up in a directory that is held open, and each changed entry is pinned: its reader reads the pinned inode.

use super::Exclude;
use super::events::{Draft, Event, Form, InodeKey, Leaf, Old, Remark, Segment};
use super::levels::{Level, Levels, Subdirectory};
use super::read::{Batch, Job, PIECES_AHEAD};
use super::stat_cache::{Key, StatCache};
use crate::error::{Error, Result};
use crate::host::held::{self, Handle, Host, Name, Xattrs};
use crate::tree::{Content, EntryInode, Inode, MAX_NAME_LEN, Metadata, Node, Tree};
use crossbeam_channel::{Sender, bounded};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Stat, fstat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A segment ends when its files have this many bytes,
const SEGMENT_LEN: u64 = 1 << 20;
/// or when it has this many steps,
const SEGMENT_EVENTS: usize = 512;
/// or this many files pinned for their readers. With the segments being read or waiting, and the directories held
/// open, this bounds the number of open descriptors well below 1024.
const SEGMENT_PINS: usize = 32;

/// Attempts for a name that is a directory when examined and none when opened.
const REPLACED_MAX: usize = 8;
const REPLACED: &str = "it is replaced again and again";

/// A walk under way.
pub(super) struct Walk<'a> {
    /// The source as the user named it, or its parent directory, to name paths with.
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

/// The mutable state of a walk.
pub(super) struct State {
    host: Host,
    /// The path of the current entry below the source.
    relative: PathBuf,
    draft: Draft,
    /// Inodes with several names that were met.
    met: HashSet<InodeKey>,
}

impl State {
    pub(super) fn new() -> Self {
        Self { host: Host::new(), relative: PathBuf::new(), draft: Draft::default(), met: HashSet::new() }
    }
}

/// Where a walk begins.
pub(super) enum Root {
    Directory(OwnedFd),
    /// Its name, its pinned descriptor and its stat.
    Other(Name, OwnedFd, Box<Stat>),
}

/// Why a walk ends early.
enum Stop {
    /// A fatal error.
    Failed(Error),
    /// The assembler is gone.
    GaveUp,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The name turned out to be a directory.
struct IsDirectory(Stat);

impl Walk<'_> {
    /// Walks it all.
    pub(super) fn run(mut self, root: Root) {
        let walked = match root {
            Root::Directory(directory) => self.tree(directory),
            Root::Other(name, pin, stat) => self.single(name, pin, &stat),
        };
        if let Err(Stop::Failed(error)) = walked {
            self.state.draft.events.push(Event::Failed(error));
        }
        let _ = self.send();
    }

    /// A source that is no directory becomes the only entry of a bare root.
    fn single(&mut self, name: Name, pin: OwnedFd, stat: &Stat) -> Result<(), Stop> {
        let old = self.parent.map(|tree| self.old(&tree.root().node)).transpose()?.flatten();
        self.state.relative.push(OsStr::from_bytes(&name));
        let position = self.position(old.as_ref(), &name)?;
        self.push(Event::Enter { name: Vec::new(), metadata: super::bare_root(), old })?;
        match self.unchanged(stat, position) {
            Some(form) => self.push_leaf(name, stat, form)?,
            None => self.pinned(name, pin, stat)?,
        }
        self.push(Event::Leave)
    }

    /// Walks without recursion: a tree may be deeper than the stack.
    fn tree(&mut self, root: OwnedFd) -> Result<(), Stop> {
        let stat = fstat(&root).map_err(|error| self.cannot_look(error))?;
        let old = self.parent.map(|tree| tree.root().clone());
        let top = self.enter(Subdirectory { name: Vec::new(), stat, old }, root)?;
        let Some(top) = top else { return Err(self.cannot_look(Errno::NOENT).into()) };
        let mut levels = Levels::new(top);
        while let Some(level) = levels.deepest() {
            let Some(subdirectory) = level.subdirectories.next() else {
                self.push(Event::Leave)?;
                self.state.relative.pop();
                levels.leave(&self.state.relative);
                continue;
            };
            self.state.relative.push(OsStr::from_bytes(&subdirectory.name));
            let below = match &level.directory {
                Ok(directory) => self.subdirectory(directory, subdirectory)?,
                Err(error) => {
                    let why = format!(
                        "cannot open the directory that it lies in again: {}",
                        io::Error::from(*error)
                    );
                    self.unreadable(&why)?;
                    None
                }
            };
            match below {
                Some(below) => levels.enter(below),
                None => {
                    self.state.relative.pop();
                }
            }
        }
        Ok(())
    }

    fn cannot_look(&self, error: Errno) -> Error {
        Error::io("cannot look at", self.path().display(), error.into())
    }

    fn path(&self) -> PathBuf {
        match self.state.relative.as_os_str().is_empty() {
            true => self.source.clone(),
            false => self.source.join(&self.state.relative),
        }
    }

    fn push(&mut self, event: Event) -> Result<(), Stop> {
        self.state.draft.events.push(event);
        let Draft { events, jobs, len_bytes } = &self.state.draft;
        let is_full =
            *len_bytes >= SEGMENT_LEN || events.len() >= SEGMENT_EVENTS || jobs.len() >= SEGMENT_PINS;
        if is_full { self.send() } else { Ok(()) }
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

    /// Reports that the current entry cannot be read.
    fn unreadable(&mut self, why: &str) -> Result<(), Stop> {
        let path = self.path();
        self.push(Event::Remark(Remark::Unreadable(format!("{}: {why}", path.display()))))
    }

    /// Reports a failed system call on the current entry. An entry that is gone is only noted as vanished.
    fn failed(&mut self, what: &str, error: Errno) -> Result<(), Stop> {
        match error {
            Errno::NOENT => {
                let path = self.path().display().to_string();
                self.push(Event::Remark(Remark::Vanished(path)))
            }
            error => self.unreadable(&format!("{what}: {}", io::Error::from(error))),
        }
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

    fn is_elsewhere(&self, stat: &Stat) -> bool {
        self.device.is_some_and(|device| device != stat.st_dev)
    }

    /// Enters a name that was a directory when examined, unless it is none any more.
    fn subdirectory(&mut self, parent: &OwnedFd, found: Subdirectory) -> Result<Option<Level>, Stop> {
        if self.is_elsewhere(&found.stat) {
            return self.enter_closed(parent, found.name, None);
        }
        for _ in 0..REPLACED_MAX {
            match held::open_directory_at(parent, &found.name) {
                Ok(directory) => return self.enter(found, directory),
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(Errno::NOENT) => return self.failed("", Errno::NOENT).map(|()| None),
                Err(error) => return self.enter_closed(parent, found.name, Some(error)),
            }
            let is_directory = match held::stat_at(parent, &found.name) {
                Ok(stat) => self.leaf(parent, found.name.clone(), &stat, None)?,
                Err(error) => self.failed("cannot look at it", error).map(|()| None)?,
            };
            if is_directory.is_none() {
                return Ok(None);
            }
        }
        self.unreadable(REPLACED)?;
        Ok(None)
    }

    /// Enters a directory and goes through its files. A mount point that is not to be crossed counts as empty.
    fn enter(&mut self, found: Subdirectory, directory: OwnedFd) -> Result<Option<Level>, Stop> {
        let Subdirectory { name, old, .. } = found;
        let stat = match fstat(&directory) {
            Ok(stat) => stat,
            Err(error) => return self.failed("cannot look at it", error).map(|()| None),
        };
        let (xattrs, _) = self.attributes(Handle::Open(directory.as_fd()))?;
        let metadata = Metadata { xattrs, ..Metadata::of_inode(&stat) };
        let mut subdirectories = Vec::new();
        if self.is_elsewhere(&stat) {
            self.push(Event::Enter { name, metadata, old: None })?;
            return Ok(Some(Level::new(directory, &stat, subdirectories)));
        }
        let old = old.map(|inode| self.old(&inode.node)).transpose()?.flatten();
        let names = match self.state.host.names(&directory) {
            Ok(names) => names,
            Err(error) => {
                self.unreadable(&format!("cannot read directory: {error}"))?;
                Vec::new()
            }
        };
        // The assembler needs the old directory, too; opening one parses nothing.
        let compared = old.as_ref().map(|old| Old { id: old.id, directory: old.directory.clone() });
        self.push(Event::Enter { name, metadata, old })?;
        for name in names {
            self.state.relative.push(OsStr::from_bytes(&name));
            let outcome = self.entry(&directory, name, compared.as_ref(), &mut subdirectories);
            self.state.relative.pop();
            outcome?;
        }
        Ok(Some(Level::new(directory, &stat, subdirectories)))
    }

    /// A directory that counts as empty: it cannot be read, or is a mount point that is not to be crossed.
    fn enter_closed(
        &mut self,
        parent: &OwnedFd,
        name: Name,
        error: Option<Errno>,
    ) -> Result<Option<Level>, Stop> {
        let pinned = held::pin_at(parent, &name).and_then(|pin| Ok((fstat(&pin)?, pin)));
        let (stat, pin) = match pinned {
            Ok(pinned) => pinned,
            Err(error) => return self.failed("cannot look at it", error).map(|()| None),
        };
        if held::file_type(&stat) != FileType::Directory {
            return self.unreadable(REPLACED).map(|()| None);
        }
        if let Some(error) = error {
            self.unreadable(&format!("cannot read directory: {}", io::Error::from(error)))?;
        }
        let (xattrs, _) = self.attributes(Handle::Pinned(pin.as_fd()))?;
        let metadata = Metadata { xattrs, ..Metadata::of_inode(&stat) };
        self.push(Event::Enter { name, metadata, old: None })?;
        Ok(Some(Level::new(pin, &stat, Vec::new())))
    }

    /// Extended attributes, and whether they are complete. Unreadable ones are reported.
    fn attributes(&mut self, handle: Handle<'_>) -> Result<(Xattrs, bool), Stop> {
        let read = self.state.host.xattrs(handle);
        let are_all = read.failed.is_empty();
        for remark in super::attribute_remarks(|| self.path(), read.failed) {
            self.push(Event::Remark(remark))?;
        }
        Ok((read.xattrs, are_all))
    }

    /// One name of a directory: a file is sent on, a subdirectory kept for later.
    fn entry(
        &mut self,
        directory: &OwnedFd,
        name: Name,
        old: Option<&Old>,
        subdirectories: &mut Vec<Subdirectory>,
    ) -> Result<(), Stop> {
        if self.exclude.matches(&self.state.relative) {
            return Ok(());
        }
        if name.len() > MAX_NAME_LEN {
            return self.unreadable(&format!("its name is longer than {MAX_NAME_LEN} bytes"));
        }
        let stat = match held::stat_at(directory, &name) {
            Ok(stat) => stat,
            Err(error) => return self.failed("cannot look at it", error),
        };
        let position = self.position(old, &name)?;
        let stat = match held::file_type(&stat) {
            FileType::Directory => stat,
            _ => match self.leaf(directory, name.clone(), &stat, position)? {
                None => return Ok(()),
                Some(IsDirectory(stat)) => stat,
            },
        };
        if self.exclude.matches_directory(&self.state.relative) {
            return Ok(());
        }
        let old = match (position, old) {
            (Some(position), Some(old)) => Some(old.directory.entry(position)?.inode),
            _ => None,
        };
        // The link table holds no directories.
        let old = old.and_then(|inode| if let EntryInode::Own(inode) = inode { Some(inode) } else { None });
        subdirectories.push(Subdirectory { name, stat, old });
        Ok(())
    }

    /// An entry that is no directory by its stat. `position`: where the old directory has its name. An entry whose look
    /// changed is pinned, and the pinned inode counts: it may be another than the one examined, even a directory.
    fn leaf(
        &mut self,
        directory: &OwnedFd,
        name: Name,
        stat: &Stat,
        position: Option<usize>,
    ) -> Result<Option<IsDirectory>, Stop> {
        if let Some(form) = self.unchanged(stat, position) {
            return self.push_leaf(name, stat, form).map(|()| None);
        }
        match held::pin_at(directory, &name).and_then(|pin| Ok((fstat(&pin)?, pin))) {
            Ok((stat, _)) if held::file_type(&stat) == FileType::Directory => Ok(Some(IsDirectory(stat))),
            Ok((stat, pin)) => self.pinned(name, pin, &stat).map(|()| None),
            Err(Errno::NOENT) => self.failed("", Errno::NOENT).map(|()| None),
            Err(error) => {
                let why = format!("cannot look at it: {}", io::Error::from(error));
                self.push_leaf(name, stat, Form::Unreadable(why)).map(|()| None)
            }
        }
    }

    /// The form of an entry that needs only its look: an inode met before, or an unchanged entry.
    fn unchanged(&self, stat: &Stat, position: Option<usize>) -> Option<Form> {
        if inode_key(stat).is_some_and(|key| self.state.met.contains(&key)) {
            return Some(Form::Again);
        }
        let position = position?;
        let look = self.cache.look(self.key(), stat);
        let is_file = held::file_type(stat) == FileType::RegularFile;
        self.cache.is_unchanged(&look).then(|| Form::Same {
            position,
            file_len: is_file.then_some(stat.st_size as u64),
            look: self.cache.is_settled(stat).then_some(look),
        })
    }

    fn key(&self) -> Key {
        self.cache.key(self.state.relative.as_os_str().as_bytes())
    }

    /// An entry that is pinned and is no directory.
    fn pinned(&mut self, name: Name, pin: OwnedFd, stat: &Stat) -> Result<(), Stop> {
        if inode_key(stat).is_some_and(|key| self.state.met.contains(&key)) {
            return self.push_leaf(name, stat, Form::Again);
        }
        let key = self.key();
        if held::file_type(stat) == FileType::RegularFile {
            self.state.draft.len_bytes = self.state.draft.len_bytes.saturating_add(stat.st_size as u64);
            self.state.draft.jobs.push(Job { pin, key });
            return self.push_leaf(name, stat, Form::Read);
        }
        let form = match special(&pin, stat) {
            Err(why) => Form::Unreadable(why),
            Ok(node) => {
                let (xattrs, are_all) = self.attributes(Handle::Pinned(pin.as_fd()))?;
                let is_kept = are_all && self.cache.is_settled(stat);
                let look = is_kept.then(|| self.cache.look(key, stat));
                let metadata = Metadata { xattrs, ..Metadata::of_inode(stat) };
                Form::Whole { inode: Inode { metadata, node }, look }
            }
        };
        self.push_leaf(name, stat, form)
    }

    fn push_leaf(&mut self, name: Name, stat: &Stat, form: Form) -> Result<(), Stop> {
        let linked = inode_key(stat);
        self.state.met.extend(linked);
        self.push(Event::Leaf(Leaf { name, linked, form }))
    }
}

/// Set when an inode has more than one name.
fn inode_key(stat: &Stat) -> Option<InodeKey> {
    (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino))
}

/// An inode that is neither a directory nor a regular file.
fn special(pin: &OwnedFd, stat: &Stat) -> Result<Node, String> {
    Ok(match held::file_type(stat) {
        FileType::Symlink => {
            let target = held::read_link(pin);
            Node::Symlink(target.map_err(|error| format!("cannot read link: {}", io::Error::from(error)))?)
        }
        FileType::CharacterDevice => Node::CharDevice(stat.st_rdev),
        FileType::BlockDevice => Node::BlockDevice(stat.st_rdev),
        FileType::Fifo => Node::Fifo,
        FileType::Socket => Node::Socket,
        _ => Node::File(Content::empty()),
    })
}
