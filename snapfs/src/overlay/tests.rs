//! The file system without a kernel: which changes outlive a crash, a power cut and a freeze that was cut short.

mod short;

use super::*;
use crate::caller::Caller;
use crate::change::{Attributes, NewBody};
use crate::journal::{self, Header};
use crate::passes::Passes;
use crate::testing;
use crate::upper::boot_id;
use rustix::fs::FallocateFlags;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use store::{BackupOptions, Kind, SnapshotId, StoreConfig, Unwatched, clock};

struct World {
    directory: tempfile::TempDir,
    store: Store,
    base: SnapshotId,
}

impl World {
    /// A base with `a/file` of three blocks of 1, a file `b` with two names, and a directory `c`.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        std::fs::create_dir_all(source.join("a")).unwrap();
        std::fs::create_dir_all(source.join("c")).unwrap();
        std::fs::write(source.join("a/file"), vec![1; 3 * 4096]).unwrap();
        std::fs::write(source.join("b"), "linked").unwrap();
        std::fs::hard_link(source.join("b"), source.join("c/b")).unwrap();
        let store = Store::init(&StoreConfig::directory(&directory.path().join("store"))).unwrap();
        let mut writer = store.writer("test").unwrap();
        let report =
            store::backup(&mut writer, &source, "base", &BackupOptions::default(), &Unwatched).unwrap();
        drop(writer);
        Self { directory, store, base: report.snapshot }
    }

    fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }

    fn open(&self) -> Overlay {
        Overlay::open(&self.store, &self.base, &self.upper(), false).unwrap()
    }

    /// Makes the journal look as if the machine had been rebooted since.
    fn reboot(&self) {
        let path = journal::path_in(&self.upper());
        let mut frames = Vec::new();
        let mut keep = |_: u64, payload: &[u8]| {
            frames.push(payload.to_vec());
            Ok(())
        };
        journal::scan(&path, &boot_id().unwrap(), &mut keep).unwrap();
        let header = journal::read_header(&path).unwrap().unwrap();
        Journal::replace(&path, &Header { boot: [7; 16], ..header }, frames.into_iter()).unwrap();
    }
}

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

fn find(overlay: &Overlay, path: &str) -> Option<Stat> {
    path.split('/').try_fold(overlay.stat(NodeId::ROOT).unwrap(), |above, name| {
        overlay.lookup(above.id, name.as_bytes()).unwrap()
    })
}

fn node(overlay: &Overlay, path: &str) -> NodeId {
    find(overlay, path).unwrap_or_else(|| panic!("{path} is there")).id
}

fn content(overlay: &Overlay, path: &str) -> Vec<u8> {
    overlay.read(node(overlay, path), 0, 1 << 20).unwrap()
}

fn make(overlay: &Overlay, parent: NodeId, name: &str, body: NewBody) -> NodeId {
    overlay.make(parent, name.as_bytes(), 0o644, CALLER, body).unwrap().id
}

#[test]
fn whatever_was_answered_is_there_after_the_process_dies() {
    let world = World::new();
    let overlay = world.open();
    let file = node(&overlay, "a/file");
    overlay.write(file, 4096 + 10, b"two", false).unwrap();
    let new = make(&overlay, node(&overlay, "c"), "new", NewBody::File);
    overlay.write(new, 5000, b"sparse", false).unwrap();
    overlay.unlink(NodeId::ROOT, b"b").unwrap();
    overlay.rename((NodeId::ROOT, b"a"), (node(&overlay, "c"), b"moved"), RenameMode::Replace, None).unwrap();
    drop(overlay);
    let overlay = world.open();
    let mut expected = vec![1; 3 * 4096];
    expected[4106..4109].copy_from_slice(b"two");
    assert_eq!(content(&overlay, "c/moved/file"), expected);
    assert_eq!(content(&overlay, "c/new"), [&[0; 5000][..], b"sparse"].concat());
    assert_eq!(content(&overlay, "c/b"), b"linked");
    assert_eq!(find(&overlay, "c/b").unwrap().attributes.nlink, 1);
    assert_eq!((find(&overlay, "a"), find(&overlay, "b")), (None, None));
    assert_eq!(node(&overlay, "c/moved/file"), file, "the number of a changed node stays");
}

