//! Freezing a mount that is in use.

use crate::HELPER;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use tests::snapfs_mount::World;
use tests::snapfs_tree::assert_same;

const RECORD_LEN: usize = 64;
const WHOLE_LEN: usize = 512 << 10;

fn record(number: u64) -> Vec<u8> {
    format!("{number:0width$}\n", width = RECORD_LEN - 1).into_bytes()
}

#[test]
fn a_snapshot_taken_while_a_writer_appends_is_a_prefix_of_what_it_wrote() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let stop = AtomicBool::new(false);
    let snapshots = std::thread::scope(|scope| {
        let (stop, served) = (&stop, &served);
        // Each record goes into one file and then into the other, so the second never has more than the first.
        scope.spawn(move || {
            let mut first = File::options().append(true).create(true).open(served.path("first")).unwrap();
            let mut second = File::options().append(true).create(true).open(served.path("second")).unwrap();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                first.write_all(&record(number)).unwrap();
                second.write_all(&record(number)).unwrap();
            }
        });
        // One write, one request: all of the file is of one number at any moment.
        scope.spawn(move || {
            let file = File::create(served.path("whole")).unwrap();
            for number in 0_u32.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&number.to_le_bytes().repeat(WHOLE_LEN / 4), 0).unwrap();
            }
        });
        let snapshots: Vec<_> = (0..12).map(|_| served.freeze("base").snapshot).collect();
        stop.store(true, Ordering::Relaxed);
        snapshots
    });
    let mut previous = 0;
    for (round, snapshot) in snapshots.iter().enumerate() {
        let restored = world.restore(snapshot, &format!("restored {round}"));
        let read = |name: &str| fs::read(restored.join(name)).unwrap_or_default();
        let (first, second) = (read("first"), read("second"));
        for content in [&first, &second] {
            assert_eq!(content.len() % RECORD_LEN, 0, "a write is in a snapshot completely or not at all");
            for (number, found) in content.chunks(RECORD_LEN).enumerate() {
                assert!(found == record(number as u64), "record {number} of snapshot {round}");
            }
        }
        let whole = read("whole");
        assert!(whole.is_empty() || whole.len() == WHOLE_LEN);
        assert!(
            whole.chunks(4).all(|number| number == &whole[..4]),
            "snapshot {round} has parts of two writes"
        );
        let (first, second) = (first.len() / RECORD_LEN, second.len() / RECORD_LEN);
        assert!(first == second || first == second + 1, "one moment: {first} and {second} records");
        assert!(first >= previous);
        previous = first;
    }
    assert!(previous > 0, "the writer wrote");
    served.unmount();
}

#[test]
fn a_freeze_costs_what_changed_since_the_last_one() {
    let world = World::new(HELPER);
    let source = world.make("source");
    let big: Vec<u8> = (0..16 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(source.join("big"), &big).unwrap();
    for directory in 0..20 {
        fs::create_dir(source.join(format!("d{directory}"))).unwrap();
        (0..50)
            .for_each(|file| fs::write(source.join(format!("d{directory}/{file}")), [file; 2000]).unwrap());
    }
    world.backup(&source, "base");
    let served = world.mount("base", "mnt", "upper", &[]);
    let file = File::options().read(true).write(true).open(served.path("big")).unwrap();
    file.write_all_at(b"four bytes or so", 5 << 20).unwrap();
    fs::write(served.path("d7/new"), "new").unwrap();
    let first = served.freeze("base");
    assert!(first.changed_bytes <= 8192, "only touched blocks are read again: {first:?}");
    assert!(first.new_bytes < 1 << 20, "chunks that were not touched are not stored again: {first:?}");
    file.write_all_at(b"more", 9 << 20).unwrap();
    let second = served.freeze("base");
    assert!(
        second.changed_bytes <= 4096 && second.changed_files <= 2,
        "not what the first one froze: {second:?}"
    );
    let third = served.freeze("base");
    assert_eq!((third.changed_files, third.changed_bytes), (0, 0));
    let parent = world.store.snapshot(&second.snapshot).unwrap().parent;
    assert_eq!(parent, Some(first.snapshot));
    let mut expected = big;
    expected[5 << 20..(5 << 20) + 16].copy_from_slice(b"four bytes or so");
    expected[9 << 20..(9 << 20) + 4].copy_from_slice(b"more");
    let restored = world.restore(&third.snapshot, "restored");
    assert!(fs::read(restored.join("big")).unwrap() == expected);
    assert_same(&served.mountpoint, &restored, "mount and snapshot");
    drop(file);
    served.unmount();
}

#[test]
fn a_freeze_can_go_to_another_ref_with_labels_and_the_mount_goes_on_over_it() {
    let world = World::with_empty_base(HELPER);
    let base = world.store.resolve("base").unwrap();
    let served = world.mount("base", "mnt", "upper", &[]);
    fs::write(served.path("file"), "one").unwrap();
    let labels = [("why".to_owned(), "a test".to_owned())].into();
    let report = served.client().freeze(Some("other"), &labels).unwrap();
    assert_eq!(world.store.resolve("other").unwrap(), report.snapshot);
    assert_eq!(world.store.resolve("base").unwrap(), base, "the ref that was mounted did not move");
    assert_eq!(world.store.snapshot(&report.snapshot).unwrap().labels, labels);
    let status = served.client().status().unwrap();
    assert_eq!((status.snapshot, status.dirty_files, status.pid), (report.snapshot, 0, served.pid()));
    fs::write(served.path("file"), "two").unwrap();
    served.unmount();
    let refused = world.try_mount("base", "mnt", "upper", &[]).err().unwrap();
    assert!(
        refused.contains(&report.snapshot.to_string()),
        "it says which snapshot the upper is over: {refused}"
    );
    let served = world.mount("other", "mnt", "upper", &[]);
    assert_eq!(fs::read(served.path("file")).unwrap(), b"two");
    let again = served.client().freeze(None, &Default::default()).unwrap();
    assert_eq!(
        world.store.resolve("other").unwrap(),
        again.snapshot,
        "without a name it goes where it came from"
    );
    served.unmount();
}

#[test]
fn a_freeze_while_another_process_writes_to_the_store_is_refused_and_nothing_is_lost() {
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    fs::write(served.path("file"), "kept").unwrap();
    let writer = world.store.writer("somebody else").unwrap();
    let error = served.client().freeze(Some("base"), &Default::default()).unwrap_err();
    assert_eq!(error.kind(), store::Kind::Conflict);
    assert!(error.to_string().contains("somebody else"), "{error}");
    drop(writer);
    fs::write(served.path("more"), "more").unwrap();
    let restored = world.restore(&served.freeze("base").snapshot, "restored");
    assert_eq!(fs::read(restored.join("file")).unwrap(), b"kept");
    served.unmount();
}
