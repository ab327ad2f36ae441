//! A store through the command line alone, from start to end, with every answer read as a program would.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::snapctl::{Place, Run};

use crate::sample;

fn backup(place: &Place, source: &Path, name: &str, more: &[&str]) -> Run {
    let mut arguments: Vec<&OsStr> =
        ["backup".as_ref(), source.as_os_str(), name.as_ref(), "--json".as_ref()].to_vec();
    arguments.extend(more.iter().map(OsStr::new));
    place.run(arguments)
}

fn paths(lines: &[Value]) -> BTreeSet<String> {
    lines.iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect()
}

/// A store whose ref `web` has two snapshots of the sample, the second with changes, and the source as it was then.
fn two_snapshots() -> (Place, std::path::PathBuf, Value, Value) {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    let first = backup(&place, &source, "web", &["--label", "build=1"]).expect(0).json();
    fs::write(source.join("hello.txt"), "hello, once more\n").unwrap();
    fs::remove_file(source.join("docs/nothing")).unwrap();
    fs::create_dir(source.join("added")).unwrap();
    fs::write(source.join("added/file"), "new").unwrap();
    let second =
        backup(&place, &source, "web", &["--label", "build=2", "--label", "note=a b"]).expect(0).json();
    (place, source, first, second)
}

#[test]
fn a_damaged_ref_hides_no_other() {
    let (place, source, ..) = two_snapshots();
    let other = backup(&place, &source, "other", &[]).expect(0).json();
    fs::write(place.store.join("refs/default/web"), "damage").unwrap();
    let listed = place.run(["snapshots", "--json"]).expect(2);
    assert_eq!(listed.json()["ref"], "other");
    listed.complains("put the ref's record back").complains("refs/default/web");
    let shown = place.run(["show", "other", "--json"]).expect(0).json();
    assert_eq!(shown["snapshot"], other["snapshot"]);
    place.run(["gc"]).expect(2).complains("nothing was deleted");
}

/// However a ref is called, a full id is the snapshot of that id.
#[test]
fn a_ref_that_looks_like_an_id_does_not_stand_before_it() {
    let (place, source, first, _) = two_snapshots();
    let id = first["snapshot"].as_str().unwrap();
    let other = backup(&place, &source, id, &[]).expect(0).json();
    assert_ne!(other["snapshot"], first["snapshot"]);
    assert_eq!(place.run(["show", id, "--json"]).expect(0).json()["snapshot"], first["snapshot"]);
}

#[test]
fn snapshots_are_made_listed_and_described() {
    let (place, _, first, second) = two_snapshots();
    assert_eq!(second["unreadable"], json!([]));
    let (new, all) = (second["new_bytes"].as_u64().unwrap(), first["new_bytes"].as_u64().unwrap());
    assert!(new * 10 < all, "the second backup stored {new} of {all} bytes again");

    let listed = place.run(["snapshots", "--json"]).expect(0).json_lines();
    let ids: Vec<&Value> = listed.iter().map(|line| &line["snapshot"]).collect();
    assert_eq!(ids, [&first["snapshot"], &second["snapshot"]]);
    assert_eq!((&listed[1]["labels"]["build"], &listed[1]["labels"]["note"]), (&json!("2"), &json!("a b")));
    assert_eq!((&listed[0]["current"], &listed[1]["current"]), (&json!(false), &json!(true)));
    let table = place.run(["snapshots", "web"]).expect(0).text();
    assert!(
        table.contains(&second["snapshot"].as_str().unwrap()[..12]) && table.contains("note=a b"),
        "{table}"
    );
    place.run(["snapshots", "nobody"]).expect(1).complains("nobody");

    let shown = place.run(["show", "web", "--json"]).expect(0).json();
    assert_eq!((&shown["snapshot"], &shown["parent"]), (&second["snapshot"], &first["snapshot"]));
    assert_eq!(shown["refs"], json!(["web"]));
    let by_prefix = &first["snapshot"].as_str().unwrap()[..10];
    assert_eq!(place.run(["show", by_prefix, "--json"]).expect(0).json()["snapshot"], first["snapshot"]);
    assert_eq!(place.run(["show", "web~1", "--json"]).expect(0).json()["snapshot"], first["snapshot"]);
    assert!(place.run(["show", "web"]).expect(0).text().contains("build=2"));
    for absent in ["web~2", "webb", "ffffffff"] {
        place.run(["show", absent]).expect(1).complains(absent);
    }
}

