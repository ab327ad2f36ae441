//! A real power cut: a file system that is shut down under a writing process, its journal unflushed, and mounted again.
//! Whatever the writer acknowledged before is there.

use crate::kill::{parse, start};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use store::{LocalTier, SnapshotId, Store, StoreConfig, Unwatched};
use tests::model::{Random, assert_clean, files_of_store, sample_files};

const ROUNDS: u64 = 24;
const SEED: u64 = 78;

/// An ext4 file system in a file, mounted while this lives.
struct Disk {
    image: PathBuf,
    mounted: PathBuf,
    _directory: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (image, mounted) = (directory.path().join("image"), directory.path().join("mounted"));
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        run("mkfs.ext4", &["-q", "-F"], &image);
        let disk = Self { image, mounted, _directory: directory };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", &self.image.display().to_string()], &self.mounted);
    }

    fn unmount(&self) {
        run("umount", &[], &self.mounted);
    }

    /// EXT4_IOC_SHUTDOWN without flushing the journal: from here on every operation fails and nothing more is written.
    fn cut_power(&self) {
        let script =
            "open(my $d, '<', $ARGV[0]) or die $!; my $f = pack('L', 2); ioctl($d, 0x8004587d, $f) or die $!";
        run("perl", &["-e", script], &self.mounted);
    }

    fn open(&self) -> Store {
        Store::open(&self.config()).unwrap()
    }

    fn config(&self) -> StoreConfig {
        StoreConfig {
            hot: Arc::new(LocalTier::new(self.mounted.join("store"))),
            warm: None,
            state: self.mounted.join("state"),
            cache_bytes: 1 << 20,
            level: 1,
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A failed test may leave it busy: detached, it goes when its last user does.
        let detached = Command::new("umount").arg("-l").arg(&self.mounted).status();
        assert!(detached.is_ok());
    }
}

/// Lets a writer run, cuts the power at a moment after its first acknowledgement, and gives all of them.
fn write_and_cut(disk: &Disk, first: u64, refs: &str, random: &mut Random) -> Vec<(u64, SnapshotId)> {
    let mut child = start(&disk.mounted, SEED, first, refs);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (send, acks) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        lines.map_while(Result::ok).for_each(|line| send.send(line).unwrap());
    });
    let mut told = vec![acks.recv_timeout(Duration::from_secs(60)).expect("the writer acknowledges")];
    let end = Instant::now() + Duration::from_micros(random.below(80_000) as u64);
    while let Ok(line) = acks.recv_timeout(end.saturating_duration_since(Instant::now())) {
        told.push(line);
    }
    disk.cut_power();
    let status = child.wait().unwrap();
    assert!(!status.success(), "a writer without power fails");
    reader.join().unwrap();
    told.extend(acks);
    told.iter().map(|line| parse(line)).collect()
}

#[test]
fn whatever_was_acknowledged_before_a_power_cut_is_there() {
    let disk = Disk::new();
    Store::init(&disk.config()).unwrap();
    let mut random = Random::new(SEED);
    let mut acknowledged: Vec<(u64, SnapshotId)> = Vec::new();
    for round in 0..ROUNDS {
        let next = acknowledged.last().map_or(0, |(version, _)| version + 1);
        // A ref that is new is linked under its name, one that is there is swapped.
        let refs = if round % 3 == 0 { "one" } else { "many" };
        acknowledged.extend(write_and_cut(&disk, next, refs, &mut random));
        disk.unmount();
        disk.mount();
        let store = disk.open();
        let refs = store.refs().list().unwrap();
        for (version, id) in &acknowledged {
            assert!(
                refs.iter().any(|found| found.history.iter().any(|entry| entry.snapshot == *id)),
                "round {round}: version {version} is lost"
            );
            let files = files_of_store(&store, id).unwrap();
            assert!(
                files == sample_files(SEED, *version),
                "round {round}: version {version} holds other files"
            );
        }
        assert_clean(&store, &format!("round {round}"));
    }
    let store = disk.open();
    gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 3 }, &Unwatched).unwrap();
    assert_clean(&store, "after all rounds");
    drop(store);
    println!("{ROUNDS} power cuts, {} commits acknowledged, none lost", acknowledged.len());
    disk.unmount();
    disk.mount();
    assert_clean(&disk.open(), "after a clean unmount");
}
