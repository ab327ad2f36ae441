//! Space kept back in the local state, so that a full disk can be freed: to forget and to collect is to write little before
//! much is deleted. It is kept from the moment a store is made or written, and helps where local state and hot tier share a
//! disk, as in a store in one directory.

use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::path::Path;

/// Enough for refs, condemned lists and the collector's clock many times over.
const LEN_BYTES: u64 = 1 << 20;
const NAME: &str = "reserve";

/// Keeps the space, if it is not kept yet. A disk that has none to give is left as it is.
pub fn keep(state: &Path) {
    let path = state.join(NAME);
    if path.exists() {
        return;
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let kept = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, LEN_BYTES));
    if let Err(error) = kept {
        tracing::debug!(path = %path.display(), %error, "no space is kept back");
        give_back(state);
    }
}

/// Gives the space back to the disk; false when none was kept.
pub fn give_back(state: &Path) -> bool {
    std::fs::remove_file(state.join(NAME)).is_ok()
}
