//! The records that the collector leaves in the store: its logical clock and the packs it condemned.
//!
//! Only formats and reads live here; the crate `gc` decides and writes. The protocol, in short: the collector raises
//! the epoch, then lists sessions, then refs; unreached packs go on a list, and the epoch is read again when the list
//! is visible: from then on they are condemned. They are deleted two epochs later or more, if still unreached and if no
//! open writer's session is as old as the condemnation, or older. A writer's session carries the epoch that was current
//! after the session became visible, and a writer does not depend on packs that are listed by then. So either the
//! collector sees the session or the writer sees the condemnation; no wall clock is read, and collectors of several
//! hosts may raise the epoch in turns.

use crate::error::{Error, Kind, OptionalExt, Result};
use crate::id::{PackId, SnapshotId};
use crate::keys;
use crate::tier::Tier;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};

/// The collector's logical clock: how many runs have begun.
///
/// # Errors
/// As the tier; `Corrupt`.
pub fn read_epoch(tier: &dyn Tier) -> Result<u64> {
    match tier.get(keys::COLLECTOR_STATE).optional()? {
        Some(object) => decode_epoch(&object).map_err(|error| error.object(keys::COLLECTOR_STATE)),
        None => Ok(0),
    }
}

fn decode_epoch(bytes: &[u8]) -> Result<u64> {
    let mut fields = Decoder::new(unseal(Record::CollectorState, bytes)?);
    let epoch = fields.u64()?;
    fields.end()?;
    Ok(epoch)
}

fn encode_epoch(epoch: u64) -> Vec<u8> {
    let mut body = Encoder::new();
    body.u64(epoch);
    seal(Record::CollectorState, &body.finish())
}

/// Begins a run: raises the clock by one and returns the new epoch.
///
/// # Errors
/// `Conflict` when another collector raised it at the same time.
pub fn raise_epoch(tier: &dyn Tier) -> Result<u64> {
    let epoch = read_epoch(tier)?;
    let current = (epoch > 0).then(|| encode_epoch(epoch));
    let next = epoch
        .checked_add(1)
        .ok_or_else(|| Error::corrupt("the epoch has run out").object(keys::COLLECTOR_STATE))?;
    match tier.compare_and_swap(keys::COLLECTOR_STATE, current.as_deref(), &encode_epoch(next))? {
        true => Ok(next),
        false => Err(Error::new(Kind::Conflict, "another collector is at work").advice("let it finish")),
    }
}

/// Packs and snapshots that one run condemned and no later run took back or deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condemned {
    /// The epoch of the run that condemned them; it names the list.
    pub epoch: u64,
    /// The epoch that was current when the list was visible for certain: writers of later epochs know it. `None` until
    /// that is confirmed: then nothing on it is deleted.
    pub since: Option<u64>,
    /// Packs that no root reached.
    pub packs: Vec<PackId>,
    /// Snapshot records that no root named.
    pub snapshots: Vec<SnapshotId>,
}

impl Condemned {
    fn key(epoch: u64) -> String {
        format!("{}{epoch:020}", keys::CONDEMNED)
    }

    /// Whether nothing is left of the list.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.snapshots.is_empty()
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.u64(self.epoch).count(self.packs.len());
        self.packs.iter().for_each(|pack| {
            body.bytes(&pack.to_bytes());
        });
        body.count(self.snapshots.len());
        self.snapshots.iter().for_each(|snapshot| {
            body.bytes(snapshot.as_bytes());
        });
        // An older version left nothing there.
        if let Some(since) = self.since {
            body.u64(since);
        }
        seal(Record::Condemned, &body.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Condemned, bytes)?);
        let mut list = Self { epoch: fields.u64()?, ..Self::default() };
        for _ in 0..fields.count(PackId::LEN)? {
            list.packs.push(PackId::from_bytes(fields.array()?));
        }
        for _ in 0..fields.count(SnapshotId::LEN)? {
            list.snapshots.push(SnapshotId::from_bytes(fields.array()?));
        }
        if fields.remaining() > 0 {
            list.since = Some(fields.u64()?);
        }
        fields.end()?;
        Ok(list)
    }

    /// All condemned lists, oldest first.
    ///
    /// # Errors
    /// As the tier; `Corrupt` for a damaged list.
    pub fn read_all(tier: &dyn Tier) -> Result<Vec<Self>> {
        let mut lists = Vec::new();
        for info in tier.list(keys::CONDEMNED)? {
            let Some(object) = tier.get(&info.key).optional()? else { continue }; // emptied since it was listed
            lists.push(Self::decode(&object).map_err(|error| error.object(&info.key))?);
        }
        Ok(lists)
    }

    /// Stores a new list, and confirms it when it is visible.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn publish(mut self, tier: &dyn Tier) -> Result<()> {
        self.write(tier)?;
        if self.is_empty() { Ok(()) } else { self.confirm(tier) }
    }

    /// Records that a list that was read or written is visible, unless another collector changed it since: then that
    /// collector, or the next run, records it.
    ///
    /// # Errors
    /// As the tier.
    pub fn confirm(&mut self, tier: &dyn Tier) -> Result<()> {
        let confirmed = Self { since: Some(read_epoch(tier)?), ..self.clone() };
        if tier.compare_and_swap(&Self::key(self.epoch), Some(&self.encode()), &confirmed.encode())? {
            *self = confirmed;
        }
        Ok(())
    }

    /// Replaces the stored list of its epoch; an empty one is removed.
    ///
    /// # Errors
    /// As the tier; `Conflict` when another collector changed it.
    pub fn write(&self, tier: &dyn Tier) -> Result<()> {
        let key = Self::key(self.epoch);
        if self.is_empty() {
            return tier.delete(&key);
        }
        let current = tier.get(&key).optional()?;
        match tier.compare_and_swap(&key, current.as_deref(), &self.encode())? {
            true => Ok(()),
            false => Err(Error::new(Kind::Conflict, "another collector is at work").object(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::WriterId;
    use crate::testing::assert_sealed;
    use crate::tier::MemoryTier;

    #[test]
    fn the_epoch_reads_back_and_nothing_else_does() {
        assert_sealed(&encode_epoch(7), &7, decode_epoch);
    }

    #[test]
    fn the_epoch_grows_and_never_wraps() {
        let tier = MemoryTier::new();
        assert_eq!([raise_epoch(&tier).unwrap(), raise_epoch(&tier).unwrap()], [1, 2]);
        assert_eq!(read_epoch(&tier).unwrap(), 2);
        let last = MemoryTier::new();
        last.put_if_absent(keys::COLLECTOR_STATE, &encode_epoch(u64::MAX)).unwrap();
        assert_eq!(raise_epoch(&last).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn a_condemned_list_reads_back_and_nothing_else_does() {
        let pack = |sequence| PackId { writer: WriterId::from_bytes([4; 8]), epoch: 1, sequence };
        let list = Condemned {
            epoch: 3,
            since: None,
            packs: vec![pack(0), pack(1)],
            snapshots: vec![SnapshotId::from_bytes([5; 32])],
        };
        assert_sealed(&list.encode(), &list, Condemned::decode);
        let confirmed = Condemned { since: Some(5), ..list };
        assert_sealed(&confirmed.encode(), &confirmed, Condemned::decode);
        assert_sealed(&Condemned::default().encode(), &Condemned::default(), Condemned::decode);
    }
}
