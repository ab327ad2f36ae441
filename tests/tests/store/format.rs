//! The format forever: the tables of docs/FORMAT.md against the bytes of the golden store, and the golden store against
//! this build: it opens, checks clean, restores to known bytes, and its records are written the same way today.

mod domains;
mod runs;

use crate::scratch::copy_of;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::index::{self, Run};
use store::pack::{self, ALIGNMENT, MAX_FRAME_PLAIN, PackKind, read_directory};
use store::tier::BucketRecord;
use store::wire::{ENVELOPE_LEN, FORMAT_VERSION, MAGIC, Record};
use store::{
    ChunkId, Entry, EntryInode, Guarantees, Inode, LocalTier, MemoryTier, Metadata, Node, PackId, Ref,
    Snapshot, SnapshotDraft, SnapshotId, Store, StoreConfig, Tier, Unwatched,
};
use tests::golden;
use tests::model::{assert_clean, files_of_host, files_of_store, memory_of_store};

/// BLAKE3 over every key and object of the golden store: it is never written again.
const GOLDEN_HASH: &str = "e9f3b8841f56e8d38d06aa604fcb48899a43ef0056cb0371213691a0967d9aef";

/// A table of the document: a record of fixed length, or the fixed head of one.
pub(crate) struct Table {
    len: usize,
    has_more: bool,
    fields: Vec<(String, Range<usize>)>,
}

impl Table {
    /// The offsets of the field whose name begins with `field`.
    fn range(&self, field: &str) -> Range<usize> {
        let found = self.fields.iter().find(|(name, _)| name.starts_with(field));
        found.unwrap_or_else(|| panic!("no field {field:?} in the document")).1.clone()
    }

    pub(crate) fn bytes<'a>(&self, record: &'a [u8], field: &str) -> &'a [u8] {
        &record[self.range(field)]
    }

    pub(crate) fn number(&self, record: &[u8], field: &str) -> u64 {
        let bytes = self.bytes(record, field);
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    }
}

/// The document, by the names of its tables.
pub(crate) struct Document(BTreeMap<String, Table>);

