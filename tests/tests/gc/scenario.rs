//! The collector as an operator sees it: condemned first, deleted two runs later, pinned snapshots stay, nothing
//! deleted when damaged.

use gc::{CollectOptions, Policy, Verdict, collect, forget};
use store::{Kind, Tier, Unwatched};
use tests::gc_fixture::{GcFixture, assert_files, commit};

fn keep_last(count: u32) -> Policy {
    Policy { keep_last: Some(count), ..Policy::default() }
}

#[test]
fn what_is_forgotten_is_condemned_then_deleted_two_runs_later() {
    let fixture = GcFixture::new();
    fixture.commit("app", &[1, 2]);
    fixture.commit("app", &[2, 3]);
    let full = fixture.memory.list("packs/").unwrap().len();
    forget(&fixture.open(), "app", &keep_last(1), false).unwrap();
    let first = fixture.collect(1);
    assert_eq!(fixture.memory.list("packs/").unwrap().len(), full, "the run that condemns deletes nothing");
    assert_eq!(first.bytes(Verdict::Delete), 0);
    assert_eq!(fixture.collect(1).bytes(Verdict::Delete), 0);
    // The first pack holds file 2, which lives; the directory of the first snapshot was in a pack of metadata alone.
    assert!(fixture.collect(1).bytes(Verdict::Delete) > 0);
    fixture.assert_sound("after three runs");
}

#[test]
fn when_all_is_forgotten_nothing_but_fixed_records_stays() {
    let fixture = GcFixture::new();
    for round in 0..5 {
        fixture.commit("app", &[round, round + 1]);
    }
    fixture.open().forget("app", |_| true).unwrap();
    fixture.collect(3);
    for prefix in ["packs/", "snapshots/", "gc/condemned/", "sessions/"] {
        assert_eq!(fixture.memory.list(prefix).unwrap(), [], "{prefix}");
    }
    fixture.commit("app", &[1]);
    fixture.assert_sound("a new life");
}

#[test]
fn a_dry_run_tells_the_plan_with_reasons_and_changes_nothing() {
    let fixture = GcFixture::new();
    fixture.commit("app", &[1]);
    fixture.open().forget("app", |_| true).unwrap();
    let before = fixture.memory.fork();
    let options = CollectOptions { dry_run: true, cycles: 1 };
    let report = collect(&fixture.open(), &options, &Unwatched).unwrap();
    assert!(
        report
            .packs
            .iter()
            .all(|pack| pack.verdict == Verdict::Condemn && !pack.reason.to_string().is_empty())
    );
    for prefix in ["packs/", "gc/", "index/", "refs/", "sessions/", "snapshots/"] {
        assert_eq!(fixture.memory.list(prefix).unwrap(), before.list(prefix).unwrap(), "{prefix}");
    }
}

