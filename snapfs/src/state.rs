//! The state of a mount in memory: live nodes over a base, changed only by [`State::apply`].
//!
//! The same `apply` runs when an operation happens and when the journal is replayed, so both end in the same state.
//! Invariants: the root always exists; a live node's directory is live; every changed node of the base has changed
//! directories up to the root, so all changes are found from there (hard-linked files: from the table of nodes); a node
//! with no name left is in no directory. Reads the base if needed, writes nothing.

use crate::change::{Change, Name, NodeId};
use crate::extent::blocks_of;
use crate::identity::{BASE_BIT, number_in, number_of_link, random_number};
use crate::lower::{Base, LowerContent};
use crate::node::{Body, DirectoryBody, FileBody, Lower, LowerPlace, Node, Origin};
use crate::slots::{SharedName, Slot};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use store::{Content, Entry, EntryInode, Error, Inode, Result};

/// Changes in a piece of a checkpoint: far fewer than fit into a frame of the journal.
const PIECE_LEN: usize = 100_000;
/// Room for fewer nodes is not worth freeing.
const MANY: usize = 4096;

/// Live and changed nodes over a base.
#[derive(Debug)]
pub(crate) struct State {
    /// The base.
    pub base: Arc<Base>,
    nodes: HashMap<NodeId, Box<Node>>,
    /// Live hard-linked files of the base, by number.
    links: HashMap<u64, NodeId>,
    /// Hard-linked files of the base that have no name left.
    dead_links: BTreeSet<u64>,
}

impl State {
    /// The state of an unchanged base.
    pub(crate) fn new(base: Arc<Base>) -> Self {
        let place = LowerPlace { origin: Origin::Root, nlink: 1, parent: NodeId::ROOT, path: Vec::new() };
        let root = Node::from_base(base.tree.root().clone(), place);
        let nodes = HashMap::from([(NodeId::ROOT, Box::new(root))]);
        Self { base, nodes, links: HashMap::new(), dead_links: BTreeSet::new() }
    }

