//! A deterministic fuzzer of every decoder: real records, mutated, most of them sealed again so that they pass the
//! checksum and reach the parser. Nothing may panic, and output is bounded by the input.

use crate::scratch::{Scratch, copy_of, overwrite};
use std::sync::Arc;
use std::time::Instant;
use store::index::Run;
use store::pack::{Frame, FrameHeader, read_directory};
use store::wire::{ENVELOPE_LEN, Encoder, Record, checksum, seal, unseal};
use store::{
    CheckOptions, ChunkId, Content, Domain, Image, ImageId, MemoryTier, Node, Object, PAGE, PackId, Ref,
    SnapshotDraft, SnapshotId, Store, StoreConfig, Tier, Tree, TreeId, Unwatched,
};
use tests::model::{Item, Random, bytes_of, put_files, put_memory, sample_files, sample_memory};

/// One mutation of `bytes`.
fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len().max(1)).min(bytes.len());
        match random.below(10) {
            0..=2 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            3 => bytes.truncate(at),
            4 => {
                let len = 1 + random.below(40);
                let noise = random.bytes(len);
                bytes.splice(at..at, noise);
            }
            5 => {
                let end = bytes.len().min(at + random.below(40));
                bytes.drain(at..end);
            }
            6 | 7 if bytes.len() >= at + 8 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let value =
                    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 1 << 20, 1 << 31, u32::MAX.into(), 1 << 63, u64::MAX]
                        [random.below(11)];
                bytes[at..at + width].copy_from_slice(&u64::to_le_bytes(value)[..width]);
            }
            8 => {
                let other = &others[random.below(others.len())];
                let from = random.below(other.len().max(1)).min(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = bytes.len().min(at + random.below(100));
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}

/// A store with one of everything.
fn rich() -> (Scratch, MemoryTier, SnapshotId, SnapshotId) {
    let (scratch, tier) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("fuzz").unwrap();
    let mut files = sample_files(1, 0);
    files.insert(b"many".to_vec(), Item::file(Random::new(2).bytes(1_500_000)));
    let tree = put_files(&mut writer, &files).unwrap();
    let labels = [("one".to_owned(), "1".to_owned()), ("two".to_owned(), String::new())].into();
    let web =
        writer.commit("web", SnapshotDraft { tree: Some(tree), labels, ..SnapshotDraft::default() }).unwrap();
    let image = put_memory(&mut writer, &sample_memory(1, 0), None).unwrap();
    let vm = writer.commit("vm", SnapshotDraft { image: Some(image), ..SnapshotDraft::default() }).unwrap();
    writer
        .commit(
            "gone",
            SnapshotDraft { labels: [("x".into(), "y".into())].into(), ..SnapshotDraft::default() },
        )
        .unwrap();
    drop(writer);
    store.forget("gone", |_| true).unwrap();
    gc::collect(&store, &gc::CollectOptions::default(), &Unwatched).unwrap();
    let (pack, _) = store.packs().unwrap().remove(0);
    let lost = store::lost_frames::DamagedPack { pack, offsets: vec![64, 640] };
    tier.put_if_absent(&store::lost_frames::key_of(pack), &lost.encode()).unwrap();
    (scratch, tier, web, vm)
}

fn report(what: &str, count: usize, started: Instant) {
    println!("{what}: {count} mutations in {} ms", started.elapsed().as_millis());
}

/// Every record with an envelope, its body mutated and sealed again, and also mutated with its envelope.
#[test]
fn records_survive_mutation() {
    const ROUNDS: usize = 4000;
    let started = Instant::now();
    let (scratch, tier, ..) = rich();
    let kinds = [
        ("superblock", Record::Superblock),
        ("domains/", Record::Domain),
        ("snapshots/", Record::Snapshot),
        ("refs/", Record::Ref),
        ("gc/state", Record::CollectorState),
        ("gc/condemned/", Record::Condemned),
        ("damaged/", Record::DamagedPack),
        ("index/", Record::IndexRun),
    ];
    let objects: Vec<(String, Record, Vec<u8>)> = kinds
        .iter()
        .flat_map(|(prefix, kind)| {
            tier.list("")
                .unwrap()
                .into_iter()
                .filter(|info| info.key.starts_with(prefix))
                .map(|info| {
                    let bytes = tier.get(&info.key).unwrap().to_vec();
                    (info.key, *kind, bytes)
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let others: Vec<Vec<u8>> = objects.iter().map(|(_, _, bytes)| bytes.clone()).collect();
    let mut random = Random::new(10);
    for round in 0..ROUNDS {
        let (key, kind, bytes) = &objects[random.below(objects.len())];
        let mutated = match random.below(4) {
            0 => mutate(&mut random, bytes, &others),
            _ => seal(*kind, &mutate(&mut random, &bytes[ENVELOPE_LEN..], &others)),
        };
        overwrite(&tier, key, &mutated);
        let _ = use_store(&scratch.config, round % 16 == 0);
        std::hint::black_box(Ref::decode(&mutated).is_ok());
        std::hint::black_box(unseal(*kind, &mutated).is_ok());
        overwrite(&tier, key, bytes);
    }
    report("records", ROUNDS, started);
}

/// Opens and looks at all metadata; any outcome but a panic is fine.
fn use_store(config: &StoreConfig, also_write: bool) -> store::Result<()> {
    let store = Store::open(config)?;
    if also_write {
        let _ = store.writer("fuzz").map(|_| ());
    }
    let _ = store.resolve("web~1");
    let _ = store.condemned();
    let _ = store::lost_frames::DamagedFrames::read_all(store.metadata_tier());
    let _ = store::condemned::read_epoch(store.metadata_tier());
    let _ = store::stats(&store);
    for id in store.snapshot_ids()? {
        let _ = store.snapshot(&id);
    }
    for found in store.refs().list()? {
        if let Some(tree) =
            found.current().and_then(|id| store.snapshot(&id).ok()).and_then(|record| record.tree)
        {
            let _ = store.tree(&tree).and_then(|tree| tree.links());
        }
    }
    store::check(&store, CheckOptions::default(), &Unwatched).map(|_| ())
}

#[test]
fn index_runs_survive_mutation() {
    const ROUNDS: usize = 400_000;
    let started = Instant::now();
    let (scratch, tier, ..) = rich();
    let runs: Vec<Vec<u8>> =
        tier.list("index/").unwrap().iter().map(|info| tier.get(&info.key).unwrap().to_vec()).collect();
    let mut random = Random::new(11);
    for _ in 0..ROUNDS {
        let bytes = &runs[random.below(runs.len())];
        let mutated = match random.below(5) {
            0 | 1 => mutate(&mut random, bytes, &runs),
            2 | 3 => seal(Record::BucketRun, &mutate(&mut random, &bytes[ENVELOPE_LEN..], &runs)),
            _ => seal(Record::IndexRun, &mutate(&mut random, &bytes[ENVELOPE_LEN..], &runs)),
        };
        if let Ok(run) = Run::open("run", Object::Owned(mutated)) {
            for probe in [[0; 32], [0xff; 32], random.bytes(32).try_into().unwrap()] {
                run.find(&ChunkId::from_bytes(probe)).count();
            }
            std::hint::black_box(
                store::index::merge(&[&run, &run], |_| true, scratch.directory.path()).is_ok(),
            );
            std::hint::black_box(run.verify().is_ok());
        }
    }
    report("index runs", ROUNDS, started);
}

#[test]
fn frames_and_packs_survive_mutation() {
    const ROUNDS: usize = 15_000;
    let started = Instant::now();
    let (_scratch, tier, ..) = rich();
    let packs: Vec<(PackId, Vec<u8>)> = tier
        .list("packs/")
        .unwrap()
        .iter()
        .map(|info| (PackId::from_key(&info.key).unwrap(), tier.get(&info.key).unwrap().to_vec()))
        .collect();
    let mut frames = Vec::new();
    for (id, bytes) in &packs {
        for extent in read_directory(&tier, *id).unwrap().frames {
            frames.push(bytes[extent.offset as usize..][..extent.len_bytes as usize].to_vec());
        }
    }
    frames.retain(|frame| frame.len() < 100_000);
    let mut random = Random::new(12);
    let plain = Domain::plain([0; 32]);
    for _ in 0..ROUNDS {
        let frame = &frames[random.below(frames.len())];
        let mut mutated = mutate(&mut random, frame, &frames);
        reseal_frame(&mut mutated);
        std::hint::black_box(FrameHeader::decode(&mutated).is_ok());
        std::hint::black_box(Frame::decode(&mutated, &[&plain]).is_ok());
        std::hint::black_box(Frame::verify(&mutated, &[&plain]).is_ok());
    }
    // Packs: the directory and trailer, with their checksums made right again.
    let scratch_tier = MemoryTier::new();
    for _ in 0..ROUNDS {
        let (id, bytes) = &packs[random.below(packs.len())];
        let tail = bytes.len() - bytes.len().min(2000);
        let mut mutated = bytes[..tail].to_vec();
        mutated.extend(mutate(&mut random, &bytes[tail..], &frames));
        reseal_trailer(&mut mutated);
        scratch_tier.put_if_absent(&id.key(), &mutated).unwrap();
        if let Ok(directory) = read_directory(&scratch_tier, *id) {
            std::hint::black_box(store::index::encode(&[directory]).is_ok());
        }
        scratch_tier.delete(&id.key()).unwrap();
    }
    report("frames and packs", 2 * ROUNDS, started);
}

/// Makes the checksum of a frame's header right, if the slots it claims are there.
fn reseal_frame(bytes: &mut [u8]) {
    if bytes.len() < 88 {
        return;
    }
    let slots = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    if let Some(slots) = bytes.get(88..88usize.saturating_add(slots.saturating_mul(36))) {
        let guard = checksum(&[&bytes[..80], slots].concat());
        bytes[80..88].copy_from_slice(&guard.to_le_bytes());
    }
}

/// Makes the checksums of a pack's trailer and directory right, and its length.
fn reseal_trailer(bytes: &mut [u8]) {
    let len = bytes.len();
    if len < 72 {
        return;
    }
    let trailer = len - 72;
    bytes[trailer + 32..trailer + 40].copy_from_slice(&(len as u64).to_le_bytes());
    let start = u64::from_le_bytes(bytes[trailer + 24..trailer + 32].try_into().unwrap()) as usize;
    if start <= trailer {
        let body = checksum(&bytes[start..trailer]);
        bytes[trailer + 56..trailer + 64].copy_from_slice(&body.to_le_bytes());
    }
    let guard = checksum(&bytes[trailer..len - 8]);
    bytes[len - 8..].copy_from_slice(&guard.to_le_bytes());
}

/// Trees, directories, link tables, lists of extents, page tables and lists of chunks have no checksum of their own:
/// their id is one. So mutated records are stored under their right ids, as a hostile writer could.
#[test]
fn metadata_survives_mutation() {
    const ROUNDS: usize = 20_000;
    let started = Instant::now();
    let (scratch, tier, ..) = rich();
    let records = metadata_records(&scratch.open());
    let mut random = Random::new(13);
    let mut ids = Vec::new();
    let store = scratch.open();
    let mut writer = store.writer("fuzz").unwrap();
    for _ in 0..ROUNDS {
        let record = &records[random.below(records.len())];
        let id = writer.put_chunk(&mutate(&mut random, record, &records)).unwrap();
        ids.push(id);
        ids.push(writer.put_chunk(&root_over(&id)).unwrap());
        ids.push(writer.put_chunk(&image_over(&id)).unwrap());
    }
    writer.commit("fuzz", SnapshotDraft::default()).unwrap();
    drop(writer);
    let store =
        Store::open(&StoreConfig::on(Arc::new(copy_of(&tier)), scratch.config.state.clone())).unwrap();
    for id in ids {
        if let Ok(tree) = store.tree(&TreeId::from(id)) {
            walk(&store, &tree);
        }
        if let Ok(image) = store.image(&ImageId::from(id)) {
            look(&image);
        }
    }
    report("trees and images", ROUNDS, started);
}

/// A tree's root record that names `id` as its directory and as its link table.
fn root_over(id: &ChunkId) -> Vec<u8> {
    let mut out = Encoder::new();
    out.bytes(b"TREE").u16(1).u16(0).u8(1).bytes(id.as_bytes());
    out.u32(0o755).u32(0).u32(0).u64(0).u32(0).u32(0).u8(1).bytes(id.as_bytes());
    out.finish()
}

/// An image's page table whose one blob has `id` as its list of extents.
fn image_over(id: &ChunkId) -> Vec<u8> {
    let mut out = Encoder::new();
    out.bytes(b"TIMG").u16(1).u8(0).u8(0).u32(PAGE as u32).u32(16).u32(1).bytes(id.as_bytes());
    out.u32(1).string(b"blob").u8(2).u64(1_500_000).bytes(id.as_bytes());
    out.u32(1).u64(0).u64(PAGE as u64).u32(1).u64(0).u32(1).u32(0).u16(0);
    out.finish()
}

/// The metadata records of the store as stored: all chunks of its meta packs.
fn metadata_records(store: &Store) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for (id, _) in store.packs().unwrap() {
        let directory = read_directory(store.metadata_tier(), id).unwrap();
        if directory.kind == store::pack::PackKind::Meta {
            records
                .extend(directory.entries.iter().map(|entry| store.read_chunk(&entry.id).unwrap().to_vec()));
        }
    }
    assert!(records.len() > 5);
    records
}

/// Reads some of everything in a tree, however wrong it is.
fn walk(store: &Store, tree: &Tree) {
    let _ = tree.links().map(|links| links.values().for_each(|linked| read(store, &linked.inode.node)));
    let mut waiting = vec![tree.root().node.clone()];
    for _ in 0..50 {
        let Some(Node::Directory(id)) = waiting.pop() else { return };
        let Ok(directory) = tree.directory(&id) else { continue };
        let _ = directory.get(b"sub");
        for entry in directory.iter().take(100).flatten() {
            if let Ok(inode) = tree.inode(entry) {
                read(store, &inode.node);
                waiting.push(inode.node);
            }
        }
    }
}

fn read(store: &Store, node: &Node) {
    if let Node::File(content) = node {
        read_content(store, content);
    }
}

fn read_content(store: &Store, content: &Content) {
    if let Ok(reader) = store.content(content) {
        let len = content.len_bytes();
        let mut buffer = [0; 5000];
        for offset in [0, 1, len / 2, len.saturating_sub(1), len, u64::MAX] {
            let _ = reader.read_at(offset, &mut buffer);
            reader.is_hole(offset, 10_000);
        }
    }
    if content.len_bytes() < 10_000 {
        let _ = bytes_of(store, content);
    }
}

fn look(image: &Image) {
    let mut page = [0; PAGE];
    for (index, space) in image.spaces().iter().enumerate() {
        for number in [0, 1, 7, space.len_bytes / PAGE as u64, u64::MAX] {
            let _ = image.read_page(index, number, &mut page);
        }
        for run in image.runs(index).iter().take(20) {
            let _ = image.read_page(index, run.first_page, &mut page);
            let _ = image.read_page(index, run.end_page() - 1, &mut page);
        }
    }
    let _ = image.group(u32::MAX);
    image.blobs().iter().for_each(|(_, content)| read_content(image.store(), content));
}

/// A small body that claims to be huge is refused at the price of its own length.
#[test]
fn compression_bombs_are_refused() {
    use store::pack::{EncodedFrame, FrameDraft, PackKind};
    let plain = vec![0; 2 << 20];
    let domain = Domain::plain([0; 32]);
    let mut draft = FrameDraft::new(PackKind::Data);
    draft.push(domain.chunk_id(&plain), &plain);
    let EncodedFrame { bytes, .. } = draft.encode(19).unwrap();
    assert!(bytes.len() < 1000, "{} bytes stand for two MiB", bytes.len());
    Frame::verify(&pad(bytes.clone()), &[&domain]).unwrap();
    for (claimed, why) in
        [(1u32, "less than there is"), ((2 << 20) + 1, "more than a frame may hold"), (u32::MAX, "4 GiB")]
    {
        let mut bomb = bytes.clone();
        bomb[20..24].copy_from_slice(&claimed.to_le_bytes());
        bomb[88 + 32..88 + 36].copy_from_slice(&claimed.to_le_bytes());
        reseal_frame(&mut bomb);
        assert!(Frame::decode(&bomb, &[&domain]).is_err(), "{why}");
    }
    let mut trailing = bytes.clone();
    let stored = u32::from_le_bytes(bytes[24..28].try_into().unwrap());
    trailing.extend([1, 2, 3]);
    trailing[24..28].copy_from_slice(&(stored + 3).to_le_bytes());
    reseal_frame(&mut trailing);
    assert!(Frame::decode(&trailing, &[&domain]).is_err(), "bytes behind the zstd frame");
}

fn pad(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    bytes
}
