//! One process writes at a time, and says who.

use std::fs;

use store::{FileLock, Store, StoreConfig};
use tests::snapctl::{Place, fingerprint};

use crate::sample;

#[test]
fn a_locked_store_is_read_by_all_and_written_by_none() {
    let place = Place::with_store();
    let source = place.path("source");
    sample::make(&source);
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let memory = place.path("memory");
    fs::write(&memory, sample::noise(5, 1 << 16)).unwrap();

    let store = Store::open(&StoreConfig::directory(&place.store)).unwrap();
    let writer = store.writer("the test").unwrap();
    let before = fingerprint(&place.store);
    let holder = format!("the test (pid {})", std::process::id());
    let backup = ["backup".as_ref(), source.as_os_str(), "web".as_ref()];
    let error = place.run(backup).expect(2).complains(&holder);
    assert!(error.stderr.contains("wait"), "{}", error.stderr);
    place
        .run(["capture".as_ref(), "--raw".as_ref(), memory.as_os_str(), "memory".as_ref()])
        .expect(2)
        .complains(&holder);
    for reading in
        [["snapshots"].as_slice(), &["ls", "-R", "web"], &["cat", "web:hello.txt"], &["check"], &["stats"]]
    {
        place.run(reading).expect(0);
    }
    let target = place.path("target");
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    assert_eq!(fingerprint(&place.store), before);

    drop(writer);
    place.run(backup).expect(0);
}

#[test]
fn one_collector_works_at_a_time() {
    let place = Place::with_store();
    let before = fingerprint(&place.store);
    let lock = FileLock::take(&place.store.join("local/gc.lock"), "the test").unwrap();
    for arguments in [["gc"].as_slice(), &["gc", "--cycles", "3"], &["index", "rebuild"]] {
        place.run(arguments).expect(2).complains("the test (pid ");
    }
    place.run(["gc", "--dry-run"]).expect(0);
    assert_eq!(fingerprint(&place.store), before);
    drop(lock);
    place.run(["gc"]).expect(0);
}
