//! Sizes: the cost of a mount and of a write does not follow the size of the tree or of the file.

use crate::HELPER;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};
use store::{Content, Entry, EntryInode, Inode, Metadata, Node, SnapshotDraft, SnapshotId, TreeRoot};
use tests::snapfs_mount::World;

/// Length of each of many files: together they are much more than a mount may keep of them.
const SHORT_LEN: usize = 600;
/// How long it may take until memory is freed: the kernel has to report that it forgot 100,000 files, and some seconds
/// pass without a use.
const FREED_MAX: Duration = Duration::from_secs(60);
/// Memory that a mount may keep of a file that the kernel knows.
const KNOWN_FILE_MAX_BYTES: u64 = 520;
/// Growth over its start when it knows and keeps nothing: pages of its heap that are still in part used.
const LEFT_MAX_BYTES: u64 = 6 << 20;
/// Memory that it may take while it is read: 16 MiB of decoded frames, and its threads' buffers.
const READING_MAX_BYTES: u64 = 48 << 20;

fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| entry.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn a_write_into_a_large_file_costs_blocks() {
    let world = World::new(HELPER);
    let source = world.make("source");
    let large = vec![0x5a; 64 << 20];
    fs::write(source.join("large"), &large).unwrap();
    world.backup(&source, "base");
    let served = world.mount("base", "mnt", "upper", &[]);
    let file = File::options().read(true).write(true).open(served.path("large")).unwrap();
    for piece in 0..16_u64 {
        file.write_all_at(b"changed", piece * (4 << 20) + 4090).unwrap();
    }
    file.sync_all().unwrap();
    let data = disk_bytes(&served.upper.join("data"));
    // The file system below takes a block or two to remember where they are.
    assert!(data <= (16 * 2 + 4) * 4096, "16 writes over the edge of two blocks take {data} bytes");
    let mut expected = large;
    (0..16).for_each(|piece| expected[piece * (4 << 20) + 4090..][..7].copy_from_slice(b"changed"));
    assert!(fs::read(served.path("large")).unwrap() == expected);
    drop(file);
    let report = served.freeze("base");
    assert!(report.changed_bytes <= 16 * 2 * 4096, "{report:?}");
    assert_eq!(disk_bytes(&served.upper.join("data")), 0, "what is frozen needs no upper");
    assert!(fs::read(served.path("large")).unwrap() == expected);
    served.unmount();
}

/// The content of file `number` of each directory.
fn short_content(number: u32) -> Vec<u8> {
    vec![number as u8; SHORT_LEN]
}

/// A snapshot of 100 directories with 1000 files each, made without any file.
fn commit_many_files(world: &World) -> SnapshotId {
    let metadata = |mode| Metadata { mode, ..Metadata::default() };
    let mut writer = world.store.writer("test").unwrap();
    let mut directories = Vec::new();
    for directory in 0..100 {
        let file = |number: u32| {
            let node = Node::File(Content::inline(short_content(number)));
            let inode = Inode { metadata: metadata(0o644), node };
            Entry { name: format!("{number:04}").into_bytes(), inode: EntryInode::Own(inode) }
        };
        let id = writer.put_directory(&(0..1000).map(file).collect::<Vec<_>>()).unwrap();
        let inode = Inode { metadata: metadata(0o755), node: Node::Directory(id) };
        directories
            .push(Entry { name: format!("{directory:03}").into_bytes(), inode: EntryInode::Own(inode) });
    }
    let directory = writer.put_directory(&directories).unwrap();
    let root = TreeRoot { metadata: metadata(0o755), directory, links: BTreeMap::new() };
    let tree = writer.put_tree(&root).unwrap();
    let draft = SnapshotDraft { tree: Some(tree), files: 100_101, ..SnapshotDraft::default() };
    writer.commit("base", draft).unwrap()
}

