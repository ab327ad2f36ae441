//! The fetches of a resume as generations go by: images chained as a builder chains them, and the effect of declining a
//! dedup hit.

use std::collections::{BTreeMap, BTreeSet};

use store::PAGE;

use super::data::{Key, Memory, Server};
use super::likes::with_prefix;
use super::sizes::{FRAME_OVERHEAD, LEVEL, compressed_len, groups};
use super::{by_runtime, kib, table};
use crate::workload::Noise;

const GROUP_PAGES: usize = 16;

/// How a later sleep is stored.
#[derive(Clone, Copy, Debug)]
struct Policy {
    decline: Decline,
    /// A new group depends on one of the parent's when that leaves at most so many percent.
    delta_percent: Option<usize>,
}

/// Which pages that equal the parent's are written again.
#[derive(Clone, Copy, Debug)]
enum Decline {
    Nothing,
    All,
    /// Those of stretches of 16 pages of which at least so many are new.
    Stretches(usize),
    /// Those in groups of which the parent uses fewer pages.
    Sparse(usize),
    /// Those in the parent's sparsest groups, until its frames are at most so many percent of the fewest.
    Spread(usize),
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
    declined: usize,
}

impl Chain {
    fn sleep(&mut self, memory: &Memory, parent: Option<&Memory>, policy: Policy) {
        let new = parent.map_or_else(|| memory.all(), |parent| memory.new_since(parent));
        let is_new: BTreeSet<usize> = new.iter().copied().collect();
        let (written, declined) = self.written(memory, &is_new, policy.decline);
        self.declined += written.len() - new.len();
        let mut places: BTreeMap<Key, usize> = BTreeMap::new();
        for key in &memory.keys {
            if let Some(group) = self.places.get(key) {
                places.insert(*key, *group);
            }
        }
        for group in groups(memory, &written, GROUP_PAGES) {
            let plain = memory.gather(&group);
            let mut stored = compressed_len(&plain, LEVEL);
            let mut base = None;
            let best = self.best_base(memory, &group, &declined);
            if let (Some(best), Some(most)) = (best, policy.delta_percent) {
                let len = with_prefix(&plain, &self.groups[best].plain, LEVEL);
                if len * 100 <= stored * most && len + 256 <= stored {
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

    /// The pages to write, and the parent's groups that are declined.
    fn written(
        &self,
        memory: &Memory,
        is_new: &BTreeSet<usize>,
        decline: Decline,
    ) -> (Vec<usize>, BTreeSet<usize>) {
        let stretch = |index: &usize| (memory.keys[*index].0, memory.keys[*index].1 / GROUP_PAGES as u64);
        let mut counts: BTreeMap<Key, usize> = BTreeMap::new();
        is_new.iter().for_each(|index| *counts.entry(stretch(index)).or_default() += 1);
        let sparse = match decline {
            Decline::Sparse(least) => {
                self.uses().into_iter().filter(|(_, used)| *used < least).map(|(group, _)| group).collect()
            }
            Decline::Spread(percent) => self.sparsest(percent),
            _ => BTreeSet::new(),
        };
        let is_declined = |index: &usize| match decline {
            Decline::Nothing => false,
            Decline::All => true,
            Decline::Stretches(least) => counts.get(&stretch(index)).is_some_and(|count| *count >= least),
            Decline::Sparse(_) | Decline::Spread(_) => {
                self.places.get(&memory.keys[*index]).is_some_and(|group| sparse.contains(group))
            }
        };
        let wanted = |index: &usize| is_new.contains(index) || is_declined(index);
        (memory.all().into_iter().filter(wanted).collect(), sparse)
    }

    /// How many pages of each group the last sleep uses.
    fn uses(&self) -> BTreeMap<usize, usize> {
        let mut uses = BTreeMap::new();
        self.places.values().for_each(|group| *uses.entry(*group).or_default() += 1);
        uses
    }

    /// The groups without which the last sleep's frames would be at most so many percent of the fewest.
    fn sparsest(&self, percent: usize) -> BTreeSet<usize> {
        let mut uses: Vec<(usize, usize)> =
            self.uses().into_iter().map(|(group, used)| (used, group)).collect();
        uses.sort_unstable();
        let mut needs: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, group) in &uses {
            let frames = [Some(*group), self.groups[*group].base];
            frames.into_iter().flatten().for_each(|frame| *needs.entry(frame).or_default() += 1);
        }
        let limit = self.places.len().div_ceil(GROUP_PAGES) * percent / 100;
        let (mut declined, mut pages) = (BTreeSet::new(), 0_usize);
        for (used, group) in uses {
            if needs.len() + pages.div_ceil(GROUP_PAGES) <= limit {
                break;
            }
            for frame in [Some(group), self.groups[group].base].into_iter().flatten() {
                let need = needs.entry(frame).or_default();
                *need -= 1;
                if *need == 0 {
                    needs.remove(&frame);
                }
            }
            declined.insert(group);
            pages += used;
        }
        declined
    }

    /// The parent's group that holds most of the addresses and is not declined, or what that one depends on.
    fn best_base(&self, memory: &Memory, group: &[usize], declined: &BTreeSet<usize>) -> Option<usize> {
        let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
        let places = group.iter().filter_map(|index| self.places.get(&memory.keys[*index]));
        for found in places.filter(|found| !declined.contains(found)) {
            *votes.entry(self.groups[*found].base.unwrap_or(*found)).or_default() += 1;
        }
        votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(group, _)| group)
    }

    /// Frames and stored bytes that are fetched for these pages.
    fn fetched<'a>(&self, touched: impl IntoIterator<Item = &'a Key>) -> (usize, usize) {
        let groups: BTreeSet<usize> =
            touched.into_iter().filter_map(|key| self.places.get(key)).copied().collect();
        let bases: BTreeSet<usize> = groups.iter().filter_map(|group| self.groups[*group].base).collect();
        let all: BTreeSet<usize> = groups.union(&bases).copied().collect();
        (all.len(), all.iter().map(|group| self.groups[*group].stored + FRAME_OVERHEAD).sum())
    }

    /// Frames of the last sleep, as a multiple of the fewest.
    fn spread(&self) -> f64 {
        let fewest = self.places.len().div_ceil(GROUP_PAGES);
        self.fetched(self.places.keys()).0 as f64 / fewest as f64
    }
}

const POLICIES: [(&str, Policy); 14] = {
    const fn policy(decline: Decline, delta_percent: Option<usize>) -> Policy {
        Policy { decline, delta_percent }
    }
    [
        ("in full", policy(Decline::All, None)),
        ("parent's pages", policy(Decline::Nothing, None)),
        ("delta below 99 %", policy(Decline::Nothing, Some(99))),
        ("delta below 90 %", policy(Decline::Nothing, Some(90))),
        ("delta below 75 %", policy(Decline::Nothing, Some(75))),
        ("delta below 60 %", policy(Decline::Nothing, Some(60))),
        ("delta below 50 %", policy(Decline::Nothing, Some(50))),
        ("75 %, 8 of 16 rewritten", policy(Decline::Stretches(8), Some(75))),
        ("75 %, groups below 2", policy(Decline::Sparse(2), Some(75))),
        ("75 %, groups below 4", policy(Decline::Sparse(4), Some(75))),
        ("75 %, groups below 8", policy(Decline::Sparse(8), Some(75))),
        ("75 %, spread 1.5", policy(Decline::Spread(150), Some(75))),
        ("75 %, spread 2", policy(Decline::Spread(200), Some(75))),
        ("75 %, spread 3", policy(Decline::Spread(300), Some(75))),
    ]
};

/// Bytes against fetches, after the last sleep.
pub(super) fn budget(servers: &[Server]) {
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        for (name, policy) in POLICIES {
            let (mut later, mut deltas, mut groups, mut pairs, mut declined) = (0, 0, 0, 0, 0);
            let (mut frames, mut bytes, mut pages, mut spread) = ([0; 2], [0; 2], [0; 2], 0.0);
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
                declined += chain.declined;
                spread += chain.spread();
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
                (declined / pairs).to_string(),
                format!("{:.2}", spread / count as f64),
                format!("{} pages: {}", pages[0] / count, cell(0)),
                format!("{} pages: {}", pages[1] / count, cell(1)),
            ]);
        }
    }
    table(
        "### Dedup budget\n\nKiB stored per later sleep, groups of it that are deltas, pages declined per sleep; frames of the last sleep \
         in units of the fewest that could hold it; and what waking it fetches until the first reply and until the 30th, bases included.",
        &["servers", "policy", "later sleep", "deltas", "declined", "spread", "first reply", "30 replies"],
        &rows,
    );
}

