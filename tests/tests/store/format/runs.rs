//! Index runs as they are written today, against the document and against the bytes of a run that was written once.

use super::{body, document, golden_tier, keys, root};
use std::path::Path;
use store::index::{self, Run};
use store::wire::{ENVELOPE_LEN, Record};
use store::{Object, PackId, Tier};

/// The runs of today: those of the golden store, joined.
#[test]
fn runs_with_buckets_lie_as_the_document_says() {
    let document = document();
    let runs: Vec<Run> =
        keys("index/").iter().map(|key| Run::open(key, golden_tier().get(key).unwrap()).unwrap()).collect();
    let joined = index::merge(&runs.iter().collect::<Vec<_>>(), |_| true, Path::new("")).unwrap();
    assert_eq!(std::fs::read(root().join("tests/fixtures/bucket-run")).unwrap(), *joined);
    let run = Run::open("joined", Object::Owned(joined.to_vec())).unwrap();
    run.verify().unwrap();
    let record = body(&document, "joined", Record::BucketRun, &joined);
    let (head, entry, bucket) =
        (&document["Bucket run body"], &document["Short run entry"], &document["Bucket"]);
    let count = |field: &str| head.number(record, field) as usize;
    let (packs, buckets, entries) = (count("pack count"), count("bucket count"), count("entry count"));
    assert_eq!(head.bytes(record, "reserved"), [0; 56]);
    assert_eq!(entries, runs.iter().map(Run::entry_count).sum::<usize>());
    let start = (ENVELOPE_LEN + head.len + entries * entry.len).next_multiple_of(64);
    let end = start + buckets * bucket.len;
    assert_eq!(joined.len(), end + packs * PackId::LEN);
    let ids = joined[end..].chunks(PackId::LEN);
    assert!(ids.map(|id| PackId::from_bytes(id.try_into().unwrap())).eq(run.packs()));
    for (number, row) in record[head.len..][..entries * entry.len].chunks(entry.len).enumerate() {
        let word = u64::from_be_bytes(row[..8].try_into().unwrap());
        let tail = u32::from_be_bytes(row[8..12].try_into().unwrap());
        let own = (((word >> 32) * buckets as u64) >> 32) as usize;
        let first = |index: usize| match index < buckets {
            true => bucket.number(&joined[start + index * bucket.len..], "number of the first") as usize,
            false => entries,
        };
        assert!((first(own)..first(own + 1)).contains(&number));
        let filter = bucket.bytes(&joined[start + own * bucket.len..], "filter");
        let read = run.row(number).unwrap();
        let fields = ["number of its pack", "offset of its frame", "length of its frame", "its slot"];
        let values = [read.pack, read.offset, read.len.into(), read.slot.into()];
        assert_eq!(fields.map(|field| entry.number(row, field)), values.map(u64::from));
        let noise = word << 32 | u64::from(tail);
        for n in 0..6 {
            let bit = (((noise >> (10 * n)) % 1024 * 480) >> 10) as usize;
            assert_ne!(filter[bit / 8] & (1 << (bit % 8)), 0);
        }
    }
}