impl std::ops::Index<&str> for Document {
    type Output = Table;
    fn index(&self, name: &str) -> &Table {
        self.0.get(name).unwrap_or_else(|| panic!("no table {name:?} in the document"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn text() -> String {
    std::fs::read_to_string(root().join("docs/FORMAT.md")).unwrap()
}

fn cells(line: &str) -> Option<Vec<&str>> {
    Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::trim).collect())
}

/// Reads every `### Name, N bytes` and the table below it; offsets and sizes must add up to N.
pub(crate) fn document() -> Document {
    let mut tables = BTreeMap::new();
    let text = text();
    for section in text.split("\n### ").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap();
        let Some((name, len)) = heading.split_once(", ") else { continue };
        let (len, has_more) = match len.strip_suffix(" bytes and more") {
            Some(len) => (len, true),
            None => (len.strip_suffix(" bytes").unwrap(), false),
        };
        let len: usize = len.parse().unwrap();
        let mut fields = Vec::new();
        let mut end = 0;
        for row in body.lines().take_while(|line| !line.starts_with('#')).filter_map(cells) {
            let Ok(offset) = row[0].parse::<usize>() else { continue };
            let size: usize = row[1].parse().unwrap();
            assert_eq!(offset, end, "{name}: a gap before {:?}", row[2]);
            end += size;
            fields.push((row[2].to_owned(), offset..end));
            assert_eq!(row.len(), 5, "{name}: {:?}", row[2]);
        }
        assert_eq!(end, len, "{name}: the fields do not add up");
        tables.insert(name.to_owned(), Table { len, has_more, fields });
    }
    Document(tables)
}

/// The rows of a table of numbers and what they mean.
fn numbers(name: &str) -> Vec<(u64, String)> {
    let text = text();
    let section = text.split("\n### ").find(|section| section.starts_with(&format!("{name}\n"))).unwrap();
    let rows = section.lines().filter_map(cells).filter(|row| row.len() == 2);
    rows.filter_map(|row| Some((row[0].parse().ok()?, row[1].to_owned()))).collect()
}

fn golden_directory() -> PathBuf {
    root().join("tests/fixtures/format-1")
}

fn golden_tier() -> LocalTier {
    LocalTier::new(golden_directory())
}

fn golden_store() -> (Store, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    (Store::open(&golden::config(&golden_directory(), state.path())).unwrap(), state)
}

fn object(key: &str) -> Vec<u8> {
    golden_tier().get(key).unwrap().to_vec()
}

fn keys(prefix: &str) -> Vec<String> {
    golden_tier().list(prefix).unwrap().into_iter().map(|info| info.key).collect()
}

#[test]
fn the_golden_store_is_what_was_written_once() {
    let mut hasher = blake3::Hasher::new();
    for key in keys("") {
        hasher.update(key.as_bytes()).update(&[0]).update(blake3::hash(&object(&key)).as_bytes());
    }
    assert_eq!(hasher.finalize().to_hex().as_str(), GOLDEN_HASH);
}

#[test]
fn the_golden_store_opens_checks_clean_and_restores_to_known_bytes() {
    let (store, _state) = golden_store();
    assert_clean(&store, "golden");
    let refs = store.refs().list().unwrap();
    let found: Vec<(&str, usize)> =
        refs.iter().map(|found| (found.name.as_str(), found.history.len())).collect();
    assert_eq!(found, golden::REFS);
    for version in [0, 1] {
        let back = 1 - version;
        let web = store.resolve(&format!("shop/web-1~{back}")).unwrap();
        assert_eq!(store.snapshot(&web).unwrap().labels["version"], version.to_string());
        assert!(files_of_store(&store, &web).unwrap() == golden::files(version));
        let target = tempfile::tempdir().unwrap();
        assert!(store::restore(&store, &web, b"", target.path(), &Unwatched).unwrap().refused.is_empty());
        assert!(files_of_host(target.path()) == golden::files(version));
        let vm = store.snapshot(&store.resolve(&format!("vm~{back}")).unwrap()).unwrap();
        assert!(memory_of_store(&store, &vm.image.unwrap()).unwrap() == golden::memory(version));
        assert_eq!(vm.parent.is_some(), version == 1);
    }
    assert_eq!(store.condemned().unwrap().len(), 1);
    assert_eq!(store::condemned::read_epoch(store.metadata_tier()).unwrap(), 1);
}

#[test]
fn an_old_store_takes_new_writes() {
    let (store, _state) = golden_store();
    let scratch = tempfile::tempdir().unwrap();
    let hot = Arc::new(copy_of(&golden_tier()));
    let config = StoreConfig { cache_bytes: 1 << 20, level: 3, ..StoreConfig::on(hot, scratch.path()) };
    let copy = Store::open(&config).unwrap();
    let mut writer = copy.writer("test").unwrap();
    golden::write(&mut writer).unwrap();
    drop(writer);
    gc::collect(&copy, &gc::CollectOptions { dry_run: false, cycles: 4 }, &Unwatched).unwrap();
    assert_clean(&copy, "an old store with new writes");
    assert_eq!(copy.refs().get("vm").unwrap().unwrap().history.len(), 4);
    assert_eq!(copy.id(), store.id());
}

/// Under the golden store's key the same contents make the same records today: else the format has changed.
#[test]
fn the_same_contents_are_encoded_to_the_same_ids_today() {
    let (golden, _state) = golden_store();
    let tier = MemoryTier::new();
    for key in ["superblock", "domains/default"] {
        tier.put_if_absent(key, &object(key)).unwrap();
    }
    let state = tempfile::tempdir().unwrap();
    let hot = Arc::new(tier);
    let config = StoreConfig { cache_bytes: 1 << 20, level: 19, ..StoreConfig::on(hot, state.path()) };
    let today = Store::open(&config).unwrap();
    golden::write(&mut today.writer("test").unwrap()).unwrap();
    for name in ["shop/web-1", "shop/web-1~1", "vm", "vm~1"] {
        let [then, now] =
            [&golden, &today].map(|store| store.snapshot(&store.resolve(name).unwrap()).unwrap());
        assert_eq!((then.tree, then.image), (now.tree, now.image), "{name}");
    }
    for key in keys("snapshots/default/") {
        let id: SnapshotId = key["snapshots/default/".len()..].parse().unwrap();
        assert_eq!(golden.snapshot(&id).unwrap().encode(), (id, object(&key)));
    }
}

#[test]
fn the_document_names_the_constants_of_the_code() {
    let document = document();
    assert_eq!(document["Envelope"].len, ENVELOPE_LEN);
    assert_eq!(document["Pack header"].len, pack::PACK_HEADER_LEN);
    assert_eq!(document["Frame header"].len, pack::FRAME_HEADER_LEN);
    assert_eq!(document["Slot"].len, pack::SLOT_LEN);
    assert_eq!(document["Frame extent"].len, pack::FRAME_EXTENT_LEN);
    assert_eq!(document["Chunk entry"].len, pack::DIRECTORY_ENTRY_LEN);
    assert_eq!(document["Trailer"].len, pack::TRAILER_LEN);
    assert_eq!(document["Pack id"].len, PackId::LEN);
    assert_eq!(document["Short run entry"].len, index::ENTRY_LEN);
    assert_eq!(document["Short run entry"].range("first bytes").len(), index::PREFIX_LEN);
    assert_eq!((ALIGNMENT, MAX_FRAME_PLAIN, pack::TARGET_LEN), (64, 2 << 20, 32 << 20));
    assert_eq!((FORMAT_VERSION, store::PAGE, store::GROUP_PAGES, store::INLINE_MAX), (1, 4096, 16, 4096));
    let kinds = [
        Record::Superblock,
        Record::Domain,
        Record::Snapshot,
        Record::Ref,
        Record::Session,
        Record::CollectorState,
        Record::Condemned,
        Record::IndexRun,
        Record::WriterState,
        Record::StatCache,
        Record::Bucket,
        Record::BucketRun,
        Record::DamagedPack,
        Record::Restore,
        Record::KeyedDomain,
        Record::SealedSnapshot,
        Record::SignedRef,
        Record::Seen,
    ];
    let named: Vec<(u64, String)> = kinds.iter().map(|kind| (*kind as u64, format!("{kind:?}"))).collect();
    assert_eq!(numbers("Record kinds"), named);
    assert_eq!(numbers("Inode types").len(), 7);
    assert_eq!(numbers("Content forms").len(), 3);
}

#[test]
fn a_record_of_what_is_lost_lies_as_the_document_says() {
    let document = document();
    let pack = PackId { writer: store::WriterId::from_bytes([7; 8]), epoch: 3, sequence: 9 };
    let bytes = store::lost_frames::DamagedPack { pack, offsets: vec![64, 1 << 20] }.encode();
    let record = body(&document, "damaged/", Record::DamagedPack, &bytes);
    let table = &document["DamagedPack body"];
    assert_eq!(table.bytes(record, "pack"), pack.to_bytes());
    assert_eq!(table.number(record, "frame count"), 2);
    let offsets: Vec<u8> = [64_u64, 1 << 20].iter().flat_map(|offset| offset.to_le_bytes()).collect();
    assert_eq!(&record[table.len..], offsets);
    assert_eq!(store::lost_frames::key_of(pack), format!("damaged/{pack}"));
}

/// The body of a sealed object, its envelope checked by the document.
fn body<'a>(document: &Document, key: &str, kind: Record, bytes: &'a [u8]) -> &'a [u8] {
    let envelope = &document["Envelope"];
    let (head, body) = bytes.split_at(envelope.len);
    assert_eq!(envelope.bytes(head, "magic"), MAGIC, "{key}");
    assert!(text().contains(r"magic `TORPOR\r\n`"));
    assert_eq!(envelope.number(head, "record kind"), kind as u64, "{key}");
    assert_eq!(envelope.number(head, "format version"), 1, "{key}");
    assert_eq!(envelope.number(head, "reserved"), 0, "{key}");
    assert_eq!(envelope.number(head, "body length"), body.len() as u64, "{key}");
    let hash = blake3::hash(&[&head[..24], body].concat());
    assert_eq!(envelope.bytes(head, "BLAKE3"), hash.as_bytes(), "{key}");
    body
}

