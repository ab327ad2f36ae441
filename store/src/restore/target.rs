//! The place that a restore fills, and the record by which the same restore continues one that ended early or had
//! refusals. The record is local state of this host: `restores/<hash of the path>`, a sealed record of snapshot,
//! path in it and identity of the directory. Beside it stands a lock, so that two restores never fill one place.
//!
//! A place that is not empty is taken only by its record, so nothing of a directory in use is ever replaced.

use super::filling::Filling;
use super::make::Maker;
use super::metadata::take_over;
use super::present::LOST_AND_FOUND;
use super::{Refused, RestoreReport};
use crate::error::{Error, Kind, Result};
use crate::host::held::{self, Handle, Host, Name};
use crate::host::lock::FileLock;
use crate::host::state::LocalState;
use crate::id::SnapshotId;
use crate::progress::Progress;
use crate::repo::store::Store;
use crate::tree::{Inode, Node};
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, StatxFlags, Uid};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// The source and target of a restore.
pub(super) struct Request<'a> {
    pub store: &'a Store,
    pub snapshot: &'a SnapshotId,
    pub path: &'a [u8],
    pub target: &'a Path,
}

/// An open place, taken for one restore.
pub(super) struct Target {
    /// The directory to fill, or the one that a single file goes into.
    pub top: Arc<Filling>,
    /// The single file's name.
    pub name: Option<Name>,
    /// Whether an earlier restore of the same left something here.
    pub is_again: bool,
    record: String,
    state: LocalState,
    lock: Option<FileLock>,
    /// An existing directory, with its stat before the restore.
    before: Option<(OwnedFd, Stat)>,
}

impl Target {
    /// Opens and takes the place.
    ///
    /// # Errors
    /// `Conflict` when it is in use, or another restore fills it; as the system calls.
    pub(super) fn take(request: &Request<'_>, inode: &Inode, progress: &dyn Progress) -> Result<Self> {
        let is_directory = matches!(inode.node, Node::Directory(_));
        let target = request.target;
        let is_new = !target.is_dir();
        let (path, name) = match is_directory {
            true => (target, None),
            false => split(target)?,
        };
        if is_directory && is_new {
            std::fs::create_dir_all(target)
                .map_err(|error| Error::io("cannot create directory", target.display(), error))?;
        }
        let failed = |what, path: &Path| {
            let path = path.display().to_string();
            move |error: Errno| Error::io(what, path, error.into())
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = rustix::fs::openat(CWD, here, flags, Mode::empty())
            .map_err(failed("cannot open directory", here))?;
        let stat = rustix::fs::fstat(&fd).map_err(failed("cannot look at directory", here))?;
        let is_in_use = match &name {
            Some(name) => is_there(&fd, name).map_err(failed("cannot look at", target))?,
            None => holds_something(&fd)
                .map_err(|error| Error::io("cannot read directory", target.display(), error))?,
        };
        let key = here
            .canonicalize()
            .map_err(|error| Error::io("cannot look at directory", here.display(), error))?;
        let key = name.as_ref().map_or(key.clone(), |name| key.join(OsStr::from_bytes(name)));
        let (state, record) = (request.store.state().clone(), record_of(request.store, &key));
        let lock = take_lock(request, &record, progress)?;
        let wanted = encode(request, &fd).map_err(failed("cannot look at directory", here))?;
        if is_in_use {
            check_goes_on(request, state.read(&record).ok(), &wanted)?;
        }
        let before = match (is_directory, is_new) {
            (true, false) => Some((
                fd.try_clone().map_err(|error| Error::io("cannot open directory", here.display(), error))?,
                stat,
            )),
            _ => None,
        };
        if is_directory {
            take_over(Handle::Open(fd.as_fd()), &stat);
        }
        if let Err(error) = state.create_directory("restores").and_then(|()| state.replace(&record, &wanted))
        {
            progress.note(&format!("if this restore is cut short, it cannot go on there: {error}"));
        }
        let top = Filling::top(path.as_os_str(), is_directory.then(|| inode.metadata.clone()), fd, stat);
        Ok(Self { top, name, is_again: is_in_use, record, state, lock, before })
    }

    /// Ends the topmost directory and returns the report. When everything is restored, the record is removed.
    pub(super) fn end(self, maker: Maker<'_>, planned: Result<()>) -> Result<RestoreReport> {
        let Self { top, name, record, state, lock, before, .. } = self;
        maker.release(top);
        let report = maker.finish(planned).inspect_err(|_| {
            if let Some((fd, stat)) = &before {
                give_back(fd, stat);
            }
        })?;
        if report.refused.is_empty() {
            state.remove(&record);
            if let Some(lock) = lock {
                lock.remove();
            }
        }
        match (&report.refused[..], name) {
            ([Refused { path, what, .. }, ..], Some(_)) if report.files == 0 => {
                Err(Error::new(Kind::Unavailable, what).object(path.display()))
            }
            _ => Ok(report),
        }
    }
}

/// After a restore that ended early: returns an existing directory to its owner.
fn give_back(fd: &OwnedFd, stat: &Stat) {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let given = rustix::fs::fchown(fd, Some(uid), Some(gid))
        .and_then(|()| rustix::fs::fchmod(fd, Mode::from_raw_mode(stat.st_mode & 0o7777)));
    if let Err(error) = given {
        tracing::warn!(%error, "the target keeps the owner and mode that it had during the restore");
    }
}

/// Directory and name of a single file's place.
fn split(target: &Path) -> Result<(&Path, Option<Name>)> {
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, Some(name.as_bytes().to_vec()))),
        _ => Err(Error::new(Kind::Conflict, "target is a directory").object(target.display())),
    }
}

