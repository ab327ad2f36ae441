//! Sessions: roots that the collector must respect besides refs. A writer's session says "I depend on packs that were
//! live at this epoch"; a reader's pins snapshots. A session lives as long as its process holds the session's file lock
//! in the local state: a lock file without a holder is a dead session and is swept. An object without a lock file was
//! opened with other local state, or that state was lost: its process is unknown, so it counts as alive.
//!
//! In a shared store a session also names its host, and a host judges only its own sessions by their locks. A session
//! of another host renews itself while its process lives; one that has stopped may be fenced ([`fence`]): its object
//! changes and goes, which its writer detects before its commit counts ([`crate::repo::refs`], proposals). Safety
//! depends on no clock: a session fenced too early costs its owner the work, never the store a chunk.
//!
//! A mount's upper needs its base also when no process has it mounted. Its session has no process and no lock: it lives
//! until it is ended, or until the upper's directory is gone.

use crate::clock;
use crate::error::{Error, Kind, OptionalExt, Result};
use crate::host::lock::{FileLock, LockState};
use crate::host::state::LocalState;
use crate::id::{SnapshotId, WriterId};
use crate::keys::SESSIONS;
use crate::records::condemned::{self, Condemned};
use crate::sync::Mutex;
use crate::tier::{LocalTier, Tier};
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// The content of a session's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// For a writer: the collector's epoch that was current when the session was visible. `None` for a reader.
    pub writer_epoch: Option<u64>,
    /// Snapshots that must stay.
    pub pinned: Vec<SnapshotId>,
    /// Its purpose, as readable text.
    pub purpose: String,
    /// The directory of a mount's changes to the pinned snapshots; `None` for a session that ends with its process.
    pub upper: Option<PathBuf>,
    /// In a shared store, the host that it belongs to.
    pub host: Option<HostId>,
    /// How often it was renewed.
    pub renewals: u64,
}

const READER: u8 = 0;
const WRITER: u8 = 1;
const UPPER: u8 = 2;
/// Added to the kind of a session that names its host.
const OF_HOST: u8 = 3;
/// The file in local state that names this host.
const HOST: &str = "host";
/// How often a session of a shared store is renewed.
const RENEWAL: Duration = Duration::from_secs(60);

/// Names a host of a shared store: drawn at random, kept in its local state.
pub type HostId = WriterId;

/// Where sessions are kept, and the host that they belong to.
#[derive(Clone, Debug)]
pub struct SessionPlace {
    /// The store's metadata tier.
    pub metadata_tier: Arc<dyn Tier>,
    /// Local state, with the locks of this host's sessions.
    pub state: LocalState,
    /// This host, in a shared store.
    pub host: Option<HostId>,
}

impl SessionPlace {
    fn record(&self, purpose: &str) -> SessionRecord {
        SessionRecord {
            writer_epoch: None,
            pinned: Vec::new(),
            purpose: purpose.to_owned(),
            upper: None,
            host: self.host,
            renewals: 0,
        }
    }
}

/// This host's id in shared stores, drawn at first use. Losing it leaves sessions that are never renewed.
///
/// # Errors
/// As the system calls.
pub fn host_id(state: &LocalState) -> Result<HostId> {
    let local = LocalTier::on(state.shared_disk(), state.path());
    let drawn = HostId::from_bytes(clock::random_bytes());
    // If several processes draw an id at once, one of them is kept.
    local.put_if_absent(HOST, format!("{drawn}\n").as_bytes())?;
    let kept = local.get(HOST)?;
    let named = std::str::from_utf8(&kept).ok().and_then(|text| text.trim().parse().ok());
    named.ok_or_else(|| {
        Error::corrupt("file does not name this host")
            .object(state.path().join(HOST).display())
            .advice("remove it: another name is drawn")
    })
}

