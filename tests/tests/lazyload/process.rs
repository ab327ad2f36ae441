//! Processes dumped by real CRIU, captured, and resumed while Torpor serves their memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lazyload::{Captured, ServeOptions, ServeReport, criu};
use store::{Image, Kind, PAGE, Result, Unwatched};

use crate::support::{Fixture, PATIENCE, wait_for, wait_while};

/// A stamped process, while it runs or sleeps. Killed with its family when dropped.
pub(crate) struct PatternWriter {
    pub socket: PathBuf,
    pub pid: i32,
    /// Its parent: the test at first, the restoring CRIU later.
    parent: Option<Child>,
    /// The numbers of all its tasks, once it was dumped.
    family: Vec<i32>,
    /// CRIU's log of the last restore.
    restore_log: Option<PathBuf>,
}

impl PatternWriter {
    pub(crate) fn start(fixture: &Fixture, pages: usize, flags: &[&str]) -> Self {
        let socket = fixture.path("pattern_writer");
        // A program of its own: one that is replaced while it runs cannot be dumped.
        let program = fixture.path("program");
        // Copied by another process: a file that this one has open for writing, a program that another test is just
        // starting has open, too, for a moment, and it could not be run.
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_pattern_writer")).arg(&program).status().expect("cp");
        assert!(copied.success(), "the program is copied");
        let mut command = Command::new(&program);
        command.arg(&socket).arg(pages.to_string()).args(flags).current_dir("/");
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.spawn().expect("started");
        let pid = child.id() as i32;
        let writer = Self { socket, pid, parent: Some(child), family: Vec::new(), restore_log: None };
        assert_eq!(writer.ask("check"), "ok");
        writer
    }

    /// One question and its answer; `None` when the process ends before it answers.
    pub(crate) fn try_ask(&self, who: &str, line: &str) -> Option<String> {
        let path = format!("{}{who}", self.socket.display());
        let mut stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        writeln!(stream, "{line}").ok()?;
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        let mut answer = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut answer).ok()?;
        // Its end of the connection is closed after this, so that no dump finds it open.
        reader.read_to_end(&mut Vec::new()).ok()?;
        Some(answer.trim_end().to_owned()).filter(|answer| !answer.is_empty())
    }

    /// Asks once, from a thread.
    pub(crate) fn question(&self, line: &'static str) -> std::thread::JoinHandle<Option<String>> {
        let (socket, pid) = (self.socket.clone(), self.pid);
        let asking = Self { socket, pid, parent: None, family: Vec::new(), restore_log: None };
        std::thread::spawn(move || asking.try_ask("", line))
    }

    /// Whether its parent has seen it end.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.parent.as_mut().is_none_or(|parent| parent.try_wait().expect("waited for").is_some())
    }

    pub(crate) fn ask(&self, line: &str) -> String {
        wait_for(line, || self.try_ask("", line))
    }

    /// Lets the children of a brood look at their memory.
    pub(crate) fn release_brood(&self) {
        std::fs::write(format!("{}.go", self.socket.display()), "").expect("written");
    }

    /// Whether it has forked a child that runs.
    pub(crate) fn has_child(&self) -> bool {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid));
        children.is_ok_and(|children| !children.trim().is_empty())
    }

    /// The page that it found wrong, if it ever did.
    pub(crate) fn bad_page(&self) -> Option<String> {
        std::fs::read_to_string(format!("{}.bad", self.socket.display())).ok()
    }

    /// Dumps it into a new directory and waits until its number is free again.
    pub(crate) fn dump(&mut self, images: &Path) {
        std::fs::create_dir(images).expect("a directory for the dump");
        let status =
            criu().arg("dump").arg("-t").arg(self.pid.to_string()).arg("-D").arg(images).args(LOG).status();
        assert!(status.expect("criu runs").success(), "dump: {}", log(images));
        self.reap();
        self.family = tasks(images);
        self.wait_until_free();
    }

    /// Dumps it into a new directory and has it run on.
    pub(crate) fn dump_and_leave_running(&self, images: &Path) {
        std::fs::create_dir(images).expect("a directory for the dump");
        let mut command = criu();
        command.arg("dump").arg("--leave-running").arg("-t").arg(self.pid.to_string()).arg("-D").arg(images);
        assert!(command.args(LOG).status().expect("criu runs").success(), "dump: {}", log(images));
    }

    /// Waits until the numbers of all tasks are free: the children of a killed process are reaped later by another one.
    pub(crate) fn wait_until_free(&self) {
        let status = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
        wait_while(|| self.family.iter().find_map(status).map_or(Ok(()), Err));
    }

    /// Kills all tasks and waits until they are gone.
    pub(crate) fn end(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid).expect("a process number");
        rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).expect("killed");
        self.reap();
        self.wait_until_free();
    }

    /// Starts a lazy restore; the restoring CRIU stays as its parent.
    pub(crate) fn restore(&mut self, images: &Path, more: &[&str]) {
        let mut command = criu();
        command
            .arg("restore")
            .arg("--lazy-pages")
            .arg("-D")
            .arg(images)
            .args(["-o", "restore.log", "-v4"])
            .args(more);
        self.restore_log = Some(images.join("restore.log"));
        self.parent = Some(command.spawn().expect("criu runs"));
    }

    /// Waits for the parent to notice its end.
    pub(crate) fn reap(&mut self) -> bool {
        let Some(mut parent) = self.parent.take() else { return true };
        wait_for("the process is gone", || parent.try_wait().expect("waited for")).success()
    }
}

