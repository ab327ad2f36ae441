//! Refusals of a target, and the errors that end a restore: only a full disk and errors of the store.

use crate::error::{Error, Kind};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::path::PathBuf;

/// A path that is not in the target, or not as it was stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// Where, as the caller gave the target.
    pub path: PathBuf,
    /// The refused step, and why.
    pub what: String,
    /// Whether it is an owner, mode, device or attribute that this user or this file system does not allow.
    pub is_permission: bool,
}

/// A refusal without its path.
#[derive(Debug)]
pub(super) struct Refusal {
    pub what: String,
    pub is_permission: bool,
}

/// Why something was not made.
pub(super) enum Failure {
    /// The target refuses this path: the others go on.
    Refused(Refusal),
    /// The restore ends.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Refusal {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), is_permission: false }
    }

    /// The failure of entries below a directory that could not be made.
    pub(super) fn lost() -> Self {
        Self::new("left out: its directory could not be restored")
    }

    /// The system's error of one step.
    pub(super) fn of(what: &str, error: Errno) -> Self {
        Self::new(format!("{what}: {error}"))
    }

    /// The system's error of a step that this user or this file system may not allow.
    pub(super) fn of_permission(what: &str, error: Errno) -> Self {
        let is_permission = matches!(error, Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP);
        Self { is_permission, ..Self::of(what, error) }
    }
}

/// An error of writing bytes: a full disk or quota ends the restore.
pub(super) fn of_data(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |error| match error {
        Errno::NOSPC | Errno::DQUOT => full(what, error),
        _ => Refusal::of(what, error).into(),
    }
}

/// An error of making a name in a directory. A file system also reports that it is full when one directory is: then
/// blocks and inodes are left.
pub(super) fn of_name(what: &'static str, directory: impl AsFd) -> impl Fn(Errno) -> Failure {
    move |error| {
        let has_room = || {
            rustix::fs::fstatvfs(&directory)
                .is_ok_and(|space| space.f_bavail > 0 && (space.f_files == 0 || space.f_favail > 0))
        };
        match error {
            Errno::DQUOT => full(what, error),
            Errno::NOSPC if !has_room() => full(what, error),
            _ => Refusal::of(what, error).into(),
        }
    }
}

fn full(what: &str, error: Errno) -> Failure {
    let error =
        Error::new(Kind::Full, format!("{what}, the target is full")).caused_by(std::io::Error::from(error));
    Failure::Fatal(error.advice("free some space there"))
}
