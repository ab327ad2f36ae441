//! Pages that the pages of a sleep are like: others of the same image, the parent's, those of other servers and of
//! files.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use store::PAGE;

use super::data::{Memory, Server};
use super::sizes::{FRAME_OVERHEAD, LEVEL, compressed_len, groups, plain_len, stored};
use super::{by_runtime, kib, percent, table};
use crate::measure::{Result, time};

const DICTIONARY_LEN: usize = 112 << 10;

fn plain_groups(memory: &Memory, pages: &[usize], group_pages: usize) -> Vec<Vec<u8>> {
    groups(memory, pages, group_pages).iter().map(|group| memory.gather(group)).collect()
}

/// Bytes of groups with a dictionary, without the dictionary.
fn with_dictionary(groups: &[Vec<u8>], dictionary: &[u8]) -> usize {
    let Ok(mut compressor) = zstd::bulk::Compressor::with_dictionary(LEVEL, dictionary) else { return 0 };
    let mut len =
        |group: &Vec<u8>| compressor.compress(group).map_or(group.len(), |body| body.len()) + FRAME_OVERHEAD;
    groups.iter().map(&mut len).sum()
}

/// Dictionaries trained per image and per runtime.
pub(super) fn dictionary(servers: &[Server]) {
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        let [one, other, ..] = of_it.as_slice() else { continue };
        for group_pages in [4, 16] {
            let of_one = plain_groups(&one.sleeps[0], &one.sleeps[0].all(), group_pages);
            let of_other = plain_groups(&other.sleeps[0], &other.sleeps[0].all(), group_pages);
            let mut trained = Vec::new();
            let seconds = time(|| {
                trained = zstd::dict::from_samples(&of_other, DICTIONARY_LEN)?;
                Ok(())
            });
            let of_runtime = zstd::dict::from_samples(&of_one, DICTIONARY_LEN).unwrap_or_default();
            let plain = stored(&other.sleeps[0], &other.sleeps[0].all(), group_pages, LEVEL);
            let own = with_dictionary(&of_other, &trained) + compressed_len(&trained, LEVEL);
            let shared = with_dictionary(&of_other, &of_runtime);
            let (mut later, mut later_own) = (0, 0);
            for (parent, child) in other.pairs() {
                let new = child.new_since(parent);
                later += stored(child, &new, group_pages, LEVEL);
                later_own += with_dictionary(&plain_groups(child, &new, group_pages), &trained);
            }
            let pairs = other.pairs().count();
            rows.push(vec![
                runtime.to_owned(),
                group_pages.to_string(),
                kib(plain),
                format!("{} ({})", kib(own), saving(own, plain)),
                format!("{} ({})", kib(shared), saving(shared, plain)),
                format!("{:.1}", seconds.unwrap_or(f64::NAN)),
                kib(later / pairs),
                format!("{} ({})", kib(later_own / pairs), saving(later_own, later)),
            ]);
        }
    }
    table(
        "### Trained dictionaries of 112 KiB\n\nKiB of a first sleep: plain, with one trained on itself (which is counted), with one \
         trained on another server of the runtime (not counted); seconds to train; KiB of a later sleep, plain and with its first \
         sleep's dictionary.",
        &["servers", "pages", "first", "own", "of the runtime", "training", "later", "later, own"],
        &rows,
    );
}

fn saving(bytes: usize, of: usize) -> String {
    format!("{:+.0} %", 100.0 * (bytes as f64 / of.max(1) as f64 - 1.0))
}

