//! A paused machine's files into the store, and the device state back out.
//!
//! The memory file is a full one: flat, holes read as zero. Holes are skipped only after the file is synced, because a
//! file system may not know yet where data stands in a dirty file. Neither file is changed.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use store::{Error, Image, ImageBuilder, ImageKind, Kind, PAGE, Progress, Result, Store, Work, Writer};

use super::{VMSTATE, check_kind};
use crate::report::Captured;

const READ_BYTES: u64 = 1 << 20;
const PAGE_BYTES: u64 = PAGE as u64;

/// Stores a machine: its full memory file and its state file. Pages equal to those of `parent` at the same place cost
/// nothing. The machine must be paused until this returns, or the files be its own copies.
///
/// # Errors
/// `Invalid` when the memory file is not whole pages; those of reading the files and of the writer.
pub fn capture(
    writer: &mut Writer,
    memory: &Path,
    vmstate: &Path,
    parent: Option<&Image>,
    progress: &dyn Progress,
) -> Result<Captured> {
    let failed = |error| Error::io("cannot read the memory file", memory.display(), error);
    let file = File::open(memory).map_err(failed)?;
    let len_bytes = file.metadata().map_err(failed)?.len();
    if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(Error::new(
            Kind::Invalid,
            format!("a memory file of {len_bytes} bytes is not whole pages"),
        )
        .object(memory.display())
        .advice("give the mem_file_path of a full snapshot"));
    }
    let state = File::open(vmstate)
        .map_err(|error| Error::io("cannot open the state file", vmstate.display(), error))?;
    file.sync_all().map_err(failed)?;
    progress.begin("capture", Work::Bytes(len_bytes));
    let mut builder = ImageBuilder::new(writer, ImageKind::Firecracker, parent);
    builder.begin_space(0, len_bytes)?;
    let mut offset = 0;
    while let Some(data) = next_data(&file, offset, len_bytes).map_err(failed)? {
        progress.advance(data.start - offset);
        store_data(&mut builder, &file, data.clone(), progress)
            .map_err(|error| error.object(memory.display()))?;
        offset = data.end;
    }
    progress.advance(len_bytes - offset);
    builder.blob(VMSTATE, &mut BufReader::new(state))?;
    let (image, stats) = builder.finish()?;
    progress.end();
    Ok(Captured { image, stats, bytes: len_bytes, not_brought: 0 })
}

/// The next stretch at or after `offset` that may hold data, widened to whole pages.
fn next_data(file: &File, offset: u64, len_bytes: u64) -> std::io::Result<Option<Range<u64>>> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // The file system cannot tell: everything may be data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((offset < len_bytes).then_some(offset..len_bytes)),
        Err(errno) => return Err(errno.into()),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
    let start = (data - data % PAGE_BYTES).max(offset);
    let end = hole.next_multiple_of(PAGE_BYTES).min(len_bytes);
    Ok((start < end).then_some(start..end))
}

fn store_data(
    builder: &mut ImageBuilder<'_>,
    file: &File,
    data: Range<u64>,
    progress: &dyn Progress,
) -> Result<()> {
    let mut buffer = vec![0; READ_BYTES.min(data.end - data.start) as usize];
    let mut offset = data.start;
    while offset < data.end {
        let len = READ_BYTES.min(data.end - offset) as usize;
        let bytes = &mut buffer[..len];
        file.read_exact_at(bytes, offset)
            .map_err(|error| Error::io("cannot read the memory file", format!("byte {offset}"), error))?;
        let (pages, _) = bytes.as_chunks::<PAGE>();
        for (number, page) in (offset / PAGE_BYTES..).zip(pages) {
            builder.page(number, page)?;
        }
        progress.advance(len as u64);
        offset += len as u64;
    }
    Ok(())
}

/// Writes the state file of an image where Firecracker is to load it from. The file must not be there yet.
///
/// # Errors
/// `Invalid` when the file is there or the image is of another kind; `Corrupt` when it has no state.
pub fn write_vmstate(image: &Image, store: &Store, target: &Path) -> Result<()> {
    check_kind(image)?;
    let content = image
        .blob(VMSTATE)
        .ok_or_else(|| Error::new(Kind::Corrupt, "the image has no device state").object(image.id()))?;
    let reader = store.content(content)?;
    let failed = |error| Error::io("cannot write the state file", target.display(), error);
    // Never over an existing file: it might be the one a running machine was loaded from.
    let mut file = OpenOptions::new().write(true).create_new(true).open(target).map_err(failed)?;
    let mut buffer = vec![0; READ_BYTES as usize];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_around_holes_in_whole_pages() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(100 * PAGE_BYTES).expect("sized");
        file.write_all_at(b"x", 10 * PAGE_BYTES + 17).expect("written");
        file.write_all_at(b"y", 99 * PAGE_BYTES + 4095).expect("written");
        file.sync_all().expect("synced");
        let mut covered = [false; 100];
        let mut offset = 0;
        while let Some(data) = next_data(&file, offset, 100 * PAGE_BYTES).expect("found") {
            assert!(data.start >= offset && data.start.is_multiple_of(PAGE_BYTES) && data.end > data.start);
            covered[(data.start / PAGE_BYTES) as usize..(data.end / PAGE_BYTES) as usize].fill(true);
            offset = data.end;
        }
        assert!(covered[10] && covered[99]);
    }
}
