//! The metadata tier of a shared store as one host sees it: a remote tier behind a local mirror.
//!
//! Immutable objects (snapshot records, index runs) are read from the mirror once fetched. Mutable ones (the
//! superblock's features, refs, domains, sessions, the collector's state) are always read from the remote tier; of
//! superblock, refs and domains the mirror keeps the last state seen, which answers while the remote tier does not.
//! Writes go to the remote tier first and fail with it. The mirror holds nothing that is not there, may be lost at any
//! time, and is never listed unless the remote tier does not answer.

use super::{Guarantees, ObjectInfo, RangeRequest, Tier};
use crate::error::{Error, Kind, Result};
use crate::host::object::Object;
use crate::keys;
use crate::wire;
use std::sync::Arc;

/// A remote tier behind a local mirror.
#[derive(Debug)]
pub struct MirrorTier {
    local: Arc<dyn Tier>,
    remote: Arc<dyn Tier>,
}

/// The mirror's treatment of objects of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// It never changes: the mirror's copy is as good as any.
    Whole,
    /// It changes: the mirror's copy stands in while the remote tier does not answer.
    LastSeen,
    /// A stale copy would be wrong.
    Nothing,
}

fn keep(key: &str) -> Keep {
    match keys::prefix_of(key) {
        keys::SNAPSHOTS | keys::INDEX => Keep::Whole,
        keys::SUPERBLOCK | keys::REFS | keys::DOMAINS | keys::BUCKET => Keep::LastSeen,
        _ => Keep::Nothing,
    }
}

fn is_silent(error: &Error) -> bool {
    error.kind() == Kind::Unavailable
}

impl MirrorTier {
    /// `remote` behind a mirror on `local`.
    pub fn new(local: Arc<dyn Tier>, remote: Arc<dyn Tier>) -> Self {
        Self { local, remote }
    }

    /// The mirror's copy, if it is intact. Index runs are not read through here: opening one verifies it.
    fn local_copy(&self, key: &str) -> Option<Object> {
        let object = self.local.get(key).ok()?;
        if key.starts_with(keys::INDEX) || wire::is_sealed(&object) {
            return Some(object);
        }
        tracing::warn!(key, "a mirrored record is damaged and fetched again");
        self.forget(key);
        None
    }

    /// Keeps a copy, if the local disk can.
    fn remember(&self, key: &str, body: &[u8]) {
        let kept = match keep(key) {
            Keep::Nothing => return,
            Keep::Whole => self.local.put_if_absent(key, body),
            Keep::LastSeen => match self.local.get(key) {
                Ok(seen) if *seen == *body => return,
                Ok(seen) => self.local.compare_and_swap(key, Some(&seen), body),
                Err(_) => self.local.put_if_absent(key, body),
            },
        };
        if let Err(error) = kept {
            tracing::warn!(key, %error, "record is not mirrored");
        }
    }

    fn forget(&self, key: &str) {
        if let Err(error) = self.local.delete(key) {
            tracing::warn!(key, %error, "mirrored record stays");
        }
    }

    /// The answer of the mirror, in place of `error` of the remote tier.
    fn stand_in<T>(&self, key: &str, error: Error, answer: impl FnOnce(&Self) -> Option<T>) -> Result<T> {
        if !is_silent(&error) || keep(key) == Keep::Nothing {
            return Err(error);
        }
        let answer = answer(self).ok_or_else(|| error.advice("nothing of it is known on this host"))?;
        tracing::warn!(
            key,
            tier = self.remote.describe(),
            "tier does not answer; using the last state seen here"
        );
        Ok(answer)
    }
}

impl Tier for MirrorTier {
    fn describe(&self) -> String {
        self.remote.describe()
    }

    fn get(&self, key: &str) -> Result<Object> {
        if keep(key) == Keep::Whole
            && let Some(object) = self.local_copy(key)
        {
            return Ok(object);
        }
        match self.remote.get(key) {
            Ok(object) => {
                self.remember(key, &object);
                match key.starts_with(keys::INDEX) {
                    true => self.local.get(key).or(Ok(object)), // mapped, not in memory
                    false => Ok(object),
                }
            }
            Err(error) => {
                if error.kind() == Kind::NotFound && keep(key) == Keep::LastSeen {
                    self.forget(key);
                }
                self.stand_in(key, error, |mirror| mirror.local_copy(key))
            }
        }
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.remote.get_range(key, offset, len)
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        let local = |mirror: &Self| mirror.local.len_bytes(key).ok();
        self.remote.len_bytes(key).or_else(|error| self.stand_in(key, error, local))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        let put = self.remote.put_if_absent(key, body)?;
        if put {
            self.remember(key, body);
        }
        Ok(put)
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        let swapped = self.remote.compare_and_swap(key, expected, body)?;
        if swapped {
            self.remember(key, body);
        }
        Ok(swapped)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let local = |mirror: &Self| mirror.local.list(prefix).ok();
        let found = match self.remote.list(prefix) {
            Ok(found) => found,
            Err(error) => return self.stand_in(prefix, error, local),
        };
        if prefix == keys::INDEX {
            let is_there = |key: &str| found.binary_search_by(|info| info.key.as_str().cmp(key)).is_ok();
            let mirrored = self.local.list(prefix).unwrap_or_default();
            mirrored.iter().filter(|info| !is_there(&info.key)).for_each(|info| self.forget(&info.key));
        }
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.remote.delete(key)?;
        if keep(key) != Keep::Nothing {
            self.forget(key);
        }
        Ok(())
    }

