//! Private parsers of files and messages of other programs, for the fuzz targets of `tests/fuzz`. Not an interface: may
//! change with every version.

use std::io::Write;
use std::os::unix::net::UnixStream;

use store::{Error, Result};

use crate::criu::announce::{Announcement, Announcements};
use crate::criu::{entries, mark, page_map};
use crate::firecracker::handshake;
use crate::supervisor;
use crate::wake_log::Wake;

/// Bytes of the image that a handshake is for.
const IMAGE_BYTES: u64 = 256 << 20;
/// What a socket takes at once, even if no process reads.
const SOCKET_BYTES: usize = 4096;

/// The text of Firecracker's handshake.
///
/// # Errors
/// As the parser.
pub fn handshake(text: &[u8]) -> Result<()> {
    handshake::parse(text, IMAGE_BYTES).map(drop)
}

/// `pagemap-*.img` of CRIU.
///
/// # Errors
/// As the parser.
pub fn page_map(bytes: &[u8]) -> Result<()> {
    let map = page_map::PageMap::parse(bytes)?;
    assert_eq!(page_map::PageMap::parse(&map.encode())?, map);
    map.pages_file_bytes();
    map.end();
    Ok(())
}

/// `mm-*.img` of CRIU.
///
/// # Errors
/// As the parser.
pub fn mappings(bytes: &[u8]) -> Result<()> {
    entries::anonymous_mappings(bytes)?;
    entries::lazy_mappings(bytes)?;
    entries::arguments_and_environment(bytes)?;
    let changed = mark::marked(bytes, None)?;
    assert_eq!(mark::mark_of(&changed)?, None);
    Ok(())
}

/// `inventory.img` and `pstree.img` of CRIU.
///
/// # Errors
/// As the parser.
pub fn inventory(bytes: &[u8]) -> Result<()> {
    entries::check_inventory(bytes).or_else(|_| entries::tasks(bytes).map(drop))
}

/// The record of a wake.
///
/// # Errors
/// As the parser.
pub fn wake_log(text: &str) -> Result<()> {
    Wake::parse(text, false).map(drop)
}

/// The messages of CRIU on the lazy-pages socket, without descriptors.
///
/// # Errors
/// As the reader; `Unavailable` when there is no socket.
pub fn announcements(bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::io("cannot make a connection", "socket", error);
    let (ours, mut theirs) = UnixStream::pair().map_err(failed)?;
    theirs.write_all(&bytes[..bytes.len().min(SOCKET_BYTES)]).map_err(failed)?;
    drop(theirs);
    let mut announcements = Announcements::default();
    while !matches!(announcements.next(&ours)?, Some(Announcement::Closed)) {}
    Ok(())
}

/// The messages of a handler to its supervisor, without descriptors.
///
/// # Errors
/// As the supervisor.
pub fn supervisor(bytes: &[u8]) -> Result<()> {
    supervisor::receive_all(bytes)
}
