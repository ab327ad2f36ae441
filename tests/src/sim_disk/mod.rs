//! A simulated disk: a file system in memory that records every operation, so that the state after a crash can be made
//! from any prefix of them ([`survivor`]), and that fails on request ([`Fault`]).
//!
//! Reads return the last write, as through a page cache. For the state after a crash see [`Rules`]. The processes of a
//! crashed disk are gone, and their locks with them. Not simulated: permissions, symbolic links, space.

mod durable;
mod survivor;

pub use durable::{Durable, Seen};
pub use survivor::{Luck, Rules, Survey};

use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::disk::{Disk, DiskFile, Stat};
use store::{Object, Time};

/// Number of a file or directory.
pub type Inode = usize;

/// The directory that every path begins at.
pub const ROOT: Inode = 0;

/// A file's bytes, or a directory's names.
#[derive(Clone, Debug)]
pub enum Node {
    /// A file.
    File(Arc<Vec<u8>>),
    /// A directory.
    Directory(BTreeMap<Arc<str>, Inode>),
}

/// A name in a directory, and its new target.
pub type Naming = (Inode, Arc<str>, Option<Inode>);

/// A change or a sync.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new, empty directory that has no name yet.
    DirectoryMade(Inode),
    /// Bytes were appended.
    Written(Inode, Arc<[u8]>),
    /// The file lost all its bytes.
    Emptied(Inode),
    /// Names changed, all at once.
    Named(Vec<Naming>),
    /// A file was synced.
    Synced(Inode),
    /// The sync of a file failed: its pages count as clean, written or not.
    SyncFailed(Inode),
    /// A directory was synced.
    DirectorySynced(Inode),
}

