//! Sessions: what the collector must respect besides refs. A writer's session says "I lean on packs that were live at
//! this epoch"; a reader's pins snapshots. A session lives as long as its process holds the session's file lock in the local
//! state: a lock file without a holder is a dead session and is swept. An object without a lock file was opened with other
//! local state, or that was lost: nothing is known of its process, so it counts as alive.
//!
//! A mount's upper needs its base also when no process has it mounted. Its session has no process and no lock: it lives until
//! it is ended, or until the upper's directory is gone.

use crate::clock;
use crate::collector::{self, Condemned};
use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::lock::{FileLock, LockState};
use crate::tier::Tier;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prefix of the keys of sessions.
pub const PREFIX: &str = "sessions/";

/// What a session's object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// For a writer: the collector's epoch that was current when the session was visible. `None` for a reader.
    pub writer_epoch: Option<u64>,
    /// Snapshots that must stay.
    pub pinned: Vec<SnapshotId>,
    /// What for, for people.
    pub purpose: String,
    /// The directory of a mount's changes to the pinned snapshots; `None` for what ends with a process.
    pub upper: Option<PathBuf>,
}

const READER: u8 = 0;
const WRITER: u8 = 1;
const UPPER: u8 = 2;

impl SessionRecord {
    fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        let kind = match (&self.upper, self.writer_epoch) {
            (Some(_), _) => UPPER,
            (None, Some(_)) => WRITER,
            (None, None) => READER,
        };
        body.u8(kind).u64(self.writer_epoch.unwrap_or(0));
        body.string(self.purpose.as_bytes()).count(self.pinned.len());
        self.pinned.iter().for_each(|id| {
            body.bytes(id.as_bytes());
        });
        if let Some(upper) = &self.upper {
            body.string(upper.as_os_str().as_bytes());
        }
        seal(Record::Session, &body.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Session, bytes)?);
        let (kind, epoch) = (fields.u8()?, fields.u64()?);
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
        fields.end()?;
        Ok(Self { writer_epoch, pinned, purpose, upper })
    }
}

/// An open session; dropping it ends it.
#[derive(Debug)]
pub struct Session {
    tier: Arc<dyn Tier>,
    key: String,
    bytes: Vec<u8>,
    lock: Option<FileLock>,
}

fn lock_path(state: &Path, key: &str) -> PathBuf {
    state.join(key)
}

impl Session {
    /// Opens a writer's session. When it returns, the session is visible to every later run of the collector, and the
    /// second value is what was condemned by then.
    ///
    /// # Errors
    /// As the tier.
    pub fn writer(tier: &Arc<dyn Tier>, state: &Path, purpose: &str) -> Result<(Self, Vec<Condemned>)> {
        let mut epoch = collector::read_epoch(&**tier)?;
        let record = |epoch| SessionRecord {
            writer_epoch: Some(epoch),
            pinned: Vec::new(),
            purpose: purpose.to_owned(),
            upper: None,
        };
        let mut session = Self::open(tier, state, &record(epoch))?;
        loop {
            let now = collector::read_epoch(&**tier)?;
            if now == epoch {
                return Ok((session, Condemned::read_all(&**tier)?));
            }
            epoch = now;
            session.replace(&record(epoch))?;
        }
    }

    /// Opens a reader's session that pins `snapshots`.
    ///
    /// # Errors
    /// `NotFound` when one of them is already condemned or gone; else as the tier.
    pub fn reader(
        tier: &Arc<dyn Tier>,
        state: &Path,
        purpose: &str,
        snapshots: &[SnapshotId],
    ) -> Result<Self> {
        let (pinned, purpose) = (snapshots.to_vec(), purpose.to_owned());
        let record = SessionRecord { writer_epoch: None, pinned, purpose, upper: None };
        let session = Self::open(tier, state, &record)?;
        for list in Condemned::read_all(&**tier)? {
            if let Some(gone) = list.snapshots.iter().find(|id| snapshots.contains(id)) {
                return Err(
                    Error::new(Kind::NotFound, "snapshot was forgotten and is being collected").object(gone)
                );
            }
        }
        Ok(session)
    }

