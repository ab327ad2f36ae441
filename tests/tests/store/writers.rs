//! Writers: one at a time, never half; readers and other hosts beside them.

use crate::scratch::{Scratch, overwrite};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use store::wire::{Record, seal};
use store::{Kind, SnapshotDraft, Store, StoreConfig, Tier, Unwatched};
use tests::model::{Random, assert_clean, put_files, sample_files, state_of_store};

#[test]
fn a_second_writer_in_another_process_is_refused_and_told_who_writes() {
    let scratch = Scratch::in_directory();
    let mut holder = Command::new(env!("CARGO_BIN_EXE_write_loop"))
        .args([scratch.directory.path().as_os_str(), "hold".as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    let store = scratch.open();
    let error = store.writer("test").map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    let name = format!("locked by write loop (pid {})", holder.id());
    assert!(error.to_string().contains(&name), "{error}");
    // Readers are not affected.
    assert!(store.refs().list().unwrap().is_empty());
    drop(store.pin("a reader", &[]).unwrap());
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    store.writer("test").unwrap();
}

#[test]
fn of_many_threads_one_writes() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    for _ in 0..20 {
        let barrier = std::sync::Barrier::new(8);
        let writers: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                barrier.wait();
                store.writer("race")
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(writers.iter().filter(|writer| writer.is_ok()).count(), 1);
        for error in writers.iter().filter_map(|writer| writer.as_ref().err()) {
            // Named also to writers that come before the holder has written its name.
            assert_eq!(error.kind(), Kind::Conflict);
            assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        }
    }
}

#[test]
fn readers_go_on_beside_a_writer_and_see_new_refs_without_reopening() {
    for scratch in [Scratch::in_memory().0, Scratch::in_directory()] {
        let reader = scratch.open();
        let done = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut most = 0;
                        loop {
                            let last = done.load(Ordering::Acquire);
                            if let Some(found) = reader.refs().get("web").unwrap() {
                                let version = found.history.len() as u64 - 1;
                                let id = found.current().unwrap();
                                let files = state_of_store(&reader, &id).unwrap().files.unwrap();
                                assert!(
                                    files == sample_files(8, version),
                                    "version {version} holds other files"
                                );
                                most = found.history.len();
                            }
                            if last {
                                return most;
                            }
                        }
                    })
                })
                .collect();
            let store = scratch.open();
            for version in 0..15 {
                let mut writer = store.writer("test").unwrap();
                let tree = put_files(&mut writer, &sample_files(8, version)).unwrap();
                let draft = SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() };
                writer.commit("web", draft).unwrap();
            }
            done.store(true, Ordering::Release);
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(seen, [15, 15, 15]);
    }
}

/// One host: a writer that forgets what it wrote, a collector without pause, and readers that pin before they read.
#[test]
fn a_writer_the_collector_and_readers_work_beside_each_other() {
    for scratch in [Scratch::in_memory().0, Scratch::in_directory()] {
        let done = AtomicBool::new(false);
        let reads = std::thread::scope(|scope| {
            let collector = scope.spawn(|| {
                let mut runs = 0;
                while !done.load(Ordering::Acquire) {
                    gc::collect(&scratch.open(), &gc::CollectOptions::default(), &Unwatched).unwrap();
                    runs += 1;
                }
                runs
            });
            let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_until(&scratch, &done))).collect();
            let store = scratch.open();
            for version in 0..40 {
                let mut writer = store.writer("test").unwrap();
                let tree = put_files(&mut writer, &sample_files(8, version)).unwrap();
                let labels = [("version".to_owned(), version.to_string())].into();
                let draft = SnapshotDraft { tree: Some(tree), labels, ..SnapshotDraft::default() };
                let newest = writer.commit("web", draft).unwrap();
                drop(writer);
                store.forget("web", |entry| entry.snapshot != newest).unwrap();
            }
            done.store(true, Ordering::Release);
            assert!(collector.join().unwrap() > 3);
            readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>()
        });
        assert!(reads > 10, "{reads} snapshots read");
        gc::collect(&scratch.open(), &gc::CollectOptions { dry_run: false, cycles: 3 }, &Unwatched).unwrap();
        assert_clean(&scratch.open(), "after all of it");
        assert_eq!(scratch.open().snapshot_ids().unwrap().len(), 1);
    }
}

/// Reads the newest snapshot again and again; returns how often it could.
fn read_until(scratch: &Scratch, done: &AtomicBool) -> u64 {
    let store = scratch.open();
    let mut reads = 0;
    while !done.load(Ordering::Acquire) {
        let Some(id) = store.refs().get("web").unwrap().and_then(|found| found.current()) else { continue };
        // It may have been forgotten since; what could be pinned stays.
        let Ok(pin) = store.pin("reader", &[id]) else { continue };
        let version = store.snapshot(&id).unwrap().labels["version"].parse().unwrap();
        let cold = scratch.open();
        let state = state_of_store(&cold, &id).unwrap_or_else(|error| panic!("version {version}: {error}"));
        assert!(state.files == Some(sample_files(8, version)), "version {version} holds other files");
        drop(pin);
        reads += 1;
    }
    reads
}

