//! Requests during a freeze, which holds changes back, and the snapshot of a file that is written all the time.

use crate::HELPER;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tests::hold::Hold;
use tests::snapfs_mount::{Served, World};

/// More than a mount has threads.
const CALLERS: usize = 9;
/// A caller that waits longer for an answer waits for the freeze.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const BLOCK: usize = 4096;
/// Odd, so that the blocks of a file are written in an order that meets each of them once.
const STRIDE: u64 = 40_503;

/// Lets a held freeze go on, also when the test fails.
struct Released<'a>(&'a Hold);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Makes one change of each kind.
fn change(served: &Served, caller: usize) {
    let directory = served.path(&format!("busy-{caller}"));
    let file = directory.join("file");
    let open = || File::options().write(true).open(&file).unwrap();
    match caller {
        0 => drop(File::create(directory.join("new")).unwrap()),
        1 => fs::remove_file(&file).unwrap(),
        2 => fs::rename(&file, directory.join("renamed")).unwrap(),
        3 => fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap(),
        4 => open().set_len(3).unwrap(),
        5 => symlink("target", directory.join("link")).unwrap(),
        6 => open().sync_all().unwrap(),
        _ => open().write_all_at(&vec![caller as u8; 1 << 20], 0).unwrap(),
    }
}

/// Waits until a thread of this process is blocked in the kernel with a change.
fn await_standing(thread: u32) {
    let state = || fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    let waits = || state().rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('R'));
    while !waits() {
        std::thread::yield_now();
    }
}

/// All calls that only read, of names not looked up before.
fn read_all(served: &Served) {
    let quiet = served.path("quiet");
    assert_eq!(fs::read_dir(&quiet).unwrap().count(), 20);
    for number in 0..20 {
        assert!(fs::read(quiet.join(format!("{number}"))).unwrap() == vec![number; 20_000]);
    }
    assert!(fs::metadata(quiet.join("not there")).is_err());
    assert_eq!(
        rustix::fs::seek(File::open(quiet.join("1")).unwrap(), rustix::fs::SeekFrom::Hole(0)),
        Ok(20_000)
    );
}

#[test]
fn reading_goes_on_while_more_changes_wait_for_a_freeze_than_the_mount_has_threads() {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::create_dir(source.join("quiet")).unwrap();
    (0..20)
        .for_each(|number| fs::write(source.join(format!("quiet/{number}")), vec![number; 20_000]).unwrap());
    for caller in 0..CALLERS {
        fs::create_dir(source.join(format!("busy-{caller}"))).unwrap();
        fs::write(source.join(format!("busy-{caller}/file")), "before").unwrap();
    }
    world.backup(&source, "base");
    let hold = Hold::in_directory(world.directory.path());
    hold.make();
    let served = world.mount("base", "mnt", "upper", &["--hold", world.directory.path().to_str().unwrap()]);
    fs::write(served.path("changed"), "before the freeze").unwrap();
    let snapshot = std::thread::scope(|scope| {
        let served = &served;
        let freeze = scope.spawn(|| served.freeze("base").snapshot);
        hold.wait();
        let released = Released(&hold);
        let (standing, threads) = mpsc::channel();
        for caller in 0..CALLERS {
            let standing = standing.clone();
            scope.spawn(move || {
                // The file is looked up before, so that only the change is asked for.
                fs::metadata(served.path(&format!("busy-{caller}/file"))).unwrap();
                standing.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
                change(served, caller);
            });
        }
        threads.iter().take(CALLERS).for_each(await_standing);
        let (answered, answers) = mpsc::channel();
        scope.spawn(move || {
            read_all(served);
            answered.send(()).unwrap();
        });
        answers.recv_timeout(ANSWER_MAX).expect("reading does not wait for the freeze");
        drop(released);
        freeze.join().unwrap()
    });
    // All waiting changes were done, and are not in the snapshot.
    assert_changed(&served.mountpoint);
    let restored = world.restore(&snapshot, "restored");
    assert_eq!(fs::read(restored.join("changed")).unwrap(), b"before the freeze");
    for caller in 0..CALLERS {
        let directory = restored.join(format!("busy-{caller}"));
        assert_eq!(fs::read(directory.join("file")).unwrap(), b"before");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }
    served.kill();
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_changed(&served.mountpoint);
    served.unmount();
}

fn assert_changed(root: &Path) {
    let busy = |caller: usize, name: &str| root.join(format!("busy-{caller}/{name}"));
    assert!(busy(0, "new").exists() && busy(5, "link").is_symlink());
    assert!(!busy(1, "file").exists() && !busy(2, "file").exists() && busy(2, "renamed").exists());
    assert_eq!(fs::metadata(busy(3, "file")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read(busy(4, "file")).unwrap(), b"bef");
    for caller in 7..CALLERS {
        assert!(fs::read(busy(caller, "file")).unwrap() == vec![caller as u8; 1 << 20]);
    }
}

/// Write number `number` fills one block with its number.
fn write_number(file: &File, number: u64, blocks: u64) {
    let place = number.wrapping_mul(STRIDE) % blocks * BLOCK as u64;
    file.write_all_at(&number.to_le_bytes().repeat(BLOCK / 8), place).unwrap();
}

/// The blocks after all writes up to `last`, and no later one.
fn numbers_after(last: u64, blocks: u64) -> Vec<u64> {
    let mut numbers = vec![0; blocks as usize];
    for number in last.saturating_sub(blocks - 1)..=last {
        numbers[(number.wrapping_mul(STRIDE) % blocks) as usize] = number;
    }
    numbers
}

#[test]
fn a_large_file_that_is_written_all_the_time_is_frozen_as_it_was_at_one_moment() {
    let len_mib = if tests::is_long() { 1024 } else { 256 };
    let blocks = (len_mib << 20) / BLOCK as u64;
    let world = World::with_empty_base(HELPER);
    let served = world.mount("base", "mnt", "upper", &[]);
    let file = File::create(served.path("large")).unwrap();
    // All of it at once: the numbers that the first writes would have left.
    let first: Vec<u8> = numbers_after(blocks - 1, blocks)
        .into_iter()
        .flat_map(|number| number.to_le_bytes().repeat(BLOCK / 8))
        .collect();
    file.write_all_at(&first, 0).unwrap();
    drop(first);
    let stop = AtomicBool::new(false);
    let snapshots = std::thread::scope(|scope| {
        let (file, stop) = (&file, &stop);
        scope.spawn(move || {
            for number in blocks.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                write_number(file, number, blocks);
            }
        });
        let snapshots: Vec<_> = (0..2).map(|_| served.freeze("base").snapshot).collect();
        stop.store(true, Ordering::Relaxed);
        snapshots
    });
    let mut previous = 0;
    for (round, snapshot) in snapshots.iter().enumerate() {
        let restored = fs::read(world.restore(snapshot, &format!("restored {round}")).join("large")).unwrap();
        let numbers: Vec<u64> = restored
            .chunks(BLOCK)
            .map(|block| {
                assert!(block.chunks(8).all(|number| number == &block[..8]), "a write by half");
                u64::from_le_bytes(block[..8].try_into().unwrap())
            })
            .collect();
        let last = numbers.iter().copied().max().unwrap();
        assert!(last >= previous, "snapshot {round} is later than the one before");
        assert!(numbers == numbers_after(last, blocks), "snapshot {round} is one moment: after write {last}");
        previous = last;
    }
    assert!(previous >= blocks, "the writer wrote");
    drop(file);
    served.unmount();
}