#[test]
fn sealed_records_lie_as_the_document_says() {
    let document = document();
    let exact = [
        ("superblock", Record::Superblock, "Superblock body"),
        ("domains/default", Record::Domain, "Domain body"),
        ("gc/state", Record::CollectorState, "CollectorState body"),
    ];
    for (key, kind, name) in exact {
        let bytes = object(key);
        assert!(!document[name].has_more);
        assert_eq!(body(&document, key, kind, &bytes).len(), document[name].len, "{name}");
    }
    let bytes = object("gc/state");
    let state = body(&document, "gc/state", Record::CollectorState, &bytes);
    assert_eq!(document["CollectorState body"].number(state, "runs begun"), 1);
    let bytes = object("superblock");
    let superblock = body(&document, "superblock", Record::Superblock, &bytes);
    let id = document["Superblock body"].bytes(superblock, "store id");
    assert_eq!(golden_store().0.id().as_bytes(), id);

    let table = &document["Snapshot body"];
    for key in keys("snapshots/default/") {
        let bytes = object(&key);
        let record = body(&document, &key, Record::Snapshot, &bytes);
        let id = SnapshotId::from_bytes(*blake3::hash(&bytes).as_bytes());
        let read = Snapshot::decode(&id, &bytes).unwrap();
        assert!(key.ends_with(&id.to_string()));
        let flag = |name: &str| table.number(record, name) == 1;
        assert_eq!(flag("tree present").then(|| table.bytes(record, "tree").len()), read.tree.map(|_| 1));
        assert_eq!(flag("image present"), read.image.is_some());
        assert_eq!(flag("parent present"), read.parent.is_some());
        if let Some(parent) = read.parent {
            assert_eq!(&record[67..99], parent.as_bytes());
        }
        assert_eq!(table.bytes(record, "time")[..8], read.time.seconds.to_le_bytes());
        assert_eq!(table.number(record, "names in the tree"), read.totals.files);
        assert_eq!(table.number(record, "logical length"), read.totals.bytes);
        assert_eq!(table.number(record, "plain length"), read.totals.new_bytes);
        assert_eq!(table.number(record, "length of new packs"), read.totals.stored_bytes);
        assert_eq!(table.number(record, "label count"), read.labels.len() as u64);
        let labels: usize = read.labels.iter().map(|(name, value)| 8 + name.len() + value.len()).sum();
        assert_eq!(record.len(), table.len + labels);
    }
    for key in keys("refs/default/") {
        let bytes = object(&key);
        let record = body(&document, &key, Record::Ref, &bytes);
        let read = Ref::decode(&bytes).unwrap();
        assert_eq!(document["Ref body"].number(record, "name length"), read.name.len() as u64);
        let entry = &document["History entry"];
        let entries = document["Ref body"].len + read.name.len() + 12;
        assert_eq!(record.len(), entries + read.history.len() * entry.len);
        for (bytes, expected) in record[entries..].chunks_exact(entry.len).zip(&read.history) {
            assert_eq!(entry.bytes(bytes, "snapshot"), expected.snapshot.as_bytes());
        }
    }
    for key in keys("gc/condemned/") {
        let bytes = object(&key);
        let record = body(&document, &key, Record::Condemned, &bytes);
        let (table, read) = (&document["Condemned body"], &golden_store().0.condemned().unwrap()[0]);
        assert_eq!(table.number(record, "epoch"), read.epoch);
        assert_eq!(table.number(record, "pack count"), read.packs.len() as u64);
        let ids = read.packs.len() * document["Pack id"].len + read.snapshots.len() * 32;
        assert_eq!(record.len(), table.len + 4 + ids);
    }
}

