//! Where the configuration comes from, and the errors for wrong ones.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use tests::snapctl::{Place, Run};

/// The path of the store that `init` made with these variables and arguments.
fn init(place: &Place, variables: &[(&str, &OsStr)], arguments: &[&OsStr]) -> String {
    let mut all = vec![OsStr::new("init"), OsStr::new("--json")];
    all.extend(arguments);
    let run = place.run_with(variables, all).expect(0);
    run.json()["path"].as_str().unwrap().to_owned()
}

fn write_config(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn flag_over_environment_over_file_over_default() {
    let place = Place::new();
    let [flag, environment, file, user] =
        ["flag", "environment", "file", "user"].map(|name| place.path(name));
    let config = place.path("config.toml");
    write_config(&config, &format!("store = {file:?}"));
    write_config(&place.path("home/config/torpor/config.toml"), &format!("store = {user:?}"));

    let variables = [("TORPOR_STORE", environment.as_os_str()), ("TORPOR_CONFIG", config.as_os_str())];
    let typed = [OsStr::new("--store"), flag.as_os_str()];
    assert_eq!(init(&place, &variables, &typed), flag.to_str().unwrap());
    assert_eq!(init(&place, &variables, &[]), environment.to_str().unwrap());
    assert_eq!(init(&place, &variables[1..], &[]), file.to_str().unwrap());
    assert_eq!(init(&place, &[], &[]), user.to_str().unwrap());
}

#[test]
fn config_flag_over_config_variable() {
    let place = Place::new();
    let (flag, variable) = (place.path("flag.toml"), place.path("variable.toml"));
    write_config(&flag, &format!("store = {:?}", place.path("by-flag")));
    write_config(&variable, &format!("store = {:?}", place.path("by-variable")));
    let made =
        init(&place, &[("TORPOR_CONFIG", variable.as_os_str())], &["--config".as_ref(), flag.as_os_str()]);
    assert_eq!(made, place.path("by-flag").to_str().unwrap());
}

#[test]
fn somebody_who_is_not_root_has_a_store_without_any_configuration() {
    let place = Place::new();
    let data = place.path("data");
    fs::create_dir(&data).unwrap();
    let opened = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&data, opened).unwrap();
    fs::set_permissions(data.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // The binary may lie where others may not look.
    let copy = place.path("snapctl");
    // Copied by a process of its own: a child that another test forks meanwhile would keep the copy open for writing.
    let copied = std::process::Command::new("cp").arg(tests::snapctl::binary()).arg(&copy).status().unwrap();
    assert!(copied.success());
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&copy)
        .args(["init", "--json"])
        .env_remove("TORPOR_STORE")
        .env_remove("TORPOR_CONFIG")
        .env("HOME", "/nonexistent")
        .env("XDG_DATA_HOME", &data)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made["path"], data.join("torpor").to_str().unwrap());
}

#[test]
fn two_tiers_of_a_file_are_used() {
    let place = Place::new();
    let (hot, warm, config) = (place.path("hot"), place.path("warm"), place.path("config.toml"));
    fs::create_dir(&warm).unwrap();
    write_config(
        &config,
        &format!("level = 9\ncache_bytes = 67108864\n[tiers]\nhot = {hot:?}\nwarm = {warm:?}"),
    );
    let variables = [("TORPOR_CONFIG", config.as_os_str())];
    assert_eq!(init(&place, &variables, &[]), hot.to_str().unwrap());
    let source = place.path("source");
    crate::sample::make(&source);
    let run = |arguments: &[&OsStr]| place.run_with(&variables, arguments).expect(0);
    run(&["backup".as_ref(), source.as_os_str(), "web".as_ref()]);
    // A pack that lies only on the warm tier is read from there.
    for writer in fs::read_dir(hot.join("packs")).unwrap().flatten() {
        let target = warm.join("packs").join(writer.file_name());
        fs::create_dir_all(&target).unwrap();
        for pack in fs::read_dir(writer.path()).unwrap().flatten() {
            fs::rename(pack.path(), target.join(pack.file_name())).unwrap();
        }
    }
    assert_eq!(run(&["cat".as_ref(), "web:hello.txt".as_ref()]).text(), "hello, store\n");
    run(&["check".as_ref(), "--read-data".as_ref()]);
    // Data that was read is local until the cache is emptied; metadata stays local.
    run(&["cache".as_ref(), "trim".as_ref(), "--to".as_ref(), "0".as_ref()]);
    let (store, target) = ([("TORPOR_STORE", hot.as_os_str())], place.path("restored"));
    let without = place.run_with(&store, [OsStr::new("restore"), OsStr::new("web"), target.as_os_str()]);
    without.expect(2).complains("pack");
}

fn wrong(place: &Place, text: &str) -> Run {
    let config = place.path("wrong.toml");
    write_config(&config, text);
    place.run_with(&[("TORPOR_CONFIG", config.as_os_str())], ["snapshots"]).expect(2).complains("wrong.toml")
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let place = Place::with_store();
    wrong(&place, "stroe = '/x'").complains("stroe");
    wrong(&place, "[tiers]\nhotter = '/x'").complains("hotter");
    wrong(&place, "store = 'here'").complains("`store`");
    wrong(&place, "level = 99").complains("`level`");
    wrong(&place, "store = [").complains("line 1");
    wrong(&place, "\u{1f}\0binary").complains("wrong");
    place
        .run_with(&[("TORPOR_CONFIG", OsStr::new("/nonexistent.toml"))], ["snapshots"])
        .expect(2)
        .complains("/nonexistent.toml");
    place.run_with(&[("TORPOR_CONFIG", OsStr::new("/proc"))], ["snapshots"]).expect(2).complains("/proc");
    let variables = [("TORPOR_STORE", place.store.as_os_str()), ("TORPOR_LOG", OsStr::new("store=louder"))];
    place.run_with(&variables, ["snapshots"]).expect(2).complains("TORPOR_LOG");
}
