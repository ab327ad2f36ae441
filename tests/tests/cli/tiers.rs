//! Tiers as an operator sees them: limits in the configuration, where packs lie, moving and pinning them, the cache of
//! slower tiers, and two hosts that share one place.

use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use tests::snapctl::{Place, Run};

/// A configured host of its own.
struct Host<'a> {
    place: &'a Place,
    config: PathBuf,
}

impl<'a> Host<'a> {
    fn new(place: &'a Place, name: &str, text: &str) -> Self {
        let config = place.path(&format!("{name}.toml"));
        let root = place.path(name);
        let text =
            text.replace("HOST", root.to_str().unwrap()).replace("FAR", place.path("far").to_str().unwrap());
        fs::write(&config, text).unwrap();
        Self { place, config }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        self.place.run_with(&[("TORPOR_CONFIG", self.config.as_os_str())], arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let run = self.run(&[arguments, &["--json"]].concat()).expect(0);
        serde_json::from_str(&run.text()).unwrap()
    }
}

const TIERED: &str = "store = 'HOST/hot'\nstate = 'HOST/state'\n[tiers]\nwarm = 'HOST/warm'\ncold = 'FAR'\n";
const SHARED: &str = "store = 'HOST/hot'\nstate = 'HOST/state'\nshared = true\n[tiers]\ncold = 'FAR'\n";

/// A directory with `len` bytes that do not compress.
fn noise(path: &Path, seed: u64, len: usize) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("noise"), tests::model::Random::new(seed).bytes(len)).unwrap();
}

fn bytes_on(host: &Host<'_>, class: &str) -> u64 {
    let status = host.json(&["tier", "status"]);
    let tiers = status["tiers"].as_array().unwrap();
    tiers.iter().find(|tier| tier["class"] == class).unwrap()["bytes"].as_u64().unwrap()
}

/// A directory with a log of so many lines.
fn log(path: &Path, lines: usize) {
    let mut random = tests::model::Random::new(lines as u64);
    let line = |number| format!("{number} GET /items/{} 200 {} us\n", random.below(500), random.below(9000));
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("log"), (0..lines).map(line).collect::<String>()).unwrap();
}

