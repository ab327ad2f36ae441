//! `snapctl doctor` and `init` on real servers: what they find, record, say and keep to themselves.

use crate::{SEAWEED, prefix, write_keys};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use store::{Guarantees, S3Tier, Tier as _};
use tests::servers::{ACCESS_KEY, BUCKET, Rclone, SECRET_KEY, settings};
use tests::snapctl::{Place, Run};

/// A place whose cold tier is a bucket, its keys in a file.
struct Scene {
    place: Place,
    config: PathBuf,
    keys: PathBuf,
    prefix: String,
}

impl Scene {
    fn new(endpoint: &str, shared: bool) -> Self {
        let place = Place::new();
        let (config, keys, prefix) = (place.path("config.toml"), place.path("keys.toml"), prefix("doctor"));
        write_keys(&keys, &format!("access_key = {ACCESS_KEY:?}\nsecret_key = {SECRET_KEY:?}\n"));
        let text = format!(
            "store = {:?}\nshared = {shared}\n[tiers.cold]\nbucket = {BUCKET:?}\nprefix = {prefix:?}\n\
             endpoint = {endpoint:?}\ncredentials = {keys:?}\ncall_seconds = 20\n",
            place.store
        );
        fs::write(&config, text).unwrap();
        Self { place, config, keys, prefix }
    }

    fn run(&self, words: &[&str]) -> Run {
        self.place.run_with(&[("TORPOR_CONFIG", self.config.as_os_str())], words)
    }

    fn recorded(&self, endpoint: &str) -> Guarantees {
        S3Tier::new(&settings(endpoint, &self.prefix)).unwrap().guarantees().unwrap()
    }
}

fn property<'a>(document: &'a Value, name: &str) -> &'a Value {
    let properties = document["properties"].as_array().unwrap();
    properties.iter().find(|row| row["property"] == name).unwrap_or_else(|| panic!("{name}: {document}"))
}

#[test]
fn doctor_sees_what_seaweedfs_guarantees_and_records_it() {
    let scene = Scene::new(&SEAWEED.endpoint(), true);
    let dry = scene.run(&["doctor", "--tier", "cold", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(scene.recorded(&SEAWEED.endpoint()), Guarantees::NONE, "nothing is recorded by a dry run");
    assert_eq!((&dry["fit_for"], &dry["recorded"]), (&"many".into(), &false.into()));
    let run = scene.run(&["doctor"]).expect(0);
    let text = run.text();
    for said in ["hot tier", "cold tier s3://", "put-if-absent", "yes", "fit for many hosts", "unnamed-files"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(scene.recorded(&SEAWEED.endpoint()).is_fit_for_many());
    let races = property(&dry, "put-if-absent")["evidence"].as_str().unwrap();
    assert!(races.contains("8 writers at once") && races.contains("winners: 1, 1"), "{races}");
}

#[test]
fn doctor_sees_through_a_server_that_ignores_conditions() {
    let rclone = Rclone::start();
    let scene = Scene::new(&rclone.endpoint(), false);
    let document = scene.run(&["doctor", "--tier", "cold", "--json"]).expect(1).json();
    assert_eq!(document["fit_for"], "single_owner");
    for name in ["put-if-absent", "compare-and-swap"] {
        assert_eq!(property(&document, name)["holds"], false, "{document}");
    }
    for name in ["read-after-write", "list-after-write", "ranges"] {
        assert_eq!(property(&document, name)["holds"], true, "{document}");
    }
    let text = scene.run(&["doctor", "--tier", "cold"]).expect(1).text();
    assert!(text.contains("NO") && text.contains("fit for a single host only"), "{text}");
    assert!(!scene.recorded(&rclone.endpoint()).put_if_absent);
    let made = scene.run(&["init"]).expect(0).text();
    assert!(made.contains("single host only"), "{made}");
}

#[test]
fn no_secret_is_said_whatever_goes_wrong() {
    let scene = Scene::new(&SEAWEED.endpoint(), false);
    let loud = |words: &[&str]| {
        let variables = [("TORPOR_CONFIG", scene.config.as_os_str()), ("TORPOR_LOG", OsStr::new("trace"))];
        let run = scene.place.run_with(&variables, words);
        let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout).into_owned(), run.stderr.clone());
        assert!(!stderr.contains(SECRET_KEY) && !stdout.contains(SECRET_KEY), "a secret was said");
        assert!(!stderr.contains("hush-token") && !stdout.contains("hush-token"), "a token was said");
        run
    };
    loud(&["doctor", "--tier", "cold", "-vv"]).expect(0);
    let wrong = format!("access_key = 'unknown'\nsecret_key = {SECRET_KEY:?}\nsession_token = 'hush-token'");
    fs::write(&scene.keys, wrong).unwrap();
    loud(&["doctor", "--tier", "cold"]).expect(2).complains("check the keys");
    fs::write(&scene.keys, format!("secret_key = {SECRET_KEY}")).unwrap();
    loud(&["doctor"]).expect(2).complains("access_key");
    fs::remove_file(&scene.keys).unwrap();
    loud(&["doctor"]).expect(2).complains("keys.toml");
}

#[test]
fn a_bucket_that_is_not_there_or_does_not_answer_is_named() {
    let scene = Scene::new(&SEAWEED.endpoint(), false);
    let text = fs::read_to_string(&scene.config).unwrap();
    fs::write(&scene.config, text.replace(BUCKET, "no-such-bucket")).unwrap();
    // SeaweedFS creates missing buckets for keys that may do that; this key may not.
    let unknown = "access_key = 'unknown'\nsecret_key = 'unknown'";
    fs::write(&scene.keys, unknown).unwrap();
    scene.run(&["doctor", "--tier", "cold"]).expect(2).complains("no-such-bucket");
    let silent =
        text.replace(&SEAWEED.endpoint(), "http://127.0.0.1:9").replace("call_seconds = 20", "attempts = 3");
    fs::write(&scene.config, silent).unwrap();
    scene.run(&["doctor", "--tier", "cold"]).expect(2).complains("after 3 attempts");
}

#[test]
fn doctor_looks_at_directories_too() {
    let place = Place::new();
    let run = place.run(["doctor", "--json"]).expect(0);
    let document = run.json();
    assert_eq!((&document["tier"], &document["fit_for"]), (&"hot".into(), &"many".into()));
    assert_eq!(property(&document, "locks")["holds"], true);
    assert!(!place.store.exists(), "it is left as it was");
    let proc = place.run_with(&[("TORPOR_STORE", OsStr::new("/proc/self"))], ["doctor"]);
    proc.expect(2).complains("/proc/self");
}
