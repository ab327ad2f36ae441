//! Trees: every codec round trip, cut and flipped; directories against a map; link tables; contents with holes.

use super::content::{decode_stored, encode_stored};
use super::format::{decode_inode, decode_links, decode_root, encode_inode, encode_links};
use super::inode::check_entry_name;
use super::*;
use crate::clock::Time;
use crate::error::{Kind, Result};
use crate::id::{ChunkId, DirectoryId};
use crate::testing::{assert_total, memory_store};
use crate::wire::{Decoder, Encoder};
use crate::writer::blob::Blob;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn times() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Time { seconds, nanos })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let xattrs = prop::collection::btree_map(
        prop::collection::vec(any::<u8>(), 1..12),
        prop::collection::vec(any::<u8>(), 0..12),
        0..3,
    );
    let identity = (prop::option::of(times()), any::<Option<u64>>())
        .prop_map(|(ctime, number)| Identity::new(ctime, number));
    (0..0o10000u32, any::<u32>(), any::<u32>(), times(), xattrs, identity).prop_map(
        |(mode, uid, gid, mtime, xattrs, identity)| Metadata {
            mode,
            uid,
            gid,
            mtime,
            xattrs: xattrs.into_iter().collect(),
            identity,
        },
    )
}

fn extents() -> impl Strategy<Value = Vec<Extent>> {
    let chunk = (any::<[u8; 32]>(), 1..=2u32 << 20)
        .prop_map(|(id, len_bytes)| Extent::Chunk { id: ChunkId::from_bytes(id), len_bytes });
    let hole = (1..=1u64 << 40).prop_map(|len_bytes| Extent::Hole { len_bytes });
    prop::collection::vec(prop_oneof![chunk, hole], 0..6)
}

fn leaf() -> impl Strategy<Value = Node> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Node::File(Content::inline(bytes))),
        extents().prop_map(|extents| Node::File(Content::listed(extents).unwrap())),
        (any::<[u8; 32]>(), 0..=i64::MAX as u64)
            .prop_map(|(list, len_bytes)| Node::File(Content::stored(len_bytes, ChunkId::from_bytes(list)))),
        prop::collection::vec(any::<u8>(), 1..40).prop_map(Node::Symlink),
        any::<u64>().prop_map(Node::CharDevice),
        any::<u64>().prop_map(Node::BlockDevice),
        Just(Node::Fifo),
        Just(Node::Socket),
    ]
}

fn leaf_inode() -> impl Strategy<Value = Inode> {
    (metadata(), leaf()).prop_map(|(metadata, node)| Inode { metadata, node })
}

fn directory_inode() -> impl Strategy<Value = Inode> {
    (metadata(), any::<[u8; 32]>())
        .prop_map(|(metadata, id)| Inode { metadata, node: Node::Directory(DirectoryId::from_bytes(id)) })
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = prop::collection::vec(any::<u8>(), 1..20)
        .prop_filter("a possible name", |name| check_entry_name(name).is_ok());
    let inode = prop_oneof![
        leaf_inode().prop_map(EntryInode::Own),
        directory_inode().prop_map(EntryInode::Own),
        any::<u64>().prop_map(EntryInode::Link),
    ];
    prop::collection::btree_map(name, inode, 0..8)
        .prop_map(|entries| entries.into_iter().map(|(name, inode)| Entry { name, inode }).collect())
}

fn encoded(encode: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut out = Encoder::new();
    encode(&mut out);
    out.finish()
}