#[test]
fn after_a_power_cut_synced_writes_are_there_and_unsynced_ones_are_gone_completely() {
    let world = World::new();
    let overlay = world.open();
    let file = node(&overlay, "a/file");
    overlay.write(file, 0, b"synced", false).unwrap();
    overlay.sync(file, false).unwrap();
    overlay.write(file, 2 * 4096, b"not synced", false).unwrap();
    let new = make(&overlay, NodeId::ROOT, "new", NewBody::File);
    overlay.write(new, 0, b"not synced", false).unwrap();
    drop(overlay);
    // A possible effect of a power cut on bytes that were never synced.
    let data = world.upper().join(format!("data/{:016x}", file.0));
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[2 * 4096..].fill(0xee);
    std::fs::write(&data, bytes).unwrap();
    std::fs::remove_file(world.upper().join(format!("data/{:016x}", new.0))).unwrap();
    world.reboot();
    for _ in 0..2 {
        let overlay = world.open();
        let mut expected = vec![1; 3 * 4096];
        expected[..6].copy_from_slice(b"synced");
        assert_eq!(content(&overlay, "a/file"), expected);
        assert_eq!(content(&overlay, "new"), b"", "its name was in the journal");
    }
}

#[test]
fn a_freeze_that_is_cut_short_after_its_commit_is_finished_by_the_next_mount() {
    let world = World::new();
    let overlay = world.open();
    overlay.write(node(&overlay, "a/file"), 0, b"frozen", false).unwrap();
    let mut writer = world.store.writer("test").unwrap();
    let (report, _) =
        overlay.commit_changes(&mut writer, "base", BTreeMap::new(), Passes::new(&overlay)).unwrap();
    drop((writer, overlay));
    let over_new = Overlay::open(&world.store, &report.snapshot, &world.upper(), false).unwrap();
    assert!(!over_new.has_changes(), "they are in the snapshot");
    assert_eq!(&content(&over_new, "a/file")[..6], b"frozen");
    make(&over_new, NodeId::ROOT, "after", NewBody::File);
    drop(over_new);
    let error = Overlay::open(&world.store, &world.base, &world.upper(), false).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "the upper is over the new snapshot now");
}

#[test]
fn a_freeze_that_is_cut_short_and_written_to_again_still_belongs_to_the_old_base() {
    let world = World::new();
    let overlay = world.open();
    overlay.write(node(&overlay, "a/file"), 0, b"frozen", false).unwrap();
    let mut writer = world.store.writer("test").unwrap();
    let (report, _) =
        overlay.commit_changes(&mut writer, "base", BTreeMap::new(), Passes::new(&overlay)).unwrap();
    drop(writer);
    overlay.write(node(&overlay, "a/file"), 0, b"later!", false).unwrap();
    drop(overlay);
    let error = Overlay::open(&world.store, &report.snapshot, &world.upper(), false).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    let overlay = world.open();
    assert_eq!(&content(&overlay, "a/file")[..6], b"later!");
}

#[test]
fn an_upper_serves_one_mount_of_one_base_of_one_store() {
    let world = World::new();
    let overlay = world.open();
    let again = Overlay::open(&world.store, &world.base, &world.upper(), false).unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict, "{again}");
    make(&overlay, NodeId::ROOT, "new", NewBody::File);
    drop(overlay);
    let other = World::new();
    let foreign = Overlay::open(&other.store, &other.base, &world.upper(), false).unwrap_err();
    assert_eq!(foreign.kind(), Kind::Conflict, "{foreign}");
    assert_eq!(base_of(&world.upper()).unwrap(), Some((world.store.id(), world.base)));
    drop(other.open());
    let empty = Overlay::open(&world.store, &world.base, &other.upper(), false).unwrap();
    assert!(!empty.has_changes(), "an upper without changes may be used for anything");
    assert_eq!(base_of(Path::new("/nonexistent")).unwrap(), None);
}

