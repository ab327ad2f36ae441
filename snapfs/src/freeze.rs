//! Freezing: the changes become a new snapshot, at a cost that follows the changes.
//!
//! Changed files are stored while changes continue, pass by pass ([`crate::passes`]). Then changes wait, while reads
//! are answered: the writes of the last pass are stored, then all the rest, so the snapshot is one moment. Only dirty
//! ranges of files are read, cut and hashed; only directories on the way from a change to the root are written; all
//! others are reused by id. Then the upper is rebased on the new snapshot: commit -> journal of the new base in place
//! of the old one (one rename) -> memory. The next mount detects a crash between the first two, because the journal
//! says which tree was about to be committed.

use crate::change::{Change, NodeId};
use crate::errno::Errno;
use crate::identity::{kept, number_in, number_of_link};
use crate::journal::{Header, Journal};
use crate::lower::{Base, join};
use crate::node::{Body, Node, Origin};
use crate::overlay::Overlay;
use crate::passes::Passes;
use crate::rebase::{Frozen, rebase};
use crate::slots::Slot;
use crate::upper::boot_id;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{
    Content, DirectoryId, Entry, EntryInode, Error, Inode, Kind, LinkedInode, Result, SnapshotDraft,
    SnapshotId, Store, TreeRoot, Writer,
};

/// The result of a freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FreezeReport {
    /// The new snapshot.
    pub snapshot: SnapshotId,
    /// Files, directories and other nodes that were written.
    pub changed_files: u64,
    /// Bytes in the ranges that were read again.
    pub changed_bytes: u64,
    /// Plain bytes that the store did not have.
    pub new_bytes: u64,
    /// Bytes that those take in the store.
    pub stored_bytes: u64,
    /// Duration of the freeze. Changes waited for a part of it.
    pub elapsed: Duration,
}

impl Overlay {
    /// Makes a snapshot of the mount as it is now, moves the ref `name` to it, and rebases the mount on it.
    ///
    /// # Errors
    /// `Conflict` when another process writes to the store or the ref's snapshot is not the mount's base, `Invalid` for
    /// a read-only mount or an impossible name, and those of the store. After an error the changes are still in the
    /// upper; after `Unavailable` they are committed too, and the mount has to be mounted again.
    pub(crate) fn freeze(&self, name: &str, labels: BTreeMap<String, String>) -> Result<FreezeReport> {
        self.freeze_within(None, name, labels)
    }

