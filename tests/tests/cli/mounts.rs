//! Mounting through the command line: in the background, in the foreground, after a crash, and over a path that is no
//! upper.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::snapctl::{Place, fingerprint};

use crate::{disk, sample};

/// A place with the sample as `web` and a directory to mount on; whatever is mounted there goes with it.
pub(crate) struct Mounted {
    /// Its store.
    pub place: Place,
    /// The mount point.
    pub directory: PathBuf,
}

impl Mounted {
    pub(crate) fn new() -> Mounted {
        Mounted::on(Place::with_store())
    }

    /// The same on a store that is there.
    pub(crate) fn on(place: Place) -> Mounted {
        let source = place.path("source");
        sample::make(&source);
        place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
        let directory = place.path("mount point");
        fs::create_dir(&directory).unwrap();
        Mounted { place, directory }
    }

    /// Arguments with the mount point put where `DIR` stands.
    fn arguments<'a>(&'a self, typed: &'a [&'a str]) -> Vec<&'a OsStr> {
        typed
            .iter()
            .map(|word| if *word == "DIR" { self.directory.as_os_str() } else { OsStr::new(word) })
            .collect()
    }

    /// Runs a command with the mount point put where `DIR` stands.
    pub(crate) fn run(&self, typed: &[&str]) -> tests::snapctl::Run {
        self.place.run(self.arguments(typed))
    }

    /// Unmounts and waits for the process of the mount, which releases its hold on the store last.
    fn unmount(&self, mounted: &Value) {
        self.run(&["umount", "DIR"]).expect(0);
        await_end(pid_of(mounted));
    }

    fn is_mounted(&self) -> bool {
        let escaped = self.directory.to_str().unwrap().replace(' ', "\\040");
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&escaped)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted() {
            Command::new("umount").arg("-l").arg(&self.directory).status().unwrap();
        }
    }
}

fn pid_of(mounted: &Value) -> Pid {
    Pid::from_raw(mounted["pid"].as_i64().unwrap() as i32).unwrap()
}

/// Waits until a process that is not our child is gone.
fn await_end(pid: Pid) {
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
        assert!(Instant::now() < deadline, "process {pid:?} does not end");
        std::thread::yield_now();
    }
}

#[test]
fn a_mount_is_used_frozen_and_unmounted() {
    let mounted = Mounted::new();
    let answer = mounted.run(&["mount", "web", "DIR", "--json"]).expect(0).json();
    assert!(mounted.is_mounted());
    let file = mounted.directory.join("hello.txt");
    assert_eq!(fs::read_to_string(&file).unwrap(), "hello, store\n");
    fs::write(&file, "hello from the mount\n").unwrap();
    fs::write(mounted.directory.join("new"), "new").unwrap();

    let frozen = mounted.run(&["freeze", "DIR", "--label", "why=test", "--json"]).expect(0).json();
    assert_eq!(frozen["ref"], "web");
    assert!(frozen["new_bytes"].as_u64().unwrap() < 100_000, "{frozen}");
    mounted.run(&["freeze", "DIR", "copy"]).expect(0);
    assert_eq!(mounted.run(&["cat", "web:docs/hello-again.txt"]).expect(0).text(), "hello from the mount\n");
    let shown = mounted.run(&["show", "web", "--json"]).expect(0).json();
    assert_eq!((&shown["snapshot"], &shown["labels"]["why"]), (&frozen["snapshot"], &"test".into()));
    let changes = mounted.run(&["diff", "web~1", "web"]).expect(1).text();
    assert!(changes.contains("+ new") && changes.contains("M hello.txt"), "{changes}");
    assert!(!changes.contains("noise"), "{changes}");
    mounted.run(&["diff", "web", "copy"]).expect(0);

    mounted.unmount(&answer);
    assert!(!mounted.is_mounted());
    mounted.run(&["umount", "DIR"]).expect(1).complains("not a torpor mount");
    mounted.run(&["freeze", "DIR"]).expect(1);
    mounted.run(&["check", "--read-data"]).expect(0);
}

/// What programs ask of files that a file system need not know: whether one is a terminal, has flags, is ready.
const IDLE_QUESTIONS: &str = "
import fcntl, os, select, sys
for number in range(int(sys.argv[2])):
    with open(sys.argv[1], 'rb') as file:
        poll = select.poll()
        poll.register(file)
        poll.poll(0)
        for request in 0x80086601, 0xC020660B, 0x5413, 0x7777:
            try:
                fcntl.ioctl(file, request, bytes(64))
            except OSError:
                pass
