//! A KVM guest, saved, captured and resumed through the Firecracker handshake.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lazyload::memory_file::MemorySource;
use lazyload::{ServeOptions, ServeReport, firecracker};
use store::{Image, Kind, PAGE, Result, Unwatched};

use crate::support::{Fixture, Running, json, wait_for};

const PAGES: u64 = 16_384;

/// A saved machine and its image.
pub(crate) struct Saved {
    pub fixture: Fixture,
    pub memory: PathBuf,
    pub state: PathBuf,
    pub image: Image,
}

impl Saved {
    pub(crate) fn new(pages: u64) -> Self {
        let fixture = Fixture::new();
        let (memory, state) = (fixture.path("memory"), fixture.path("state"));
        let mut save = Command::new(env!("CARGO_BIN_EXE_vmm"));
        save.arg("save").arg("--memory").arg(&memory).arg("--state").arg(&state);
        let (status, _) = Running::start(save.arg("--pages").arg(pages.to_string())).finish();
        assert!(status.success(), "the machine is saved");
        let image = capture(&fixture, "vm", &memory, &state, None).0;
        Self { fixture, memory, state, image }
    }
}

fn capture(
    fixture: &Fixture,
    name: &str,
    memory: &Path,
    state: &Path,
    parent: Option<&Image>,
) -> (Image, lazyload::Captured) {
    let mut captured = None;
    let memory = MemorySource { path: memory, memory_type: None, parent };
    let image = fixture.commit(name, |writer| {
        let found = firecracker::capture(writer, memory, state, &Unwatched).expect("captured");
        captured = Some(found);
        found.image
    });
    (image, captured.expect("captured"))
}

