//! Real trees: backup, read back, restore, compare with the source in everything that Linux has.

use crate::scratch::Scratch;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use store::wire::Encoder;
use store::{
    BackupOptions, BackupReport, Content, DirectoryId, Entry, EntryInode, Inode, Kind, Metadata, Node,
    SnapshotDraft, Store, TreeRoot, Unwatched,
};
use tests::model::{Body, Files, Random, assert_clean, files_of_host, files_of_store};

pub(crate) fn back_up(store: &Store, source: &Path, name: &str) -> BackupReport {
    let mut writer = store.writer("test").unwrap();
    store::backup(&mut writer, source, name, &BackupOptions::default(), &Unwatched).unwrap()
}

/// Backs up, restores, and asserts that source, store and target are equal; returns the target's directory.
fn there_and_back(source: &Path) -> (tempfile::TempDir, Files) {
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let report = back_up(&store, source, "web");
    assert_eq!(report.unreadable, Vec::<String>::new());
    let before = files_of_host(source);
    assert_same(&before, &files_of_store(&store, &report.snapshot).unwrap());
    let target = tempfile::tempdir().unwrap();
    let restored = store::restore(&store, &report.snapshot, b"", target.path(), &Unwatched).unwrap();
    assert_eq!(restored.refused, Vec::new());
    assert_same(&before, &files_of_host(target.path()));
    assert_eq!(restored.files, report.files);
    assert_eq!(restored.directories, report.directories);
    assert_clean(&store, "after the restore");
    (target, before)
}

pub(crate) fn assert_same(one: &Files, other: &Files) {
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (path, item) in one {
        assert!(*item == other[path], "{:?}: {item:?} is not {:?}", OsStr::from_bytes(path), other[path]);
    }
}

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn chown(path: &Path, uid: u32, gid: u32) {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn files_of_every_length_come_back() {
    let source = tempfile::tempdir().unwrap();
    let mut random = Random::new(1);
    for len in
        [0, 1, 4095, 4096, 4097, 16 << 10, 64 << 10, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 1 << 20]
    {
        fs::write(source.path().join(format!("noise-{len}")), random.bytes(len)).unwrap();
        fs::write(source.path().join(format!("zeroes-{len}")), vec![0; len]).unwrap();
    }
    fs::write(source.path().join("large"), random.bytes(20 << 20)).unwrap();
    there_and_back(source.path());
}

#[test]
fn names_of_every_kind_come_back() {
    let source = tempfile::tempdir().unwrap();
    let directory = source.path().join("many");
    fs::create_dir(&directory).unwrap();
    for number in 0..1000 {
        fs::write(directory.join(format!("entry-{number}")), number.to_string()).unwrap();
    }
    for byte in (1..=255u8).filter(|byte| *byte != b'/') {
        fs::write(source.path().join(OsStr::from_bytes(&[b'x', byte])), [byte]).unwrap();
    }
    fs::write(source.path().join("n".repeat(255)), "long").unwrap();
    fs::write(source.path().join(OsStr::from_bytes(b"\xff\xfe\n\r\t \\\"'*?[]{}$`")), "odd").unwrap();
    fs::write(source.path().join("-rf"), "a dash").unwrap();
    fs::write(source.path().join("..."), "dots").unwrap();
    let mut deep = source.path().to_owned();
    for level in 0..60 {
        deep.push(format!("level-{level}"));
        fs::create_dir(&deep).unwrap();
    }
    fs::create_dir(source.path().join("empty")).unwrap();
    there_and_back(source.path());
}

#[test]
fn modes_owners_and_times_come_back() {
    let source = tempfile::tempdir().unwrap();
    for mode in [0, 0o400, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
        let (file, directory) =
            (source.path().join(format!("file-{mode:o}")), source.path().join(format!("dir-{mode:o}")));
        fs::write(&file, "x").unwrap();
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("inside"), "y").unwrap();
        chown(&file, 1000 + mode, 65534);
        chown(&directory, 7, mode);
        chmod(&file, mode);
        chmod(&directory, mode);
    }
    symlink("nowhere", source.path().join("link")).unwrap();
    chown(&source.path().join("link"), 12, 34);
    for (name, seconds, nanos) in [
        ("old", -1_000_000_000, 1),
        ("epoch", 0, 0),
        ("new", 1_700_000_000, 123_456_789),
        ("far", 1 << 33, 999_999_999),
    ] {
        fs::write(source.path().join(name), "x").unwrap();
        set_mtime(&source.path().join(name), seconds, nanos);
    }
    set_mtime(&source.path().join("link"), 5, 6);
    set_mtime(&source.path().join("dir-755"), 7, 8);
    chmod(source.path(), 0o750);
    set_mtime(source.path(), 9, 10);
    let (_target, files) = there_and_back(source.path());
    assert_eq!(files[b"dir-755".as_slice()].metadata.mtime, store::Time { seconds: 7, nanos: 8 });
    assert_eq!(files[b"link".as_slice()].metadata.uid, 12);
}