    /// The node, if it is live.
    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(Box::as_ref)
    }

    /// As [`Self::node`], to change fields that are not journaled.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id).map(Box::as_mut)
    }

    /// All live nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node.as_ref()))
    }

    /// As [`Self::nodes`], to change fields that are not journaled.
    pub(crate) fn nodes_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut Node)> {
        self.nodes.iter_mut().map(|(id, node)| (*id, node.as_mut()))
    }

    /// Hard-linked files of the base that have no name left.
    pub(crate) fn dead_links(&self) -> &BTreeSet<u64> {
        &self.dead_links
    }

    /// Whether any node differs from the base.
    pub(crate) fn has_changes(&self) -> bool {
        !self.dead_links.is_empty() || self.nodes.values().any(|node| node.dirty && !node.is_orphan())
    }

    /// A number that no node has.
    pub(crate) fn new_id(&self) -> NodeId {
        loop {
            let id = random_number();
            if id > NodeId::ROOT && !self.nodes.contains_key(&id) {
                return id;
            }
        }
    }

    /// The node with the name `name`, made live if the base has it; `None` when there is no such name.
    ///
    /// # Errors
    /// `NotFound` when `parent` is no live directory, and those of the store.
    pub(crate) fn resolve(&mut self, parent: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let directory = self.directory(parent)?;
        match directory.slots.get(name) {
            Some(Slot::Known(id)) => return Ok(Some(*id)),
            Some(Slot::Changed(target)) => return Ok(*target),
            None => {}
        }
        let Some(lower) = directory.lower.clone() else { return Ok(None) };
        let Some(entry) = lower.open(&self.base)?.get(name)? else { return Ok(None) };
        self.make_live(parent, lower.path_of(name), entry).map(Some)
    }

    /// The live node for an entry of the base in directory `parent`, made live now if it is not.
    fn make_live(&mut self, parent: NodeId, path: Vec<u8>, entry: Entry) -> Result<NodeId> {
        match entry.inode {
            EntryInode::Link(number) => self.live_link(number),
            EntryInode::Own(inode) => {
                let id = self.free_id(number_in(parent, &entry.name, inode.metadata.identity.number()));
                let name = SharedName::from(entry.name);
                let origin = Origin::Entry { parent, name: name.clone() };
                let node = Node::from_base(inode, LowerPlace { origin, nlink: 1, parent, path });
                self.nodes.insert(id, Box::new(node));
                self.directory_mut(parent)?.slots.insert(name, Slot::Known(id));
                Ok(id)
            }
        }
    }

    /// The live node of hard-linked file `number`.
    fn live_link(&mut self, number: u64) -> Result<NodeId> {
        if let Some(id) = self.links.get(&number) {
            return Ok(*id);
        }
        let kept = self.base.tree.link(number)?.inode.metadata.identity.number();
        let id = self.free_id(number_of_link(number, kept));
        self.insert_link(id, number)?;
        Ok(id)
    }

    fn insert_link(&mut self, id: NodeId, number: u64) -> Result<()> {
        let linked = self.base.tree.link(number)?;
        let place = LowerPlace {
            origin: Origin::Link(number),
            nlink: linked.count,
            parent: NodeId::ROOT,
            path: Vec::new(),
        };
        self.nodes.insert(id, Box::new(Node::from_base(linked.inode, place)));
        self.links.insert(number, id);
        Ok(())
    }

    /// `wanted`, or the next number that no live node has.
    pub(crate) fn free_id(&self, mut wanted: NodeId) -> NodeId {
        while self.nodes.contains_key(&wanted) {
            wanted.0 = wanted.0.wrapping_add(1).max(BASE_BIT);
        }
        wanted
    }

    /// The number that a listing shows for an entry of the base in `parent` that is not live. `link`: its number in the
    /// link table, if it is there; `kept`: the inode number that the base keeps for it.
    pub(crate) fn listed_id(
        &self,
        parent: NodeId,
        name: &[u8],
        link: Option<u64>,
        kept: Option<u64>,
    ) -> NodeId {
        match link {
            Some(link) => match self.links.get(&link) {
                Some(id) => *id,
                None => self.free_id(number_of_link(link, kept)),
            },
            None => self.free_id(number_in(parent, name, kept)),
        }
    }

    /// The changes that put `id` and all directories above it into the journal. Empty when they are there already.
    pub(crate) fn adopt(&self, id: NodeId, changes: &mut Vec<Change>) {
        let begin = changes.len();
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Some(node) = self.nodes.get(&id).filter(|node| !node.dirty) else { break };
            match &node.origin {
                Origin::Link(number) => changes.push(Change::AdoptLink { node: id, number: *number }),
                Origin::Entry { parent, name } => {
                    let directory = self.node(*parent).and_then(Node::directory);
                    let lower = directory.and_then(|directory| directory.lower.as_ref());
                    let lower = lower.expect("an unchanged node stands in a live directory of the base");
                    changes.push(Change::Entry { parent: *parent, name: name.to_vec(), node: Some(id) });
                    changes.push(Change::Adopt { node: id, path: lower.path_of(name) });
                    next = Some(*parent);
                }
                Origin::Root | Origin::New | Origin::Path(_) => {}
            }
        }
        // A directory must exist before an entry of it is set.
        changes[begin..].reverse();
    }

    /// Applies a change. Applying it a second time has no effect.
    ///
    /// # Errors
    /// `Corrupt` when the change does not fit the state, and those of the store.
    pub(crate) fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Adopt { node, path } => self.apply_adopt(node, path),
            Change::AdoptLink { node, number } => {
                if self.is_free(node) {
                    self.insert_link(node, number)?;
                }
                self.known(node)?.dirty = true;
                Ok(())
            }
            Change::Create { node, body, attributes } => {
                self.nodes.insert(node, Box::new(Node::new(body, attributes)));
                Ok(())
            }
            Change::Entry { parent, name, node } => self.apply_entry(parent, name, node),
            Change::Attributes { node, attributes } => {
                let node = self.known(node)?;
                node.attributes = attributes;
                node.dirty = true;
                Ok(())
            }
            Change::Xattrs { node, xattrs } => {
                let node = self.known(node)?;
                node.xattrs = xattrs;
                node.dirty = true;
                Ok(())
            }
            Change::Write { node, range } => {
                let file = self.known_file(node)?;
                file.note_rewritten(blocks_of(&range));
                file.unconfirmed |= !file.layout.holds(&range);
                file.layout.write(range);
                file.unsynced = true;
                Ok(())
            }
            Change::Truncate { node, len_bytes } => {
                let file = self.known_file(node)?;
                file.note_cut(len_bytes);
                file.layout.truncate(len_bytes);
                Ok(())
            }
            Change::Zero { node, blocks } => {
                let file = self.known_file(node)?;
                file.note_zeroed(&blocks);
                file.layout.zero(blocks);
                Ok(())
            }
            Change::Synced { node } => {
                let file = self.known_file(node)?;
                (file.unsynced, file.unconfirmed) = (false, false);
                Ok(())
            }
            Change::DeadLink { number } => {
                self.dead_links.insert(number);
                Ok(())
            }
            // Used only when the journal is opened.
            Change::Freezing { .. } => Ok(()),
        }
    }

    /// Whether the bytes of a synced file could not be found after a power cut without `change`.
    pub(crate) fn is_needed_for_bytes(&self, change: &Change) -> bool {
        match change {
            Change::Write { node, range } => {
                !self.node(*node).and_then(Node::file).is_some_and(|file| file.layout.holds(range))
            }
            Change::Adopt { .. }
            | Change::AdoptLink { .. }
            | Change::Create { .. }
            | Change::Truncate { .. }
            | Change::Zero { .. }
            | Change::Synced { .. } => true,
            Change::Entry { .. }
            | Change::Attributes { .. }
            | Change::Xattrs { .. }
            | Change::DeadLink { .. }
            | Change::Freezing { .. } => false,
        }
    }

    /// Whether `id` may become another node. A node without a name is not changed any more, so a journal that reuses
    /// its number was written after the node was gone.
    fn is_free(&self, id: NodeId) -> bool {
        self.node(id).is_none_or(Node::is_orphan)
    }

    fn apply_adopt(&mut self, id: NodeId, path: Vec<u8>) -> Result<()> {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_orphan()) {
            if !node.dirty {
                node.origin = Origin::Path(path);
                node.dirty = true;
            }
            return Ok(());
        }
        let Some(inode) = self.base.tree.lookup_path(&path)? else {
            let shown = String::from_utf8_lossy(&path).into_owned();
            return Err(
                Error::corrupt("the journal changes a file that the base does not have").object(shown)
            );
        };
        self.insert_adopted(id, path, inode);
        Ok(())
    }

    fn insert_adopted(&mut self, id: NodeId, path: Vec<u8>, inode: Inode) {
        let origin = Origin::Path(path.clone());
        let mut node = Node::from_base(inode, LowerPlace { origin, nlink: 1, parent: NodeId::ROOT, path });
        node.dirty = true;
        self.nodes.insert(id, Box::new(node));
    }

    fn apply_entry(&mut self, parent: NodeId, name: Name, target: Option<NodeId>) -> Result<()> {
        if let Some(target) = target
            && let Some(directory) = self.known(target)?.directory_mut()
        {
            directory.parent = parent;
        }
        let base = self.base.clone();
        let node = self.known(parent)?;
        node.dirty = true;
        let Some(directory) = node.directory_mut() else {
            return Err(Error::corrupt(format!("the journal uses node {} as a directory", parent.0)));
        };
        let hides = match (&directory.lower, target) {
            (_, Some(_)) => true,
            (Some(lower), None) => lower.open(&base)?.find(&name)?.is_some(),
            (None, None) => false,
        };
        match hides {
            true => directory.slots.insert(name.into(), Slot::Changed(target)),
            false => directory.slots.remove(&name),
        };
        Ok(())
    }

    fn known(&mut self, id: NodeId) -> Result<&mut Node> {
        let unknown = || Error::corrupt(format!("the journal changes node {}, which is not there", id.0));
        self.node_mut(id).ok_or_else(unknown)
    }

    fn known_file(&mut self, id: NodeId) -> Result<&mut FileBody> {
        let node = self.known(id)?;
        node.dirty = true;
        let not_a_file = || Error::corrupt(format!("the journal uses node {} as a file", id.0));
        node.file_mut().ok_or_else(not_a_file)
    }

    fn directory(&self, id: NodeId) -> Result<&DirectoryBody> {
        let found = self.node(id).and_then(Node::directory);
        found.ok_or_else(|| Error::new(store::Kind::NotFound, format!("node {} is no live directory", id.0)))
    }

    fn directory_mut(&mut self, id: NodeId) -> Result<&mut DirectoryBody> {
        let found = self.node_mut(id).and_then(Node::directory_mut);
        found.ok_or_else(|| Error::new(store::Kind::NotFound, format!("node {} is no live directory", id.0)))
    }

    /// Notes that the kernel forgot `id` that many times. Returns the orphan that was dropped, if any: its data file is
    /// garbage.
    pub(crate) fn forget(&mut self, id: NodeId, lookups: u64) -> Option<NodeId> {
        let node = self.nodes.get_mut(&id)?;
        node.lookups = node.lookups.saturating_sub(lookups);
        self.release(id)
    }

    /// Frees the room of dropped nodes when that is most of a large table. Returns whether it did.
    pub(crate) fn shrink(&mut self) -> bool {
        let is_mostly_empty = self.nodes.capacity() >= MANY && self.nodes.len() < self.nodes.capacity() / 4;
        if is_mostly_empty {
            self.nodes.shrink_to_fit();
            self.links.shrink_to_fit();
        }
        is_mostly_empty
    }

    /// The place of the content that the file `id` began from; `None` when it is no live file.
    pub(crate) fn lower_content(&self, id: NodeId) -> Option<LowerContent> {
        let node = self.node(id)?;
        let file = node.file()?;
        let base = || file.kept_base.as_ref().unwrap_or(&self.base).clone();
        Some(match (&file.lower, &node.origin) {
            (Lower::Extents(content), _) => LowerContent::Known(content.as_ref().clone()),
            (Lower::Inline { .. }, Origin::Entry { parent, name }) => {
                let lower = self.node(*parent)?.directory()?.lower.clone()?;
                LowerContent::Entry(base(), lower, name.clone())
            }
            (Lower::Inline { .. }, Origin::Path(path)) => LowerContent::Path(base(), path.clone()),
            (Lower::Inline { .. }, Origin::Link(number)) => LowerContent::Link(base(), *number),
            (Lower::Inline { .. }, Origin::Root | Origin::New) => LowerContent::Known(Content::empty()),
        })
    }

    /// Drops `id` if it is not needed any more, and directories above it that only it needed. Returns the dropped
    /// orphan.
    pub(crate) fn release(&mut self, id: NodeId) -> Option<NodeId> {
        let mut orphan = None;
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Some(node) = self.nodes.get(&id) else { break };
            let holds_others = node.directory().is_some_and(|directory| directory.slots.named() > 0);
            let needed = node.lookups > 0 || id == NodeId::ROOT || holds_others;
            if needed || (node.dirty && !node.is_orphan()) {
                break;
            }
            let node = self.nodes.remove(&id).expect("it was just there");
            if node.is_orphan() {
                orphan = Some(id);
            }
            match node.origin {
                Origin::Link(number) if self.links.get(&number) == Some(&id) => {
                    self.links.remove(&number);
                }
                Origin::Entry { parent, name } => {
                    if let Ok(directory) = self.directory_mut(parent)
                        && directory.slots.get(&name) == Some(&Slot::Known(id))
                    {
                        directory.slots.remove(&name);
                        next = Some(parent);
                    }
                }
                Origin::Root | Origin::Link(_) | Origin::Path(_) | Origin::New => {}
            }
        }
        orphan
    }

    /// The changes that turn the unchanged base into this state, in pieces of bounded size, in an order that `apply`
    /// accepts.
    pub(crate) fn checkpoint(&self) -> Vec<Vec<Change>> {
        let kept = || self.nodes.iter().filter(|(_, node)| node.dirty && !node.is_orphan());
        let mut pieces: Vec<Vec<Change>> = Vec::new();
        for (id, node) in kept() {
            pieces.extend(node_changes(*id, node).chunks(PIECE_LEN).map(<[Change]>::to_vec));
        }
        for (id, node) in kept() {
            let Some(directory) = node.directory() else { continue };
            let changed = directory.slots.iter().filter_map(|(name, slot)| match slot {
                Slot::Changed(target) => {
                    Some(Change::Entry { parent: *id, name: name.to_vec(), node: *target })
                }
                Slot::Known(_) => None,
            });
            pieces.extend(changed.map(|change| vec![change]));
        }
        pieces.extend(self.dead_links.iter().map(|number| vec![Change::DeadLink { number: *number }]));
        pieces
    }

    /// Refuses a state in which a walk from the root does not end: a directory in itself, or with two names.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_shape(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut pending = vec![NodeId::ROOT];
        while let Some(id) = pending.pop() {
            let directory =
                self.directory(id).map_err(|_| Error::corrupt("the journal's root is no directory"))?;
            if !seen.insert(id) {
                return Err(Error::corrupt(format!("the journal gives directory {:016x} two names", id.0)));
            }
            let named = directory.slots.values().filter_map(|slot| slot.node());
            pending.extend(named.filter(|id| self.directory(*id).is_ok()));
        }
        Ok(())
    }

    /// Drops nodes without a name, which the journal need not keep.
    pub(crate) fn drop_orphans(&mut self) {
        let orphans: Vec<NodeId> =
            self.nodes().filter(|(_, node)| node.is_orphan()).map(|(id, _)| id).collect();
        for id in orphans {
            self.release(id);
        }
    }

    /// Replaces the base by one that has all of the state: see [`crate::rebase`], the only caller.
    pub(crate) fn restart(&mut self, base: Arc<Base>, links: HashMap<u64, NodeId>) {
        let old = std::mem::replace(&mut self.base, base);
        // Files without a name are in no snapshot: they keep reading the base that they began from.
        for node in self.nodes.values_mut().filter(|node| node.is_orphan()) {
            if let Some(file) = node.file_mut().filter(|file| file.lower.len_bytes() > 0) {
                file.kept_base.get_or_insert_with(|| old.clone());
            }
        }
        self.links = links;
        self.dead_links.clear();
        let live: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in live {
            self.release(id);
        }
    }
}

