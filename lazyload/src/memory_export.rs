//! The memory of an image as one plain file, with holes for zero pages.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use store::{Error, Image, PAGE, Progress, Result, Work};

/// Writes the memory of a virtual machine, or plain memory, to a new file. It has another name until it is complete.
///
/// # Errors
/// Those of reading the store and of writing; `Conflict` when the file exists.
pub fn write_memory(image: &Image, target: &Path, progress: &dyn Progress) -> Result<()> {
    if target.symlink_metadata().is_ok() {
        let error = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(Error::io("cannot write the memory file", target.display(), error));
    }
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = write(image, partial, progress).and_then(|()| {
        std::fs::rename(partial, target)
            .map_err(|error| Error::io("cannot name the memory file", target.display(), error))
    });
    if written.is_err()
        && let Err(error) = std::fs::remove_file(partial)
    {
        tracing::warn!(%error, path = %partial.display(), "a part of a memory file stays");
    }
    written
}

fn write(image: &Image, target: &Path, progress: &dyn Progress) -> Result<()> {
    let failed = |error| Error::io("cannot write the memory file", target.display(), error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(target)
        .map_err(failed)?;
    let len_bytes = image.spaces().first().map_or(0, |space| space.len_bytes);
    file.set_len(len_bytes).map_err(failed)?;
    let runs = image.runs(0);
    let pages: u64 = runs.iter().map(|run| u64::from(run.page_count)).sum();
    progress.begin("restore", Work::Bytes(pages * PAGE as u64));
    for run in runs {
        let group = image.group(run.group)?;
        let (start, len) = (usize::from(run.first_slot) * PAGE, run.page_count as usize * PAGE);
        let bytes = group.get(start..start + len);
        let bytes =
            bytes.ok_or_else(|| Error::corrupt("pages lie outside their group").object(image.id()))?;
        file.write_all_at(bytes, run.first_page * PAGE as u64).map_err(failed)?;
        progress.advance(len as u64);
    }
    file.sync_all().map_err(failed)?;
    progress.end();
    Ok(())
}