#[test]
fn a_damaged_journal_is_refused_with_a_clear_error() {
    let world = World::new();
    let overlay = world.open();
    for name in ["x", "y", "z"] {
        make(&overlay, NodeId::ROOT, name, NewBody::File);
    }
    drop(overlay);
    let path = journal::path_in(&world.upper());
    let intact = std::fs::read(&path).unwrap();
    for byte in [4, 40, 100, 130] {
        let mut damaged = intact.clone();
        damaged[byte] ^= 0x40;
        std::fs::write(&path, damaged).unwrap();
        let error = Overlay::open(&world.store, &world.base, &world.upper(), false).unwrap_err();
        assert!(matches!(error.kind(), Kind::Corrupt | Kind::Invalid), "byte {byte}: {error}");
    }
}

#[test]
fn a_compacted_journal_replays_to_the_same_state() {
    let world = World::new();
    let overlay = world.open();
    let file = node(&overlay, "a/file");
    overlay.write(file, 4096 + 10, b"two", false).unwrap();
    overlay.allocate(file, 8192..12288, FallocateFlags::ZERO_RANGE).unwrap();
    overlay.set_xattr(file, b"user.x", b"value", rustix::fs::XattrFlags::empty(), &CALLER).unwrap();
    overlay.unlink(node(&overlay, "c"), b"b").unwrap();
    overlay.unlink(NodeId::ROOT, b"b").unwrap();
    let directory = make(&overlay, node(&overlay, "c"), "made", NewBody::Directory);
    overlay.rename((node(&overlay, "a"), b"file"), (directory, b"moved"), RenameMode::Replace, None).unwrap();
    overlay.rmdir(NodeId::ROOT, b"a").unwrap();
    overlay.link(file, NodeId::ROOT, b"again").unwrap();
    make(&overlay, directory, "pipe", NewBody::Fifo);
    make(&overlay, directory, "symlink", NewBody::Symlink(b"../x".to_vec()));
    let before: HashSet<Vec<u8>> = checkpoint(&overlay);
    overlay.sync_everything().unwrap();
    overlay.compact(&mut overlay.lock()).unwrap();
    drop(overlay);
    let overlay = world.open();
    assert_eq!(checkpoint(&overlay), before);
    let mut expected = vec![1; 3 * 4096];
    expected[4106..4109].copy_from_slice(b"two");
    expected[2 * 4096..].fill(0);
    assert_eq!(content(&overlay, "again"), expected);
    assert_eq!(overlay.xattr(file, b"user.x").unwrap(), b"value");
}

/// All differences from the base, except whether data is synced.
fn checkpoint(overlay: &Overlay) -> HashSet<Vec<u8>> {
    let pieces = overlay.lock().state.checkpoint();
    let lasting = |change: &&Change| !matches!(change, Change::Synced { .. });
    pieces.iter().map(|changes| encode_all(changes.iter().filter(lasting))).collect()
}

#[test]
fn node_numbers_are_the_same_at_every_mount_of_a_base() {
    let world = World::new();
    let number = |path: &str| node(&world.open(), path);
    for path in ["a", "a/file", "b", "c"] {
        assert_eq!(number(path), number(path), "{path}");
    }
    assert_eq!(number("b"), number("c/b"), "two names of one file");
}

/// However many pieces a file is in, each part of a checkpoint fits into a frame, and all of them make the file again.
#[test]
fn a_checkpoint_of_a_very_fragmented_file_is_in_parts() {
    let world = World::new();
    let overlay = world.open();
    let file = make(&overlay, NodeId::ROOT, "fragments", NewBody::File);
    let state = &mut overlay.lock().state;
    state.apply(Change::Truncate { node: file, len_bytes: 3_000_000 * 8192 }).unwrap();
    for block in 0..3_000_000_u64 {
        state.apply(Change::Write { node: file, range: block * 8192..block * 8192 + 4096 }).unwrap();
    }
    let parts = state.checkpoint();
    let longest = parts.iter().map(|part| encode_all(part.iter()).len()).max().unwrap();
    assert!(longest < journal::PAYLOAD_MAX / 4, "{longest}");
    let mut again = State::new(state.base.clone());
    parts.into_iter().flatten().for_each(|change| again.apply(change).unwrap());
    let layout = |state: &State| state.node(file).unwrap().file().unwrap().layout.clone();
    assert!(layout(&again) == layout(state));
}

