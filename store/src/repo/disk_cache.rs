//! The disk cache: frames of slower tiers, as stored there, in files on local flash.
//!
//! Every process of the host shares it. Its limit is hard: an insert first makes room, under a lock, and is skipped if
//! there is none. Nothing in it is trusted: a frame is verified when it is decoded, like one from any tier, so files
//! are not synced. Frames of an encrypted domain are encrypted here. The directory may be removed at any time.

use crate::error::{Error, Result};
use crate::host::disk::create_private_directories;
use crate::id::PackId;
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Files take full blocks of the disk.
const BLOCK: u64 = 4096;
/// Number of subdirectories, so that none grows large.
const SHARDS: u8 = 64;
/// Eviction frees this share of the limit, so that not every insert evicts.
const FREED_SHARE: u64 = 16;
/// Minimum interval between two notes of one file's use, in seconds.
const TOUCH_SECONDS: i64 = 60;

/// Content and limit of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheUsage {
    /// Frames.
    pub frames: u64,
    /// Bytes of disk that they take.
    pub bytes: u64,
    /// Bytes of disk that they may take.
    pub limit_bytes: u64,
}

/// Stored frames on local flash.
#[derive(Debug)]
pub struct DiskCache {
    directory: PathBuf,
    limit_bytes: u64,
}

/// A cached frame's file, from its metadata.
struct Cached {
    path: PathBuf,
    last_used: (i64, i64),
    bytes: u64,
}

fn space_of(len_bytes: u64) -> u64 {
    len_bytes.next_multiple_of(BLOCK)
}

impl DiskCache {
    /// The cache in `directory`, created at the first insert. A limit of 0 keeps nothing.
    pub fn new(directory: PathBuf, limit_bytes: u64) -> Self {
        Self { directory, limit_bytes }
    }

    fn path(&self, pack: PackId, offset: u64) -> PathBuf {
        let shard = (pack.sequence as u64).wrapping_mul(31).wrapping_add(offset / 64) % u64::from(SHARDS);
        let PackId { writer, epoch, sequence } = pack;
        self.directory.join(format!("{shard:02}")).join(format!("{writer}-{epoch}-{sequence}-{offset}"))
    }

    /// The stored frame, not verified; `None` when it is missing or not of this length.
    pub fn get(&self, pack: PackId, offset: u64, len_bytes: u64) -> Option<Vec<u8>> {
        if self.limit_bytes == 0 {
            return None;
        }
        let mut file = File::open(self.path(pack, offset)).ok()?;
        let metadata = file.metadata().ok()?;
        if metadata.len() != len_bytes {
            return None;
        }
        let mut bytes = Vec::with_capacity(len_bytes as usize);
        file.read_to_end(&mut bytes).ok()?;
        if crate::clock::now().seconds.abs_diff(metadata.atime()) > TOUCH_SECONDS as u64 {
            touch(&file);
        }
        Some(bytes)
    }

    /// Stores a frame if there is room for it or room can be made. A disk error only costs the next reader a fetch.
    pub fn insert(&self, pack: PackId, offset: u64, bytes: &[u8]) {
        if space_of(bytes.len() as u64) > self.limit_bytes {
            return;
        }
        if let Err(error) = self.try_insert(pack, offset, bytes) {
            tracing::debug!(%pack, offset, %error, "frame is not cached");
        }
    }

    fn try_insert(&self, pack: PackId, offset: u64, bytes: &[u8]) -> Result<()> {
        let path = self.path(pack, offset);
        let failed = |error: io::Error| Error::io("cannot cache a frame", path.display(), error);
        let shard = path.parent().unwrap_or(&self.directory);
        create_private_directories(shard).map_err(failed)?;
        let mut ledger = Ledger::lock(&self.directory)?;
        if path.exists() {
            return Ok(());
        }
        let space = space_of(bytes.len() as u64);
        let mut used = match ledger.read()? {
            Some(used) => used,
            None => self.scan()?.iter().map(|cached| cached.bytes).sum(),
        };
        if used.saturating_add(space) > self.limit_bytes {
            used = self.evict(self.limit_bytes - self.limit_bytes / FREED_SHARE, space)?;
        }
        // Written before the file: after a crash the ledger is too high, never too low.
        ledger.write(used + space)?;
        let temporary = self.directory.join("next");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }

    /// Removes least recently used frames until `space` fits below `target`. The caller holds the ledger. Returns the
    /// bytes left.
    fn evict(&self, target: u64, space: u64) -> Result<u64> {
        let mut cached = self.scan()?;
        cached.sort_unstable_by_key(|file| file.last_used);
        let mut used: u64 = cached.iter().map(|file| file.bytes).sum();
        for file in cached {
            if used.saturating_add(space) <= target {
                break;
            }
            fs::remove_file(&file.path)
                .map_err(|error| Error::io("cannot drop a cached frame", file.path.display(), error))?;
            used -= file.bytes;
        }
        Ok(used)
    }

