//! Every crash point of a scenario: for each mutating operation the power goes before it or after it, or it fails once.
//! Then, with the old local state and with none, on the tier that survived: nothing acknowledged is lost, nothing else
//! is named, a full check finds nothing, and the store takes new writes.

use crate::scratch::Scratch;
use gc::CollectOptions;
use std::path::Path;
use std::sync::Arc;
use store::{MemoryTier, Result, SnapshotDraft, SnapshotId, Store, StoreConfig, Unwatched};
use tests::fault::{Fault, FaultTier};
use tests::model::{Histories, State, assert_clean, draft_of, sample_files, sample_memory, state_of_store};

const SEED: u64 = 42;

/// The acknowledged state, and the state after the step under way.
#[derive(Default)]
struct Acks {
    exists: bool,
    done: Histories,
    /// Ref and state of the commit that was under way, its id unknown when it failed.
    committing: Option<(&'static str, Arc<State>)>,
    /// Ref of the forget that was under way, and how many of its newest would stay.
    forgetting: Option<(&'static str, usize)>,
}

impl Acks {
    fn commit(
        &mut self,
        store: &Store,
        name: &'static str,
        version: u64,
        state: State,
    ) -> Result<SnapshotId> {
        let state = Arc::new(state);
        self.committing = Some((name, state.clone()));
        let mut writer = store.writer("crash test")?;
        let committed = write(&mut writer, name, version, &state);
        if committed.is_err() {
            // A failed writer refuses to go on, even if the tier works again.
            assert!(writer.put_chunk(b"more").is_err());
            assert!(writer.commit(name, SnapshotDraft::default()).is_err());
        }
        let id = committed?;
        self.done.entry(name.to_owned()).or_default().push((id, state));
        self.committing = None;
        Ok(id)
    }

    fn forget(&mut self, store: &Store, name: &'static str, keep: usize) -> Result<()> {
        self.forgetting = Some((name, keep));
        let history = self.done.get_mut(name).expect("it was committed");
        let drop: Vec<SnapshotId> = history.iter().rev().skip(keep).map(|(id, _)| *id).collect();
        store.forget(name, |entry| drop.contains(&entry.snapshot))?;
        history.retain(|(id, _)| !drop.contains(id));
        self.forgetting = None;
        Ok(())
    }
}

fn write(writer: &mut store::Writer, name: &str, version: u64, state: &State) -> Result<SnapshotId> {
    let draft = draft_of(writer, name, state)?;
    let labels = [("version".to_owned(), version.to_string())].into();
    writer.commit(name, SnapshotDraft { labels, ..draft })
}

fn with_files(version: u64) -> State {
    State { files: Some(sample_files(SEED, version)), memory: None }
}

fn with_memory(version: u64) -> State {
    State { files: None, memory: Some(sample_memory(SEED, version)) }
}

/// Init, commits, captures, forgets, collections and an index rebuild, until the first failure.
fn live(config: &StoreConfig, acks: &mut Acks) -> Result<()> {
    let store = Store::init(config)?;
    acks.exists = true;
    acks.commit(&store, "web", 0, with_files(0))?;
    acks.commit(&store, "web", 1, with_files(1))?;
    acks.commit(&store, "vm", 0, with_memory(0))?;
    acks.commit(&store, "vm", 1, with_memory(1))?;
    acks.forget(&store, "web", 1)?;
    collect(&store, 1)?;
    let both = State { files: Some(sample_files(SEED, 2)), memory: Some(sample_memory(SEED, 2)) };
    acks.commit(&store, "app", 2, both)?;
    collect(&store, 3)?;
    acks.forget(&store, "vm", 1)?;
    // Forgotten chunks are stored again while they are condemned.
    collect(&store, 1)?;
    acks.commit(&store, "web", 0, with_files(0))?;
    store::rebuild_index(&store, &Unwatched)?;
    collect(&store, 3)?;
    for version in 3..6 {
        let id = acks.commit(&store, "web", version, with_files(version))?;
        let pin = store.pin("a reader", &[id])?;
        acks.commit(&store, "vm", version, with_memory(version))?;
        acks.forget(&store, "web", 2)?;
        drop(pin);
        collect(&store, 1)?;
    }
    Ok(())
}

fn collect(store: &Store, cycles: u32) -> Result<()> {
    gc::collect(store, &CollectOptions { dry_run: false, cycles }, &Unwatched).map(|_| ())
}

/// Everything acknowledged is there, and nothing that was never written.
fn assert_survived(store: &Store, acks: &Acks, context: &str) {
    for found in store.refs().list().unwrap_or_else(|error| panic!("{context}: {error}")) {
        let acked = acks.done.get(&found.name).cloned().unwrap_or_default();
        let mut expected: Vec<Arc<State>> = acked.iter().map(|(_, state)| state.clone()).collect();
        let ids: Vec<SnapshotId> = found.history.iter().map(|entry| entry.snapshot).collect();
        match (&acks.committing, &acks.forgetting) {
            (Some((name, state)), _) if *name == found.name && ids.len() == acked.len() + 1 => {
                expected.push(state.clone());
            }
            (_, Some((name, keep))) if *name == found.name && ids.len() == *keep => {
                expected.drain(..expected.len() - keep);
            }
            _ => {
                let acked: Vec<SnapshotId> = acked.iter().map(|(id, _)| *id).collect();
                assert_eq!(ids, acked, "{context}: history of {}", found.name);
            }
        }
        assert_eq!(ids.len(), expected.len(), "{context}: history of {}", found.name);
        for (id, expected) in ids.iter().zip(&expected) {
            let state = state_of_store(store, id).unwrap_or_else(|error| panic!("{context}: {id}: {error}"));
            assert!(state == **expected, "{context}: {} {id} holds something else", found.name);
        }
    }
    for name in acks.done.keys() {
        assert!(store.refs().get(name).unwrap().is_some(), "{context}: ref {name} is gone");
    }
}

/// Reopens the surviving tier with this local state.
fn recover(survivor: &MemoryTier, state: &Path, acks: &Acks, context: &str) {
    let config = StoreConfig {
        cache_bytes: 4 << 20,
        level: 1,
        ..StoreConfig::on(Arc::new(survivor.fork()), state.to_owned())
    };
    let store = match Store::open(&config) {
        Ok(store) => store,
        Err(error) => {
            assert!(!acks.exists, "{context}: the store does not open: {error}");
            Store::init(&config).unwrap_or_else(|error| panic!("{context}: {error}"))
        }
    };
    assert_survived(&store, acks, context);
    assert_clean(&store, context);
    let mut again = Acks::default();
    again.commit(&store, "after", 9, with_files(9)).unwrap_or_else(|error| panic!("{context}: {error}"));
    collect(&store, 3).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_survived(&store, &Acks { done: merged(&acks.done, &again.done), ..copy(acks) }, context);
    assert_clean(&store, context);
}

fn merged(one: &Histories, other: &Histories) -> Histories {
    one.iter().chain(other).map(|(name, history)| (name.clone(), history.clone())).collect()
}

fn copy(acks: &Acks) -> Acks {
    Acks { committing: acks.committing.clone(), forgetting: acks.forgetting, ..Acks::default() }
}

/// Runs the scenario with one fault and recovers; returns whether the fault was met.
fn crash_at(operation: u64, fault: Fault) -> bool {
    let memory = MemoryTier::new();
    let tier = FaultTier::new(Arc::new(memory.clone()), operation, fault);
    let scratch = Scratch::over(tier.clone());
    let mut acks = Acks::default();
    let lived = live(&scratch.config, &mut acks);
    let context = format!("{fault:?} at operation {operation}: {:?}", lived.err());
    for (state, which) in [("state", "old"), ("fresh", "no")] {
        let state = scratch.directory.path().join(state);
        recover(&memory, &state, &acks, &format!("{context}, {which} local state"));
    }
    tier.met()
}

fn every_point_of(fault: Fault) {
    let mut points = 0;
    while crash_at(points, fault) {
        points += 1;
    }
    assert!(points > 100, "the scenario has only {points} crash points");
    println!("{fault:?}: {points} crash points, each recovered twice");
}

#[test]
fn power_off_before_any_operation_loses_nothing_acknowledged() {
    every_point_of(Fault::PowerOffBefore);
}

#[test]
fn power_off_after_any_operation_loses_nothing_acknowledged() {
    every_point_of(Fault::PowerOffAfter);
}

#[test]
fn one_failed_operation_stops_the_writer_and_loses_nothing() {
    every_point_of(Fault::FailOnce);
}

#[test]
fn one_operation_reported_failed_but_applied_stops_the_writer_and_loses_nothing() {
    every_point_of(Fault::FailOnceApplied);
}

#[test]
fn the_scenario_ends_well_without_a_fault() {
    let memory = MemoryTier::new();
    let scratch = Scratch::over(Arc::new(memory));
    let mut acks = Acks::default();
    live(&scratch.config, &mut acks).unwrap();
    let store = scratch.open();
    tests::model::assert_holds(&store, &acks.done, "no fault");
    assert_clean(&store, "no fault");
    // Forgotten and collected long ago: only what refs name is left.
    collect(&store, 3).unwrap();
    let named: usize = acks.done.values().map(Vec::len).sum();
    assert_eq!(store.snapshot_ids().unwrap().len(), named);
    assert!(store.metadata_tier().list("sessions/").unwrap().is_empty());
}
