//! Page groups stored as deltas against a group of the parent: their cost, their permitted uses, the effect of damage.

use crate::scratch::Scratch;
use gc::CollectOptions;
use std::collections::BTreeSet;
use store::pack::read_directory;
use store::{
    CheckOptions, ChunkId, GROUP_PAGES, Image, ImageId, Kind, PAGE, SnapshotDraft, SnapshotId, Store, Tier,
    Unwatched, Writer,
};
use tests::model::{Memory, Pages, Random, assert_clean, memory_of_store, put_memory};

const PAGES: u64 = 80;

/// Memory of noise in one space.
fn noise(seed: u64) -> Memory {
    let mut random = Random::new(seed);
    let pages = (0..PAGES).map(|page| (page, random.bytes(PAGE))).collect();
    Memory {
        spaces: [(0, Pages { len_bytes: PAGES * PAGE as u64, pages })].into(),
        blobs: Default::default(),
    }
}

/// Changes a few bytes of so many pages that are close together.
fn visit(memory: &mut Memory, random: &mut Random, count: usize) {
    let space = memory.spaces.get_mut(&0).unwrap();
    let near = random.below(PAGES as usize / GROUP_PAGES) * GROUP_PAGES;
    for _ in 0..count {
        let page = (near + random.below(GROUP_PAGES)) as u64;
        let page = space.pages.get_mut(&page).unwrap();
        let at = random.below(PAGE - 8);
        page[at..at + 8].copy_from_slice(&random.bytes(8));
    }
}

fn image_of(store: &Store, snapshot: &SnapshotId) -> Image {
    store.image(&store.snapshot(snapshot).unwrap().image.unwrap()).unwrap()
}

fn commit(writer: &mut Writer, name: &str, image: ImageId, parent: Option<SnapshotId>) -> SnapshotId {
    writer.commit(name, SnapshotDraft { image: Some(image), parent, ..SnapshotDraft::default() }).unwrap()
}

/// One hibernation by a process of its own.
fn sleep(store: &Store, name: &str, memory: &Memory, parent: Option<SnapshotId>) -> SnapshotId {
    let before = parent.map(|parent| image_of(store, &parent));
    let mut writer = store.writer("test").unwrap();
    let image = put_memory(&mut writer, memory, before.as_ref()).unwrap();
    commit(&mut writer, name, image, parent)
}

fn collect(store: &Store) {
    gc::collect(store, &CollectOptions { dry_run: false, cycles: 5 }, &Unwatched).unwrap();
}

/// The deltas of an image: group and base.
fn deltas(image: &Image) -> Vec<(u32, ChunkId)> {
    let groups = 0..image.group_count() as u32;
    groups.filter_map(|group| Some((group, image.group_base(group)?))).collect()
}

/// Two hibernations of one process; the second is made of deltas.
fn asleep_twice(store: &Store) -> (Memory, [SnapshotId; 2]) {
    let mut memory = noise(1);
    let first = sleep(store, "vm", &memory, None);
    visit(&mut memory, &mut Random::new(2), 30);
    let second = sleep(store, "vm", &memory, Some(first));
    assert!(!deltas(&image_of(store, &second)).is_empty());
    (memory, [first, second])
}