    fn scan(&self) -> Result<Vec<Cached>> {
        let failed = |error| Error::io("cannot list the cache", self.directory.display(), error);
        let mut cached = Vec::new();
        for shard in 0..SHARDS {
            let entries = match fs::read_dir(self.directory.join(format!("{shard:02}"))) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let Ok(metadata) = entry.metadata() else { continue }; // dropped since the listing
                let last_used = (metadata.atime(), metadata.atime_nsec());
                cached.push(Cached { path: entry.path(), last_used, bytes: space_of(metadata.len()) });
            }
        }
        Ok(cached)
    }

    /// Drops a damaged frame.
    pub fn remove(&self, pack: PackId, offset: u64) {
        // The ledger is too high until the next eviction.
        if let Err(error) = fs::remove_file(self.path(pack, offset)) {
            tracing::debug!(%pack, offset, %error, "cached frame stays");
        }
    }

    /// Content of the cache. Looks at every file.
    ///
    /// # Errors
    /// As the system calls.
    pub fn usage(&self) -> Result<CacheUsage> {
        let cached = self.scan()?;
        let bytes = cached.iter().map(|file| file.bytes).sum();
        Ok(CacheUsage { frames: cached.len() as u64, bytes, limit_bytes: self.limit_bytes })
    }

    /// Drops least recently used frames until at most `target_bytes` are left. Returns the bytes freed.
    ///
    /// # Errors
    /// As the system calls.
    pub fn trim(&self, target_bytes: u64) -> Result<u64> {
        if !self.directory.exists() {
            return Ok(0);
        }
        let mut ledger = Ledger::lock(&self.directory)?;
        let before: u64 = self.scan()?.iter().map(|file| file.bytes).sum();
        let left = self.evict(target_bytes, 0)?;
        ledger.write(left)?;
        Ok(before - left)
    }
}

fn touch(file: &File) {
    let (now, keep) =
        (Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT });
    let times = Timestamps { last_access: now, last_modification: keep };
    if let Err(error) = rustix::fs::futimens(file, &times) {
        tracing::debug!(%error, "use of a cached frame is not noted");
    }
}

/// Bytes that the cache takes, in a file whose lock orders the processes that change them.
struct Ledger(File);

impl Ledger {
    fn lock(directory: &Path) -> Result<Self> {
        let path = directory.join("ledger");
        let failed = |error| Error::io("cannot lock the cache", path.display(), error);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Self(file))
    }

    /// `None` when nothing was written yet.
    fn read(&mut self) -> Result<Option<u64>> {
        let mut bytes = Vec::new();
        let read = self.0.rewind().and_then(|()| self.0.read_to_end(&mut bytes));
        read.map_err(|error| Error::io("cannot read", "the cache's ledger", error))?;
        Ok(bytes.try_into().ok().map(u64::from_le_bytes))
    }

    fn write(&mut self, used: u64) -> Result<()> {
        let written = self.0.rewind().and_then(|()| self.0.write_all(&used.to_le_bytes()));
        written.map_err(|error| Error::io("cannot write", "the cache's ledger", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::WriterId;

    fn pack(sequence: u32) -> PackId {
        PackId { writer: WriterId::from_bytes([1; 8]), epoch: 0, sequence }
    }

    #[test]
    fn the_limit_is_never_passed_and_what_was_used_last_stays() {
        let directory = tempfile::tempdir().unwrap();
        let limit = 40 * BLOCK;
        let cache = DiskCache::new(directory.path().join("cache"), limit);
        for number in 0..200 {
            cache.insert(pack(number), 64, &[number as u8; 5000]);
            assert!(cache.usage().unwrap().bytes <= limit, "after {number}");
            // Number 0 is used all the time.
            if let Ok(file) = File::open(cache.path(pack(0), 64)) {
                touch(&file);
            }
        }
        assert_eq!(cache.get(pack(199), 64, 5000).unwrap(), [199; 5000]);
        assert_eq!(cache.get(pack(0), 64, 5000).unwrap(), [0; 5000]);
        assert!(cache.get(pack(1), 64, 5000).is_none());
        assert!(cache.get(pack(199), 64, 4999).is_none(), "another length is another frame");
        cache.insert(pack(300), 64, &vec![0; limit as usize + 1]);
        assert!(cache.get(pack(300), 64, limit + 1).is_none(), "what cannot fit is not kept");
        let before = cache.usage().unwrap();
        assert_eq!(cache.trim(4 * BLOCK).unwrap(), before.bytes - cache.usage().unwrap().bytes);
        assert!(cache.usage().unwrap().bytes <= 4 * BLOCK);
    }

    #[test]
    fn many_inserting_at_once_keep_the_limit_and_a_lost_ledger_is_counted_anew() {
        let directory = tempfile::tempdir().unwrap();
        let limit = 30 * BLOCK;
        let path = directory.path().join("cache");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = path.clone();
                scope.spawn(move || {
                    let cache = DiskCache::new(path, limit);
                    (0..100).for_each(|number| cache.insert(pack(thread * 1000 + number), 0, &[1; 4096]));
                });
            }
        });
        let cache = DiskCache::new(path.clone(), limit);
        assert!(cache.usage().unwrap().bytes <= limit);
        fs::remove_file(path.join("ledger")).unwrap();
        (0..100).for_each(|number| cache.insert(pack(9000 + number), 0, &[1; 4096]));
        let usage = cache.usage().unwrap();
        assert!((limit / 2..=limit).contains(&usage.bytes), "{usage:?}");
    }
}
