//! Scratch files: data too long for memory, gone with the process.

use crate::clock;
use crate::error::{Error, Result};
use crate::host::disk::create_private_directories;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A new file without a name, on the file system of `directory`, which is created if missing.
///
/// # Errors
/// As the system calls.
pub(crate) fn unnamed_file(directory: &Path) -> Result<File> {
    let failed = |error| Error::io("cannot make a scratch file", directory.display(), error);
    create_private_directories(directory).map_err(failed)?;
    let name: [u8; 8] = clock::random_bytes();
    let path = directory.join(format!("scratch-{:016x}", u64::from_le_bytes(name)));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(file)
}