impl SessionRecord {
    fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        let kind = match (&self.upper, self.writer_epoch) {
            (Some(_), _) => UPPER,
            (None, Some(_)) => WRITER,
            (None, None) => READER,
        };
        let kind = if self.host.is_some() { kind + OF_HOST } else { kind };
        body.u8(kind).u64(self.writer_epoch.unwrap_or(0));
        body.string(self.purpose.as_bytes()).count(self.pinned.len());
        self.pinned.iter().for_each(|id| {
            body.bytes(id.as_bytes());
        });
        if let Some(upper) = &self.upper {
            body.string(upper.as_os_str().as_bytes());
        }
        if let Some(host) = &self.host {
            body.bytes(host.as_bytes()).u64(self.renewals);
        }
        seal(Record::Session, &body.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Session, bytes)?);
        let (kind, epoch) = (fields.u8()?, fields.u64()?);
        let (kind, of_host) = if kind >= OF_HOST { (kind - OF_HOST, true) } else { (kind, false) };
        if kind > UPPER {
            return Err(Error::corrupt(format!("session of unknown kind {kind}")));
        }
        let writer_epoch = (kind == WRITER).then_some(epoch);
        let purpose = fields.text()?;
        let mut pinned = Vec::new();
        for _ in 0..fields.count(SnapshotId::LEN)? {
            pinned.push(SnapshotId::from_bytes(fields.array()?));
        }
        let upper = match kind {
            UPPER => Some(PathBuf::from(OsStr::from_bytes(fields.string()?))),
            _ => None,
        };
        let (host, renewals) = match of_host {
            true => (Some(HostId::from_bytes(fields.array()?)), fields.u64()?),
            false => (None, 0),
        };
        fields.end()?;
        Ok(Self { writer_epoch, pinned, purpose, upper, host, renewals })
    }
}

/// An open session; dropping it ends it.
#[derive(Debug)]
pub struct Session {
    place: SessionPlace,
    shown: Arc<Shown>,
    lock: Option<FileLock>,
    renewing: Option<JoinHandle<()>>,
}

/// The session's object, which its owner and its renewals change in turn.
#[derive(Debug)]
struct Shown {
    key: String,
    state: Mutex<ShownState>,
    ended: Condvar,
}

#[derive(Debug)]
struct ShownState {
    record: SessionRecord,
    bytes: Vec<u8>,
    has_ended: bool,
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, ShownState> {
        self.state.lock()
    }

    fn fenced(&self) -> Error {
        Error::new(Kind::Fenced, "session was ended by another process")
            .object(&self.key)
            .advice("start the command again; nothing was committed")
    }

    /// Changes the object. The lock is held over the swap: owner and renewals must not swap against each other.
    fn replace(&self, metadata_tier: &dyn Tier, change: impl FnOnce(&mut SessionRecord)) -> Result<()> {
        let mut state = self.state();
        let mut record = state.record.clone();
        change(&mut record);
        let bytes = record.encode();
        if !metadata_tier.compare_and_swap(&self.key, Some(&state.bytes), &bytes)? {
            return Err(self.fenced());
        }
        (state.record, state.bytes) = (record, bytes);
        Ok(())
    }

    /// Renews the session until it ends or was fenced.
    fn keep_renewing(&self, metadata_tier: &dyn Tier) {
        loop {
            let state = self.state();
            let waited = self.ended.wait_timeout_while(state, RENEWAL, |state| !state.has_ended);
            if waited.unwrap_or_else(std::sync::PoisonError::into_inner).0.has_ended {
                return;
            }
            match self.replace(metadata_tier, |record| record.renewals += 1) {
                Err(error) if error.kind() == Kind::Fenced => {
                    tracing::warn!(session = self.key, "session was ended by another host");
                    return;
                }
                Err(error) => {
                    tracing::warn!(session = self.key, %error, "session is not renewed; trying again")
                }
                Ok(()) => {}
            }
        }
    }
}