#[test]
fn a_tree_of_a_hundred_thousand_files_is_mounted_without_reading_it() {
    let world = World::new(HELPER);
    let snapshot = commit_many_files(&world);
    let options = snapfs::MountOptions {
        snapshot,
        ref_name: "base".to_owned(),
        mountpoint: world.make("mnt"),
        upper: world.path("upper"),
        read_only: false,
        allow_other: false,
        release_memory: lazyload::release_free_memory,
    };
    let started = Instant::now();
    let mount = snapfs::mount(&world.store, options).unwrap();
    println!("mounting 100,000 files took {:?}", started.elapsed());
    let mountpoint = mount.mountpoint().to_owned();
    let listed = fs::read_dir(mountpoint.join("042")).unwrap().count();
    assert_eq!(listed, 1000);
    assert_eq!(fs::read(mountpoint.join("099/0999")).unwrap(), short_content(999));
    assert!(!mount.has_changes());
    fs::write(mountpoint.join("050/0500"), "changed").unwrap();
    assert!(mount.has_changes());
    let started = Instant::now();
    let report = mount.freeze("base", Default::default()).unwrap();
    println!("freezing one change of 100,000 files took {:?}", started.elapsed());
    assert!(report.changed_files <= 3, "{report:?}");
    let files = world.store.snapshot(&report.snapshot).unwrap().totals.files;
    assert_eq!(files, 100_101);
    mount.unmount().unwrap();
    mount.wait().unwrap();
}

/// Memory of a process's own: pages that no file has.
fn own_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Waits until a process takes at most so much memory of its own.
fn await_memory(pid: u32, bound: u64, mut meanwhile: impl FnMut()) {
    let started = Instant::now();
    while own_bytes(pid) > bound {
        meanwhile();
        let now = own_bytes(pid);
        assert!(started.elapsed() < FREED_MAX, "{now} bytes in memory, not {bound}");
        std::thread::yield_now();
    }
}

#[test]
fn what_a_mount_knew_of_files_goes_when_the_kernel_forgets_them() {
    let world = World::new(HELPER);
    commit_many_files(&world);
    let served = world.mount("base", "mnt", "upper", &[]);
    let idle = own_bytes(served.pid());
    let mut files = 0;
    for directory in fs::read_dir(&served.mountpoint).unwrap() {
        files += fs::read_dir(directory.unwrap().path())
            .unwrap()
            .filter(|file| file.as_ref().unwrap().metadata().unwrap().len() == SHORT_LEN as u64)
            .count();
    }
    assert_eq!(files, 100_000);
    let known = own_bytes(served.pid());
    assert!(known > idle + (30 << 20), "{idle} bytes idle, {known} with 100,000 files known");
    // Decoded frames expire by themselves.
    await_memory(served.pid(), idle + 100_000 * KNOWN_FILE_MAX_BYTES, || ());
    assert_eq!(fs::read(served.path("042/0042")).unwrap(), short_content(42));
    // A file used since the last call only loses its mark in this one, and the kernel reports what it forgot after it.
    let drop_caches = || fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    await_memory(served.pid(), idle + LEFT_MAX_BYTES, drop_caches);
    assert_eq!(fs::read(served.path("099/0999")).unwrap(), short_content(999));
    served.unmount();
}

#[test]
fn memory_for_reading_is_bounded_and_goes_some_seconds_after_the_last_read() {
    let world = World::new(HELPER);
    let source = world.make("source");
    let mut noise = vec![0; 160 << 20];
    blake3::Hasher::new().update(b"read").finalize_xof().fill(&mut noise);
    fs::write(source.join("large"), &noise).unwrap();
    world.backup(&source, "base");
    let served = world.mount("base", "mnt", "upper", &[]);
    let idle = own_bytes(served.pid());
    let file = File::open(served.path("large")).unwrap();
    let mut piece = vec![0; 1 << 20];
    let mut most = 0;
    for (number, expected) in noise.chunks(1 << 20).enumerate() {
        file.read_exact_at(&mut piece, (number as u64) << 20).unwrap();
        assert!(piece == *expected, "piece {number}");
        most = most.max(own_bytes(served.pid()));
    }
    assert!(most < idle + READING_MAX_BYTES, "{idle} bytes idle, {most} while 160 MiB were read");
    assert!(most > idle + (12 << 20), "{idle} bytes idle, {most} while 160 MiB were read");
    await_memory(served.pid(), idle + LEFT_MAX_BYTES, || ());
    drop(file);
    served.unmount();
}
