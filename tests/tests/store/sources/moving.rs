//! Sources that change while they are read: the stored bytes of a file are of one inode, to its length when it was
//! opened, and a file that may have changed is not called unchanged.

use super::{World, body, file, nodes};
use crate::scratch::Scratch;
use crate::trees::back_up;
use rustix::fs::{CWD, RenameFlags};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use tests::model::{Body, Item, Random, files_of_store};
use tests::scripted_fuse::{Asked, Node, Nodes, ROOT, Request};

/// Counts the lookups of a name and changes its target before one of them.
fn at_lookup(
    name: &'static str,
    nth: usize,
    mut change: impl FnMut(&mut Nodes) + Send + 'static,
) -> impl FnMut(&Request, &mut Nodes) -> Result<(), i32> + Send + 'static {
    let mut lookups = 0;
    move |request, nodes| {
        if request.asked == Asked::Lookup && request.name == name {
            lookups += 1;
            if lookups == nth {
                change(nodes);
            }
        }
        Ok(())
    }
}

fn rename_to(nodes: &mut Nodes, name: &str, number: u64) {
    nodes.get_mut(&ROOT).unwrap().names.insert(name.to_owned(), number);
}

#[test]
fn a_directory_swapped_for_a_link_gives_nothing_of_what_the_link_names() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("file"), "secret").unwrap();
    let link = Node::link(secret.path().to_str().unwrap());
    let tree = nodes([
        (ROOT, Node::directory(&[("a", 2)])),
        (2, Node::directory(&[("file", 3), ("sub", 5)])),
        (3, Node::file(0o644, b"mine")),
        (4, link),
        (5, Node::directory(&[("file", 6)])),
        (6, Node::file(0o644, b"mine, too")),
    ]);
    for opened in [2, 5] {
        let world = World::new(tree.clone(), move |request, nodes| {
            if request.asked == Asked::OpenDirectory && request.node == opened {
                rename_to(nodes, "a", 4);
                nodes.get_mut(&2).unwrap().names.insert("sub".to_owned(), 4);
            }
            Ok(())
        });
        let (report, files) = world.back_up();
        assert!(files.values().all(|item| item.body != file(b"secret")), "{files:?}");
        assert_eq!(*body(&files, "a/file"), file(b"mine"));
        assert_eq!(report.unreadable, Vec::<String>::new());
        match opened {
            2 => assert!(matches!(body(&files, "a/sub"), Body::Symlink(_))),
            _ => assert_eq!(*body(&files, "a/sub/file"), file(b"mine, too")),
        }
    }
}

#[test]
fn bytes_are_stored_under_the_mode_of_their_own_file() {
    for nth in 1..6 {
        let tree = nodes([
            (ROOT, Node::directory(&[("f", 2), ("g", 2), ("h", 3)])),
            (2, Node { links: 2, ..Node::file(0o644, b"public") }),
            (3, Node::file(0o600, b"private")),
        ]);
        let world = World::new(tree, at_lookup("f", nth, |nodes| rename_to(nodes, "f", 3)));
        let (report, files) = world.back_up();
        assert_eq!(report.unreadable, Vec::<String>::new());
        for (name, expected) in [("f", None), ("g", Some("public")), ("h", Some("private"))] {
            let Item { metadata, body, .. } = &files[name.as_bytes()];
            let mode = match body {
                Body::File(bytes) if bytes == b"public" => 0o644,
                Body::File(bytes) if bytes == b"private" => 0o600,
                other => panic!("{name} is {other:?}"),
            };
            assert_eq!(metadata.mode, mode, "{name}, changed before lookup {nth}");
            assert!(expected.is_none_or(|bytes| *body == file(bytes.as_bytes())), "{name} is {body:?}");
        }
    }
}

