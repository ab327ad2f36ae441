//! Joining runs: entries stream from the mapped sources into one run, in memory when it is short and otherwise in a
//! mapped scratch file, so that any length of an index costs a fixed amount of memory. [`plan`], which is pure, decides
//! which runs are joined.

use super::build::{head, tables};
use super::prefix::Prefix;
use super::row::{ENTRY_LEN, Row};
use super::run::{ENTRIES_START, Run};
use crate::error::{Error, Result};
use crate::host::map::{Access, Mapped};
use crate::host::object::Object;
use crate::host::scratch_file::unnamed_file;
use crate::id::PackId;
use crate::wire::{ENVELOPE_LEN, Record, envelope};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// No run is made longer than this by joining: 512 MiB of entries.
pub const MAX_RUN_ENTRIES: usize = (512 << 20) / ENTRY_LEN;
/// Runs that are shorter than half of that are joined when there are more of them.
pub(super) const MAX_SHORT_RUNS: usize = 8;
/// Longer runs are made in a scratch file.
const MAX_IN_MEMORY_ENTRIES: usize = (16 << 20) / ENTRY_LEN;

/// One run out of several, without the packs that `keep` refuses. A long one is made in a scratch file in `scratch`.
/// Memory: 16 MiB, and some bytes for each pack.
///
/// # Errors
/// `Corrupt` when a source is not sorted; else as writing the scratch file.
pub fn merge(runs: &[&Run], keep: impl Fn(&PackId) -> bool, scratch: &Path) -> Result<Object> {
    let mut packs: Vec<PackId> = runs.iter().flat_map(|run| run.packs()).filter(&keep).collect();
    packs.sort_unstable();
    packs.dedup();
    runs.iter().for_each(|run| run.expect(Access::Whole));
    let merged = merge_packs(runs, &packs, scratch);
    runs.iter().for_each(|run| run.expect(Access::Random));
    merged
}

fn merge_packs(runs: &[&Run], packs: &[PackId], scratch: &Path) -> Result<Object> {
    let most: usize = runs.iter().map(|run| run.entry_count()).sum();
    if most <= MAX_IN_MEMORY_ENTRIES {
        return merge_in_memory(runs, packs, most).map(Object::Owned);
    }
    let failed = |error| Error::io("cannot write a scratch file", scratch.display(), error);
    let file = unnamed_file(scratch)?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    out.write_all(&[0; ENTRIES_START]).map_err(failed)?;
    let count = merge_entries(runs, packs, |entry| out.write_all(entry).map_err(failed))?;
    out.into_inner().map_err(|error| failed(error.into_error()))?;
    finish_file(&file, count, packs, scratch)?;
    Mapped::open(&file).map(Object::Mapped).map_err(failed)
}

fn merge_in_memory(runs: &[&Run], packs: &[PackId], most: usize) -> Result<Vec<u8>> {
    let mut bytes =
        Vec::with_capacity(ENTRIES_START + most * (ENTRY_LEN + 1) + (packs.len() + 8) * PackId::LEN);
    bytes.resize(ENTRIES_START, 0);
    let count = merge_entries(runs, packs, |entry| {
        bytes.extend_from_slice(entry);
        Ok(())
    })?;
    let tables = tables(bytes[ENTRIES_START..].as_chunks().0, packs);
    bytes.extend_from_slice(&tables);
    bytes[ENVELOPE_LEN..ENTRIES_START].copy_from_slice(&head(count, packs.len()));
    let envelope = envelope(Record::BucketRun, &bytes[ENVELOPE_LEN..]);
    bytes[..ENVELOPE_LEN].copy_from_slice(&envelope);
    Ok(bytes)
}

/// Puts tables, header and envelope around the entries in a scratch file.
fn finish_file(mut file: &File, count: usize, packs: &[PackId], scratch: &Path) -> Result<()> {
    let failed = |error| Error::io("cannot write a scratch file", scratch.display(), error);
    let tables = tables(Mapped::open(file).map_err(failed)?[ENTRIES_START..].as_chunks().0, packs);
    file.write_all(&tables).map_err(failed)?;
    file.write_all_at(&head(count, packs.len()), ENVELOPE_LEN as u64).map_err(failed)?;
    let envelope = envelope(Record::BucketRun, &Mapped::open(file).map_err(failed)?[ENVELOPE_LEN..]);
    file.write_all_at(&envelope, 0).map_err(failed)
}

/// The rest of a source.
struct Source<'a> {
    run: &'a Run,
    /// Number of the next row, and the row.
    next: usize,
    row: Option<Row>,
    /// Numbers of its packs in the new run; `None` for packs that are dropped.
    numbers: Vec<Option<u32>>,
}

impl Source<'_> {
    /// Moves all rows of `prefix` to `group` and returns the prefix after them.
    fn take(&mut self, prefix: Prefix, group: &mut Vec<[u8; ENTRY_LEN]>) -> Result<Option<Prefix>> {
        while let Some(row) = self.row {
            if row.prefix != prefix {
                return match row.prefix < prefix {
                    true => Err(Error::corrupt("index run is not sorted").object(self.run.key())),
                    false => Ok(Some(row.prefix)),
                };
            }
            if let Some(pack) = self.numbers.get(row.pack as usize).copied().flatten() {
                let row = Row { pack, ..row };
                if !row.fits() {
                    return Err(Error::corrupt("index run points too far").object(self.run.key()));
                }
                group.push(row.encode());
            }
            self.next += 1;
            self.row = self.run.row(self.next);
        }
        Ok(None)
    }
}

