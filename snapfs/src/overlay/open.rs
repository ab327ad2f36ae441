//! Opening an overlay: lock the upper, check whose changes it holds, replay its journal.

use super::cookies::OpenDirectories;
use super::sync::COMPACT_LEN;
use super::{FILE_LOCKS, Inner, Overlay};
use crate::change::{Change, NodeId, decode_all};
use crate::errno::from_io;
use crate::journal::{self, Header, Journal, Scan};
use crate::lower::Base;
use crate::state::State;
use crate::upper::{Upper, boot_id};
use crate::uses::Uses;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};
use store::{Error, Kind, Result, SnapshotId, Store, StoreId};

/// A journal longer than this is rewritten when it is opened.
const COMPACT_AT_OPEN_LEN: u64 = 4 << 20;

impl Overlay {
    /// Opens the changes in `upper` over `snapshot`.
    ///
    /// # Errors
    /// `Conflict` when the upper is in use or holds changes to something else, `Corrupt` when its journal is damaged,
    /// and those of the store and the file system.
    pub(crate) fn open(store: &Store, snapshot: &SnapshotId, upper: &Path, read_only: bool) -> Result<Self> {
        let upper = Upper::open(upper)?;
        let boot = boot_id()?;
        let base = Arc::new(Base::open(store, snapshot)?);
        let path = upper.journal_path();
        let past = Past::of(&path, &base, store.id())?;
        if !read_only {
            // Changes outlive this process, and need their base.
            store.pin_for_upper(upper.path(), &[*snapshot])?;
        }
        let mut state = State::new(base);
        let (mut is_stale, mut may_miss_bytes) = (false, false);
        let begin = |make: fn(&Path, &Header) -> Result<Journal>| match read_only {
            true => Ok(None),
            false => make(&path, &Header { store: store.id(), base: *snapshot, boot }).map(Some),
        };
        let journal = match past {
            Past::Nothing => begin(Journal::create)?,
            Past::Settled => begin(|path, header| Journal::replace(path, header, std::iter::empty()))?,
            Past::Changes => {
                let rebooted = journal::read_header(&path)?.is_some_and(|header| header.boot != boot);
                may_miss_bytes = rebooted || upper.is_poisoned();
                let scan = replay(&path, &boot, may_miss_bytes, &mut state)?;
                is_stale = may_miss_bytes || scan.len_bytes() > COMPACT_AT_OPEN_LEN;
                if read_only { None } else { Some(Journal::open(&path, &scan)?) }
            }
        };
        let overlay = Self {
            store: store.clone(),
            upper,
            read_only,
            gate: Arc::default(),
            barrier: RwLock::new(()),
            files: (0..FILE_LOCKS).map(|_| RwLock::new(())).collect(),
            inner: Mutex::new(Inner { state, journal, long_len_bytes: COMPACT_LEN }),
            readers: Mutex::default(),
            open_directories: OpenDirectories::default(),
            is_long: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            uses: Uses::default(),
        };
        overlay.clean_up()?;
        if is_stale && !read_only {
            let synced = overlay.sync_everything();
            synced.map_err(|errno| {
                Error::io("cannot sync the upper", overlay.upper.path().display(), errno.into())
            })?;
            match overlay.compact(&mut overlay.lock()) {
                // The long journal is valid too.
                Err(error) if !may_miss_bytes => tracing::warn!(%error, "the journal could not be compacted"),
                compacted => compacted?,
            }
        }
        if !read_only {
            overlay.upper.unmark_poisoned()?;
        }
        Ok(overlay)
    }

