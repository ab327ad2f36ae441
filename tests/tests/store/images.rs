//! Memory images: against plain maps of pages, over parents, after parents went.

use crate::scratch::Scratch;
use gc::CollectOptions;
use store::{
    GROUP_PAGES, ImageBuilder, ImageKind, ImageStats, Kind, PAGE, Reached, SnapshotDraft, SnapshotId, Store,
    Unwatched, Writer,
};
use tests::model::{Memory, Pages, Random, assert_clean, memory_of_store, put_memory};

fn commit(writer: &mut Writer, memory: &Memory, parent: Option<&SnapshotId>) -> SnapshotId {
    let store = writer.store().clone();
    let image = parent.map(|id| store.image(&store.snapshot(id).unwrap().image.unwrap()).unwrap());
    let image = Some(put_memory(writer, memory, image.as_ref()).unwrap());
    writer.commit("vm", SnapshotDraft { image, parent: parent.copied(), ..SnapshotDraft::default() }).unwrap()
}

fn memory_of(store: &Store, snapshot: &SnapshotId) -> Memory {
    memory_of_store(store, &store.snapshot(snapshot).unwrap().image.unwrap()).unwrap()
}

/// `count` pages of noise.
fn noise(seed: u64, count: u64) -> Memory {
    let mut random = Random::new(seed);
    let pages = (0..count).map(|page| (page, random.bytes(PAGE))).collect();
    Memory {
        spaces: [(0, Pages { len_bytes: count * PAGE as u64, pages })].into(),
        blobs: Default::default(),
    }
}

fn change(memory: &mut Memory, random: &mut Random, count: usize) {
    let space = memory.spaces.get_mut(&0).unwrap();
    let all = space.len_bytes / PAGE as u64;
    for _ in 0..count {
        let page = random.below(all as usize) as u64;
        match random.below(5) {
            0 => space.pages.remove(&page),
            _ => space.pages.insert(page, random.bytes(PAGE)),
        };
    }
}

#[test]
fn a_chain_of_children_reads_right_at_every_link_and_stays_flat() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut random = Random::new(1);
    let mut memory = noise(2, 300);
    let mut writer = store.writer("test").unwrap();
    let mut chain = vec![(commit(&mut writer, &memory, None), memory.clone())];
    for _ in 0..8 {
        change(&mut memory, &mut random, 12);
        let parent = chain.last().unwrap().0;
        chain.push((commit(&mut writer, &memory, Some(&parent)), memory.clone()));
    }
    for (id, expected) in &chain {
        assert!(memory_of(&store, id) == *expected);
    }
    // Flat: the last image names groups of all its ancestors, and reading a page is one group however long the chain.
    let last = store.snapshot(&chain[8].0).unwrap().image.unwrap();
    let image = store.image(&last).unwrap();
    assert!(image.group_count() > 300 / GROUP_PAGES);
    for run in image.runs(0) {
        assert!(run.page_count as usize <= GROUP_PAGES);
        assert_eq!(image.group(run.group).unwrap().len() % PAGE, 0);
    }
}

#[test]
fn an_image_outlives_the_parents_that_it_took_pages_from() {
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let mut memory = noise(3, 200);
    let parent = commit(&mut store.writer("test").unwrap(), &memory, None);
    change(&mut memory, &mut Random::new(4), 5);
    let child = commit(&mut store.writer("test").unwrap(), &memory, Some(&parent));
    store.forget("vm", |entry| entry.snapshot == parent).unwrap();
    gc::collect(&store, &CollectOptions { dry_run: false, cycles: 5 }, &Unwatched).unwrap();
    assert_eq!(store.snapshot(&parent).unwrap_err().kind(), Kind::NotFound);
    let store = scratch.open();
    assert!(memory_of(&store, &child) == memory);
    assert_clean(&store, "after the parent went");
    let error = store
        .writer("test")
        .unwrap()
        .commit("vm", SnapshotDraft { parent: Some(child), ..SnapshotDraft::default() });
    assert!(error.is_ok());
}