";

#[test]
fn the_log_of_a_mount_stays_empty_in_use_and_short_when_it_says_everything() {
    let mounted = Mounted::new();
    let ask = |count: &str| {
        let mut python = Command::new("python3");
        let file = mounted.directory.join("hello.txt");
        assert!(python.args(["-c", IDLE_QUESTIONS]).arg(file).arg(count).status().unwrap().success());
    };
    let answer = mounted.run(&["mount", "web", "DIR", "--json"]).expect(0).json();
    let log = Path::new(answer["upper"].as_str().unwrap()).join("log");
    ask("50");
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
    mounted.unmount(&answer);
    let loud = mounted.arguments(&["mount", "web", "DIR", "--json"]);
    let variables =
        [("TORPOR_STORE", mounted.place.store.as_os_str()), ("TORPOR_LOG", "fuser=debug".as_ref())];
    let answer = mounted.place.run_with(&variables, loud).expect(0).json();
    // Four lines of more than 100 bytes each time.
    ask("5000");
    let len_bytes = fs::metadata(&log).unwrap().len();
    assert!((1 << 18..=1 << 20).contains(&len_bytes), "{len_bytes} bytes: the newest lines, and no more");
    mounted.unmount(&answer);
}

#[test]
fn a_mount_may_be_made_from_an_old_snapshot_or_read_only() {
    let mounted = Mounted::new();
    let id =
        mounted.run(&["show", "web", "--json"]).expect(0).json()["snapshot"].as_str().unwrap().to_owned();
    mounted.run(&["mount", "--read-only", &id[..12], "--", "DIR"]).expect(0);
    let refused = fs::write(mounted.directory.join("new"), "new").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    mounted.run(&["freeze", "DIR"]).expect(2).complains("say which REF");
    mounted.run(&["freeze", "DIR", "other"]).expect(2).complains("read-only");
    mounted.run(&["umount", "DIR"]).expect(0);
}

#[test]
fn a_mount_that_fails_says_why_and_leaves_nothing() {
    let mounted = Mounted::new();
    let before = fingerprint(&mounted.place.store);
    mounted.run(&["mount", "nobody", "DIR"]).expect(1).complains("nobody");
    let error = mounted.run(&["mount", "nobody", "DIR", "--json"]).expect(1).json_error();
    assert_eq!(error["kind"], "not_found");
    mounted.run(&["mount", "web", "DIR", "--upper", "/proc/upper"]).expect(2).complains("/proc/upper");

    let other = mounted.place.path("other");
    fs::create_dir(&other).unwrap();
    let upper = mounted.place.path("upper");
    let upper = upper.to_str().unwrap();
    let answer = mounted.run(&["mount", "web", "DIR", "--upper", upper, "--json"]).expect(0).json();
    mounted
        .run(&["mount", "web", other.to_str().unwrap(), "--upper", upper])
        .expect(2)
        .complains("another mount uses this upper");
    mounted.unmount(&answer);
    assert_eq!(fingerprint(&mounted.place.store), before);
}

#[test]
fn a_mount_in_use_is_not_torn_away() {
    let mounted = Mounted::new();
    mounted.run(&["mount", "web", "DIR"]).expect(0);
    let open = fs::File::open(mounted.directory.join("hello.txt")).unwrap();
    mounted.run(&["umount", "DIR"]).expect(2).complains("in use");
    assert!(mounted.is_mounted());
    drop(open);
    mounted.run(&["umount", "DIR"]).expect(0);
}

#[test]
fn a_freeze_waits_for_no_other_writer_and_loses_nothing() {
    let mounted = Mounted::new();
    mounted.run(&["mount", "web", "DIR"]).expect(0);
    fs::write(mounted.directory.join("new"), "new").unwrap();
    let store = store::Store::open(&store::StoreConfig::directory(&mounted.place.store)).unwrap();
    let writer = store.writer("the test").unwrap();
    mounted.run(&["freeze", "DIR"]).expect(2).complains("the test");
    drop(writer);
    mounted.run(&["freeze", "DIR"]).expect(0);
    assert_eq!(mounted.run(&["cat", "web:new"]).expect(0).text(), "new");
    mounted.run(&["umount", "DIR"]).expect(0);
}