#[test]
fn a_bucket_s_record_lies_as_the_document_says() {
    let document = document();
    let table = &document["Bucket body"];
    for (bit, _) in numbers("Guarantees") {
        let record = BucketRecord {
            guarantees: Guarantees::from_bits(1 << bit),
            examined: store::Time { seconds: 1_800_000_000, nanos: 7 },
            put_us: 1500,
            get_us: 700,
        };
        let bytes = record.encode();
        let read = body(&document, store::keys::BUCKET, Record::Bucket, &bytes);
        assert_eq!(read.len(), table.len);
        assert_eq!(table.number(read, "guarantees"), 1 << bit);
        assert_eq!(table.bytes(read, "when it was examined")[..8], 1_800_000_000u64.to_le_bytes());
        assert_eq!(table.number(read, "median of a small put"), 1500);
        assert_eq!(table.number(read, "median of a small get"), 700);
        assert_eq!(BucketRecord::decode(&bytes).unwrap(), record);
    }
    assert_eq!(numbers("Guarantees").len() as u32, Guarantees::ALL.bits().count_ones());
}

#[test]
fn packs_and_runs_lie_as_the_document_says() {
    let document = document();
    for key in keys("packs/") {
        let id = PackId::from_key(&key).unwrap();
        let bytes = object(&key);
        let header = &document["Pack header"];
        assert_eq!(header.bytes(&bytes, "magic"), b"TORPACK\n");
        assert_eq!(header.bytes(&bytes, "the pack's own id"), id.to_bytes());
        let directory = read_directory(&golden_tier(), id).unwrap();
        assert_eq!(header.number(&bytes, "kind"), directory.kind as u64);
        let table = &document["Trailer"];
        let trailer = &bytes[bytes.len() - table.len..];
        assert_eq!(table.bytes(trailer, "magic"), b"TORPEND\n");
        assert_eq!(table.number(trailer, "length of the pack"), bytes.len() as u64);
        assert_eq!(table.number(trailer, "frame count"), directory.frames.len() as u64);
        assert_eq!(table.number(trailer, "chunk entry count"), directory.entries.len() as u64);
        let mut at = table.number(trailer, "offset of the frame extents") as usize;
        for frame in &directory.frames {
            let extent = &document["Frame extent"];
            assert_eq!(extent.number(&bytes[at..], "offset"), frame.offset);
            assert_eq!(extent.number(&bytes[at..], "length"), u64::from(frame.len_bytes));
            at += extent.len;
            assert_frame(&document, &bytes[frame.offset as usize..][..frame.len_bytes as usize]);
        }
        for entry in &directory.entries {
            let table = &document["Chunk entry"];
            assert_eq!(table.bytes(&bytes[at..], "chunk"), entry.id.as_bytes());
            assert_eq!(table.number(&bytes[at..], "number of its frame"), u64::from(entry.frame));
            assert_eq!(table.number(&bytes[at..], "its slot"), u64::from(entry.slot));
            at += table.len;
        }
        assert_eq!(at + table.len, bytes.len());
    }
    for key in keys("index/") {
        let bytes = object(&key);
        let record = body(&document, &key, Record::IndexRun, &bytes);
        let run = Run::open(&key, golden_tier().get(&key).unwrap()).unwrap();
        let (head, entry) = (&document["Run body"], &document["Run entry"]);
        assert_eq!(head.number(record, "pack count"), run.pack_count() as u64);
        assert_eq!(head.number(record, "entry count"), run.entry_count() as u64);
        let entries = head.len + run.pack_count() * document["Pack id"].len;
        assert_eq!(record.len(), entries + run.entry_count() * entry.len);
        for bytes in record[entries..].chunks_exact(entry.len) {
            let pack = run.pack(entry.number(bytes, "number of its pack") as u32).unwrap();
            let directory = read_directory(&golden_tier(), pack).unwrap();
            let offset = entry.number(bytes, "offset of its frame") * ALIGNMENT as u64;
            let frame = directory.frames.iter().position(|frame| frame.offset == offset).unwrap() as u32;
            let slot = entry.number(bytes, "its slot") as u32;
            let found = directory.entries.iter().find(|found| (found.frame, found.slot) == (frame, slot));
            assert!(found.unwrap().id.as_bytes().starts_with(entry.bytes(bytes, "first bytes")));
        }
    }
}

