//! Space and inodes reserved in the local state, so that a full disk can be freed: forgetting and collecting write a
//! little before they delete much. They are reserved from the moment a store is made or written, and help where local
//! state and hot tier share a disk, as in a store in one directory.

use crate::host::state::LocalState;
use std::path::PathBuf;

/// Enough for refs, condemned lists and the collector's clock many times over.
const LEN_BYTES: u64 = 1 << 20;
/// Number of files, the first of that length: enough inodes for the collector's directories and objects.
const FILES: u32 = 8;

fn name(number: u32) -> String {
    match number {
        0 => "reserve".to_owned(),
        _ => format!("reserve-{number}"),
    }
}

fn path(state: &LocalState, number: u32) -> PathBuf {
    state.path().join(name(number))
}

/// Reserves the space that is not reserved yet. A disk without space for it is left as it is.
pub(crate) fn keep(state: &LocalState) {
    let disk = state.disk();
    for number in 0..FILES {
        let path = path(state, number);
        if disk.stat(&path).is_ok() {
            continue;
        }
        let kept = disk.create(&path).and_then(|mut file| match number {
            0 => file.allocate(LEN_BYTES),
            _ => Ok(()),
        });
        if let Err(error) = kept {
            tracing::debug!(path = %path.display(), %error, "no space is kept back");
            state.remove(&name(number));
            return;
        }
    }
}

/// Returns the space to the disk; false when none was reserved.
pub(crate) fn give_back(state: &LocalState) -> bool {
    let disk = state.disk();
    let given = (0..FILES).filter(|number| disk.unlink(&path(state, *number)).is_ok());
    given.count() > 0
}
