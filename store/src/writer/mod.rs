//! Writing: chunks in, deduplicated, and committed in the one safe order.
//!
//! Order of a commit: packs durable -> index run -> snapshot record -> session still alive and packs depended on still
//! there -> ref. A writer that failed once refuses to go on. Dropping a writer leaves nothing that a ref reaches.

pub(crate) mod blob;
mod compare;
mod groups;
mod pipeline;
mod pool;
mod rewrite;
mod state;

use crate::clock;
use crate::domain::Domain;
use crate::error::{Error, Kind, OptionalExt, Result};
use crate::host::lock::FileLock;
use crate::host::reserve;
use crate::host::state::LocalState;
use crate::id::{ChunkId, ImageId, PackId, SnapshotId, TreeId};
use crate::index::{self, Location, Run};
use crate::keys;
use crate::pack::{MAX_FRAME_PLAIN, PackKind};
use crate::records::lost_frames::DamagedFrames;
use crate::records::reference;
use crate::records::reference::{Proposal, RefEntry};
use crate::records::session::Session;
use crate::records::snapshot::{Snapshot, Totals};
use crate::repo::store::Store;
use compare::Compared;
use pipeline::Pipeline;
pub(crate) use pipeline::Shape;
pub(crate) use state::Role;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Chunks of a session that are kept in memory: about 50 MB.
const FRESH_MAX: usize = 1 << 20;

/// Counts of a writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteStats {
    /// Chunks offered.
    pub chunks: u64,
    /// Chunks not stored before.
    pub new_chunks: u64,
    /// Their plain bytes, offered.
    pub bytes: u64,
    /// Their plain bytes, new.
    pub new_bytes: u64,
    /// Bytes of the packs written, complete after a commit.
    pub stored_bytes: u64,
}

/// The content of a snapshot to be committed.
#[derive(Clone, Debug, Default)]
pub struct SnapshotDraft {
    /// Files.
    pub tree: Option<TreeId>,
    /// Memory.
    pub image: Option<ImageId>,
    /// The snapshot that it was made from.
    pub parent: Option<SnapshotId>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// Names in the tree, or pages in the image.
    pub files: u64,
    /// Logical bytes.
    pub bytes: u64,
}

/// A writer, the only one of its kind on this host.
pub struct Writer {
    store: Store,
    /// The public domain, if there is one and this is another; every domain may depend on it.
    public: Option<Arc<Domain>>,
    pipeline: Pipeline,
    /// Chunks of this session, not stored as deltas, that the index does not know yet.
    fresh: HashSet<ChunkId>,
    /// Checksums that duplicates are compared with, if comparing is on.
    compared: Compared,
    /// Page groups of this session that may be stored as deltas.
    fresh_groups: HashSet<ChunkId>,
    /// Page groups stored earlier as deltas, and their bases.
    known_deltas: HashMap<ChunkId, ChunkId>,
    /// Packs that this session's deduplication relies on.
    depended_on: HashSet<PackId>,
    /// Those that no stored run covers, since their writer died before it wrote one.
    adopted: HashSet<PackId>,
    /// Index runs written so far.
    run_count: u32,
    /// Chunks of this session that may be kept in `fresh` and `fresh_groups` before they go into an index run.
    fresh_max: usize,
    condemned: HashSet<PackId>,
    /// Lost frames: no writer may depend on them.
    damaged: DamagedFrames,
    condemned_snapshots: HashSet<SnapshotId>,
    stats: WriteStats,
    /// The error that this writer failed with: it refuses to go on.
    failure: Option<String>,
    // Dropped in this order: the session ends before another writer may begin.
    session: Session,
    _lock: FileLock,
}

impl Store {
    /// Begins writing: takes the writer's lock, for which it waits as the local state says, and opens a session.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when another process writes; `Full` or `Invalid` as the tier.
    pub fn writer(&self, purpose: &str) -> Result<Writer> {
        Writer::open(self, self.state(), Role::Author, purpose)
    }

    /// As [`Self::writer`], but waits at most `wait` for the writer's lock.
    ///
    /// # Errors
    /// As [`Self::writer`].
    pub fn writer_within(&self, wait: Duration, purpose: &str) -> Result<Writer> {
        Writer::open(self, &self.state().clone().waiting(wait), Role::Author, purpose)
    }

    /// Begins rewriting stored frames into new packs on tier number `tier`, compressed at `level`: takes the rewriter's
    /// lock and opens a session. Other writers go on meanwhile.
    ///
    /// # Errors
    /// As [`Self::writer`].
    pub fn rewriter(&self, tier: usize, level: i32, purpose: &str) -> Result<Writer> {
        Writer::open(self, self.state(), Role::Rewriter(Shape { level, tier }), purpose)
    }
}