impl Session {
    /// Opens a writer's session. When it returns, the session is visible to every later run of the collector, and the
    /// second value lists the packs and snapshots condemned by then.
    ///
    /// # Errors
    /// As the tier.
    pub fn writer(place: &SessionPlace, purpose: &str) -> Result<(Self, Vec<Condemned>)> {
        let metadata_tier = &*place.metadata_tier;
        let mut epoch = condemned::read_epoch(metadata_tier)?;
        let session =
            Self::open(place, SessionRecord { writer_epoch: Some(epoch), ..place.record(purpose) })?;
        loop {
            let now = condemned::read_epoch(metadata_tier)?;
            if now == epoch {
                return Ok((session, Condemned::read_all(metadata_tier)?));
            }
            epoch = now;
            session.shown.replace(metadata_tier, |record| record.writer_epoch = Some(now))?;
        }
    }

    /// Opens a reader's session that pins `snapshots`.
    ///
    /// # Errors
    /// `NotFound` when one of them is already condemned or gone; else as the tier.
    pub fn reader(place: &SessionPlace, purpose: &str, snapshots: &[SnapshotId]) -> Result<Self> {
        let session =
            Self::open(place, SessionRecord { pinned: snapshots.to_vec(), ..place.record(purpose) })?;
        for list in Condemned::read_all(&*place.metadata_tier)? {
            if let Some(gone) = list.snapshots.iter().find(|id| snapshots.contains(id)) {
                return Err(
                    Error::new(Kind::NotFound, "snapshot was forgotten and is being collected").object(gone)
                );
            }
        }
        Ok(session)
    }

