//! Random operations on a mount and on a directory of the local file system, which is the oracle: every answer and the
//! complete tree must be the same, through freezes, remounts and kills.

use crate::HELPER;
use rustix::fs::{
    self, AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tests::snapfs_mount::{Served, World};
use tests::snapfs_tree::assert_same;

/// Operations between two disturbances.
const BURST: usize = 120;
const BURSTS: usize = 8;

/// xorshift: the same operations for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// A path of up to three names out of few, so that operations meet.
    fn path(&mut self) -> PathBuf {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| ["a", "b", "c", "d", "e"][self.below(5) as usize]).collect()
    }

    fn bytes(&mut self, max: u64) -> Vec<u8> {
        let (len, fill) = (self.below(max) + 1, self.below(255) as u8 + 1);
        (0..len).map(|at| fill.wrapping_add((at % 251) as u8)).collect()
    }

    /// Mostly small, sometimes far out, often at a block's edge.
    fn offset(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(4) * 4096,
            1 => self.below(300_000),
            _ => self.below(20_000),
        }
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Create(PathBuf, u32),
    Write(PathBuf, u64, Vec<u8>),
    Append(PathBuf, Vec<u8>),
    Truncate(PathBuf, u64),
    Allocate(PathBuf, FallocateFlags, u64, u64),
    Copy(PathBuf, u64, PathBuf, u64, usize),
    MakeDirectory(PathBuf, u32),
    RemoveDirectory(PathBuf),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, RenameFlags),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Fifo(PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32, u32),
    Times(PathBuf, i64),
    SetXattr(PathBuf, u64, Vec<u8>, XattrFlags),
    RemoveXattr(PathBuf, u64),
    Sync(PathBuf),
}

fn pick(random: &mut Random) -> Operation {
    use Operation as Op;
    let (path, other) = (random.path(), random.path());
    let xattr_flags = [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE];
    match random.below(40) {
        0..=5 => Op::Create(path, 0o600 + random.below(0o200) as u32),
        6..=11 => Op::Write(path, random.offset(), random.bytes(30_000)),
        12..=13 => Op::Append(path, random.bytes(6000)),
        14..=16 => Op::Truncate(path, random.offset()),
        17 => Op::Allocate(path, FallocateFlags::empty(), random.offset(), random.below(50_000) + 1),
        18 => Op::Allocate(path, FallocateFlags::KEEP_SIZE, random.offset(), random.below(50_000) + 1),
        19..=20 => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Op::Allocate(path, flags, random.offset(), random.below(50_000) + 1)
        }
        21 => Op::Allocate(path, FallocateFlags::ZERO_RANGE, random.offset(), random.below(50_000) + 1),
        22 => Op::Copy(path, random.offset(), other, random.offset(), random.below(40_000) as usize + 1),
        23..=26 => Op::MakeDirectory(path, 0o700 + random.below(0o100) as u32),
        27 => Op::RemoveDirectory(path),
        28..=29 => Op::Unlink(path),
        30..=32 => {
            let flags = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
            Op::Rename(path, other, flags[random.below(3) as usize])
        }
        33 => Op::Link(path, other),
        34 => Op::Symlink(other, path),
        35 => match random.below(2) {
            0 => Op::Fifo(path),
            _ => Op::Sync(path),
        },
        36 => Op::Mode(path, random.below(0o10000) as u32),
        37 => Op::Owner(path, random.below(4) as u32, random.below(4) as u32),
        38 => Op::Times(path, random.below(1_000_000_000) as i64 - 1000),
        _ => match random.below(3) {
            0 => Op::RemoveXattr(path, random.below(3)),
            _ => {
                Op::SetXattr(path, random.below(3), random.bytes(300), xattr_flags[random.below(3) as usize])
            }
        },
    }
}

