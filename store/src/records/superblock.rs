//! The superblock: identity and features of a store. Written by `init`; changed only when a feature comes into use; a
//! store without a readable one is not opened.

use crate::error::{Error, Kind, Result};
use crate::id::StoreId;
use crate::keys;
use crate::tier::Tier;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};

/// Incompatible feature: there may be domains besides the plain one. A build that does not know them would collect
/// their data.
pub(crate) const DOMAINS: u64 = 1;
/// The incompatible features of this build.
const KNOWN_INCOMPATIBLE: u64 = DOMAINS;

/// Identity and feature sets. A build opens a store only if it knows every incompatible feature, and writes to it only
/// if it also knows every read-only-compatible one; compatible features may be ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Names the store for life.
    pub id: StoreId,
    /// Feature bits that old builds may ignore.
    pub compatible: u64,
    /// Feature bits that old builds may ignore while they only read.
    pub read_only_compatible: u64,
    /// Feature bits that a build must know.
    pub incompatible: u64,
}

impl Superblock {
    /// The superblock of a new store.
    pub(crate) fn new(id: StoreId) -> Self {
        Self { id, compatible: 0, read_only_compatible: 0, incompatible: 0 }
    }

    /// The record's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.bytes(self.id.as_bytes())
            .u64(self.compatible)
            .u64(self.read_only_compatible)
            .u64(self.incompatible);
        seal(Record::Superblock, &body.finish())
    }

    /// Parses a record.
    ///
    /// # Errors
    /// `Corrupt`; `Invalid` when the store has a feature that this build does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Superblock, bytes)?);
        let id = StoreId::from_bytes(fields.array()?);
        let (compatible, read_only_compatible, incompatible) = (fields.u64()?, fields.u64()?, fields.u64()?);
        fields.end()?;
        let unknown = incompatible & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            return Err(Error::invalid(format!("store needs features {unknown:#x} that this build lacks"))
                .advice("use a newer snapctl"));
        }
        Ok(Self { id, compatible, read_only_compatible, incompatible })
    }

    /// Refuses to write to a store with a feature that this build could break.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.read_only_compatible {
            0 => Ok(()),
            unknown => Err(Error::invalid(format!(
                "store has features {unknown:#x} that this build can read but not write"
            ))
            .advice("use a newer snapctl")),
        }
    }

    /// Reads the superblock of the store on `tier`.
    ///
    /// # Errors
    /// `NotFound` when there is no store, else as [`Self::decode`].
    pub(crate) fn read(tier: &dyn Tier) -> Result<Self> {
        match tier.get(keys::SUPERBLOCK) {
            Ok(object) => Self::decode(&object).map_err(|error| error.object(tier.describe())),
            Err(error) if error.kind() == Kind::NotFound => Err(Error::new(Kind::NotFound, "no store here")
                .object(tier.describe())
                .advice("create one with `snapctl init`, or name another with --store")),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;

    #[test]
    fn a_superblock_reads_back_and_nothing_else_does() {
        let block = Superblock {
            compatible: 5,
            read_only_compatible: 6,
            ..Superblock::new(StoreId::from_bytes([7; 16]))
        };
        assert_sealed(&block.encode(), &block, Superblock::decode);
        assert_eq!(Superblock::decode(&[]).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn unknown_features_are_refused_where_they_matter() {
        let new = Superblock::new(StoreId::from_bytes([7; 16]));
        let compatible = Superblock { compatible: 1, ..new.clone() };
        assert!(Superblock::decode(&compatible.encode()).unwrap().check_writable().is_ok());
        let read_only = Superblock { read_only_compatible: 1, ..new.clone() };
        let error = Superblock::decode(&read_only.encode()).unwrap().check_writable().unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let known = Superblock { incompatible: KNOWN_INCOMPATIBLE, ..new.clone() };
        assert!(Superblock::decode(&known.encode()).is_ok());
        let incompatible = Superblock { incompatible: KNOWN_INCOMPATIBLE | 1 << 63, ..new };
        assert_eq!(Superblock::decode(&incompatible.encode()).unwrap_err().kind(), Kind::Invalid);
    }
}
