//! Paths that are not there, or are not what they should be, or may not be read.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tests::snapctl::{Place, fingerprint};

use crate::{basics, sample};

/// Verbs that need no store, or find theirs by their mount.
const WITHOUT_A_STORE: [&str; 6] = ["init", "umount", "freeze", "doctor", "completions", "version"];

fn with_backup() -> Place {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    place
}

#[test]
fn a_path_that_is_wrong_is_named_and_nothing_changes() {
    let place = with_backup();
    let (missing, file) = (place.path("missing"), place.path("file"));
    fs::write(&file, "a file").unwrap();
    let (missing, file, directory) = (missing.as_os_str(), file.as_os_str(), place.path("source"));
    let directory = directory.as_os_str();
    let below_file = Path::new(file).join("below");
    let before = fingerprint(&place.store);
    let cases: Vec<(Vec<&OsStr>, &OsStr)> = vec![
        (vec!["backup".as_ref(), missing, "web".as_ref()], missing),
        (vec!["backup".as_ref(), below_file.as_os_str(), "web".as_ref()], below_file.as_os_str()),
        (vec!["restore".as_ref(), "web".as_ref(), file], file),
        (vec!["restore".as_ref(), "web".as_ref(), below_file.as_os_str()], below_file.as_os_str()),
        (vec!["restore".as_ref(), "web:hello.txt".as_ref(), directory], directory),
        (vec!["mount".as_ref(), "web".as_ref(), missing], missing),
        (vec!["mount".as_ref(), "web".as_ref(), file], file),
        (vec!["capture".as_ref(), "--raw".as_ref(), missing, "m".as_ref()], missing),
        (vec!["capture".as_ref(), "--raw".as_ref(), directory, "m".as_ref()], directory),
        (vec!["capture".as_ref(), "--criu".as_ref(), missing, "m".as_ref()], missing),
        (vec!["capture".as_ref(), "--criu".as_ref(), file, "m".as_ref()], file),
        (
            vec![
                "capture".as_ref(),
                "--firecracker".as_ref(),
                missing,
                "--vmstate".as_ref(),
                file,
                "m".as_ref(),
            ],
            missing,
        ),
        (
            vec![
                "capture".as_ref(),
                "--firecracker".as_ref(),
                directory,
                "--vmstate".as_ref(),
                file,
                "m".as_ref(),
            ],
            directory,
        ),
    ];
    for (arguments, named) in cases {
        let run = place.run(&arguments).expect(2);
        let name = Path::new(named).file_name().unwrap().to_str().unwrap();
        assert!(run.stderr.contains(name), "{arguments:?} does not name {name}: {}", run.stderr);
        assert!(run.stdout.is_empty());
        assert_eq!(fingerprint(&place.store), before, "{arguments:?} changed the store");
    }
    for arguments in
        [["umount".as_ref(), directory], ["freeze".as_ref(), directory], ["umount".as_ref(), missing]]
    {
        place.run(arguments).expect(1);
    }
}