#[test]
fn trees_are_listed_read_and_compared() {
    let (place, ..) = two_snapshots();
    let top = place.run(["ls", "web", "--json"]).expect(0).json_lines();
    assert!(paths(&top).contains("hello.txt") && !paths(&top).contains("docs/link"));
    let all = place.run(["ls", "-R", "web:docs", "--json"]).expect(0).json_lines();
    let link = all.iter().find(|line| line["path"] == "docs/link").unwrap();
    assert_eq!((&link["kind"], &link["target"]), (&json!("symlink"), &json!("../hello.txt")));
    let again = all.iter().find(|line| line["path"] == "docs/hello-again.txt").unwrap();
    assert_eq!((&again["link_count"], &again["len_bytes"]), (&json!(2), &json!(17)));
    let long = place.run(["ls", "-l", "-R", "web"]).expect(0).text();
    assert!(long.contains("-> ../hello.txt") && long.contains("prw"), "{long}");
    assert!(long.contains("odd \\u{1b}[31m\\xff\\nname"), "a name is escaped: {long}");
    place.run(["ls", "web:nowhere"]).expect(1).complains("web:nowhere");

    assert_eq!(place.run(["cat", "web:hello.txt"]).expect(0).text(), "hello, once more\n");
    assert_eq!(place.run(["cat", "web~1:docs/hello-again.txt"]).expect(0).text(), "hello, store\n");
    let noise = place.run(["cat", "web:docs/deep/er/noise"]).expect(0).stdout;
    assert!(noise == sample::noise(1, sample::NOISE_LEN_BYTES));
    place.run(["cat", "web:nowhere"]).expect(1);
    for no_file in ["web:docs", "web:docs/link", "web:pipe", "web"] {
        place.run(["cat", no_file]).expect(2).complains("file");
    }

    let text = place.run(["diff", "web~1", "web"]).expect(1).text();
    let lines: BTreeSet<&str> = text.lines().collect();
    let expected = ["+ added", "+ added/file", "- docs/nothing", "M docs/hello-again.txt", "M hello.txt"];
    assert_eq!(lines, expected.into_iter().collect());
    let reverse = place.run(["diff", "web", "web~1", "--json"]).expect(1).json_lines();
    assert!(reverse.iter().any(|line| line["change"] == "removed" && line["path"] == "added/file"));
    let counted = place.run(["diff", "web~1", "web", "--stat", "--json"]).expect(1).json();
    assert_eq!(
        (&counted["added"], &counted["removed"], &counted["modified"]),
        (&json!(2), &json!(1), &json!(2))
    );
    assert_eq!(place.run(["diff", "web", "web"]).expect(0).text(), "");
    place.run(["diff", "web", "nobody"]).expect(2).complains("nobody");
}

#[test]
fn what_is_restored_is_what_was_backed_up() {
    let (place, source, ..) = two_snapshots();
    let target = place.path("target");
    let report = place
        .run(["restore".as_ref(), "web".as_ref(), target.as_os_str(), "--json".as_ref()])
        .expect(0)
        .json();
    assert!(report["files"].as_u64().unwrap() > 5, "{report}");
    sample::assert_same(&source, &target);
    let part = place.path("part");
    place.run(["restore".as_ref(), "web:docs/deep".as_ref(), part.as_os_str()]).expect(0);
    sample::assert_same(&source.join("docs/deep"), &part);
    place.run(["restore".as_ref(), "web:nowhere".as_ref(), place.path("none").as_os_str()]).expect(1);
    assert!(!place.path("none").exists());
}

#[test]
fn a_single_file_is_backed_up_as_itself() {
    let (place, source, ..) = two_snapshots();
    backup(&place, &source.join("hello.txt"), "file", &[]).expect(0);
    assert_eq!(place.run(["ls", "file"]).expect(0).text(), "hello.txt\n");
    assert_eq!(place.run(["cat", "file:hello.txt"]).expect(0).text(), "hello, once more\n");
}

#[test]
fn excluded_files_are_left_out() {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    backup(&place, &source, "web", &["--exclude", "*.txt", "--exclude", "docs/deep"]).expect(0);
    let kept = paths(&place.run(["ls", "-R", "web", "--json"]).expect(0).json_lines());
    assert!(kept.contains("docs/text"));
    assert!(kept.iter().all(|path| !path.ends_with(".txt") && !path.starts_with("docs/deep")), "{kept:?}");
}