impl Writer {
    pub(crate) fn open(store: &Store, state: &LocalState, role: Role, purpose: &str) -> Result<Self> {
        store.inner.superblock.check_writable()?;
        let purpose = store.domain.redacted(purpose);
        let lock = state.lock(role.lock(), purpose)?;
        reserve::keep(state);
        let names = role.next_names(state)?;
        let shape = match role {
            Role::Author => Shape { level: store.inner.config.level, tier: 0 },
            Role::Rewriter(shape) => shape,
        };
        let (session, lists) = Session::writer(store.sessions(), purpose)?;
        // A key epoch is retired only when no session is open that began before its successor: so keys are read now.
        store.inner.keyring.reload(&store.domain)?;
        // The session may depend only on packs known after it became visible.
        store.index().refresh(store.metadata_tier())?;
        if store.index().runs().is_empty() {
            store.index().adopt_uncovered(&store.tiers())?;
        }
        Ok(Self {
            pipeline: Pipeline::new(store.inner.placement.clone(), shape, store.domain.sealer()?, names)?,
            public: store.public().unwrap_or_else(|error| {
                tracing::warn!(%error, "nothing is deduplicated against the public domain");
                None
            }),
            store: store.clone(),
            fresh: HashSet::new(),
            compared: Compared::default(),
            fresh_groups: HashSet::new(),
            known_deltas: HashMap::new(),
            depended_on: HashSet::new(),
            adopted: HashSet::new(),
            run_count: 0,
            fresh_max: FRESH_MAX,
            damaged: DamagedFrames::read_all(store.metadata_tier())?,
            condemned: lists.iter().flat_map(|list| list.packs.clone()).collect(),
            condemned_snapshots: lists.into_iter().flat_map(|list| list.snapshots).collect(),
            stats: WriteStats::default(),
            failure: None,
            session,
            _lock: lock,
        })
    }

    /// The store being written.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Counts so far.
    pub fn stats(&self) -> WriteStats {
        WriteStats { stored_bytes: self.pipeline.stored_bytes(), ..self.stats }
    }

    /// Stores a chunk of file bytes, if it is new, in a frame with its neighbours.
    ///
    /// # Errors
    /// `Invalid` above 2 MiB; those of the tier, also for earlier chunks.
    pub fn put_chunk(&mut self, bytes: &[u8]) -> Result<ChunkId> {
        self.put(PackKind::Data, bytes)
    }

    /// Stores a chunk of metadata, if it is new.
    pub(crate) fn put_meta(&mut self, bytes: &[u8]) -> Result<ChunkId> {
        self.put(PackKind::Meta, bytes)
    }

    fn put(&mut self, kind: PackKind, bytes: &[u8]) -> Result<ChunkId> {
        let id = self.store.domain.chunk_id(bytes);
        self.put_known(kind, id, bytes)
    }

    /// Stores a chunk of file bytes whose id another thread computed in this writer's domain. Returns the id to refer
    /// to it by: another one when the public domain has it.
    pub(crate) fn put_hashed(&mut self, id: ChunkId, bytes: &[u8]) -> Result<ChunkId> {
        self.put_known(PackKind::Data, id, bytes)
    }

    fn put_known(&mut self, kind: PackKind, id: ChunkId, bytes: &[u8]) -> Result<ChunkId> {
        self.offer(bytes)?;
        if let Some(known) = self.known_as(&id, bytes)
            && self.is_reliable(&known, bytes)?
        {
            return Ok(known);
        }
        let pushed = self.pipeline.push(kind, id, bytes);
        self.guard(pushed)?;
        self.fresh.insert(id);
        self.compared.note(id, bytes);
        self.count_new(bytes);
        self.bound_fresh()?;
        Ok(id)
    }

    /// When too many chunks of this session are known to this process alone, makes them durable and indexed, so that
    /// memory does not grow with the session. The packs stay as safe as before a commit: none is condemned before this
    /// session began.
    fn bound_fresh(&mut self) -> Result<()> {
        if self.fresh.len() + self.fresh_groups.len() < self.fresh_max {
            return Ok(());
        }
        let deltas = self.pipeline.deltas().cloned();
        let deltas = self.guard(deltas)?;
        let flushed = self.flush(|_| Ok(()));
        self.guard(flushed)?;
        self.known_deltas.extend(deltas);
        Ok(())
    }

    /// Checks and counts the bytes offered.
    fn offer(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_FRAME_PLAIN {
            return Err(Error::invalid(format!("chunk of {} bytes; at most {MAX_FRAME_PLAIN}", bytes.len())));
        }
        self.check_usable()?;
        self.stats.chunks += 1;
        self.stats.bytes += bytes.len() as u64;
        Ok(())
    }

    fn count_new(&mut self, bytes: &[u8]) {
        self.stats.new_chunks += 1;
        self.stats.new_bytes += bytes.len() as u64;
    }