impl Drop for PatternWriter {
    fn drop(&mut self) {
        // A restore that fails, since the number was given to another process for one, shows elsewhere: nobody answers.
        if let Some(log) = self.restore_log.take().filter(|_| std::thread::panicking()) {
            println!("the last restore: {}", errors(&log));
        }
        // The family is one session, which is the number of its first process; CRIU restores that number, too.
        if self.parent.is_some() {
            kill_group(self.pid);
        }
        if let Some(mut parent) = self.parent.take() {
            parent.kill().and_then(|()| parent.wait()).expect("the parent ends");
        }
    }
}

/// Kills a process group that may be gone already.
fn kill_group(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid)
        && let Err(error) = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)
    {
        assert_eq!(error, rustix::io::Errno::SRCH);
    }
}

/// Stops a process when a test fails while it is being served: serving would never end.
struct EndOnPanic(i32);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            kill_group(self.0);
        }
    }
}

/// The numbers of the tasks in a dump: each has a core file.
fn tasks(images: &Path) -> Vec<i32> {
    let names = std::fs::read_dir(images).expect("listed").map(|entry| entry.expect("listed").file_name());
    let number = |name: String| name.strip_prefix("core-")?.strip_suffix(".img")?.parse().ok();
    names.filter_map(|name| number(name.into_string().expect("text"))).collect()
}

const LOG: [&str; 3] = ["-o", "dump.log", "-v4"];

pub(crate) fn criu() -> Command {
    let mut command = Command::new("criu");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub(crate) fn log(images: &Path) -> String {
    errors(&images.join("dump.log"))
}

/// CRIU's complaints in a log.
fn errors(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|line| line.contains("Error")).collect::<Vec<_>>().join("\n")
}

pub(crate) fn capture(fixture: &Fixture, images: &Path, parent: Option<&Image>) -> (Image, Captured) {
    let mut captured = None;
    let image = fixture.commit("process", |writer| {
        let found = criu::capture(writer, images, parent, &Unwatched).expect("captured");
        captured = Some(found);
        found.image
    });
    (image, captured.expect("captured"))
}

/// Materializes an image and restores it while this process serves; runs `then` with the restored process.
pub(crate) fn resume<T: Send>(
    fixture: &Fixture,
    image: &Image,
    writer: &mut PatternWriter,
    (name, prefetch, more): (&str, bool, &[&str]),
    then: impl FnOnce(&mut PatternWriter, &Path) -> T,
) -> (Result<ServeReport>, T) {
    let images = fixture.path(name);
    criu::materialize(image, &fixture.store, &images).expect("materialized");
    restore(image, writer, (&images, prefetch, more), then)
}