#[test]
fn a_cache_of_no_bytes_and_any_level_read_and_write_right() {
    for (cache_bytes, level) in [(0, 1), (1, 22), (u64::MAX, 3)] {
        let (scratch, _) = Scratch::in_memory();
        let store = Store::open(&StoreConfig { cache_bytes, level, ..scratch.config.clone() }).unwrap();
        let mut writer = store.writer("test").unwrap();
        let tree = put_files(&mut writer, &sample_files(2, 2)).unwrap();
        let id =
            writer.commit("web", SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() }).unwrap();
        assert!(state_of_store(&store, &id).unwrap().files == Some(sample_files(2, 2)));
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing_that_a_ref_reaches() {
    let (scratch, tier) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    put_files(&mut writer, &sample_files(1, 1)).unwrap();
    assert_eq!(tier.list("sessions/").unwrap().len(), 1);
    drop(writer);
    for prefix in ["sessions/", "refs/", "snapshots/", "index/"] {
        assert!(tier.list(prefix).unwrap().is_empty(), "{prefix}");
    }
    assert_clean(&scratch.open(), "after a dropped writer");
}

#[test]
fn a_writer_whose_session_was_ended_cannot_commit() {
    let (scratch, tier) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    writer.commit("web", SnapshotDraft::default()).unwrap();
    let before = store.refs().get("web").unwrap();
    let session = tier.list("sessions/").unwrap().remove(0).key;
    let record = tier.get(&session).unwrap().to_vec();
    for damage in [None, Some(b"another's".to_vec())] {
        tier.delete(&session).unwrap();
        if let Some(body) = damage {
            tier.put_if_absent(&session, &body).unwrap();
        }
        let error = writer.commit("web", SnapshotDraft::default()).unwrap_err();
        assert!(matches!(error.kind(), Kind::Fenced | Kind::Internal), "{error}");
        assert_eq!(store.refs().get("web").unwrap(), before);
    }
    overwrite(&tier, &session, &record);
    let error = writer.commit("web", SnapshotDraft::default()).unwrap_err();
    assert!(error.to_string().contains("session was ended"), "a writer that failed says why: {error}");
    drop(writer);
    store.writer("test").unwrap().commit("web", SnapshotDraft::default()).unwrap();
}

/// Local state is per host, so two hosts do not see each other's lock; their commits meet at the ref.
#[test]
fn two_hosts_lose_none_of_each_others_commits() {
    let (scratch, tier) = Scratch::in_memory();
    let other = Scratch::over(Arc::new(tier));
    std::thread::scope(|scope| {
        for (host, scratch) in [&scratch, &other].into_iter().enumerate() {
            scope.spawn(move || {
                let store = scratch.open();
                for version in 0..12 {
                    let mut writer = store.writer("host").unwrap();
                    let tree = put_files(&mut writer, &sample_files(host as u64, version)).unwrap();
                    let labels = [("host".to_owned(), format!("{host}-{version}"))].into();
                    let draft = SnapshotDraft { tree: Some(tree), labels, ..SnapshotDraft::default() };
                    writer.commit("web", draft).unwrap();
                }
            });
        }
    });
    let store = scratch.open();
    let found = store.refs().get("web").unwrap().unwrap();
    assert_eq!((found.history.len(), found.counter), (24, 24));
    let label = |entry: &store::RefEntry| store.snapshot(&entry.snapshot).unwrap().labels["host"].clone();
    let mut labels: Vec<String> = found.history.iter().map(label).collect();
    labels.sort();
    labels.dedup();
    assert_eq!(labels.len(), 24);
    assert_clean(&store, "after two hosts");
}

#[test]
fn forgets_at_once_lose_none_of_each_other() {
    for scratch in [Scratch::in_memory().0, Scratch::in_directory()] {
        let store = scratch.open();
        let mut writer = store.writer("test").unwrap();
        let commit = |number: u32| {
            let labels = [("number".to_owned(), number.to_string())].into();
            writer.commit("web", SnapshotDraft { labels, ..SnapshotDraft::default() }).unwrap()
        };
        let ids: Vec<_> = (0..9).map(commit).collect();
        std::thread::scope(|scope| {
            for id in &ids[..8] {
                let store = &store;
                scope.spawn(move || store.forget("web", |entry| entry.snapshot == *id).unwrap());
            }
        });
        let left = store.refs().get("web").unwrap().unwrap();
        assert_eq!(left.history.iter().map(|entry| entry.snapshot).collect::<Vec<_>>(), ids[8..]);
        assert_eq!(left.counter, 17);
    }
}

/// Chunks of any length in any order: acknowledged chunks read back.
#[test]
fn chunks_of_every_length_fit_their_frames() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut random = Random::new(3);
    let mut writer = store.writer("test").unwrap();
    let most = 2 << 20;
    let mut lengths = vec![0, 1, 255 << 10, most, most, 1, (256 << 10) - 1, most - 1, most];
    lengths.extend((0..200).map(|_| random.below(300_000)));
    let mut chunks = Vec::new();
    for len in lengths {
        let bytes = random.bytes(len);
        let id = match random.below(3) {
            0 => writer.put_page_group(&bytes, None).unwrap(),
            _ => writer.put_chunk(&bytes).unwrap(),
        };
        chunks.push((id, bytes));
    }
    // More chunks than a frame has slots, all tiny.
    for number in 0..150_000u32 {
        let bytes = number.to_le_bytes();
        chunks.push((writer.put_chunk(&bytes).unwrap(), bytes.to_vec()));
    }
    assert_eq!(writer.put_chunk(&vec![0; most + 1]).unwrap_err().kind(), Kind::Invalid);
    let stats = writer.stats();
    assert_eq!(stats.chunks, chunks.len() as u64);
    writer.commit("web", SnapshotDraft::default()).unwrap();
    let store = scratch.open();
    for (id, bytes) in &chunks {
        assert!(*store.read_chunk(id).unwrap() == **bytes, "a chunk of {} bytes", bytes.len());
    }
    assert_clean(&store, "chunks of every length");
}

