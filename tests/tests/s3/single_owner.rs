//! A bucket that respects no condition: fit for one owner of each key, which looks before it writes, and for no other
//! use.

use crate::{examined, prefix};
use std::sync::Arc;
use store::tier::examine_bucket;
use store::{Guarantees, Kind, S3Tier, Tier};
use tests::conformance::suite_of_one_owner;
use tests::servers::{Rclone, settings};

/// A tier below a new prefix, with no record in it.
pub(crate) fn fresh(endpoint: &str) -> Arc<dyn Tier> {
    let tier = S3Tier::new(&settings(endpoint, &prefix("owner"))).unwrap();
    assert_eq!(tier.guarantees().unwrap(), Guarantees::NONE);
    Arc::new(tier)
}

#[test]
fn a_tier_without_conditions_conforms_for_its_single_owner() {
    let rclone = Rclone::start();
    suite_of_one_owner(&|| fresh(&rclone.endpoint()));
}

#[test]
fn an_examination_leaves_its_record_and_nothing_else() {
    let rclone = Rclone::start();
    let settings = settings(&rclone.endpoint(), &prefix("record"));
    let examination = examine_bucket(&settings).unwrap();
    let tier = S3Tier::new(&settings).unwrap();
    assert_eq!(tier.list("").unwrap(), []);
    assert_eq!(tier.bucket_record().unwrap(), None);
    let tier = examined(&settings);
    let record = tier.bucket_record().unwrap().unwrap();
    assert_eq!(record.guarantees, examination.guarantees());
    let keys: Vec<String> = tier.list("").unwrap().into_iter().map(|info| info.key).collect();
    assert_eq!(keys, [store::keys::BUCKET]);
    // A record that is damaged guarantees nothing, and is an error that says what to do.
    tier.delete(store::keys::BUCKET).unwrap();
    tier.put_if_absent(store::keys::BUCKET, b"not a record").unwrap();
    let error = S3Tier::new(&settings).unwrap().bucket_record().unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("snapctl doctor"), "{error}");
}