/// fdatasync(2) syncs the journal only if the bytes need it to be found.
#[test]
fn bytes_that_replace_durable_ones_are_durable_without_the_journal() {
    let world = World::new();
    let overlay = world.open();
    let file = node(&overlay, "a/file");
    let write = |offset: u64, byte: u8| {
        overlay.write(file, offset, &[byte; 4096], false).unwrap();
        overlay.sync(file, true).unwrap();
        let inner = overlay.lock();
        let journal = inner.journal.as_ref().unwrap();
        (journal.unsynced().is_none(), journal.len_bytes())
    };
    assert!(write(0, 2).0, "the upper held nothing here");
    assert!(!write(0, 3).0);
    assert!(write(4096, 4).0);
    assert!(write(3 * 4096, 5).0, "the file is longer now");
    let cut = SetAttributes { len_bytes: Some(3 * 4096 + 100), ..SetAttributes::default() };
    overlay.set_attributes(file, cut, &Caller::default()).unwrap();
    let (_, durable) = write(8192, 6);
    assert!(!write(0, 7).0);
    drop(overlay);
    // The power cut removes all of the journal that was not durable.
    let journal = std::fs::File::options().write(true).open(journal::path_in(&world.upper())).unwrap();
    journal.set_len(durable).unwrap();
    world.reboot();
    let expected = [&[7; 4096][..], &[4; 4096], &[6; 4096], &[5; 100]].concat();
    assert_eq!(content(&world.open(), "a/file"), expected);
}

/// A change of a file under test, and the same of plain bytes.
fn change_at_random(overlay: &Overlay, file: NodeId, plain: &mut Vec<u8>, next: &mut dyn FnMut(u64) -> u64) {
    let (offset, len) = (next(700_000), next(150_000) + 1);
    let end = offset + len;
    match next(5) {
        0 => {
            let set = SetAttributes { len_bytes: Some(offset), ..SetAttributes::default() };
            overlay.set_attributes(file, set, &Caller::default()).unwrap();
            plain.resize(offset as usize, 0);
        }
        1 => {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            overlay.allocate(file, offset..end, mode).unwrap();
            let range = plain.len().min(offset as usize)..plain.len().min(end as usize);
            plain[range].fill(0);
        }
        _ => {
            let seed = next(u64::MAX);
            let words = (0..len.div_ceil(8)).map(|word| (word ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).take(len as usize).collect();
            overlay.write(file, offset, &bytes, false).unwrap();
            plain.resize(plain.len().max(end as usize), 0);
            plain[offset as usize..end as usize].copy_from_slice(&bytes);
        }
    }
}

#[test]
fn a_file_that_changes_between_all_passes_is_frozen_with_the_bytes_it_has_at_the_end() {
    let world = World::new();
    for seed in 1..25_u64 {
        let mut next = testing::numbers(seed);
        let upper = world.directory.path().join(format!("upper-{seed}"));
        let overlay = Overlay::open(&world.store, &world.base, &upper, false).unwrap();
        let files = [node(&overlay, "a/file"), make(&overlay, NodeId::ROOT, "new", NewBody::File)];
        let mut plain = [vec![1; 3 * 4096], Vec::new()];
        let mut writer = world.store.writer("test").unwrap();
        let mut passes = Passes::new(&overlay);
        for round in 0..6 {
            for (file, plain) in files.iter().zip(&mut plain) {
                (0..next(4)).for_each(|_| change_at_random(&overlay, *file, plain, &mut next));
            }
            // The last changes are left for the standstill.
            if round < 5 {
                passes.run(&mut writer).unwrap();
            }
        }
        let stopped = overlay.stop_changes();
        let name = format!("ref-{seed}");
        let (report, _) = overlay.commit_changes(&mut writer, &name, BTreeMap::new(), passes).unwrap();
        drop(stopped);
        let restored = world.directory.path().join(format!("restored-{seed}"));
        assert!(
            store::restore(&world.store, &report.snapshot, b"", &restored, &Unwatched)
                .unwrap()
                .refused
                .is_empty()
        );
        for (name, plain) in ["a/file", "new"].iter().zip(&plain) {
            assert!(std::fs::read(restored.join(name)).unwrap() == *plain, "{name}, seed {seed}");
        }
    }
}

/// An application that writes faster than the store stores is slowed down before all changes wait.
#[test]
fn little_is_left_for_the_standstill_however_fast_a_file_is_written() {
    const LEN: u64 = 32 << 20;
    let world = World::new();
    let overlay = Arc::new(world.open());
    let file = make(&overlay, NodeId::ROOT, "hot", NewBody::File);
    // Each word differs from all others, so that no two chunks are the same.
    let words = (0..LEN / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    overlay.write(file, 0, &bytes, false).unwrap();
    let stop = AtomicBool::new(false);
    let mut writer = world.store.writer("test").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // As the kernel does it: one after the other, each when the one before is answered.
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (overlay, (answer, answered)) = (overlay.clone(), std::sync::mpsc::channel());
                overlay.clone().gate().run(128 << 10, move || {
                    let place = number.wrapping_mul(40_503) * 4096 % LEN;
                    overlay.write(file, place, &number.to_le_bytes(), false).unwrap();
                    answer.send(()).unwrap();
                });
                answered.recv().unwrap();
            }
        });
        let mut passes = Passes::new(&overlay);
        passes.run(&mut writer).unwrap();
        let left = passes.left_bytes();
        stop.store(true, Ordering::Relaxed);
        drop(passes);
        assert!(left <= 4 << 20, "{left} bytes of {LEN} are left");
    });
}

