//! One row of a run: a chunk and the location of its frame. Pure.

use super::prefix::{PREFIX_LEN, Prefix};
use crate::pack::{ALIGNMENT, FrameExtent};

/// Length of a row in bytes.
pub const ENTRY_LEN: usize = 22;
/// Length of a row of the first layout.
pub(super) const OLD_ENTRY_LEN: usize = 24;
/// Pack numbers and frame offsets have 3 bytes.
const SHORT_LIMIT: u64 = 1 << 24;

/// A decoded row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The first bytes of the chunk's id.
    pub prefix: Prefix,
    /// Number of its pack in the run.
    pub pack: u32,
    /// Offset of its frame in units of [`ALIGNMENT`].
    pub offset: u32,
    /// Length of its frame in the same units.
    pub len: u16,
    /// The chunk's slot in the frame.
    pub slot: u16,
}

impl Row {
    /// The row of a chunk in this frame; `None`: no row can point there.
    pub fn new(prefix: Prefix, pack: u32, frame: &FrameExtent, slot: u32) -> Option<Self> {
        let offset = frame.offset / ALIGNMENT as u64;
        let fits = u64::from(pack) < SHORT_LIMIT && offset < SHORT_LIMIT;
        let len = u16::try_from(frame.len_bytes as usize / ALIGNMENT).ok()?;
        let slot = u16::try_from(slot).ok()?;
        fits.then_some(Self { prefix, pack, offset: offset as u32, len, slot })
    }

    /// Its bytes; they order as chunks do.
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..PREFIX_LEN].copy_from_slice(&self.prefix.to_bytes());
        bytes[12..15].copy_from_slice(&self.pack.to_le_bytes()[..3]);
        bytes[15..18].copy_from_slice(&self.offset.to_le_bytes()[..3]);
        bytes[18..20].copy_from_slice(&self.len.to_le_bytes());
        bytes[20..].copy_from_slice(&self.slot.to_le_bytes());
        bytes
    }

    /// The inverse of [`Self::encode`].
    pub fn decode(bytes: &[u8; ENTRY_LEN]) -> Self {
        let [.., p0, p1, p2, o0, o1, o2, l0, l1, s0, s1] = *bytes;
        Self {
            prefix: Prefix::at_front(bytes),
            pack: u32::from_le_bytes([p0, p1, p2, 0]),
            offset: u32::from_le_bytes([o0, o1, o2, 0]),
            len: u16::from_le_bytes([l0, l1]),
            slot: u16::from_le_bytes([s0, s1]),
        }
    }

    /// Reads a row of the first layout.
    pub fn decode_old(bytes: &[u8; OLD_ENTRY_LEN]) -> Self {
        let [.., p0, p1, p2, p3, o0, o1, o2, o3, l0, l1, s0, s1] = *bytes;
        Self {
            prefix: Prefix::at_front(bytes),
            pack: u32::from_le_bytes([p0, p1, p2, p3]),
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
            len: u16::from_le_bytes([l0, l1]),
            slot: u16::from_le_bytes([s0, s1]),
        }
    }

    /// Whether [`Self::encode`] is lossless for it.
    pub fn fits(&self) -> bool {
        u64::from(self.pack) < SHORT_LIMIT && u64::from(self.offset) < SHORT_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;

    #[test]
    fn a_row_reads_back_and_one_that_points_too_far_is_refused() {
        let prefix = Prefix::of(&ChunkId::from_bytes([0xa5; 32]));
        let frame = |offset, len_bytes| FrameExtent { offset, len_bytes };
        for (pack, offset, slot) in [(0, 64, 0), (0xff_ffff, (1 << 30) - 64, 0xffff), (7, 640, 3)] {
            let row = Row::new(prefix, pack, &frame(offset, 65_535 * 64), slot).unwrap();
            assert!(row.fits());
            assert_eq!(Row::decode(&row.encode()), row);
        }
        assert_eq!(Row::new(prefix, 1 << 24, &frame(64, 64), 0), None);
        assert_eq!(Row::new(prefix, 0, &frame(1 << 30, 64), 0), None);
        assert_eq!(Row::new(prefix, 0, &frame(64, 64), 1 << 16), None);
        assert_eq!(Row::new(prefix, 0, &frame(64, 65_536 * 64), 0), None);
    }
}