    /// The same, waiting so long for the writer's lock of the store; `None`: as long as the mount was told.
    ///
    /// # Errors
    /// As [`Self::freeze`].
    pub(crate) fn freeze_within(
        &self,
        wait: Option<Duration>,
        name: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<FreezeReport> {
        let purpose = format!("freeze {name}");
        if self.is_read_only() {
            return Err(Error::new(Kind::Invalid, "a read-only mount has nothing to freeze")
                .object(self.upper().path().display()));
        }
        store::check_name(name)?;
        // Another process may write to the store for a while: changes continue until the lock is taken.
        let mut writer = match wait {
            Some(wait) => self.store().writer_within(wait, &purpose)?,
            None => self.store().writer(&purpose)?,
        };
        check_follows(self.store(), name, &self.base().id)?;
        let started = Instant::now();
        let mut passes = Passes::new(self);
        passes.run(&mut writer)?;
        let _stopped = self.stop_changes();
        // Space for the next journal is taken before the commit, after which there is no way back.
        let header = Header { store: self.store().id(), base: self.base().id, boot: boot_id()? };
        let journal = Journal::prepare(&self.upper().journal_path(), &header, std::iter::empty())?;
        let (report, frozen) = self.commit_changes(&mut writer, name, labels, passes)?;
        let rebased = Base::open(self.store(), &report.snapshot)
            .and_then(|base| rebase(self, Arc::new(base), frozen, journal));
        rebased.map_err(|error| {
            // Changes journaled from now on would belong to neither snapshot.
            self.poison("a freeze was committed, and the mount could not change over to it");
            Error::new(
                Kind::Unavailable,
                format!("committed as {}, but the mount cannot go on", report.snapshot),
            )
            .object(name)
            .caused_by(error)
            .advice("unmount, then mount again with the same upper: nothing is lost")
        })?;
        Ok(FreezeReport { elapsed: started.elapsed(), ..report })
    }

    /// The first half: makes a new snapshot with all changes, which are still in the upper too. The caller keeps
    /// changes out.
    pub(crate) fn commit_changes(
        &self,
        writer: &mut Writer,
        name: &str,
        labels: BTreeMap<String, String>,
        passes: Passes<'_>,
    ) -> Result<(FreezeReport, Frozen)> {
        let contents = passes.finish(writer)?;
        let mut freezer = Freezer::new(self, contents);
        let root = freezer.tree_root(writer)?;
        let tree = writer.put_tree(&root)?;
        self.announce(Change::Freezing { tree })?;
        let base = &freezer.base;
        let draft = SnapshotDraft {
            tree: Some(tree),
            image: None,
            parent: Some(base.id),
            labels,
            files: base.snapshot.totals.files.saturating_add_signed(freezer.files),
            bytes: (i128::from(base.snapshot.totals.bytes) + freezer.bytes).clamp(0, u64::MAX.into()) as u64,
        };
        let snapshot = writer.commit(name, draft)?;
        let stats = writer.stats();
        let report = FreezeReport {
            snapshot,
            changed_files: freezer.nodes.len() as u64,
            changed_bytes: freezer.changed_bytes,
            new_bytes: stats.new_bytes,
            stored_bytes: stats.stored_bytes,
            elapsed: Duration::ZERO,
        };
        Ok((report, freezer.frozen))
    }

    /// Writes a change that only the next mount reads into the journal, durably.
    fn announce(&self, change: Change) -> Result<()> {
        let failed = |errno: Errno| {
            Error::io("cannot write the journal", self.upper().path().display(), errno.into())
                .advice("nothing was committed; the changes are still in the upper")
        };
        self.commit_making_room(&mut self.lock(), vec![change]).map_err(failed)?;
        self.sync_journal().map_err(failed)
    }
}

/// The work on one freeze.
struct Freezer<'a> {
    overlay: &'a Overlay,
    base: Arc<Base>,
    /// Copies of all nodes that differ from the base.
    nodes: HashMap<NodeId, Node>,
    /// The places of the changed nodes in the base.
    standing: HashSet<Vec<u8>>,
    frozen: Frozen,
    links: BTreeMap<u64, LinkedInode>,
    /// Names more than the base has.
    files: i64,
    /// Bytes more than the base has.
    bytes: i128,
    changed_bytes: u64,
}

impl<'a> Freezer<'a> {
    fn new(overlay: &'a Overlay, contents: HashMap<NodeId, Content>) -> Self {
        let inner = overlay.lock();
        let changed = inner.state.nodes().filter(|(_, node)| node.dirty && !node.is_orphan());
        let nodes: HashMap<NodeId, Node> = changed.map(|(id, node)| (id, node.clone())).collect();
        let origins = nodes.values().filter_map(|node| match &node.origin {
            Origin::Path(path) => Some(path.clone()),
            _ => None,
        });
        Self {
            overlay,
            base: inner.state.base.clone(),
            standing: origins.collect(),
            changed_bytes: changed_bytes(&nodes),
            nodes,
            frozen: Frozen { contents, ..Frozen::default() },
            links: BTreeMap::new(),
            files: 0,
            bytes: 0,
        }
    }

    fn tree_root(&mut self, writer: &mut Writer) -> Result<TreeRoot> {
        self.freeze_links()?;
        let order = self.directories();
        for id in order.iter().rev() {
            let directory = self.freeze_directory(writer, *id)?;
            self.frozen.directories.insert(*id, directory);
        }
        let inner = self.overlay.lock();
        let root = inner.state.node(NodeId::ROOT).expect("the root is always there");
        let lower = || match &self.base.tree.root().node {
            store::Node::Directory(id) => *id,
            _ => unreachable!("the root of a tree is a directory"),
        };
        let directory = self.frozen.directories.get(&NodeId::ROOT).copied().unwrap_or_else(lower);
        let inode = Inode { metadata: root.metadata(), node: store::Node::Directory(directory) };
        let inode = kept(inode, NodeId::ROOT, NodeId::ROOT, root.attributes.ctime);
        Ok(TreeRoot { metadata: inode.metadata, directory, links: std::mem::take(&mut self.links) })
    }