fn assert_frame(document: &Document, bytes: &[u8]) {
    let (table, slot) = (&document["Frame header"], &document["Slot"]);
    assert_eq!(table.bytes(bytes, "magic"), b"TFRM");
    assert_eq!(table.number(bytes, "format version"), 1);
    for zero in ["cipher", "flags", "reserved", "key epoch", "tag of the domain"] {
        assert_eq!(table.number(bytes, zero), 0, "{zero}");
    }
    assert_eq!(table.bytes(bytes, "base of a delta"), [0; 32]);
    let count = table.number(bytes, "slot count") as usize;
    let stored_len = table.number(bytes, "stored length") as usize;
    let slots = &bytes[table.len..][..count * slot.len];
    let plain: u64 = slots.chunks_exact(slot.len).map(|bytes| slot.number(bytes, "length")).sum();
    assert_eq!(plain, table.number(bytes, "plain length"));
    let (stored, padding) = bytes[table.len + slots.len()..].split_at(stored_len);
    assert!(padding.len() < ALIGNMENT && padding.iter().all(|byte| *byte == 0));
    assert_eq!(table.bytes(bytes, "first 16 bytes"), &blake3::hash(stored).as_bytes()[..16]);
    if table.number(bytes, "codec") == 1 {
        assert_eq!(stored[..4], [0x28, 0xb5, 0x2f, 0xfd], "zstd's own magic");
    }
}