/// Restores a materialized directory while this process serves.
pub(crate) fn restore<T: Send>(
    image: &Image,
    writer: &mut PatternWriter,
    (images, prefetch, more): (&Path, bool, &[&str]),
    then: impl FnOnce(&mut PatternWriter, &Path) -> T,
) -> (Result<ServeReport>, T) {
    let options = ServeOptions { prefetch, ..ServeOptions::default() };
    std::thread::scope(|scope| {
        let served = scope.spawn(|| criu::serve(image.store(), image, images, images, &options));
        wait_for("the socket", || images.join("lazy-pages.socket").exists().then_some(()));
        writer.restore(images, more);
        let _guard = EndOnPanic(writer.pid);
        let answer = then(writer, images);
        (served.join().expect("serving does not panic"), answer)
    })
}

#[test]
fn a_process_goes_on_with_every_page_and_sleeps_again_for_what_it_changed() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, 8192, &[]);
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, first) = capture(&fixture, &dumped, None);
    assert!(first.stats.new >= 8192, "{first:?}");

    let (report, captured) = resume(&fixture, &image, &mut writer, ("resumed", true, &[]), |writer, _| {
        assert_eq!(writer.ask("check"), "ok");
        assert_eq!(writer.ask("change 100 7"), "done");
        assert_eq!(writer.ask("check"), "ok");
        let again = fixture.path("dumped again");
        writer.dump(&again);
        capture(&fixture, &again, Some(&image))
    });
    let report = report.expect("served");
    assert_eq!((report.spaces, report.poisoned), (1, 0), "{report:?}");
    let (second_image, second) = captured;
    assert!(second.stats.new >= 100, "{second:?}");
    assert!(
        second.stats.new < 400,
        "a second sleep costs what changed and a little stack and heap: {second:?}"
    );

    let (report, ()) =
        resume(&fixture, &second_image, &mut writer, ("resumed again", false, &[]), |writer, _| {
            assert_eq!(writer.ask("check"), "ok");
            writer.end();
        });
    let report = report.expect("served");
    assert!(report.prefetched == 0 && report.pages >= 8192, "{report:?}");
    assert_eq!(writer.bad_page(), None);
}

/// Whether some mapping of a process still waits for pages.
pub(crate) fn has_missing_pages(pid: i32) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process runs");
    maps.lines().any(|line| line.starts_with("VmFlags:") && line.split_whitespace().any(|flag| flag == "um"))
}

#[test]
fn all_memory_of_a_stopped_process_equals_the_dump() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, 2048, &[]);
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, _) = capture(&fixture, &dumped, None);
    let more = ("resumed", true, &["--leave-stopped"][..]);
    let (report, compared) = resume(&fixture, &image, &mut writer, more, |writer, images| {
        let log = || std::fs::read_to_string(images.join("restore.log")).unwrap_or_default();
        wait_for("the restore", || log().contains("Restore finished successfully").then_some(()));
        // Only pages that are there can be read through the file below.
        wait_for("all memory is there", || (!has_missing_pages(writer.pid)).then_some(()));
        let compared = compare_with_dump(writer.pid, &dumped);
        writer.end();
        compared
    });
    assert_eq!(report.expect("served").poisoned, 0);
    assert!(compared.equal >= 2048, "{compared:?}");
    // The kernel itself writes the number of the processor into the thread's restartable sequence area of 32 bytes.
    assert!(compared.different.iter().all(|bytes| bytes.len() <= 32), "{compared:?}");
    assert!(compared.different.len() <= 1, "{compared:?}");
}

#[derive(Debug, Default)]
struct Compared {
    equal: u64,
    /// For each page that differs, from the first to the last byte that does.
    different: Vec<std::ops::Range<usize>>,
}