#[test]
fn links_devices_pipes_and_sockets_come_back() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("a"), "several names").unwrap();
    fs::hard_link(at("a"), at("b")).unwrap();
    fs::hard_link(at("a"), at("sub/c")).unwrap();
    symlink("a", at("link")).unwrap();
    fs::hard_link(at("link"), at("sub/link-again")).unwrap();
    symlink("/nowhere/at/all", at("dangling")).unwrap();
    symlink("..", at("sub/up")).unwrap();
    symlink(OsStr::from_bytes(b"\xff odd"), at("odd")).unwrap();
    symlink("x".repeat(4000), at("long")).unwrap();
    let special = [
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
        ("pipe", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
    ];
    for (name, kind, number) in special {
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), number).unwrap();
    }
    fs::hard_link(at("pipe"), at("sub/pipe-again")).unwrap();
    // A file with another name outside of the backup has one name inside.
    let outside = tempfile::tempdir_in(source.path().parent().unwrap()).unwrap();
    fs::write(at("shared"), "also outside").unwrap();
    fs::hard_link(at("shared"), outside.path().join("name")).unwrap();
    let (target, files) = there_and_back(source.path());
    assert_eq!(files[b"sub/c".as_slice()].link, Some(b"a".to_vec()));
    assert_eq!(files[b"shared".as_slice()].link, None);
    let inode = |name: &str| fs::symlink_metadata(target.path().join(name)).unwrap();
    assert_eq!(inode("a").ino(), inode("sub/c").ino());
    assert_eq!(inode("a").nlink(), 3);
    assert_eq!(inode("disk").rdev(), rustix::fs::makedev(259, 70_000));
}

#[test]
fn extended_attributes_acls_and_capabilities_come_back() {
    let source = tempfile::tempdir().unwrap();
    let (file, directory) = (source.path().join("file"), source.path().join("directory"));
    fs::write(&file, "x").unwrap();
    fs::create_dir(&directory).unwrap();
    set_xattr(&file, "user.empty", b"");
    set_xattr(&file, "user.binary", &[0, 255, 10, 0]);
    set_xattr(&file, "user.long", &[7; 3000]);
    set_xattr(&file, "trusted.secret", b"root's");
    set_xattr(&directory, "user.of-a-directory", b"value");
    // struct vfs_cap_data, revision 2: cap_net_bind_service, effective.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&file, "security.capability", &capability);
    chown(&file, 1000, 1000);
    set_xattr(&file, "security.capability", &capability);
    // Version 2: user::rw-, user:1234:r--, group::r--, mask::r--, other::---.
    let entry = |tag: u16, rights: u16, id: u32| {
        [tag.to_le_bytes().as_slice(), &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let any = u32::MAX;
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, any),
        entry(2, 4, 1234),
        entry(4, 4, any),
        entry(16, 4, any),
        entry(32, 0, any),
    ]
    .concat();
    set_xattr(&file, "system.posix_acl_access", &acl);
    set_xattr(&directory, "system.posix_acl_access", &acl);
    set_xattr(&directory, "system.posix_acl_default", &acl);
    symlink("file", source.path().join("link")).unwrap();
    set_xattr(&source.path().join("link"), "trusted.of-a-link", b"value");
    let (_target, files) = there_and_back(source.path());
    let names: Vec<String> = files[b"file".as_slice()]
        .metadata
        .xattrs
        .iter()
        .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
        .collect();
    for name in ["security.capability", "system.posix_acl_access", "trusted.secret", "user.empty"] {
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
    }
}

