//! Rebasing on the snapshot that a freeze just made: the journal first, then memory, while no other operation runs.
//!
//! Live nodes keep their numbers, so the kernel notices no difference. The content that the freeze wrote becomes the
//! base; files that are not in the snapshot (without a name, held open) keep their data files.

use crate::change::NodeId;
use crate::extent::Layout;
use crate::journal::{Header, Prepared};
use crate::lower::{Base, LowerDirectory, join};
use crate::node::{Lower, Node, Origin};
use crate::overlay::Overlay;
use crate::slots::{Slot, Slots};
use crate::state::State;
use crate::upper::boot_id;
use std::collections::HashMap;
use std::sync::Arc;
use store::{Content, DirectoryId, Result};

/// The objects that a freeze wrote for the changed nodes.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    /// Files whose content changed.
    pub contents: HashMap<NodeId, Content>,
    /// All changed directories.
    pub directories: HashMap<NodeId, DirectoryId>,
    /// Changed files with several names, and their numbers.
    pub links: HashMap<NodeId, u64>,
}

/// Rebases the mount on `base`, which has all changes. The caller keeps changes out.
///
/// # Errors
/// Those of the file system and the store. The journal stays, and the next mount finishes the rebase: the caller must
/// prevent further changes from being journaled.
pub(crate) fn rebase(
    overlay: &Overlay,
    base: Arc<Base>,
    frozen: Frozen,
    mut journal: Prepared,
) -> Result<()> {
    let header = Header { store: overlay.store().id(), base: base.id, boot: boot_id()? };
    let (store, upper) = (overlay.store(), overlay.upper().path());
    store.pin_for_upper(upper, &[overlay.base().id, base.id])?;
    journal.set_header(&header)?;
    let _files = overlay.stop_files();
    let mut inner = overlay.lock();
    overlay.take_over(&mut inner, journal)?;
    let emptied = settle(&mut inner.state, &frozen);
    let links = live_links(&inner.state);
    let id = base.id;
    inner.state.restart(base, links);
    drop(inner);
    if let Err(error) = store.pin_for_upper(upper, &[id]) {
        tracing::warn!(%error, "the snapshot that was below stays pinned until the next freeze");
    }
    overlay.forget_readers();
    overlay.uses().note();
    emptied.into_iter().for_each(|id| overlay.upper().remove_data_file(id));
    Ok(())
}

/// Makes every changed node an unchanged one of the new base. Returns the nodes whose data files are garbage now.
fn settle(state: &mut State, frozen: &Frozen) -> Vec<NodeId> {
    let changed: Vec<NodeId> =
        state.nodes().filter(|(_, node)| node.dirty && !node.is_orphan()).map(|(id, _)| id).collect();
    let mut emptied = Vec::new();
    for id in changed {
        let node = state.node_mut(id).expect("it was just listed");
        node.dirty = false;
        if let Some(number) = frozen.links.get(&id) {
            node.origin = Origin::Link(*number);
        }
        let Some(file) = node.file_mut() else { continue };
        (file.unsynced, file.unconfirmed) = (false, false);
        emptied.push(id);
        if let Some(content) = frozen.contents.get(&id) {
            file.layout = Layout::over(content.len_bytes());
            file.lower = Lower::of(content.clone());
            file.holes_bytes = 0;
        }
    }
    settle_directories(state, frozen);
    emptied
}

/// Sets the places in the new base of changed directories, and of live ones below a directory that moved.
fn settle_directories(state: &mut State, frozen: &Frozen) {
    let mut places = vec![(NodeId::ROOT, Vec::new())];
    while let Some((id, path)) = places.pop() {
        let Some(directory) = state.node_mut(id).and_then(Node::directory_mut) else { continue };
        let old = directory.lower.clone();
        let moved = old.as_ref().is_none_or(|lower| lower.path != path);
        directory.lower = match (frozen.directories.get(&id), &old) {
            (Some(new), Some(old)) if *new == old.id => Some(old.moved(path.clone())),
            (Some(new), _) => Some(LowerDirectory::new(*new, path.clone())),
            (None, Some(old)) => Some(old.moved(path.clone())),
            (None, None) => None,
        };
        let slots = std::mem::take(&mut directory.slots);
        let mut settled = Slots::default();
        for (name, slot) in slots {
            let (child, visit) = match slot {
                Slot::Known(child) => (child, moved),
                Slot::Changed(Some(child)) => (child, true),
                Slot::Changed(None) => continue,
            };
            if frozen.links.contains_key(&child) {
                continue;
            }
            if let Slot::Changed(_) = slot
                && let Some(node) = state.node_mut(child)
            {
                node.origin = Origin::Entry { parent: id, name: name.clone() };
            }
            let is_directory = state.node(child).is_some_and(|node| node.directory().is_some());
            if visit && is_directory {
                places.push((child, join(&path, &name)));
            }
            settled.insert(name, Slot::Known(child));
        }
        if let Some(directory) = state.node_mut(id).and_then(Node::directory_mut) {
            directory.slots = settled;
        }
    }
}

fn live_links(state: &State) -> HashMap<u64, NodeId> {
    let named = state.nodes().filter(|(_, node)| !node.is_orphan());
    named
        .filter_map(|(id, node)| match node.origin {
            Origin::Link(number) => Some((number, id)),
            _ => None,
        })
        .collect()
}