/// Does the operation below `root`.
fn perform(root: &Path, operation: &Operation) -> Result<u64, Errno> {
    use Operation as Op;
    let writable = |path: &Path| {
        fs::open(root.join(path), OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map(File::from)
    };
    let attribute = |number: &u64| format!("user.test{number}");
    match operation {
        Op::Create(path, mode) => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            fs::open(root.join(path), flags, Mode::from_raw_mode(*mode)).map(|_| 0)
        }
        Op::Write(path, offset, bytes) => {
            regular(writable(path)?)?.write_all_at(bytes, *offset).map(|()| 0).map_err(errno)
        }
        Op::Append(path, bytes) => {
            let flags =
                OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = regular(File::from(fs::open(root.join(path), flags, Mode::empty())?))?;
            rustix::io::write(&file, bytes).map(|len| len as u64)
        }
        Op::Truncate(path, len) => regular(writable(path)?)?.set_len(*len).map(|()| 0).map_err(errno),
        Op::Allocate(path, flags, offset, len) => {
            fs::fallocate(regular(writable(path)?)?, *flags, *offset, *len).map(|()| 0)
        }
        Op::Copy(from, offset, to, target, len) => {
            let (from, to) = (regular(writable(from)?)?, regular(writable(to)?)?);
            let (mut offset, mut target) = (*offset, *target);
            fs::copy_file_range(from, Some(&mut offset), to, Some(&mut target), *len).map(|len| len as u64)
        }
        Op::MakeDirectory(path, mode) => fs::mkdir(root.join(path), Mode::from_raw_mode(*mode)).map(|()| 0),
        Op::RemoveDirectory(path) => fs::rmdir(root.join(path)).map(|()| 0),
        Op::Unlink(path) => fs::unlink(root.join(path)).map(|()| 0),
        Op::Rename(from, to, flags) => {
            fs::renameat_with(CWD, root.join(from), CWD, root.join(to), *flags).map(|()| 0)
        }
        Op::Link(from, to) => fs::link(root.join(from), root.join(to)).map(|()| 0),
        Op::Symlink(target, path) => fs::symlink(target, root.join(path)).map(|()| 0),
        Op::Fifo(path) => {
            fs::mknodat(CWD, root.join(path), fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0).map(|()| 0)
        }
        Op::Mode(path, mode) => {
            let path = root.join(path);
            // chmod follows links out of the tree.
            if path.is_symlink() {
                Err(Errno::LOOP)
            } else {
                fs::chmod(path, Mode::from_raw_mode(*mode)).map(|()| 0)
            }
        }
        Op::Owner(path, uid, gid) => {
            let owner = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            fs::chownat(CWD, root.join(path), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map(|()| 0)
        }
        Op::Times(path, seconds) => {
            let time = Timespec { tv_sec: *seconds, tv_nsec: 123_456_789 };
            let times = Timestamps { last_access: time, last_modification: time };
            fs::utimensat(CWD, root.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).map(|()| 0)
        }
        Op::SetXattr(path, number, value, flags) => {
            fs::lsetxattr(root.join(path), attribute(number), value, *flags).map(|()| 0)
        }
        Op::RemoveXattr(path, number) => fs::lremovexattr(root.join(path), attribute(number)).map(|()| 0),
        Op::Sync(path) => regular(writable(path)?)?.sync_all().map(|()| 0).map_err(errno),
    }
}

/// Pipes are opened, but not written to: a write would wait for a reader.
fn regular(file: File) -> Result<File, Errno> {
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        _ => Err(Errno::SPIPE),
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).expect("an error of the system")
}

/// Files held open on both sides, most of them without a name.
#[derive(Default)]
struct Held(Vec<(File, File)>);

impl Held {
    fn disturb(&mut self, random: &mut Random, mount: &Path, oracle: &Path, context: &str) {
        match random.below(3) {
            0 => {
                let path = random.path();
                let open = |root: &Path| {
                    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    fs::open(root.join(&path), flags, Mode::empty())
                        .map(File::from)
                        .ok()
                        .and_then(|file| regular(file).ok())
                };
                if let (Some(ours), Some(theirs)) = (open(mount), open(oracle)) {
                    self.0.push((ours, theirs));
                }
            }
            1 if self.0.len() > 4 => drop(self.0.remove(0)),
            _ => {
                let (offset, bytes) = (random.offset(), random.bytes(9000));
                if let Some((ours, theirs)) = self.0.last() {
                    ours.write_all_at(&bytes, offset).expect("a held file can be written");
                    theirs.write_all_at(&bytes, offset).expect("a held file can be written");
                    self.compare(context);
                }
            }
        }
    }