    fn open(tier: &Arc<dyn Tier>, state: &Path, record: &SessionRecord) -> Result<Self> {
        let name: [u8; 12] = clock::random_bytes();
        let key = format!("{PREFIX}{}", name.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let lock = FileLock::take(&lock_path(state, &key), &record.purpose)?;
        let bytes = record.encode();
        let session = Self { tier: tier.clone(), key, bytes, lock: Some(lock) };
        session.tier.put_if_absent(&session.key, &session.bytes)?;
        Ok(session)
    }

    fn replace(&mut self, record: &SessionRecord) -> Result<()> {
        let bytes = record.encode();
        if !self.tier.compare_and_swap(&self.key, Some(&self.bytes), &bytes)? {
            return Err(Error::new(Kind::Fenced, "session was ended by another process").object(&self.key));
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Fails when somebody ended this session: its writer may not commit.
    ///
    /// # Errors
    /// `Fenced`.
    pub fn check_alive(&self) -> Result<()> {
        match self.tier.get(&self.key) {
            Ok(object) if *object == *self.bytes => Ok(()),
            Ok(_) => {
                Err(Error::new(Kind::Fenced, "session was changed by another process").object(&self.key))
            }
            Err(error) if error.kind() == Kind::NotFound => {
                Err(Error::new(Kind::Fenced, "session was ended by another process")
                    .object(&self.key)
                    .advice("start the command again; nothing was committed"))
            }
            Err(error) => Err(error),
        }
    }
}

fn upper_key(upper: &Path) -> String {
    let digits = blake3::hash(upper.as_os_str().as_bytes()).to_hex();
    format!("{PREFIX}{}", &digits[..24])
}

/// Pins the snapshots that the changes in `upper`, an absolute path, are changes to, in place of those pinned for it before.
/// The caller has pinned them: they are there and not condemned.
///
/// # Errors
/// As the tier.
pub fn hold_for_upper(tier: &dyn Tier, upper: &Path, snapshots: &[SnapshotId]) -> Result<()> {
    let record = SessionRecord {
        writer_epoch: None,
        pinned: snapshots.to_vec(),
        purpose: format!("changes in {}", upper.display()),
        upper: Some(upper.to_owned()),
    };
    let (key, bytes) = (upper_key(upper), record.encode());
    loop {
        let current = match tier.get(&key) {
            Ok(object) if *object == *bytes => return Ok(()),
            Ok(object) => Some(object),
            Err(error) if error.kind() == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        if tier.compare_and_swap(&key, current.as_deref(), &bytes)? {
            return Ok(());
        }
    }
}

/// Ends what [`hold_for_upper`] began.
///
/// # Errors
/// As the tier.
pub fn let_go_of_upper(tier: &dyn Tier, upper: &Path) -> Result<()> {
    tier.delete(&upper_key(upper))
}

/// Whether an upper was removed: a directory that cannot be seen because its disk is not mounted is not.
fn is_removed(upper: &Path) -> bool {
    let absent =
        |path: &Path| path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    absent(upper) && upper.parent().is_some_and(Path::is_dir)
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.tier.delete(&self.key) {
            tracing::warn!(session = self.key, %error, "session could not be ended; the collector will sweep it");
        }
        if let Some(lock) = self.lock.take() {
            lock.remove();
        }
    }
}

/// The sessions whose processes live. With `sweep`, those of dead processes are removed.
///
/// # Errors
/// As the tier; `Corrupt` for a damaged session of a live process, which a collector must not pass over.
pub fn alive(tier: &dyn Tier, state: &Path, sweep: bool) -> Result<Vec<SessionRecord>> {
    let mut alive = Vec::new();
    for info in tier.list(PREFIX)? {
        let lock = FileLock::look(&lock_path(state, &info.key))?;
        if lock == LockState::Free {
            if sweep {
                tracing::info!(session = info.key, "ending the session of a dead process");
                tier.delete(&info.key)?;
                FileLock::remove_free(&lock_path(state, &info.key));
            }
            continue;
        }
        match tier.get(&info.key) {
            Ok(object) => {
                let record = SessionRecord::decode(&object).map_err(|error| error.object(&info.key))?;
                match &record.upper {
                    Some(upper) if is_removed(upper) => {
                        if sweep {
                            tier.delete(&info.key)?;
                        }
                        continue;
                    }
                    None if lock == LockState::Absent => warn_of_foreign(tier, &info.key, &record),
                    _ => {}
                }
                alive.push(record);
            }
            Err(error) if error.kind() == Kind::NotFound => {} // ended since it was listed
            Err(error) => return Err(error),
        }
    }
    Ok(alive)
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
                let record = SessionRecord { writer_epoch, pinned: pinned.clone(), purpose, upper };
                assert_sealed(&record.encode(), &record, SessionRecord::decode);
            }
        }
        let mut body = Encoder::new();
        body.u8(3).u64(0).string(b"neither").count(0);
        assert!(SessionRecord::decode(&seal(Record::Session, &body.finish())).is_err());
    }
}
