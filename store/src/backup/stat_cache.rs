//! Looks of files at a ref's last backup: a hash of the path to a hash of device, inode, size, mtime and ctime.
//! Derived state of this host; without it every file is read again, which costs time and changes nothing.
//!
//! One change leaves the look as it was: a write through a shared mapping to a page that is dirty already, until the
//! kernel has written that page back (half a minute by default). Only a backup that reads every file sees it.

use crate::error::Result;
use crate::host::state::LocalState;
use crate::id::SnapshotId;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use rustix::fs::Stat;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

type Hash = [u8; 16];

/// Keys are hashes already.
#[derive(Default)]
pub(super) struct FirstWord(u64);

impl Hasher for FirstWord {
    fn write(&mut self, bytes: &[u8]) {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[..8]);
        self.0 = u64::from_le_bytes(word);
    }

    fn write_usize(&mut self, _len: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

type Looks = HashMap<Hash, Hash, BuildHasherDefault<FirstWord>>;

/// The hash of a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key(Hash);

/// The look of a file: the hash of its path, and of its fields that a change would alter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    key: Hash,
    look: Hash,
}

/// Old looks to compare with.
#[derive(Default)]
pub(super) struct StatCache {
    old: Looks,
    /// Files changed since then may change again within the same tick of the clock and are not kept.
    settled_before: i64,
    /// Keyed with the domain's keys, so that hashes of paths disclose nothing without them.
    hasher: blake3::Hasher,
}

fn hash(hasher: &blake3::Hasher, parts: &[&[u8]]) -> Hash {
    let mut hasher = hasher.clone();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

fn look(hasher: &blake3::Hasher, stat: &Stat) -> Hash {
    let fields = [
        stat.st_dev,
        stat.st_ino,
        stat.st_size as u64,
        stat.st_mtime as u64,
        stat.st_mtime_nsec,
        stat.st_ctime as u64,
        stat.st_ctime_nsec,
    ];
    hash(hasher, &fields.map(u64::to_le_bytes).each_ref().map(|field| field.as_slice()))
}

/// The file of a ref in local state.
fn file_of(hasher: &blake3::Hasher, name: &str) -> String {
    let digits: String = hash(hasher, &[name.as_bytes()]).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("stat/{digits}")
}

impl StatCache {
    /// The looks kept at the backup that made `parent`; empty when they are missing or damaged.
    pub(super) fn load(
        state: &LocalState,
        hasher: blake3::Hasher,
        name: &str,
        parent: Option<&SnapshotId>,
    ) -> Self {
        let settled_before = crate::clock::now().seconds - 1;
        let old = state.read(&file_of(&hasher, name)).ok().and_then(|bytes| decode(&bytes, parent?).ok());
        Self { old: old.unwrap_or_default(), settled_before, hasher }
    }

    /// The key of a path below the source.
    pub(super) fn key(&self, relative: &[u8]) -> Key {
        Key(hash(&self.hasher, &[relative]))
    }

    /// The look of the file at this path.
    pub(super) fn look(&self, key: Key, stat: &Stat) -> Look {
        Look { key: key.0, look: look(&self.hasher, stat) }
    }

    /// Whether it looked like this at the last backup.
    pub(super) fn is_unchanged(&self, look: &Look) -> bool {
        self.old.get(&look.key) == Some(&look.look)
    }

    /// Whether a look may be kept for the next backup. The next change of a file that changed just now might leave the
    /// same times.
    pub(super) fn is_settled(&self, stat: &Stat) -> bool {
        stat.st_ctime < self.settled_before
    }

    /// Keeps the new looks with the snapshot that they belong to.
    ///
    /// # Errors
    /// As the system calls.
    pub(super) fn save(
        &self,
        new: &[Look],
        state: &LocalState,
        name: &str,
        snapshot: &SnapshotId,
    ) -> Result<()> {
        let mut body = Encoder::with_capacity(40 + new.len() * 32);
        body.bytes(snapshot.as_bytes()).count(new.len());
        for Look { key, look } in new {
            body.bytes(key).bytes(look);
        }
        state.create_directory("stat")?;
        state.replace(&file_of(&self.hasher, name), &seal(Record::StatCache, &body.finish()))
    }
}

fn decode(bytes: &[u8], parent: &SnapshotId) -> Result<Looks> {
    let mut fields = Decoder::new(unseal(Record::StatCache, bytes)?);
    if fields.array()? != *parent.as_bytes() {
        return Ok(Looks::default());
    }
    let count = fields.count(32)?;
    let mut looks = Looks::with_capacity_and_hasher(count, BuildHasherDefault::default());
    for _ in 0..count {
        looks.insert(fields.array()?, fields.array()?);
    }
    fields.end()?;
    Ok(looks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;

    #[test]
    fn a_cache_reads_back_for_its_own_snapshot_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let state = LocalState::from(directory.path());
        let (own, other) = (SnapshotId::from_bytes([1; 32]), SnapshotId::from_bytes([2; 32]));
        let new = [(3, 4), (5, 6)].map(|(key, look)| Look { key: [key; 16], look: [look; 16] });
        StatCache::default().save(&new, &state, "web", &own).unwrap();
        let kept: Looks = new.into_iter().map(|Look { key, look }| (key, look)).collect();
        let load = |name, parent| StatCache::load(&state, blake3::Hasher::new(), name, parent).old;
        assert_eq!(load("web", Some(&own)), kept);
        assert!(load("web", Some(&other)).is_empty());
        assert!(load("web", None).is_empty());
        assert!(load("other", Some(&own)).is_empty());
        let keyed = blake3::Hasher::new_keyed(&[1; 32]);
        assert!(StatCache::load(&state, keyed, "web", Some(&own)).old.is_empty(), "in another domain");
        let bytes = state.read(&file_of(&blake3::Hasher::new(), "web")).unwrap();
        assert_sealed(&bytes, &kept, |bytes| decode(bytes, &own));
    }
}