#[test]
fn holes_stay_holes() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    let sparse = |name: &str, len: u64, pieces: &[(u64, usize)]| {
        let file = File::create(at(name)).unwrap();
        file.set_len(len).unwrap();
        for (offset, len) in pieces {
            file.write_all_at(&Random::new(*offset).bytes(*len), *offset).unwrap();
        }
    };
    sparse("all-hole", 1 << 30, &[]);
    sparse("huge", 1 << 40, &[(1 << 39, 5000)]);
    sparse("island", 64 << 20, &[(32 << 20, 100_000)]);
    sparse("both-ends", 16 << 20, &[(0, 4096), ((16 << 20) - 4096, 4096)]);
    sparse("many", 40 << 20, &(0..20).map(|n| (n << 21, 70_000)).collect::<Vec<_>>());
    sparse("odd", 3_000_001, &[(1_234_567, 7)]);
    sparse("tail", 10 << 20, &[(0, 1)]);
    sparse("small", 4000, &[]);
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let report = back_up(&store, source.path(), "web");
    assert!(report.stats.new_bytes < 4 << 20, "{} bytes of holes stored", report.stats.new_bytes);
    let target = tempfile::tempdir().unwrap();
    assert!(
        store::restore(&store, &report.snapshot, b"", target.path(), &Unwatched).unwrap().refused.is_empty()
    );
    for name in ["all-hole", "huge", "island", "both-ends", "many", "odd", "tail", "small"] {
        let (one, other) = (File::open(at(name)).unwrap(), File::open(target.path().join(name)).unwrap());
        other.sync_all().unwrap();
        let (before, after) = (one.metadata().unwrap(), other.metadata().unwrap());
        assert_eq!(after.len(), before.len(), "{name}");
        let (before, after) = (before.blocks() * 512, after.blocks() * 512);
        assert!(after <= before + (64 << 10), "{name} takes {after} bytes, took {before}");
        assert_same_data(&one, &other, name);
    }
}

/// Compares where either file has data.
fn assert_same_data(one: &File, other: &File, name: &str) {
    for file in [one, other] {
        let mut at = 0;
        while let Ok(start) = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start)).unwrap();
            let (mut left, mut right) = (vec![0; (end - start) as usize], vec![0; (end - start) as usize]);
            one.read_exact_at(&mut left, start).unwrap();
            other.read_exact_at(&mut right, start).unwrap();
            assert!(left == right, "{name} differs within {start}..{end}");
            at = end;
        }
    }
}

