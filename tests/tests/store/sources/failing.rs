//! Sources that answer with errors, cannot be written to, or have no bounds: nothing is left out without a report, one
//! unreadable object costs nothing else, and reading changes nothing.

use super::{World, body, file, nodes};
use crate::scratch::Scratch;
use crate::trees::back_up;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use store::{BackupOptions, Unwatched};
use tests::model::{Body, Random, files_of_host, files_of_store};
use tests::scripted_fuse::{Node, ROOT, Seek};

/// Files that say they are empty and are not, as those of /proc.
#[test]
fn files_that_do_not_say_their_length_are_read_to_their_end() {
    let sized = Node::file(0o444, &[b'p'; 70_000]);
    let tree = nodes([
        (ROOT, Node::directory(&[("empty", 3), ("proc", 2)])),
        (2, Node { len_bytes: 0, blocks: 0, ..sized }),
        (3, Node::file(0o644, b"")),
    ]);
    let world = World::new(tree, |_, _| Ok(()));
    let (report, files) = world.back_up();
    assert!(*body(&files, "proc") == file(&[b'p'; 70_000]));
    assert_eq!(*body(&files, "empty"), file(b""));
    assert_eq!(report.bytes, 70_000);
    assert_eq!(
        world.back_up().0.unchanged_files,
        1,
        "what may change without its look changing is read again"
    );
}

