//! Listing directories while they change: a name that is there all the time is listed once, to each reader.

use crate::{HELPER, run};
use rustix::fs::{self as sys, CWD, Mode, OFlags, RawDir, SeekFrom};
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tests::snapfs_mount::{Served, World};

/// A line of a listing, as getdents64(2) returns it.
struct Line {
    name: String,
    inode: u64,
    /// Where the listing goes on behind it.
    cookie: u64,
}

/// A reader of a directory, with a small buffer.
struct Reader {
    directory: OwnedFd,
    seen: Vec<Line>,
    /// Names that were there since it began.
    expected: BTreeSet<String>,
}

impl Reader {
    fn open(path: &Path) -> Self {
        let directory =
            sys::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Self { directory, seen: Vec::new(), expected: BTreeSet::new() }
    }

    /// Reads the entries of one call with a buffer of this length; false at the end.
    fn read(&mut self, buffer_len: usize) -> bool {
        let mut buffer = Vec::with_capacity(buffer_len);
        let mut lines = RawDir::new(&self.directory, buffer.spare_capacity_mut());
        let before = self.seen.len();
        while let Some(line) = lines.next() {
            let line = line.unwrap();
            let name = String::from_utf8(line.file_name().to_bytes().to_vec()).unwrap();
            self.seen.push(Line { name, inode: line.ino(), cookie: line.next_entry_cookie() });
            if lines.is_buffer_empty() {
                break;
            }
        }
        self.seen.len() > before
    }

    /// Goes back to behind line `index`, as telldir(3) and seekdir(3) do.
    fn seek_behind(&mut self, index: usize) {
        let cookie = self.seen[index].cookie;
        assert_eq!(sys::seek(&self.directory, SeekFrom::Start(cookie)).unwrap(), cookie);
        self.seen.truncate(index + 1);
    }

    fn rewind(&mut self, names: &BTreeSet<String>) {
        sys::seek(&self.directory, SeekFrom::Start(0)).unwrap();
        self.seen.clear();
        self.expected = names.clone();
    }

    fn assert_whole(&self, context: &str) {
        let seen: HashSet<&str> = self.seen.iter().map(|line| line.name.as_str()).collect();
        let missed: Vec<&String> =
            self.expected.iter().filter(|name| !seen.contains(name.as_str())).collect();
        assert!(missed.is_empty(), "{context}: missed {} names: {missed:?}", missed.len());
        assert_eq!(seen.len(), self.seen.len(), "{context}: a name was listed twice");
    }
}

fn drop_caches(what: &str) {
    fs::write("/proc/sys/vm/drop_caches", what).unwrap();
}

fn number_name(number: usize) -> String {
    format!("name-{number:06}")
}

/// A mount over a base whose directory `d` has `count` names.
fn with_names(count: usize) -> (World, Served) {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::create_dir(source.join("d")).unwrap();
    (0..count).for_each(|number| drop(File::create(source.join("d").join(number_name(number))).unwrap()));
    world.backup(&source, "base");
    let served = world.mount("base", "mnt", "upper", &[]);
    (world, served)
}

#[test]
fn names_removed_before_the_place_of_a_reader_hide_no_others_from_it() {
    let (_world, served) = with_names(500);
    let names = || (0..500).map(number_name).collect::<BTreeSet<_>>();
    let mut first = Reader::open(&served.path("d"));
    let mut early = Reader::open(&served.path("d"));
    first.rewind(&names());
    assert!(first.read(2048));
    let listed = first.seen.len();
    assert!((20..400).contains(&listed), "one batch of {listed} lines");
    // Everything that it saw goes, the line at which it stands too.
    for line in first.seen.iter().filter(|line| line.name.starts_with("name")) {
        fs::remove_file(served.path("d").join(&line.name)).unwrap();
    }
    let left = fs::read_dir(served.path("d")).unwrap().count();
    assert_eq!(left, 500 - (listed - 2));
    early.expected = names().into_iter().filter(|name| served.path("d").join(name).exists()).collect();
    while early.read(700) {}
    early.assert_whole("a reader that was there before and reads all after");
    while first.read(2048) {}
    first.assert_whole("the reader whose names went");
    drop([first, early]);
    served.unmount();
}

