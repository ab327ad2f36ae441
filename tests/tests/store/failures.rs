//! Operations of the disk that fail: for every n the n-th one of a store's scenario, once or from then on, by an error
//! of the device or a full disk. Nothing is acknowledged that is not durable, a failed writer does not go on, and when
//! the disk works again so does the store.

use crate::sim::{begun, try_all};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering};
use tests::is_long;
use tests::scenario::{Scenario, Step, recover};
use tests::sim_disk::{Fault, Luck, Rules, Survey};

/// A sample of everything that users do.
const LIFE: [Step; 10] = [
    Step::Pin("web"),
    Step::Commit("web"),
    Step::Capture("vm"),
    Step::Forget("web"),
    Step::CollectOnce,
    Step::Commit("new"),
    Step::Recompress,
    Step::Collect,
    Step::Rebuild,
    Step::Pin("web"),
];

/// Runs with the fault, then without it; returns how often the store recovered, and whether the fault was met.
fn fail(fault: Fault) -> (u64, bool) {
    let (disk, acks) = begun();
    let mut scenario = Scenario::on(disk, acks, 100);
    scenario.disk.set_fault(Some(fault));
    let mut failures = Vec::new();
    for step in LIFE {
        // Users try again, each time with another process.
        for _ in 0..2 {
            match scenario.step(step) {
                Ok(()) => break,
                Err(error) => failures.push(format!("{step:?}: {error}")),
            }
            scenario.reopen();
        }
    }
    let was_met = scenario.disk.is_fault_met();
    scenario.disk.set_fault(None);
    let context = format!("{fault:?}, with {failures:?}");
    // Everything acknowledged is durable, also if the power goes now.
    let mut survey = Survey::of(&scenario.disk);
    survey.advance(survey.len());
    let luck = Luck::Seed(fault.operation);
    let crashes = [(Rules::Kill, Luck::Nothing), (Rules::Unordered, Luck::Nothing), (Rules::Unordered, luck)];
    for (rules, luck) in crashes {
        recover(&survey.crash(rules, luck), &scenario.acks, &format!("{context}, then {rules:?}, {luck:?}"));
    }
    // And the processes that met the fault may still be there.
    for step in LIFE {
        scenario.step(step).unwrap_or_else(|error| panic!("{context}, then {step:?}: {error}"));
    }
    (crashes.len() as u64 + 1, was_met)
}

/// How many operations a scenario has: ids are random, so it is not always the same.
fn operations() -> usize {
    let (disk, acks) = begun();
    let mut scenario = Scenario::on(disk, acks, 100);
    scenario.disk.set_fault(None);
    LIFE.iter().for_each(|step| scenario.step(*step).unwrap());
    scenario.disk.operations() as usize
}

/// Fails every operation in turn, or one of `stride`.
fn every_operation(what: &str, errno: Errno, lasts: bool, stride: usize) {
    let stride = if is_long() { 1 } else { stride };
    let (count, met) = (operations() / stride, AtomicU64::new(0));
    try_all(what, count, |number| {
        let (points, was_met) = fail(Fault { operation: (number * stride) as u64, errno, lasts });
        met.fetch_add(u64::from(was_met), Ordering::Relaxed);
        points
    });
    let met = met.into_inner() as usize;
    println!("{what}: {met} of {count} operations");
    assert!(met > 100 && met + 20 > count, "{met} operations failed");
}

#[test]
fn any_operation_may_fail_once() {
    every_operation("failed once", Errno::IO, false, 1);
    every_operation("no space once", Errno::NOSPC, false, 4);
}

#[test]
fn all_operations_may_fail_from_any_of_them_on() {
    every_operation("failed from there on", Errno::IO, true, 2);
    every_operation("no space from there on", Errno::NOSPC, true, 4);
}