    fn make_durable(&self, prefix: &str) -> Result<()> {
        self.remote.make_durable(prefix)
    }

    fn get_many(&self, requests: &[RangeRequest]) -> Vec<Result<Vec<u8>>> {
        self.remote.get_many(requests)
    }

    fn guarantees(&self) -> Result<Guarantees> {
        self.remote.guarantees()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::MemoryTier;
    use crate::wire::{Record, seal};
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A memory tier that can stop answering.
    #[derive(Debug, Default)]
    struct Distant {
        inner: MemoryTier,
        silent: AtomicBool,
    }

    impl Distant {
        fn ask(&self) -> Result<&MemoryTier> {
            match self.silent.load(Ordering::SeqCst) {
                true => Err(Error::new(Kind::Unavailable, "silent")),
                false => Ok(&self.inner),
            }
        }
    }

    impl Tier for Distant {
        fn describe(&self) -> String {
            "distant".to_owned()
        }
        fn get(&self, key: &str) -> Result<Object> {
            self.ask()?.get(key)
        }
        fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
            self.ask()?.get_range(key, offset, len)
        }
        fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
            self.ask()?.len_bytes(key)
        }
        fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
            self.ask()?.put_if_absent(key, body)
        }
        fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
            self.ask()?.compare_and_swap(key, expected, body)
        }
        fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
            self.ask()?.list(prefix)
        }
        fn delete(&self, key: &str) -> Result<()> {
            self.ask()?.delete(key)
        }
    }

    fn world() -> (Arc<Distant>, MemoryTier, MirrorTier) {
        let (remote, local) = (Arc::new(Distant::default()), MemoryTier::new());
        let mirror = MirrorTier::new(Arc::new(local.clone()), remote.clone());
        (remote, local, mirror)
    }

    #[test]
    fn silence_is_bridged_by_what_was_seen_and_refuses_changes() {
        let (remote, _, mirror) = world();
        let (one, two) = (seal(Record::Ref, b"one"), seal(Record::Ref, b"two"));
        mirror.put_if_absent("refs/default/a", &one).unwrap();
        mirror.put_if_absent("snapshots/default/s", &seal(Record::Snapshot, b"s")).unwrap();
        mirror.put_if_absent("sessions/x", &seal(Record::Session, b"x")).unwrap();
        // Another host makes a change.
        assert!(remote.inner.compare_and_swap("refs/default/a", Some(&one), &two).unwrap());
        assert_eq!(*mirror.get("refs/default/a").unwrap(), *two, "what changes is asked for each time");
        remote.silent.store(true, Ordering::SeqCst);
        assert_eq!(*mirror.get("refs/default/a").unwrap(), *two, "the last state seen");
        assert_eq!(mirror.list("refs/").unwrap().len(), 1);
        assert!(mirror.get("snapshots/default/s").is_ok());
        for refused in [
            mirror.get("sessions/x").map(|_| ()),
            mirror.get("refs/default/never-seen").map(|_| ()),
            mirror.compare_and_swap("refs/default/a", Some(&two), &one).map(|_| ()),
            mirror.put_if_absent("snapshots/default/t", b"t").map(|_| ()),
        ] {
            assert_eq!(refused.unwrap_err().kind(), Kind::Unavailable);
        }
        remote.silent.store(false, Ordering::SeqCst);
        assert!(mirror.compare_and_swap("refs/default/a", Some(&two), &one).unwrap());
    }

    #[test]
    fn a_damaged_mirror_heals_and_what_is_gone_is_forgotten() {
        let (remote, local, mirror) = world();
        let record = seal(Record::Snapshot, b"s");
        mirror.put_if_absent("snapshots/default/s", &record).unwrap();
        assert!(local.compare_and_swap("snapshots/default/s", Some(&record), b"rot").unwrap());
        assert_eq!(*mirror.get("snapshots/default/s").unwrap(), *record);
        assert_eq!(*local.get("snapshots/default/s").unwrap(), *record);
        for key in ["index/w/0-0", "index/w/0-1"] {
            mirror.put_if_absent(key, b"run").unwrap();
        }
        remote.inner.delete("index/w/0-0").unwrap();
        assert_eq!(mirror.list("index/").unwrap().len(), 1);
        assert_eq!(local.list("index/").unwrap().len(), 1, "a run that was merged away is dropped");
    }
}
