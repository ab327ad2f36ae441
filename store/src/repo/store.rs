//! The store itself: its tiers, its index, its cache, and finding snapshots by name and by id (chunks: `read.rs`). It
//! does not depend on its users (trees, images, writers).

use crate::clock;
use crate::domain::{self, Domain, DomainKind, Keyring};
use crate::error::{Error, Kind, Result};
use crate::host::reserve;
use crate::host::state::LocalState;
use crate::id::{PackId, SnapshotId, StoreId};
use crate::index::Index;
use crate::keys;
use crate::pack::{PackDirectory, read_directory};
use crate::records::condemned::Condemned;
use crate::records::session::{self, Session, SessionPlace};
use crate::records::snapshot::Snapshot;
use crate::records::superblock::Superblock;
use crate::repo::config::StoreConfig;
use crate::repo::disk_cache::DiskCache;
use crate::repo::frame_cache::FrameCache;
use crate::repo::placement::{Placement, Touched};
use crate::tier::Tier;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An open store, seen from one of its domains. Clones share it; any number of threads may read.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    pub(crate) domain: Arc<Domain>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) superblock: Superblock,
    pub(crate) keyring: Keyring,
    pub(crate) index: Index,
    pub(crate) cache: FrameCache,
    pub(crate) disk_cache: DiskCache,
    /// Whether data of slower tiers is kept locally, in the disk cache and on the hot tier; a scrub turns it off.
    pub(crate) keeps_local: AtomicBool,
    pub(crate) placement: Arc<Placement>,
    pub(crate) touched: Touched,
    sessions: SessionPlace,
}

/// A reader's session: the pinned snapshots stay while this lives.
#[derive(Debug)]
pub struct Pin {
    _session: Option<Session>,
}

impl Store {
    /// Creates a store and opens it.
    ///
    /// # Errors
    /// `Conflict` when there is one; else as the tier.
    pub fn init(config: &StoreConfig) -> Result<Self> {
        let there = |tier: &dyn Tier| {
            Error::new(Kind::Conflict, "there is a store already")
                .object(tier.describe())
                .advice("use it, or choose another place")
        };
        if config.metadata_tier.len_bytes(keys::SUPERBLOCK)?.is_some() {
            return Err(there(&*config.metadata_tier));
        }
        config.state.create_directory("")?;
        config.metadata_tier.put_if_absent(
            &keys::domain(domain::DEFAULT),
            &Domain::plain(clock::random_bytes()).encode_plain(),
        )?;
        let superblock = Superblock::new(StoreId::from_bytes(clock::random_bytes()));
        if !config.metadata_tier.put_if_absent(keys::SUPERBLOCK, &superblock.encode())? {
            return Err(there(&*config.metadata_tier));
        }
        reserve::keep(&config.state);
        Self::open(config)
    }

    /// Opens a store for reading, in the domain of the configuration; takes no lock. Cost does not grow with the size
    /// of the store.
    ///
    /// # Errors
    /// `NotFound` when there is none, or no such domain; `Corrupt`; `Invalid` when a newer build wrote it, or without
    /// the domain's key.
    pub fn open(config: &StoreConfig) -> Result<Self> {
        if config.is_shared {
            // It will hold the mirror of the records.
            config.state.create_directory("")?;
        }
        let superblock = Superblock::read(&*config.metadata_tier)?;
        let keyring = Keyring::new(config.metadata_tier.clone(), config.state.path(), config.domains.clone());
        let domain = keyring.open(config.domains.name.as_deref().unwrap_or(domain::DEFAULT))?;
        let inner = Inner {
            superblock,
            keyring,
            index: Index::new(config.state.path()),
            cache: FrameCache::new(config.cache_bytes),
            disk_cache: DiskCache::new(config.state.path().join("frames"), config.disk_cache_bytes),
            keeps_local: AtomicBool::new(true),
            placement: Arc::new(Placement::new(config)),
            touched: Touched::default(),
            sessions: session_place(config)?,
            config: config.clone(),
        };
        inner.index.refresh(&*config.metadata_tier)?;
        Ok(Self { inner: Arc::new(inner), domain })
    }