/// Reads every dumped page out of the live process and compares it with the dump's own pages file.
fn compare_with_dump(pid: i32, dumped: &Path) -> Compared {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the process's memory");
    let pages = File::open(dumped.join("pages-1.img")).expect("the dump's pages");
    let listed = read_page_map(&dumped.join(format!("pagemap-{pid}.img")));
    let mut compared = Compared::default();
    let (mut live, mut saved) = ([0; PAGE], [0; PAGE]);
    let mut offset = 0;
    for (address, count) in listed {
        for page in 0..count {
            memory.read_exact_at(&mut live, address + page * PAGE as u64).expect("a page of the process");
            pages.read_exact_at(&mut saved, offset).expect("a page of the dump");
            offset += PAGE as u64;
            let differs = |place: &usize| live[*place] != saved[*place];
            match ((0..PAGE).find(differs), (0..PAGE).rfind(differs)) {
                (Some(first), Some(last)) => compared.different.push(first..last + 1),
                _ => compared.equal += 1,
            }
        }
    }
    compared
}

/// The address and page count of each entry of a page map: a second reading of the format, by plain means.
fn read_page_map(path: &Path) -> Vec<(u64, u64)> {
    let bytes = std::fs::read(path).expect("the page map");
    let mut entries = Vec::new();
    let mut rest = &bytes[8..];
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let (mut record, next) = after.split_at(u32::from_le_bytes(*len) as usize);
        rest = next;
        let (mut address, mut count) = (None, 0);
        while !record.is_empty() {
            let (key, value);
            (key, record) = varint(record);
            (value, record) = varint(record);
            match key >> 3 {
                1 => address = Some(value),
                2 | 5 => count = value,
                _ => {}
            }
        }
        entries.extend(address.map(|address| (address, count)));
    }
    // The first record is the head, whose only field is the number of the pages file.
    entries.split_off(1)
}

fn varint(bytes: &[u8]) -> (u64, &[u8]) {
    let len = bytes.iter().position(|byte| byte & 0x80 == 0).expect("an integer ends") + 1;
    let value = bytes[..len].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7F));
    (value, &bytes[len..])
}

#[test]
fn a_family_with_a_zombie_is_resumed_whole() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, 2048, &["--family"]);
    assert_eq!(wait_for("the child", || writer.try_ask(".child", "check")), "ok");
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, captured) = capture(&fixture, &dumped, None);
    assert_eq!(image.spaces().len(), 2, "the zombie has no memory");
    assert!(captured.stats.new >= 4096, "{captured:?}");
    for prefetch in [false, true] {
        let name = if prefetch { "prefetched" } else { "on demand" };
        let (report, ()) = resume(&fixture, &image, &mut writer, (name, prefetch, &[]), |writer, _| {
            assert_eq!(writer.ask("check"), "ok");
            assert_eq!(wait_for("the child", || writer.try_ask(".child", "check")), "ok");
            writer.end();
        });
        let report = report.expect("served");
        assert_eq!((report.spaces, report.poisoned), (2, 0), "{report:?}");
    }
}

#[test]
fn memory_that_is_moved_given_back_or_forked_stays_right() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, 4096, &[]);
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, _) = capture(&fixture, &dumped, None);
    let requests: [&[&str]; 4] = [
        &["discard 100 500", "fork", "move", "check"],
        &["move", "move", "fork", "discard 0 3000", "check"],
        &["fork", "check"],
        &["change 50 3", "discard 10 1", "move", "fork", "check"],
    ];
    for prefetch in [false, true] {
        for (number, lines) in requests.iter().enumerate() {
            let name = format!("resumed {prefetch} {number}");
            let (report, ()) = resume(&fixture, &image, &mut writer, (&name, prefetch, &[]), |writer, _| {
                for line in *lines {
                    let answer = writer.ask(line);
                    assert!(answer == "ok" || answer == "done", "{line}: {answer}");
                }
                writer.end();
            });
            let report = report.expect("served");
            assert_eq!(report.poisoned, 0, "{report:?}");
            let forks = lines.iter().filter(|line| **line == "fork").count() as u64;
            assert!(prefetch || report.spaces == 1 + forks, "a fork is served, too: {report:?}");
        }
    }
    assert_eq!(writer.bad_page(), None);
}

