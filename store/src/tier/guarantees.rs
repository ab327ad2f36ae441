//! The guarantees of an object store, and the record of them in a bucket.

use crate::clock::Time;
use crate::error::Result;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};

/// Guarantees that hold with any concurrent writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantees {
    /// Of several writers that store an object of one key at once, exactly one gets `true`.
    pub put_if_absent: bool,
    /// Of several writers that replace the same bytes at once, exactly one succeeds.
    pub compare_and_swap: bool,
    /// An object is deleted only if it is the version that was named.
    pub conditional_delete: bool,
    /// A listing shows every object that was stored, and none that was deleted, before it began.
    pub list_after_write: bool,
    /// A read shows the last write, even right after it.
    pub read_after_write: bool,
    /// Objects can be stored in parts.
    pub multipart: bool,
    /// The guarantees for an object stored at once also hold for one stored in parts.
    pub multipart_condition: bool,
    /// A body that was changed in transit is refused.
    pub checksums: bool,
}

impl Guarantees {
    /// Everything: a local directory.
    pub const ALL: Self = Self::from_bits(u64::MAX);
    /// Nothing: a bucket that was never examined.
    pub const NONE: Self = Self::from_bits(0);

    /// Whether many hosts may write to it without knowing of each other.
    pub fn is_fit_for_many(&self) -> bool {
        self.put_if_absent && self.compare_and_swap && self.list_after_write && self.read_after_write
    }

    /// As bits of the record; unknown ones are ignored.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            put_if_absent: bits & 1 != 0,
            compare_and_swap: bits & 2 != 0,
            conditional_delete: bits & 4 != 0,
            list_after_write: bits & 8 != 0,
            read_after_write: bits & 16 != 0,
            multipart: bits & 32 != 0,
            multipart_condition: bits & 64 != 0,
            checksums: bits & 128 != 0,
        }
    }

    /// The bits of the record.
    pub fn bits(&self) -> u64 {
        let flags = [
            self.put_if_absent,
            self.compare_and_swap,
            self.conditional_delete,
            self.list_after_write,
            self.read_after_write,
            self.multipart,
            self.multipart_condition,
            self.checksums,
        ];
        flags.into_iter().zip(0..).map(|(holds, bit)| u64::from(holds) << bit).sum()
    }
}

/// The result of a bucket's examination. Stored in the bucket itself, so that every host knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketRecord {
    /// The bucket's guarantees.
    pub guarantees: Guarantees,
    /// When it was examined.
    pub examined: Time,
    /// Median of a small put, in microseconds.
    pub put_us: u32,
    /// Median of a small get, in microseconds.
    pub get_us: u32,
}

impl BucketRecord {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.u64(self.guarantees.bits()).time(self.examined);
        body.u32(self.put_us).u32(self.get_us);
        seal(Record::Bucket, &body.finish())
    }

    /// Parses a record.
    ///
    /// # Errors
    /// `Corrupt`, or `Invalid` when a newer build wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Bucket, bytes)?);
        let record = Self {
            guarantees: Guarantees::from_bits(fields.u64()?),
            examined: fields.time()?,
            put_us: fields.u32()?,
            get_us: fields.u32()?,
        };
        fields.end()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;

    #[test]
    fn a_record_reads_back_and_nothing_else_does() {
        for bit in 0..8 {
            let guarantees = Guarantees::from_bits(1 << bit);
            assert_eq!(guarantees.bits(), 1 << bit);
            let examined = Time { seconds: 1_800_000_000, nanos: 5 };
            let record = BucketRecord { guarantees, examined, put_us: 900, get_us: 400 };
            assert_sealed(&record.encode(), &record, BucketRecord::decode);
        }
        assert_eq!(Guarantees::ALL.bits(), 0xff);
        assert_eq!(Guarantees::from_bits(Guarantees::ALL.bits()), Guarantees::ALL);
    }

    #[test]
    fn many_hosts_need_both_conditional_writes_and_current_answers() {
        assert!(Guarantees::ALL.is_fit_for_many());
        assert!(!Guarantees::NONE.is_fit_for_many());
        assert!(!Guarantees { compare_and_swap: false, ..Guarantees::ALL }.is_fit_for_many());
        assert!(!Guarantees { list_after_write: false, ..Guarantees::ALL }.is_fit_for_many());
        assert!(
            Guarantees { conditional_delete: false, multipart_condition: false, ..Guarantees::ALL }
                .is_fit_for_many()
        );
    }
}
