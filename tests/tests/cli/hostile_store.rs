//! Stores whose objects are not as written: cut short, foreign, from the future, random, flipped, swapped.
//!
//! The one rule for every command and every damage: the right answer or an error that names the damage, never a wrong
//! answer, never a panic; and a command that only reads, or fails, changes nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::snapctl::{Fingerprint, Place, Run, fingerprint};

use crate::sample;

/// A way to spoil an object: its name and its effect on the bytes. `None`: it does not apply.
type Damage = (&'static str, fn(&[u8]) -> Option<Vec<u8>>);

const DAMAGES: [Damage; 15] = [
    ("empty", |_| Some(Vec::new())),
    ("one byte", |bytes| Some(bytes[..1].to_vec())),
    ("cut in the header", |bytes| Some(bytes[..bytes.len().min(40)].to_vec())),
    ("cut after the header", |bytes| Some(bytes[..bytes.len().min(64)].to_vec())),
    ("half", |bytes| Some(bytes[..bytes.len() / 2].to_vec())),
    ("last byte missing", |bytes| Some(bytes[..bytes.len() - 1].to_vec())),
    ("a byte too many", |bytes| Some([bytes, &[0]].concat())),
    ("random", |bytes| Some(sample::noise(77, bytes.len()))),
    ("zeroes", |bytes| Some(vec![0; bytes.len()])),
    ("an ELF file", |_| fs::read("/bin/true").ok()),
    ("a PNG file", |bytes| {
        Some([b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".as_slice(), &vec![7; bytes.len()]].concat())
    }),
    ("a future version", future_version),
    ("first bit flipped", |bytes| flip(bytes, 0)),
    ("middle bit flipped", |bytes| flip(bytes, bytes.len() / 2)),
    ("last bit flipped", |bytes| flip(bytes, bytes.len() - 1)),
];

fn flip(bytes: &[u8], at: usize) -> Option<Vec<u8>> {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1;
    Some(flipped)
}

/// Every damage that changes these bytes, and the resulting bytes.
fn damages(bytes: &[u8]) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let spoiled = DAMAGES.iter().filter_map(move |(name, spoil)| Some((*name, spoil(bytes)?)));
    spoiled.filter(move |(_, spoiled)| spoiled != bytes)
}

/// Records have their version after magic and kind, packs after the magic.
fn future_version(bytes: &[u8]) -> Option<Vec<u8>> {
    let at = if bytes.starts_with(b"TORPOR") { 10 } else { 8 };
    let mut newer = bytes.to_vec();
    newer[at..at + 2].copy_from_slice(&9_u16.to_le_bytes());
    Some(newer)
}

/// An intact store, and its expected answers.
struct Original {
    place: Place,
    source: PathBuf,
    listing: String,
    noise: Vec<u8>,
}

fn original() -> Original {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    let memory = place.path("memory");
    fs::write(&memory, [sample::noise(4, 40 << 12), vec![0; 1 << 16], sample::noise(5, 1 << 12)].concat())
        .unwrap();
    place.run(["capture".as_ref(), "--raw".as_ref(), memory.as_os_str(), "memory".as_ref()]).expect(0);
    let backup = |source: &Path, name: &str| {
        place.run(["backup".as_ref(), source.as_os_str(), name.as_ref()]).expect(0);
    };
    backup(&source, "web");
    // Something forgotten and condemned, so that the collector has records of its own.
    let gone = place.path("gone");
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("noise"), sample::noise(6, 1 << 20)).unwrap();
    backup(&gone, "gone");
    backup(&source, "gone");
    place.run(["forget", "gone", "--keep-last", "1"]).expect(0);
    place.run(["gc"]).expect(0);
    fs::write(source.join("second"), "second").unwrap();
    backup(&source, "web");
    let listing = place.run(["ls", "-R", "-l", "web"]).expect(0).text();
    Original { listing, noise: fs::read(source.join("docs/deep/er/noise")).unwrap(), place, source }
}

impl Original {
    /// Paths of the objects below a prefix, relative to the store.
    fn objects(&self, prefix: &str) -> Vec<String> {
        let found = fingerprint(&self.place.store);
        found.into_keys().filter(|path| path.starts_with(prefix)).collect()
    }

    /// A place with a copy of the store in which one object is spoiled.
    fn spoiled(&self, object: &str, bytes: &[u8]) -> Place {
        let place = Place::new();
        let copied = Command::new("cp").arg("-a").arg(&self.place.store).arg(&place.store).status().unwrap();
        assert!(copied.success());
        fs::write(place.store.join(object), bytes).unwrap();
        place
    }
}

/// The outcomes of all commands on a damaged store.
#[derive(Default)]
struct Seen {
    errors: Vec<String>,
    checked: Option<i32>,
}

impl Seen {
    fn note(&mut self, run: &Run) {
        assert!([0, 1, 2].contains(&run.code), "exit code {}: {}", run.code, run.stderr);
        if run.code == 2 {
            assert!(run.stderr.contains("snapctl: "), "an error without a text: {:?}", run.stderr);
            // The findings of `check` are in its answer.
            self.errors.push(run.stderr.clone() + &String::from_utf8_lossy(&run.stdout));
        }
    }
}

/// Runs every command that reads; each must be right or fail.
fn read_all(original: &Original, place: &Place, seen: &mut Seen) {
    let before = fingerprint(&place.store);
    let listed = place.run(["ls", "-R", "-l", "web"]);
    assert!(listed.code != 0 || listed.text() == original.listing, "a wrong listing");
    let noise = place.run(["cat", "web:docs/deep/er/noise"]);
    assert!(noise.code != 0 || noise.stdout == original.noise, "wrong bytes");
    let target = place.path("target");
    let restored = place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]);
    if restored.code == 0 {
        sample::assert_same(&original.source, &target);
    }
    let checked = place.run(["check", "--read-data"]);
    seen.checked = Some(checked.code);
    for run in [&listed, &noise, &restored, &checked] {
        assert_ne!(run.code, 1, "damage is no answer: {}", run.stderr);
        seen.note(run);
    }
    for arguments in [
        ["snapshots"].as_slice(),
        &["show", "web"],
        &["show", "memory"],
        &["diff", "web~1", "web"],
        &["check"],
        &["stats"],
        &["stats", "memory"],
        &["gc", "--dry-run"],
        &["forget", "web", "--keep-last", "1", "--dry-run"],
    ] {
        seen.note(&place.run(arguments));
    }
    assert_eq!(fingerprint(&place.store), before, "reading changed the store");
}

