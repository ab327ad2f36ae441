//! Private decoders of an upper's records and of a mount's control socket, for the fuzz targets of `tests/fuzz`. Not an
//! interface: may change with every version.

use crate::acl::Acl;
use crate::{change, control, journal};
use store::{Error, Result};

/// A frame's payload: changes of an upper.
///
/// # Errors
/// As the decoder.
pub fn changes(payload: &[u8]) -> Result<()> {
    let changes = change::decode_all(payload)?;
    assert_eq!(change::decode_all(&change::encode_all(changes.iter()))?, changes);
    Ok(())
}

/// The file of a journal, without its header's checksum.
///
/// # Errors
/// As the reader.
pub fn journal(bytes: &[u8]) -> Result<()> {
    if let Some((header, mut frames)) = bytes.split_first_chunk::<{ journal::HEADER_LEN }>() {
        // A wrong header is an error, but the frames are read in any case.
        std::hint::black_box(journal::parse_header(header).is_ok());
        let mut sequence = 0;
        let failed = |error| Error::io("cannot read the journal", "bytes", error);
        loop {
            let left = frames.len() as u64;
            let Some(payload) = journal::take_frame(&mut frames, left, sequence).map_err(failed)? else {
                break;
            };
            changes(&payload)?;
            sequence += 1;
        }
    }
    Ok(())
}

/// A request on the control socket of a mount.
///
/// # Errors
/// As the decoder.
pub fn control_request(message: &[u8]) -> Result<()> {
    control::decode_request(message).map(drop)
}

/// A POSIX access control list.
///
/// # Panics
/// When a list does not encode to the same bytes.
pub fn acl(bytes: &[u8]) {
    if let Some(acl) = Acl::decode(bytes) {
        assert_eq!(acl.encode(), bytes);
        acl.with_mode(0o640).inherited(acl.mode());
    }
}
