//! Two directory trees compared in everything that a user can see: the oracle's side of the tests of snapfs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Times below this were set by a test; later ones are the clock's and differ between two trees.
pub const SET_TIME_MAX: i64 = 1_400_000_000;

/// The visible state of one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    /// Not for directories: file systems differ in what they count there.
    nlink: Option<u64>,
    rdev: u64,
    /// Where a test set it.
    mtime: Option<(i64, i64)>,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file in the tree.
    same_as: PathBuf,
}

/// Everything below `root`, by path.
pub fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    visit(root, Path::new(""), &mut seen, &mut first_names);
    seen
}

fn visit(
    root: &Path,
    at: &Path,
    seen: &mut BTreeMap<PathBuf, Seen>,
    first_names: &mut BTreeMap<u64, PathBuf>,
) {
    let path = root.join(at);
    let metadata = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kind = metadata.file_type();
    let content = match kind {
        kind if kind.is_file() => {
            fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        }
        kind if kind.is_symlink() => {
            fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes()
        }
        _ => Vec::new(),
    };
    let old = metadata.mtime() < SET_TIME_MAX;
    let entry = Seen {
        kind: format!("{kind:?} {}", kind.is_fifo()),
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        nlink: (!kind.is_dir()).then(|| metadata.nlink()),
        rdev: metadata.rdev(),
        mtime: old.then(|| (metadata.mtime(), metadata.mtime_nsec())),
        content,
        xattrs: xattrs(&path),
        same_as: first_names.entry(metadata.ino()).or_insert_with(|| at.to_owned()).clone(),
    };
    seen.insert(at.to_owned(), entry);
    if kind.is_dir() {
        let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut names: Vec<_> = entries.map(|entry| entry.expect("a name").file_name()).collect();
        names.sort();
        names.iter().for_each(|name| visit(root, &at.join(name), seen, first_names));
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names).expect("names of attributes");
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(path, name, &mut value).expect("an attribute");
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}

/// Panics with the first difference between two trees.
pub fn assert_same(found: &Path, expected: &Path, context: &str) {
    let (found, expected) = (look(found), look(expected));
    for (path, want) in &expected {
        match found.get(path) {
            Some(got) if got == want => {}
            Some(got) => panic!("{context}: {} differs\n{}", path.display(), difference(got, want)),
            None => panic!("{context}: {} is missing", path.display()),
        }
    }
    for path in found.keys() {
        assert!(expected.contains_key(path), "{context}: {} should not be there", path.display());
    }
}

fn difference(got: &Seen, want: &Seen) -> String {
    if got.content == want.content {
        return format!("got  {}\nwant {}", short(got), short(want));
    }
    let at = got.content.iter().zip(&want.content).position(|(a, b)| a != b);
    let (got, want) = (got.content.len(), want.content.len());
    format!("content: {got} bytes against {want}, first difference at {at:?}")
}

fn short(seen: &Seen) -> String {
    let Seen { kind, mode, owner, nlink, rdev, mtime, xattrs, same_as, .. } = seen;
    format!("{kind} {mode:o} {owner:?} nlink {nlink:?} rdev {rdev} mtime {mtime:?} {xattrs:?} as {same_as:?}")
}