#[test]
fn a_directory_is_emptied_although_the_kernel_drops_its_listing_midway() {
    let count = 20_000;
    let (_world, served) = with_names(count);
    assert_eq!(fs::read_dir(served.path("d")).unwrap().count(), count, "the kernel may keep this listing");
    let mut reader = Reader::open(&served.path("d"));
    let mut removed = 0;
    while reader.read(32 << 10) {
        for line in reader.seen.drain(..).filter(|line| line.name.starts_with("name")) {
            fs::remove_file(served.path("d").join(line.name)).unwrap();
            removed += 1;
            if removed == count / 2 {
                drop_caches("1");
            }
        }
    }
    assert_eq!(removed, count);
    drop(reader);
    fs::remove_dir(served.path("d")).unwrap();
    served.unmount();
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// A directory, the names that it has, and three readers of it.
struct Play {
    served: Served,
    names: BTreeSet<String>,
    made: usize,
    readers: Vec<Reader>,
    random: Random,
    finished: usize,
}

impl Play {
    fn name(&mut self) -> String {
        let index = self.random.below(self.names.len());
        self.names.iter().nth(index).unwrap().clone()
    }

    fn gone(&mut self, name: &str) {
        self.names.remove(name);
        for reader in &mut self.readers {
            reader.expected.remove(name);
        }
    }

    /// A name that sorts anywhere and was never there before.
    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("{}-{}", ["a", "name-0001", "name-0002x", "z"][self.made % 4], self.made)
    }

    fn change(&mut self) {
        let directory = self.served.path("d");
        match self.random.below(4) {
            0 => {
                let name = self.new_name();
                File::create(directory.join(&name)).unwrap();
                self.names.insert(name);
            }
            1 if self.names.len() > 50 => {
                let name = self.name();
                fs::remove_file(directory.join(&name)).unwrap();
                self.gone(&name);
            }
            2 => {
                let (from, to) = (self.name(), self.new_name());
                fs::rename(directory.join(&from), directory.join(&to)).unwrap();
                self.gone(&from);
                self.names.insert(to);
            }
            _ => {
                // The name that is replaced is there all the time.
                let (from, to) = (self.name(), self.name());
                fs::rename(directory.join(&from), directory.join(&to)).unwrap();
                if from != to {
                    self.gone(&from);
                }
            }
        }
    }

    fn read(&mut self, seed: u64) {
        let index = self.random.below(self.readers.len());
        let len = 300 + self.random.below(1500);
        let back = self.random.below(20) == 0;
        let reader = &mut self.readers[index];
        if back && reader.seen.len() > 2 {
            let behind = self.random.below(reader.seen.len() - 1);
            reader.seek_behind(behind);
        }
        if reader.read(len) {
            return;
        }
        reader.assert_whole(&format!("seed {seed}, reader {index}"));
        self.finished += 1;
        if self.random.below(2) == 0 {
            *reader = Reader::open(&self.served.path("d"));
        }
        reader.rewind(&self.names);
    }
}

/// With the first half of the names removed, each name that the kernel forgot once cost a walk over those: minutes,
/// until which the mount could not be taken away. It takes well below a second.
#[test]
fn a_mount_goes_soon_after_the_kernel_forgot_a_directory_of_which_half_was_removed() {
    let count = 200_000;
    let (_world, served) = with_names(count);
    let path = |number| served.path("d").join(number_name(number));
    (0..count).for_each(|number| assert!(path(number).exists()));
    (0..count / 2).for_each(|number| fs::remove_file(path(number)).unwrap());
    drop_caches("2");
    assert!(path(count - 1).exists());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        served.unmount();
        tell.send(())
    });
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(()), "the mount is still there after 20 s");
}