#[test]
fn attributes_that_cannot_be_read_cost_no_file_and_are_named() {
    let good = || ("user.good".to_owned(), Ok(b"value".to_vec()));
    let with = |node: Node, name: &str, error: i32| Node {
        xattrs: [good(), (name.to_owned(), Err(error))].into(),
        ..node
    };
    let closed = |node: Node, error: i32| Node { list_error: Some(error), ..node };
    let tree = nodes([
        (ROOT, closed(Node::directory(&[("d", 2), ("e", 3), ("f", 4), ("g", 5), ("l", 6)]), libc::EPERM)),
        (2, with(Node::directory(&[("below", 7)]), "user.bad", libc::EIO)),
        (3, closed(Node::directory(&[("below", 7)]), libc::E2BIG)),
        (4, with(Node::file(0o644, b"f"), "user.bad", libc::EACCES)),
        (5, closed(Node::file(0o644, b"g"), libc::ERANGE)),
        (6, with(Node::link("target"), "trusted.bad", libc::EPERM)),
        (7, with(Node::file(0o644, b"below"), "system.posix_acl_access", libc::EIO)),
    ]);
    let world = World::new(tree, |_, _| Ok(()));
    let (first, files) = world.back_up();
    assert_eq!(first.unreadable, Vec::<String>::new());
    let bodies = [("f", "f"), ("g", "g"), ("d/below", "below"), ("e/below", "below")];
    for (path, bytes) in bodies {
        assert_eq!(*body(&files, path), file(bytes.as_bytes()));
    }
    assert_eq!(*body(&files, "l"), Body::Symlink(b"target".to_vec()));
    for path in ["d", "f"] {
        let xattrs = &files[path.as_bytes()].metadata.xattrs;
        assert_eq!(*xattrs, [(b"user.good".to_vec(), b"value".to_vec())], "{path}");
    }
    let (again, _) = world.back_up();
    for report in [&first, &again] {
        let told = &report.unreadable_attributes;
        let list = "cannot list its extended attributes";
        let expected = [
            ("", list),
            ("d", "user.bad"),
            ("d/below", "system.posix_acl_access"),
            ("e", list),
            ("e/below", "system.posix_acl_access"),
            ("f", "user.bad"),
            ("g", list),
            ("l", "trusted.bad"),
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (path, what) in expected {
            let path = world.shown(path);
            let begin = format!("{}: ", path.trim_end_matches('/'));
            let is_told = told.iter().any(|line| line.starts_with(&begin) && line.contains(what));
            assert!(is_told, "{path} {what}: {told:?}");
        }
    }
}

#[test]
fn what_cannot_be_synced_is_read_and_its_holes_are_not_believed() {
    let bytes = Random::new(3).bytes(1 << 20);
    let holes_everywhere = |_, whence: u32| if whence == 3 { Err(libc::ENXIO) } else { Ok(0) };
    let nonsense: Seek = |_, _| Ok(0);
    let broken: Seek = |_, _| Err(libc::EIO);
    let base = Node { blocks: 0, ..Node::file(0o644, &bytes) };
    let tree = nodes([
        (ROOT, Node::directory(&[("broken", 4), ("lying", 2), ("nonsense", 3), ("plain", 5), ("zeroes", 6)])),
        (2, Node { sync_error: Some(libc::EIO), seek: Some(holes_everywhere), ..base.clone() }),
        (3, Node { seek: Some(nonsense), ..base.clone() }),
        (4, Node { seek: Some(broken), ..base.clone() }),
        (5, Node { sync_error: Some(libc::EINVAL), ..base }),
        (6, Node { sync_error: Some(libc::EROFS), blocks: 0, ..Node::file(0o644, &vec![0; 8 << 20]) }),
    ]);
    let world = World::new(tree, |_, _| Ok(()));
    let (report, files) = world.back_up();
    assert_eq!(report.unreadable, Vec::<String>::new());
    for name in ["broken", "lying", "nonsense", "plain"] {
        assert!(*body(&files, name) == file(&bytes), "{name} came back wrong");
    }
    assert!(*body(&files, "zeroes") == file(&vec![0; 8 << 20]));
    // The one that is nothing but zeroes is a hole; the others share their chunks.
    assert!(report.stats.new_bytes < (1 << 20) + (64 << 10), "{:?}", report.stats);
}

/// An image of a file system that cannot be written to, mounted until it is dropped.
struct Image(PathBuf);

impl Image {
    fn mount(kind: &str, image: &Path, place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        run(Command::new("mount").args(["-t", kind, "-o", "loop,ro"]).args([image, place]));
        Self(place.to_owned())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn file_systems_that_cannot_be_written_to_are_backed_up_whole() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let source = at("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    let mut random = Random::new(9);
    for number in 0..6 {
        fs::write(source.join(format!("sub/text-{number}")), format!("line {number}\n").repeat(20_000))
            .unwrap();
        fs::write(source.join(format!("noise-{number}")), random.bytes(number * 7000)).unwrap();
    }
    let sparse = File::create(source.join("sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    sparse.write_all_at(b"an island", 5 << 20).unwrap();
    let (erofs, squashfs) = (at("erofs.image"), at("squashfs.image"));
    run(Command::new("mkfs.erofs").args(["-zlz4hc", "--quiet"]).args([&erofs, &source]));
    run(Command::new("mksquashfs").args([&source, &squashfs]).args(["-quiet", "-no-progress"]));
    for (kind, image) in [("erofs", erofs), ("squashfs", squashfs)] {
        let mount = Image::mount(kind, &image, &at(kind));
        let (scratch, _) = Scratch::in_memory();
        let store = scratch.open();
        let report = back_up(&store, &mount.0, "web");
        assert_eq!(report.unreadable, Vec::<String>::new(), "{kind}");
        let files = files_of_store(&store, &report.snapshot).unwrap();
        assert!(files == files_of_host(&mount.0), "{kind} came back otherwise");
        assert_eq!(files.len(), 15, "{kind}");
    }
}

#[test]
fn sources_keep_their_access_times() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let flags = rustix::mount::MountFlags::STRICTATIME;
    rustix::mount::mount("tmpfs", &source, "tmpfs", flags, None).unwrap();
    let mount = Image(source);
    fs::create_dir(mount.0.join("sub")).unwrap();
    fs::write(mount.0.join("sub/file"), "bytes").unwrap();
    fs::set_permissions(&mount.0, fs::Permissions::from_mode(0o755)).unwrap();
    let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let paths = ["", "sub", "sub/file"].map(|path| mount.0.join(path));
    let reset = || {
        for path in &paths {
            let times = Timestamps { last_access: old, last_modification: old };
            rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
        }
    };
    let accessed = || paths.each_ref().map(|path| fs::metadata(path).unwrap().atime());
    reset();
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    drop(back_up(&store, &mount.0, "web"));
    assert_eq!(accessed(), [1_000_000_000; 3]);
    // A user other than the owner and root may not ask for that and still reads.
    let report = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(1234)).unwrap();
            let (scratch, _) = Scratch::in_memory();
            let store = scratch.open();
            let report = back_up(&store, &mount.0, "web");
            (report.unreadable, files_of_store(&store, &report.snapshot).unwrap().len())
        });
        other.join().unwrap()
    });
    assert_eq!(report, (Vec::new(), 3));
    assert!(accessed().iter().all(|seconds| *seconds > 1_000_000_000), "the mount notes accesses");
}