    fn open(place: &SessionPlace, record: SessionRecord) -> Result<Self> {
        let name: [u8; 12] = clock::random_bytes();
        let key = format!("{SESSIONS}{}", name.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let lock = place.state.lock(&key, &record.purpose)?;
        // A session that outlived its lock file in a power cut would count as another host's, alive forever.
        place.state.sync_directory(SESSIONS)?;
        let bytes = record.encode();
        place.metadata_tier.put_if_absent(&key, &bytes)?;
        let state = Mutex::new(ShownState { record, bytes, has_ended: false });
        let shown = Arc::new(Shown { key, state, ended: Condvar::new() });
        let mut session = Self { place: place.clone(), shown, lock: Some(lock), renewing: None };
        if place.host.is_some() {
            let (metadata_tier, shown) = (place.metadata_tier.clone(), session.shown.clone());
            let renew = move || shown.keep_renewing(&*metadata_tier);
            let spawned = std::thread::Builder::new().name("renew-session".to_owned()).spawn(renew);
            session.renewing =
                Some(spawned.map_err(|error| Error::io("cannot start a thread", "renew-session", error))?);
        }
        Ok(session)
    }

    /// The key of its object.
    pub fn key(&self) -> &str {
        &self.shown.key
    }

    /// Whether another host may end it: then a commit is proposed before it counts.
    pub fn can_be_fenced(&self) -> bool {
        self.place.host.is_some()
    }

    /// Fails when another process ended this session: its writer may not commit.
    ///
    /// # Errors
    /// `Fenced`.
    pub fn check_alive(&self) -> Result<()> {
        let state = self.shown.state();
        match self.place.metadata_tier.get(&self.shown.key) {
            Ok(object) if *object == *state.bytes => Ok(()),
            Ok(_) => Err(self.shown.fenced()),
            Err(error) if error.kind() == Kind::NotFound => Err(self.shown.fenced()),
            Err(error) => Err(error),
        }
    }
}

/// One key for one directory of one host.
fn upper_key(place: &SessionPlace, upper: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(place.host.as_ref().map_or(&[], |host| host.as_bytes().as_slice()));
    let digits = hasher.update(upper.as_os_str().as_bytes()).finalize().to_hex();
    format!("{SESSIONS}{}", &digits[..24])
}

/// Where this host keeps the path of an upper that its session does not name.
fn redacted_name(key: &str) -> String {
    format!("{key}.upper")
}

/// Pins the snapshots that the changes in `upper`, an absolute path, are changes to, in place of those pinned for it
/// before. The caller has pinned them: they exist and are not condemned. With `redacted`, only this host keeps the
/// path, and the session does not name it: in an encrypted domain no object may disclose paths.
///
/// # Errors
/// As the tier.
pub fn pin_for_upper(
    place: &SessionPlace,
    upper: &Path,
    snapshots: &[SnapshotId],
    redacted: bool,
) -> Result<()> {
    let tier = &*place.metadata_tier;
    let key = upper_key(place, upper);
    let (shown, purpose) = match redacted {
        true => (PathBuf::new(), "changes".to_owned()),
        false => (upper.to_owned(), format!("changes in {}", upper.display())),
    };
    place.state.create_directory(SESSIONS)?;
    if redacted {
        place.state.replace(&redacted_name(&key), upper.as_os_str().as_bytes())?;
    }
    // Before the session: an upper without this note is never taken for removed.
    if let Some(parent) = parent_of(upper)
        && place.state.read(&parent_name(&key)).ok().as_ref() != Some(&parent)
    {
        place.state.replace(&parent_name(&key), &parent)?;
    }
    let record = SessionRecord { pinned: snapshots.to_vec(), upper: Some(shown), ..place.record(&purpose) };
    let bytes = record.encode();
    loop {
        let current = tier.get(&key).optional()?;
        if current.as_deref() == Some(&*bytes) {
            return Ok(());
        }
        if tier.compare_and_swap(&key, current.as_deref(), &bytes)? {
            return Ok(());
        }
    }
}

/// Ends the session of [`pin_for_upper`].
///
/// # Errors
/// As the tier.
pub fn unpin_upper(place: &SessionPlace, upper: &Path) -> Result<()> {
    let key = upper_key(place, upper);
    place.metadata_tier.delete(&key)?;
    forget_upper(place, &key);
    Ok(())
}

fn forget_upper(place: &SessionPlace, key: &str) {
    place.state.remove(&redacted_name(key));
    place.state.remove(&parent_name(key));
}

/// Where this host records the parent directory of an upper.
fn parent_name(key: &str) -> String {
    format!("{key}.parent")
}

/// The device and the inode number of the directory that an upper lies in; none where there is no such directory.
fn parent_of(upper: &Path) -> Option<Vec<u8>> {
    let parent = upper.parent()?.metadata().ok().filter(Metadata::is_dir)?;
    Some(format!("{} {}\n", parent.dev(), parent.ino()).into_bytes())
}

/// Whether the upper of a session was removed: its path leads nowhere, and its parent directory exists. An upper does
/// not count as removed when its disk is not mounted, another file system is mounted over the directory, this process
/// has a mount namespace of its own, or its notes were lost with this host's state.
fn is_removed(place: &SessionPlace, key: &str, upper: &Path) -> bool {
    let upper = match upper.as_os_str().is_empty() {
        false => upper.to_owned(),
        true => match place.state.read(&redacted_name(key)) {
            Ok(path) => PathBuf::from(OsStr::from_bytes(&path)),
            Err(_) => return false,
        },
    };
    let absent =
        |path: &Path| path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let noted = place.state.read(&parent_name(key)).ok();
    absent(&upper) && noted.is_some() && noted == parent_of(&upper)
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shown.state().has_ended = true;
        self.shown.ended.notify_all();
        if self.renewing.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(session = self.shown.key, "the thread that renewed a session panicked");
        }
        let ended = self.place.metadata_tier.delete(&self.shown.key);
        match (ended, self.lock.take()) {
            (Ok(()), Some(lock)) => lock.remove(),
            (Ok(()), None) => {}
            // A lock file without a holder marks the session as dead to the collector.
            (Err(error), _) => {
                tracing::warn!(session = self.shown.key, %error, "session could not be ended; the collector will sweep it");
            }
        }
    }
}

