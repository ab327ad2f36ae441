//! Directories while they are filled, and their descriptors. Every name is made through the descriptor of its
//! directory, so that renaming or replacing a directory meanwhile redirects nothing.
//!
//! Only [`OPEN_MAX`] descriptors are held. A directory that was closed is opened again name by name below a held one
//! (the topmost always is), and only if it is the same directory.
//!
//! Lock order: a directory's own, then none; the list of open ones is locked alone.

use super::refusal::{Failure, Refusal};
use crate::host::held::{self, Name};
use crate::sync::Mutex;
use crate::tree::Metadata;
use rustix::fd::OwnedFd;
use rustix::fs::Stat;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, Weak};

/// Directories that are held open at once, beside the topmost and those that a worker is in.
const OPEN_MAX: usize = 128;

/// A directory being filled. Every holder releases it with [`super::make::Maker::release`].
pub(super) struct Filling {
    /// Its name in its parent; of the topmost one its path as the caller gave it.
    name: Name,
    pub parent: Option<Arc<Filling>>,
    /// Its metadata, set when all in it is made; `None` for a directory that only contains the target.
    pub metadata: Option<Metadata>,
    /// Whether it existed before: then it may have attributes that were not stored.
    pub was_there: bool,
    /// How it looked when it was made.
    stat: Option<Stat>,
    /// Separate, so that closing a directory needs no hold on it: its fillers alone decide when it is done.
    hold: Arc<Mutex<Hold>>,
}

enum Hold {
    Open(Arc<OwnedFd>),
    Closed,
    /// It could not be made, which was reported.
    Lost,
}

impl Filling {
    /// The topmost directory, which stays open.
    pub(super) fn top(path: &OsStr, metadata: Option<Metadata>, fd: OwnedFd, stat: Stat) -> Arc<Self> {
        let hold = Arc::new(Mutex::new(Hold::Open(Arc::new(fd))));
        let name = path.as_bytes().to_vec();
        Arc::new(Self { name, parent: None, metadata, was_there: true, stat: Some(stat), hold })
    }

    /// A directory that could not be made: nothing below it can.
    pub(super) fn lost(parent: Arc<Filling>, name: Name) -> Arc<Self> {
        let hold = Arc::new(Mutex::new(Hold::Lost));
        Arc::new(Self { name, parent: Some(parent), metadata: None, was_there: false, stat: None, hold })
    }

    pub(super) fn path(&self) -> PathBuf {
        let mut names = vec![self.name.as_slice()];
        let mut above = self.parent.as_deref();
        while let Some(directory) = above {
            names.push(&directory.name);
            above = directory.parent.as_deref();
        }
        names.into_iter().rev().map(OsStr::from_bytes).collect()
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(*self.hold(), Hold::Lost)
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        lock(&self.hold)
    }

    /// Opens it again below its parent.
    fn open_in(&self, parent: &OwnedFd) -> rustix::io::Result<OwnedFd> {
        let fd = held::open_directory_at(parent, &self.name)?;
        let now = rustix::fs::fstat(&fd)?;
        match self.stat.as_ref().is_some_and(|stat| held::is_same_inode(stat, &now)) {
            true => Ok(fd),
            false => Err(Errno::STALE),
        }
    }
}

/// Without recursion: a tree may be deeper than the stack.
impl Drop for Filling {
    fn drop(&mut self) {
        let mut above = self.parent.take();
        while let Some(mut directory) = above.and_then(Arc::into_inner) {
            above = directory.parent.take();
        }
    }
}

/// A name in a directory that is being filled.
pub(super) struct Place {
    pub directory: Arc<Filling>,
    pub name: Name,
}

impl Place {
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join(OsStr::from_bytes(&self.name))
    }
}

/// Which directories are open.
#[derive(Default)]
pub(super) struct Descriptors {
    /// In the order in which they were opened; some are done since.
    open: Mutex<VecDeque<Weak<Mutex<Hold>>>>,
}

impl Descriptors {
    /// A directory that was just made, or was there and is taken over.
    pub(super) fn made(
        &self,
        place: Place,
        metadata: Metadata,
        was_there: bool,
        fd: OwnedFd,
        stat: Stat,
    ) -> Arc<Filling> {
        let Place { directory, name } = place;
        let hold = Arc::new(Mutex::new(Hold::Closed));
        let (parent, metadata, stat) = (Some(directory), Some(metadata), Some(stat));
        let made = Arc::new(Filling { name, parent, metadata, was_there, stat, hold });
        self.keep(&made, Arc::new(fd));
        made
    }

    fn keep(&self, directory: &Arc<Filling>, fd: Arc<OwnedFd>) {
        *directory.hold() = Hold::Open(fd);
        let closed = {
            let mut open = lock(&self.open);
            open.push_back(Arc::downgrade(&directory.hold));
            if open.len() > OPEN_MAX { open.pop_front() } else { None }
        };
        if let Some(hold) = closed.and_then(|hold| hold.upgrade()) {
            *lock(&hold) = Hold::Closed;
        }
    }

    /// The descriptor of a directory.
    pub(super) fn of(&self, directory: &Arc<Filling>) -> Result<Arc<OwnedFd>, Failure> {
        let mut closed = Vec::new();
        let mut at = directory;
        let mut held = loop {
            match &*at.hold() {
                Hold::Open(fd) => break fd.clone(),
                Hold::Lost => return Err(Refusal::lost().into()),
                Hold::Closed => closed.push(at),
            }
            at = at.parent.as_ref().ok_or_else(gone)?;
        };
        for directory in closed.into_iter().rev() {
            held = Arc::new(directory.open_in(&held).map_err(|_| gone())?);
            self.keep(directory, held.clone());
        }
        Ok(held)
    }

    /// The descriptor of a directory without other holders, to end it; `None` for a lost one.
    pub(super) fn last_of(&self, directory: &mut Filling) -> Result<Option<Arc<OwnedFd>>, Failure> {
        match std::mem::replace(&mut *directory.hold(), Hold::Closed) {
            Hold::Open(fd) => return Ok(Some(fd)),
            Hold::Lost => return Ok(None),
            Hold::Closed => {}
        }
        let parent = self.of(directory.parent.as_ref().ok_or_else(gone)?)?;
        directory.open_in(&parent).map(|fd| Some(Arc::new(fd))).map_err(|_| gone().into())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

fn gone() -> Refusal {
    Refusal::new("the directory was moved or replaced meanwhile")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    /// One thread opens directories, which closes those opened earlier; another releases each of those meanwhile.
    #[test]
    fn closing_a_directory_never_keeps_its_last_holder_from_ending_it() {
        let place = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(place.path()).unwrap());
        let stat = rustix::fs::fstat(open()).unwrap();
        let metadata = Metadata { mode: 0o755, ..Metadata::default() };
        let top = Filling::top(place.path().as_os_str(), None, open(), stat);
        let descriptors = Descriptors::default();
        let (filled, done) = sync_channel(OPEN_MAX);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for directory in done {
                    assert!(Arc::into_inner(directory).is_some(), "nobody else holds it");
                }
            });
            for number in 0..400_000 {
                let place = Place { directory: top.clone(), name: number.to_string().into_bytes() };
                let made = descriptors.made(place, metadata.clone(), false, open(), stat);
                filled.send(made).unwrap();
            }
            drop(filled);
        });
    }
}