/// Objects of `before` that are gone or changed in `after`.
fn lost(before: &Fingerprint, after: &Fingerprint) -> Vec<String> {
    before
        .iter()
        .filter(|(name, file)| after.get(*name) != Some(*file))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Runs every command that writes; one that fails leaves each object as it was, and none loses a pack or a snapshot
/// that a ref names.
fn write_all(original: &Original, place: &Place, seen: &mut Seen) {
    let commands: [Vec<OsString>; 5] = [
        vec!["init".into()],
        vec!["gc".into()],
        vec!["forget".into(), "web".into(), "web~1".into()],
        vec!["backup".into(), original.source.clone().into(), "web".into()],
        vec!["index".into(), "rebuild".into()],
    ];
    for arguments in commands {
        let before = fingerprint(&place.store);
        let run = place.run(&arguments);
        seen.note(&run);
        let mut lost = lost(&before, &fingerprint(&place.store));
        if run.code != 0 {
            lost.retain(|name| !name.starts_with("gc/") && !name.starts_with("sessions/"));
        } else {
            // Objects that a successful write may replace or drop: refs, index runs, the collector's lists.
            lost.retain(|name| name.starts_with("packs/") || name.starts_with("snapshots/"));
        }
        assert!(lost.is_empty(), "{arguments:?} (exit code {}) lost {lost:?}", run.code);
    }
}

/// Spoils every object below `prefix` in every way. `check` must see it when the object is `vital`, and some error must
/// contain one of the words that `named` returns for the object.
fn spoil(prefix: &str, vital: fn(&Original, &str) -> bool, named: fn(&str) -> Vec<String>) {
    let original = original();
    let objects = original.objects(prefix);
    assert!(!objects.is_empty(), "there is nothing below {prefix}");
    for (number, object) in objects.into_iter().enumerate() {
        let bytes = fs::read(original.place.store.join(&object)).unwrap();
        for (kind, (damage, spoiled)) in damages(&bytes).enumerate() {
            // The first two objects of a kind meet every damage; to save time, the others share them out.
            if number >= 2 && (number + kind) % 4 != 0 {
                continue;
            }
            let place = original.spoiled(&object, &spoiled);
            let mut seen = Seen::default();
            let context = format!("{object}: {damage}");
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                read_all(&original, &place, &mut seen);
                write_all(&original, &place, &mut seen);
            }));
            assert!(outcome.is_ok(), "failed with {context}");
            if vital(&original, &object) {
                assert_eq!(seen.checked, Some(2), "check does not see {context}");
                let words = named(&object);
                let names = seen.errors.iter().any(|error| words.iter().any(|word| error.contains(word)));
                assert!(names, "nothing names {words:?} with {context}: {:#?}", seen.errors);
            }
        }
    }
}

