//! Durability: data files first, then the journal's record that they are durable, then the journal.

use super::{Inner, Overlay};
use crate::change::{Change, NodeId};
use crate::errno::{Answer, Errno};
use crate::journal::{Header, Journal, Prepared, sync_directory};
use crate::node::Node;
use crate::upper::boot_id;
use std::sync::atomic::Ordering;
use store::Result;

/// Above this many files one sync of the complete file system is cheaper.
const SINGLE_SYNCS_MAX: usize = 64;
/// The shortest journal that is rewritten while the mount runs.
pub(super) const COMPACT_LEN: u64 = 64 << 20;

impl Overlay {
    /// Makes all writes to `id` and all of the journal durable. With `bytes_only` (fdatasync(2)), the journal only as
    /// far as the bytes need it to be found: not at all if they replaced bytes that were durable in the upper.
    ///
    /// # Errors
    /// `EIO` and other errors of the disk; all changes are refused after that, because it is not known which writes are
    /// lost.
    pub(crate) fn sync(&self, id: NodeId, bytes_only: bool) -> Answer<()> {
        if self.read_only {
            return Ok(());
        }
        let _changing = self.begin_change()?;
        let _file = self.own_file(id);
        if self.lock().state.node(id).and_then(Node::file).is_some_and(|file| file.unsynced) {
            self.upper.sync_data_file(id).map_err(|_| self.sync_failed("a data file could not be synced"))?;
            self.confirm(id)?;
        }
        match bytes_only && self.is_found_after_power_cut(id) {
            true => Ok(()),
            false => self.sync_journal(),
        }
    }

    /// Notes that all writes to a file are durable; in the journal, if a power cut would otherwise revert some of them.
    fn confirm(&self, id: NodeId) -> Answer<()> {
        let mut inner = self.lock();
        match inner.state.node_mut(id).and_then(Node::file_mut) {
            Some(file) if !file.unconfirmed => {
                file.unsynced = false;
                Ok(())
            }
            _ => self.commit_making_room(&mut inner, vec![Change::Synced { node: id }]),
        }
    }

    /// Whether the journal is durable as far as the bytes of a file need it to be found.
    fn is_found_after_power_cut(&self, id: NodeId) -> bool {
        let inner = self.lock();
        let needs = inner.state.node(id).and_then(Node::file).map(|file| file.needs);
        needs.zip(inner.journal.as_ref()).is_some_and(|(needs, journal)| journal.is_durable(needs))
    }

    /// Makes all names and attributes durable.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(crate) fn sync_names(&self) -> Answer<()> {
        if self.read_only {
            return Ok(());
        }
        let _changing = self.begin_change()?;
        self.sync_journal()
    }

    /// Makes all of the journal durable. The caller prevents its replacement meanwhile: the result of the sync would
    /// say nothing about the new journal.
    pub(crate) fn sync_journal(&self) -> Answer<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        let (unsynced, is_unnamed) = {
            let inner = self.lock();
            let journal = inner.journal.as_ref();
            (journal.and_then(Journal::unsynced), journal.is_some_and(Journal::is_unnamed))
        };
        let Some((file, len_bytes)) = unsynced else { return Ok(()) };
        rustix::fs::fdatasync(&file).map_err(|_| self.sync_failed("the journal could not be synced"))?;
        if is_unnamed {
            let named = sync_directory(self.upper.path());
            named.map_err(|_| self.sync_failed("the name of the journal could not be synced"))?;
        }
        if let Some(journal) = &mut self.lock().journal {
            journal.synced(&file, len_bytes);
        }
        Ok(())
    }

    /// Notes that writes since the previous sync may be lost, whatever the page cache shows, also for the next mount.
    pub(crate) fn sync_failed(&self, why: &str) -> Errno {
        self.upper.mark_poisoned();
        self.poison(why)
    }

    /// Makes all data and the journal durable. The caller keeps changes out.
    pub(crate) fn sync_everything(&self) -> Answer<()> {
        let unsynced: Vec<NodeId> = {
            let inner = self.lock();
            let written = inner.state.nodes().filter(|(_, node)| !node.is_orphan());
            written
                .filter(|(_, node)| node.file().is_some_and(|file| file.unsynced))
                .map(|(id, _)| id)
                .collect()
        };
        let synced = match unsynced.len() {
            0..=SINGLE_SYNCS_MAX => unsynced.iter().try_for_each(|id| self.upper.sync_data_file(*id)),
            _ => self.upper.sync_all_data(),
        };
        synced.map_err(|_| self.sync_failed("a data file could not be synced"))?;
        for id in unsynced {
            let mut inner = self.lock();
            self.commit_making_room(&mut inner, vec![Change::Synced { node: id }])?;
        }
        self.sync_journal()
    }

    /// Rewrites the journal if it has grown long, unless changes are stopped already. Called between operations, with
    /// no lock held.
    pub(crate) fn compact_if_long(&self) {
        if !self.is_long.load(Ordering::Acquire) {
            return;
        }
        let Some(_stopped) = self.try_stop_changes() else { return };
        if !self.is_long.swap(false, Ordering::AcqRel) || self.sync_everything().is_err() {
            return;
        }
        if let Err(error) = self.compact(&mut self.lock()) {
            tracing::warn!(%error, "the journal could not be compacted");
        }
    }

    /// Replaces the journal by its shortest form. All data files are durable.
    ///
    /// # Errors
    /// Those of the file system. The long journal, which is valid too, stays in use, or the mount refuses changes.
    pub(crate) fn compact(&self, inner: &mut Inner) -> Result<()> {
        let header = Header { store: self.store.id(), base: inner.state.base.id, boot: boot_id()? };
        let payloads = inner.state.checkpoint();
        let encoded = payloads.into_iter().map(|changes| crate::change::encode_all(changes.iter()));
        let journal = Journal::prepare(&self.upper.journal_path(), &header, encoded).inspect_err(|_| {
            // Not retried at the next change.
            inner.long_len_bytes = inner.journal.as_ref().map_or(0, Journal::len_bytes) + COMPACT_LEN;
        })?;
        inner.long_len_bytes = COMPACT_LEN.max(4 * journal.len_bytes());
        self.take_over(inner, journal)
    }

    /// Replaces the present journal by a prepared one.
    ///
    /// # Errors
    /// Those of the file system; the mount refuses changes then, because it is not known which of the two a power cut
    /// would leave.
    pub(crate) fn take_over(&self, inner: &mut Inner, journal: Prepared) -> Result<()> {
        let mut placed = journal.take_place(&self.upper.journal_path()).inspect_err(|_| {
            self.poison("a new journal could not be put in place");
        })?;
        if let Some(replaced) = &inner.journal {
            placed.follow(replaced);
        }
        inner.journal = Some(placed);
        Ok(())
    }

    /// Ends the use of the upper: all changes are durable and another mount may have it.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(crate) fn close(&self) -> Answer<()> {
        let _stopped = self.stop_changes();
        let synced = if self.read_only { Ok(()) } else { self.sync_everything() };
        if !self.read_only && synced.is_ok() && !self.has_changes() {
            self.let_go_of_base();
        }
        self.poisoned.store(true, Ordering::Release);
        self.upper.unlock();
        synced
    }

    /// Unpins the base if there are no changes.
    fn let_go_of_base(&self) {
        if let Err(error) = self.store.unpin_upper(self.upper.path()) {
            tracing::warn!(%error, "the snapshot below stays pinned until the next unmount");
        }
    }
}