#[test]
fn what_takes_the_place_of_another_is_stored_as_what_it_is() {
    let fifo = Node { mode: libc::S_IFIFO | 0o600, ..Node::file(0, b"") };
    for nth in 2..4 {
        for (first, second) in [(2, 3), (2, 4), (2, 5), (3, 2), (3, 4), (4, 3)] {
            let tree = nodes([
                (ROOT, Node::directory(&[("x", first), ("y", 6)])),
                (2, Node::file(0o644, b"a file")),
                (3, Node::directory(&[("below", 6)])),
                (4, Node::link("somewhere")),
                (5, fifo.clone()),
                (6, Node::file(0o644, b"y")),
            ]);
            let world = World::new(tree, at_lookup("x", nth, move |nodes| rename_to(nodes, "x", second)));
            let (report, files) = world.back_up();
            let context = format!("{first} becomes {second} before lookup {nth}: {files:?}");
            assert_eq!(report.unreadable, Vec::<String>::new(), "{context}");
            assert_eq!(*body(&files, "y"), file(b"y"));
            match body(&files, "x") {
                Body::File(bytes) => assert_eq!(bytes, b"a file", "{context}"),
                Body::Symlink(target) => assert_eq!(target, b"somewhere", "{context}"),
                Body::Directory => assert_eq!(*body(&files, "x/below"), file(b"y"), "{context}"),
                Body::Special(..) => assert_eq!(second, 5, "{context}"),
            }
        }
    }
}

/// Ends the thread that swaps, also when the test panics.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The same on a real file system: however fast a user swaps names, root's bytes do not come in and modes do not mix.
#[test]
fn swaps_while_root_backs_up_gain_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (source, secret) = (directory.path().join("source"), directory.path().join("secret"));
    fs::create_dir_all(source.join("d")).unwrap();
    fs::create_dir(&secret).unwrap();
    fs::write(source.join("d/file"), "mine").unwrap();
    fs::write(secret.join("file"), "secret").unwrap();
    symlink(&secret, source.join("l")).unwrap();
    for (name, bytes, mode) in [("public", "public", 0o644), ("private", "private", 0o600)] {
        fs::write(source.join(name), bytes).unwrap();
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let stop = AtomicBool::new(false);
    let mut seen = [0, 0];
    std::thread::scope(|scope| {
        let _stop = StopWhenDropped(&stop);
        scope.spawn(|| {
            let swap = |one: &str, other: &str| {
                let (one, other) = (source.join(one), source.join(other));
                rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
            };
            while !stop.load(Ordering::Relaxed) {
                swap("d", "l");
                swap("public", "private");
            }
        });
        for _ in 0..60 {
            let report = back_up(&store, &source, "web");
            let files = files_of_store(&store, &report.snapshot).unwrap();
            for (path, item) in &files {
                let Body::File(bytes) = &item.body else { continue };
                let mode = if bytes == b"private" { 0o600 } else { 0o644 };
                assert_ne!(bytes, b"secret", "{}", String::from_utf8_lossy(path));
                assert_eq!(item.metadata.mode, mode, "{}", String::from_utf8_lossy(path));
            }
            let is_told = report.unreadable.iter().all(|line| line.ends_with("replaced again and again"));
            assert!(is_told, "{:?}", report.unreadable);
            if let Some(d) = files.get(b"d".as_slice()) {
                seen[usize::from(d.body == Body::Directory)] += 1;
            }
        }
    });
    assert!(seen.iter().all(|count| *count > 0), "nothing was swapped: {seen:?}");
}

#[test]
fn what_vanishes_is_no_error_and_is_counted() {
    let tree = nodes([
        (ROOT, Node::directory(&[("d", 4), ("f", 2), ("g", 3), ("h", 2)])),
        (2, Node::file(0o644, b"f")),
        (3, Node::file(0o644, b"g")),
        (4, Node::directory(&[])),
    ]);
    for (name, nth) in [("f", 1), ("f", 2), ("d", 1), ("d", 2)] {
        let world = World::new(
            tree.clone(),
            at_lookup(name, nth, move |nodes| {
                nodes.get_mut(&ROOT).unwrap().names.remove(name);
            }),
        );
        let (report, files) = world.back_up();
        assert_eq!(report.unreadable, Vec::<String>::new());
        assert_eq!(report.vanished, [world.shown(name)]);
        assert_eq!(files.len(), 4, "{files:?}");
        assert_eq!(*body(&files, "g"), file(b"g"));
        assert_eq!((report.files + report.directories) as usize, files.len());
    }
}