/// Decodes a value that must take all bytes.
fn whole<T>(bytes: &[u8], decode: impl FnOnce(&mut Decoder<'_>) -> Result<T>) -> Result<T> {
    let mut fields = Decoder::new(bytes);
    let value = decode(&mut fields)?;
    fields.end()?;
    Ok(value)
}

fn parse(bytes: &[u8]) -> Result<Directory> {
    Directory::parse(Blob::Joined(Arc::new(bytes.to_vec())))
}

/// Everything a reader takes from a directory.
fn all_entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let directory = parse(bytes)?;
    for probe in [b"".as_slice(), b"m", b"\xff\xff"] {
        directory.get(probe)?;
        directory.position(probe)?;
    }
    directory.iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_inode_reads_back_and_a_cut_one_does_not(inode in prop_oneof![leaf_inode(), directory_inode()]) {
        let bytes = encoded(|out| encode_inode(out, &inode, &inode.metadata.identity));
        assert_total(&bytes, &inode, |bytes| whole(bytes, decode_inode));
    }

    #[test]
    fn a_root_reads_back_and_a_cut_one_does_not(inode in directory_inode(), table in any::<Option<[u8; 32]>>()) {
        let table = table.map(ChunkId::from_bytes);
        let bytes = format::encode_root(&inode, table.as_ref());
        assert_total(&bytes, &(inode, table), decode_root);
    }

    #[test]
    fn a_link_table_reads_back_and_a_cut_one_does_not(
        links in prop::collection::btree_map(any::<u64>(), (any::<u32>(), leaf_inode()), 0..4),
    ) {
        let links: BTreeMap<u64, LinkedInode> =
            links.into_iter().map(|(number, (count, inode))| (number, LinkedInode { count, inode })).collect();
        assert_total(&encode_links(&links), &links, decode_links);
    }

    #[test]
    fn a_list_of_extents_reads_back_and_a_cut_one_does_not(extents in extents()) {
        let len_bytes = extents.iter().map(Extent::len_bytes).sum();
        let bytes = encode_stored(&extents);
        assert_total(&bytes, &extents, |bytes| decode_stored(bytes, len_bytes));
        prop_assert!(decode_stored(&bytes, len_bytes + 1).is_err());
    }

    #[test]
    fn a_directory_is_a_map(entries in entries(), absent in prop::collection::vec(any::<u8>(), 0..20)) {
        let bytes = encode_directory(&entries).unwrap();
        let directory = parse(&bytes).unwrap();
        prop_assert_eq!(directory.len(), entries.len());
        prop_assert_eq!(all_entries(&bytes).unwrap(), entries.clone());
        for (index, entry) in entries.iter().enumerate() {
            prop_assert_eq!(directory.get(&entry.name).unwrap(), Some(entry.clone()));
            prop_assert_eq!(directory.position(&entry.name).unwrap(), index);
        }
        let expected = entries.iter().find(|entry| entry.name == absent).cloned();
        prop_assert_eq!(directory.get(&absent).unwrap(), expected);
        prop_assert_eq!(
            directory.position(&absent).unwrap(),
            entries.iter().filter(|entry| entry.name < absent).count()
        );
        for len in 0..bytes.len() {
            prop_assert!(all_entries(&bytes[..len]).is_err(), "cut at {}", len);
        }
        for bit in 0..bytes.len() * 8 {
            std::hint::black_box(all_entries(&crate::testing::flipped(&bytes, bit)).is_ok());
        }
    }
}

#[test]
fn only_records_with_an_identity_are_of_another_version_and_no_digest_follows_it() {
    let inode = |identity| Inode {
        metadata: Metadata { mode: 0o644, identity, ..Metadata::default() },
        node: Node::File(Content::inline(b"content".to_vec())),
    };
    let identity = Identity::new(Some(Time { seconds: 5, nanos: 6 }), Some(7));
    let (plain, known) = (inode(Identity::NONE), inode(identity));
    assert_eq!(plain.digest(), known.digest());
    let other = Inode { node: Node::File(Content::inline(b"contents".to_vec())), ..plain.clone() };
    assert_ne!(plain.digest(), other.digest());
    let directory = |inode: &Inode| {
        let entry = Entry { name: b"a".to_vec(), inode: EntryInode::Own(inode.clone()) };
        encode_directory(&[entry]).unwrap()
    };
    let links = |inode: &Inode| encode_links(&[(1, LinkedInode { count: 2, inode: inode.clone() })].into());
    for encode in [&directory as &dyn Fn(&Inode) -> Vec<u8>, &links] {
        assert_eq!(encode(&plain)[4..6], [1, 0]);
        assert_eq!(encode(&known)[4..6], [2, 0]);
        assert_eq!(encode(&known).len(), encode(&plain).len() + 12 + 8);
    }
    let mut newer = directory(&known);
    newer[4] = 3;
    assert!(parse(&newer).unwrap_err().to_string().contains("version 3"));
}

