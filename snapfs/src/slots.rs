//! The names of a directory that are live or changed. The number of those that stand for a node is kept, because it is
//! needed each time that the kernel forgets a node, and a directory may hide any number of names of the base.

use crate::change::NodeId;
use std::collections::{BTreeMap, btree_map};
use std::ops::Deref;
use std::sync::Arc;

/// A name that a directory and the node with this name share.
pub(crate) type SharedName = Arc<[u8]>;

/// The meaning of a name in a directory that is live or differs from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The base's entry, which is this live node.
    Known(NodeId),
    /// Different from the base: this node, or no node although the base has the name.
    Changed(Option<NodeId>),
}

impl Slot {
    /// The node that the name stands for.
    pub(crate) fn node(self) -> Option<NodeId> {
        match self {
            Self::Known(id) | Self::Changed(Some(id)) => Some(id),
            Self::Changed(None) => None,
        }
    }
}

/// Slots by name. Reads like a map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    slots: BTreeMap<SharedName, Slot>,
    named: usize,
}

impl Slots {
    /// How many names stand for a node.
    pub(crate) fn named(&self) -> usize {
        self.named
    }

    /// Sets the slot of `name`.
    pub(crate) fn insert(&mut self, name: SharedName, slot: Slot) {
        self.named += usize::from(slot.node().is_some());
        let old = self.slots.insert(name, slot);
        self.named -= usize::from(old.and_then(Slot::node).is_some());
    }

    /// Leaves `name` to the base.
    pub(crate) fn remove(&mut self, name: &[u8]) {
        let old = self.slots.remove(name);
        self.named -= usize::from(old.and_then(Slot::node).is_some());
    }
}

impl Deref for Slots {
    type Target = BTreeMap<SharedName, Slot>;

    fn deref(&self) -> &Self::Target {
        &self.slots
    }
}

impl IntoIterator for Slots {
    type Item = (SharedName, Slot);
    type IntoIter = btree_map::IntoIter<SharedName, Slot>;

    fn into_iter(self) -> Self::IntoIter {
        self.slots.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_that_of_the_names_that_stand_for_a_node() {
        let mut slots = Slots::default();
        let mut random = 7_u64;
        for _ in 0..2000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (name, what) = (SharedName::from([(random >> 60) as u8]), (random >> 33) % 4);
            match what {
                0 => slots.remove(&name),
                1 => slots.insert(name, Slot::Changed(None)),
                2 => slots.insert(name, Slot::Changed(Some(NodeId(2)))),
                _ => slots.insert(name, Slot::Known(NodeId(3))),
            }
            assert_eq!(slots.named(), slots.values().filter(|slot| slot.node().is_some()).count());
        }
    }
}