#[test]
fn a_file_that_grows_as_fast_as_it_is_read_has_an_end() {
    let begin = Random::new(1).bytes(3 << 20);
    let tree = nodes([(ROOT, Node::directory(&[("log", 2)])), (2, Node::file(0o644, &begin))]);
    let world = World::new(tree, |request, nodes| {
        if request.asked == Asked::Read {
            let log = nodes.get_mut(&request.node).unwrap();
            log.bytes.extend_from_slice(&[b'x'; 300_000]);
            log.len_bytes = log.bytes.len() as u64;
            log.times.0 += 1;
            return if log.len_bytes > 100 << 20 { Err(libc::EIO) } else { Ok(()) };
        }
        Ok(())
    });
    let (report, files) = world.back_up();
    assert!(*body(&files, "log") == file(&begin), "the bytes that were there when it was opened");
    assert_eq!(report.bytes, 3 << 20);
    assert_eq!(report.changed.len(), 1);
    assert!(report.changed[0].starts_with(&world.shown("log")), "{:?}", report.changed);
    assert!(report.changed[0].contains("grew"), "{:?}", report.changed);
}

/// It is stored as read, which is reported, and is read again the next time even if it looks as it did then.
#[test]
fn a_file_that_shrinks_while_it_is_read_is_told_of_and_read_again() {
    let begin = Random::new(1).bytes(3 << 20);
    let tree = nodes([(ROOT, Node::directory(&[("log", 2)])), (2, Node::file(0o644, &begin))]);
    let mut reads = 0;
    let world = World::new(tree, move |request, nodes| {
        if request.asked == Asked::Read {
            reads += 1;
            if reads == 3 {
                let log = nodes.get_mut(&request.node).unwrap();
                log.bytes.truncate(1 << 20);
                log.len_bytes = 1 << 20;
            }
        }
        Ok(())
    });
    let (report, files) = world.back_up();
    assert!(*body(&files, "log") == file(&begin[..1 << 20]));
    assert_eq!(report.bytes, 1 << 20);
    assert_eq!(report.unreadable, Vec::<String>::new());
    assert_eq!(report.changed.len(), 1);
    assert!(report.changed[0].contains(&format!("{} bytes long", 3 << 20)), "{:?}", report.changed);
    let other = Random::new(2).bytes(3 << 20);
    *world.mount.nodes().get_mut(&2).unwrap() = Node::file(0o644, &other);
    let (report, files) = world.back_up();
    assert_eq!(report.unchanged_files, 0);
    assert!(*body(&files, "log") == file(&other));
    assert_eq!(report.changed, Vec::<String>::new());
    // Now that it kept still it is taken over unread.
    assert_eq!(world.back_up().0.unchanged_files, 1);
}

/// Nothing is assumed of a file that was written meanwhile, even behind the times that a write leaves.
#[test]
fn a_file_written_while_it_is_read_is_not_taken_for_unchanged() {
    for times in [(1000, 1001), (1001, 1001)] {
        let tree = nodes([(ROOT, Node::directory(&[("f", 2)])), (2, Node::file(0o644, &[b'a'; 1 << 20]))]);
        let mut reads = 0;
        let world = World::new(tree, move |request, nodes| {
            reads += usize::from(request.asked == Asked::Read);
            if request.asked == Asked::Read && reads == 2 {
                let f = nodes.get_mut(&request.node).unwrap();
                f.bytes[..5].copy_from_slice(b"other");
                f.times = times;
            }
            Ok(())
        });
        let (report, _) = world.back_up();
        assert_eq!(report.changed.len(), usize::from(times.0 == 1001), "{:?}", report.changed);
        world.mount.nodes().get_mut(&2).unwrap().times = (1000, 1000);
        let (report, files) = world.back_up();
        assert_eq!(report.unchanged_files, 0);
        let Body::File(bytes) = body(&files, "f") else { panic!("f is a file") };
        assert_eq!(&bytes[..6], b"othera");
    }
}