#[test]
fn fifty_hibernations_cost_what_changed_and_the_last_reads_like_the_first() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let (mut memory, mut random) = (noise(3), Random::new(4));
    let mut chain = vec![(sleep(&store, "vm", &memory, None), memory.clone())];
    let (mut new_bytes, mut stored_bytes) = (0, 0);
    for _ in 0..50 {
        visit(&mut memory, &mut random, 20);
        let id = sleep(&store, "vm", &memory, chain.last().map(|(id, _)| *id));
        let totals = store.snapshot(&id).unwrap().totals;
        (new_bytes, stored_bytes) = (new_bytes + totals.new_bytes, stored_bytes + totals.stored_bytes);
        chain.push((id, memory.clone()));
    }
    assert!(stored_bytes * 3 < new_bytes, "noise compresses only as a delta: {stored_bytes} of {new_bytes}");
    let mut bases = BTreeSet::new();
    for (id, expected) in &chain {
        let image = image_of(&store, id);
        assert!(memory_of_store(&store, &image.id()).unwrap() == *expected);
        bases.extend(deltas(&image).into_iter().map(|(_, base)| base));
    }
    // Depth one: every base is stored in full.
    for base in &bases {
        assert!(store.index().find(base).into_iter().any(|place| !place.is_delta()));
    }
    assert_clean(&store, "fifty hibernations");
    let (last, _) = chain.pop().unwrap();
    store.forget("vm", |entry| entry.snapshot != last).unwrap();
    collect(&store);
    let store = scratch.open();
    assert!(memory_of_store(&store, &image_of(&store, &last).id()).unwrap() == memory);
    assert_clean(&store, "after all ancestors went");
}

#[test]
fn a_chunk_that_is_there_as_a_delta_is_stored_again_for_a_file() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let (_, [_, second]) = asleep_twice(&store);
    let image = image_of(&store, &second);
    let (group, _) = deltas(&image)[0];
    let bytes = image.group(group).unwrap().to_vec();
    let mut writer = store.writer("test").unwrap();
    let chunk = writer.put_chunk(&bytes).unwrap();
    assert_eq!(writer.stats().new_bytes, bytes.len() as u64, "no delta stands in for it");
    assert_eq!(writer.put_chunk(&bytes).unwrap(), chunk);
    assert_eq!(writer.stats().new_bytes, bytes.len() as u64, "the chunk stored in full does");
    // A writer that needs the chunk in full keeps it in full, when nothing keeps the delta and its base.
    let parent = sleep_of_one_group(&mut writer, &bytes, "whole");
    drop(writer);
    assert_eq!(deltas(&image_of(&store, &parent)), []);
    store.forget("vm", |_| true).unwrap();
    collect(&store);
    let store = scratch.open();
    assert_eq!(*store.read_chunk(&chunk).unwrap(), *bytes);
    assert_clean(&store, "after the delta went");
}

/// An image whose one group is these pages.
fn sleep_of_one_group(writer: &mut Writer, bytes: &[u8], name: &str) -> SnapshotId {
    let pages = bytes.chunks_exact(PAGE).zip(0..).map(|(page, number)| (number, page.to_vec())).collect();
    let space = Pages { len_bytes: bytes.len() as u64, pages };
    let memory = Memory { spaces: [(5, space)].into(), blobs: Default::default() };
    let image = put_memory(writer, &memory, None).unwrap();
    commit(writer, name, image, None)
}

#[test]
fn an_image_that_takes_a_delta_for_its_own_keeps_the_base() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let (_, [_, second]) = asleep_twice(&store);
    let image = image_of(&store, &second);
    let (group, base) = deltas(&image)[0];
    let bytes = image.group(group).unwrap().to_vec();
    let mut writer = store.writer("test").unwrap();
    let other = sleep_of_one_group(&mut writer, &bytes, "other");
    assert!(writer.stats().stored_bytes < PAGE as u64, "it takes what is there: {:?}", writer.stats());
    drop(writer);
    assert_eq!(deltas(&image_of(&store, &other)), [(0, base)]);
    store.forget("vm", |_| true).unwrap();
    collect(&store);
    let store = scratch.open();
    assert_eq!(*image_of(&store, &other).group(0).unwrap(), *bytes);
    assert_clean(&store, "after the first owner went");
}

