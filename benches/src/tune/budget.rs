//! What a resume fetches as generations go by: images chained as a builder chains them, and what declining a dedup hit
//! would change.

use std::collections::{BTreeMap, BTreeSet};

use super::data::{Key, Memory, Server};
use super::likes::with_prefix;
use super::sizes::{FRAME_OVERHEAD, LEVEL, compressed_len, groups};
use super::{by_runtime, kib, table};

const GROUP_PAGES: usize = 16;

/// How a later sleep is stored.
#[derive(Clone, Copy, Debug)]
enum Policy {
    /// As if there were no parent.
    Full,
    /// Equal pages point at the parent.
    Plain,
    /// And new groups lean on one of the parent's when that leaves at most so many percent.
    Delta(usize),
    /// And a stretch of 16 pages of which at least so many are new is written whole.
    DeltaRewriting(usize, usize),
}

struct Group {
    plain: Vec<u8>,
    stored: usize,
    base: Option<usize>,
}

#[derive(Default)]
struct Chain {
    groups: Vec<Group>,
    places: BTreeMap<Key, usize>,
    /// Of all sleeps but the first.
    later_bytes: usize,
    deltas: usize,
    later_groups: usize,
}

impl Chain {
    fn sleep(&mut self, memory: &Memory, parent: Option<&Memory>, policy: Policy) {
        let new = match (parent, policy) {
            (None, _) | (_, Policy::Full) => memory.all(),
            (Some(parent), Policy::Plain | Policy::Delta(_)) => memory.new_since(parent),
            (Some(parent), Policy::DeltaRewriting(_, least)) => {
                rewritten(memory, &memory.new_since(parent), least)
            }
        };
        let mut places: BTreeMap<Key, usize> = BTreeMap::new();
        for key in &memory.keys {
            if let Some(group) = self.places.get(key) {
                places.insert(*key, *group);
            }
        }
        for group in groups(memory, &new, GROUP_PAGES) {
            let plain = memory.gather(&group);
            let mut stored = compressed_len(&plain, LEVEL);
            let mut base = None;
            let best = match policy {
                Policy::Delta(most) | Policy::DeltaRewriting(most, _) => {
                    self.best_base(memory, &group).map(|best| (best, most))
                }
                Policy::Full | Policy::Plain => None,
            };
            if let Some((best, most)) = best {
                let len = with_prefix(&plain, &self.groups[best].plain, LEVEL);
                if len * 100 <= stored * most {
                    (stored, base) = (len, Some(best));
                    self.deltas += 1;
                }
            }
            if parent.is_some() {
                self.later_bytes += stored + FRAME_OVERHEAD;
                self.later_groups += 1;
            }
            group.iter().for_each(|index| {
                places.insert(memory.keys[*index], self.groups.len());
            });
            self.groups.push(Group { plain, stored, base });
        }
        self.places = places;
    }

    /// The parent's group that holds most of the addresses, or what that one leans on.
    fn best_base(&self, memory: &Memory, group: &[usize]) -> Option<usize> {
        let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
        for index in group {
            if let Some(found) = self.places.get(&memory.keys[*index]) {
                *votes.entry(self.groups[*found].base.unwrap_or(*found)).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(group, _)| group)
    }

    /// Frames and stored bytes that are fetched for these pages.
    fn fetched(&self, touched: &[Key]) -> (usize, usize) {
        let groups: BTreeSet<usize> =
            touched.iter().filter_map(|key| self.places.get(key)).copied().collect();
        let bases: BTreeSet<usize> = groups.iter().filter_map(|group| self.groups[*group].base).collect();
        let all: BTreeSet<usize> = groups.union(&bases).copied().collect();
        (all.len(), all.iter().map(|group| self.groups[*group].stored + FRAME_OVERHEAD).sum())
    }
}

/// The new pages, and all pages of stretches in which at least `least` are new.
fn rewritten(memory: &Memory, new: &[usize], least: usize) -> Vec<usize> {
    let stretch = |index: &usize| (memory.keys[*index].0, memory.keys[*index].1 / GROUP_PAGES as u64);
    let mut counts: BTreeMap<Key, usize> = BTreeMap::new();
    new.iter().for_each(|index| *counts.entry(stretch(index)).or_default() += 1);
    let is_new: BTreeSet<usize> = new.iter().copied().collect();
    let wanted = |index: &usize| {
        is_new.contains(index) || counts.get(&stretch(index)).is_some_and(|count| *count >= least)
    };
    memory.all().into_iter().filter(wanted).collect()
}

/// Bytes against fetches, after the last sleep.
pub fn budget(servers: &[Server]) {
    let policies = [
        ("in full", Policy::Full),
        ("parent's pages", Policy::Plain),
        ("delta below 100 %", Policy::Delta(99)),
        ("delta below 75 %", Policy::Delta(75)),
        ("delta below 50 %", Policy::Delta(50)),
        ("75 %, 12 of 16 rewritten", Policy::DeltaRewriting(75, 12)),
        ("75 %, 8 of 16 rewritten", Policy::DeltaRewriting(75, 8)),
        ("75 %, 4 of 16 rewritten", Policy::DeltaRewriting(75, 4)),
    ];
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        for (name, policy) in policies {
            let (mut later, mut deltas, mut groups, mut pairs) = (0, 0, 0, 0);
            let (mut frames, mut bytes, mut pages) = ([0; 2], [0; 2], [0; 2]);
            for server in &of_it {
                let mut chain = Chain::default();
                let mut parent = None;
                for memory in &server.sleeps {
                    chain.sleep(memory, parent, policy);
                    parent = Some(memory);
                }
                later += chain.later_bytes;
                deltas += chain.deltas;
                groups += chain.later_groups;
                pairs += server.pairs().count();
                for (set, touched) in server.touched.iter().enumerate() {
                    let fetched = chain.fetched(touched);
                    frames[set] += fetched.0;
                    bytes[set] += fetched.1;
                    pages[set] += touched.len();
                }
            }
            let count = of_it.len();
            let cell =
                |set: usize| format!("{} frames, {} KiB", frames[set] / count, kib(bytes[set] / count));
            rows.push(vec![
                runtime.to_owned(),
                name.to_owned(),
                kib(later / pairs),
                format!("{} of {}", deltas / pairs, groups / pairs),
                format!("{} pages: {}", pages[0] / count, cell(0)),
                format!("{} pages: {}", pages[1] / count, cell(1)),
            ]);
        }
    }
    table(
        "### Dedup budget\n\nKiB stored per later sleep, groups of it that are deltas, and what waking the last sleep fetches until the \
         first reply and until the 30th, bases included.",
        &["servers", "policy", "later sleep", "deltas", "first reply", "30 replies"],
        &rows,
    );
}
