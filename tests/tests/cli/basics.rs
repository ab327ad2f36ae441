//! Help, version, completions, usage errors, and where output goes.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tests::snapctl::Place;

use crate::sample;

/// Every command that `snapctl --help` lists, in its order, but for `help` itself.
pub(crate) fn verbs() -> Vec<String> {
    let help = Place::new().run(["--help"]).expect(0).text();
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A line that goes on with a description is indented by more.
    let named = listed.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    let verbs = named.filter_map(|line| line.split_whitespace().next().map(str::to_owned));
    let verbs: Vec<String> = verbs.filter(|verb| verb != "help").collect();
    assert!(verbs.len() >= 25 && verbs.contains(&"scrub".to_owned()), "{verbs:?} of\n{help}");
    verbs
}

#[test]
fn every_verb_has_help() {
    let place = Place::new();
    for verb in verbs() {
        let own = place.run([&verb, "--help"]).expect(0).text();
        assert!(own.contains("Usage:") && own.contains("--json"), "{own}");
    }
    assert!(place.run(["--help"]).expect(0).text().contains("Exit codes"));
}

#[test]
fn the_table_of_the_readme_has_every_verb() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let table = readme.lines().skip_while(|line| *line != "| command | purpose |").skip(2);
    let rows = table.take_while(|line| line.starts_with("| `"));
    let named: Vec<&str> = rows.filter_map(|row| row.split(['`', ' ']).nth(2)).collect();
    assert_eq!(named, verbs());
}

#[test]
fn what_is_not_understood_is_told_to_programs_too() {
    let place = Place::with_store();
    for typed in [
        &["forget", "web", "--keep-last", "0", "--json"][..],
        &["gc", "--dry-run", "--cycles", "3", "--json"],
        &["no-such-verb", "--json"],
    ] {
        let error = place.run(typed).expect(2).json_error();
        assert_eq!((&error["kind"], &error["exit_code"]), (&"invalid".into(), &2.into()), "{error}");
        assert!(!error["message"].as_str().unwrap().is_empty(), "{error}");
    }
}

#[test]
fn an_error_cannot_move_the_terminals_cursor() {
    let place = Place::with_store();
    let run = place.run(["show", "web\x1b]0;title\x07\x1b[31m"]).expect(1);
    assert!(!run.stderr.contains(['\x1b', '\x07']), "{:?}", run.stderr);
    let source = place.path("source\x1b[31m");
    let run = place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(2);
    assert!(run.stderr.contains("source\\u{1b}[31m"), "{:?}", run.stderr);
}

#[test]
fn version_says_what_this_build_reads() {
    let place = Place::new();
    let version = place.run(["version", "--json"]).expect(0).json();
    assert_eq!(version["format_version"], 1);
    assert!(version["features"].as_array().unwrap().iter().any(|feature| feature == "criu"));
    let text = place.run(["version"]).expect(0).text();
    assert!(text.contains(version["version"].as_str().unwrap()), "{text}");
    assert!(place.run(["--version"]).expect(0).text().starts_with("snapctl "));
}

#[test]
fn completions_are_scripts_that_their_shell_accepts() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.run(["completions", shell]).expect(0).text();
        assert!(script.contains("snapctl") && script.contains("umount"), "{shell}");
    }
    let path = place.path("completion");
    std::fs::write(&path, place.run(["completions", "bash"]).stdout).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&path).status().unwrap().success());
}

#[test]
fn every_verb_has_a_manual_page() {
    let place = Place::new();
    let pages = place.path("man1");
    place.run(["man".as_ref(), pages.as_os_str()]).expect(0);
    let of_verbs = verbs().into_iter().map(|verb| format!("snapctl-{verb}.1"));
    for page in of_verbs.chain(["snapctl.1".to_owned()]) {
        let text = std::fs::read_to_string(pages.join(&page)).unwrap();
        assert!(text.contains(".SH OPTIONS") && text.contains("snapctl"), "{page}: {text}");
    }
    assert!(!pages.join("snapctl-man.1").exists(), "packages have that verb, users do not");
    let file = place.path("file");
    std::fs::write(&file, "in the way").unwrap();
    place.run(["man".as_ref(), file.as_os_str()]).expect(2).complains("manual pages");
}

