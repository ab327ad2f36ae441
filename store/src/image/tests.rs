//! Page tables: round trip, cut and flipped, hostile counts; the runs that a builder makes against a map of pages.

use super::format::{Parts, decode, encode};
use super::*;
use crate::id::{ChunkId, ImageId};
use crate::page::{GROUP_PAGES, PAGE};
use crate::testing::{assert_total, memory_store};
use crate::tree::Content;
use crate::wire::Encoder;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A space whose runs are `(gap, group, first slot, pages)`, all below `groups`.
fn spaces(groups: u32) -> impl Strategy<Value = Vec<Space>> {
    let run = (0..1u64 << 20, 0..groups, 0..GROUP_PAGES as u16).prop_flat_map(|(gap, group, first_slot)| {
        (1..=GROUP_PAGES as u32 - u32::from(first_slot))
            .prop_map(move |page_count| (gap, group, first_slot, page_count))
    });
    let space =
        (any::<u64>(), prop::collection::vec(run, 0..5), 0..PAGE as u64).prop_map(|(id, runs, tail)| {
            let mut end = 0;
            let place = |(gap, group, first_slot, page_count)| {
                let run = PageRun { first_page: end + gap, page_count, group, first_slot };
                end = run.end_page();
                run
            };
            let runs: Vec<PageRun> = runs.into_iter().map(place).collect();
            Space { id, len_bytes: end * PAGE as u64 + tail, runs }
        });
    prop::collection::vec(space, 0..3)
}