/// Deltas against the parent, by the choice of the base.
pub(super) fn delta(servers: &[Server]) {
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        let pairs: Vec<_> = of_it.iter().flat_map(|server| server.pairs()).collect();
        let mut sums = [0; 8];
        let mut count = 0;
        for (parent, child) in &pairs {
            let parents = groups(parent, &parent.all(), 16);
            let group_of: BTreeMap<usize, usize> = (0..)
                .zip(&parents)
                .flat_map(|(number, group)| group.iter().map(move |index| (*index, number)))
                .collect();
            let new = child.new_since(parent);
            for group in groups(child, &new, 16) {
                let plain = child.gather(&group);
                let alone = compressed_len(&plain, LEVEL);
                let here: Vec<usize> =
                    group.iter().filter_map(|index| parent.find(child.keys[*index])).collect();
                let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
                here.iter().for_each(|index| *votes.entry(group_of[index]).or_default() += 1);
                let mut best: Vec<(usize, usize)> =
                    votes.into_iter().map(|(group, votes)| (votes, group)).collect();
                best.sort_unstable_by(|a, b| b.cmp(a));
                let base = |count: usize| {
                    let bases = best.iter().take(count).flat_map(|(_, number)| parents[*number].clone());
                    parent.gather(&bases.collect::<Vec<_>>())
                };
                let least = |prefix: &[u8], level| with_prefix(&plain, prefix, level).min(alone);
                sums[0] += alone + FRAME_OVERHEAD;
                sums[1] += compressed_len(&plain, 12) + FRAME_OVERHEAD;
                sums[2] += least(&base(1), LEVEL) + FRAME_OVERHEAD;
                sums[3] += least(&base(1), 9) + FRAME_OVERHEAD;
                sums[4] += least(&base(1), 12) + FRAME_OVERHEAD;
                sums[5] += least(&base(2), LEVEL) + FRAME_OVERHEAD;
                sums[6] += least(&base(4), LEVEL) + FRAME_OVERHEAD;
                sums[7] += least(&parent.gather(&here), LEVEL) + FRAME_OVERHEAD;
                count += 1;
            }
        }
        let mut row = vec![runtime.to_owned(), (count / pairs.len()).to_string()];
        row.push(kib(sums[0] / pairs.len()));
        row.extend(
            sums[1..].iter().map(|sum| format!("{} ({})", kib(sum / pairs.len()), saving(*sum, sums[0]))),
        );
        rows.push(row);
    }
    table(
        "### Delta against the parent\n\nKiB of a later sleep in groups of 16 new pages: zstd 3 and 12 alone; with the parent's one \
         group that holds most of the addresses as prefix, at levels 3, 9, 12; with the best two and four groups; with the parent's \
         pages at just these addresses (a bound: no frame names them).",
        &[
            "servers",
            "groups",
            "plain",
            "plain 12",
            "one base",
            "one base 9",
            "one base 12",
            "two bases",
            "four bases",
            "same pages",
        ],
        &rows,
    );
}

/// A body compressed after a prefix that is not stored with it.
pub(super) fn with_prefix(plain: &[u8], prefix: &[u8], level: i32) -> usize {
    let compressor = zstd::bulk::Compressor::with_dictionary(level, prefix);
    compressor.and_then(|mut compressor| compressor.compress(plain)).map_or(plain.len(), |body| body.len())
}

/// Equal pages anywhere else: in the parent at other addresses, in other servers, in files.
pub(super) fn elsewhere(servers: &[Server], packages: &Path) -> Result<()> {
    let mut files = HashSet::new();
    for directory in [packages, Path::new("/usr/lib/x86_64-linux-gnu"), Path::new("/usr/bin")] {
        hash_files(directory, &mut files)?;
    }
    let hashes = |memory: &Memory| -> HashSet<[u8; 32]> {
        (0..memory.keys.len()).map(|index| *blake3::hash(memory.page(index)).as_bytes()).collect()
    };
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        let [one, other, ..] = of_it.as_slice() else { continue };
        let (template, own) = (hashes(&one.sleeps[0]), hashes(&other.sleeps[0]));
        let first = &other.sleeps[0];
        let all = first.keys.len();
        let hits = |set: &HashSet<[u8; 32]>, memory: &Memory, pages: &[usize]| {
            pages.iter().filter(|index| set.contains(blake3::hash(memory.page(**index)).as_bytes())).count()
        };
        let (mut new, mut moved, mut new_in_files) = (0, 0, 0);
        for (parent, child) in other.pairs() {
            let pages = child.new_since(parent);
            new += pages.len();
            moved += hits(&hashes(parent), child, &pages);
            new_in_files += hits(&files, child, &pages);
        }
        rows.push(vec![
            runtime.to_owned(),
            percent(all - own.len(), all),
            percent(hits(&template, first, &first.all()), all),
            percent(hits(&files, first, &first.all()), all),
            percent(moved, new),
            percent(new_in_files, new),
            kib(plain_len(new) / other.pairs().count()),
        ]);
    }
    table(
        "### Equal pages elsewhere\n\nOf a first sleep: repeated within it, in another server of the runtime, in files (page-aligned). Of \
         the new pages of later sleeps: in the parent at another address, in files; and how many KiB of new pages there are.",
        &["servers", "within", "other server", "files", "moved", "new, in files", "new, KiB"],
        &rows,
    );
    Ok(())
}

fn hash_files(path: &Path, found: &mut HashSet<[u8; 32]>) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            hash_files(&entry?.path(), found)?;
        }
    } else if metadata.is_file() && metadata.len() >= PAGE as u64 {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        found.extend(bytes.chunks_exact(PAGE).map(|page| *blake3::hash(page).as_bytes()));
    }
    Ok(())
}
