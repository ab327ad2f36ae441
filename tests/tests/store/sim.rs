//! Crashes on a simulated disk (`tests/src/sim_disk`). Every sequence of up to three steps of a store's users, cut at
//! every change of the disk; processes killed at every change and the power cut after others built on their work; long
//! random histories. After each crash other processes read, check, write and collect (`tests/src/scenario.rs`).

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use tests::durability_order::{self, Looked};
use tests::is_long;
use tests::model::Random;
use tests::scenario::{Acks, Scenario, Step, recover};
use tests::sim_disk::{Luck, Rules, SimDisk, Survey};

/// The steps of users.
const STEPS: [Step; 8] = [
    Step::Commit("web"),
    Step::Commit("db"),
    Step::Capture("vm"),
    Step::Forget("web"),
    Step::Collect,
    Step::Recompress,
    Step::Rebuild,
    Step::Pin("web"),
];

/// Tries all of `count` cases, on all cores; returns how many crash points there were in them.
pub(crate) fn try_all(what: &str, count: usize, case: impl Fn(usize) -> u64 + Sync) -> u64 {
    let start = Instant::now();
    let (next, points) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            points.fetch_add(case(number), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let points = points.into_inner();
    println!("{what}: {points} crash points in {count} cases, {:.1} s", start.elapsed().as_secs_f64());
    points
}

/// A store with a little of everything, all of it durable: every sequence begins with it.
pub(crate) fn begun() -> (SimDisk, Acks) {
    let mut scenario = Scenario::on(SimDisk::new(), Acks::default(), 0);
    for step in [
        Step::Commit("web"),
        Step::Capture("vm"),
        Step::Commit("web"),
        Step::Commit("old"),
        Step::Commit("old"),
    ] {
        scenario.step(step).unwrap();
    }
    scenario.step(Step::Forget("old")).unwrap();
    scenario.step(Step::CollectOnce).unwrap();
    scenario.reopen();
    (scenario.disk.settled(), scenario.acks.clone())
}

/// All sequences of these many steps, by number.
fn sequence(number: usize, len: usize) -> Vec<Step> {
    (0..len as u32).map(|place| STEPS[number / STEPS.len().pow(place) % STEPS.len()]).collect()
}

/// Does all but the last of the steps and returns where the last one begins.
fn live(scenario: &mut Scenario, steps: &[Step]) -> usize {
    let mut last = 0;
    for step in steps {
        last = scenario.disk.change_count();
        scenario.step(*step).unwrap();
    }
    last
}

/// The crashes that are tried after each change: every rule, at its worst and by luck.
fn crashes(seed: u64, throws: u64) -> Vec<(Rules, Luck)> {
    let worst = [Rules::Kill, Rules::Journal, Rules::Unordered].map(|rules| (rules, Luck::Nothing));
    let thrown = (0..throws).flat_map(|throw| {
        let luck = Luck::Seed(seed << 8 | throw);
        [(Rules::Journal, luck), (Rules::Unordered, luck)]
    });
    worst.into_iter().chain(thrown).collect()
}

/// Crashes after every change from `first` on, and recovers.
fn crash_everywhere(scenario: &Scenario, first: usize, throws: u64, seed: u64, context: &str) -> u64 {
    let mut survey = Survey::of(&scenario.disk);
    let mut tried = HashSet::new();
    for at in first..=survey.len() {
        survey.advance(at);
        let acks = scenario.acked_at(at);
        for (rules, luck) in crashes(seed << 16 | at as u64, throws) {
            let disk = survey.crash(rules, luck);
            if tried.insert((disk.fingerprint(), std::ptr::from_ref(acks))) {
                recover(&disk, acks, &format!("{context}: {rules:?}, {luck:?} after change {at}"));
            }
        }
    }
    tried.len() as u64
}

#[test]
fn every_sequence_of_steps_survives_a_crash_after_every_change() {
    let (disk, acks) = begun();
    let mut points = 0;
    for len in 1..=3 {
        let throws = match (len, is_long()) {
            (3, false) => 0,
            (3, true) | (_, false) => 2,
            (_, true) => 20,
        };
        points += try_all(&format!("sequences of {len}"), STEPS.len().pow(len), |number| {
            let steps = sequence(number, len as usize);
            let mut scenario = Scenario::on(disk.settled(), acks.clone(), 100);
            let first = live(&mut scenario, &steps);
            crash_everywhere(&scenario, first, throws, number as u64, &format!("{steps:?}"))
        });
    }
    assert!(points > 5_000, "only {points} crash points");
}

/// Processes die after any change, others go on with the part that they see, and then the power goes: what those others
/// acknowledged is there, though the dead never synced what it is built on.
#[test]
fn what_is_built_on_a_dead_process_s_work_survives_a_power_cut() {
    let (disk, acks) = begun();
    let points = try_all("kills, steps, power cuts", STEPS.len().pow(2), |number| {
        let steps = sequence(number, 2);
        let mut dying = Scenario::on(disk.settled(), acks.clone(), 100);
        live(&mut dying, &steps[..1]);
        let mut survey = Survey::of(&dying.disk);
        let mut points = 0;
        for at in 0..survey.len() {
            survey.advance(at);
            let context = format!("{:?} killed after change {at}, then {:?}", steps[0], steps[1]);
            let left = survey.crash(Rules::Kill, Luck::Nothing);
            let mut scenario = Scenario::on(left, dying.acked_at(at).clone(), 200);
            scenario.step(steps[1]).unwrap_or_else(|error| panic!("{context}: {error}"));
            let mut survey = Survey::of(&scenario.disk);
            survey.advance(survey.len());
            let luck = Luck::Seed((number << 16 | at) as u64);
            for (rules, luck) in
                [(Rules::Journal, Luck::Nothing), (Rules::Unordered, Luck::Nothing), (Rules::Unordered, luck)]
            {
                recover(
                    &survey.crash(rules, luck),
                    &scenario.acks,
                    &format!("{context}, then {rules:?}, {luck:?}"),
                );
                points += 1;
            }
        }
        points
    });
    assert!(points > 1_000, "only {points} crash points");
}

/// A long scenario of crashes, one after the other on the same disk.
fn random_life(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let (disk, acks) = (SimDisk::new(), Acks::default());
    let mut scenario = Scenario::on(disk, acks, 0);
    let mut log = Vec::new();
    let mut points = 0;
    for crash in 0..6 {
        let began = scenario.disk.change_count();
        for _ in 0..1 + random.below(6) {
            let step = match random.below(13) {
                0..=2 => Step::Commit(["web", "db"][random.below(2)]),
                3..=4 => Step::Capture("vm"),
                5 => Step::Forget("web"),
                6 => Step::Forget("vm"),
                7 => Step::Collect,
                8..=9 => Step::CollectOnce,
                10 => Step::Rebuild,
                11 => Step::Recompress,
                _ => Step::Pin("web"),
            };
            log.push(step);
            scenario.step(step).unwrap_or_else(|error| panic!("seed {seed}, {log:?}: {error}"));
            if random.once_in(3) {
                scenario.reopen();
            }
        }
        durability_order::check(&scenario.disk, false);
        let mut survey = Survey::of(&scenario.disk);
        let at = began + random.below(survey.len() + 1 - began);
        survey.advance(at);
        let rules = [Rules::Kill, Rules::Journal, Rules::Unordered][random.below(3)];
        let luck = if random.once_in(3) { Luck::Nothing } else { Luck::Seed(random.word()) };
        let context = format!("seed {seed}, crash {crash}, {log:?}: {rules:?}, {luck:?} after change {at}");
        let left = survey.crash(rules, luck);
        let acks = scenario.acked_at(at).clone();
        recover(&left.settled(), &acks, &context);
        scenario = Scenario::on(left, acks, 1000 * (crash + 1));
        points += 1;
    }
    points
}

/// A crash tests one order in which objects became durable: here every order is checked.
#[test]
fn nothing_becomes_durable_before_what_it_names() {
    let (disk, acks) = begun();
    let looked = Mutex::new(Looked::default());
    for len in 1..=3 {
        try_all(&format!("order of changes in sequences of {len}"), STEPS.len().pow(len), |number| {
            let mut scenario = Scenario::on(disk.settled(), acks.clone(), 100);
            live(&mut scenario, &sequence(number, len as usize));
            *looked.lock().unwrap() += durability_order::check(&scenario.disk, true);
            0
        });
    }
    let looked = looked.into_inner().unwrap();
    println!("{looked:?}: all in order");
    assert!(
        looked.runs > 300 && looked.snapshots > 300 && looked.refs > 300 && looked.deleted > 100,
        "{looked:?}"
    );
}

#[test]
fn random_lives_survive_crash_after_crash() {
    let count = if is_long() { 4_000 } else { 400 };
    try_all("random lives", count, |seed| random_life(seed as u64));
}

/// In these a store whose creation was cut short is read, and then the power goes.
#[test]
fn lives_that_found_something_once() {
    for seed in [3737, 5585] {
        random_life(seed);
    }
}
