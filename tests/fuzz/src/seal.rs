//! Checksums made right, so that they do not stop what the parser behind them must. Layouts: docs/FORMAT.md.

use store::pack::{FRAME_HEADER_LEN, SLOT_LEN, TRAILER_LEN};
use store::wire::checksum;

/// BLAKE3, as records are named by it.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number: usize, byte| number << 8 | usize::from(*byte))
}

/// The checksum of a frame's header, if the slots that it claims are there.
pub fn frame(bytes: &mut [u8]) {
    const GUARD: usize = FRAME_HEADER_LEN - 8;
    if bytes.len() < FRAME_HEADER_LEN {
        return;
    }
    let end = number(&bytes[16..20]).saturating_mul(SLOT_LEN).saturating_add(FRAME_HEADER_LEN);
    if let Some(slots) = bytes.get(FRAME_HEADER_LEN..end) {
        let guard = checksum(&[&bytes[..GUARD], slots].concat());
        bytes[GUARD..FRAME_HEADER_LEN].copy_from_slice(&guard.to_le_bytes());
    }
}

/// The checksums of a pack's trailer and directory, the length of the pack, and its name.
pub fn trailer(bytes: &mut [u8]) {
    let len = bytes.len();
    let Some(trailer) = len.checked_sub(TRAILER_LEN) else { return };
    bytes[trailer + 40..trailer + 56].fill(0);
    bytes[trailer + 32..trailer + 40].copy_from_slice(&(len as u64).to_le_bytes());
    let start = number(&bytes[trailer + 24..trailer + 32]);
    if start <= trailer {
        let body = checksum(&bytes[start..trailer]);
        bytes[trailer + 56..trailer + 64].copy_from_slice(&body.to_le_bytes());
    }
    let guard = checksum(&bytes[trailer..len - 8]);
    bytes[len - 8..].copy_from_slice(&guard.to_le_bytes());
}