/// After a failed sync no later sync may succeed.
#[test]
fn a_poisoned_mount_says_so_to_every_sync() {
    let world = World::new();
    let overlay = world.open();
    make(&overlay, NodeId::ROOT, "name", NewBody::File);
    overlay.poison("a test");
    assert_eq!(overlay.sync_names(), Err(Errno::IO));
    assert_eq!(overlay.sync(NodeId::ROOT, false), Err(Errno::IO));
}

/// Files of the greatest length there is: their sum is more than any number of bytes that a snapshot can state.
#[test]
fn huge_files_freeze() {
    let world = World::new();
    let overlay = world.open();
    for name in ["one", "two", "three"] {
        let file = make(&overlay, NodeId::ROOT, name, NewBody::File);
        let set = SetAttributes { len_bytes: Some(i64::MAX as u64), ..SetAttributes::default() };
        overlay.set_attributes(file, set, &CALLER).unwrap();
    }
    let report = overlay.freeze("huge", BTreeMap::new()).unwrap();
    assert_eq!(world.store.snapshot(&report.snapshot).unwrap().totals.bytes, u64::MAX);
    overlay.unlink(NodeId::ROOT, b"one").unwrap();
    overlay.freeze("huge", BTreeMap::new()).unwrap();
}

/// The data of an open file without a name is kept once, not once for each freeze.
#[test]
fn freezes_beside_an_open_file_without_a_name_keep_no_more_each_time() {
    let world = World::new();
    let overlay = world.open();
    let file = node(&overlay, "a/file");
    overlay.unlink(node(&overlay, "a"), b"file").unwrap();
    let new = make(&overlay, NodeId::ROOT, "new", NewBody::File);
    overlay.unlink(NodeId::ROOT, b"new").unwrap();
    let sessions = || world.store.metadata_tier().list("sessions/").unwrap().len();
    let mut counts = Vec::new();
    for round in 0..5 {
        make(&overlay, NodeId::ROOT, &format!("round-{round}"), NewBody::File);
        overlay.freeze("frozen", BTreeMap::new()).unwrap();
        counts.push(sessions());
    }
    assert_eq!(counts[1..], [counts[0]; 4], "{counts:?}");
    assert_eq!(overlay.read(file, 0, 9).unwrap(), [1; 9]);
    overlay.forget(file, 2);
    overlay.forget(new, 1);
    assert_eq!(sessions(), counts[0] - 1);
}

/// A failed sync may have lost the writes since the previous one, whatever the page cache still shows.
#[test]
fn after_a_failed_sync_the_next_mount_has_what_was_durable() {
    let world = World::new();
    let overlay = world.open();
    let file = node(&overlay, "a/file");
    overlay.write(file, 0, &[2; 4096], false).unwrap();
    overlay.sync(file, false).unwrap();
    overlay.write(file, 4096, &[3; 4096], false).unwrap();
    overlay.sync_failed("a test");
    drop(overlay);
    for _ in 0..2 {
        let overlay = world.open();
        assert_eq!(content(&overlay, "a/file"), [[2; 4096], [1; 4096], [1; 4096]].concat());
        assert!(!overlay.upper().is_poisoned());
    }
}

