//! Memory images through the command line: captured, compared with their parent, described, and refused where they do
//! not fit. That resumed memory is right is shown with real processes and machines elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use tests::snapctl::{Place, Run};

use crate::sample;

const PAGE: usize = 4096;

fn capture(place: &Place, kind: &str, path: &Path, more: &[&str]) -> Run {
    let mut arguments = vec![OsStr::new("capture"), OsStr::new(kind), path.as_os_str(), OsStr::new("--json")];
    arguments.extend(more.iter().map(OsStr::new));
    place.run(arguments)
}

#[test]
fn a_second_capture_costs_what_changed() {
    let place = Place::with_store();
    let memory = place.path("memory");
    let mut bytes = [sample::noise(31, 512 * PAGE), vec![0; 256 * PAGE]].concat();
    fs::write(&memory, &bytes).unwrap();
    let first = capture(&place, "--raw", &memory, &["app"]).expect(0).json();
    assert_eq!((&first["zero_pages"], &first["new_pages"]), (&256.into(), &512.into()), "{first}");
    bytes[10 * PAGE..11 * PAGE].copy_from_slice(&sample::noise(32, PAGE));
    fs::write(&memory, &bytes).unwrap();
    let second = capture(&place, "--raw", &memory, &["app", "--label", "n=2"]).expect(0).json();
    assert_eq!((&second["new_pages"], &second["pages_same_as_parent"]), (&1.into(), &511.into()), "{second}");
    assert!(second["stored_bytes"].as_u64().unwrap() < 64 * 1024, "{second}");
    let other = capture(&place, "--raw", &memory, &["fork", "--parent", "app~1"]).expect(0).json();
    assert_eq!(other["new_pages"], 1, "{other}");

    let shown = place.run(["show", "app", "--json"]).expect(0).json();
    assert_eq!((&shown["image"]["kind"], &shown["labels"]["n"]), (&"raw".into(), &"2".into()));
    assert_eq!(shown["image"]["spaces"][0]["len_bytes"], bytes.len());
    place.run(["ls", "app"]).expect(2).complains("memory");
    place.run(["diff", "app~1", "app"]).expect(1);
    assert!(place.run(["snapshots", "app"]).expect(0).text().contains("memory"));
    place.run(["check", "--read-data"]).expect(0);
}