/// Resumes the machine while a thread of this process serves it.
pub(crate) fn resume(saved: &Saved, prefetch: bool, arguments: &[&str]) -> (Result<ServeReport>, Running) {
    let socket = saved.fixture.path("socket");
    let (image, store) = (saved.image.clone(), saved.fixture.store.clone());
    let options =
        ServeOptions { prefetch, accept_timeout: Duration::from_secs(30), ..ServeOptions::default() };
    std::thread::scope(|scope| {
        let served = scope.spawn(|| firecracker::serve(&store, &image, &socket, &options));
        wait_for("the socket", || socket.exists().then_some(()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.arg("resume").arg("--socket").arg(&socket).arg("--state").arg(&saved.state).args(arguments);
        let machine = Running::start(&mut command);
        (served.join().expect("serving does not panic"), machine)
    })
}

#[test]
fn every_page_of_a_resumed_guest_is_right() {
    let saved = Saved::new(PAGES);
    for prefetch in [false, true] {
        let (report, machine) = resume(&saved, prefetch, &[]);
        let (status, line) = machine.finish();
        let found = json(line);
        assert_eq!(status.code(), Some(0), "{found}");
        assert_eq!(found["pages"], PAGES);
        let report = report.expect("served");
        assert_eq!((report.spaces, report.poisoned, report.removed_pages), (1, 0, 0), "{report:?}");
        assert!(report.pages + report.prefetched >= PAGES, "{report:?}");
        assert_eq!(report.prefetched > 0, prefetch, "{report:?}");
        if !prefetch {
            assert!(report.faults > PAGES / 16, "{report:?}");
        }
    }
}

#[test]
fn a_monitor_that_hangs_up_is_served_to_its_end() {
    let saved = Saved::new(1024);
    for prefetch in [false, true] {
        let (report, machine) = resume(&saved, prefetch, &["--hang-up"]);
        let (status, line) = machine.finish();
        assert_eq!(status.code(), Some(0), "{line:?}");
        let report = report.expect("served");
        assert!(report.pages + report.prefetched >= 1024, "{report:?}");
    }
}

#[test]
fn pages_given_back_are_zero_and_never_the_old_ones_again() {
    let saved = Saved::new(PAGES);
    for prefetch in [false, true] {
        let (report, machine) = resume(&saved, prefetch, &["--rounds", "8", "--discard", "4000"]);
        // The monitor itself looks at each page right after discarding it, the guest meanwhile.
        let (status, line) = machine.finish();
        let found = json(line);
        assert_eq!(status.code(), Some(0), "{found}");
        assert!(found["zero_pages"].as_u64().expect("a count") > 0, "{found}");
        let report = report.expect("served");
        assert_eq!(report.poisoned, 0, "{report:?}");
        assert!(prefetch || report.removed_pages > 1000, "{report:?}");
    }
}

/// The machine goes on by itself once its memory is complete: pages discarded meanwhile and afterwards are zero, no
/// handler has to read the events, and all other pages stay as they are.
#[test]
fn a_guest_whose_memory_is_whole_is_let_go() {
    let saved = Saved::new(2048);
    for number in 0..6 {
        let end = saved.fixture.path(&format!("end {number}"));
        let until = end.to_str().expect("a path of text");
        let (report, mut machine) = resume(&saved, true, &["--discard", "500", "--until", until]);
        let report = report.expect("served");
        assert_eq!(report.poisoned, 0, "{report:?}");
        assert!(machine.is_running(), "it was let go before its end");
        std::fs::write(&end, "").expect("written");
        let (status, line) = machine.finish();
        let found = json(line);
        assert_eq!(status.code(), Some(0), "{found}");
        assert!(found["zero_pages"].as_u64().expect("a count") > 0, "{found}");
    }
}

#[test]
fn a_second_capture_costs_the_changed_pages_only() {
    let saved = Saved::new(4096);
    let changed = [5_u64, 2000, 2001, 5000];
    let file = std::fs::OpenOptions::new().write(true).open(&saved.memory).expect("the memory file");
    for page in changed {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xA5; 100], page * PAGE as u64).expect("changed");
    }
    let (image, captured) = capture(&saved.fixture, "vm", &saved.memory, &saved.state, Some(&saved.image));
    assert_eq!(captured.stats.new, changed.len() as u64, "{captured:?}");
    assert!(captured.stats.same_as_parent >= 4096, "{captured:?}");
    let (mut expected, mut found) = ([0; PAGE], [0; PAGE]);
    let file = std::fs::File::open(&saved.memory).expect("the memory file");
    for page in 0..captured.bytes / PAGE as u64 {
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut expected, page * PAGE as u64).expect("read");
        image.read_page(0, page, &mut found).expect("read");
        assert!(expected == found, "page {page} differs");
    }
}

#[test]
fn the_state_file_comes_back_and_never_over_another() {
    let saved = Saved::new(1024);
    let target = saved.fixture.path("state again");
    firecracker::write_vmstate(&saved.image, &saved.fixture.store, &target, Some((12, 34))).expect("written");
    assert_eq!(std::fs::read(&target).expect("read"), std::fs::read(&saved.state).expect("read"));
    let metadata = std::fs::metadata(&target).expect("there");
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o600));
    let refused = firecracker::write_vmstate(&saved.image, &saved.fixture.store, &target, None);
    refused.expect_err("not over a file");
}

#[test]
fn a_guest_whose_pages_are_broken_is_stopped() {
    let saved = Saved::new(PAGES);
    for part in [0.0..1.0, 0.5..0.9] {
        let (copy, image) = saved.fixture.broken_copy(&saved.image, part);
        let fixture = Fixture { store: image.store().clone(), directory: copy };
        let state = saved.state.clone();
        let broken = Saved { fixture, memory: PathBuf::new(), state, image };
        for prefetch in [false, true] {
            let (report, machine) = resume(&broken, prefetch, &[]);
            let number = machine.pid() as i32;
            let (status, line) = machine.finish();
            // It must not meet the lost page: the guest would run on with anything after an access that is emulated.
            assert_eq!(status.signal(), Some(rustix::process::Signal::KILL.as_raw()), "{status:?} {line:?}");
            let report = report.expect("served to the end");
            assert_eq!((report.killed, report.poisoned > 0), (Some(number), true), "{report:?}");
        }
    }
}

