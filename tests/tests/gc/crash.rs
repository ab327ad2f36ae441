//! The collector dies before each of its operations; the next run goes on and nothing reachable is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use store::Tier;
use tests::gc_fixture::GcFixture;
use tests::interleaving::InterleavingTier;

#[test]
fn a_collector_that_dies_at_any_step_leaves_a_store_that_the_next_run_finishes() {
    let mut points = 0;
    for runs_before in 0..3 {
        for operation in 0.. {
            let fixture = GcFixture::new();
            for round in 0..12 {
                fixture.commit("app", &[round, round + 1, 100]); // more index runs than are left unmerged
            }
            fixture.open().forget("app", |entry| entry.time.nanos % 3 != 0).unwrap();
            fixture.commit("app", &[5, 100]);
            if runs_before > 0 {
                fixture.collect(runs_before);
            }
            let hooked = InterleavingTier::new(Arc::new(fixture.memory.clone()));
            let store = fixture.open_on(hooked.clone());
            hooked.arm(operation, || panic!("power cut"));
            let died = catch_unwind(AssertUnwindSafe(|| {
                gc::collect(&store, &gc::CollectOptions::default(), &store::Unwatched).unwrap();
            }));
            if hooked.is_armed() {
                break;
            }
            assert!(died.is_err());
            points += 1;
            drop(store);
            fixture.assert_sound(&format!("run {runs_before} died before operation {operation}"));
            fixture.commit("app", &[3, 4, 200]);
            fixture.collect(3);
            fixture.assert_sound(&format!("run {runs_before} died before operation {operation}, finished"));
            fixture.open().forget("app", |_| true).unwrap();
            fixture.collect(3);
            assert_eq!(fixture.memory.list("packs/").unwrap(), [], "all is collected in the end");
        }
    }
    println!("{points} crash points");
    assert!(points > 60, "only {points} crash points");
}
