//! A small tree with one of everything that Linux has, the same each time, and what it takes to compare trees.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::process::Command;

/// Length of the file that does not compress, in bytes: several chunks.
pub(crate) const NOISE_LEN_BYTES: usize = 1_500_000;

/// Bytes that look random; the same for the same seed.
pub(crate) fn noise(seed: u64, len_bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len_bytes + 8);
    while bytes.len() < len_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len_bytes);
    bytes
}

/// Makes the tree.
pub(crate) fn make(root: &Path) {
    fs::create_dir_all(root.join("docs/deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("hello.txt"), "hello, store\n").unwrap();
    fs::write(root.join("docs/text"), "the same line again\n".repeat(20_000)).unwrap();
    fs::write(root.join("docs/deep/er/noise"), noise(1, NOISE_LEN_BYTES)).unwrap();
    fs::write(root.join("docs/nothing"), "").unwrap();
    fs::hard_link(root.join("hello.txt"), root.join("docs/hello-again.txt")).unwrap();
    symlink("../hello.txt", root.join("docs/link")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(b"island", 4 << 20).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"odd \x1b[31m\xff\nname")), "odd").unwrap();
    let made = Command::new("mkfifo").arg(root.join("pipe")).status().unwrap();
    assert!(made.success());
}

/// One line for each thing below a directory that `restore` must bring back, with its bytes as a checksum.
pub(crate) fn listing(root: &Path) -> String {
    let script = "find . -mindepth 1 -printf '%P %y %m %U %G %n %l ' \\( -type d -printf '\\n' -o -printf '%s %T@ ' \
                  \\( -type f -exec md5sum {} \\; -o -printf '\\n' \\) \\) | LC_ALL=C sort";
    let output = Command::new("sh").args(["-c", script]).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asserts that two trees are the same.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (listing(one), listing(other));
    assert!(!one.is_empty());
    assert_eq!(one, other);
}