    /// The id under which the bytes are stored already, not as a delta: this domain's, or the public one's.
    fn known_as(&mut self, id: &ChunkId, bytes: &[u8]) -> Option<ChunkId> {
        if self.is_known(id) {
            return Some(*id);
        }
        // Asking any other domain would disclose its chunks to another tenant.
        let public = self.public.as_ref().map(|public| public.chunk_id(bytes))?;
        self.is_known(&public).then_some(public)
    }

    /// Whether a chunk is stored already, not as a delta; if so the session depends on its pack from now on. A delta
    /// does not count: a record that refers to it must name its base, too, and only page tables do.
    fn is_known(&mut self, id: &ChunkId) -> bool {
        self.fresh.contains(id) || self.depend_on(id, |place| !place.is_delta()).is_some()
    }

    /// A location of a chunk that `accept` takes, in a pack not condemned; the session depends on that pack from now
    /// on.
    fn depend_on(&mut self, id: &ChunkId, accept: impl Fn(&Location) -> bool) -> Option<Location> {
        let runs = self.store.index().runs();
        loop {
            let is_good = |place: &Location| {
                accept(place) && !self.condemned.contains(&place.pack) && !self.damaged.has(place)
            };
            let place_in = |run: &Run| run.find(id).find(|place| is_good(place));
            let (run, place) = runs.iter().find_map(|run| Some((run, place_in(run)?)))?;
            if !self.depended_on.contains(&place.pack) && !self.is_surely_there(&place.pack) {
                self.condemned.insert(place.pack);
                continue;
            }
            self.depended_on.insert(place.pack);
            if !run.is_stored() {
                self.adopted.insert(place.pack);
            }
            return Some(place);
        }
    }

    /// Whether some tier has a pack; false on an error, so that its chunks are stored again. A fenced writer may have
    /// indexed packs that were collected before.
    fn is_surely_there(&self, pack: &PackId) -> bool {
        self.is_there(pack).unwrap_or_else(|error| {
            tracing::warn!(%pack, %error, "what is in the pack is stored again");
            false
        })
    }

