//! A cache with a memory budget, in two generations: the older is dropped when the younger is full. A hit moves an
//! entry to the younger one. An evicted result is computed again.

use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

/// Size of `Needs` without its packs.
const ENTRY_BYTES: usize = 96;

/// Packs needed by a directory and all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Packs by number, sorted.
    pub packs: Rc<[u32]>,
    /// Something below is known to be lost, so the packs are incomplete.
    pub is_lossy: bool,
}

impl Needs {
    /// Bytes of memory that they take in the cache, about.
    pub(crate) fn cost_bytes(&self) -> usize {
        ENTRY_BYTES + size_of_val(&*self.packs)
    }
}

/// Recent results, each with its size.
pub(crate) struct BoundedCache<K, V> {
    young: HashMap<K, (V, usize)>,
    old: HashMap<K, (V, usize)>,
    young_bytes: usize,
    budget_bytes: usize,
}

impl<K: Hash + Eq + Copy, V: Clone> BoundedCache<K, V> {
    /// An empty one. Both generations together take about `budget_bytes`.
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, budget_bytes }
    }

    /// The cached value.
    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        if let Some((value, _)) = self.young.get(key) {
            return Some(value.clone());
        }
        let (value, cost_bytes) = self.old.remove(key)?;
        self.insert(*key, value.clone(), cost_bytes);
        Some(value)
    }

    /// Keeps a result at least until half of the budget was inserted after it.
    pub(crate) fn insert(&mut self, key: K, value: V, cost_bytes: usize) {
        if self.young_bytes + cost_bytes > self.budget_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += cost_bytes;
        self.young.insert(key, (value, cost_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: usize = 100;

    #[test]
    fn what_is_used_stays_what_is_not_goes_and_the_budget_holds() {
        let budget = 100 * COST;
        let mut cache = BoundedCache::new(budget);
        for number in 0..10_000 {
            cache.insert(number, number + 7, COST);
            assert_eq!(cache.get(&number), Some(number + 7), "what was just found is there");
            assert_eq!(cache.get(&0), Some(7), "what is asked for all the time stays");
            assert!(cache.young.len() + cache.old.len() <= 101);
        }
        assert_eq!(cache.get(&1), None);
    }

    #[test]
    fn what_is_larger_than_the_budget_is_kept_until_the_next_comes() {
        let mut cache = BoundedCache::new(10);
        for number in 0..3 {
            cache.insert(number, number + 7, COST);
            assert_eq!(cache.get(&number), Some(number + 7));
        }
        assert_eq!(cache.get(&0), None);
    }
}
