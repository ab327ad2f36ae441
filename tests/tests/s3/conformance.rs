//! The one suite of all tiers, on buckets.

use crate::{on_seaweed, prefix};
use std::sync::Arc;
use store::tier::{Examination, examine_bucket};
use store::{S3Settings, S3Tier, Tier};
use tests::conformance::{Effort, suite_with};

/// Leaves the record of an examination below another prefix, as if it had been examined too.
fn record(settings: &S3Settings, examination: &Examination) {
    let unproven = S3Tier::new(settings).unwrap();
    assert!(unproven.put_if_absent(store::keys::BUCKET, &examination.record().encode()).unwrap());
}

/// The suite counts the objects of a tier, and the bucket's own record is there too.
fn fresh(settings: &S3Settings, examination: &Examination) -> Arc<dyn Tier> {
    record(settings, examination);
    let tier = S3Tier::new(settings).unwrap();
    assert_eq!(tier.guarantees().unwrap(), examination.guarantees());
    tier.delete(store::keys::BUCKET).unwrap();
    assert_eq!(tier.list("").unwrap(), []);
    Arc::new(tier)
}

#[test]
fn a_tier_on_a_seaweedfs_cluster_conforms() {
    let first = on_seaweed("conformance");
    let examination = examine_bucket(&first).unwrap();
    assert!(examination.guarantees().is_fit_for_many(), "{:#?}", examination.findings);
    // Writers of one key take turns by the second here.
    let effort = Effort { racers: 3, rounds: 2 };
    suite_with(effort, &|| {
        fresh(&S3Settings { prefix: prefix("conformance"), ..first.clone() }, &examination)
    });
}