#[test]
fn impossible_directories_are_refused() {
    let entry = |name: &[u8]| Entry { name: name.to_vec(), inode: EntryInode::Link(1) };
    let long = [b'x'; 256];
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b", &long] {
        assert_eq!(encode_directory(&[entry(name)]).unwrap_err().kind(), Kind::Invalid, "{name:?}");
    }
    assert!(encode_directory(&[entry(&long[1..])]).is_ok());
    for pair in [[entry(b"a"), entry(b"a")], [entry(b"b"), entry(b"a")]] {
        assert_eq!(encode_directory(&pair).unwrap_err().kind(), Kind::Invalid);
    }
    // A stored directory that holds such a name all the same is read with an error, not with the name.
    let mut bytes = encode_directory(&[entry(b"ab")]).unwrap();
    let at = bytes.len() - 11;
    assert_eq!(&bytes[at..at + 2], b"ab");
    bytes[at..at + 2].copy_from_slice(b"..");
    assert_eq!(all_entries(&bytes).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn hostile_lengths_are_refused_without_allocating() {
    let huge = encoded(|out| {
        out.bytes(content::EXTENTS_MAGIC).u16(1).u16(0).u32(u32::MAX);
    });
    assert!(decode_stored(&huge, 0).is_err());
    let huge = encoded(|out| {
        out.bytes(directory::DIRECTORY_MAGIC).u16(1).u16(0).u32(u32::MAX);
    });
    assert!(parse(&huge).is_err());
    let overflow = vec![Extent::Hole { len_bytes: u64::MAX }, Extent::Hole { len_bytes: 2 }];
    assert_eq!(Content::listed(overflow).unwrap_err().kind(), Kind::Corrupt);
    let negative = encoded(|out| Content::stored(1 << 63, ChunkId::from_bytes([0; 32])).encode_into(out));
    assert!(whole(&negative, Content::decode_from).is_err());
}

#[test]
fn a_long_record_is_cut_and_joined_again_and_a_small_change_stores_little() {
    let (store, _state) = memory_store();
    let mut writer = store.writer("test").unwrap();
    let entry = |number: u64, mode: u32| Entry {
        name: format!("{:064}", number).into_bytes(),
        inode: EntryInode::Own(Inode {
            metadata: Metadata { mode, ..Metadata::default() },
            node: Node::File(Content::inline(number.to_le_bytes().repeat(4))),
        }),
    };
    let mut entries: Vec<Entry> = (0..20_000).map(|number| entry(number, 0o644)).collect();
    let before = writer.put_directory(&entries).unwrap();
    let first = writer.stats().new_bytes;
    entries[10_000] = entry(10_000, 0o600);
    let after = writer.put_directory(&entries).unwrap();
    let more = writer.stats().new_bytes - first;
    assert!(more < first / 4, "{more} bytes more after {first}");
    let tree = writer
        .put_tree(&TreeRoot { metadata: Metadata::default(), directory: after, links: BTreeMap::new() })
        .unwrap();
    writer
        .commit("web", crate::SnapshotDraft { tree: Some(tree), ..crate::SnapshotDraft::default() })
        .unwrap();
    let tree = store.tree(&tree).unwrap();
    let read: Vec<Entry> = tree.directory(&after).unwrap().iter().collect::<Result<_>>().unwrap();
    assert_eq!(read, entries);
    assert_ne!(before, after);
}