#[test]
fn one_file_and_one_subdirectory_can_be_backed_up_and_restored_alone() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("sub")).unwrap();
    fs::write(source.path().join("sub/file"), "inside").unwrap();
    fs::write(source.path().join("single"), "alone").unwrap();
    fs::hard_link(source.path().join("single"), source.path().join("twin")).unwrap();
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let single = back_up(&store, &source.path().join("single"), "single");
    let files = files_of_store(&store, &single.snapshot).unwrap();
    assert_eq!(files[b"single".as_slice()].body, Body::File(b"alone".to_vec()));
    assert_eq!(files.len(), 2);
    let whole = back_up(&store, source.path(), "whole");
    let target = tempfile::tempdir().unwrap();
    let restore = |path: &[u8], name: &str| {
        store::restore(&store, &whole.snapshot, path, &target.path().join(name), &Unwatched)
    };
    assert!(restore(b"sub", "directory").unwrap().refused.is_empty());
    assert_eq!(fs::read_to_string(target.path().join("directory/file")).unwrap(), "inside");
    assert!(restore(b"/sub//file/", "file").unwrap().refused.is_empty());
    assert_eq!(fs::read_to_string(target.path().join("file")).unwrap(), "inside");
    assert!(restore(b"twin", "twin").unwrap().refused.is_empty());
    assert_eq!(fs::read_to_string(target.path().join("twin")).unwrap(), "alone");
    assert_eq!(restore(b"absent", "absent").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(restore(b"sub/file/below", "absent").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(restore(b"", "directory").unwrap_err().kind(), Kind::Conflict, "it is not empty");
    assert_eq!(restore(b"twin", "twin").unwrap_err().kind(), Kind::Conflict, "it is there");
    assert_eq!(fs::read_to_string(target.path().join("twin")).unwrap(), "alone");
}

/// There and back on a stack that holds 400 bytes a level: neither way may recurse.
#[test]
fn deep_trees_need_no_stack() {
    let small = std::thread::Builder::new().stack_size(256 << 10);
    small.spawn(deep_tree_there_and_back).unwrap().join().unwrap();
}

fn deep_tree_there_and_back() {
    let source = tempfile::tempdir().unwrap();
    let levels = 640;
    let mut deep = source.path().to_owned();
    for _ in 0..levels {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("f"), "at the bottom").unwrap();
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let report = back_up(&store, source.path(), "web");
    assert_eq!(report.directories, levels as u64 + 1);
    let files = files_of_store(&store, &report.snapshot).unwrap();
    assert_eq!(files.len(), levels + 2);
    let target = tempfile::tempdir().unwrap();
    assert!(
        store::restore(&store, &report.snapshot, b"", target.path(), &Unwatched).unwrap().refused.is_empty()
    );
    assert_same(&files_of_host(source.path()), &files_of_host(target.path()));
    assert_clean(&store, "a deep tree");
}

/// A tree that a hostile writer may store: a name twice, first as a link that leads out, then as a directory.
#[test]
fn a_hostile_tree_reaches_nothing_outside_the_target() {
    let place = tempfile::tempdir().unwrap();
    let (target, outside) = (place.path().join("target"), place.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let inode = |node: Node| Inode { metadata: Metadata { mode: 0o755, ..Metadata::default() }, node };
    let own = |name: &str, node: Node| Entry { name: name.into(), inode: EntryInode::Own(inode(node)) };
    let inner =
        writer.put_directory(&[own("file", Node::File(Content::inline(b"escaped".to_vec())))]).unwrap();
    let link = own("evil", Node::Symlink(b"../outside".to_vec()));
    let link_again = own("evil/file", Node::Fifo);
    assert!(writer.put_directory(&[link.clone(), link_again]).is_err(), "no name holds a slash");
    let doubled = join(&[link, own("evil", Node::Directory(inner))]);
    let climbing = rename(&join(&[own("xx", Node::Directory(inner))]), b"xx", b"..");
    let absolute = rename(&join(&[own("/etc", Node::Directory(inner))]), b"/etc", b"/etc");
    for (number, record) in [doubled, climbing, absolute].into_iter().enumerate() {
        let directory = DirectoryId::from(writer.put_chunk(&record).unwrap());
        let root = TreeRoot { metadata: Metadata::default(), directory, links: Default::default() };
        let tree = Some(writer.put_tree(&root).unwrap());
        let id = writer.commit("evil", SnapshotDraft { tree, ..SnapshotDraft::default() }).unwrap();
        let target = target.join(number.to_string());
        store::restore(&store, &id, b"", &target, &Unwatched).unwrap_err();
        assert!(fs::read_dir(&outside).unwrap().next().is_none(), "tree {number} wrote outside");
        assert!(!place.path().join("target/file").exists(), "tree {number} wrote outside");
    }
}

/// A directory record of entries that no encoder would accept together: each encoded alone where it can be, then
/// joined.
fn join(entries: &[Entry]) -> Vec<u8> {
    let mut records = Vec::new();
    let mut out = Encoder::new();
    out.bytes(b"TDIR").u16(1).u16(0).count(entries.len());
    for entry in entries {
        let harmless = Entry { name: vec![b'n'; entry.name.len()], ..entry.clone() };
        let alone = store::tree::encode_directory(std::slice::from_ref(&harmless)).unwrap();
        out.count(records.len());
        records.extend(rename(&alone[16..], &harmless.name, &entry.name));
    }
    out.bytes(&records);
    out.finish()
}

/// The first `from` in a record becomes `to`.
fn rename(record: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = record.windows(from.len()).position(|window| window == from).unwrap();
    [&record[..at], to, &record[at + from.len()..]].concat()
}