/// Every metadata chunk of a store.
fn metadata_chunks(store: &Store) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    for (id, _) in store.packs().unwrap() {
        let directory = read_directory(store.metadata_tier(), id).unwrap();
        if directory.kind == PackKind::Meta {
            let read = |id: &ChunkId| store.read_chunk(id).unwrap().to_vec();
            chunks.extend(directory.entries.iter().map(|entry| read(&entry.id)));
        }
    }
    chunks
}

#[test]
fn metadata_lies_as_the_document_says() {
    let document = document();
    let (store, _state) = golden_store();
    let tables = ["Tree root", "Link table", "Directory", "List of extents", "Page table"];
    let magics = [b"TREE", b"TLNK", b"TDIR", b"TEXT", b"TIMG"];
    let mut met = [0; 5];
    for chunk in metadata_chunks(&store) {
        let kind = magics.iter().position(|magic| chunk.starts_with(*magic)).expect("a kind of the document");
        let table = &document[tables[kind]];
        assert!(text().contains(&format!("magic `{}`", std::str::from_utf8(magics[kind]).unwrap())));
        assert_eq!(table.range("magic"), 0..4);
        assert_eq!(table.number(&chunk, "format version"), 1);
        assert_eq!(table.number(&chunk, "reserved"), 0);
        met[kind] += 1;
    }
    assert!(met.iter().all(|count| *count > 0), "{met:?}");

    let web = store.snapshot(&store.resolve("shop/web-1").unwrap()).unwrap();
    let id = web.tree.unwrap();
    let (tree, bytes) = (store.tree(&id).unwrap(), store.read_chunk(&id.chunk()).unwrap());
    let (root, inode) = (&document["Tree root"], &document["Inode"]);
    assert_eq!(root.number(&bytes, "link table present"), 1);
    let links = ChunkId::from_bytes(bytes[9..41].try_into().unwrap());
    let own = &bytes[root.len..];
    let metadata = &tree.root().metadata;
    assert_eq!(inode.number(own, "mode"), u64::from(metadata.mode));
    assert_eq!(inode.number(own, "owner"), u64::from(metadata.uid));
    assert_eq!(inode.number(own, "group"), u64::from(metadata.gid));
    assert_eq!(inode.bytes(own, "last change")[8..], metadata.mtime.nanos.to_le_bytes());
    assert_eq!(own[inode.len], 1, "a directory");
    let Node::Directory(directory) = &tree.root().node else { panic!("the root is a directory") };
    assert_eq!(own[inode.len + 1..], *directory.as_bytes());
    let bytes = store.read_chunk(&links).unwrap();
    assert_eq!(document["Link table"].number(&bytes, "count"), 1);
    let link = &bytes[document["Link table"].len..];
    let (number, linked) = tree.links().unwrap().iter().map(|(n, l)| (*n, l.clone())).next().unwrap();
    assert_eq!(document["Link"].number(link, "number"), number);
    assert_eq!(document["Link"].number(link, "names"), u64::from(linked.count));
    let bytes = store.read_chunk(&directory.chunk()).unwrap();
    let entries = tree.directory(directory).unwrap();
    assert_eq!(document["Directory"].number(&bytes, "entry count"), entries.len() as u64);
    let records = document["Directory"].len + 4 * entries.len();
    let offset = u32::from_le_bytes(bytes[records - 4..records].try_into().unwrap()) as usize;
    let (last, name) = (&bytes[records + offset..], entries.entry(entries.len() - 1).unwrap().name);
    assert_eq!((last[0] as usize, &last[1..1 + name.len()]), (name.len(), name.as_slice()));

    let vm = store.snapshot(&store.resolve("vm").unwrap()).unwrap().image.unwrap();
    let (image, bytes) = (store.image(&vm).unwrap(), store.read_chunk(&vm.chunk()).unwrap());
    let table = &document["Page table"];
    assert_eq!(table.number(&bytes, "page length"), 4096);
    assert_eq!(table.number(&bytes, "most pages of a group"), 16);
    assert_eq!(table.number(&bytes, "group count"), image.group_count() as u64);
    let space = &document["Space"];
    let spaces: usize = (0..image.spaces().len()).map(|index| space.len + image.runs(index).len() * 18).sum();
    let last = &bytes[bytes.len() - space.len - image.runs(1).len() * 18..];
    assert_eq!(space.number(last, "id"), 12);
    assert_eq!(space.number(last, "length"), 1 << 24);
    assert_eq!(space.number(last, "run count"), 1);
    assert!(table.len + image.group_count() * 32 + 4 + 4 + spaces < bytes.len());
}

#[test]
fn a_long_record_lies_as_the_document_says() {
    let document = document();
    let (scratch, _) = crate::scratch::Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let entry = |number: u64| Entry {
        name: format!("{number:064}").into_bytes(),
        inode: EntryInode::Own(Inode { metadata: Metadata::default(), node: Node::Fifo }),
    };
    let entries: Vec<Entry> = (0..5000).map(entry).collect();
    let id = writer.put_directory(&entries).unwrap();
    writer.commit("web", SnapshotDraft::default()).unwrap();
    let bytes = store.read_chunk(&id.chunk()).unwrap();
    let table = &document["List of chunks"];
    assert_eq!(table.bytes(&bytes, "magic"), b"TBLB");
    let chunks = bytes[table.len..].chunks_exact(32);
    assert!(chunks.remainder().is_empty());
    let len =
        |id: &[u8]| store.read_chunk(&ChunkId::from_bytes(id.try_into().unwrap())).unwrap().len() as u64;
    assert_eq!(table.number(&bytes, "length of the record"), chunks.map(len).sum::<u64>());
}