    /// The link table: the base's, without files that lost their last name, with files that changed or got a second
    /// name.
    fn freeze_links(&mut self) -> Result<()> {
        let old = self.base.tree.links()?;
        self.links = old.as_ref().clone();
        {
            let inner = self.overlay.lock();
            inner.state.dead_links().iter().for_each(|number| drop(self.links.remove(number)));
        }
        let mut linked: BTreeMap<u64, LinkedInode> = BTreeMap::new();
        for (id, node) in &self.nodes {
            let number = match node.origin {
                Origin::Link(number) => number,
                _ if node.directory().is_none() && node.attributes.nlink > 1 => {
                    let taken = |number: &u64| old.contains_key(number) || linked.contains_key(number);
                    (id.0..).find(|number| !taken(number)).expect("a table has fewer than 2^64 links")
                }
                _ => continue,
            };
            let derived = number_of_link(number, None);
            let inode = self.inode(*id, node, derived)?;
            linked.insert(number, LinkedInode { count: node.attributes.nlink, inode });
            self.frozen.links.insert(*id, number);
        }
        self.links.extend(linked);
        let bytes = |links: &BTreeMap<u64, LinkedInode>| {
            links.values().map(|linked| len_of(&linked.inode)).sum::<i128>()
        };
        self.bytes += bytes(&self.links) - bytes(&old);
        Ok(())
    }

    /// All changed directories, each before those in it.
    fn directories(&self) -> Vec<NodeId> {
        let mut order = Vec::new();
        if self.nodes.contains_key(&NodeId::ROOT) {
            order.push(NodeId::ROOT);
        }
        let mut next = 0;
        while let Some(id) = order.get(next).copied() {
            next += 1;
            for (_, target) in changed_slots(&self.nodes[&id]) {
                let inside =
                    target.filter(|id| self.nodes.get(id).is_some_and(|node| node.directory().is_some()));
                order.extend(inside);
            }
        }
        order
    }

