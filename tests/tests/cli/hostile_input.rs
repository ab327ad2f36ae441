//! Invalid dumps and memory files, passed to `capture`, and the captured ones to `resume`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tests::snapctl::{Place, fingerprint};

use crate::sample;

const PAGE: usize = 4096;
const TASK: u64 = 42;
const START: u64 = 0x7f00_0000_0000;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A protobuf message of numbers.
fn message(fields: &[(u64, u64)]) -> Vec<u8> {
    fields.iter().flat_map(|(number, value)| [varint(number << 3), varint(*value)].concat()).collect()
}

/// A CRIU image file: magics, then messages with their lengths before them.
fn image_file(magics: &[u32], messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for message in messages {
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
    }
    bytes
}

/// A dump of one task with eight lazy pages, as CRIU writes it, by file name.
pub(crate) fn dump() -> BTreeMap<&'static str, Vec<u8>> {
    const COMMON: u32 = 0x5456_4319;
    let area = message(&[
        (1, START),
        (2, START + 8 * PAGE as u64),
        (3, 0),
        (4, 0),
        (5, 3),
        (6, 0x22),
        (7, 1),
        (8, 0),
    ]);
    let area = [varint(14 << 3 | 2), varint(area.len() as u64), area].concat();
    // An auxiliary vector of one entry, AT_FLAGS.
    let area = [message(&[(13, 8), (13, 0)]), area].concat();
    let pages = message(&[(1, START), (2, 8), (4, 6), (5, 8)]);
    BTreeMap::from([
        ("inventory.img", image_file(&[0x5831_3116], &[message(&[(1, 2)])])),
        (
            "pstree.img",
            image_file(
                &[COMMON, 0x5027_3030],
                &[message(&[(1, TASK), (2, 0), (3, TASK), (4, TASK), (5, TASK)])],
            ),
        ),
        ("mm-42.img", image_file(&[COMMON, 0x5749_2820], &[area])),
        ("pagemap-42.img", image_file(&[COMMON, 0x5608_4025], &[message(&[(1, 1)]), pages])),
        ("pages-1.img", sample::noise(41, 8 * PAGE)),
        ("core-42.img", image_file(&[COMMON, 0x5505_3847], &[b"opaque".to_vec()])),
    ])
}

/// Writes a dump to a new directory.
pub(crate) fn write_dump(directory: &Path, files: &BTreeMap<&'static str, Vec<u8>>) {
    fs::create_dir(directory).unwrap();
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).unwrap();
    }
}

fn spoiled(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![
        Vec::new(),
        bytes[..bytes.len() - 1].to_vec(),
        [bytes, &[0xff; 7]].concat(),
        sample::noise(43, bytes.len()),
        fs::read("/bin/true").unwrap(),
        [&bytes[..bytes.len().min(8)], &[0xff; 64]].concat(),
    ];
    all.extend((0..bytes.len().min(80)).step_by(3).map(|length| bytes[..length].to_vec()));
    all.extend((0..bytes.len().min(80)).map(|at| {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 0x81;
        flipped
    }));
    all
}

#[test]
fn a_dump_that_is_damaged_is_refused_or_stored_whole() {
    let place = Place::with_store();
    let good = place.path("good");
    write_dump(&good, &dump());
    let stored = place.run([
        "capture".as_ref(),
        "--criu".as_ref(),
        good.as_os_str(),
        "app".as_ref(),
        "--json".as_ref(),
    ]);
    let stored = stored.expect(0).json();
    assert_eq!(stored["new_pages"], 8, "{stored}");

    for (name, bytes) in dump() {
        for (number, damaged) in spoiled(&bytes).into_iter().enumerate() {
            let directory = place.path("damaged");
            write_dump(&directory, &dump());
            fs::write(directory.join(name), &damaged).unwrap();
            let before = fingerprint(&place.store);
            let name_of_ref = format!("damaged/{number}");
            let arguments =
                ["capture".as_ref(), "--criu".as_ref(), directory.as_os_str(), name_of_ref.as_ref()];
            let run = place.run(arguments);
            assert!([0, 2].contains(&run.code), "{name} {number}: {}", run.stderr);
            if run.code == 2 {
                assert_eq!(
                    fingerprint(&place.store),
                    before,
                    "{name} {number}: a failed capture changed the store"
                );
            }
            fs::remove_dir_all(&directory).unwrap();
        }
    }
    place.run(["check", "--read-data"]).expect(0);
    // An odd dump that was accepted comes out again as an image directory or an error.
    for line in place.run(["snapshots", "--json"]).expect(0).json_lines() {
        let directory = place.path("resumed");
        let spec = line["snapshot"].as_str().unwrap();
        let typed = ["resume", spec, "--accept-timeout", "1", "--criu-dir", directory.to_str().unwrap()];
        if line["ref"] == "app" || spec.starts_with(['0', '1']) {
            place.run(typed).expect(2);
        }
        fs::remove_dir_all(&directory).unwrap_or_default();
    }
}

#[test]
fn a_dump_with_files_missing_is_refused() {
    let place = Place::with_store();
    let before = fingerprint(&place.store);
    for name in ["inventory.img", "pstree.img", "mm-42.img", "pagemap-42.img", "pages-1.img"] {
        let directory = place.path(name);
        let mut files = dump();
        files.remove(name);
        write_dump(&directory, &files);
        let arguments = ["capture".as_ref(), "--criu".as_ref(), directory.as_os_str(), "app".as_ref()];
        place.run(arguments).expect(2).complains(name.split('.').next().unwrap());
        assert_eq!(fingerprint(&place.store), before);
    }
    let empty = place.path("empty");
    fs::create_dir(&empty).unwrap();
    place.run(["capture".as_ref(), "--criu".as_ref(), empty.as_os_str(), "app".as_ref()]).expect(2);
}

#[test]
fn memory_that_is_not_whole_pages_is_refused() {
    let place = Place::with_store();
    let (memory, state) = (place.path("memory"), place.path("state"));
    fs::write(&state, "state").unwrap();
    let before = fingerprint(&place.store);
    for length in [0, 1, PAGE - 1, PAGE + 1, 3 * PAGE + 17] {
        fs::write(&memory, sample::noise(44, length)).unwrap();
        place
            .run(["capture".as_ref(), "--raw".as_ref(), memory.as_os_str(), "m".as_ref()])
            .expect(2)
            .complains("pages");
        let machine =
            ["capture".as_ref(), "--firecracker".as_ref(), memory.as_os_str(), "--vmstate".as_ref()];
        let machine = [machine.as_slice(), &[state.as_os_str(), "m".as_ref()]].concat();
        place.run(machine).expect(2).complains("pages");
        assert_eq!(fingerprint(&place.store), before);
    }
}
