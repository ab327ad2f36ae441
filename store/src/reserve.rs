//! Space kept back in the local state, so that a full disk can be freed: to forget and to collect is to write little before
//! much is deleted. It is kept from the moment a store is made or written, and helps where local state and hot tier share a
//! disk, as in a store in one directory.

use crate::state::LocalState;

/// Enough for refs, condemned lists and the collector's clock many times over.
const LEN_BYTES: u64 = 1 << 20;
const NAME: &str = "reserve";

/// Keeps the space, if it is not kept yet. A disk that has none to give is left as it is.
pub fn keep(state: &LocalState) {
    let (disk, path) = (state.disk(), state.path().join(NAME));
    if disk.stat(&path).is_ok() {
        return;
    }
    let kept = disk.create(&path).and_then(|mut file| file.allocate(LEN_BYTES));
    if let Err(error) = kept {
        tracing::debug!(path = %path.display(), %error, "no space is kept back");
        give_back(state);
    }
}

/// Gives the space back to the disk; false when none was kept.
pub fn give_back(state: &LocalState) -> bool {
    state.disk().unlink(&state.path().join(NAME)).is_ok()
}