/// A name may be longer than any path that the kernel takes.
#[test]
fn a_tree_with_paths_of_any_length_is_backed_up_whole() {
    let directory = tempfile::tempdir().unwrap();
    let level = "d".repeat(200);
    let mut at = File::open(directory.path()).unwrap();
    let mut path = String::new();
    let mut expected = vec![String::new()];
    for number in 0..150 {
        rustix::fs::mkdirat(&at, &level, rustix::fs::Mode::RWXU).unwrap();
        at = File::from(store_open(&at, &level));
        path = if path.is_empty() { level.clone() } else { format!("{path}/{level}") };
        expected.push(path.clone());
        let name = format!("file-{number}");
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::openat(&at, &name, flags, rustix::fs::Mode::RUSR).unwrap();
        rustix::io::write(&file, name.as_bytes()).unwrap();
        rustix::fs::symlinkat(&*name, &at, "link").unwrap();
        expected.extend([format!("{path}/{name}"), format!("{path}/link")]);
    }
    assert!(path.len() > 30_000);
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    for _ in 0..2 {
        let report = back_up(&store, directory.path(), "web");
        assert_eq!(report.unreadable, Vec::<String>::new());
        let files = files_of_store(&store, &report.snapshot).unwrap();
        expected.sort();
        assert!(
            files.keys().map(|path| String::from_utf8_lossy(path)).eq(expected.iter().map(String::as_str))
        );
        assert_eq!(*body(&files, &format!("{path}/file-149")), file(b"file-149"));
        assert_eq!(*body(&files, &format!("{path}/link")), Body::Symlink(b"file-149".to_vec()));
    }
}

fn store_open(at: &File, name: &str) -> rustix::fd::OwnedFd {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, rustix::fs::Mode::empty()).unwrap()
}

/// An object that a snapshot cannot hold costs nothing else, and excluded paths are not even looked at.
#[test]
fn what_cannot_be_held_or_looked_at_is_told_unless_it_is_left_out() {
    let long = "n".repeat(300);
    let names = [("broken", 2), ("f", 3), (long.as_str(), 3)];
    let tree = nodes([(ROOT, Node::directory(&names)), (3, Node::file(0o644, b"f"))]);
    let world = World::new(tree, |request, _| match request.name.as_str() {
        "broken" => Err(libc::EIO),
        _ => Ok(()),
    });
    let (report, files) = world.back_up();
    assert_eq!((files.len(), report.unreadable.len()), (2, 2));
    assert!(report.unreadable[0].starts_with(&world.shown("broken")), "{:?}", report.unreadable);
    assert!(report.unreadable[1].ends_with("longer than 255 bytes"), "{:?}", report.unreadable);
    let exclude = vec!["/broken".to_owned(), "nnn*".to_owned()];
    let options = BackupOptions { exclude, ..BackupOptions::default() };
    let mut writer = world.store.writer("test").unwrap();
    let report = store::backup(&mut writer, &world.place, "web", &options, &Unwatched).unwrap();
    assert_eq!(report.unreadable, Vec::<String>::new());
}
