//! The collector dies before each of its operations; the next run goes on and nothing reachable is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use store::Tier;
use tests::garden::Garden;
use tests::hook::HookTier;

#[test]
fn a_collector_that_dies_at_any_step_leaves_a_store_that_the_next_run_finishes() {
    let mut points = 0;
    for runs_before in 0..3 {
        for operation in 0.. {
            let garden = Garden::new();
            for round in 0..12 {
                garden.commit("app", &[round, round + 1, 100]); // more index runs than are left unmerged
            }
            garden.open().forget("app", |entry| entry.time.nanos % 3 != 0).unwrap();
            garden.commit("app", &[5, 100]);
            if runs_before > 0 {
                garden.collect(runs_before);
            }
            let hooked = HookTier::new(Arc::new(garden.memory.clone()));
            let store = garden.open_on(hooked.clone());
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
            garden.assert_sound(&format!("run {runs_before} died before operation {operation}"));
            garden.commit("app", &[3, 4, 200]);
            garden.collect(3);
            garden.assert_sound(&format!("run {runs_before} died before operation {operation}, finished"));
            garden.open().forget("app", |_| true).unwrap();
            garden.collect(3);
            assert_eq!(garden.memory.list("packs/").unwrap(), [], "all is collected in the end");
        }
    }
    println!("{points} crash points");
    assert!(points > 60, "only {points} crash points");
}