#[test]
fn features_of_newer_builds_are_respected() {
    let (scratch, tier) = Scratch::in_memory();
    let body = tier.get("superblock").unwrap()[56..].to_vec();
    let with = |field: usize| {
        let mut body = body.clone();
        body[16 + 8 * field + 7] = 0x80; // a bit that no build knows
        overwrite(&tier, "superblock", &seal(Record::Superblock, &body));
        Store::open(&scratch.config)
    };
    with(0).unwrap().writer("test").unwrap();
    let readable = with(1).unwrap();
    assert!(readable.refs().list().unwrap().is_empty());
    assert_eq!(readable.writer("test").map(|_| ()).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(with(2).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn a_parent_that_is_being_collected_is_refused() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let parent = store.writer("test").unwrap().commit("web", SnapshotDraft::default()).unwrap();
    store.forget("web", |_| true).unwrap();
    gc::collect(&store, &gc::CollectOptions::default(), &Unwatched).unwrap();
    let mut writer = store.writer("test").unwrap();
    let draft = SnapshotDraft { parent: Some(parent), ..SnapshotDraft::default() };
    assert_eq!(writer.commit("web", draft).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(store.pin("reader", &[parent]).unwrap_err().kind(), Kind::NotFound);
    // The writer itself did nothing wrong.
    writer.commit("web", SnapshotDraft::default()).unwrap();
}

#[test]
fn names_and_prefixes_find_what_they_mean() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let mut writer = store.writer("test").unwrap();
    let ids: Vec<_> =
        (0..3).map(|_| writer.commit("shop/web-1", SnapshotDraft::default()).unwrap()).collect();
    for (spec, id) in
        [("shop/web-1", ids[2]), ("shop/web-1~0", ids[2]), ("shop/web-1~", ids[1]), ("shop/web-1~2", ids[0])]
    {
        assert_eq!(store.resolve(spec).unwrap(), id, "{spec}");
    }
    let text = ids[0].to_string();
    assert_eq!(store.resolve(&text).unwrap(), ids[0]);
    assert_eq!(store.resolve(&text[..12]).unwrap(), ids[0]);
    let unknown = [
        "shop/web-1~3",
        "shop",
        "web",
        "",
        "~",
        "~1",
        "0000000000",
        &text[..5],
        "../superblock",
        "shop/web-1~2~1x",
        &format!("{text}0"),
        &format!("{}~1", &text[..12]),
        "g123456",
    ];
    for spec in unknown {
        let kind = store.resolve(spec).unwrap_err().kind();
        assert!(matches!(kind, Kind::NotFound | Kind::Invalid), "{spec}: {kind:?}");
    }
    assert_eq!(store.resolve("shop/web-1~x").unwrap_err().kind(), Kind::Invalid);
    assert_eq!(store.resolve("shop/web-1~99999999999999999999").unwrap_err().kind(), Kind::Invalid);
    // A ref that looks like a prefix of an id comes first; an emptied ref names nothing.
    let named = writer.commit("abcdef", SnapshotDraft::default()).unwrap();
    assert_eq!(store.resolve("abcdef").unwrap(), named);
    store.forget("abcdef", |_| true).unwrap();
    assert_eq!(store.resolve("abcdef").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(writer.commit("../x", SnapshotDraft::default()).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn a_store_is_made_once() {
    let scratch = Scratch::in_directory();
    assert_eq!(Store::init(&scratch.config).unwrap_err().kind(), Kind::Conflict);
    let nowhere = StoreConfig::directory(&scratch.directory.path().join("nowhere"));
    let error = Store::open(&nowhere).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("snapctl init"), "{error}");
    assert!(!scratch.directory.path().join("nowhere").exists(), "opening makes nothing");
    let made: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| Store::init(&nowhere).is_ok())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    let store = Store::open(&nowhere).unwrap();
    store.writer("test").unwrap().commit("web", SnapshotDraft::default()).unwrap();
    assert_ne!(store.id(), scratch.open().id());
}
