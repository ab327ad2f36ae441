//! The content of the golden store of format 1, byte by byte: written once, read forever. Never changed; a new format
//! gets a new fixture.

use crate::model::{Body, Files, Item, Memory, Pages, put_files, put_memory};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{LocalTier, PAGE, Result, SnapshotDraft, Store, StoreConfig, Time, Unwatched, Writer};

/// Refs of the golden store and how many snapshots each has.
pub const REFS: [(&str, usize); 3] = [("gone", 0), ("shop/web-1", 2), ("vm", 2)];

fn item(number: u32, body: Body) -> Item {
    let mut item = Item { body, ..Item::file(Vec::new()) };
    let is_symlink = matches!(item.body, Body::Symlink(_));
    item.metadata.mode = if is_symlink { 0o777 } else { 0o640 + number };
    item.metadata.uid = 1000 + number;
    item.metadata.gid = 2000 + number;
    item.metadata.mtime = Time { seconds: 1_000_000_000 + i64::from(number), nanos: 123_456_789 };
    item
}

/// The files of a version, 0 or 1.
pub fn files(version: u8) -> Files {
    let mut sparse = vec![0; 20 << 16];
    for island in 0..10 {
        sparse[island << 17..][..5].copy_from_slice(b"data.");
    }
    let mut entries = vec![
        ("", Body::Directory),
        ("directory", Body::Directory),
        ("directory/empty", Body::Directory),
        ("directory/hard-2", Body::File(b"one file, two names".to_vec())),
        ("fifo", Body::Special(0o010_000, 0)),
        ("hard-1", Body::File(b"one file, two names".to_vec())),
        ("inline", Body::File(vec![b'0' + version; 20])),
        ("null", Body::Special(0o020_000, 0x103)),
        ("disk", Body::Special(0o060_000, 0x800)),
        ("socket", Body::Special(0o140_000, 0)),
        ("sparse", Body::File(sparse)),
        ("symlink", Body::Symlink(b"../to nowhere".to_vec())),
        ("text", Body::File(b"A line that comes again and again.\n".repeat(300))),
    ];
    if version == 1 {
        entries.push(("new in the second", Body::File(Vec::new())));
    }
    let mut files: Files = Files::new();
    for ((path, body), number) in entries.into_iter().zip(0..) {
        files.insert(path.as_bytes().to_vec(), item(number, body));
    }
    for path in ["hard-1", "directory/hard-2"] {
        files.insert(
            path.as_bytes().to_vec(),
            Item {
                link: Some(b"directory/hard-2".to_vec()),
                ..item(3, Body::File(b"one file, two names".to_vec()))
            },
        );
    }
    let attributes =
        vec![(b"user.empty".to_vec(), Vec::new()), (b"user.key".to_vec(), b"\0value\xff".to_vec())];
    files.get_mut(b"text".as_slice()).expect("it is there").metadata.xattrs = attributes;
    files
}

/// The memory of a version, 0 or 1, the second over the first.
pub fn memory(version: u8) -> Memory {
    let page = |byte: u8| vec![byte; PAGE];
    let mut pages: BTreeMap<u64, Vec<u8>> = (1..40).map(|number| (number, page(number as u8))).collect();
    if version == 1 {
        pages.remove(&3);
        pages.insert(7, page(200));
    }
    let main = Pages { len_bytes: 100 * PAGE as u64 - 1, pages };
    let high = Pages { len_bytes: 1 << 24, pages: [(1000, page(9))].into() };
    Memory {
        spaces: [(0, main), (12, high)].into(),
        blobs: [("vmstate".to_owned(), vec![version; 5000])].into(),
    }
}

/// Writes the content of the golden store, oldest first.
///
/// # Errors
/// As the writer.
pub fn write(writer: &mut Writer) -> Result<()> {
    let store = writer.store().clone();
    for version in [0, 1] {
        let tree = Some(put_files(writer, &files(version))?);
        let labels = [("version".to_owned(), version.to_string())].into();
        writer.commit(
            "shop/web-1",
            SnapshotDraft { tree, labels, files: 13, bytes: 1 << 20, ..SnapshotDraft::default() },
        )?;
        let parent = store.refs().get("vm")?.and_then(|found| found.current());
        let before = parent.map(|id| store.snapshot(&id)).transpose()?.and_then(|snapshot| snapshot.image);
        let before = before.map(|image| store.image(&image)).transpose()?;
        let image = Some(put_memory(writer, &memory(version), before.as_ref())?);
        writer.commit("vm", SnapshotDraft { image, parent, ..SnapshotDraft::default() })?;
    }
    Ok(())
}

/// Makes a golden store in a directory, with records of a collection too.
///
/// # Errors
/// As the store.
pub fn make(directory: &std::path::Path, state: &std::path::Path) -> Result<()> {
    let store = Store::init(&config(directory, state))?;
    let mut writer = store.writer("golden")?;
    write(&mut writer)?;
    writer.put_chunk(b"collected one day")?;
    writer.commit("gone", SnapshotDraft::default())?;
    drop(writer);
    store.forget("gone", |_| true)?;
    gc::collect(&store, &gc::CollectOptions::default(), &Unwatched).map(|_| ())
}

/// The store in a directory, with its local state elsewhere.
pub fn config(directory: &std::path::Path, state: &std::path::Path) -> StoreConfig {
    let hot = Arc::new(LocalTier::new(directory));
    StoreConfig { cache_bytes: 1 << 20, level: 19, ..StoreConfig::on(hot, state.to_owned()) }
}