/// Data files that may be of changes that never became durable are kept for inspection.
#[test]
fn changes_whose_journal_lost_its_begin_are_set_aside() {
    let world = World::new();
    for round in 1..3 {
        let overlay = world.open();
        let file = make(&overlay, NodeId::ROOT, "precious", NewBody::File);
        overlay.write(file, 0, b"precious", false).unwrap();
        overlay.sync(file, false).unwrap();
        drop(overlay);
        let path = journal::path_in(&world.upper());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..88].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        assert!(find(&world.open(), "precious").is_none());
        let lost = world.upper().join(format!("lost-{round}"));
        assert_eq!(std::fs::read(lost.join("journal")).unwrap(), bytes);
        let data = std::fs::read_dir(lost.join("data")).unwrap().next().unwrap().unwrap();
        assert!(std::fs::read(data.path()).unwrap().starts_with(b"precious"));
    }
}

/// Journals that no mount writes: each is refused, and none makes opening or freezing run forever.
#[test]
fn impossible_journals_are_refused() {
    let time = clock::now();
    let attributes =
        Attributes { mode: 0o755, uid: 0, gid: 0, nlink: 1, atime: time, mtime: time, ctime: time };
    let directory = |node| Change::Create { node: NodeId(node), body: NewBody::Directory, attributes };
    let entry = |parent, name: &str, node| Change::Entry {
        parent: NodeId(parent),
        name: name.as_bytes().to_vec(),
        node: Some(NodeId(node)),
    };
    let root = NodeId::ROOT.0;
    let bad_mode = Attributes { mode: 0o177_777, ..attributes };
    for changes in [
        vec![entry(root, "loop", root)],
        vec![directory(50), entry(root, "a", 50), entry(50, "b", 50)],
        vec![directory(50), entry(root, "a", 50), entry(root, "b", 50)],
        vec![directory(50), entry(root, "..", 50)],
        vec![directory(50), entry(root, "a/b", 50)],
        vec![Change::Create { node: NodeId(50), body: NewBody::File, attributes: bad_mode }],
        vec![Change::Create { node: NodeId::ROOT, body: NewBody::File, attributes }],
        vec![
            Change::Create { node: NodeId(50), body: NewBody::File, attributes },
            Change::Truncate { node: NodeId(50), len_bytes: u64::MAX },
        ],
    ] {
        let world = World::new();
        drop(world.open());
        let path = journal::path_in(&world.upper());
        let header = journal::read_header(&path).unwrap().unwrap();
        Journal::replace(&path, &header, std::iter::once(encode_all(changes.iter()))).unwrap();
        let refused = Overlay::open(&world.store, &world.base, &world.upper(), false);
        assert_eq!(refused.unwrap_err().kind(), Kind::Corrupt, "{changes:?}");
    }
}

/// A mount that refuses changes for another reason than a failed sync has lost no write, and its freeze neither.
#[test]
fn what_was_written_outlives_a_mount_that_refused_changes() {
    let world = World::new();
    let overlay = world.open();
    overlay.write(node(&overlay, "a/file"), 0, &[2; 4096], false).unwrap();
    overlay.poison("a test");
    drop(overlay);
    let overlay = world.open();
    assert_eq!(content(&overlay, "a/file"), [[2; 4096], [1; 4096], [1; 4096]].concat());
    // Cleared by a freeze whose mount was never rebased: the note of the earlier failure is gone, too.
    overlay.sync_failed("a test");
    drop(overlay);
    let overlay = world.open();
    overlay.write(node(&overlay, "a/file"), 4096, &[3; 4096], false).unwrap();
    let report = overlay.freeze("frozen", BTreeMap::new()).unwrap();
    overlay.upper().mark_poisoned();
    drop(overlay);
    let reopen = || Overlay::open(&world.store, &report.snapshot, &world.upper(), false).unwrap();
    let overlay = reopen();
    overlay.write(node(&overlay, "a/file"), 8192, &[4; 4096], false).unwrap();
    drop(overlay);
    assert_eq!(content(&reopen(), "a/file")[8192..], [4; 4096]);
}
