//! Writing past the page cache. Each 4 KiB written through it costs a page, a copy and the write-back, and evicts pages
//! in use.

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};

/// Shorter writes go through the page cache: a small hibernated image may be resumed at once.
const MIN_LEN: usize = 8 << 20;
/// Addresses, file offsets and lengths are multiples of this.
const BLOCK: usize = 4096;
/// Bytes written by one call.
const CALL_LEN: usize = 4 << 20;

/// Appends bytes, past the page cache as far as the file system can: refused blocks and the rest after the last full
/// block go through it. Memory: 4 MiB.
///
/// # Errors
/// As `write(2)`.
pub(super) fn append(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    match bytes.len() < MIN_LEN {
        true => file.write_all(bytes),
        false => append_past(file, bytes),
    }
}

fn append_past(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let flags = fcntl_getfl(&*file)?;
    let written = match fcntl_setfl(&*file, flags | OFlags::DIRECT) {
        Ok(()) => append_blocks(file, bytes)?,
        Err(Errno::INVAL) => 0,
        Err(error) => return Err(error.into()),
    };
    fcntl_setfl(&*file, flags)?;
    file.write_all(&bytes[written..])
}

/// Appends full blocks, up to the first that is refused; returns the number of bytes written.
fn append_blocks(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let mut room = vec![0; CALL_LEN + BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    let buffer = &mut room[start..start + CALL_LEN];
    let whole = bytes.len() / BLOCK * BLOCK;
    let mut written = 0;
    while written < whole {
        let call = &mut buffer[..CALL_LEN.min(whole - written)];
        call.copy_from_slice(&bytes[written..written + call.len()]);
        match rustix::io::write(file, call) {
            Ok(len) => {
                written += len;
                if len < call.len() {
                    break; // writing the rest returns the error
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::INVAL | Errno::OPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn bytes_are_the_same_past_the_page_cache() {
        let bytes: Vec<u8> = (0..2 * CALL_LEN + 12_345).map(|at| (at / 7 % 251) as u8).collect();
        // The first lies on a disk, most likely; the second has no disk to write to.
        for directory in [std::env::temp_dir().as_path(), std::path::Path::new("/dev/shm")] {
            for (before, len) in
                [(0, 0), (0, 1), (0, BLOCK), (0, bytes.len()), (BLOCK, CALL_LEN), (3, bytes.len())]
            {
                let mut file = tempfile::tempfile_in(directory).unwrap();
                file.write_all(&vec![9; before]).unwrap();
                append_past(&mut file, &bytes[..len]).unwrap();
                append_past(&mut file, b"behind").unwrap();
                let mut found = Vec::new();
                io::Seek::rewind(&mut file).unwrap();
                file.read_to_end(&mut found).unwrap();
                assert!(found == [&vec![9; before][..], &bytes[..len], b"behind"].concat(), "{before} {len}");
                assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
            }
        }
    }
}
