//! Snapshot: the immutable record of an app at one moment: file tree, memory image, or both. Writing it is the single
//! commit point of a write; only a ref makes it lasting.

use crate::clock::Time;
use crate::error::{Error, Result};
use crate::id::{ImageId, SnapshotId, TreeId};
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use std::collections::BTreeMap;

/// Counts taken when the snapshot was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Names in the tree, or pages in the image.
    pub files: u64,
    /// Logical bytes.
    pub bytes: u64,
    /// Plain bytes that no earlier chunk held.
    pub new_bytes: u64,
    /// Their length in bytes after compression, with all headers.
    pub stored_bytes: u64,
}

/// One frozen state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its files.
    pub tree: Option<TreeId>,
    /// Its memory.
    pub image: Option<ImageId>,
    /// The snapshot that it was made from.
    pub parent: Option<SnapshotId>,
    /// When it was made.
    pub time: Time,
    /// Free-form labels of the user and the identity of VMM and kernel.
    pub labels: BTreeMap<String, String>,
    /// Sizes.
    pub totals: Totals,
}

impl Snapshot {
    /// The record's fields.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        optional_id(&mut body, self.tree.as_ref().map(TreeId::as_bytes));
        optional_id(&mut body, self.image.as_ref().map(ImageId::as_bytes));
        optional_id(&mut body, self.parent.as_ref().map(SnapshotId::as_bytes));
        body.time(self.time);
        let Totals { files, bytes, new_bytes, stored_bytes } = self.totals;
        body.u64(files).u64(bytes).u64(new_bytes).u64(stored_bytes).count(self.labels.len());
        for (name, value) in &self.labels {
            body.string(name.as_bytes()).string(value.as_bytes());
        }
        body.finish()
    }

    /// The bytes of a record that is not encrypted and its id: the BLAKE3 hash of them.
    pub fn encode(&self) -> (SnapshotId, Vec<u8>) {
        let bytes = seal(Record::Snapshot, &self.body());
        (SnapshotId::from_bytes(*blake3::hash(&bytes).as_bytes()), bytes)
    }

    /// Parses the record, not encrypted, stored under `id`.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged or is another snapshot's record.
    pub fn decode(id: &SnapshotId, bytes: &[u8]) -> Result<Self> {
        let body = unseal(Record::Snapshot, bytes)?;
        if blake3::hash(bytes).as_bytes() != id.as_bytes() {
            return Err(Error::corrupt("snapshot record stands under another's name"));
        }
        Self::decode_body(body)
    }

    /// Parses the record's fields.
    pub(crate) fn decode_body(body: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(body);
        let tree = read_optional_id(&mut fields)?.map(TreeId::from_bytes);
        let image = read_optional_id(&mut fields)?.map(ImageId::from_bytes);
        let parent = read_optional_id(&mut fields)?.map(SnapshotId::from_bytes);
        let time = fields.time()?;
        let (files, bytes, new_bytes, stored_bytes) =
            (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let mut labels = BTreeMap::new();
        for _ in 0..fields.count(8)? {
            labels.insert(fields.text()?, fields.text()?);
        }
        fields.end()?;
        Ok(Self {
            tree,
            image,
            parent,
            time,
            labels,
            totals: Totals { files, bytes, new_bytes, stored_bytes },
        })
    }
}

fn optional_id(out: &mut Encoder, id: Option<&[u8; 32]>) {
    out.u8(id.is_some().into()).bytes(id.unwrap_or(&[0; 32]));
}

fn read_optional_id(fields: &mut Decoder<'_>) -> Result<Option<[u8; 32]>> {
    let present = fields.u8()?;
    let id = fields.array()?;
    match present {
        0 => Ok(None),
        1 => Ok(Some(id)),
        _ => Err(Error::corrupt("snapshot record has a bad presence flag")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_sealed, flipped};
    use proptest::prelude::*;

    prop_compose! {
        fn snapshots()(
            ids in any::<(Option<[u8; 32]>, Option<[u8; 32]>, Option<[u8; 32]>)>(),
            seconds in any::<i64>(),
            nanos in 0..1_000_000_000u32,
            totals in any::<[u64; 4]>(),
            labels in prop::collection::btree_map(any::<String>(), any::<String>(), 0..4),
        ) -> Snapshot {
            let [files, bytes, new_bytes, stored_bytes] = totals;
            Snapshot {
                tree: ids.0.map(TreeId::from_bytes),
                image: ids.1.map(ImageId::from_bytes),
                parent: ids.2.map(SnapshotId::from_bytes),
                time: Time { seconds, nanos },
                labels,
                totals: Totals { files, bytes, new_bytes, stored_bytes },
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_snapshot_reads_back_and_nothing_else_does(snapshot in snapshots()) {
            let (id, bytes) = snapshot.encode();
            assert_sealed(&bytes, &snapshot, |bytes| Snapshot::decode(&id, bytes));
            let other = SnapshotId::from_bytes(flipped(id.as_bytes(), 3).try_into().unwrap());
            prop_assert!(Snapshot::decode(&other, &bytes).is_err());
        }
    }
}