    fn compare(&self, context: &str) {
        for (ours, theirs) in &self.0 {
            let read = |file: &File| {
                let len = file.metadata().expect("a length").len();
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, 0).expect("a held file can be read");
                bytes
            };
            assert!(read(ours) == read(theirs), "{context}: a held file differs");
        }
    }
}

/// The tree that both sides begin with: everything that a base can hold.
fn plant(root: &Path) {
    std::fs::create_dir_all(root.join("a/b/c")).unwrap();
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    std::fs::write(root.join("a/b/d"), "small").unwrap();
    std::fs::write(root.join("a/e"), Random::new(1).bytes(200_000).repeat(7)).unwrap();
    std::fs::hard_link(root.join("a/e"), root.join("d/a")).unwrap();
    std::fs::write(root.join("b"), vec![9; 10_000]).unwrap();
    std::fs::hard_link(root.join("b"), root.join("d/e/b")).unwrap();
    std::fs::hard_link(root.join("b"), root.join("a/b/c/b")).unwrap();
    std::os::unix::fs::symlink("a/b/d", root.join("c")).unwrap();
    fs::setxattr(root.join("a/b/d"), "user.test0", b"of the base", XattrFlags::empty()).unwrap();
    let sparse = File::create(root.join("d/c")).unwrap();
    sparse.write_all_at(&[5; 3000], 600_000).unwrap();
}

fn run(seed: u64) {
    println!("seed {seed}");
    // Not in /tmp: on a tmpfs the oracle could not zero a range.
    let world = World::below(Path::new(env!("CARGO_TARGET_TMPDIR")), HELPER);
    let source = world.make("source");
    plant(&source);
    let snapshot = world.backup(&source, "base");
    let oracle = world.restore(&snapshot, "oracle");
    let mut random = Random::new(seed);
    let mut served = world.mount("base", "mnt", "upper", &[]);
    let mut held = Held::default();
    for burst in 0..BURSTS {
        let context = format!("seed {seed}, burst {burst}");
        for step in 0..BURST {
            let operation = pick(&mut random);
            let (ours, theirs) = (perform(&served.mountpoint, &operation), perform(&oracle, &operation));
            assert_eq!(ours, theirs, "{context}, step {step}: {operation:?}");
            if random.below(6) == 0 {
                held.disturb(&mut random, &served.mountpoint, &oracle, &context);
            }
        }
        assert_same(&served.mountpoint, &oracle, &format!("{context}, live"));
        served = disturb(&world, served, &mut held, random.below(4), &oracle, &context);
        assert_same(&served.mountpoint, &oracle, &format!("{context}, after"));
        held.compare(&context);
    }
    drop(held);
    let report = served.freeze("base");
    let restored = world.restore(&report.snapshot, "restored");
    assert_same(&restored, &oracle, &format!("seed {seed}, restored"));
    served.unmount();
    let served = world.mount("base", "mnt", "fresh", &[]);
    assert_same(&served.mountpoint, &oracle, &format!("seed {seed}, mounted afresh"));
    let snapshot = world.store.snapshot(&report.snapshot).unwrap();
    assert_eq!(
        snapshot.totals.files,
        tests::snapfs_tree::look(&oracle).len() as u64,
        "seed {seed}, names counted"
    );
    served.unmount();
}

fn disturb(
    world: &World,
    served: Served,
    held: &mut Held,
    what: u64,
    oracle: &Path,
    context: &str,
) -> Served {
    match what {
        0 => {
            let report = served.freeze("base");
            let restored = world.restore(&report.snapshot, &format!("restored {context}"));
            assert_same(&restored, oracle, &format!("{context}, restored"));
            served
        }
        1 => {
            held.0.clear();
            served.unmount();
            world.mount("base", "mnt", "upper", &[])
        }
        2 => {
            held.0.clear();
            served.kill();
            world.mount("base", "mnt", "upper", &[])
        }
        _ => served,
    }
}

#[test]
fn random_operations_answer_and_leave_what_the_local_file_system_does() {
    // SNAPFS_SEEDS=100..200 tries others by hand.
    let seeds = std::env::var("SNAPFS_SEEDS").ok().and_then(|seeds| {
        let (from, to) = seeds.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    seeds.unwrap_or(0..if tests::is_long() { 100 } else { 6 }).for_each(run);
}
