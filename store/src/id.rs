//! Names of stored things: newtypes, so that a tree's id can never be passed where a chunk's is meant.
//!
//! Content ids are BLAKE3 under the domain's key ([`crate::domain`]); a snapshot's id is the plain hash of its record.

use crate::error::{Error, Result};
use crate::keys;
use std::fmt;
use std::str::FromStr;

/// Writes bytes as lower-case hexadecimal.
pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads exactly `N` bytes of hexadecimal.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N]> {
    let bad = || Error::invalid(format!("not {} hexadecimal digits", 2 * N)).object(text);
    if text.len() != 2 * N || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(pair).map_err(|_| bad())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
    }
    Ok(bytes)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length of the id in bytes.
            pub const LEN: usize = $len;

            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                parse_hex(text).map(Self)
            }
        }
    };
}

id!(
    /// Names a chunk by the keyed BLAKE3 hash of its bytes.
    ChunkId, 32
);
id!(
    /// Names a stored directory node.
    DirectoryId, 32
);
id!(
    /// Names a complete tree: its root record.
    TreeId, 32
);
id!(
    /// Names a memory image: its page table record.
    ImageId, 32
);
id!(
    /// Names a snapshot by the hash of its record.
    SnapshotId, 32
);
id!(
    /// Identifies a store permanently; drawn at random by `init`.
    StoreId, 16
);
id!(
    /// Identifies a domain permanently; drawn at random at its creation. All zero: a store's initial plain domain.
    DomainId, 16
);
id!(
    /// Names a writing host or process family; drawn at random, never reused.
    WriterId, 8
);

macro_rules! stored_as_chunk {
    ($($name:ident),*) => {$(
        impl $name {
            /// The chunk that holds this record.
            pub const fn chunk(&self) -> ChunkId {
                ChunkId(self.0)
            }
        }
        impl From<ChunkId> for $name {
            fn from(id: ChunkId) -> Self {
                Self(id.0)
            }
        }
    )*};
}
stored_as_chunk!(DirectoryId, TreeId, ImageId);

impl DomainId {
    /// The part of the id in the header of each of the domain's frames; 0 for the plain domain alone.
    pub const fn tag(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }
}

impl SnapshotId {
    /// The first 12 digits, enough for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

/// Names a pack by its writer, the writer's incarnation and a sequence; never reused, so a late upload can never
/// replace another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// The writer.
    pub writer: WriterId,
    /// The writer's incarnation: one more at each opening for writing.
    pub epoch: u32,
    /// Counts the packs of one incarnation from 0; in its highest five bits the level that they were recompressed at.
    pub sequence: u32,
}

/// Bits of a sequence below the level.
const LEVEL_SHIFT: u32 = 27;

impl PackId {
    /// Length of the encoded id in bytes.
    pub const LEN: usize = 16;

    /// The key of the pack on every tier.
    pub fn key(&self) -> String {
        format!("{}{self}", keys::PACKS)
    }

    /// Reads the id back from its key; `None` where the key is not a pack's.
    pub fn from_key(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(keys::PACKS)?.split('/');
        let writer = parts.next()?.parse().ok()?;
        let (epoch, sequence) = parts.next()?.split_once('-')?;
        let id = Self { writer, epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? };
        (parts.next().is_none() && id.key() == key).then_some(id)
    }

    /// The zstd level that the pack was recompressed at; 0 for one that was not. It is part of the name, so that
    /// finding packs to recompress reads nothing but names.
    pub const fn level(&self) -> i32 {
        (self.sequence >> LEVEL_SHIFT) as i32
    }

    /// The first sequence of packs that are recompressed at this level, which is 22 at most.
    pub const fn first_sequence(level: i32) -> u32 {
        (level as u32) << LEVEL_SHIFT
    }

    /// Writer, epoch and sequence, little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(self.writer.as_bytes());
        bytes[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, e0, e1, e2, e3, s0, s1, s2, s3] = bytes;
        Self {
            writer: WriterId::from_bytes([a, b, c, d, e, f, g, h]),
            epoch: u32::from_le_bytes([e0, e1, e2, e3]),
            sequence: u32::from_le_bytes([s0, s1, s2, s3]),
        }
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.writer, self.epoch, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_through_text_and_bytes() {
        let id = ChunkId::from_bytes([0xa5; 32]);
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        assert!("a5".parse::<ChunkId>().is_err());
        assert!("+5".repeat(32).parse::<ChunkId>().is_err());
        let pack = PackId { writer: WriterId::from_bytes([7; 8]), epoch: 3, sequence: 12 };
        let dense = PackId { sequence: PackId::first_sequence(19) + 5, ..pack };
        assert_eq!((pack.level(), dense.level(), PackId::from_key(&dense.key())), (0, 19, Some(dense)));
        assert_eq!(PackId::from_key(&pack.key()), Some(pack));
        assert_eq!(PackId::from_bytes(pack.to_bytes()), pack);
        assert_eq!(PackId::from_key("packs/0707070707070707/03-12"), None);
        assert_eq!(PackId::from_key("packs/0707070707070707/3-12/x"), None);
    }
}