#[test]
fn names_that_are_there_all_the_time_are_listed_once_whatever_comes_and_goes() {
    for seed in 0..4 {
        let (_world, served) = with_names(300);
        let names: BTreeSet<String> = (0..300).map(number_name).collect();
        let readers = (0..3).map(|_| Reader::open(&served.path("d"))).collect();
        let mut play = Play { served, names, made: 0, readers, random: Random(seed), finished: 0 };
        let begin = play.names.clone();
        play.readers.iter_mut().for_each(|reader| reader.rewind(&begin));
        for step in 1..=2000 {
            match play.random.below(3) {
                0 => play.change(),
                _ => play.read(seed),
            }
            match step % 1000 {
                300 => drop(play.served.freeze("base")),
                600 => drop_caches("3"),
                _ => {}
            }
        }
        assert!(play.finished > 5, "{} listings were read to their ends", play.finished);
        let Play { served, readers, .. } = play;
        drop(readers);
        served.unmount();
    }
}

#[test]
fn listings_of_a_read_only_mount_stay_whole_when_the_kernel_drops_them() {
    let (world, served) = with_names(400);
    (0..100).for_each(|number| drop(File::create(served.path("d").join(format!("new-{number}"))).unwrap()));
    served.unmount();
    let served = world.mount("base", "mnt", "upper", &["--read-only"]);
    let names: BTreeSet<String> = fs::read_dir(served.path("d"))
        .unwrap()
        .map(|line| line.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 500);
    for directory in ["d", ""] {
        let path = served.path(directory);
        let names = if directory == "d" { names.clone() } else { BTreeSet::from(["d".to_owned()]) };
        let mut reader = Reader::open(&path);
        reader.rewind(&names);
        assert!(reader.read(if directory == "d" { 2048 } else { 24 }));
        drop_caches("1");
        while reader.read(1024) {}
        reader.assert_whole(directory);
    }
    served.unmount();
}
/// Listed and looked-up numbers of everything below a directory.
fn numbers(path: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        let mut reader = Reader::open(&directory);
        while reader.read(4096) {}
        for line in reader.seen.iter().filter(|line| !matches!(line.name.as_str(), "." | "..")) {
            let inside = directory.join(&line.name);
            let stat = sys::statat(CWD, &inside, sys::AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!(line.inode, stat.st_ino, "{}", inside.display());
            if sys::FileType::from_raw_mode(stat.st_mode) == sys::FileType::Directory {
                pending.push(inside.clone());
            }
            let relative = inside.strip_prefix(path).unwrap().as_os_str().as_bytes().to_vec();
            found.push((String::from_utf8(relative).unwrap(), stat.st_ino));
        }
    }
    found.sort();
    found
}

#[test]
fn inode_numbers_are_the_same_in_listings_after_freezes_and_at_later_mounts() {
    let (world, served) = with_names(5);
    fs::create_dir(served.path("new")).unwrap();
    (0..5).for_each(|number| drop(File::create(served.path("new").join(number_name(number))).unwrap()));
    fs::hard_link(served.path("new/name-000001"), served.path("second name")).unwrap();
    fs::write(served.path("d/name-000002"), "changed").unwrap();
    fs::rename(served.path("d/name-000003"), served.path("moved")).unwrap();
    let before = numbers(&served.mountpoint);
    let distinct: HashSet<u64> = before.iter().map(|(_, number)| *number).collect();
    assert_eq!(distinct.len(), before.len() - 1, "only the two names of one file share a number");
    served.freeze("base");
    assert_eq!(numbers(&served.mountpoint), before, "after a freeze");
    drop_caches("3");
    assert_eq!(numbers(&served.mountpoint), before, "after the kernel forgot them");
    served.unmount();
    run(Command::new("rm").arg("-r").arg(world.path("upper")));
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(numbers(&served.mountpoint), before, "at the next mount, with an upper of its own");
    // Those below a directory that moves go with it.
    fs::rename(served.path("d"), served.path("e")).unwrap();
    let moved = numbers(&served.path("e"));
    served.freeze("base");
    served.unmount();
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_eq!(numbers(&served.path("e")), moved);
    fs::create_dir(served.path("d")).unwrap();
    File::create(served.path("d/name-000000")).unwrap();
    let all = numbers(&served.mountpoint);
    let distinct: HashSet<u64> = all.iter().map(|(_, number)| *number).collect();
    assert_eq!(distinct.len(), all.len() - 1, "what is made again gets numbers that nothing has");
    served.unmount();
}
