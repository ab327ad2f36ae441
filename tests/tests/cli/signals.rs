//! SIGINT, SIGTERM and SIGKILL in the middle of a write: nothing is incomplete, and nothing stays locked.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tests::snapctl::{Place, fingerprint};

use crate::sample;

/// Waits until the process holds the writer's lock.
pub(crate) fn await_lock(place: &Place, child: &mut Child) {
    let lock = place.store.join("local/lock");
    let wanted = format!("(pid {})", child.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string(&lock).is_ok_and(|text| text.contains(&wanted)) {
        assert!(child.try_wait().unwrap().is_none(), "the backup ended before it was interrupted");
        assert!(Instant::now() < deadline, "the backup never took the lock");
        std::thread::yield_now();
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn an_interrupted_backup_leaves_the_store_as_it_was() {
    let place = Place::with_store();
    let (small, big) = (place.path("small"), place.path("big"));
    sample::make(&small);
    fs::create_dir(&big).unwrap();
    for number in 0..8 {
        fs::write(big.join(number.to_string()), sample::noise(100 + number, 24 << 20)).unwrap();
    }
    place.run(["backup".as_ref(), small.as_os_str(), "web".as_ref()]).expect(0);
    let before = fingerprint(&place.store);
    let listed = place.run(["snapshots", "--json"]).expect(0).text();

    use rustix::process::Signal;
    for (stop, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)] {
        let mut child = place
            .command(["backup".as_ref(), big.as_os_str(), "web".as_ref()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        await_lock(&place, &mut child);
        signal(&child, stop);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), code, "{:?}: {stderr}", output.status.signal());
        assert!(code.is_none() || stderr.contains("interrupted"), "{stderr}");

        let after = fingerprint(&place.store);
        for (name, file) in &before {
            assert_eq!(after.get(name), Some(file), "{name} was changed");
        }
        assert_eq!(place.run(["snapshots", "--json"]).expect(0).text(), listed);
        place.run(["check", "--read-data"]).expect(0);
    }
    fs::remove_dir_all(&big).unwrap();
    place.run(["backup".as_ref(), small.as_os_str(), "web".as_ref()]).expect(0);
    place.run(["gc", "--cycles", "3"]).expect(0);
    place.run(["check", "--read-data"]).expect(0);
}
