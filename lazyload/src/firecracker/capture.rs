//! A paused machine's files into the store, and the device state back out. Neither file is changed.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use store::{ContentReader, Error, Image, ImageBuilder, ImageKind, Kind, Progress, Result, Store, Writer};

use super::{VMSTATE, check_kind};
use crate::memory_file::{self, MemorySource};
use crate::report::Captured;

const READ_BYTES: usize = 1 << 20;

/// Stores a machine: its memory file and its state file. Pages equal to those of the parent at the same address cost
/// nothing, nor do those that a Diff file leaves out. Until this returns, the machine must be paused or the files must
/// be copies.
///
/// # Errors
/// `Invalid` when the state file is empty, when the length of the memory file is not a multiple of the page size, or
/// when that file may be of another type than given; those of reading the files and of the writer.
pub fn capture(
    writer: &mut Writer,
    memory: MemorySource<'_>,
    vmstate: &Path,
    progress: &dyn Progress,
) -> Result<Captured> {
    let failed = |error| Error::io("cannot open the state file", vmstate.display(), error);
    let state = File::open(vmstate).map_err(failed)?;
    if state.metadata().map_err(failed)?.len() == 0 {
        return Err(Error::new(Kind::Invalid, "the state file is empty")
            .object(vmstate.display())
            .advice("give the snapshot_path of the snapshot that the memory file is of"));
    }
    let mut builder = ImageBuilder::new(writer, ImageKind::Firecracker, memory.parent);
    let bytes = memory_file::store_memory(&mut builder, ImageKind::Firecracker, memory, progress)?;
    builder.blob(VMSTATE, &mut BufReader::new(state))?;
    let (image, stats) = builder.finish()?;
    progress.end();
    Ok(Captured { image, stats, bytes, not_brought: 0 })
}

/// Writes the state file of an image to `target`, from where Firecracker loads it, readable for `owner` (user and
/// group) alone, by default that of this process. The file must not exist; it does not exist either when this fails.
///
/// # Errors
/// `Conflict` when the file exists, `Invalid` when the image is of another kind; `Corrupt` when it has no state.
pub fn write_vmstate(image: &Image, store: &Store, target: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    check_kind(image)?;
    let content = image
        .blob(VMSTATE)
        .ok_or_else(|| Error::new(Kind::Corrupt, "the image has no device state").object(image.id()))?;
    let reader = store.content(content)?;
    // Never over an existing file: it might be the one a running machine was loaded from.
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(target).map_err(|error| {
        let is_there = error.kind() == std::io::ErrorKind::AlreadyExists;
        let error = Error::io("cannot write the state file", target.display(), error);
        if is_there { error.advice("remove it, if no machine is being loaded from it") } else { error }
    })?;
    let written = fill(file, &reader, owner, target);
    if written.is_err() {
        // The partial file is this call's own.
        drop(std::fs::remove_file(target));
    }
    written
}

fn fill(mut file: File, reader: &ContentReader, owner: Option<(u32, u32)>, target: &Path) -> Result<()> {
    let failed = |error| Error::io("cannot write the state file", target.display(), error);
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, Some(user), Some(group)).map_err(failed)?;
    }
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let read = reader.read_at(offset, &mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..read]).map_err(failed)?;
        offset += read as u64;
    }
}
