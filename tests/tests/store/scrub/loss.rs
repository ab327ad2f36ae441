//! Permanent loss: affected paths are reported one by one, writers store them again, the collector works beside it.

use super::*;
use std::collections::BTreeMap;
use store::{BackupOptions, Node, Unwatched};
use tests::model::{Body, bytes_of};

/// Damages a frame on the only tier.
fn lose(whole: &Whole, tier: &MemoryTier, pack: PackId, frame: usize) {
    let mut bytes = tier.get(&pack.key()).unwrap().to_vec();
    let at = whole.directory(pack).frames[frame].offset as usize + 95;
    bytes[at] ^= 1;
    overwrite(tier, &pack.key(), &bytes);
}

/// Whether a file reads, by itself.
fn reads(store: &Store, snapshot: &SnapshotId, path: &[u8], right: &[u8]) -> bool {
    let read = || {
        let tree = store.tree(&store.snapshot(snapshot)?.tree.unwrap())?;
        match tree.lookup_path(path)?.unwrap().node {
            Node::File(content) => bytes_of(store, &content),
            node => panic!("{node:?}"),
        }
    };
    match read() {
        Ok(bytes) => {
            assert!(bytes == right);
            true
        }
        Err(_) => false,
    }
}

/// For every frame of the store: exactly the paths that do not read are named.
#[test]
fn the_paths_that_are_named_as_hurt_are_those_that_do_not_read() {
    let whole = Whole::new();
    let (mut frames, mut affected, mut sound) = (0, 0, 0);
    for pack in whole.packs() {
        for frame in 0..whole.directory(pack).frames.len() {
            let (scratch, tiers) = whole.over_tiers(1);
            lose(&whole, &tiers[0], pack, frame);
            let report = scrub(&scratch.config, &LOOK);
            frames += 1;
            let store = scratch.open();
            let named: BTreeMap<SnapshotId, Vec<Vec<u8>>> = report
                .affected
                .iter()
                .map(|affected| {
                    (affected.id, affected.paths.iter().map(|affected| affected.path.clone()).collect())
                })
                .collect();
            for (id, state) in &whole.states {
                let paths = named.get(id).cloned().unwrap_or_default();
                let is_named = |path: &[u8]| {
                    paths.iter().any(|named| match named.strip_suffix(b"/") {
                        Some(directory) => path.starts_with(directory),
                        None => named == path || named == b"all hard-linked files",
                    })
                };
                for (path, item) in state.files.iter().flatten() {
                    let Body::File(right) = &item.body else { continue };
                    let is_read = reads(&store, id, path, right);
                    let path_text = String::from_utf8_lossy(path);
                    let only_links = paths.iter().any(|path| path == b"all hard-linked files");
                    if !only_links || item.link.is_some() {
                        assert_eq!(is_read, !is_named(path), "{path_text} with {paths:?}");
                    }
                    affected += u32::from(!is_read);
                    sound += u32::from(is_read);
                }
                if state.memory.is_some() {
                    assert_eq!(state_of_store(&store, id).is_err(), !paths.is_empty());
                }
            }
        }
    }
    println!(
        "{frames} frames lost one at a time: {affected} paths affected and named, {sound} sound and not named"
    );
    assert!(affected > 20 && sound > 100);
}

#[test]
fn lost_pages_are_counted_by_space() {
    let whole = Whole::new();
    let (scratch, tiers) = whole.over_tiers(1);
    let (vm, _) = whole.states.last().unwrap();
    let store = scratch.open();
    let image = store.image(&store.snapshot(vm).unwrap().image.unwrap()).unwrap();
    let run = image.runs(0)[1];
    let bytes = image.group(run.group).unwrap().to_vec();
    let id = store.domain().chunk_id(&bytes);
    let place = store.index().find_in(&id, |_| true).unwrap();
    let frames = whole.directory(place.pack).frames;
    lose(
        &whole,
        &tiers[0],
        place.pack,
        frames.iter().position(|frame| frame.offset == place.offset).unwrap(),
    );
    let report = scrub(&scratch.config, &LOOK);
    let [affected] = report.affected.as_slice() else { panic!("{:?}", report.affected) };
    assert_eq!((affected.id, affected.refs.as_slice()), (*vm, ["vm".to_owned()].as_slice()));
    assert_eq!(affected.paths[0].path, b"memory of space 0");
    let expected = format!("{} pages are lost, the first at {:#x}", run.page_count, run.first_page * 4096);
    assert_eq!(affected.paths[0].how, expected);
}