#[test]
fn what_came_to_a_slower_tier_is_recompressed_there() {
    let place = Place::new();
    let host = Host::new(&place, "one", &format!("level = 1\n{TIERED}[levels]\nwarm = 12\n"));
    host.run(&["init"]).expect(0);
    let source = place.path("source");
    log(&source, 100_000);
    host.run(&["backup", source.to_str().unwrap(), "app"]).expect(0);
    host.run(&["tier", "recompress"]).expect(0).says("recompressed 0 packs");
    host.run(&["tier", "move", "app", "--to", "warm"]).expect(0);
    let before = bytes_on(&host, "warm");
    host.run(&["tier", "recompress", "--unread", "1h"]).expect(0).says("recompressed 0 packs");
    let done = host.json(&["tier", "recompress", "--rate", "1G"]);
    assert_eq!((&done["packs"], &done["bytes_before"]), (&1.into(), &before.into()));
    assert!(done["bytes_after"].as_u64().unwrap() < before * 95 / 100, "{done}");
    host.run(&["gc", "--cycles", "3"]).expect(0);
    assert_eq!(bytes_on(&host, "warm"), done["bytes_after"].as_u64().unwrap());
    host.run(&["tier", "recompress"]).expect(0).says("recompressed 0 packs");
    let target = place.path("target");
    host.run(&["restore", "app", target.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read(target.join("log")).unwrap(), fs::read(source.join("log")).unwrap());
    host.run(&["check", "--read-data"]).expect(0);
    host.run(&["scrub"]).expect(0);
    let plain = Host::new(&place, "plain", "store = 'HOST/hot'");
    plain.run(&["init"]).expect(0);
    plain.run(&["tier", "recompress"]).expect(2).complains("no tier has a level").complains("levels.warm");
}

#[test]
fn limits_hold_and_packs_move_are_pinned_and_cached() {
    let place = Place::new();
    let host = Host::new(&place, "one", &format!("{TIERED}[limits]\nhot = '3M'\nwarm = '2M'"));
    host.run(&["init"]).expect(0);
    for number in 0..5 {
        let source = place.path(&format!("source-{number}"));
        noise(&source, number, 1_000_000);
        host.run(&["backup", source.to_str().unwrap(), &format!("app-{number}")]).expect(0);
        assert!(
            bytes_on(&host, "hot") <= 3_000_000 && bytes_on(&host, "warm") <= 2_000_000,
            "after {number}"
        );
    }
    host.run(&["tier", "status"]).expect(0).says("2.9 MiB").says("cold");
    // Everything goes to the cold tier, but for pinned packs.
    host.run(&["tier", "pin", "app-4"]).expect(0).says("pinned to the hot tier");
    host.run(&["tier", "move"]).expect(0);
    for name in ["app-0", "app-4"] {
        host.run(&["tier", "move", name, "--to", "cold", "--rate", "100M"]).expect(0);
    }
    let cold = bytes_on(&host, "cold");
    assert!((1_000_000..5_000_000).contains(&cold), "{cold} bytes are far");
    let before = host.json(&["cache", "info"]);
    let warmed = host.json(&["cache", "warm", "app-0"]);
    assert!(warmed["chunks"].as_u64().unwrap() >= 1, "{warmed}");
    assert!(warmed["bytes"].as_u64().unwrap() > before["bytes"].as_u64().unwrap(), "{before} then {warmed}");
    // Warmed packs are read without the cold tier.
    fs::rename(place.path("far"), place.path("away")).unwrap();
    let target = place.path("restored");
    host.run(&["restore", "app-0", target.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read(target.join("noise")).unwrap(), tests::model::Random::new(0).bytes(1_000_000));
    fs::rename(place.path("away"), place.path("far")).unwrap();
    assert_eq!(host.json(&["cache", "trim", "--to", "0"])["bytes"], 0);
    host.run(&["tier", "unpin", "app-4"]).expect(0).says("not pinned");
    host.run(&["check", "--read-data"]).expect(0).says(": ok");
    host.run(&["tier", "move", "app-0", "--to", "hot"]).expect(0);
    host.run(&["tier", "move", "app-0"]).expect(2).complains("--to");
    host.run(&["tier", "move", "--rate", "0"]).expect(2).complains("0");
    host.run(&["tier", "pin", "nobody"]).expect(2).complains("nobody");
    host.run(&["cache", "trim", "--to", "much"]).expect(2).complains("much");
}

#[test]
fn a_tier_that_the_store_lacks_is_named() {
    let place = Place::with_store();
    let source = place.path("source");
    noise(&source, 1, 1000);
    place.run(["backup".as_ref(), source.as_os_str(), OsStr::new("app")]).expect(0);
    place.run(["tier", "move", "app", "--to", "cold"]).expect(2).complains("no cold tier");
    place.run(["tier", "status"]).expect(0).says("hot");
}

#[test]
fn two_hosts_share_one_place() {
    let place = Place::new();
    let (one, two) = (Host::new(&place, "one", SHARED), Host::new(&place, "two", SHARED));
    one.run(&["init"]).expect(0);
    two.run(&["init"]).expect(2).complains("there is a store already");
    let source = place.path("source");
    noise(&source, 7, 500_000);
    one.run(&["backup", source.to_str().unwrap(), "app"]).expect(0);
    assert!(two.run(&["snapshots"]).expect(0).text().contains("app"));
    let target = place.path("restored");
    two.run(&["restore", "app", target.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read(target.join("noise")).unwrap(), fs::read(source.join("noise")).unwrap());
    let copied = two.json(&["backup", source.to_str().unwrap(), "copy"]);
    assert!(copied["new_bytes"].as_u64().unwrap() < 10_000, "{copied}: the bytes were there");
    // The hot tiers hold copies, and the store does not open as one of theirs alone.
    place
        .run_with(&[("TORPOR_STORE", place.path("one/hot").as_os_str())], ["snapshots"])
        .expect(2)
        .complains("no store here");
    two.run(&["forget", "app", "--keep-last", "1"]).expect(0);
    two.run(&["gc", "--cycles", "3"]).expect(0);
    one.run(&["check", "--read-data"]).expect(0).says(": ok");
    one.run(&["tier", "status"]).expect(0).says("shared with other hosts");
}
