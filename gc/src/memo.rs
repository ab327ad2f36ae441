//! What was found for directories, kept within a budget: two generations, of which the older is dropped when the younger is
//! full. What is asked for again moves to the younger one. What falls out is walked again, and nothing is wrong.

use std::collections::HashMap;
use std::rc::Rc;
use store::DirectoryId;

/// Bytes of memory that both generations take together, about.
pub const BUDGET_BYTES: usize = 64 << 20;
/// What an entry costs besides its packs.
const ENTRY_BYTES: usize = 96;

/// What a directory and all below it need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Packs by number, sorted.
    pub packs: Rc<[u32]>,
    /// Something below is known to be lost, so that this is not all.
    pub is_lossy: bool,
}

impl Needs {
    fn cost_bytes(&self) -> usize {
        ENTRY_BYTES + size_of_val(&*self.packs)
    }
}

/// Needs of directories walked lately.
pub struct Memo {
    young: HashMap<DirectoryId, Needs>,
    old: HashMap<DirectoryId, Needs>,
    young_bytes: usize,
    budget_bytes: usize,
}

impl Memo {
    /// An empty one.
    pub fn new(budget_bytes: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, budget_bytes }
    }

    /// What is known of a directory.
    pub fn get(&mut self, id: &DirectoryId) -> Option<Needs> {
        if let Some(needs) = self.young.get(id) {
            return Some(needs.clone());
        }
        let needs = self.old.remove(id)?;
        self.insert(*id, needs.clone());
        Some(needs)
    }

    /// Keeps what was found. It is there at least until half of the budget was inserted after it.
    pub fn insert(&mut self, id: DirectoryId, needs: Needs) {
        let cost_bytes = needs.cost_bytes();
        if self.young_bytes + cost_bytes > self.budget_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += cost_bytes;
        self.young.insert(id, needs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> DirectoryId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        DirectoryId::from_bytes(bytes)
    }

    fn needs(number: u32) -> Needs {
        Needs { packs: [number].into(), is_lossy: false }
    }

    #[test]
    fn what_is_used_stays_what_is_not_goes_and_the_budget_holds() {
        let budget = 100 * needs(0).cost_bytes();
        let mut memo = Memo::new(budget);
        for number in 0..10_000 {
            memo.insert(id(number), needs(number));
            assert_eq!(memo.get(&id(number)), Some(needs(number)), "what was just found is there");
            assert_eq!(memo.get(&id(0)), Some(needs(0)), "what is asked for all the time stays");
            assert!(memo.young.len() + memo.old.len() <= 101);
        }
        assert_eq!(memo.get(&id(1)), None);
    }

    #[test]
    fn what_is_larger_than_the_budget_is_kept_until_the_next_comes() {
        let mut memo = Memo::new(10);
        for number in 0..3 {
            memo.insert(id(number), needs(number));
            assert_eq!(memo.get(&id(number)), Some(needs(number)));
        }
        assert_eq!(memo.get(&id(0)), None);
    }
}