fn node_changes(id: NodeId, node: &Node) -> Vec<Change> {
    let attributes = node.attributes;
    let mut changes = vec![match (&node.origin, &node.body) {
        (Origin::Path(path), _) => Change::Adopt { node: id, path: path.clone() },
        (Origin::Link(number), _) => Change::AdoptLink { node: id, number: *number },
        (Origin::Root | Origin::Entry { .. }, _) => Change::Attributes { node: id, attributes },
        (Origin::New, body) => Change::Create { node: id, body: new_body(body), attributes },
    }];
    changes.push(Change::Attributes { node: id, attributes });
    changes.push(Change::Xattrs { node: id, xattrs: node.xattrs.clone() });
    if let Some(file) = node.file()
        && !file.layout.is_clean(file.lower.len_bytes())
    {
        let layout = &file.layout;
        changes.push(Change::Truncate { node: id, len_bytes: layout.lower_len_bytes() });
        changes.push(Change::Truncate { node: id, len_bytes: layout.len_bytes() });
        for blocks in layout.upper_blocks() {
            let bytes = blocks.start * crate::extent::BLOCK..blocks.end * crate::extent::BLOCK;
            let range = bytes.start..bytes.end.min(layout.len_bytes());
            changes.push(Change::Write { node: id, range });
        }
        changes.extend(layout.zero_blocks().map(|blocks| Change::Zero { node: id, blocks }));
        if !file.unsynced {
            changes.push(Change::Synced { node: id });
        }
    }
    changes
}

fn new_body(body: &Body) -> crate::change::NewBody {
    use crate::change::NewBody;
    match body {
        Body::Directory(_) => NewBody::Directory,
        Body::File(_) => NewBody::File,
        Body::Symlink(target) => NewBody::Symlink(target.clone()),
        Body::CharDevice(rdev) => NewBody::CharDevice(*rdev),
        Body::BlockDevice(rdev) => NewBody::BlockDevice(*rdev),
        Body::Fifo => NewBody::Fifo,
        Body::Socket => NewBody::Socket,
    }
}