#[test]
fn pages_are_counted_right() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let mut random = Random::new(5);
    let page = |random: &mut Random| -> [u8; PAGE] { random.bytes(PAGE).try_into().unwrap() };
    let (one, two, three) = (page(&mut random), page(&mut random), page(&mut random));
    let build = |writer: &mut Writer, parent: Option<&store::Image>, pages: &[(u64, &[u8; PAGE])]| {
        let mut builder = ImageBuilder::new(writer, ImageKind::Firecracker, parent);
        builder.begin_space(0, 100 * PAGE as u64).unwrap();
        for (number, bytes) in pages {
            builder.page(*number, bytes).unwrap();
        }
        let (id, stats) = builder.finish().unwrap();
        writer.commit("vm", SnapshotDraft { image: Some(id), ..SnapshotDraft::default() }).unwrap();
        (store.image(&id).unwrap(), stats)
    };
    let zero = [0; PAGE];
    let (parent, stats) =
        build(&mut writer, None, &[(0, &one), (1, &two), (2, &zero), (50, &one), (99, &three)]);
    assert_eq!(stats, ImageStats { pages: 5, zero: 1, same_as_parent: 0, new: 4, ..ImageStats::default() });
    let new_bytes = writer.stats().new_bytes;
    // Same place and bytes, other bytes, another's bytes, now zero, no longer zero, same again.
    let pages = [(0, &one), (1, &three), (2, &two), (50, &zero), (51, &one), (99, &three)];
    let (child, stats) = build(&mut writer, Some(&parent), &pages);
    assert_eq!(
        stats,
        ImageStats { pages: 6, zero: 1, zeroed: 1, same_as_parent: 2, new: 3, ..ImageStats::default() }
    );
    assert!(writer.stats().new_bytes - new_bytes < 4 * PAGE as u64);
    for (number, bytes) in pages {
        let mut read = [1; PAGE];
        child.read_page(0, number, &mut read).unwrap();
        assert_eq!(read, *bytes, "page {number}");
        assert_eq!(child.locate(0, number).is_some(), *bytes != zero);
    }
    assert_eq!(child.locate(0, 3), None);
    assert_eq!(child.locate(0, u64::MAX), None);
    assert_eq!(child.locate(1, 0), None, "there is no second space");
    // The same memory captured again takes nothing new but its page table.
    let (_, stats) = build(&mut writer, Some(&child), &pages);
    assert_eq!(stats, ImageStats { pages: 6, zero: 1, same_as_parent: 5, new: 0, ..ImageStats::default() });
}

#[test]
fn spaces_of_several_processes_and_blobs_come_back() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut memory = noise(6, 20);
    let high = 0x7fff_ffff_f000 / PAGE as u64;
    let mut random = Random::new(7);
    let pages = [(high - 3, random.bytes(PAGE)), (high - 1, random.bytes(PAGE))].into();
    for (name, len) in [("pagemap", 0), ("core", 4096), ("fdinfo", 4097), ("vmstate", 500_000)] {
        memory.blobs.insert(name.to_owned(), random.bytes(len));
    }
    let mut writer = store.writer("test").unwrap();
    let mut builder = ImageBuilder::new(&mut writer, ImageKind::Criu, None);
    for (id, space) in
        memory.spaces.iter().chain([(&u64::MAX, &Pages { len_bytes: high * PAGE as u64, pages })])
    {
        builder.begin_space(*id, space.len_bytes).unwrap();
        for (page, bytes) in &space.pages {
            builder.page(*page, bytes.as_slice().try_into().unwrap()).unwrap();
        }
    }
    for (name, bytes) in &memory.blobs {
        builder.blob(name, &mut bytes.as_slice()).unwrap();
    }
    let (id, _) = builder.finish().unwrap();
    let snapshot =
        writer.commit("app", SnapshotDraft { image: Some(id), ..SnapshotDraft::default() }).unwrap();
    let image = scratch.open().image(&id).unwrap();
    assert_eq!(image.kind(), ImageKind::Criu);
    assert_eq!((image.space(0), image.space(u64::MAX), image.space(1)), (Some(0), Some(1), None));
    assert_eq!(image.runs(1).len(), 2);
    for (name, bytes) in &memory.blobs {
        let content = image.blob(name).unwrap();
        assert!(tests::model::bytes_of(&store, content).unwrap() == *bytes, "{name}");
    }
    let mut chunks = 0;
    Reached::new(&store).walk(&store, &snapshot, &mut |_: &store::ChunkId| chunks += 1).unwrap();
    assert!(chunks > image.group_count());
}
