//! Garage: really distributed, every byte on three nodes, and no conditional writes. In the long mode only: it is built
//! from source.

use crate::{examined, prefix, single_owner};
use store::tier::Property;
use store::tier::examine_bucket;
use store::{S3Settings, Tier};
use tests::conformance::suite_of_one_owner;
use tests::is_long;
use tests::servers::{Garage, settings};

#[test]
fn garage_is_known_for_what_it_is_and_loses_nothing_with_a_node() {
    if !is_long() {
        println!("Garage is left to `cargo xtask test --long`");
        return;
    }
    let mut garage = Garage::start();
    let examination = examine_bucket(&settings(&garage.endpoint(0), &prefix("doctor"))).unwrap();
    assert!(!examination.guarantees().is_fit_for_many(), "{:#?}", examination.findings);
    for property in [Property::PutIfAbsent, Property::CompareAndSwap] {
        assert!(!examination.holds(property), "{:#?}", examination.findings);
    }
    assert!(examination.holds(Property::Ranges) && examination.holds(Property::Multipart));
    suite_of_one_owner(&|| single_owner::fresh(&garage.endpoint(0)));

    let settings = S3Settings { part_bytes: 5 << 20, ..settings(&garage.endpoint(0), &prefix("node")) };
    let tier = examined(&settings);
    let body = |number: u8| vec![number; 300_000 + usize::from(number)];
    let pack = vec![7; 12 << 20];
    for number in 0..40 {
        assert!(tier.put_if_absent(&format!("packs/{number}"), &body(number)).unwrap());
    }
    assert!(tier.put_if_absent("packs/large", &pack).unwrap());
    garage.kill_node(2);
    for number in 0..40 {
        assert_eq!(*tier.get(&format!("packs/{number}")).unwrap(), *body(number), "{number}");
    }
    assert!(*tier.get("packs/large").unwrap() == *pack);
    for number in 40..60 {
        assert!(tier.put_if_absent(&format!("packs/{number}"), &body(number)).unwrap());
    }
    assert_eq!(tier.list("packs/").unwrap().len(), 61);
    println!("61 objects written and read with one node of three killed between");
}