#[test]
fn a_process_whose_pages_are_broken_dies_rather_than_see_zero() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, 2048, &[]);
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, _) = capture(&fixture, &dumped, None);
    for (name, prefetch) in [("on demand", false), ("prefetched", true)] {
        // CRIU reads a part by itself from the intact store; of the rest the middle, the stamped pages, is broken.
        let images = fixture.path(name);
        criu::materialize(&image, &fixture.store, &images).expect("materialized");
        let (_copy, broken) = fixture.broken_copy(&image, 0.3..0.6);
        let (report, answer) = restore(&broken, &mut writer, (&images, prefetch, &[]), |writer, _| {
            // It may not live long enough to hear a question.
            let answer = wait_for("an answer or the end", || match writer.try_ask("", "check") {
                Some(answer) => Some(Some(answer)),
                None => writer.has_ended().then_some(None),
            });
            writer.reap();
            answer
        });
        assert_eq!(answer, None, "the process read every page");
        assert!(report.expect("served").poisoned > 0);
        writer.wait_until_free();
    }
    assert_eq!(writer.bad_page(), None);
}

#[test]
fn directories_that_are_no_whole_dump_are_refused() {
    let fixture = Fixture::new();
    let mut process = PatternWriter::start(&fixture, 256, &[]);
    let dumped = fixture.path("dumped");
    process.dump(&dumped);
    let pages = dumped.join("pages-1.img");
    let whole = std::fs::read(&pages).expect("pages");
    std::fs::write(&pages, &whole[..whole.len() - 1]).expect("cut");
    let mut writer = fixture.writer();
    let mut refused = |kind| {
        let error = criu::capture(&mut writer, &dumped, None, &Unwatched).expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
    };
    refused(Kind::Corrupt);
    std::fs::write(&pages, &whole).expect("complete again");
    std::os::unix::fs::symlink("/", dumped.join("parent")).expect("a parent");
    refused(Kind::Invalid);
    std::fs::remove_file(dumped.join("parent")).expect("no parent");
    std::fs::rename(dumped.join("inventory.img"), dumped.join("kept")).expect("no inventory");
    refused(Kind::Invalid);
    std::fs::write(dumped.join("inventory.img"), "nonsense").expect("a foreign inventory");
    refused(Kind::Corrupt);
    std::fs::rename(dumped.join("kept"), dumped.join("inventory.img")).expect("complete again");
    criu::capture(&mut writer, &dumped, None, &Unwatched).expect("complete again");
}

#[test]
fn a_directory_of_another_image_is_refused() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, 256, &[]);
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, _) = capture(&fixture, &dumped, None);
    let images = fixture.path("materialized");
    criu::materialize(&image, &fixture.store, &images).expect("materialized");
    let again = criu::materialize(&image, &fixture.store, &images).expect_err("not into a full directory");
    assert_eq!(again.kind(), Kind::Invalid);
    std::fs::write(images.join("pstree.img"), "another").expect("written");
    let served = criu::serve(&fixture.store, &image, &images, &images, &ServeOptions::default());
    assert_eq!(served.expect_err("refused").kind(), Kind::Invalid);
}

#[test]
fn every_image_file_comes_back_and_the_pages_that_criu_reads_itself() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, 256, &[]);
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, _) = capture(&fixture, &dumped, None);
    let (lazy, whole) = (fixture.path("lazy"), fixture.path("whole"));
    criu::materialize(&image, &fixture.store, &lazy).expect("materialized");
    criu::restore(&image, &fixture.store, &whole, &Unwatched).expect("restored");
    for entry in std::fs::read_dir(&dumped).expect("listed") {
        let name = entry.expect("listed").file_name().into_string().expect("text");
        if name.ends_with(".log") || name.starts_with("stats-") {
            continue;
        }
        let before = std::fs::read(dumped.join(&name)).expect("there");
        assert!(std::fs::read(whole.join(&name)).expect("there again") == before, "{name}");
        let now = std::fs::read(lazy.join(&name)).expect("there again");
        if name.starts_with("pages-") {
            assert!(!now.is_empty() && now.len() + 256 * PAGE <= before.len(), "{name}");
            let known: std::collections::BTreeSet<&[u8]> = before.chunks(PAGE).collect();
            assert!(now.chunks(PAGE).all(|page| known.contains(page)));
        } else if !name.starts_with("pagemap-") {
            assert!(now == before, "{name}");
        }
    }
    criu::remove(&lazy, &criu::file_names(&image)).expect("removed");
    assert!(!lazy.exists());
}