#[test]
fn a_delta_whose_base_is_missing_or_damaged_is_an_error_that_names_it() {
    let (scratch, memory_tier) = Scratch::in_memory();
    let (_, [_, second]) = asleep_twice(&scratch.open());
    let image = image_of(&scratch.open(), &second);
    let (group, base) = deltas(&image)[0];
    let place = scratch.open().index().find_in(&base, |_| true).unwrap();
    let key = place.pack.key();
    let whole = memory_tier.get(&key).unwrap().to_vec();
    let mut damaged = whole.clone();
    damaged[(place.offset + place.len_bytes / 2) as usize] ^= 1;
    for (bytes, kind) in [(None, Kind::NotFound), (Some(damaged), Kind::Corrupt)] {
        memory_tier.delete(&key).unwrap();
        if let Some(bytes) = bytes {
            memory_tier.put_if_absent(&key, &bytes).unwrap();
        }
        let store = scratch.open();
        let error = image_of(&store, &second).group(group).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(&format!("base of a delta: {base}")), "{error}");
        let report = store::check(&store, CheckOptions { read_data: true }, &Unwatched).unwrap();
        assert!(!report.problems.is_empty());
    }
    memory_tier.delete(&key).unwrap();
    memory_tier.put_if_absent(&key, &whole).unwrap();
    assert_clean(&scratch.open(), "after the repair");
}

/// The tables of docs/FORMAT.md, against the bytes of a delta, of its entry in the pack and of the page table that
/// names it.
#[test]
fn deltas_lie_as_the_document_says() {
    let (scratch, tier) = Scratch::in_memory();
    let store = scratch.open();
    let (_, [_, second]) = asleep_twice(&store);
    let image = image_of(&store, &second);
    let expected = deltas(&image);
    let (document, mut found) = (crate::format::document(), BTreeSet::new());
    for (pack, _) in store.packs().unwrap() {
        let (bytes, directory) = (tier.get(&pack.key()).unwrap(), read_directory(&tier, pack).unwrap());
        for entry in directory.entries.iter().filter(|entry| entry.slot == 65_535) {
            let frame = &bytes[directory.frames[entry.frame as usize].offset as usize..];
            let base = document["Frame header"].bytes(frame, "base of a delta");
            assert_eq!(document["Frame header"].number(frame, "slot count"), 1);
            assert_eq!(document["Frame header"].number(frame, "codec"), 1);
            found.insert((entry.id, ChunkId::from_bytes(base.try_into().unwrap())));
            assert!(store.index().find(&entry.id).iter().all(|place| place.slot == 65_535));
        }
    }
    let table = store.read_chunk(&image.id().chunk()).unwrap();
    assert_eq!(document["Page table"].number(&table, "format version"), 2);
    // From the end: the columns of bases and groups, their count, and before it the list of bases that are no groups.
    let columns = table.len() - expected.len() * 8;
    let numbers = |range: std::ops::Range<usize>| {
        let words = table[range].chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        words.collect::<Vec<u32>>()
    };
    assert_eq!(numbers(columns - 4..columns), [expected.len() as u32]);
    let (steps, bases) =
        (numbers(columns..columns + expected.len() * 4), numbers(columns + expected.len() * 4..table.len()));
    let (mut end, group_count) = (0, image.group_count());
    let id_of_group = |group: usize| ChunkId::from_bytes(table[20 + group * 32..][..32].try_into().unwrap());
    for ((step, base), (group, base_id)) in steps.iter().zip(&bases).zip(&expected) {
        assert_eq!(end + step, *group);
        end = group + 1;
        let listed = (*base as usize).checked_sub(group_count);
        let other = |number: usize| {
            let list =
                columns - 4 - 32 * (1 + bases.iter().max().map_or(0, |last| *last as usize - group_count));
            ChunkId::from_bytes(table[list + number * 32..][..32].try_into().unwrap())
        };
        assert_eq!(listed.map_or_else(|| id_of_group(*base as usize), other), *base_id);
        assert!(found.contains(&(id_of_group(*group as usize), *base_id)), "the frame names the same base");
    }
    // A page table without deltas is still version 1.
    let first = store.snapshot(&store.resolve("vm~1").unwrap()).unwrap().image.unwrap();
    let table = store.read_chunk(&first.chunk()).unwrap();
    assert_eq!(document["Page table"].number(&table, "format version"), 1);
}