/// A session that counts as alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key of its object.
    pub key: String,
    /// Its content.
    pub record: SessionRecord,
    /// The bytes of its object.
    pub bytes: Vec<u8>,
}

/// The sessions whose processes live, as far as this host can tell. With `sweep`, those of its own dead processes are
/// removed.
///
/// # Errors
/// As the tier; `Corrupt` for a damaged session of a live process, which a collector must not pass over.
pub fn alive(place: &SessionPlace, sweep: bool) -> Result<Vec<Listed>> {
    let tier = &*place.metadata_tier;
    let mut alive = Vec::new();
    for info in tier.list(SESSIONS)? {
        let lock = place.state.look_at_lock(&info.key)?;
        if lock == LockState::Free {
            if sweep {
                tracing::info!(session = info.key, "ending the session of a dead process");
                tier.delete(&info.key)?;
                place.state.remove(&info.key);
            }
            continue;
        }
        let Some(object) = tier.get(&info.key).optional()? else { continue }; // ended since it was listed
        let bytes = object.to_vec();
        let record = SessionRecord::decode(&bytes).map_err(|error| error.object(&info.key))?;
        let is_own = record.host == place.host;
        match &record.upper {
            Some(upper) if is_own && is_removed(place, &info.key, upper) => {
                if sweep {
                    tier.delete(&info.key)?;
                    forget_upper(place, &info.key);
                }
                continue;
            }
            None if is_own && lock == LockState::Absent => warn_of_foreign(tier, &info.key, &record),
            _ => {}
        }
        alive.push(Listed { key: info.key, record, bytes });
    }
    Ok(alive)
}

/// Ends the session of a process that may still live: it cannot commit any more. False when the
/// session changed since it was listed.
///
/// # Errors
/// As the tier.
pub fn fence(metadata_tier: &dyn Tier, listed: &Listed) -> Result<bool> {
    let fenced =
        SessionRecord { purpose: format!("fenced: {}", listed.record.purpose), ..listed.record.clone() };
    let swapped = metadata_tier.compare_and_swap(&listed.key, Some(&listed.bytes), &fenced.encode())?;
    if swapped {
        metadata_tier.delete(&listed.key)?;
    }
    Ok(swapped)
}

fn warn_of_foreign(tier: &dyn Tier, key: &str, record: &SessionRecord) {
    tracing::warn!(
        session = key,
        tier = tier.describe(),
        purpose = record.purpose,
        "a session of other local state counts as alive, and what it may need stays; if its process is gone, run \
         `snapctl gc` with that state once, or delete the session's object",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;

    #[test]
    fn a_session_reads_back_and_nothing_else_does() {
        let pinned = vec![SnapshotId::from_bytes([1; 32]), SnapshotId::from_bytes([2; 32])];
        for (writer_epoch, pinned) in [(None, pinned), (Some(0), Vec::new()), (Some(u64::MAX), Vec::new())] {
            for upper in [None, Some(PathBuf::from("/srv/upper"))] {
                let writer_epoch = writer_epoch.filter(|_| upper.is_none());
                let purpose = "mount of web".to_owned();
                for host in [None, Some(HostId::from_bytes([7; 8]))] {
                    let (pinned, purpose, upper) = (pinned.clone(), purpose.clone(), upper.clone());
                    let renewals = host.map_or(0, |_| 9);
                    let record = SessionRecord { writer_epoch, pinned, purpose, upper, host, renewals };
                    assert_sealed(&record.encode(), &record, SessionRecord::decode);
                }
            }
        }
        let mut body = Encoder::new();
        body.u8(6).u64(0).string(b"neither").count(0);
        assert!(SessionRecord::decode(&seal(Record::Session, &body.finish())).is_err());
    }
}
