//! The unit of identity, the size of a group, and the level of its compression.

use std::collections::BTreeSet;

use store::PAGE;

use super::data::{Key, Memory, Server};
use super::{by_runtime, kib, percent, table};
use crate::measure::{median, time};

/// Bytes of a frame besides its body: header, one slot, half of the alignment; and its entries in directory and index.
pub(super) const FRAME_OVERHEAD: usize = 88 + 36 + 32 + 12 + 40 + 24;
/// The level of new frames.
pub(super) const LEVEL: i32 = 3;

/// Cuts pages into groups of so many, in order of address, none over two spaces.
pub(super) fn groups(memory: &Memory, pages: &[usize], group_pages: usize) -> Vec<Vec<usize>> {
    let of_one_space = pages.chunk_by(|a, b| memory.keys[*a].0 == memory.keys[*b].0);
    of_one_space.flat_map(|pages| pages.chunks(group_pages).map(<[usize]>::to_vec)).collect()
}

/// A compressed body, raw when that saves less than a 32nd.
pub(super) fn compressed_len(plain: &[u8], level: i32) -> usize {
    let len = zstd::bulk::compress(plain, level).map_or(plain.len(), |body| body.len());
    if len + plain.len() / 32 >= plain.len() { plain.len() } else { len }
}

/// Bytes of these pages as frames of groups.
pub(super) fn stored(memory: &Memory, pages: &[usize], group_pages: usize, level: i32) -> usize {
    let groups = groups(memory, pages, group_pages);
    groups.iter().map(|group| compressed_len(&memory.gather(group), level) + FRAME_OVERHEAD).sum()
}

/// Equality with the parent by units of several pages.
pub(super) fn unit(servers: &[Server]) {
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        let pairs: Vec<_> = of_it.iter().flat_map(|server| server.pairs()).collect();
        let mut row = vec![runtime.to_owned()];
        for unit in [1, 2, 4, 16] {
            let (mut all, mut new, mut bytes) = (0, 0, 0);
            for (parent, child) in &pairs {
                let changed: BTreeSet<Key> =
                    child.new_since(parent).iter().map(|index| unit_of(child.keys[*index], unit)).collect();
                let is_new = |index: &usize| changed.contains(&unit_of(child.keys[*index], unit));
                let pages: Vec<usize> = child.all().into_iter().filter(is_new).collect();
                all += child.keys.len();
                new += pages.len();
                bytes += stored(child, &pages, 16, LEVEL);
            }
            row.push(format!("{}, {}", percent(all - new, all), kib(bytes / pairs.len())));
        }
        rows.push(row);
    }
    table(
        "### Unit of equality with the parent\n\nEqual share, and KiB stored per later sleep (groups of 16 pages, zstd 3).",
        &["servers", "4 KiB", "8 KiB", "16 KiB", "64 KiB"],
        &rows,
    );
}

fn unit_of((space, page): Key, unit: u64) -> Key {
    (space, page / unit)
}

/// Pages per group: bytes stored, and bytes that a resume fetches until its first reply.
pub(super) fn group(servers: &[Server]) {
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        for group_pages in [4, 8, 16, 32, 64] {
            let (mut first, mut later, mut fetched, mut plain, mut frames) = (0, 0, 0, 0, 0);
            let mut decode = Vec::new();
            for server in &of_it {
                first += stored(&server.sleeps[0], &server.sleeps[0].all(), group_pages, LEVEL);
                later += server
                    .pairs()
                    .map(|(parent, child)| stored(child, &child.new_since(parent), group_pages, LEVEL))
                    .sum::<usize>();
                // The last sleep stored in full: the cost of resuming a first hibernation.
                let Some(last) = server.sleeps.last() else { continue };
                for group in groups(last, &last.all(), group_pages) {
                    if group.iter().any(|index| server.touched[0].binary_search(&last.keys[*index]).is_ok()) {
                        let bytes = last.gather(&group);
                        frames += 1;
                        plain += bytes.len();
                        fetched += compressed_len(&bytes, LEVEL) + FRAME_OVERHEAD;
                        decode.push(decode_seconds(&bytes));
                    }
                }
            }
            let (count, pairs) =
                (of_it.len(), of_it.iter().map(|server| server.pairs().count()).sum::<usize>());
            rows.push(vec![
                runtime.to_owned(),
                group_pages.to_string(),
                kib(first / count),
                kib(later / pairs),
                (frames / count).to_string(),
                kib(fetched / count),
                kib(plain / count),
                format!("{:.0}", median(&decode) * 1e6),
            ]);
        }
    }
    table(
        "### Pages of a group\n\nStored, KiB; until the first reply: frames fetched, their KiB, their plain KiB; microseconds to \
         decompress and hash one.",
        &["servers", "pages", "first sleep", "later sleep", "frames", "fetched", "plain", "decode"],
        &rows,
    );
}

fn decode_seconds(plain: &[u8]) -> f64 {
    let Ok(body) = zstd::bulk::compress(plain, LEVEL) else { return f64::NAN };
    let decode = || {
        let decoded = zstd::bulk::decompress(&body, plain.len())?;
        Ok(std::hint::black_box(blake3::hash(&decoded)))
    };
    time(decode).unwrap_or(f64::NAN)
}

/// zstd level of groups of 16 pages.
pub(super) fn level(servers: &[Server]) {
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        let plain: Vec<Vec<u8>> = of_it
            .iter()
            .flat_map(|server| {
                let memory = &server.sleeps[0];
                groups(memory, &memory.all(), 16).into_iter().map(|group| memory.gather(&group))
            })
            .collect();
        let plain_len: usize = plain.iter().map(Vec::len).sum();
        for level in [1, 2, 3, 5, 7, 9, 12, 15, 19] {
            let (mut bodies, mut raw) = (Vec::new(), 0);
            let compress = time(|| {
                for group in &plain {
                    bodies.push(zstd::bulk::compress(group, level)?);
                }
                Ok(())
            });
            let decompress = time(|| {
                for (body, group) in bodies.iter().zip(&plain) {
                    raw += zstd::bulk::decompress(body, group.len())?.len();
                }
                Ok(())
            });
            let bytes: usize = bodies.iter().map(|body| body.len() + FRAME_OVERHEAD).sum();
            let rate = |seconds: crate::measure::Result<f64>| {
                seconds
                    .map_or_else(|_| "-".into(), |seconds| format!("{:.0}", plain_len as f64 / seconds / 1e6))
            };
            rows.push(vec![
                runtime.to_owned(),
                level.to_string(),
                kib(bytes / of_it.len()),
                format!("{:.2}", plain_len as f64 / bytes as f64),
                rate(compress),
                rate(decompress),
            ]);
        }
    }
    table(
        "### zstd level of memory\n\nFirst sleeps in groups of 16 pages: KiB stored with frame headers, ratio, MB/s of one core.",
        &["servers", "level", "stored", "ratio", "compress", "decompress"],
        &rows,
    );
}

/// Plain bytes of so many pages.
pub(super) fn plain_len(pages: usize) -> usize {
    pages * PAGE
}