#[test]
fn a_parent_that_is_being_collected_is_refused() {
    let place = Place::with_store();
    let memory = place.path("memory");
    fs::write(&memory, sample::noise(35, 64 * PAGE)).unwrap();
    let first = capture(&place, "--raw", &memory, &["old"]).expect(0).json();
    let parent = first["snapshot"].as_str().unwrap();
    place.run(["forget", "old", parent]).expect(0);
    place.run(["gc"]).expect(0);
    capture(&place, "--raw", &memory, &["new", "--parent", parent]).expect(2).complains("being collected");
    place.run(["show", "new"]).expect(1);
    let alone = capture(&place, "--raw", &memory, &["new"]).expect(0).json();
    assert_eq!(alone["new_pages"], 64, "{alone}");
    place.run(["gc", "--cycles", "4"]).expect(0);
    place.run(["check", "--read-data"]).expect(0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = Place::with_store();
    let (memory, source) = (place.path("memory"), place.path("source"));
    fs::write(&memory, sample::noise(33, 4 * PAGE)).unwrap();
    fs::create_dir(&source).unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    capture(&place, "--raw", &memory, &["app", "--parent", "web"]).expect(2).complains("no memory image");
    capture(&place, "--raw", &memory, &["app", "--parent", "nobody"]).expect(1).complains("nobody");
    capture(&place, "--raw", &memory, &["app"]).expect(0);

    let target = place.path("target");
    let resume = |spec: &str, more: &[&OsStr]| {
        let mut arguments = vec![OsStr::new("resume"), OsStr::new(spec)];
        arguments.extend(more);
        place.run(arguments)
    };
    let criu = [OsStr::new("--criu-dir"), target.as_os_str()];
    resume("nobody", &criu).expect(1).complains("nobody");
    resume("web", &criu).expect(2).complains("no memory image");
    resume("app", &criu).expect(2);
    let (socket, state) = (place.path("socket"), place.path("state"));
    let machine = ["--uffd-socket".as_ref(), socket.as_os_str(), "--vmstate".as_ref(), state.as_os_str()];
    resume("app", &machine).expect(2);
    assert!(!state.exists() && !socket.exists());
}

#[test]
fn a_machine_that_never_comes_is_not_waited_for_for_ever() {
    let place = Place::with_store();
    let (memory, state) = (place.path("memory"), place.path("vmstate"));
    fs::write(&memory, sample::noise(34, 16 * PAGE)).unwrap();
    fs::write(&state, "state of the devices").unwrap();
    capture(&place, "--firecracker", &memory, &["--vmstate", state.to_str().unwrap(), "vm"]).expect(0);
    let (socket, target) = (place.path("socket"), place.path("target"));
    let typed: Vec<&OsStr> = vec![
        "resume".as_ref(),
        "vm".as_ref(),
        "--json".as_ref(),
        "--uffd-socket".as_ref(),
        socket.as_os_str(),
        "--vmstate".as_ref(),
        target.as_os_str(),
        "--accept-timeout".as_ref(),
        "1".as_ref(),
    ];
    let run = place.run(&typed).expect(2);
    let ready = &run.json_lines()[0];
    assert_eq!((&ready["event"], &ready["socket"]), (&"ready".into(), &socket.to_str().unwrap().into()));
    assert_eq!(run.json_error()["kind"], "unavailable");
    // A failed resume leaves nothing in the way of the next.
    assert!(!target.exists() && !socket.exists());
    place.run(&typed).expect(2).complains("nobody connected");
    // The state file may belong to a machine that runs by now: it is not written over, and not removed.
    fs::write(&target, "another").unwrap();
    place.run(&typed).expect(2).complains("target");
    assert_eq!(fs::read_to_string(&target).unwrap(), "another");
}

#[test]
fn a_diff_file_is_applied_to_the_parent_that_is_named_and_else_refused() {
    let place = Place::with_store();
    let (memory, state) = (place.path("memory"), place.path("state"));
    fs::write(&memory, sample::noise(50, 64 * PAGE)).unwrap();
    fs::write(&state, "state").unwrap();
    let machine = ["--vmstate", state.to_str().unwrap(), "vm"];
    let first = capture(&place, "--firecracker", &memory, &machine).expect(0).json();
    assert_eq!((&first["parent"], &first["new_pages"]), (&serde_json::Value::Null, &64.into()), "{first}");
    let id = first["snapshot"].as_str().unwrap();

    let diff = place.path("diff");
    let file = fs::File::create_new(&diff).unwrap();
    file.set_len(64 * PAGE as u64).unwrap();
    file.write_all_at(&sample::noise(51, PAGE), 7 * PAGE as u64).unwrap();
    let with = |more: &[&str]| capture(&place, "--firecracker", &diff, &[&machine, more].concat());
    // Nothing says what its holes mean, or what they are pages of.
    with(&[]).expect(2).complains("--full").complains("--diff");
    with(&["--diff"]).expect(2).complains("--parent");
    with(&["--diff", "--full", "--parent", "vm"]).expect(2);
    capture(&place, "--raw", &diff, &["raw"]).expect(2).complains("--full");
    capture(&place, "--raw", &diff, &["raw", "--diff", "--parent", "vm"]).expect(2).complains("kind");
    capture(&place, "--criu", &place.path(""), &["raw", "--diff", "--parent", "vm"]).expect(2);
    assert_eq!(place.run(["snapshots", "--json"]).expect(0).json_lines().len(), 1, "nothing was stored");

    let second = with(&["--diff", "--parent", id]).expect(0).json();
    assert_eq!(second["parent"], id, "{second}");
    let counted =
        ["pages", "new_pages", "inherited_pages", "zero_pages"].map(|key| second[key].as_u64().unwrap());
    assert_eq!(counted, [64, 1, 63, 0], "{second}");
    // The same as the complete memory, page for page: captured in full it has nothing new.
    let mut whole = fs::read(&memory).unwrap();
    whole[7 * PAGE..8 * PAGE].copy_from_slice(&sample::noise(51, PAGE));
    fs::write(&memory, whole).unwrap();
    let third = capture(&place, "--firecracker", &memory, &machine).expect(0).json();
    assert_eq!((&third["pages_same_as_parent"], &third["new_pages"]), (&64.into(), &0.into()), "{third}");
    // Said to be full, the diff is memory that is zero but for one page.
    let full = with(&["--full"]).expect(0).json();
    assert_eq!((&full["bytes"], &full["inherited_pages"]), (&(64 * PAGE).into(), &0.into()), "{full}");
    place.run(["check", "--read-data"]).expect(0);
}

#[test]
fn a_state_file_that_is_empty_is_refused() {
    let place = Place::with_store();
    let (memory, state) = (place.path("memory"), place.path("state"));
    fs::write(&memory, sample::noise(52, PAGE)).unwrap();
    fs::write(&state, "").unwrap();
    let machine = ["--vmstate", state.to_str().unwrap(), "vm"];
    capture(&place, "--firecracker", &memory, &machine).expect(2).complains("empty");
}

#[test]
fn memory_is_captured_from_a_file_system_that_cannot_be_written_or_synced() {
    let place = Place::with_store();
    let (source, image, mounted) = (place.path("source"), place.path("image"), place.path("mounted"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&mounted).unwrap();
    fs::write(source.join("memory"), sample::noise(53, 64 * PAGE)).unwrap();
    fs::write(source.join("state"), "state").unwrap();
    let state = mounted.join("state");
    for make in [["mkfs.erofs", "--quiet"], ["mksquashfs", "-quiet"]] {
        let mut command = Command::new(make[0]);
        match make[0] {
            "mkfs.erofs" => command.arg(make[1]).arg(&image).arg(&source),
            _ => command.arg(&source).arg(&image).args([make[1], "-noappend", "-no-progress"]),
        };
        assert!(command.status().unwrap().success(), "{make:?}");
        let status =
            Command::new("mount").args(["-o", "loop,ro"]).arg(&image).arg(&mounted).status().unwrap();
        assert!(status.success(), "{make:?} is mounted");
        let memory = mounted.join("memory");
        let machine = ["--vmstate", state.to_str().unwrap(), make[0]];
        let outcomes = [
            capture(&place, "--firecracker", &memory, &machine),
            capture(&place, "--raw", &memory, &[make[0]]),
        ];
        assert!(Command::new("umount").arg(&mounted).status().unwrap().success());
        for outcome in outcomes {
            let stored = outcome.expect(0).json();
            let pages = ["pages", "zero_pages"].map(|key| stored[key].as_u64().unwrap());
            assert_eq!(pages, [64, 0], "{stored}");
        }
    }
}