#[test]
fn a_pinned_snapshot_stays_while_its_reader_lives_and_no_longer() {
    let fixture = GcFixture::new();
    let snapshot = fixture.commit("app", &[1, 2, 3]);
    let store = fixture.open();
    let pin = store.pin("mount", &[snapshot]).unwrap();
    fixture.open().forget("app", |_| true).unwrap();
    fixture.collect(4);
    assert_files(&store, &snapshot, "pinned");
    drop(pin);
    fixture.collect(3);
    assert_eq!(fixture.open().snapshot(&snapshot).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(fixture.memory.list("packs/").unwrap(), []);
}

#[test]
fn a_condemned_snapshot_cannot_be_pinned_or_built_on() {
    let fixture = GcFixture::new();
    let snapshot = fixture.commit("app", &[1]);
    fixture.open().forget("app", |_| true).unwrap();
    fixture.collect(1);
    let store = fixture.open();
    assert_eq!(store.pin("late", &[snapshot]).unwrap_err().kind(), Kind::NotFound);
    let mut writer = store.writer("late").unwrap();
    let tree = store.snapshot(&snapshot).unwrap().tree;
    let draft = store::SnapshotDraft { tree, parent: Some(snapshot), ..store::SnapshotDraft::default() };
    assert_eq!(writer.commit("app", draft).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_condemned_pack_is_absent_for_deduplication() {
    let fixture = GcFixture::new();
    fixture.commit("app", &[1]);
    fixture.open().forget("app", |_| true).unwrap();
    fixture.collect(1);
    let store = fixture.open();
    let mut writer = store.writer("again").unwrap();
    commit(&mut writer, "app", &[1]).unwrap();
    assert!(writer.stats().new_bytes >= 100_000, "the bytes are written again: {:?}", writer.stats());
    drop(writer);
    fixture.collect(3);
    fixture.assert_sound("after the old copy is gone");
}

#[test]
fn nothing_is_deleted_when_a_root_or_anything_reachable_is_hurt() {
    let fixture = GcFixture::new();
    fixture.commit("dead", &[7]);
    fixture.commit("app", &[1]);
    fixture.open().forget("dead", |_| true).unwrap();
    fixture.collect(2);
    let prefixes = ["refs/", "snapshots/", "packs/"];
    for prefix in prefixes {
        let damaged = GcFixture::new();
        for area in ["domains/", "superblock", "packs/", "index/", "snapshots/", "refs/", "gc/"] {
            for info in fixture.memory.list(area).unwrap() {
                damaged.memory.delete(&info.key).unwrap();
                damaged.memory.put_if_absent(&info.key, &fixture.memory.get(&info.key).unwrap()).unwrap();
            }
        }
        // Everything of one kind is damaged: refs and records by a flipped bit, packs by being gone.
        for info in damaged.memory.list(prefix).unwrap() {
            let mut bytes = damaged.memory.get(&info.key).unwrap().to_vec();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            damaged.memory.delete(&info.key).unwrap();
            if prefix != "packs/" {
                damaged.memory.put_if_absent(&info.key, &bytes).unwrap();
            }
        }
        let before = damaged.memory.list("packs/").unwrap();
        let error =
            collect(&damaged.open(), &CollectOptions { dry_run: false, cycles: 3 }, &Unwatched).unwrap_err();
        assert!(matches!(error.kind(), Kind::Corrupt | Kind::NotFound), "{prefix}: {error}");
        assert_eq!(damaged.memory.list("packs/").unwrap(), before, "{prefix}");
    }
}

/// Local state that the collector does not know, or that was lost, says nothing about the process behind a session.
#[test]
fn a_session_of_other_local_state_counts_as_alive() {
    let fixture = GcFixture::new();
    let snapshot = fixture.commit("app", &[1, 2]);
    let reading = fixture.open();
    let pin = reading.pin("mount of app", &[snapshot]).unwrap();
    fixture.open().forget("app", |_| true).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut config = fixture.config(std::sync::Arc::new(fixture.memory.clone()));
    config.state = elsewhere.path().into();
    let options = CollectOptions { dry_run: false, cycles: 4 };
    collect(&store::Store::open(&config).unwrap(), &options, &Unwatched).unwrap();
    std::fs::remove_dir_all(fixture.state().join("sessions")).unwrap();
    fixture.collect(4);
    assert_files(&reading, &snapshot, "pinned");
    drop(pin);
    fixture.collect(4);
    assert_eq!(fixture.memory.list("packs/").unwrap(), []);
}

/// A pack that lost its end is damage like one that is gone, also for what earlier runs walked already.
#[test]
fn nothing_is_deleted_while_a_pack_that_is_needed_is_cut() {
    for walked_before in [false, true] {
        let fixture = GcFixture::new();
        fixture.commit("app", &[1]);
        if walked_before {
            fixture.collect(1);
        }
        fixture.commit("garbage", &[7]);
        fixture.open().forget("garbage", |_| true).unwrap();
        let pack = fixture.memory.list("packs/").unwrap().remove(0);
        let bytes = fixture.memory.get(&pack.key).unwrap().to_vec();
        for len in [0, 64, bytes.len() / 2] {
            fixture.memory.delete(&pack.key).unwrap();
            fixture.memory.put_if_absent(&pack.key, &bytes[..len]).unwrap();
            let before = fixture.memory.list("packs/").unwrap();
            let options = CollectOptions { dry_run: false, cycles: 4 };
            let error = collect(&fixture.open(), &options, &Unwatched).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            assert!(error.to_string().contains("nothing was deleted"), "{error}");
            assert_eq!(fixture.memory.list("packs/").unwrap(), before);
        }
        fixture.memory.delete(&pack.key).unwrap();
        fixture.memory.put_if_absent(&pack.key, &bytes).unwrap();
        fixture.collect(4);
        fixture.assert_sound("after the repair");
    }
}
