//! Small derived state of this host in a sled table: values that can be computed again, at a high cost. Nothing is only
//! here: a damaged or missing table is dropped with a warning and filled again.
//!
//! sled is confined to this one file and to thousands of small entries: loading millions costs it gigabytes of memory.

use crate::error::{Error, Kind, Result};
use crate::host::lock::FileLock;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

/// A table of bytes by bytes. One process at a time has it open.
pub struct Derived {
    table: sled::Db,
    _lock: FileLock,
}

impl std::fmt::Debug for Derived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Derived")
    }
}

fn failed(error: sled::Error) -> Error {
    Error::new(Kind::Unavailable, "derived table cannot be used").caused_by(error)
}

/// How often opening is tried while another instance of this process still holds the table.
const ATTEMPTS: u32 = 100;
/// The pause between tries.
const PAUSE: Duration = Duration::from_millis(20);

/// sled 0.34 panics on some damaged files; a panic is an ordinary error here. Its threads hold its lock for a moment
/// after a table was closed: since our own lock is held here, no other process can be the holder.
fn open_table(directory: &Path) -> Result<sled::Db> {
    let open = || sled::Config::new().path(directory).cache_capacity(8 << 20).open();
    for attempt in 1.. {
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Err(sled::Error::Io(error)))
                if error.to_string().contains("could not acquire lock") && attempt < ATTEMPTS =>
            {
                std::thread::sleep(PAUSE);
            }
            Ok(opened) => return opened.map_err(failed),
            Err(_) => break,
        }
    }
    Err(Error::new(Kind::Corrupt, "derived table is damaged"))
}

impl Derived {
    /// Opens the table in `directory`; a damaged one is removed and begun again.
    ///
    /// # Errors
    /// `Conflict` when another process has it open; `Unavailable` when not even a new table opens.
    pub fn open(directory: &Path) -> Result<Self> {
        let lock = FileLock::take(&directory.with_extension("lock"), "derived table")?;
        let table = match open_table(directory) {
            Ok(table) => table,
            Err(error) => {
                tracing::warn!(path = %directory.display(), %error, "derived table is dropped and filled again");
                std::fs::remove_dir_all(directory)
                    .map_err(|error| Error::io("cannot remove derived table", directory.display(), error))?;
                open_table(directory)?
            }
        };
        Ok(Self { table, _lock: lock })
    }

    /// The value under a key.
    ///
    /// # Errors
    /// `Unavailable`: compute it again.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.table.get(key).map_err(failed)?.map(|value| value.to_vec()))
    }

    /// Stores a value.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.table.insert(key, value).map(|_| ()).map_err(failed)
    }

    /// Keeps only the entries that `keep` accepts.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn retain(&self, keep: impl Fn(&[u8]) -> bool) -> Result<()> {
        for key in self.table.iter().keys() {
            let key = key.map_err(failed)?;
            if !keep(&key) {
                self.table.remove(key).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Makes all stored values durable.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn flush(&self) -> Result<()> {
        self.table.flush().map(|_| ()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(directory: &Path) {
        let table = Derived::open(directory).unwrap();
        for number in 0..500u32 {
            table.put(&number.to_le_bytes(), &number.to_be_bytes()).unwrap();
        }
        table.flush().unwrap();
    }

    #[test]
    fn what_was_put_is_there_after_reopening_and_what_was_not_kept_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table");
        filled(&path);
        let table = Derived::open(&path).unwrap();
        assert_eq!(table.get(&7u32.to_le_bytes()).unwrap(), Some(7u32.to_be_bytes().to_vec()));
        table.retain(|key| key[0] < 5).unwrap();
        assert_eq!(table.get(&7u32.to_le_bytes()).unwrap(), None);
        assert!(table.get(&3u32.to_le_bytes()).unwrap().is_some());
    }

    #[test]
    fn a_table_in_use_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table");
        filled(&path);
        let table = Derived::open(&path).unwrap();
        assert_eq!(Derived::open(&path).unwrap_err().kind(), Kind::Conflict);
        assert!(table.get(&7u32.to_le_bytes()).unwrap().is_some());
    }

    /// With any damage it opens, and a value is the stored one, or none, or an error.
    #[test]
    fn a_damaged_table_is_begun_anew_and_never_fatal() {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..60usize {
            let path = directory.path().join(round.to_string());
            filled(&path);
            for entry in std::fs::read_dir(&path).unwrap() {
                let file = entry.unwrap().path();
                let Ok(mut bytes) = std::fs::read(&file) else { continue };
                match round % 4 {
                    0 => bytes.truncate(round * bytes.len() / 60),
                    1 => bytes.clear(),
                    _ => bytes.iter_mut().skip(round * 7).step_by(911 + round).for_each(|byte| *byte ^= 0x55),
                }
                std::fs::write(&file, bytes).unwrap();
            }
            let table = Derived::open(&path).unwrap();
            for number in 0..500u32 {
                if let Ok(Some(value)) = table.get(&number.to_le_bytes()) {
                    assert_eq!(value, number.to_be_bytes(), "round {round}");
                }
            }
        }
    }
}