/// A lost directory hides the paths below it from its snapshot, and from no other; the collector goes on.
#[test]
fn lost_metadata_blocks_no_collection_and_comes_back_with_its_source() {
    let whole = Whole::new();
    let mut lost_records = 0;
    for pack in whole.packs() {
        if store::pack::read_kind(&whole.tier, pack).unwrap() != store::pack::PackKind::Meta {
            continue;
        }
        let (scratch, tiers) = whole.over_tiers(1);
        (0..whole.directory(pack).frames.len()).for_each(|frame| lose(&whole, &tiers[0], pack, frame));
        let before = whole.readable(&scratch.config, "damaged");
        assert!(before.contains(&false) && before.contains(&true), "{before:?}");
        let collect = || {
            let options = gc::CollectOptions { dry_run: false, cycles: 4 };
            gc::collect(&scratch.open(), &options, &Unwatched)
        };
        let refused = collect().unwrap_err();
        assert!(refused.to_string().contains("nothing was deleted"), "{refused}");
        drop(scrub(&scratch.config, &REPAIR));
        let garbage = State { files: Some(files(77)), memory: None };
        commit(&mut scratch.open().writer("test").unwrap(), "garbage", &garbage);
        scratch.open().forget("garbage", |_| true).unwrap();
        let packs = tiers[0].list("packs/").unwrap().len();
        let report = collect().unwrap();
        assert!(report.bytes(gc::Verdict::Delete) > 0, "garbage goes: {report:?}");
        assert!(tiers[0].list("packs/").unwrap().len() < packs);
        assert_eq!(whole.readable(&scratch.config, "collected"), before);
        for (_, state) in &whole.states {
            commit(&mut scratch.open().writer("again").unwrap(), "again", state);
        }
        assert!(whole.readable(&scratch.config, "stored again").iter().all(|read| *read));
        collect().unwrap();
        assert!(whole.readable(&scratch.config, "collected again").iter().all(|read| *read));
        // The damaged pack held metadata alone, all of it stored again: nothing needs it.
        assert!(tiers[0].get(&pack.key()).is_err() && noted(&tiers[0], pack).is_empty());
        lost_records += 1;
    }
    println!("{lost_records} packs of metadata lost: collections went on, all came back and the packs went");
    assert!(lost_records >= 3);
}

#[test]
fn a_backup_that_reads_everything_heals_what_an_ordinary_one_passes_over() {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("sub")).unwrap();
    std::fs::write(source.path().join("sub/noise"), Random::new(1).bytes(200_000)).unwrap();
    std::fs::write(source.path().join("text"), "short").unwrap();
    let (scratch, tier) = Scratch::in_memory();
    let back_up = |force_read| {
        let store = scratch.open();
        let mut writer = store.writer("backup").unwrap();
        let options = BackupOptions { force_read, ..BackupOptions::default() };
        store::backup(&mut writer, source.path(), "web", &options, &Unwatched).unwrap()
    };
    let first = back_up(false);
    for info in tier.list("packs/").unwrap() {
        let mut bytes = tier.get(&info.key).unwrap().to_vec();
        bytes[200] ^= 1;
        overwrite(&tier, &info.key, &bytes);
    }
    let report = scrub(&scratch.config, &REPAIR);
    assert!(report.lost.iter().all(|lost| lost.lost_chunks > 0) && report.lost.len() == 2, "{report:#?}");
    let store = scratch.open();
    assert!(state_of_store(&store, &first.snapshot).is_err());
    let second = back_up(true);
    assert_eq!(second.unchanged_files, 0, "every file is read");
    assert!(second.stats.new_bytes > 200_000, "what is lost is stored again: {:?}", second.stats);
    for snapshot in [first.snapshot, second.snapshot] {
        state_of_store(&scratch.open(), &snapshot).unwrap();
    }
    let report = scrub(&scratch.config, &LOOK);
    assert!(report.is_intact() && report.affected.is_empty(), "{report:#?}");
    assert!(report.lost.iter().all(|lost| lost.lost_chunks == 0));
    let checked = store::check(&scratch.open(), CheckOptions::default(), &Unwatched).unwrap();
    assert_eq!((checked.problems.len(), checked.damaged_packs.len()), (0, 2), "{checked:?}");
    gc::collect(&scratch.open(), &gc::CollectOptions { dry_run: false, cycles: 4 }, &Unwatched).unwrap();
    assert!(
        store::check(&scratch.open(), CheckOptions { read_data: true }, &Unwatched)
            .unwrap()
            .problems
            .is_empty()
    );
    state_of_store(&scratch.open(), &first.snapshot).unwrap();
}
