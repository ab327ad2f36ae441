//! Scrubbing as an operator does it: damage is reported with the affected files, repaired where another tier has an
//! intact copy, noted where none has, and healed by a backup that reads everything.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use tests::snapctl::{Place, Run, fingerprint};

use crate::sample;

fn back_up(place: &Place, more: &[&str]) -> Value {
    let source = place.path("source");
    let mut arguments: Vec<&OsStr> =
        vec!["backup".as_ref(), source.as_os_str(), "web".as_ref(), "--json".as_ref()];
    arguments.extend(more.iter().map(OsStr::new));
    place.run(arguments).expect(0).json()
}

/// A store with the sample, and with a file of its own beside it.
fn stored() -> Place {
    let place = Place::with_store();
    sample::make(&place.path("source"));
    back_up(&place, &[]);
    place
}

fn packs(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for writer in fs::read_dir(root.join("packs")).unwrap().flatten() {
        found.extend(fs::read_dir(writer.path()).unwrap().flatten().map(|entry| entry.path()));
    }
    found.sort();
    found
}

fn largest(packs: &[PathBuf]) -> &PathBuf {
    packs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn json(run: &Run) -> Value {
    serde_json::from_slice(&run.stdout).unwrap()
}

#[test]
fn a_whole_store_is_scrubbed_in_parts_and_at_a_rate() {
    let place = stored();
    let all = place.run(["scrub", "--json"]).expect(0).json();
    assert_eq!((&all["is_intact"], &all["repair"]), (&true.into(), &false.into()), "{all}");
    assert!(all["read_bytes"].as_u64().unwrap() > 1_500_000 && all["frames"].as_u64().unwrap() > 3, "{all}");
    let mut packs = 0;
    for part in ["1/3", "2/3", "3/3"] {
        packs += place.run(["scrub", "--subset", part, "--json"]).expect(0).json()["packs"].as_u64().unwrap();
    }
    assert_eq!(packs, all["packs"].as_u64().unwrap());
    place.run(["scrub", "--rate", "100M"]).expect(0).says(": ok");
    place.run(["scrub", "--repair"]).expect(0).says("repaired 0 copies");
    assert!(place.run(["scrub", "--quiet"]).expect(0).text().is_empty());
    for wrong in [["--subset", "4/3"], ["--subset", "0/1"], ["--subset", "x"], ["--rate", "0"]] {
        place.run(["scrub", wrong[0], wrong[1]]).expect(2);
    }
}

#[test]
fn lost_files_are_named_noted_and_stored_anew() {
    let place = stored();
    let data = largest(&packs(&place.store)).clone();
    flip(&data, 700_000);
    let before = fingerprint(&place.store);
    let run = place.run(["scrub"]).expect(2).complains("damaged copies of packs");
    let text = run.says("docs/deep/er/noise: ").says("(web) is affected:").says("bytes are lost").text();
    assert!(text.contains("cannot be repaired") && text.contains("--force-read"), "{text}");
    let told = json(&place.run(["scrub", "--json"]).expect(2));
    let [affected] = told["affected"].as_array().unwrap().as_slice() else { panic!("{told}") };
    let paths: Vec<&str> = affected["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|affected| affected["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["docs/deep/er/noise"], "{told}");
    assert_eq!((&affected["refs"][0], &told["damages"][0]["state"]), (&"web".into(), &"missing".into()));
    assert_eq!(told["lost"][0]["offsets"].as_array().unwrap().len(), 1, "{told}");
    assert!(told["lost"][0]["lost_chunks"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(place.run(["scrub", "--json"]).expect(2).json_error()["kind"], "corrupt");
    assert_eq!(fingerprint(&place.store), before, "a scrub changes nothing");

    place.run(["scrub", "--repair"]).expect(2);
    let after = fingerprint(&place.store);
    let fresh: Vec<&String> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(matches!(fresh.as_slice(), [path] if path.starts_with("damaged/")), "{fresh:?}");
    place.run(["check"]).expect(2).says("1 frames of pack").says("affects web");
    place.run(["restore".as_ref(), "web".as_ref(), place.path("lost").as_os_str()]).expect(2);

    let healed = back_up(&place, &["--force-read"]);
    assert_eq!(healed["unchanged_files"], 0, "{healed}");
    assert!(healed["new_bytes"].as_u64().unwrap() > 0, "{healed}");
    for spec in ["web", "web~1"] {
        let target = place.path(&spec.replace('~', "-"));
        place.run(["restore".as_ref(), spec.as_ref(), target.as_os_str()]).expect(0);
        sample::assert_same(&place.path("source"), &target);
    }
    place.run(["scrub"]).expect(0).says("0 chunks are lost").says(": ok");
    place
        .run(["check", "--read-data"])
        .expect(0)
        .says("only the refs that are listed need them")
        .says(": ok");
    place.run(["gc", "--cycles", "4"]).expect(0);
    place.run(["forget", "web", "--keep-last", "1"]).expect(0);
    place.run(["gc", "--cycles", "4"]).expect(0);
    place.run(["scrub"]).expect(0);
    let target = place.path("last");
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&place.path("source"), &target);
}

/// Without any scrub before it: unreadable chunks are stored again.
#[test]
fn a_comparing_backup_heals_what_it_cannot_read() {
    let place = stored();
    flip(&largest(&packs(&place.store)).clone(), 700_000);
    assert_eq!(back_up(&place, &["--force-read"])["new_bytes"], 0, "only looked at");
    let healed = back_up(&place, &["--compare"]);
    assert!(healed["new_bytes"].as_u64().unwrap() > 0, "{healed}");
    let target = place.path("restored");
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&place.path("source"), &target);
    assert_eq!(back_up(&place, &["--compare"])["new_bytes"], 0, "nothing is left to heal");
}

#[test]
fn what_another_tier_has_whole_is_repaired_byte_for_byte() {
    let place = Place::new();
    let (config, hot, warm) = (place.path("config.toml"), place.path("hot"), place.path("warm"));
    let text = format!(
        "store = '{}'\nstate = '{}'\n[tiers]\nwarm = '{}'\n",
        hot.display(),
        place.path("state").display(),
        warm.display()
    );
    fs::write(&config, text).unwrap();
    let run = |arguments: &[&str]| place.run_with(&[("TORPOR_CONFIG", config.as_os_str())], arguments);
    run(&["init"]).expect(0);
    let source = place.path("source");
    sample::make(&source);
    run(&["backup", source.to_str().unwrap(), "web"]).expect(0);
    let mut right = Vec::new();
    for (number, pack) in packs(&hot).into_iter().enumerate() {
        let copy = warm.join(pack.strip_prefix(&hot).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&pack, &copy).unwrap();
        right.push((pack.clone(), fs::read(&pack).unwrap()));
        // One copy of each pack is affected, and not always the local one.
        flip([&pack, &copy][number % 2], 100);
    }
    let count = right.len();
    let told = json(&run(&["scrub", "--json"]).expect(2));
    assert_eq!(told["damaged_copies"], count, "{told}");
    let states = told["damages"].as_array().unwrap().iter().map(|damage| &damage["state"]);
    assert!(states.clone().all(|state| state == "repairable") && states.count() == count, "{told}");
    assert!(told["affected"].as_array().unwrap().is_empty(), "{told}");
    run(&["scrub"]).expect(2).says("can be repaired").complains("snapctl scrub --repair");
    run(&["scrub", "--repair"]).expect(0).says("the damaged bytes are in quarantine/packs/");
    for (pack, bytes) in right {
        let copy = warm.join(pack.strip_prefix(&hot).unwrap());
        assert!(fs::read(&pack).unwrap() == bytes && fs::read(copy).unwrap() == bytes);
    }
    assert_eq!(packs(&hot.join("quarantine")).len() + packs(&warm.join("quarantine")).len(), count);
    let told = json(&run(&["scrub", "--repair", "--json"]).expect(0));
    assert_eq!((&told["damaged_copies"], &told["repaired_copies"]), (&0.into(), &0.into()), "{told}");
    run(&["check", "--read-data"]).expect(0);
}

#[test]
fn damaged_memory_and_records_are_told_and_an_index_run_is_made_anew() {
    let place = Place::with_store();
    let memory = place.path("memory");
    fs::write(&memory, sample::noise(41, 200 << 12)).unwrap();
    place.run(["capture".as_ref(), "--raw".as_ref(), memory.as_os_str(), "app".as_ref()]).expect(0);
    flip(largest(&packs(&place.store)), 400_000);
    place.run(["scrub"]).expect(2).says("memory of space 0: 16 pages are lost");
    let index = place.store.join("index");
    let writer = fs::read_dir(&index).unwrap().flatten().next().unwrap().path();
    let run = fs::read_dir(writer).unwrap().flatten().next().unwrap().path();
    flip(&run, 200);
    let told = json(&place.run(["scrub", "--json"]).expect(2));
    assert!(told["problems"][0]["object"].as_str().unwrap().starts_with("index/"), "{told}");
    let told = json(&place.run(["scrub", "--repair", "--json"]).expect(2));
    assert_eq!(
        (&told["repaired_index_runs"], told["problems"].as_array().unwrap().len()),
        (&1.into(), 0),
        "{told}"
    );
    flip(&place.store.join("refs/default/app"), 70);
    place.run(["scrub", "--repair"]).expect(2).says("refs/default/app: ").says("bring it back");
}
