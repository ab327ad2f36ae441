//! Lost frames: those without an intact copy on any tier, recorded by `scrub --repair` so that writers store their
//! chunks again instead of depending on them, and the collector keeps other copies in place of theirs.
//!
//! One record a pack, at the metadata tier. It goes when the pack is intact again or deleted.

use crate::error::{Error, OptionalExt, Result};
use crate::id::PackId;
use crate::index::Location;
use crate::keys;
use crate::tier::Tier;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use std::collections::HashMap;

/// Encoded length of a frame's offset.
const OFFSET_LEN: usize = 8;

/// The key of a pack's record.
pub fn key_of(pack: PackId) -> String {
    format!("{}{pack}", keys::LOST_FRAMES)
}

/// The pack that a key names; `None` where it is no such record's.
pub fn pack_of(key: &str) -> Option<PackId> {
    PackId::from_key(&format!("{}{}", keys::PACKS, key.strip_prefix(keys::LOST_FRAMES)?))
}

/// The frames of one pack that have no intact copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPack {
    /// The pack.
    pub pack: PackId,
    /// Where the frames begin in it in bytes, ascending.
    pub offsets: Vec<u64>,
}

impl DamagedPack {
    /// The bytes of the record.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.bytes(&self.pack.to_bytes()).count(self.offsets.len());
        self.offsets.iter().for_each(|offset| {
            body.u64(*offset);
        });
        seal(Record::DamagedPack, &body.finish())
    }

    /// Parses a record.
    ///
    /// # Errors
    /// `Corrupt`; `Invalid` for a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::DamagedPack, bytes)?);
        let pack = PackId::from_bytes(fields.array()?);
        let mut offsets = Vec::new();
        for _ in 0..fields.count(OFFSET_LEN)? {
            offsets.push(fields.u64()?);
        }
        fields.end()?;
        match offsets.is_sorted_by(|one, next| one < next) {
            true => Ok(Self { pack, offsets }),
            false => Err(Error::corrupt("lost frames are not in order")),
        }
    }
}

/// All frames that are known to be lost. Memory follows the damage.
#[derive(Clone, Debug, Default)]
pub struct DamagedFrames(HashMap<PackId, Vec<u64>>);

impl DamagedFrames {
    /// Reads every record.
    ///
    /// # Errors
    /// As the tier; `Corrupt` for a damaged record: a writer that ignored it would depend on lost frames.
    pub fn read_all(metadata_tier: &dyn Tier) -> Result<Self> {
        let mut all = Self::default();
        for info in metadata_tier.list(keys::LOST_FRAMES)? {
            match read(metadata_tier, &info.key) {
                Ok(Some(damaged)) => {
                    all.0.insert(damaged.pack, damaged.offsets);
                }
                Ok(None) => {} // no record of ours, or removed since it was listed
                Err(error) => {
                    return Err(error.advice("run `snapctl scrub --repair`: it writes the record again"));
                }
            }
        }
        Ok(all)
    }

    /// Whether the frame at a location is lost.
    pub fn has(&self, place: &Location) -> bool {
        self.has_frame(&place.pack, place.offset)
    }

    /// Whether the frame of a pack that begins there is lost.
    pub fn has_frame(&self, pack: &PackId, offset: u64) -> bool {
        self.0.get(pack).is_some_and(|offsets| offsets.binary_search(&offset).is_ok())
    }

    /// The packs with a record, and how many of their frames are lost.
    pub fn packs(&self) -> impl Iterator<Item = (PackId, usize)> {
        self.0.iter().map(|(pack, offsets)| (*pack, offsets.len()))
    }

    /// Whether a pack has a record.
    pub fn names(&self, pack: &PackId) -> bool {
        self.0.contains_key(pack)
    }
}

/// Reads one record; `None` when there is none, or the key is no record's.
///
/// # Errors
/// As [`DamagedFrames::read_all`].
pub fn read(metadata_tier: &dyn Tier, key: &str) -> Result<Option<DamagedPack>> {
    let Some(pack) = pack_of(key) else { return Ok(None) };
    let Some(bytes) = metadata_tier.get(key).optional()? else { return Ok(None) };
    match DamagedPack::decode(&bytes).map_err(|error| error.object(key))? {
        damaged if damaged.pack == pack => Ok(Some(damaged)),
        damaged => Err(Error::corrupt(format!("record is of pack {}", damaged.pack)).object(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::id::WriterId;
    use crate::testing::assert_sealed;
    use crate::tier::MemoryTier;

    fn sample() -> DamagedPack {
        let pack = PackId { writer: WriterId::from_bytes([4; 8]), epoch: 1, sequence: 2 };
        DamagedPack { pack, offsets: vec![64, 640] }
    }

    #[test]
    fn a_record_reads_back_and_nothing_else_does() {
        assert_sealed(&sample().encode(), &sample(), DamagedPack::decode);
        for offsets in [vec![64, 64], vec![640, 64]] {
            let bytes = DamagedPack { offsets, ..sample() }.encode();
            assert_eq!(DamagedPack::decode(&bytes).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn what_is_listed_is_lost_and_nothing_else() {
        let (tier, damaged) = (MemoryTier::new(), sample());
        tier.put_if_absent(&key_of(damaged.pack), &damaged.encode()).unwrap();
        tier.put_if_absent("damaged/other", b"no record of ours").unwrap();
        let all = DamagedFrames::read_all(&tier).unwrap();
        let place = |offset| Location { pack: damaged.pack, offset, len_bytes: 64, slot: 0 };
        assert_eq!([64, 128, 640].map(|offset| all.has(&place(offset))), [true, false, true]);
        let other = PackId { sequence: 3, ..damaged.pack };
        assert!(!all.has(&Location { pack: other, ..place(64) }));
        assert_eq!(all.packs().collect::<Vec<_>>(), [(damaged.pack, 2)]);
        tier.put_if_absent(&key_of(other), &damaged.encode()).unwrap();
        assert_eq!(DamagedFrames::read_all(&tier).unwrap_err().kind(), Kind::Corrupt, "another pack's");
    }
}