/// An operation that fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Its number, counted from 0 over all operations, reads too.
    pub operation: u64,
    /// How.
    pub errno: Errno,
    /// Whether all later ones fail, too.
    pub lasts: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    /// The state before the first change, all of it durable.
    base: Vec<Node>,
    nodes: Vec<Node>,
    changes: Vec<Change>,
    locked: BTreeSet<Inode>,
    operations: u64,
    fault: Option<Fault>,
    is_fault_met: bool,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::holding(vec![Node::Directory(BTreeMap::new())])
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk that durably holds these nodes.
    fn holding(nodes: Vec<Node>) -> Self {
        Self::changed(nodes.clone(), Vec::new(), nodes)
    }

    /// A disk that held `base`, saw `changes` and is seen as `nodes` since.
    fn changed(base: Vec<Node>, changes: Vec<Change>, nodes: Vec<Node>) -> Self {
        Self(Arc::new(Mutex::new(World {
            base,
            nodes,
            changes,
            locked: BTreeSet::new(),
            operations: 0,
            fault: None,
            is_fault_met: false,
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many changes were made so far.
    pub fn change_count(&self) -> usize {
        self.world().changes.len()
    }

    /// How many operations were asked for so far.
    pub fn operations(&self) -> u64 {
        self.world().operations
    }

    /// Fails an operation from now on, or none; operations are counted from 0 again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut world = self.world();
        (world.operations, world.fault, world.is_fault_met) = (0, fault, false);
    }

    /// Whether the fault has come.
    pub fn is_fault_met(&self) -> bool {
        self.world().is_fault_met
    }

    /// The initial state, and all changes since.
    pub fn history(&self) -> (Vec<Node>, Vec<Change>) {
        let world = self.world();
        (world.base.clone(), world.changes.clone())
    }

    /// Another disk with the seen state of this one, all of it durable.
    pub fn settled(&self) -> Self {
        Self::holding(self.world().nodes.clone())
    }

    /// A key of the disk's content, valid in this process. Cost: names, not bytes.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for node in &self.world().nodes {
            match node {
                Node::File(bytes) => (Arc::as_ptr(bytes), bytes.len()).hash(&mut hasher),
                Node::Directory(names) => names.hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

impl World {
    /// Counts an operation; fails it if it is its turn.
    fn begin(&mut self) -> io::Result<()> {
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some(Fault { operation, errno, lasts }) if number == operation || lasts && number > operation => {
                self.is_fault_met = true;
                Err(errno.into())
            }
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Inode> {
        let mut at = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let name = name.to_str().ok_or(Errno::INVAL)?;
            match &self.nodes[at] {
                Node::Directory(names) => at = *names.get(name).ok_or(Errno::NOENT)?,
                Node::File(_) => return Err(Errno::NOTDIR.into()),
            }
        }
        Ok(at)
    }

    /// The directory that a path lies in, and its name there.
    fn place(&self, path: &Path) -> io::Result<(Inode, Arc<str>)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(Errno::INVAL)?;
        let directory = self.find(path.parent().ok_or(Errno::INVAL)?)?;
        match self.nodes[directory] {
            Node::Directory(_) => Ok((directory, name.into())),
            Node::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    fn names(&self, directory: Inode) -> &BTreeMap<Arc<str>, Inode> {
        match &self.nodes[directory] {
            Node::Directory(names) => names,
            Node::File(_) => unreachable!("`place` gives directories"),
        }
    }

    fn bytes(&mut self, file: Inode) -> io::Result<&mut Arc<Vec<u8>>> {
        match &mut self.nodes[file] {
            Node::File(bytes) => Ok(bytes),
            Node::Directory(_) => Err(Errno::ISDIR.into()),
        }
    }

    fn make(&mut self, node: Node) -> Inode {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn name(&mut self, namings: Vec<Naming>) {
        for (directory, name, target) in &namings {
            let Node::Directory(names) = &mut self.nodes[*directory] else {
                unreachable!("`place` gives directories")
            };
            match target {
                Some(inode) => names.insert(name.clone(), *inode),
                None => names.remove(name),
            };
        }
        self.changes.push(Change::Named(namings));
    }

    fn stat(&self, inode: Inode) -> Stat {
        match &self.nodes[inode] {
            Node::File(bytes) => Stat::File(bytes.len() as u64),
            Node::Directory(_) => Stat::Directory,
        }
    }

    /// The file at a path, made if it is not there.
    fn open_or_make(&mut self, path: &Path) -> io::Result<Inode> {
        let (directory, name) = self.place(path)?;
        if let Some(inode) = self.names(directory).get(&name).copied() {
            return self.bytes(inode).map(|_| inode);
        }
        let inode = self.make(Node::File(Arc::default()));
        self.name(vec![(directory, name, Some(inode))]);
        Ok(inode)
    }

    fn empty(&mut self, inode: Inode) -> io::Result<()> {
        let bytes = self.bytes(inode)?;
        if !bytes.is_empty() {
            *bytes = Arc::default();
            self.changes.push(Change::Emptied(inode));
        }
        Ok(())
    }

    fn append(&mut self, inode: Inode, bytes: &[u8]) -> io::Result<()> {
        Arc::make_mut(self.bytes(inode)?).extend_from_slice(bytes);
        self.changes.push(Change::Written(inode, bytes.into()));
        Ok(())
    }
}

/// A handle of an open file.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: Inode,
    is_lock: bool,
}

impl SimDisk {
    fn handle(&self, inode: Inode, is_lock: bool) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.clone(), inode, is_lock })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.world();
        world.begin()?;
        Ok(self.handle(world.find(path)?, false))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.world();
        world.begin()?;
        let inode = world.open_or_make(path)?;
        world.empty(inode)?;
        Ok(self.handle(inode, false))
    }

    fn create_unnamed(&self, directory: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.world();
        world.begin()?;
        world.find(directory)?;
        Ok(self.handle(world.make(Node::File(Arc::default())), false))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let mut world = self.world();
        world.begin()?;
        let inode = world.find(path)?;
        Ok(world.stat(inode))
    }

    fn touch(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn last_used(&self, path: &Path) -> io::Result<Time> {
        self.stat(path).map(|_| Time::default())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<(OsString, Stat)>> {
        let mut world = self.world();
        world.begin()?;
        match &world.nodes[world.find(directory)?] {
            Node::File(_) => Err(Errno::NOTDIR.into()),
            Node::Directory(names) => {
                Ok(names.iter().map(|(name, inode)| (OsString::from(&**name), world.stat(*inode))).collect())
            }
        }
    }

    fn is_empty(&self, directory: &Path) -> io::Result<bool> {
        let mut world = self.world();
        world.begin()?;
        match &world.nodes[world.find(directory)?] {
            Node::File(_) => Err(Errno::NOTDIR.into()),
            Node::Directory(names) => Ok(names.is_empty()),
        }
    }

    fn make_directory(&self, directory: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.begin()?;
        if directory.file_name().is_none() {
            return Err(Errno::EXIST.into());
        }
        let (parent, name) = world.place(directory)?;
        if world.names(parent).contains_key(&name) {
            return Err(Errno::EXIST.into());
        }
        let inode = world.make(Node::Directory(BTreeMap::new()));
        world.changes.push(Change::DirectoryMade(inode));
        world.name(vec![(parent, name, Some(inode))]);
        Ok(())
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.begin()?;
        let ((source, old), (target, new)) = (world.place(source)?, world.place(target)?);
        let inode = *world.names(source).get(&old).ok_or(Errno::NOENT)?;
        world.name(vec![(source, old, None), (target, new, Some(inode))]);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.begin()?;
        let (directory, name) = world.place(path)?;
        let inode = *world.names(directory).get(&name).ok_or(Errno::NOENT)?;
        world.bytes(inode)?;
        world.name(vec![(directory, name, None)]);
        Ok(())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.begin()?;
        let inode = world.find(directory)?;
        world.changes.push(Change::DirectorySynced(inode));
        Ok(())
    }

    fn lock(&self, path: &Path, wait: bool) -> io::Result<Option<Box<dyn DiskFile>>> {
        let mut world = self.world();
        world.begin()?;
        let inode = world.open_or_make(path)?;
        if !world.locked.insert(inode) {
            // One thread plays all processes: a process that waits would wait forever.
            return if wait { Err(Errno::DEADLK.into()) } else { Ok(None) };
        }
        world.empty(inode)?;
        Ok(Some(self.handle(inode, true)))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        let mut world = self.world();
        world.begin()?;
        let inode = world.find(path)?;
        Ok(world.locked.contains(&inode))
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.is_lock {
            self.disk.world().locked.remove(&self.inode);
        }
    }
}

impl DiskFile for SimFile {
    fn len_bytes(&self) -> io::Result<u64> {
        let mut world = self.disk.world();
        world.begin()?;
        Ok(world.bytes(self.inode)?.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.begin()?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(buffer.len());
        let bytes = world.bytes(self.inode)?.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn map(&self) -> io::Result<Object> {
        let mut world = self.disk.world();
        world.begin()?;
        Ok(Object::Owned(world.bytes(self.inode)?.to_vec()))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.disk.world();
        match world.begin() {
            Ok(()) => world.append(self.inode, bytes),
            // A write that fails may have been done in part.
            Err(error) => world.append(self.inode, &bytes[..bytes.len() / 2]).and(Err(error)),
        }
    }

    fn allocate(&mut self, _len_bytes: u64) -> io::Result<()> {
        self.disk.world().begin()
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.disk.world();
        let outcome = world.begin();
        world.changes.push(match outcome {
            Ok(()) => Change::Synced(self.inode),
            Err(_) => Change::SyncFailed(self.inode),
        });
        outcome
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        let mut world = self.disk.world();
        world.begin()?;
        let (directory, name) = world.place(path)?;
        if world.names(directory).contains_key(&name) {
            return Err(Errno::EXIST.into());
        }
        world.name(vec![(directory, name, Some(self.inode))]);
        Ok(())
    }
}