fn file_name(object: &str) -> Vec<String> {
    vec![object.rsplit('/').next().unwrap().to_owned()]
}

#[test]
fn superblock() {
    spoil("superblock", |_, _| true, |_| vec!["store".to_owned()]);
}

#[test]
fn domains() {
    spoil("domains/", |_, _| true, file_name);
}

#[test]
fn refs() {
    spoil("refs/", |_, _| true, file_name);
}

#[test]
fn snapshots() {
    let is_named = |original: &Original, object: &str| {
        let listed = original.place.run(["snapshots", "--json"]).expect(0).json_lines();
        listed.iter().any(|line| object.ends_with(line["snapshot"].as_str().unwrap()))
    };
    spoil("snapshots/", is_named, file_name);
}

#[test]
fn packs() {
    spoil("packs/", |_, _| true, file_name);
}

#[test]
fn index_runs() {
    spoil("index/", |_, _| false, file_name);
}

#[test]
fn an_index_that_is_damaged_in_any_way_is_made_again() {
    let original = original();
    let objects = original.objects("index/");
    let object = &objects[0];
    for (damage, spoiled) in damages(&fs::read(original.place.store.join(object)).unwrap()) {
        let place = original.spoiled(object, &spoiled);
        for other in &objects[1..] {
            fs::remove_file(place.store.join(other)).unwrap();
        }
        let rebuilt = place.run(["index", "rebuild"]);
        assert_eq!(rebuilt.code, 0, "{damage}: {}", rebuilt.stderr);
        let mut seen = Seen::default();
        read_all(&original, &place, &mut seen);
        assert_eq!((seen.checked, seen.errors), (Some(0), Vec::new()), "{damage}");
    }
}

#[test]
fn collector_records() {
    spoil("gc/", |_, _| false, file_name);
}

#[test]
fn the_collector_refuses_to_work_from_damaged_records() {
    let original = original();
    for object in original.objects("gc/").into_iter().chain(original.objects("refs/")) {
        let bytes = fs::read(original.place.store.join(&object)).unwrap();
        for (damage, spoiled) in damages(&bytes) {
            let place = original.spoiled(&object, &spoiled);
            let before = fingerprint(&place.store);
            let run = place.run(["gc", "--cycles", "3"]);
            assert_eq!(run.code, 2, "{object}: {damage}");
            assert!(run.stderr.contains(&file_name(&object)[0]), "{object}: {damage}: {}", run.stderr);
            let mut lost = lost(&before, &fingerprint(&place.store));
            lost.retain(|name| name != "gc/state");
            assert!(lost.is_empty(), "{object}: {damage}: gc took {lost:?}");
        }
    }
}

