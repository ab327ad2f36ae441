//! Every tier by the one suite.

use std::cell::RefCell;
use std::sync::Arc;
use store::{LocalTier, MemoryTier, Tier};
use tests::conformance::{HOSTILE_KEYS, suite};
use tests::fault::FaultTier;

#[test]
fn a_tier_in_memory_conforms() {
    suite(&|| Arc::new(MemoryTier::new()));
}

#[test]
fn a_tier_in_a_directory_conforms() {
    let directories = RefCell::new(Vec::new());
    suite(&|| {
        let directory = tempfile::tempdir().unwrap();
        let tier = Arc::new(LocalTier::new(directory.path().join("not-there-yet")));
        directories.borrow_mut().push(directory);
        tier
    });
}

#[test]
fn a_tier_that_could_fail_but_does_not_conforms() {
    suite(&|| FaultTier::faultless(Arc::new(MemoryTier::new())));
}

#[test]
fn no_hostile_key_reaches_a_file_outside_the_root() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let outside = directory.path().join("a");
    std::fs::write(&outside, "stays").unwrap();
    let tier = LocalTier::new(&root);
    for key in HOSTILE_KEYS {
        assert!(tier.put_if_absent(key, b"x").is_err(), "{key:?}");
        assert!(tier.delete(key).is_err(), "{key:?}");
    }
    assert_eq!(std::fs::read_to_string(outside).unwrap(), "stays");
    assert_eq!(tier.list("../").unwrap(), []);
    assert_eq!(tier.list("/etc/").unwrap(), []);
}

#[test]
fn what_is_no_object_is_not_listed() {
    let directory = tempfile::tempdir().unwrap();
    let tier = LocalTier::new(directory.path());
    tier.put_if_absent("refs/web", b"x").unwrap();
    std::fs::write(directory.path().join("refs/.web.swp"), "an editor's").unwrap();
    std::fs::write(directory.path().join("refs/web~"), "an editor's").unwrap();
    std::os::unix::fs::symlink("web", directory.path().join("refs/link")).unwrap();
    let keys: Vec<String> = tier.list("").unwrap().into_iter().map(|info| info.key).collect();
    assert_eq!(keys, ["refs/web"]);
    assert_eq!(tier.len_bytes("refs").unwrap(), None, "a directory is no object");
}
