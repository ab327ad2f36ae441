//! Small stores for tests of the collector: a tier in memory, local state in a scratch directory, and app files that
//! are a few large chunks, so that every snapshot has packs of its own.

use gc::{CollectOptions, CollectReport};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use store::{
    CheckOptions, Entry, EntryInode, Inode, MemoryTier, Metadata, Node, SnapshotDraft, SnapshotId, Store,
    StoreConfig, Tier, TreeRoot, Unwatched, Writer,
};

/// A store on a tier in memory.
pub struct GcFixture {
    /// The durable objects.
    pub memory: MemoryTier,
    scratch: tempfile::TempDir,
}

impl Default for GcFixture {
    fn default() -> Self {
        Self::new()
    }
}

impl GcFixture {
    /// A new, empty store.
    pub fn new() -> Self {
        let fixture =
            Self { memory: MemoryTier::new(), scratch: tempfile::tempdir().expect("a scratch directory") };
        Store::init(&fixture.config(Arc::new(fixture.memory.clone()))).expect("an empty tier takes a store");
        fixture
    }

    /// The same local state over another view of the tier.
    pub fn config(&self, hot: Arc<dyn Tier>) -> StoreConfig {
        StoreConfig { cache_bytes: 1 << 20, level: 1, ..StoreConfig::on(hot, self.state()) }
    }

    /// Local state of the host.
    pub fn state(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    /// Opens the store as another process would.
    pub fn open(&self) -> Store {
        self.open_on(Arc::new(self.memory.clone()))
    }

    /// Opens the store through another view of its tier.
    pub fn open_on(&self, hot: Arc<dyn Tier>) -> Store {
        Store::open(&self.config(hot)).expect("the store opens")
    }

    /// One commit by a process of its own.
    pub fn commit(&self, name: &str, files: &[u64]) -> SnapshotId {
        let store = self.open();
        let mut writer = store.writer("test").expect("nobody else writes");
        commit(&mut writer, name, files).expect("the commit succeeds")
    }

    /// Runs the collector as a process of its own.
    pub fn collect(&self, cycles: u32) -> CollectReport {
        let options = CollectOptions { dry_run: false, cycles };
        gc::collect(&self.open(), &options, &Unwatched).expect("the collector runs")
    }

    /// Every object that refs name is there and has the right bytes.
    pub fn assert_sound(&self, context: &str) {
        let store = self.open();
        let report =
            store::check(&store, CheckOptions { read_data: true }, &Unwatched).expect("the check runs");
        assert!(report.problems.is_empty(), "{context}: {:?}", report.problems);
        for found in store.refs().list().expect("refs are readable") {
            for entry in found.history {
                assert_files(&store, &entry.snapshot, context);
            }
        }
    }
}

/// A file of 3 chunks or so that `seed` determines.
pub fn file_bytes(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 100_000];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A tree with one file per seed.
pub fn put_tree(writer: &mut Writer, files: &[u64]) -> store::Result<store::TreeId> {
    let mut entries = Vec::new();
    for seed in files {
        let content = writer.put_content(&mut file_bytes(*seed).as_slice())?;
        let inode =
            Inode { metadata: Metadata { mode: 0o644, ..Metadata::default() }, node: Node::File(content) };
        entries.push(Entry { name: format!("{seed:05}").into_bytes(), inode: EntryInode::Own(inode) });
    }
    let directory = writer.put_directory(&entries)?;
    writer.put_tree(&TreeRoot {
        metadata: Metadata { mode: 0o755, ..Metadata::default() },
        directory,
        links: BTreeMap::new(),
    })
}

/// Commits a tree with one file per seed, ascending.
pub fn commit(writer: &mut Writer, name: &str, files: &[u64]) -> store::Result<SnapshotId> {
    let tree = Some(put_tree(writer, files)?);
    let labels = BTreeMap::from([("files".to_owned(), files.len().to_string())]);
    writer.commit(name, SnapshotDraft { tree, labels, ..SnapshotDraft::default() })
}

/// Every file of the snapshot has the bytes that its name says.
pub fn assert_files(store: &Store, snapshot: &SnapshotId, context: &str) {
    let record = store.snapshot(snapshot).unwrap_or_else(|error| panic!("{context}: {error}"));
    let tree =
        store.tree(&record.tree.expect("it has files")).unwrap_or_else(|error| panic!("{context}: {error}"));
    let Node::Directory(root) = &tree.root().node else { panic!("{context}: the root is a directory") };
    let directory = tree.directory(root).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(record.labels["files"], directory.len().to_string(), "{context}");
    for entry in directory.iter() {
        let entry = entry.expect("a readable entry");
        let seed: u64 = std::str::from_utf8(&entry.name).expect("digits").parse().expect("digits");
        let EntryInode::Own(Inode { node: Node::File(content), .. }) = entry.inode else {
            panic!("{context}: a file")
        };
        let reader = store.content(&content).unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut bytes = vec![0; content.len_bytes() as usize];
        reader.read_at(0, &mut bytes).unwrap_or_else(|error| panic!("{context}: file {seed}: {error}"));
        assert!(bytes == file_bytes(seed), "{context}: file {seed} has other bytes");
    }
}

/// Damages one bit of the byte at `at` of an object.
pub fn flip_a_bit(tier: &dyn Tier, key: &str, at: usize) {
    let mut bytes = tier.get(key).expect("the object is there").to_vec();
    bytes[at] ^= 1;
    tier.delete(key).expect("it can go");
    assert!(tier.put_if_absent(key, &bytes).expect("it can come back"), "nobody else put it");
}