#[test]
fn what_is_forgotten_is_collected_and_the_rest_stays() {
    let (place, source, first, second) = two_snapshots();
    let big = place.path("big");
    fs::create_dir(&big).unwrap();
    fs::write(big.join("noise"), sample::noise(7, 3 << 20)).unwrap();
    let gone = backup(&place, &big, "old", &[]).expect(0).json();
    backup(&place, &source, "old", &[]).expect(0);

    let plan = place.run(["forget", "old", "--keep-last", "1", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(
        plan["forgotten"],
        json!([{"snapshot": gone["snapshot"], "time": plan["forgotten"][0]["time"]}])
    );
    assert_eq!(place.run(["snapshots", "old", "--json"]).expect(0).json_lines().len(), 2);
    place.run(["forget", "old", "--keep-last", "1"]).expect(0);
    assert_eq!(place.run(["snapshots", "old", "--json"]).expect(0).json_lines().len(), 1);
    place.run(["forget", "old", gone["snapshot"].as_str().unwrap()]).expect(1);
    place.run(["forget", "nobody", "--keep-last", "1"]).expect(1).complains("nobody");

    let stored =
        |place: &Place| place.run(["stats", "--json"]).expect(0).json()["stored_bytes"].as_u64().unwrap();
    let before = stored(&place);
    let dry = place.run(["gc", "--dry-run", "--json"]).expect(0).json();
    assert!(
        dry["packs"].as_array().unwrap().iter().all(|pack| !pack["reason"].as_str().unwrap().is_empty()),
        "{dry}"
    );
    assert_eq!(stored(&place), before, "a dry run changed something");
    assert!(place.run(["gc", "--dry-run"]).expect(0).text().contains("no ref or session reaches it"));
    for _ in 0..3 {
        place.run(["gc", "--json"]).expect(0).json();
    }
    let after = stored(&place);
    assert!(before - after > 3 << 20, "gc freed {} bytes", before - after);
    place.run(["show", gone["snapshot"].as_str().unwrap()]).expect(1);

    for id in [&first, &second] {
        place.run(["show", id["snapshot"].as_str().unwrap()]).expect(0);
    }
    let target = place.path("target");
    place.run(["restore".as_ref(), "old".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&source, &target);
    let checked = place.run(["check", "--read-data", "--json"]).expect(0).json();
    assert_eq!(checked["problems"], json!([]));
    assert!(checked["snapshots"].as_u64().unwrap() >= 3, "{checked}");
}

#[test]
fn a_snapshot_is_forgotten_by_name() {
    let (place, _, first, second) = two_snapshots();
    place.run(["forget", "web", &first["snapshot"].as_str().unwrap()[..12]]).expect(0);
    let left = place.run(["snapshots", "web", "--json"]).expect(0).json_lines();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["snapshot"], second["snapshot"]);
}

#[test]
fn figures_add_up() {
    let (place, _, first, second) = two_snapshots();
    let whole = place.run(["stats", "--json"]).expect(0).json();
    let logical = first["bytes"].as_u64().unwrap() + second["bytes"].as_u64().unwrap();
    assert_eq!(whole["logical_bytes"].as_u64().unwrap(), logical, "{whole}");
    assert!(whole["stored_bytes"].as_u64().unwrap() < logical, "{whole}");
    assert!(whole["chunks"].as_u64().unwrap() > 3 && whole["packs"].as_u64().unwrap() >= 2, "{whole}");
    let one = place.run(["stats", "web~1", "--json"]).expect(0).json();
    assert_eq!(one["logical_bytes"], first["bytes"]);
    assert!(place.run(["stats"]).expect(0).text().contains("packs"));
    place.run(["stats", "nobody"]).expect(1).complains("nobody");
}

#[test]
fn the_index_is_made_again_from_the_packs() {
    let (place, source, ..) = two_snapshots();
    fs::remove_dir_all(place.store.join("index")).unwrap();
    let rebuilt = place.run(["index", "rebuild", "--json"]).expect(0).json();
    assert!(rebuilt["packs"].as_u64().unwrap() >= 2, "{rebuilt}");
    assert!(place.store.join("index").is_dir());
    let target = place.path("target");
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&source, &target);
    place.run(["check"]).expect(0);
}
