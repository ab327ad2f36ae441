//! Images made here byte by byte: read back, cut at every byte, every bit flipped.

use super::*;
use crate::criu::page_map::PageMap;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

/// A message of integer fields.
fn message(fields: &[(u32, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in fields {
        varint(u64::from(*number) << 3, &mut out);
        varint(*value, &mut out);
    }
    out
}

fn file(magics: &[u32], records: &[Vec<u8>]) -> Vec<u8> {
    let mut out: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for record in records {
        out.extend((record.len() as u32).to_le_bytes());
        out.extend(record);
    }
    out
}

fn page_map(records: &[Vec<u8>]) -> Vec<u8> {
    file(&[0x5456_4319, 0x5608_4025], records)
}

fn sample_page_map() -> Vec<u8> {
    page_map(&[
        message(&[(1, 7)]),
        message(&[(1, 0x40_0000), (2, 3), (4, 4), (5, 3)]),
        message(&[(1, 0x50_0000), (2, 9), (4, 6), (5, 200)]),
        message(&[(1, 0x7F00_0000_0000), (2, 2)]),
        message(&[(1, 0x7F00_0001_0000), (2, 2), (3, 1)]),
    ])
}

fn sample_mappings() -> Vec<u8> {
    let mapping = |start: u64, end: u64, flags: u64, status: u64| {
        let inner = message(&[(1, start), (2, end), (3, 0), (4, 0), (5, 3), (6, flags), (7, status), (8, 1)]);
        let mut out = vec![14 << 3 | 2];
        varint(inner.len() as u64, &mut out);
        out.extend(inner);
        out
    };
    let mut record = message(&[(1, 0x40_0000), (13, 5), (13, 6)]);
    record.extend(mapping(0x40_0000, 0x41_0000, 0x02, 1));
    record.extend(mapping(0x50_0000, 0x60_0000, 0x22, 1));
    record.extend(mapping(0x60_0000, 0x61_0000, 0x2022, 1));
    record.extend(mapping(0x70_0000, 0x90_0000, 0x4_0022, 1));
    record.extend(mapping(0x9000_0000, 0x9000_2000, 0x22, 1 | 1 << 3));
    record.extend(mapping(0x7F00_0000_0000, 0x7F00_0001_0000, 0x122, 1 | 2));
    file(&[0x5456_4319, 0x5749_2820], &[record])
}

#[test]
fn page_maps_with_and_without_flags() {
    let map = PageMap::parse(&sample_page_map()).expect("parsed");
    assert_eq!(map.pages_id, 7);
    let kinds: Vec<_> = map
        .entries
        .iter()
        .map(|entry| (entry.page_count, entry.is_present, entry.is_in_parent, entry.is_lazy))
        .collect();
    let expected =
        [(3, true, false, false), (200, true, false, true), (2, true, false, false), (2, false, true, false)];
    assert_eq!(kinds, expected);
    assert_eq!(map.pages_file_bytes(), 205 * PAGE_BYTES);
    assert_eq!(map.end(), 0x7F00_0001_2000);
}

#[test]
fn only_private_anonymous_unlocked_mappings_are_lazy() {
    let found = lazy_mappings(&sample_mappings()).expect("parsed");
    let ranges: Vec<_> = found.into_iter().map(|mapping| mapping.range).collect();
    assert_eq!(ranges, [0x50_0000..0x60_0000, 0x7F00_0000_0000..0x7F00_0001_0000]);
}

#[test]
fn a_mapping_that_forks_wipe_is_known() {
    let fields = |advice| [(1, 0x1000), (2, 0x2000), (6, 0x22), (7, 1), (9, advice)];
    for (advice, is_wiped) in [(0, false), (1 << 18, true), (1 << 18 | 1 << 10, true), (1 << 10, false)] {
        let mut record = message(&[]);
        let mapping = message(&fields(advice));
        record.extend([14 << 3 | 2, mapping.len() as u8]);
        record.extend(mapping);
        let found = lazy_mappings(&file(&[0x5456_4319, 0x5749_2820], &[record])).expect("parsed");
        assert_eq!(
            found,
            [AnonymousMapping { range: 0x1000..0x2000, is_lazy: true, is_wiped_on_fork: is_wiped }]
        );
    }
}

#[test]
fn hostile_page_maps_are_refused() {
    let head = message(&[(1, 7)]);
    let refused = [
        vec![message(&[(1, 0x1001), (2, 1)])],
        vec![message(&[(1, 0x1000), (2, 0)])],
        vec![message(&[(1, 0x1000), (5, u64::MAX)])],
        vec![message(&[(1, 0x1000), (5, 1 << 52)])],
        vec![message(&[(1, u64::MAX - 0xFFF), (5, 1)])],
        vec![message(&[(1, 0x2000), (2, 1)]), message(&[(1, 0x1000), (2, 1)])],
        vec![message(&[(1, 0x1000), (2, 2)]), message(&[(1, 0x2000), (2, 1)])],
        vec![message(&[(2, 2)])],
    ];
    for mut records in refused {
        records.insert(0, head.clone());
        assert_eq!(
            PageMap::parse(&page_map(&records)).expect_err("refused").kind(),
            Kind::Corrupt,
            "{records:?}"
        );
    }
    assert!(PageMap::parse(&page_map(&[])).is_err());
}

#[test]
fn tasks_and_inventory() {
    let tree =
        file(&[0x5456_4319, 0x5027_3030], &[message(&[(1, 12), (2, 0)]), message(&[(1, 15), (2, 12)])]);
    assert_eq!(tasks(&tree).expect("parsed"), [12, 15]);
    check_inventory(&file(&[0x5831_3116], &[message(&[(1, 2)])])).expect("understood");
    for bad in [&[(1, 3)][..], &[(2, 2)]] {
        let refused = check_inventory(&file(&[0x5831_3116], &[message(bad)])).expect_err("refused");
        assert_eq!(refused.kind(), Kind::Invalid);
    }
}

#[test]
fn every_cut_and_every_flipped_bit_gives_an_answer() {
    for sample in [sample_page_map(), sample_mappings()] {
        for len in 0..sample.len() {
            try_all(&sample[..len]);
            let mut flipped = sample.clone();
            for bit in 0..8 {
                flipped[len] ^= 1 << bit;
                try_all(&flipped);
                flipped[len] ^= 1 << bit;
            }
        }
        // A file cut within a record is always noticed.
        assert!(PageMap::parse(&sample[..sample.len() - 1]).is_err());
        assert!(lazy_mappings(&sample[..sample.len() - 1]).is_err());
    }
}

fn try_all(bytes: &[u8]) {
    if let Ok(map) = PageMap::parse(bytes) {
        let entries = map.entries.windows(2);
        entries.for_each(|pair| assert!(pair[0].pages().end <= pair[1].pages().start));
    }
    if let Ok(found) = lazy_mappings(bytes) {
        found.windows(2).for_each(|pair| assert!(pair[0].range.end <= pair[1].range.start));
    }
    drop((tasks(bytes), check_inventory(bytes)));
}