/// Passes on the entries of all runs in order, each once, and returns their number.
fn merge_entries(
    runs: &[&Run],
    packs: &[PackId],
    mut emit: impl FnMut(&[u8; ENTRY_LEN]) -> Result<()>,
) -> Result<usize> {
    let number = |pack: PackId| packs.binary_search(&pack).ok().map(|number| number as u32);
    let source = |run: &&'_ Run| -> Vec<Option<u32>> { run.packs().map(number).collect() };
    let mut sources: Vec<Source<'_>> =
        runs.iter().map(|run| Source { run, next: 0, row: run.row(0), numbers: source(run) }).collect();
    let first = |(index, source): (usize, &Source<'_>)| Some(Reverse((source.row?.prefix, index)));
    let mut heads: BinaryHeap<Reverse<(Prefix, usize)>> =
        sources.iter().enumerate().filter_map(first).collect();
    let mut group: Vec<[u8; ENTRY_LEN]> = Vec::new();
    let mut count = 0;
    while let Some(Reverse((prefix, _))) = heads.peek().copied() {
        while let Some(mut head) = heads.peek_mut().filter(|head| head.0.0 == prefix) {
            let index = head.0.1;
            match sources[index].take(prefix, &mut group)? {
                Some(next) => *head = Reverse((next, index)),
                None => {
                    std::collections::binary_heap::PeekMut::pop(head);
                }
            }
        }
        group.sort_unstable();
        group.dedup();
        group.iter().try_for_each(&mut emit)?;
        count += group.len();
        group.clear();
    }
    Ok(count)
}

/// A run as input of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Number of its entries.
    pub entry_count: usize,
    /// Whether it must be rewritten: it names packs to drop, or is not stored, or is of an old layout.
    pub must: bool,
}

/// The runs to be joined, by their index, each group into one. Every run that must be rewritten is in some group, if
/// only by itself. Of the others the shortest are joined, when there are more than `max_short`, with runs of about the
/// same length: so an entry is rewritten a logarithmic number of times, and the number of runs is logarithmic too,
/// until they reach [`MAX_RUN_ENTRIES`] and are left alone.
pub(super) fn plan(runs: &[Candidate], max_short: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|index| (runs[*index].entry_count, *index));
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for index in order.iter().copied().filter(|index| runs[*index].must) {
        let count = runs[index].entry_count;
        match groups.last_mut().filter(|(sum, _)| sum + count <= MAX_RUN_ENTRIES) {
            Some((sum, group)) => {
                *sum += count;
                group.push(index);
            }
            None => groups.push((count, vec![index])),
        }
    }
    let is_short = |count: usize| count < MAX_RUN_ENTRIES / 2;
    let rest: Vec<usize> =
        order.into_iter().filter(|index| !runs[*index].must && is_short(runs[*index].entry_count)).collect();
    let short_groups = groups.iter().filter(|(sum, _)| is_short(*sum)).count();
    if rest.len() + short_groups > max_short {
        let (mut sum, mut group) = (0, Vec::new());
        for index in rest {
            let count = runs[index].entry_count;
            let equal = group.len() < max_short / 2 || count <= 2 * sum;
            if sum + count > MAX_RUN_ENTRIES || !equal {
                break;
            }
            sum += count;
            group.push(index);
        }
        if group.len() > 1 {
            groups.push((sum, group));
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of one entry come one by one, as commits write them.
    #[test]
    fn runs_stay_few_and_entries_are_rewritten_few_times() {
        let (mut runs, mut rewritten) = (Vec::new(), 0);
        const COMMITS: usize = 100_000;
        for commit in 0..COMMITS {
            runs.push(Candidate { entry_count: MAX_RUN_ENTRIES / 20_000, must: false });
            for group in plan(&runs, MAX_SHORT_RUNS) {
                let entry_count = group.iter().map(|index| runs[*index].entry_count).sum();
                assert!(entry_count <= MAX_RUN_ENTRIES);
                rewritten += entry_count;
                runs.push(Candidate { entry_count, must: false });
                let mut index = 0;
                runs.retain(|_| {
                    index += 1;
                    !group.contains(&(index - 1))
                });
            }
            let full = commit * (MAX_RUN_ENTRIES / 20_000) / (MAX_RUN_ENTRIES / 2);
            assert!(runs.len() <= full + MAX_SHORT_RUNS + 1, "{} runs after {commit}", runs.len());
        }
        let all: usize = runs.iter().map(|run| run.entry_count).sum();
        assert_eq!(all, COMMITS * (MAX_RUN_ENTRIES / 20_000));
        assert!(rewritten < 12 * all, "each entry was rewritten {} times", rewritten / all);
    }

    #[test]
    fn what_must_be_rewritten_is_and_long_runs_are_left_alone() {
        let run = |entry_count, must| Candidate { entry_count, must };
        assert_eq!(plan(&[], 8), Vec::<Vec<usize>>::new());
        assert_eq!(plan(&[run(5, false), run(7, true)], 8), [[1]]);
        let long = run(MAX_RUN_ENTRIES - 1, false);
        assert!(plan(&[long; 40], 8).is_empty());
        assert_eq!(plan(&[run(MAX_RUN_ENTRIES - 1, true), run(2, true)], 8), [vec![1], vec![0]]);
    }
}