fn is_there(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<bool> {
    match held::stat_at(directory, name) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn holds_something(directory: &OwnedFd) -> std::io::Result<bool> {
    Ok(Host::new().names(directory)?.iter().any(|name| name != LOST_AND_FOUND))
}

/// The file of a place in local state.
fn record_of(store: &Store, place: &Path) -> String {
    let mut hasher = store.domain().local_hasher();
    hasher.update(b"restore").update(place.as_os_str().as_bytes());
    let digits: String =
        hasher.finalize().as_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("restores/{digits}")
}

fn take_lock(request: &Request<'_>, record: &str, progress: &dyn Progress) -> Result<Option<FileLock>> {
    match request.store.state().lock(&format!("{record}.lock"), "restore") {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == Kind::Conflict => {
            Err(Error::new(Kind::Conflict, "another restore fills it")
                .object(request.target.display())
                .caused_by(error)
                .advice("wait until that ends"))
        }
        Err(error) => {
            progress.note(&format!("nothing keeps a second restore out of the target: {error}"));
            Ok(None)
        }
    }
}

/// Snapshot, path in it, and which directory it goes to or into: by inode and time of birth, since device numbers
/// change.
fn encode(request: &Request<'_>, directory: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, wanted)?;
    let mut hasher = request.store.domain().local_hasher();
    let path: Vec<&[u8]> = request.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    hasher.update(b"restored path").update(&path.join(&b'/'));
    let mut body = Encoder::new();
    body.bytes(request.snapshot.as_bytes()).bytes(hasher.finalize().as_bytes());
    body.u64(stat.stx_ino).u64(stat.stx_btime.tv_sec as u64).u32(stat.stx_btime.tv_nsec);
    Ok(seal(Record::Restore, &body.finish()))
}

/// Checks that the content of the place was left by an earlier restore of the same.
fn check_goes_on(request: &Request<'_>, found: Option<Vec<u8>>, wanted: &[u8]) -> Result<()> {
    if found.as_deref() == Some(wanted) {
        return Ok(());
    }
    let shown = request.target.display();
    let what = if request.target.is_dir() { "target is not empty" } else { "target is there already" };
    let error = Error::new(Kind::Conflict, what).object(shown);
    Err(match found.and_then(|bytes| snapshot_in(&bytes).ok()) {
        Some(snapshot) if snapshot != *request.snapshot => error.advice(format!(
            "a restore of snapshot {snapshot} there is not complete: restore that to go on, or take a new or empty directory"
        )),
        _ => error.advice("restore into a new or empty directory"),
    })
}

fn snapshot_in(bytes: &[u8]) -> Result<SnapshotId> {
    Ok(SnapshotId::from_bytes(Decoder::new(unseal(Record::Restore, bytes)?).array()?))
}
