//! What files looked like at a ref's last backup: a hash of the path to a hash of device, inode, size, mtime and ctime.
//! Derived state of this host; without it every file is read again, which costs time and changes nothing.

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::tier::replace_file;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

type Hash = [u8; 16];

/// Old looks to compare with and new ones to keep.
#[derive(Default)]
pub struct StatCache {
    old: HashMap<Hash, Hash>,
    new: Vec<(Hash, Hash)>,
    /// Files changed since then may change again within the same tick of the clock and are not kept.
    settled_before: i64,
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

fn look(metadata: &Metadata) -> Hash {
    let fields = [
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime() as u64,
        metadata.mtime_nsec() as u64,
        metadata.ctime() as u64,
        metadata.ctime_nsec() as u64,
    ];
    hash(&fields.map(u64::to_le_bytes).each_ref().map(|field| field.as_slice()))
}

fn path_of(state: &Path, name: &str) -> PathBuf {
    let digits: String = hash(&[name.as_bytes()]).iter().map(|byte| format!("{byte:02x}")).collect();
    state.join("stat").join(digits)
}

impl StatCache {
    /// What was kept at the backup that made `parent`; nothing when that is not there or damaged.
    pub fn load(state: &Path, name: &str, parent: Option<&SnapshotId>) -> Self {
        let settled_before = crate::clock::now().seconds - 1;
        let old = std::fs::read(path_of(state, name)).ok().and_then(|bytes| decode(&bytes, parent?).ok());
        Self { old: old.unwrap_or_default(), new: Vec::new(), settled_before }
    }

    /// Whether a file looks as it did; its look is kept for the next time.
    pub fn is_unchanged(&mut self, relative: &Path, metadata: &Metadata) -> bool {
        let (key, now) = (hash(&[relative.as_os_str().as_bytes()]), look(metadata));
        if metadata.ctime() < self.settled_before {
            self.new.push((key, now));
        }
        self.old.get(&key) == Some(&now)
    }

    /// A file whose backup failed must be read the next time.
    pub fn forget_last(&mut self) {
        self.new.pop();
    }

    /// Keeps the new looks with the snapshot that they belong to.
    ///
    /// # Errors
    /// As the system calls.
    pub fn save(&self, state: &Path, name: &str, snapshot: &SnapshotId) -> Result<()> {
        let mut body = Encoder::with_capacity(40 + self.new.len() * 32);
        body.bytes(snapshot.as_bytes()).count(self.new.len());
        for (key, look) in &self.new {
            body.bytes(key).bytes(look);
        }
        let path = path_of(state, name);
        let directory = state.join("stat");
        std::fs::create_dir_all(&directory)
            .map_err(|error| Error::io("cannot create directory", directory.display(), error))?;
        replace_file(&path.with_extension("next"), &path, &seal(Record::StatCache, &body.finish()))
    }
}

fn decode(bytes: &[u8], parent: &SnapshotId) -> Result<HashMap<Hash, Hash>> {
    let mut fields = Decoder::new(unseal(Record::StatCache, bytes)?);
    let mut looks = HashMap::new();
    if fields.array()? != *parent.as_bytes() {
        return Ok(looks);
    }
    for _ in 0..fields.count(32)? {
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
        let state = tempfile::tempdir().unwrap();
        let (own, other) = (SnapshotId::from_bytes([1; 32]), SnapshotId::from_bytes([2; 32]));
        let new = vec![([3; 16], [4; 16]), ([5; 16], [6; 16])];
        StatCache { new: new.clone(), ..StatCache::default() }.save(state.path(), "web", &own).unwrap();
        let kept: HashMap<Hash, Hash> = new.into_iter().collect();
        assert_eq!(StatCache::load(state.path(), "web", Some(&own)).old, kept);
        assert!(StatCache::load(state.path(), "web", Some(&other)).old.is_empty());
        assert!(StatCache::load(state.path(), "web", None).old.is_empty());
        assert!(StatCache::load(state.path(), "other", Some(&own)).old.is_empty());
        let bytes = std::fs::read(path_of(state.path(), "web")).unwrap();
        assert_sealed(&bytes, &kept, |bytes| decode(bytes, &own));
    }
}