#[test]
fn the_collector_does_not_pass_over_a_damaged_session_of_a_live_reader() {
    let original = original();
    let place = &original.place;
    let store = store::Store::open(&store::StoreConfig::directory(&place.store)).unwrap();
    let pinned = store.resolve("web").unwrap();
    let pin = store.pin("the test", &[pinned]).unwrap();
    let session = original.objects("sessions/").remove(0);
    let bytes = fs::read(place.store.join(&session)).unwrap();
    for (damage, spoiled) in damages(&bytes) {
        fs::write(place.store.join(&session), spoiled).unwrap();
        let before = fingerprint(&place.store);
        let run = place.run(["gc"]);
        assert_eq!(run.code, 2, "{damage}");
        assert!(run.stderr.contains(&file_name(&session)[0]), "{damage}: {}", run.stderr);
        let mut lost = lost(&before, &fingerprint(&place.store));
        lost.retain(|name| name != "gc/state");
        assert!(lost.is_empty(), "{damage}: gc took {lost:?}");
        fs::write(place.store.join(&session), &bytes).unwrap();
    }
    drop(pin);
    place.run(["gc"]).expect(0);
}

/// Files below a directory, by path.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn what_this_host_alone_keeps_can_be_lost_or_damaged() {
    let original = original();
    let local = original.place.store.join("local");
    let files: Vec<PathBuf> =
        files_below(&local).into_iter().filter(|file| file.metadata().unwrap().len() > 0).collect();
    assert!(files.len() > 2, "{files:?}");
    for file in files {
        let object = file.strip_prefix(&original.place.store).unwrap().to_str().unwrap().to_owned();
        for (damage, spoiled) in damages(&fs::read(&file).unwrap()) {
            let place = original.spoiled(&object, &spoiled);
            let collected = place.run(["gc", "--cycles", "2"]);
            assert_eq!(collected.code, 0, "{object}: {damage}: {}", collected.stderr);
            place.run(["backup".as_ref(), original.source.as_os_str(), "web".as_ref()]).expect(0);
            assert_eq!(place.run(["diff", "web~1", "web"]).code, 0, "{object}: {damage}: a wrong backup");
            place.run(["check"]).expect(0);
        }
    }
}

#[test]
fn objects_that_changed_places_are_noticed() {
    let original = original();
    for prefix in ["packs/", "snapshots/", "refs/"] {
        let objects = original.objects(prefix);
        let (one, other) = (&objects[0], objects.last().unwrap());
        assert_ne!(one, other);
        let bytes = fs::read(original.place.store.join(other)).unwrap();
        let place = original.spoiled(one, &bytes);
        let mut seen = Seen::default();
        read_all(&original, &place, &mut seen);
        assert_eq!(seen.checked, Some(2), "check does not see that {one} is {other}");
    }
}

#[test]
fn objects_that_are_gone_are_noticed() {
    let original = original();
    for prefix in ["superblock", "domains/", "packs/"] {
        for object in original.objects(prefix) {
            let place = original.spoiled(&object, b"");
            fs::remove_file(place.store.join(&object)).unwrap();
            let mut seen = Seen::default();
            read_all(&original, &place, &mut seen);
            // A condemned pack may go: nothing needs it.
            let condemned = prefix == "packs/" && seen.checked == Some(0);
            assert!(seen.checked == Some(2) || condemned, "check does not miss {object}");
        }
    }
}

#[test]
fn directories_in_the_place_of_objects_are_errors() {
    let original = original();
    for prefix in ["superblock", "domains/", "refs/", "packs/", "index/", "gc/state"] {
        let object = &original.objects(prefix)[0];
        let place = original.spoiled(object, b"");
        fs::remove_file(place.store.join(object)).unwrap();
        fs::create_dir(place.store.join(object)).unwrap();
        read_all(&original, &place, &mut Seen::default());
    }
}