#[test]
fn what_was_synced_outlives_the_process_of_a_mount() {
    let mounted = Mounted::new();
    let answer = mounted.run(&["mount", "web", "DIR", "--json"]).expect(0).json();
    let path = mounted.directory.join("kept");
    fs::write(&path, "kept").unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    fs::File::open(&mounted.directory).unwrap().sync_all().unwrap();
    kill_process(pid_of(&answer), Signal::KILL).unwrap();
    await_end(pid_of(&answer));

    mounted.run(&["freeze", "DIR"]).expect(2).complains("gone");
    mounted.run(&["mount", "web", "DIR"]).expect(2).complains("umount");
    mounted.run(&["umount", "DIR"]).expect(2).complains("gone");
    mounted.run(&["umount", "DIR", "--force"]).expect(0);
    assert!(!mounted.is_mounted());
    mounted.run(&["mount", "web", "DIR"]).expect(0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    mounted.run(&["freeze", "DIR"]).expect(0);
    assert_eq!(mounted.run(&["cat", "web:kept"]).expect(0).text(), "kept");
    mounted.run(&["umount", "DIR"]).expect(0);
}

/// Changes are useless without their base snapshot: it stays while an upper needs it, mounted or not.
#[test]
fn what_an_upper_is_based_on_outlives_forget_and_gc() {
    let mounted = Mounted::new();
    let answer = mounted.run(&["mount", "web", "DIR", "--json"]).expect(0).json();
    let base = answer["snapshot"].as_str().unwrap();
    let path = mounted.directory.join("kept");
    fs::write(&path, "kept").unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    kill_process(pid_of(&answer), Signal::KILL).unwrap();
    await_end(pid_of(&answer));
    mounted.run(&["umount", "DIR", "--force"]).expect(0);

    let source = mounted.place.path("source");
    fs::write(source.join("newer"), "newer").unwrap();
    mounted.place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    mounted.run(&["forget", "web", "--keep-last", "1"]).expect(0);
    mounted.run(&["gc", "--cycles", "4"]).expect(0);
    mounted.run(&["mount", "web", "DIR"]).expect(2).complains(base);
    let again = mounted.run(&["mount", base, "DIR", "--json"]).expect(0).json();
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    mounted.run(&["freeze", "DIR", "web"]).expect(2).complains("not based on");
    mounted.run(&["freeze", "DIR", "mine"]).expect(0);
    mounted.unmount(&again);
    mounted.run(&["gc", "--cycles", "4"]).expect(0);
    mounted.run(&["show", base]).expect(1);
    assert_eq!(mounted.run(&["cat", "mine:kept"]).expect(0).text(), "kept");
    mounted.run(&["check", "--read-data"]).expect(0);
}

/// The directory of a removed upper holds nothing back.
#[test]
fn a_removed_upper_lets_go_of_its_base() {
    let mounted = Mounted::new();
    let answer = mounted.run(&["mount", "web", "DIR", "--json"]).expect(0).json();
    fs::write(mounted.directory.join("changed"), "changed").unwrap();
    mounted.unmount(&answer);
    mounted.run(&["forget", "web", answer["snapshot"].as_str().unwrap()]).expect(0);
    mounted.run(&["gc", "--cycles", "4"]).expect(0);
    mounted.run(&["show", answer["snapshot"].as_str().unwrap()]).expect(0);
    fs::remove_dir_all(answer["upper"].as_str().unwrap()).unwrap();
    mounted.run(&["gc", "--cycles", "4"]).expect(0);
    mounted.run(&["show", answer["snapshot"].as_str().unwrap()]).expect(1);
}

/// A collector that runs where another file system covers the directory of an upper, as in a service with its own /tmp,
/// sees no upper there; it is not removed for that.
#[test]
fn an_upper_that_a_collector_cannot_see_keeps_its_base() {
    let mounted = Mounted::new();
    let place = mounted.place.path("place");
    fs::create_dir(&place).unwrap();
    let upper = place.join("upper");
    let typed = ["mount", "web", "DIR", "--json", "--upper", upper.to_str().unwrap()];
    let answer = mounted.run(&typed).expect(0).json();
    let base = answer["snapshot"].as_str().unwrap();
    fs::write(mounted.directory.join("changed"), "changed").unwrap();
    mounted.unmount(&answer);
    mounted.run(&["forget", "web", base]).expect(0);
    disk::mount(&["-t", "tmpfs", "tmpfs"], &place);
    mounted.run(&["gc", "--cycles", "4"]).expect(0);
    mounted.run(&["show", base]).expect(0);
    assert!(Command::new("umount").arg(&place).status().unwrap().success());
    fs::remove_dir_all(upper).unwrap();
    mounted.run(&["gc", "--cycles", "4"]).expect(0);
    mounted.run(&["show", base]).expect(1);
}

#[test]
fn a_mount_whose_process_is_stopped_is_said_to_be_and_can_be_taken_away() {
    let mounted = Mounted::new();
    let answer = mounted.run(&["mount", "web", "DIR", "--json"]).expect(0).json();
    let pid = pid_of(&answer);
    kill_process(pid, Signal::STOP).unwrap();
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    while !state().contains(") T ") {
        std::thread::yield_now();
    }
    mounted.run(&["freeze", "DIR"]).expect(2).complains("stopped");
    mounted.run(&["umount", "DIR"]).expect(2).complains("stopped");
    mounted.run(&["umount", "DIR", "--force"]).expect(0);
    assert!(!mounted.is_mounted());
    kill_process(pid, Signal::CONT).unwrap();
    await_end(pid);
}

#[test]
fn a_mount_in_the_foreground_ends_cleanly_at_a_signal() {
    use std::io::{BufRead as _, BufReader};
    let mounted = Mounted::new();
    for (stop, by_umount) in [(Signal::TERM, false), (Signal::INT, false), (Signal::TERM, true)] {
        let typed = mounted.arguments(&["mount", "web", "DIR", "--foreground", "--json"]);
        let mut child =
            mounted.place.command(typed).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(pid_of(&said), Pid::from_child(&child));
        fs::write(mounted.directory.join("written"), "written").unwrap();
        if by_umount {
            mounted.run(&["umount", "DIR"]).expect(0);
        } else {
            kill_process(Pid::from_child(&child), stop).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!mounted.is_mounted());
    }
}

/// Every file of an upper, by its path below it.
fn files_of(upper: &Path) -> Vec<PathBuf> {
    let list =
        Command::new("find").arg(upper).args(["-type", "f", "-size", "+0", "-not", "-name", "log"]).output();
    let text = String::from_utf8(list.unwrap().stdout).unwrap();
    text.lines().map(|line| Path::new(line).strip_prefix(upper).unwrap().to_owned()).collect()
}

#[test]
fn an_upper_that_is_damaged_is_an_error_or_still_right() {
    let mounted = Mounted::new();
    let upper = mounted.place.path("upper");
    let typed = ["mount", "web", "DIR", "--json", "--upper", upper.to_str().unwrap()];
    let answer = mounted.run(&typed).expect(0).json();
    fs::write(mounted.directory.join("hello.txt"), "changed\n").unwrap();
    fs::create_dir(mounted.directory.join("made")).unwrap();
    fs::write(mounted.directory.join("made/big"), sample::noise(21, 300_000)).unwrap();
    mounted.unmount(&answer);
    let files = files_of(&upper);
    assert!(files.iter().any(|file| file.ends_with("journal")), "{files:?}");
    let before = fingerprint(&mounted.place.store);

    let whole = mounted.place.path("whole");
    fs::rename(&upper, &whole).unwrap();
    for file in files.iter().filter(|file| !file.ends_with("lock")) {
        let bytes = fs::read(whole.join(file)).unwrap();
        let random = sample::noise(22, bytes.len());
        let half = &bytes[..bytes.len() / 2];
        let elf = fs::read("/bin/true").unwrap();
        for spoiled in [b"".as_slice(), half, &bytes[..bytes.len() - 1], &random, &elf] {
            assert!(Command::new("cp").arg("-a").arg(&whole).arg(&upper).status().unwrap().success());
            fs::write(upper.join(file), spoiled).unwrap();
            let run = mounted.run(&typed);
            assert!([0, 2].contains(&run.code), "{file:?}: {}", run.stderr);
            if run.code == 0 {
                Command::new("ls").arg("-lR").arg(&mounted.directory).output().unwrap();
                assert_eq!(fs::read(mounted.directory.join("docs/text")).unwrap().len(), 400_000);
                mounted.unmount(&run.json());
            }
            assert!(!mounted.is_mounted());
            let log = fs::read_to_string(upper.join("log")).unwrap();
            assert!(!log.contains("panicked"), "{file:?}: {log}");
            fs::remove_dir_all(&upper).unwrap();
        }
    }
    assert_eq!(fingerprint(&mounted.place.store), before);
}
