//! Contents that stand in directories. Nothing of a mount keeps them, so they are looked up wherever their file is by
//! then.

use super::*;

/// Content by path.
type Expected = BTreeMap<String, Vec<u8>>;

/// Everything is as expected, after all that is not needed was freed.
fn assert_all(overlay: &Overlay, expected: &Expected, held: NodeId) {
    assert!(overlay.tidy(true));
    for (path, bytes) in expected {
        assert_eq!(content(overlay, path), *bytes, "{path}");
    }
    assert_eq!(overlay.read(held, 0, 100).unwrap(), b"held", "of a file without a name");
}

#[test]
fn a_short_content_is_found_however_its_file_is_changed_and_frozen() {
    let world = World::new();
    let overlay = world.open();
    let c = node(&overlay, "c");
    let mut expected = Expected::new();
    for name in ["kept", "mode", "moved", "grown", "held"] {
        let id = make(&overlay, c, name, NewBody::File);
        overlay.write(id, 0, name.as_bytes(), false).unwrap();
        expected.insert(format!("c/{name}"), name.as_bytes().to_vec());
    }
    expected.extend(["b", "c/b"].map(|path| (path.to_owned(), b"linked".to_vec())));
    overlay.freeze("base", BTreeMap::new()).unwrap();
    let held = node(&overlay, "c/held");
    assert_all(&overlay, &expected, held);

    for path in ["b", "c/mode"] {
        let set = SetAttributes {
            mode: Some(0o600),
            uid: None,
            gid: None,
            len_bytes: None,
            atime: None,
            mtime: None,
        };
        overlay.set_attributes(node(&overlay, path), set, &CALLER).unwrap();
    }
    overlay.rename((c, b"moved"), (NodeId::ROOT, b"moved"), RenameMode::Replace, None).unwrap();
    let moved = expected.remove("c/moved").unwrap();
    expected.insert("moved".to_owned(), moved);
    overlay.write(node(&overlay, "c/grown"), 5, b" on", false).unwrap();
    expected.insert("c/grown".to_owned(), b"grown on".to_vec());
    overlay.unlink(c, b"held").unwrap();
    expected.remove("c/held").unwrap();
    assert_all(&overlay, &expected, held);

    for [from, to] in [["c", "d"], ["d", "e"]] {
        let [old, new] = [from, to].map(|name| (NodeId::ROOT, name.as_bytes()));
        overlay.rename(old, new, RenameMode::Replace, None).unwrap();
        let below = |path: &str| path.replace(&format!("{from}/"), &format!("{to}/"));
        expected = expected.into_iter().map(|(path, bytes)| (below(&path), bytes)).collect();
        assert_all(&overlay, &expected, held);
        let report = overlay.freeze("base", BTreeMap::new()).unwrap();
        assert_all(&overlay, &expected, held);
        let restored = world.directory.path().join(to);
        assert!(
            store::restore(&world.store, &report.snapshot, b"", &restored, &Unwatched)
                .unwrap()
                .refused
                .is_empty()
        );
        for (path, bytes) in &expected {
            assert_eq!(std::fs::read(restored.join(path)).unwrap(), *bytes, "{path} as it was frozen");
        }
    }
}

/// What an operation has opened stays open for it, whatever is freed beside it.
#[test]
fn a_directory_is_read_once_while_it_is_in_use() {
    let world = World::new();
    let overlay = world.open();
    let a = node(&overlay, "a");
    let (lower, base) = {
        let inner = overlay.lock();
        (directory_of(&inner.state, a).unwrap().lower.clone().unwrap(), inner.state.base.clone())
    };
    let opened = lower.open(&base).unwrap();
    base.forget_directories();
    assert!(Arc::ptr_eq(&opened, &lower.open(&base).unwrap()));
    drop(opened);
    base.forget_directories();
    let again = lower.open(&base).unwrap();
    assert_eq!(Arc::strong_count(&again), 2, "the base keeps what was opened last");
    base.forget_directories();
    assert_eq!(Arc::strong_count(&again), 1);
}
