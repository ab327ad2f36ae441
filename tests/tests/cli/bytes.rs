//! Names that are not text come out of JSON with every byte.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::Value;
use tests::snapctl::{Place, Run};

const ODD: &[u8] = b"odd \xff\xfe name";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that a field stands for, read as docs/JSON.md says.
fn bytes(document: &Value, field: &str) -> String {
    match &document[format!("{field}_hex")] {
        Value::String(hex) => hex.clone(),
        _ => hex(document[field].as_str().unwrap().as_bytes()),
    }
}

fn odd(place: &Place, prefix: &str) -> PathBuf {
    place.path("").join(OsStr::from_bytes(&[prefix.as_bytes(), ODD].concat()))
}

#[test]
fn names_and_link_targets_that_are_not_text_are_listed_byte_for_byte() {
    let place = Place::with_store();
    let source = odd(&place, "source ");
    fs::create_dir(&source).unwrap();
    let name = OsStr::from_bytes(ODD);
    fs::write(source.join(name), "file").unwrap();
    symlink(OsStr::from_bytes(b"to \x80/\xc3\x28"), source.join("link")).unwrap();
    symlink("plain", source.join("other")).unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let listed = place.run(["ls", "web", "--json"]).expect(0).json_lines();
    let of = |path: &str| listed.iter().find(|item| item["path"] == path).unwrap();
    assert_eq!(bytes(of("link"), "target"), hex(b"to \x80/\xc3\x28"));
    assert_eq!((bytes(of("other"), "target"), of("other").get("target_hex")), (hex(b"plain"), None));
    assert!(listed.iter().any(|item| bytes(item, "path") == hex(ODD) && item.get("target").is_none()));

    fs::remove_file(source.join(name)).unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let differs = place.run(["diff", "web~1", "web", "--json"]).expect(1).json_lines();
    assert!(differs.iter().any(|item| bytes(item, "path") == hex(ODD)), "{differs:?}");
}

#[test]
fn places_that_are_not_text_are_reported_byte_for_byte() {
    let mut place = Place::new();
    place.store = odd(&place, "store ");
    let made = place.run(["init", "--json"]).expect(0).json();
    assert_eq!(bytes(&made, "path"), hex(place.store.as_os_str().as_bytes()));
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "file").unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);

    let run = |typed: &[&OsStr]| -> Run { place.run([typed, &["--json".as_ref()]].concat()) };
    let target = odd(&place, "target ");
    let restored = run(&["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0).json();
    assert_eq!(bytes(&restored, "target"), hex(target.as_os_str().as_bytes()));
    assert_eq!(fs::read(target.join("file")).unwrap(), b"file");

    let directory = odd(&place, "mounted ");
    fs::create_dir(&directory).unwrap();
    let mounted = run(&["mount".as_ref(), "web".as_ref(), directory.as_os_str()]).expect(0).json();
    assert_eq!(bytes(&mounted, "mountpoint"), hex(directory.as_os_str().as_bytes()));
    assert!(bytes(&mounted, "upper").starts_with(&hex(place.store.as_os_str().as_bytes())), "{mounted}");
    let unmounted = run(&["umount".as_ref(), directory.as_os_str()]).expect(0).json();
    assert_eq!(bytes(&unmounted, "mountpoint"), hex(directory.as_os_str().as_bytes()));
}