fn parts() -> impl Strategy<Value = Parts> {
    let kind = prop_oneof![Just(ImageKind::Raw), Just(ImageKind::Firecracker), Just(ImageKind::Criu)];
    let blobs = prop::collection::vec(("[a-z.]{0,12}", prop::collection::vec(any::<u8>(), 0..20)), 0..3);
    let groups = prop::collection::vec(any::<[u8; 32]>(), 1..6);
    let bases = prop::collection::btree_map(0..6u32, prop_oneof![0..6u8, 100..103u8], 0..4);
    (kind, groups, bases, blobs).prop_flat_map(|(kind, groups, bases, blobs)| {
        let base_of = |number: u8, groups: &[[u8; 32]]| {
            ChunkId::from_bytes(groups.get(usize::from(number)).copied().unwrap_or([number; 32]))
        };
        spaces(groups.len() as u32).prop_map(move |spaces| Parts {
            kind,
            spaces,
            bases: bases
                .iter()
                .filter(|(group, _)| (**group as usize) < groups.len())
                .map(|(group, base)| (*group, base_of(*base, &groups)))
                .collect(),
            groups: groups.iter().copied().map(ChunkId::from_bytes).collect(),
            blobs: blobs.iter().map(|(name, bytes)| (name.clone(), Content::inline(bytes.clone()))).collect(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_page_table_reads_back_and_a_cut_one_does_not(parts in parts()) {
        assert_total(&encode(&parts), &parts, decode);
    }
}

/// A page table of one space and one run, each field as given.
fn table(groups: u32, run: (u64, u32, u32, u16), len_bytes: u64) -> Vec<u8> {
    let mut out = Encoder::new();
    out.bytes(format::IMAGE_MAGIC).u16(1).u8(0).u8(0).u32(PAGE as u32).u32(GROUP_PAGES as u32).u32(groups);
    (0..groups).for_each(|_| {
        out.bytes(&[7; 32]);
    });
    out.u32(0).u32(1).u64(0).u64(len_bytes).u32(1);
    let (gap, page_count, group, slot) = run;
    out.u64(gap).u32(page_count).u32(group).u16(slot);
    out.finish()
}

#[test]
fn a_run_that_leaves_its_group_its_space_or_the_address_space_is_refused() {
    let len_bytes = 8 * PAGE as u64;
    assert!(decode(&table(1, (0, 8, 0, 8), len_bytes)).is_ok());
    for (run, why) in [
        ((0, 0, 0, 0), "no pages"),
        ((0, 8, 1, 0), "no such group"),
        ((0, 8, 0, 9), "past the group's last slot"),
        ((0, u32::MAX, 0, u16::MAX), "far past it"),
        ((1, 8, 0, 0), "past the end of the space"),
        ((u64::MAX, 1, 0, 0), "past the end of all addresses"),
    ] {
        assert!(decode(&table(1, run, len_bytes)).is_err(), "{why}");
    }
    let mut many = table(1, (0, 1, 0, 0), len_bytes);
    many[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(decode(&many).is_err(), "more groups than bytes");
}

#[test]
fn a_page_past_the_end_of_a_damaged_group_is_an_error() {
    let (store, _state) = memory_store();
    let mut writer = store.writer("test").unwrap();
    let short = writer.put_page_group(&[1; PAGE], None).unwrap();
    let runs = vec![PageRun { first_page: 0, page_count: 2, group: 0, first_slot: 0 }];
    let spaces = vec![Space { id: 0, len_bytes: 2 * PAGE as u64, runs }];
    let parts = Parts {
        kind: ImageKind::Raw,
        spaces,
        groups: vec![short],
        bases: BTreeMap::new(),
        blobs: Vec::new(),
    };
    let id = ImageId::from(crate::writer::blob::put(&mut writer, &encode(&parts)).unwrap());
    let draft = crate::SnapshotDraft { image: Some(id), ..crate::SnapshotDraft::default() };
    writer.commit("vm", draft).unwrap();
    let image = store.image(&id).unwrap();
    let mut page = [0; PAGE];
    image.read_page(0, 0, &mut page).unwrap();
    assert_eq!(page, [1; PAGE]);
    assert_eq!(image.read_page(0, 1, &mut page).unwrap_err().kind(), crate::Kind::Corrupt);
}

#[test]
fn a_builder_refuses_what_makes_no_image() {
    let (store, _state) = memory_store();
    let mut writer = store.writer("test").unwrap();
    let mut builder = ImageBuilder::new(&mut writer, ImageKind::Raw, None);
    let page = [1; PAGE];
    assert!(builder.page(0, &page).is_err(), "no space is open");
    builder.begin_space(0, 3 * PAGE as u64 - 1).unwrap();
    builder.page(1, &page).unwrap();
    assert!(builder.page(1, &page).is_err(), "the same page again");
    assert!(builder.page(0, &page).is_err(), "a page before the last");
    builder.page(2, &page).unwrap();
    assert!(builder.page(3, &page).is_err(), "a page behind the end");
    builder.begin_space(7, PAGE as u64).unwrap();
    assert!(builder.begin_space(0, PAGE as u64).is_err(), "a space that is there");
    builder.blob("vmstate", &mut b"state".as_slice()).unwrap();
    assert!(builder.blob("vmstate", &mut b"state".as_slice()).is_err(), "a name that is taken");
    assert!(builder.inherit(0..1).is_err(), "there is no parent");
    let (_, stats) = builder.finish().unwrap();
    assert_eq!(stats, ImageStats { pages: 2, new: 2, ..ImageStats::default() });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn locate_is_a_map_of_pages(
        first in prop::collection::btree_map(0..200u64, 0..4u8, 0..120),
        second in prop::collection::btree_map(0..200u64, 0..4u8, 0..120),
    ) {
        let (store, _state) = memory_store();
        let mut writer = store.writer("test").unwrap();
        let mut parent: Option<Image> = None;
        let mut before = BTreeMap::new();
        for pages in [first, second] {
            let mut builder = ImageBuilder::new(&mut writer, ImageKind::Raw, parent.as_ref());
            builder.begin_space(0, 200 * PAGE as u64).unwrap();
            for (page, byte) in &pages {
                builder.page(*page, &[*byte; PAGE]).unwrap();
            }
            let (id, stats) = builder.finish().unwrap();
            let zero = pages.values().filter(|byte| **byte == 0).count() as u64;
            let same = pages.iter().filter(|(page, byte)| **byte != 0 && before.get(*page) == Some(*byte));
            let same = same.count() as u64;
            let zeroed = pages.iter().filter(|(page, byte)| **byte == 0 && before.get(*page).is_some_and(|old| *old != 0));
            let zeroed = zeroed.count() as u64;
            let all = pages.len() as u64;
            prop_assert_eq!(
                stats,
                ImageStats { pages: all, zero, zeroed, same_as_parent: same, new: all - zero - same, ..ImageStats::default() }
            );
            let draft = crate::SnapshotDraft { image: Some(id), ..crate::SnapshotDraft::default() };
            writer.commit("vm", draft).unwrap();
            let image = store.image(&id).unwrap();
            for page in 0..201 {
                let expected = pages.get(&page).copied().unwrap_or(0);
                prop_assert_eq!(image.locate(0, page).is_some(), expected != 0);
                let mut bytes = [9; PAGE];
                image.read_page(0, page, &mut bytes).unwrap();
                prop_assert_eq!(bytes, [expected; PAGE]);
                if let Some(run) = image.run_around(0, page) {
                    prop_assert!((run.first_page..run.end_page()).contains(&page));
                }
            }
            before = pages;
            parent = Some(image);
        }
    }
}
