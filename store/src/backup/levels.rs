//! The directories that a walk is in, from the source down. Only the topmost ones and the deepest are held open, so a
//! deep tree needs no more descriptors than a shallow one; the others are opened again on the way back, and only if
//! they are the same directories.

use crate::host::held::{self, Name};
use crate::tree::Inode;
use rustix::fd::OwnedFd;
use rustix::fs::{Stat, fstat};
use rustix::io::Errno;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Directories above this depth stay open while those below are walked.
const OPEN_DEPTH: usize = 64;

/// A directory of the host whose subdirectories are still to be walked.
pub(super) struct Level {
    /// Itself, or why it could not be opened again.
    pub directory: Result<OwnedFd, Errno>,
    stat: Stat,
    pub subdirectories: std::vec::IntoIter<Subdirectory>,
}

/// A name that was a directory when examined.
pub(super) struct Subdirectory {
    pub name: Name,
    pub stat: Stat,
    /// The inode of this name in the parent snapshot.
    pub old: Option<Inode>,
}

impl Level {
    pub(super) fn new(directory: OwnedFd, stat: &Stat, subdirectories: Vec<Subdirectory>) -> Self {
        Self { directory: Ok(directory), stat: *stat, subdirectories: subdirectories.into_iter() }
    }
}

/// From the source down to the deepest.
pub(super) struct Levels(Vec<Level>);

impl Levels {
    pub(super) fn new(top: Level) -> Self {
        Self(vec![top])
    }

    pub(super) fn deepest(&mut self) -> Option<&mut Level> {
        self.0.last_mut()
    }

    /// Goes down. The level above is closed when it lies deep.
    pub(super) fn enter(&mut self, below: Level) {
        if self.0.len() > OPEN_DEPTH
            && let Some(above) = self.0.last_mut()
        {
            above.directory = Err(Errno::BADF);
        }
        self.0.push(below);
    }

    /// Goes up. `relative`: the path below the source of the level that becomes the deepest.
    pub(super) fn leave(&mut self, relative: &Path) {
        let left = self.0.pop();
        let Some(last) = self.0.len().checked_sub(1) else { return };
        if self.0[last].directory.is_err() {
            self.0[last].directory = self.open_again(last, left.as_ref(), relative);
        }
    }

    /// Opens a level as the parent of the one that was left or, when that was moved elsewhere meanwhile, name by name.
    fn open_again(&self, depth: usize, left: Option<&Level>, relative: &Path) -> Result<OwnedFd, Errno> {
        let stat = &self.0[depth].stat;
        let above = match left.map(|left| &left.directory) {
            Some(Ok(directory)) => held::open_directory_at(directory, b".."),
            _ => Err(Errno::NOENT),
        };
        above.and_then(|above| same(above, stat)).or_else(|_| {
            let is_held = |level: &Level| level.directory.is_ok();
            let held = self.0[..depth].iter().rposition(is_held).ok_or(Errno::NOENT)?;
            let mut names = relative.iter().skip(held);
            let first = names.next().ok_or(Errno::NOENT)?;
            let first = held::open_directory_at(
                self.0[held].directory.as_ref().map_err(|error| *error)?,
                first.as_bytes(),
            )?;
            let found = names.try_fold(first, |at, name| held::open_directory_at(&at, name.as_bytes()))?;
            same(found, stat)
        })
    }
}

/// The directory, if it is the one of this stat.
fn same(directory: OwnedFd, stat: &Stat) -> Result<OwnedFd, Errno> {
    match held::is_same_inode(&fstat(&directory)?, stat) {
        true => Ok(directory),
        false => Err(Errno::STALE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// Levels that go down `depth` directories named `d`, and the path of the deepest.
    fn down(root: &Path, depth: usize) -> (Levels, PathBuf) {
        let level = |directory: OwnedFd| {
            let stat = fstat(&directory).unwrap();
            Level::new(directory, &stat, Vec::new())
        };
        let root = held::pin(root).unwrap();
        let mut levels = Levels::new(level(held::open_directory_at(&root, b".").unwrap()));
        for _ in 0..depth {
            let above = levels.deepest().unwrap().directory.as_ref().unwrap();
            let below = held::open_directory_at(above, b"d").unwrap();
            levels.enter(level(below));
        }
        (levels, ["d"].repeat(depth).iter().collect())
    }

    #[test]
    fn only_the_same_directory_is_opened_again() {
        let depth = OPEN_DEPTH + 5;
        // Depths of directories moved elsewhere while the walk is in the deepest, and how many levels are lost.
        let cases: [(&[usize], usize); 5] =
            [(&[], 0), (&[depth], 0), (&[depth - 1], 0), (&[OPEN_DEPTH + 1], 0), (&[depth, depth - 2], 2)];
        for (moved, expected) in cases {
            let root = tempfile::tempdir().unwrap();
            let path_at = |depth: usize| root.path().join(["d"].repeat(depth).iter().collect::<PathBuf>());
            fs::create_dir_all(path_at(depth)).unwrap();
            let (mut levels, mut relative) = down(root.path(), depth);
            let is_open = |level: &&Level| level.directory.is_ok();
            assert_eq!(levels.0.iter().filter(is_open).count(), OPEN_DEPTH + 1);
            for moved in moved {
                fs::rename(path_at(*moved), root.path().join(moved.to_string())).unwrap();
            }
            fs::create_dir_all(path_at(depth)).unwrap(); // others of the same names
            let mut lost = 0;
            while relative.pop() {
                levels.leave(&relative);
                let Level { directory, stat, .. } = levels.deepest().unwrap();
                match directory {
                    Ok(directory) => assert!(held::is_same_inode(&fstat(directory).unwrap(), stat)),
                    Err(_) => lost += 1,
                }
            }
            assert_eq!(lost, expected, "{moved:?}");
        }
    }
}