#[test]
fn a_place_without_a_store_is_an_error_for_every_verb() {
    let place = Place::new();
    fs::create_dir(&place.store).unwrap();
    fs::write(place.store.join("something"), "else").unwrap();
    let (file, source) = (place.path("file"), place.path("source"));
    fs::write(&file, "a file").unwrap();
    fs::create_dir(&source).unwrap();
    let mut tried = BTreeSet::from(WITHOUT_A_STORE.map(str::to_owned));
    for store in [place.store.as_path(), &file, &place.path("missing")] {
        let target = place.path("target");
        for arguments in [
            vec!["backup".as_ref(), source.as_os_str(), "web".as_ref()],
            vec!["restore".as_ref(), "web".as_ref(), target.as_os_str()],
            vec!["snapshots".as_ref()],
            vec!["show".as_ref(), "web".as_ref()],
            vec!["ls".as_ref(), "web".as_ref()],
            vec!["cat".as_ref(), "web:x".as_ref()],
            vec!["diff".as_ref(), "a".as_ref(), "b".as_ref()],
            vec!["mount".as_ref(), "web".as_ref(), source.as_os_str()],
            vec!["capture".as_ref(), "--raw".as_ref(), file.as_os_str(), "m".as_ref()],
            vec!["resume".as_ref(), "m".as_ref(), "--criu-dir".as_ref(), target.as_os_str()],
            vec!["forget".as_ref(), "web".as_ref(), "--keep-last".as_ref(), "1".as_ref()],
            vec!["gc".as_ref()],
            vec!["check".as_ref()],
            vec!["stats".as_ref()],
            vec!["index".as_ref(), "rebuild".as_ref()],
            vec!["scrub".as_ref()],
            vec!["tier".as_ref(), "status".as_ref()],
            vec!["cache".as_ref(), "warm".as_ref(), "web".as_ref()],
            vec!["domain".as_ref(), "list".as_ref()],
        ] {
            tried.insert(arguments[0].to_str().unwrap().to_owned());
            let run = place.run_with(&[("TORPOR_STORE", store.as_os_str())], &arguments).expect(2);
            let name = store.file_name().unwrap().to_str().unwrap();
            assert!(run.stderr.contains(name), "{arguments:?} on {}: {}", store.display(), run.stderr);
        }
        assert!(!target.exists());
    }
    assert_eq!(tried, BTreeSet::from_iter(basics::verbs()));
    assert!(!place.path("missing").exists(), "a reader made a store directory");
    assert_eq!(fs::read(&file).unwrap(), b"a file");
}

#[test]
fn a_name_that_is_no_ref_is_refused() {
    let place = with_backup();
    let (before, source) = (fingerprint(&place.store), place.path("source"));
    for name in ["", "../escape", "a b", "-x", "a//b", "\u{e4}", &"x".repeat(300)] {
        let run = place.run(["backup".as_ref(), "--".as_ref(), source.as_os_str(), OsStr::new(name)]);
        assert_eq!(run.code, 2, "{name:?}: {}", run.stderr);
        assert_eq!(fingerprint(&place.store), before, "{name:?}");
    }
}

/// Runs snapctl as the user `nobody`, bound by permissions.
fn as_nobody(place: &Place, arguments: &[&OsStr]) -> Output {
    let copy = place.path("snapctl");
    if !copy.exists() {
        fs::copy(tests::snapctl::binary(), &copy).unwrap();
    }
    fs::set_permissions(copy.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&copy).args(arguments);
    command.env("TORPOR_STORE", &place.store).env("HOME", "/nonexistent").env_remove("TORPOR_CONFIG");
    command.output().unwrap()
}

#[test]
fn a_backup_without_the_files_it_may_not_read_is_partial() {
    let place = Place::new();
    let source = place.path("source");
    sample::make(&source);
    for secret in ["docs/text", "hello.txt"] {
        fs::set_permissions(source.join(secret), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::set_permissions(source.join("docs/deep"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(&place.store).unwrap();
    std::os::unix::fs::chown(&place.store, Some(65534), Some(65534)).unwrap();
    assert!(as_nobody(&place, &["init".as_ref()]).status.success());

    let output =
        as_nobody(&place, &["backup".as_ref(), source.as_os_str(), "web".as_ref(), "--json".as_ref()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let unreadable = report["unreadable"].as_array().unwrap();
    for secret in ["docs/text", "hello.txt", "docs/deep"] {
        assert!(unreadable.iter().any(|item| item.as_str().unwrap().contains(secret)), "{secret}: {report}");
        assert!(stderr.contains(secret), "{stderr}");
    }
    place.run(["check", "--read-data"]).expect(0);
    let odd = place.run(["ls", "-R", "web"]).expect(0).text();
    assert!(odd.contains("sparse") && !odd.contains("noise"), "{odd}");
}

#[test]
fn a_store_that_may_not_be_read_says_so() {
    let place = with_backup();
    fs::set_permissions(&place.store, fs::Permissions::from_mode(0o700)).unwrap();
    let output = as_nobody(&place, &["snapshots".as_ref()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("ermission denied") && stderr.contains("store"), "{stderr}");
}