    /// Writes a directory whose changed subdirectories are written already.
    fn freeze_directory(&mut self, writer: &mut Writer, id: NodeId) -> Result<DirectoryId> {
        let directory = self.nodes[&id].directory().expect("only directories are asked for").clone();
        let below = match &directory.lower {
            Some(lower) if changed_slots(&self.nodes[&id]).next().is_none() => return Ok(lower.id),
            Some(lower) => lower.open(&self.base)?.iter().collect::<Result<Vec<Entry>>>()?,
            None => Vec::new(),
        };
        let mut entries = Vec::with_capacity(below.len() + directory.slots.len());
        let mut gone = Vec::new();
        for entry in below {
            match directory.slots.get(entry.name.as_slice()) {
                Some(Slot::Changed(_)) => gone.push(entry),
                Some(Slot::Known(_)) | None => entries.push(entry),
            }
        }
        if let Some(lower) = &directory.lower {
            self.count_gone(&lower.path, gone)?;
        }
        for (name, slot) in directory.slots {
            let Slot::Changed(Some(target)) = slot else { continue };
            let inode = match self.frozen.links.get(&target) {
                Some(number) => EntryInode::Link(*number),
                None => {
                    let node = self.nodes.get(&target).ok_or_else(|| lost(target))?;
                    let derived = number_in(id, &name, None);
                    EntryInode::Own(self.inode(target, node, derived)?)
                }
            };
            self.count(&inode, 1);
            entries.push(Entry { name: name.to_vec(), inode });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        writer.put_directory(&entries)
    }

    /// Counts entries of the base's directory at `path` that are not there any more. A directory among them that is not
    /// at another place either was emptied before: its entries are gone too.
    fn count_gone(&mut self, path: &[u8], gone: Vec<Entry>) -> Result<()> {
        let mut pending: Vec<(Vec<u8>, Entry)> =
            gone.into_iter().map(|entry| (join(path, &entry.name), entry)).collect();
        while let Some((path, entry)) = pending.pop() {
            self.count(&entry.inode, -1);
            if let EntryInode::Own(Inode { node: store::Node::Directory(id), .. }) = &entry.inode
                && !self.standing.contains(&path)
            {
                for inside in self.base.tree.directory(id)?.iter() {
                    let inside = inside?;
                    pending.push((join(&path, &inside.name), inside));
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, inode: &EntryInode, names: i64) {
        self.files += names;
        if let EntryInode::Own(inode) = inode {
            self.bytes += i128::from(names) * len_of(inode);
        }
    }

    /// The inode of a changed node in the snapshot; its number would be `derived` if the snapshot kept none.
    fn inode(&self, id: NodeId, node: &Node, derived: NodeId) -> Result<Inode> {
        let node_of_store = match &node.body {
            Body::Directory(_) => {
                let id = self.frozen.directories.get(&id).ok_or_else(|| lost(id))?;
                store::Node::Directory(*id)
            }
            Body::File(_) => store::Node::File(match self.frozen.contents.get(&id) {
                Some(content) => content.clone(),
                None => self.overlay.lower_content(id)?.ok_or_else(|| lost(id))?,
            }),
            Body::Symlink(target) => store::Node::Symlink(target.clone()),
            Body::CharDevice(rdev) => store::Node::CharDevice(*rdev),
            Body::BlockDevice(rdev) => store::Node::BlockDevice(*rdev),
            Body::Fifo => store::Node::Fifo,
            Body::Socket => store::Node::Socket,
        };
        let inode = Inode { metadata: node.metadata(), node: node_of_store };
        Ok(kept(inode, id, derived, node.attributes.ctime))
    }
}

/// Refuses to replace a snapshot that the changes are not based on: its content would silently disappear from the ref's
/// head.
fn check_follows(store: &Store, name: &str, base: &SnapshotId) -> Result<()> {
    let Some(current) = store.refs().get(name)?.and_then(|found| found.current()) else { return Ok(()) };
    let mut ancestor = Some(*base);
    while let Some(id) = ancestor {
        if id == current {
            return Ok(());
        }
        ancestor = match store.snapshot(&id) {
            Ok(snapshot) => snapshot.parent,
            Err(error) if error.kind() == Kind::NotFound => None, // collected long ago
            Err(error) => return Err(error),
        };
    }
    Err(Error::new(
        Kind::Conflict,
        format!("the ref names snapshot {current}, which this mount is not based on"),
    )
    .object(name)
    .advice("freeze to another name, and compare with `snapctl diff`"))
}

/// Bytes in the ranges of files that may differ from the base.
fn changed_bytes(nodes: &HashMap<NodeId, Node>) -> u64 {
    let changed = nodes.values().filter_map(Node::file).filter(|file| file.is_changed());
    let dirty = changed.flat_map(|file| file.layout.dirty(file.lower.len_bytes()));
    dirty.fold(0, |sum: u64, range| sum.saturating_add(range.end - range.start))
}

fn changed_slots(node: &Node) -> impl Iterator<Item = (&[u8], Option<NodeId>)> {
    let slots = node.directory().into_iter().flat_map(|directory| directory.slots.iter());
    slots.filter_map(|(name, slot)| match slot {
        Slot::Changed(target) => Some((name.as_ref(), *target)),
        Slot::Known(_) => None,
    })
}

fn len_of(inode: &Inode) -> i128 {
    match &inode.node {
        store::Node::File(content) => content.len_bytes().into(),
        _ => 0,
    }
}

fn lost(id: NodeId) -> Error {
    Error::new(Kind::Internal, format!("changed node {:016x} is not among the changed nodes", id.0))
}