    /// Makes the data files match the journal: removes garbage, and bytes behind the end of a file.
    fn clean_up(&self) -> Result<()> {
        let inner = self.lock();
        let failed = |errno: crate::errno::Errno| {
            Error::io("cannot open a data file", self.upper.path().display(), errno.into())
        };
        let mut kept = HashSet::new();
        for (id, node) in inner.state.nodes() {
            let Some(file) = node.file().filter(|file| file.layout.upper_bytes() > 0) else { continue };
            kept.insert(id);
            let Some(data) = self.upper.data_file(id).map_err(failed)? else {
                return Err(Error::corrupt(format!("the data file of node {:016x} is missing", id.0))
                    .object(self.upper.path().display())
                    .advice("the upper was changed by hand; mount with a new one"));
            };
            let len_bytes = data.metadata().map_err(|error| failed(from_io(&error)))?.len();
            if !self.read_only && len_bytes > file.layout.len_bytes() {
                data.set_len(file.layout.len_bytes()).map_err(|error| failed(from_io(&error)))?;
            }
        }
        match self.read_only {
            true => Ok(()),
            false => self.upper.remove_data_files_except(&kept),
        }
    }
}

/// The base of the changes in the upper at `path`; `None` when there is no upper or it was never mounted.
///
/// # Errors
/// `Corrupt` when its journal is damaged, and those of the file system.
pub fn base_of(upper: &Path) -> Result<Option<(StoreId, SnapshotId)>> {
    let header = journal::read_header(&journal::path_in(upper))?;
    Ok(header.map(|header| (header.store, header.base)))
}

/// The previous use of an upper.
enum Past {
    /// None.
    Nothing,
    /// It has no changes: there were none, or a freeze that was cut short right after its commit put them into the
    /// base.
    Settled,
    /// It has changes to the base.
    Changes,
}

impl Past {
    fn of(path: &Path, base: &Base, store: StoreId) -> Result<Self> {
        let Some(found) = journal::read_header(path)? else { return Ok(Self::Nothing) };
        if found.store == store && found.base == base.id {
            return Ok(Self::Changes);
        }
        let last = last_change(path)?;
        let frozen = matches!(last, Some(Change::Freezing { tree }) if base.snapshot.tree == Some(tree));
        if last.is_none() || (frozen && base.snapshot.parent == Some(found.base)) {
            return Ok(Self::Settled);
        }
        Err(refused(
            path,
            match found.store == store {
                true => format!("the upper holds changes to snapshot {}, not to {}", found.base, base.id),
                false => format!("the upper belongs to the store {}, not to {store}", found.store),
            },
        ))
    }
}

fn refused(journal: &Path, what: String) -> Error {
    Error::new(Kind::Conflict, what)
        .object(journal.parent().unwrap_or(journal).display())
        .advice("mount that snapshot with it, or give this mount another upper")
}

/// The last change of the journal; `None` when it has none.
fn last_change(path: &Path) -> Result<Option<Change>> {
    let mut last = None;
    journal::scan(path, &boot_id()?, &mut |_, payload| {
        last = decode_all(payload)?.pop().or(last.take());
        Ok(())
    })?;
    Ok(last)
}

/// Applies the journal. After a reboot or a failed sync, writes that no sync followed are left out: their bytes may be
/// lost.
fn replay(path: &Path, boot: &[u8; 16], may_miss_bytes: bool, state: &mut State) -> Result<Scan> {
    let synced = if may_miss_bytes { last_syncs(path, boot)? } else { HashMap::new() };
    let scan = journal::scan(path, boot, &mut |frame, payload| {
        for (index, change) in decode_all(payload)?.into_iter().enumerate() {
            let lost = |node| synced.get(&node).is_none_or(|last| *last < (frame, index));
            match &change {
                Change::Write { node, .. } if may_miss_bytes && lost(*node) => {}
                _ => state.apply(change).map_err(|error| error.object(path.display()))?,
            }
        }
        Ok(())
    })?;
    state.drop_orphans();
    state.check_shape().map_err(|error| error.object(path.display()))?;
    Ok(scan)
}

/// The position in the journal at which each file was synced last.
fn last_syncs(path: &Path, boot: &[u8; 16]) -> Result<HashMap<NodeId, (u64, usize)>> {
    let mut syncs = HashMap::new();
    journal::scan(path, boot, &mut |frame, payload| {
        for (index, change) in decode_all(payload)?.iter().enumerate() {
            if let Change::Synced { node } = change {
                syncs.insert(*node, (frame, index));
            }
        }
        Ok(())
    })?;
    Ok(syncs)
}
