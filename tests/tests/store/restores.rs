//! Restores that race with an attacker, are refused something, or go on where an earlier one ended.

use crate::backups::become_user;
use crate::scratch::Scratch;
use crate::trees::{assert_same, back_up};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use store::{
    Content, Entry, EntryInode, Inode, Kind, LinkedInode, Metadata, Node, Progress, SnapshotDraft,
    SnapshotId, Store, TreeRoot, Unwatched, Writer,
};
use tests::model::files_of_host;

/// Does something once, when the first file is restored.
struct Meanwhile<F>(F, Once);

impl<F: Fn() + Sync> Progress for Meanwhile<F> {
    fn advance(&self, _amount: u64) {
        self.1.call_once(&self.0);
    }
}

fn meanwhile<F: Fn() + Sync>(act: F) -> Meanwhile<F> {
    Meanwhile(act, Once::new())
}

/// A file system of its own in a file, unmounted when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(place: &Path, kind: &str) -> Self {
        let (image, path) = (place.join("image"), place.join("disk"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&path).unwrap();
        run(Command::new("mke2fs").args(["-q", "-F", "-t", kind]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &path]));
        Self(path)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(gone.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn inode(node: Node) -> Inode {
    Inode { metadata: Metadata { mode: 0o755, ..Metadata::default() }, node }
}

fn own(name: &str, node: Node) -> Entry {
    Entry { name: name.into(), inode: EntryInode::Own(inode(node)) }
}

/// A snapshot of a root with these entries, one inode of several names among them as number 1.
fn commit(mut writer: Writer, entries: &[Entry], linked: Option<LinkedInode>) -> SnapshotId {
    let directory = writer.put_directory(entries).unwrap();
    let links: BTreeMap<u64, LinkedInode> = linked.into_iter().map(|inode| (1, inode)).collect();
    let metadata = Metadata { mode: 0o755, ..Metadata::default() };
    let tree = Some(writer.put_tree(&TreeRoot { metadata, directory, links }).unwrap());
    writer.commit("web", SnapshotDraft { tree, ..SnapshotDraft::default() }).unwrap()
}

fn shown(refused: &[store::Refused]) -> Vec<String> {
    refused.iter().map(|refused| format!("{}: {}", refused.path.display(), refused.what)).collect()
}

/// An attacker, allowed to rename below the target, replaces a directory by a link to where a file of root's has the
/// same name.
#[test]
fn a_directory_that_becomes_a_symbolic_link_gives_no_hard_link_to_what_it_points_at() {
    let place = tempfile::tempdir().unwrap();
    let (source, target, outside) =
        (place.path().join("source"), place.path().join("target"), place.path().join("outside"));
    fs::create_dir_all(source.join("a")).unwrap();
    fs::create_dir(source.join("b")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(source.join("a/first"), "the user's").unwrap();
    fs::hard_link(source.join("a/first"), source.join("b/second")).unwrap();
    fs::write(outside.join("first"), "root's alone").unwrap();
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let report = back_up(&store, &source, "web");
    let swap = meanwhile(|| {
        fs::rename(target.join("a"), target.join("moved")).unwrap();
        symlink(&outside, target.join("a")).unwrap();
    });
    let restored = store::restore(&store, &report.snapshot, b"", &target, &swap).unwrap();
    assert!(swap.1.is_completed());
    assert_eq!(fs::metadata(outside.join("first")).unwrap().nlink(), 1, "root's file got another name");
    assert_eq!(fs::read_to_string(target.join("b/second")).unwrap(), "the user's");
    assert_eq!(shown(&restored.refused), Vec::<String>::new());
}

#[test]
fn a_directory_that_becomes_a_symbolic_link_redirects_no_file_and_no_directory() {
    let place = tempfile::tempdir().unwrap();
    let (source, target, outside) =
        (place.path().join("source"), place.path().join("target"), place.path().join("outside"));
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::create_dir(&outside).unwrap();
    for number in 0..3000 {
        fs::write(source.join(format!("sub/file-{number}")), "x").unwrap();
    }
    for number in 0..200 {
        fs::create_dir(source.join(format!("sub/under-{number}"))).unwrap();
        fs::write(source.join(format!("sub/under-{number}/file")), "x").unwrap();
    }
    let scratch = Scratch::in_directory();
    let store = scratch.open();
    let report = back_up(&store, &source, "web");
    let before = fs::metadata(&outside).unwrap();
    let swap = meanwhile(|| {
        fs::rename(target.join("sub"), target.join("moved")).unwrap();
        symlink(&outside, target.join("sub")).unwrap();
    });
    let restored = store::restore(&store, &report.snapshot, b"", &target, &swap).unwrap();
    assert!(swap.1.is_completed());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "files went where the link points");
    let after = fs::metadata(&outside).unwrap();
    assert_eq!((after.mode(), after.mtime()), (before.mode(), before.mtime()), "the link was followed");
    // Open descriptors still led into the created directory; reopening was refused and reported.
    let arrived = files_of_host(&target.join("moved")).len() as u64 - 1;
    let told = restored.refused.iter().filter(|refused| refused.path.starts_with(target.join("sub"))).count();
    assert!(arrived + told as u64 >= 3400, "{arrived} arrived and {told} were reported");
    assert!(restored.refused.len() == told, "{:?}", shown(&restored.refused)[0]);
}

/// Paths of up to 11 kB, which no system call takes, and more directories below each other than are held open.
#[test]
fn paths_longer_than_any_system_call_takes_are_restored() {
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let (levels, name) = (220, "n".repeat(50));
    let mut entries = vec![own("file", Node::File(Content::inline(b"at the bottom".to_vec())))];
    let mut writer = store.writer("test").unwrap();
    for _ in 0..levels {
        let below = writer.put_directory(&entries).unwrap();
        entries = vec![
            own("file", Node::File(Content::inline(b"beside".to_vec()))),
            Entry { name: b"link".to_vec(), inode: EntryInode::Link(1) },
            own(&name, Node::Directory(below)),
        ];
    }
    let linked = LinkedInode { count: levels, inode: inode(Node::File(Content::inline(b"linked".to_vec()))) };
    let snapshot = commit(writer, &entries, Some(linked));
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("target");
    let restored = store::restore(&store, &snapshot, b"", &target, &Unwatched).unwrap();
    assert_eq!(shown(&restored.refused), Vec::<String>::new());
    assert_eq!((restored.files, restored.directories), (u64::from(levels) * 2 + 1, u64::from(levels) + 1));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(&target, flags, Mode::empty()).unwrap();
    for level in 0..levels {
        let link = rustix::fs::statat(&at, "link", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(link.st_nlink, u64::from(levels), "at level {level}");
        at = rustix::fs::openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
        assert_eq!(rustix::fs::fstat(&at).unwrap().st_mode & 0o7777, 0o755, "at level {level}");
    }
    let file = fs::File::from(
        rustix::fs::openat(&at, "file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap(),
    );
    assert_eq!(std::io::read_to_string(file).unwrap(), "at the bottom");
}

/// ext4 takes 65,000 names of a file.
#[test]
fn names_beyond_the_largest_number_of_links_are_files_of_their_own() {
    let place = tempfile::tempdir().unwrap();
    let (scratch, _) = Scratch::in_memory();
    let store = scratch.open();
    let names = 65_010;
    let entries: Vec<Entry> = (0..names)
        .map(|number| Entry { name: format!("{number:05}").into_bytes(), inode: EntryInode::Link(1) })
        .collect();
    let linked = LinkedInode { count: names, inode: inode(Node::File(Content::inline(b"bytes".to_vec()))) };
    let snapshot = commit(store.writer("test").unwrap(), &entries, Some(linked));
    let disk = Loop::new(place.path(), "ext4");
    for run in ["first", "second"] {
        // `lost+found` does not hinder a restore.
        let restored = store::restore(&store, &snapshot, b"", &disk.0, &Unwatched).unwrap();
        let told = shown(&restored.refused);
        assert!(
            told.len() == 1 && told[0].contains("65000: ") && told[0].contains("Too many links"),
            "{told:?}"
        );
        assert_eq!(restored.files, u64::from(names), "{run}");
        assert_eq!(fs::metadata(disk.0.join("00000")).unwrap().nlink(), 65_000);
        assert_eq!(fs::metadata(disk.0.join("65009")).unwrap().nlink(), 10);
        assert_eq!(fs::read(disk.0.join("65000")).unwrap(), b"bytes");
        assert_eq!(fs::metadata(&disk.0).unwrap().mode() & 0o7777, 0o755);
    }
}

/// A user's restore that nothing may stop: directories without any permission, with links out of and into them, and
/// another user's file.
#[test]
fn a_user_restores_links_of_closed_directories_and_owners_are_all_that_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    for name in ["closed", "open", "shut"] {
        fs::create_dir_all(source.join(name)).unwrap();
    }
    fs::write(source.join("closed/first"), "linked").unwrap();
    fs::hard_link(source.join("closed/first"), source.join("open/second")).unwrap();
    fs::hard_link(source.join("closed/first"), source.join("shut/third")).unwrap();
    for name in ["", "closed", "closed/first", "open", "shut"] {
        chown(source.join(name), Some(1234), Some(1234)).unwrap();
    }
    fs::write(source.join("roots"), "root's").unwrap();
    fs::set_permissions(source.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(source.join("shut"), fs::Permissions::from_mode(0o444)).unwrap();
    let (store, snapshot, target) = of_a_user(directory.path(), &source);
    for run in ["first", "second"] {
        let refused = restored_by_a_user(&store, &snapshot, &target);
        let told = shown(&refused);
        assert!(
            told.len() == 1 && told[0].contains("roots: owner: ") && refused[0].is_permission,
            "{run}: {told:?}"
        );
        for (name, mode) in [("closed", 0o000), ("open", 0o755), ("shut", 0o444)] {
            assert_eq!(fs::metadata(target.join(name)).unwrap().mode() & 0o7777, mode, "{run}: {name}");
        }
        assert_eq!(fs::metadata(target.join("shut/third")).unwrap().nlink(), 3, "{run}");
    }
    // Root's own rerun completes it.
    let restored = store::restore(&store, &snapshot, b"", &target, &Unwatched).unwrap();
    assert_eq!(shown(&restored.refused), Vec::<String>::new());
    assert_same(&files_of_host(&source), &files_of_host(&target));
}

/// Nothing is set on an object that a rerun finds: it may be a link to a file outside.
#[test]
fn a_rerun_takes_over_no_file_that_somebody_linked_in() {
    let directory = tempfile::tempdir().unwrap();
    let (source, outside) = (directory.path().join("source"), directory.path().join("outside"));
    fs::create_dir(&source).unwrap();
    for name in ["a", "b"] {
        fs::write(source.join(name), "the same bytes").unwrap();
        chown(source.join(name), Some(4321), Some(4321)).unwrap();
    }
    chown(&source, Some(1234), Some(1234)).unwrap();
    fs::copy(source.join("a"), &outside).unwrap();
    let (store, snapshot, target) = of_a_user(directory.path(), &source);
    let told = shown(&restored_by_a_user(&store, &snapshot, &target));
    assert!(told.len() == 2 && told[0].contains("a: owner: "), "{told:?}");
    fs::remove_file(target.join("a")).unwrap();
    fs::hard_link(&outside, target.join("a")).unwrap();
    let restored = store::restore(&store, &snapshot, b"", &target, &Unwatched).unwrap();
    assert_eq!(shown(&restored.refused), Vec::<String>::new());
    assert_same(&files_of_host(&source), &files_of_host(&target));
    let after = fs::metadata(&outside).unwrap();
    assert_eq!((after.uid(), after.nlink()), (0, 1), "root's file was given away");
    let error = store::restore(&store, &snapshot, b"", &target, &Unwatched).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "a complete restore is not gone on with");
}

/// A backup of `source` by root in a store that a user may use, and where that user may restore it to.
fn of_a_user(directory: &Path, source: &Path) -> (Store, SnapshotId, PathBuf) {
    let place = directory.join("place");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&place).unwrap();
    let store = Store::init(&store::StoreConfig::directory(&place.join("store"))).unwrap();
    let report = back_up(&store, source, "web");
    run(Command::new("chown").args(["-R", "1234:1234"]).arg(&place));
    (store, report.snapshot, place.join("target"))
}

fn restored_by_a_user(store: &Store, snapshot: &SnapshotId, target: &Path) -> Vec<store::Refused> {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            become_user(1234);
            store::restore(store, snapshot, b"", target, &Unwatched).unwrap().refused
        });
        other.join().unwrap()
    })
}
