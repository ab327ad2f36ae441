//! A store with images in it, and the processes that serve and use them.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use store::{
    Image, ImageBuilder, ImageId, ImageKind, ImageStats, PAGE, SnapshotDraft, Store, StoreConfig, Writer,
};

/// How long anything in these tests may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How long a program of these tests runs at most, on a machine that is busy with other things too.
const HUNG: Duration = Duration::from_secs(300);

/// A store in a directory of its own.
pub(crate) struct Fixture {
    pub directory: tempfile::TempDir,
    pub store: Store,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::init(&StoreConfig::directory(&directory.path().join("store"))).expect("a store");
        Self { directory, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn store_path(&self) -> PathBuf {
        self.path("store")
    }

    /// The writer. A program that another test is just starting may hold the last one's lock for a moment.
    pub(crate) fn writer(&self) -> Writer {
        wait_for("the writer", || self.store.writer("test").ok())
    }

    /// Commits what `fill` captures and opens the image.
    pub(crate) fn commit(&self, name: &str, fill: impl FnOnce(&mut Writer) -> ImageId) -> Image {
        let mut writer = self.writer();
        let image = fill(&mut writer);
        let draft = SnapshotDraft { image: Some(image), ..SnapshotDraft::default() };
        writer.commit(name, draft).expect("committed");
        self.store.image(&image).expect("the image opens")
    }

    /// An image of one space that holds these pages.
    pub(crate) fn raw_image(&self, pages: &[[u8; PAGE]]) -> (Image, ImageStats) {
        let mut stats = None;
        let image = self.commit("raw", |writer| {
            let mut builder = ImageBuilder::new(writer, ImageKind::Raw, None);
            builder.begin_space(0, (pages.len() * PAGE) as u64).expect("a space");
            for (number, page) in (0..).zip(pages) {
                builder.page(number, page).expect("a page");
            }
            let (image, found) = builder.finish().expect("an image");
            stats = Some(found);
            image
        });
        (image, stats.expect("finished"))
    }

    /// A copy of this store in which a part of each pack of stored memory is broken, opened again. The part is stated
    /// in fractions of the pack.
    pub(crate) fn broken_copy(&self, image: &Image, part: Range<f64>) -> (tempfile::TempDir, Image) {
        let copy = tempfile::tempdir().expect("a directory");
        let status =
            Command::new("cp").arg("-a").arg(self.store_path()).arg(copy.path()).status().expect("cp");
        assert!(status.success());
        let broken = break_data_packs(&copy.path().join("store/packs"), &part);
        assert!(broken > 0, "the store has no pack of pages");
        let store =
            Store::open(&StoreConfig::directory(&copy.path().join("store"))).expect("the store opens");
        let image = store.image(&image.id()).expect("the page table is intact");
        (copy, image)
    }
}

/// Overwrites a part of every pack of data, and returns how many there are.
fn break_data_packs(directory: &Path, part: &Range<f64>) -> usize {
    let mut broken = 0;
    for entry in std::fs::read_dir(directory).expect("packs are listed") {
        let path = entry.expect("packs are listed").path();
        if path.is_dir() {
            broken += break_data_packs(&path, part);
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("a pack");
        // The eleventh byte of a pack is its kind, 0 for data.
        if bytes.starts_with(b"TORPACK\n") && bytes[10] == 0 {
            let place = |fraction: f64| 64 + ((bytes.len() - 64) as f64 * fraction) as usize;
            let range = place(part.start)..place(part.end);
            bytes[range].iter_mut().for_each(|byte| *byte ^= 0x5A);
            std::fs::remove_file(&path).expect("the pack is replaced");
            std::fs::write(&path, bytes).expect("the pack is replaced");
            broken += 1;
        }
    }
    broken
}

/// A running program whose output is read line by line. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("started");
        kill_when_hung(&child);
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("looked at").is_none()
    }

    /// The next line of output; `None` at its end.
    pub(crate) fn line(&mut self) -> Option<String> {
        self.lines.next().map(|line| line.expect("output is text"))
    }

    /// Waits for its end and returns how it ended with the last line it wrote.
    pub(crate) fn finish(mut self) -> (std::process::ExitStatus, Option<String>) {
        let mut last = None;
        while let Some(line) = self.line() {
            last = Some(line);
        }
        (self.wait(), last)
    }

    /// Waits for its end, within bounds.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        wait_for("a program ends", || self.child.try_wait().expect("waited for"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("the program ends");
    }
}

/// Kills a program that does not end in time, so that a test which waits for it fails instead of waiting forever.
fn kill_when_hung(child: &Child) {
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("a program that was just started");
    std::thread::spawn(move || {
        let deadline = Instant::now() + HUNG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
                Err(Errno::INTR) => {}
                Ok(0) => {
                    eprintln!("process {pid} is killed: it did not end within {} s", HUNG.as_secs());
                    return pidfd_send_signal(&process, Signal::KILL).expect("killed, if it is there");
                }
                ended => return assert_eq!(ended, Ok(1), "a process is watched"),
            }
        }
    });
}

/// The serving side as a process; returns once it listens, with the number of the process that serves.
pub(crate) fn start_handler(
    flags: &[&str],
    kind: &str,
    fixture: &Fixture,
    image: &Image,
    path: &Path,
) -> (Running, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazyload_handler"));
    command.args(flags).arg(kind).arg(fixture.store_path()).arg(image.id().to_string()).arg(path);
    let mut running = Running::start(&mut command);
    let line = running.line().expect("the handler listens");
    let pid = line.strip_prefix("ready ").and_then(|pid| pid.parse().ok()).expect("the handler's number");
    (running, pid)
}

/// The JSON of a program's last line.
pub(crate) fn json(line: Option<String>) -> Value {
    serde_json::from_str(&line.expect("a last line")).expect("a line of JSON")
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    wait_while(|| ask().ok_or_else(|| what.to_owned()))
}

/// Asks until there is an answer; each refusal says why to wait.
pub(crate) fn wait_while<T>(mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < deadline, "in vain: {why}"),
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn page(&mut self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.next().to_le_bytes()));
        page
    }
}