    /// The domain that the store is seen from.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The same store, seen from another of its domains.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn in_domain(&self, name: &str) -> Result<Self> {
        Ok(Self { inner: self.inner.clone(), domain: self.inner.keyring.open(name)? })
    }

    /// The public domain, unless this is it or there is none.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn public(&self) -> Result<Option<Arc<Domain>>> {
        match self.domain.kind() {
            DomainKind::Public => Ok(None),
            _ => self.inner.keyring.public(),
        }
    }

    /// The store's permanent id.
    pub fn id(&self) -> StoreId {
        self.inner.superblock.id
    }

    /// Local state of this host: locks, uppers, sockets, derived tables.
    pub fn state_dir(&self) -> &Path {
        self.inner.config.state.path()
    }

    /// The same with the file system that it is on.
    pub fn state(&self) -> &LocalState {
        &self.inner.config.state
    }

    /// The tier that holds the records.
    pub fn metadata_tier(&self) -> &dyn Tier {
        &*self.inner.config.metadata_tier
    }

    /// Every tier that may hold packs, fastest first.
    pub fn tiers(&self) -> Vec<&dyn Tier> {
        self.inner.placement.tiers().iter().map(|tier| &*tier.tier).collect()
    }

    /// Where sessions are kept, and the host that they belong to.
    pub fn sessions(&self) -> &SessionPlace {
        &self.inner.sessions
    }

    /// Whether other hosts use the store, too.
    pub fn is_shared(&self) -> bool {
        self.inner.config.is_shared
    }

    /// Refuses to change a ref that another host may change at the same time without either noticing: where the
    /// metadata tier has no compare-and-swap, each ref has one owner.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn check_owns_ref(&self, name: &str) -> Result<()> {
        let config = &self.inner.config;
        let owned = config.owned_refs.as_deref();
        if !config.is_shared
            || config.metadata_tier.guarantees()?.compare_and_swap
            || owned.is_some_and(|own| name.starts_with(own))
        {
            return Ok(());
        }
        let what = match owned {
            Some(owned) => format!("refs that do not begin with \"{owned}\" are another host's to change"),
            None => "the bucket has no compare-and-swap, and this host owns no refs".to_owned(),
        };
        Err(Error::invalid(what)
            .object(name)
            .advice("give each host a prefix of its own as `owned_refs`, or use a bucket that `snapctl doctor` finds fit"))
    }

    /// Refuses to collect where two collectors could not notice each other.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check_may_collect(&self) -> Result<()> {
        let config = &self.inner.config;
        if !config.is_shared || config.metadata_tier.guarantees()?.compare_and_swap || config.is_collector {
            return Ok(());
        }
        Err(Error::invalid("the bucket has no compare-and-swap, and this host is not its collector")
            .object(config.metadata_tier.describe())
            .advice("set `collector = true` on one host, and collect there"))
    }

    /// Placement of packs on the tiers.
    pub fn placement(&self) -> &Placement {
        &self.inner.placement
    }

    /// The disk cache of this host.
    pub fn disk_cache(&self) -> &DiskCache {
        &self.inner.disk_cache
    }

    /// The table of chunks known to this process.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// The record of a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        match self.metadata_tier().get(&self.domain.snapshot_key(id)) {
            Ok(object) => {
                let read = self.domain.decode_snapshot(id, &object);
                read.map_err(|error| error.object(format!("snapshot {id}")))
            }
            Err(error) if error.kind() == Kind::NotFound => {
                Err(Error::new(Kind::NotFound, "no such snapshot").object(id))
            }
            Err(error) => Err(error),
        }
    }

    /// The ids of all snapshot records, also of those that no ref names.
    ///
    /// # Errors
    /// As the tier.
    pub fn snapshot_ids(&self) -> Result<Vec<SnapshotId>> {
        let prefix = self.domain.snapshot_prefix();
        let infos = self.metadata_tier().list(&prefix)?;
        Ok(infos.iter().filter_map(|info| info.key[prefix.len()..].parse().ok()).collect())
    }

    /// Runs `act`, which frees space; when the disk is full, once more with the reserved space.
    ///
    /// # Errors
    /// Those of `act`.
    pub fn with_reserve<T>(&self, mut act: impl FnMut() -> Result<T>) -> Result<T> {
        let done = match act() {
            Err(error) if error.kind() == Kind::Full && reserve::give_back(self.state()) => act(),
            done => done,
        };
        reserve::keep(self.state());
        done
    }

    /// Pins snapshots against the collector until the pin is dropped. On a store mounted read-only nothing can be
    /// collected from here and nothing is pinned; while the bucket of a shared store does not answer nothing can be
    /// pinned, and local data stays readable.
    ///
    /// # Errors
    /// `NotFound` when one of them is gone or condemned; else as the tier.
    pub fn pin(&self, purpose: &str, snapshots: &[SnapshotId]) -> Result<Pin> {
        let purpose = self.domain.redacted(purpose);
        let session = match Session::reader(self.sessions(), purpose, snapshots) {
            Err(error) if self.is_shared() && error.kind() == Kind::Unavailable => {
                tracing::warn!(%error, "what is read is not pinned: a collector of another host may delete it");
                None
            }
            outcome => where_writable(outcome)?,
        };
        for id in snapshots {
            self.snapshot(id)?;
        }
        Ok(Pin { _session: session })
    }

    /// Pins, without a process, the snapshots that the changes in `upper` (an absolute path) are based on, in place of
    /// those pinned for it before. The caller holds a pin on them. Nothing is pinned on a store mounted read-only.
    ///
    /// # Errors
    /// As the tier.
    pub fn pin_for_upper(&self, upper: &Path, snapshots: &[SnapshotId]) -> Result<()> {
        let redacted = self.domain.is_encrypted();
        where_writable(session::pin_for_upper(self.sessions(), upper, snapshots, redacted)).map(drop)
    }

    /// Removes the pin of an upper that holds no changes any more.
    ///
    /// # Errors
    /// As the tier.
    pub fn unpin_upper(&self, upper: &Path) -> Result<()> {
        where_writable(session::unpin_upper(self.sessions(), upper)).map(drop)
    }

    /// The packs that the collector condemned.
    ///
    /// # Errors
    /// As the tier; `Corrupt`.
    pub fn condemned(&self) -> Result<Vec<Condemned>> {
        Condemned::read_all(self.metadata_tier())
    }

    /// The directory of a pack, from the first tier with an intact copy.
    pub(crate) fn pack_directory(&self, id: PackId) -> Result<PackDirectory> {
        let mut failure: Option<Error> = None;
        for tier in self.tiers() {
            match read_directory(tier, id) {
                Ok(directory) => return Ok(directory),
                Err(error) if error.kind() == Kind::NotFound => failure = failure.or(Some(error)),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.expect("a store has at least one tier"))
    }

    /// Makes every visible pack durable, whichever process stored it, before a stored run of the index lists it.
    ///
    /// # Errors
    /// As the tiers.
    pub fn make_packs_durable(&self) -> Result<()> {
        self.tiers().iter().try_for_each(|tier| tier.make_durable(keys::PACKS))
    }

    /// Every pack on any tier with the length in bytes of its longest copy.
    ///
    /// # Errors
    /// As the tiers.
    pub fn packs(&self) -> Result<Vec<(PackId, u64)>> {
        let mut packs: BTreeMap<PackId, u64> = BTreeMap::new();
        for tier in self.tiers() {
            for info in tier.list(keys::PACKS)? {
                let Some(id) = PackId::from_key(&info.key) else { continue };
                let len_bytes = packs.entry(id).or_default();
                *len_bytes = info.len_bytes.max(*len_bytes);
            }
        }
        Ok(packs.into_iter().collect())
    }
}

fn session_place(config: &StoreConfig) -> Result<SessionPlace> {
    let host = config.is_shared.then(|| session::host_id(&config.state)).transpose()?;
    Ok(SessionPlace { metadata_tier: config.metadata_tier.clone(), state: config.state.clone(), host })
}

/// `None` where the file system is read-only: nothing can be collected from here either.
fn where_writable<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error()) => Ok(None),
        outcome => outcome.map(Some),
    }
}