    /// Whether some tier has a pack.
    fn is_there(&self, pack: &PackId) -> Result<bool> {
        let key = pack.key();
        for tier in self.store.tiers() {
            if tier.len_bytes(&key)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fails for a writer that failed before.
    pub(crate) fn check_usable(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(Error::new(
                Kind::Internal,
                format!("this writer failed before and may not go on: {failure}"),
            )),
            None => Ok(()),
        }
    }

    /// Records a failure: earlier writes may be lost.
    fn guard<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            self.failure.get_or_insert_with(|| error.to_string());
        }
        outcome
    }

    /// Makes everything durable and moves the ref `name` to a new snapshot. Subtrees, extents and page groups that the
    /// draft takes over by id, without offering them to this writer, must come from its parent or from a pinned
    /// snapshot.
    ///
    /// # Errors
    /// `NotFound` when the parent was forgotten and is being collected. `Fenced` when the session was ended meanwhile,
    /// `Conflict`, and those of the tier. After an error the ref is as it was, unless the error came from the very last
    /// write, whose outcome is then unknown.
    pub fn commit(&mut self, name: &str, draft: SnapshotDraft) -> Result<SnapshotId> {
        reference::check_name(name)?;
        self.check_usable()?;
        if let Some(gone) = draft.parent.filter(|parent| self.condemned_snapshots.contains(parent)) {
            return Err(Error::new(Kind::NotFound, "parent snapshot was forgotten and is being collected")
                .object(gone)
                .advice("start from another snapshot"));
        }
        let outcome = self.try_commit(name, draft);
        self.guard(outcome)
    }

    fn try_commit(&mut self, name: &str, draft: SnapshotDraft) -> Result<SnapshotId> {
        let store = self.store.clone();
        let tier = store.metadata_tier();
        self.flush(|_| Ok(()))?;
        let WriteStats { new_bytes, stored_bytes, .. } = self.stats();
        let time = clock::now();
        let totals = Totals { files: draft.files, bytes: draft.bytes, new_bytes, stored_bytes };
        let SnapshotDraft { tree, image, parent, labels, .. } = draft;
        let snapshot = Snapshot { tree, image, parent, time, labels, totals };
        let (id, record) = store.domain.encode_snapshot(&snapshot)?;
        tier.put_if_absent(&store.domain.snapshot_key(&id), &record)?;
        self.move_ref(name, RefEntry { snapshot: id, time })?;
        tracing::info!(snapshot = %id, domain = store.domain.name(), new_bytes, stored_bytes, "committed");
        Ok(id)
    }

    /// Adds the entry to the ref, if its dependencies exist and the session is alive. Where another host may end the
    /// session at any time, the entry is proposed first: see [`crate::repo::refs`].
    fn move_ref(&self, name: &str, entry: RefEntry) -> Result<()> {
        let refs = self.store.refs();
        if !self.session.can_be_fenced() {
            self.check_dependencies()?;
            self.session.check_alive()?;
            let append = |history: &mut Vec<RefEntry>| {
                history.push(entry);
                Ok(())
            };
            return refs.update(name, append).map(drop);
        }
        let proposal = Proposal { entry, session: self.session.key().to_owned() };
        refs.propose(name, &proposal)?;
        let settled = self
            .session
            .check_alive()
            .and_then(|()| self.check_dependencies())
            .and_then(|()| refs.settle(name, &proposal));
        if settled.is_err()
            && let Ok(Some(found)) = refs.get(name)
            && let Err(error) = refs.withdraw(found, |session| session == proposal.session)
        {
            let domain = self.store.domain.name();
            tracing::warn!(domain, %error, "a proposal stays until the collector withdraws it");
        }
        settled
    }

    /// Makes packs durable and checks them, then writes an index run of them and of packs depended on that have none.
    fn flush(&mut self, check: impl FnOnce(&[PackId]) -> Result<()>) -> Result<()> {
        let mut directories = self.pipeline.flush()?;
        check(&directories.iter().map(|directory| directory.id).collect::<Vec<PackId>>())?;
        if !self.adopted.is_empty() {
            self.store.make_packs_durable()?; // their writer may have died before it did
        }
        for pack in std::mem::take(&mut self.adopted) {
            // A missing pack fails the commit before the ref is moved.
            directories.extend(self.store.pack_directory(pack).optional()?);
        }
        if directories.is_empty() {
            return Ok(());
        }
        let names = self.pipeline.names();
        let key = format!("{}{}/{}-{}", keys::INDEX, names.writer, names.epoch, self.run_count);
        self.run_count += 1;
        let tier = self.store.metadata_tier();
        if !tier.put_if_absent(&key, &index::encode(&directories)?)? {
            return Err(Error::new(Kind::Internal, "an index run of this name is there already").object(key));
        }
        self.store.index().refresh(tier)?;
        self.fresh.clear();
        self.compared.forget();
        self.fresh_groups.clear();
        // Where another host may end this session, packs may go behind its back: there the collector alone joins runs.
        if !self.store.inner.config.is_shared
            && let Err(error) = self.store.index().compact_short(tier, &self.condemned)
        {
            tracing::warn!(%error, "index runs could not be joined");
        }
        Ok(())
    }

    /// Checks the packs depended on: a ref must never name missing ones, whatever the index said.
    fn check_dependencies(&self) -> Result<()> {
        if !self.depended_on.is_empty() {
            self.store.metadata_tier().make_durable(keys::INDEX)?; // a writer may have died before its run was durable
        }
        for pack in &self.depended_on {
            if !self.is_there(pack)? {
                self.session.check_alive()?; // a fenced session explains the missing pack
                return Err(Error::corrupt("the index names a pack that is gone")
                    .object(pack)
                    .advice("run `snapctl index rebuild`, then try again; nothing was committed"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Base;
    use crate::testing::memory_store;

    #[test]
    fn a_long_session_keeps_few_chunks_in_memory_and_dedups_all_of_them() {
        let (store, _directory) = memory_store();
        let mut writer = store.writer("test").unwrap();
        writer.fresh_max = 100;
        let mut ids = Vec::new();
        for number in 0..1000u64 {
            ids.push(writer.put_chunk(&(number % 700).to_le_bytes()).unwrap());
            assert!(writer.fresh.len() < 100);
        }
        assert_eq!(writer.stats().new_chunks, 700, "each is stored once");
        assert_eq!(writer.run_count, 7);
        writer.commit("app", SnapshotDraft::default()).unwrap();
        assert!(ids.iter().all(|id| store.read_chunk(id).is_ok()));
    }

    #[test]
    fn a_group_knows_its_base_also_after_it_went_into_a_run() {
        let (store, _directory) = memory_store();
        let mut writer = store.writer("test").unwrap();
        let mut base = vec![0; 40_000];
        blake3::Hasher::new().update(b"base").finalize_xof().fill(&mut base);
        let base_id = writer.put_page_group(&base, None).unwrap();
        writer.publish(|_| Ok(())).unwrap();
        writer.fresh_max = 2;
        let groups: Vec<ChunkId> = (0..5)
            .map(|number| {
                let mut bytes = base.clone();
                bytes[number] ^= 1;
                let base = Base { id: base_id, bytes: store.read_chunk(&base_id).unwrap() };
                writer.put_page_group(&bytes, Some(base)).unwrap()
            })
            .collect();
        assert!(writer.run_count > 2);
        for group in &groups {
            assert_eq!(writer.group_base(group).unwrap(), Some(base_id));
        }
    }
}