/// Memory in which one page of twenty changes in every sleep, anywhere: frames as sleeps go by.
pub(super) fn chain() {
    const PAGES: usize = 2048;
    const STEPS: [usize; 6] = [1, 6, 12, 25, 50, 100];
    let mut rows = Vec::new();
    for (name, policy) in POLICIES {
        let mut random = Noise::new(7);
        let mut bytes = vec![0; PAGES * PAGE];
        bytes.chunks_exact_mut(PAGE).for_each(|page| random.fill(&mut page[..PAGE / 4]));
        let mut chain = Chain::default();
        let mut before = Memory::of_bytes(bytes.clone());
        chain.sleep(&before, None, policy);
        let mut row = vec![name.to_owned()];
        for step in 1..=100 {
            for _ in 0..PAGES / 20 {
                let at = random.below(PAGES as u64) as usize * PAGE;
                random.fill(&mut bytes[at..at + 256]);
            }
            let memory = Memory::of_bytes(bytes.clone());
            chain.sleep(&memory, Some(&before), policy);
            before = memory;
            if STEPS.contains(&step) {
                row.push(format!("{:.2}", chain.spread()));
            }
        }
        row.extend([kib(chain.later_bytes / 100), (chain.declined / 100).to_string()]);
        rows.push(row);
    }
    table(
        "### A long chain\n\nFrames after so many later sleeps in units of the fewest that could hold them, when 5 % of 2048 pages change \
         in each; KiB stored and pages declined per sleep.",
        &["policy", "1", "6", "12", "25", "50", "100", "KiB", "declined"],
        &rows,
    );
}