#[test]
fn version_and_completions_need_no_configuration() {
    let place = Place::new();
    let config = place.path("broken.toml");
    std::fs::write(&config, "no such key").unwrap();
    for arguments in [["version"].as_slice(), &["completions", "bash"]] {
        place.run_with(&[("TORPOR_CONFIG", config.as_os_str())], arguments).expect(0);
    }
}

#[test]
fn wrong_usage_is_2_and_answers_nothing() {
    let place = Place::with_store();
    for arguments in [
        ["fetch"].as_slice(),
        &[],
        &["backup", "/tmp"],
        &["backup", "/tmp", "web", "--label", "nokey"],
        &["cat"],
        &["cat", "web:../x"],
        &["forget", "web"],
        &["forget", "web", "abcdef", "--keep-last", "1"],
        &["forget", "web", "--keep-within", "yesterday"],
        &["capture", "web"],
        &["capture", "web", "--raw", "a", "--criu", "b"],
        &["capture", "web", "--firecracker", "memory"],
        &["resume", "web"],
        &["resume", "web", "--uffd-socket", "s"],
        &["resume", "web", "--criu-dir", "d", "--", "--extra"],
        &["gc", "--cycles", "0"],
        &["completions", "tcsh"],
        &["index"],
    ] {
        let run = place.run(arguments).expect(2);
        assert!(run.stdout.is_empty(), "{arguments:?}");
        assert!(!run.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let place = Place::with_store();
    let error = place.run(["--json", "show", "nobody"]).expect(1).json_error();
    assert_eq!((&error["kind"], &error["exit_code"]), (&"not_found".into(), &1.into()));
    assert!(error["message"].as_str().unwrap().contains("nobody"));
    let error = place.run(["init", "--json"]).expect(2).json_error();
    assert_eq!((&error["kind"], &error["exit_code"]), (&"conflict".into(), &2.into()));
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let place = Place::with_store();
    let source = place.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("big"), sample::noise(3, 4 << 20)).unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);

    let mut child =
        place.command(["cat", "web:big"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    let place = Place::with_store();
    for arguments in [["version"].as_slice(), &["snapshots"], &["completions", "bash"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = place.command(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains("standard output"), "{stderr}");
    }
}

#[test]
fn quiet_says_nothing_but_what_was_asked_for() {
    let place = Place::new();
    assert_eq!(place.run(["init", "--quiet"]).expect(0).text(), "");
    let source = place.path("source");
    sample::make(&source);
    let run = place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref(), "-q".as_ref()]).expect(0);
    assert_eq!((run.text().as_str(), run.stderr.as_str()), ("", ""));
    assert_eq!(place.run(["cat", "web:hello.txt", "-q"]).expect(0).text(), "hello, store\n");
}

#[test]
fn progress_is_drawn_on_a_terminal_and_nowhere_else() {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    let on_terminal = |more: &str| {
        let snapctl = tests::snapctl::binary().display();
        let typed =
            format!("{snapctl} --store {} backup {} web {more}", place.store.display(), source.display());
        let mut script = Command::new("script");
        // A terminal that is called dumb, or not at all, gets no progress.
        script.args(["-qec", &typed, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
        let script = script.output().unwrap();
        assert!(script.status.success());
        String::from_utf8_lossy(&script.stdout).into_owned()
    };
    assert!(on_terminal("").contains("back up"));
    for silent in ["--quiet", "--json", "-v"] {
        assert!(!on_terminal(silent).contains("back up"), "{silent}");
    }
    let run = place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    assert_eq!(run.stderr, "");
}
