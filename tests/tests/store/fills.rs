//! Disks that fill up, over and over: bytes, inodes and descriptors run out at another moment each time. Acknowledged
//! commits are there, the collector runs, and the space that it frees can be written again.

use crate::disks::Disk;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::path::Path;
use std::process::Command;
use store::{Kind, SnapshotId, Store, StoreConfig, Unwatched};
use tests::gc_fixture::{assert_files, commit};
use tests::is_long;
use tests::model::{Random, assert_clean};
use tests::power_disk::PowerDisk;

/// A store that is filled, and its expected content.
struct Filled {
    config: StoreConfig,
    held: Vec<SnapshotId>,
    next_file: u64,
    /// The last commit failed; its last write may have stored the snapshot all the same.
    unsure: bool,
}

impl Filled {
    fn on(directory: &Path) -> Self {
        let config = StoreConfig { level: 1, cache_bytes: 1 << 20, ..StoreConfig::directory(directory) };
        Store::init(&config).unwrap();
        Self { config, held: Vec::new(), next_file: 0, unsure: false }
    }

    fn open(&self) -> Store {
        Store::open(&self.config).unwrap()
    }

    /// One commit of some new files.
    fn commit(&mut self, files: u64) -> store::Result<()> {
        let store = Store::open(&self.config)?;
        let seeds: Vec<u64> = (self.next_file..self.next_file + files).collect();
        self.next_file += files;
        let committed = store.writer("test").and_then(|mut writer| commit(&mut writer, "app", &seeds));
        match committed {
            Ok(id) => self.held.push(id),
            Err(error) => {
                self.unsure = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Commits until there is no more room; returns the error.
    fn fill(&mut self, files: u64) -> store::Error {
        loop {
            if let Err(error) = self.commit(files) {
                return error;
            }
        }
    }

    fn history(&self) -> Vec<SnapshotId> {
        let found = self.open().refs().get("app").unwrap();
        found.map_or_else(Vec::new, |found| found.history.iter().map(|entry| entry.snapshot).collect())
    }

    /// Finds out whether a failed commit took effect.
    fn settle(&mut self) {
        let seen = self.history();
        if std::mem::take(&mut self.unsure) && seen.len() == self.held.len() + 1 {
            self.held.extend(seen.last());
        }
    }

    fn assert_holds(&self, context: &str) {
        let store = self.open();
        let ids = self.history();
        assert_eq!(ids, self.held, "{context}");
        ids.iter().for_each(|id| assert_files(&store, id, context));
        assert_clean(&store, context);
    }

    /// Forgets all but the newest snapshot and collects, on the full disk.
    fn free(&mut self) {
        let newest = self.held.split_off(self.held.len() - 1);
        let store = self.open();
        store.forget("app", |entry| entry.snapshot != newest[0]).unwrap();
        self.held = newest;
        gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 4 }, &Unwatched).unwrap();
    }
}

/// Fills the disk with commits of up to so many files and frees it, `rounds` times.
fn fill_and_free(what: &str, disk: &Path, max_files: usize, rounds: u64) {
    let mut random = Random::new(rounds);
    let mut filled = Filled::on(disk);
    let mut commits = 0;
    for round in 0..rounds {
        let context = format!("{what}, fill {round}");
        let error = filled.fill(1 + random.below(max_files) as u64);
        assert_eq!(error.kind(), Kind::Full, "{context}: {error}");
        filled.settle();
        assert!(filled.held.len() > 1, "{context}: nothing was freed");
        commits += filled.held.len();
        if round % 8 == 0 {
            filled.assert_holds(&format!("{context}, full"));
        }
        filled.free();
        filled.assert_holds(&format!("{context}, freed"));
    }
    println!("{what}: filled and freed {rounds} times, {commits} commits, none lost");
}

fn rounds(of_ci: u64, of_long: u64) -> u64 {
    if is_long() { of_long } else { of_ci }
}

#[test]
fn a_tmpfs_is_filled_and_freed_over_and_over() {
    fill_and_free("tmpfs of 8 MiB", Disk::new("size=8m").path(), 8, rounds(100, 450));
}

#[test]
fn a_disk_without_inodes_is_filled_and_freed_over_and_over() {
    fill_and_free("tmpfs of 50 inodes", Disk::new("size=64m,nr_inodes=50").path(), 8, rounds(60, 450));
}

#[test]
fn an_ext4_is_filled_and_freed_over_and_over() {
    let disk = PowerDisk::of(64 << 20);
    fill_and_free("ext4 of 64 MiB", &disk.mounted, 64, rounds(3, 50));
    disk.unmount();
}

/// Each step with only so many descriptors left: it is done, or refused, and then with enough of them it is done. In a
/// process of its own, since the limit is one of a process.
#[test]
fn a_process_without_descriptors_loses_nothing() {
    if std::env::var_os(ALONE).is_none() {
        let name = "fills::a_process_without_descriptors_loses_nothing";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{}", text.lines().filter(|line| line.contains("descriptors")).collect::<String>());
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut filled = Filled::on(directory.path());
    filled.commit(2).unwrap();
    let (mut refused, mut done) = (0, 0);
    for round in 0..rounds(100, 300) {
        let enough = getrlimit(Resource::Nofile);
        let open = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        setrlimit(Resource::Nofile, Rlimit { current: Some(open - 1 + round % 20), ..enough }).unwrap();
        let committed = filled.commit(2);
        let collected = Store::open(&filled.config).and_then(|store| {
            gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 1 }, &Unwatched)
        });
        setrlimit(Resource::Nofile, enough).unwrap();
        for error in [committed.err(), collected.err()].into_iter().flatten() {
            assert!(error.to_string().contains("open files"), "round {round}: {error}");
            refused += 1;
        }
        done += 1;
        filled.settle();
        filled.commit(1).unwrap();
        filled.assert_holds(&format!("round {round}"));
        if filled.held.len() > 20 {
            filled.free();
        }
    }
    println!("out of descriptors: {refused} steps refused in {done} rounds, nothing lost");
    assert!(refused > done / 4, "only {refused} steps were refused");
}

const ALONE: &str = "TORPOR_TEST_ALONE";