#[test]
fn a_machine_with_pages_of_another_size_is_refused_and_stopped() {
    let saved = Saved::new(1024);
    let (report, mut machine) = resume(&saved, false, &["--page-size", "1073741824"]);
    assert_eq!(report.expect_err("refused").kind(), Kind::Invalid);
    assert_eq!(machine.wait().signal(), Some(rustix::process::Signal::KILL.as_raw()));
}

/// Huge pages that are free, more than there were; released when dropped.
struct HugePages {
    before: String,
}

impl HugePages {
    const COUNT: &str = "/proc/sys/vm/nr_hugepages";

    fn reserve(more: u64) -> Self {
        let before = std::fs::read_to_string(Self::COUNT).expect("a count of huge pages");
        let wanted = before.trim_end().parse::<u64>().expect("a number") + more;
        std::fs::write(Self::COUNT, wanted.to_string()).expect("more huge pages");
        let found = std::fs::read_to_string(Self::COUNT).expect("a count of huge pages");
        assert_eq!(found.trim_end().parse(), Ok(wanted), "the kernel has not so many huge pages");
        Self { before }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        std::fs::write(Self::COUNT, &self.before).expect("the count of huge pages is put back");
    }
}

#[test]
fn a_machine_made_of_huge_pages_sees_every_page() {
    let saved = Saved::new(4096);
    let _reserved = HugePages::reserve(14);
    for prefetch in [false, true] {
        let (report, machine) = resume(&saved, prefetch, &["--page-size", "2097152"]);
        let (status, line) = machine.finish();
        assert_eq!(status.code(), Some(0), "{line:?}");
        let report = report.expect("served");
        assert!(report.pages + report.prefetched >= 4096, "{report:?}");
        assert!(report.faults <= 14, "{report:?}");

        let end = saved.fixture.path(&format!("end {prefetch}"));
        let until = end.to_str().expect("a path of text");
        let discards = ["--page-size", "2097152", "--discard", "40", "--until", until];
        let arguments = if prefetch { &discards[..] } else { &discards[..4] };
        let (report, machine) = resume(&saved, prefetch, arguments);
        assert_eq!(report.expect("served").poisoned, 0);
        std::fs::write(&end, "").expect("written");
        let (status, line) = machine.finish();
        assert_eq!(status.code(), Some(0), "{line:?}");
    }
    let (copy, image) = saved.fixture.broken_copy(&saved.image, 0.0..1.0);
    let fixture = Fixture { store: image.store().clone(), directory: copy };
    let broken = Saved { fixture, memory: PathBuf::new(), state: saved.state.clone(), image };
    let (report, machine) = resume(&broken, false, &["--page-size", "2097152"]);
    assert_eq!(machine.finish().0.signal(), Some(rustix::process::Signal::KILL.as_raw()));
    assert!(report.expect("served to the end").killed.is_some());
}

#[test]
fn images_and_files_of_another_kind_are_refused() {
    let fixture = Fixture::new();
    let (image, _) = fixture.raw_image(&[[1; PAGE]; 4]);
    let socket = fixture.path("socket");
    let serve = firecracker::serve(&fixture.store, &image, &socket, &ServeOptions::default());
    assert_eq!(serve.expect_err("refused").kind(), Kind::Invalid);
    let (memory, state) = (fixture.path("memory"), fixture.path("state"));
    std::fs::write(&state, "state").expect("written");
    let mut writer = fixture.writer();
    let source = |path| MemorySource { path, memory_type: None, parent: None };
    for len in [0, 100, 4097] {
        std::fs::write(&memory, vec![1; len]).expect("written");
        let refused = firecracker::capture(&mut writer, source(&memory), &state, &Unwatched);
        assert_eq!(refused.expect_err("a partial page").kind(), Kind::Invalid, "{len} bytes");
    }
    let none = fixture.path("none");
    let missing = firecracker::capture(&mut writer, source(&none), &state, &Unwatched);
    assert_eq!(missing.expect_err("no file").kind(), Kind::NotFound);
}
