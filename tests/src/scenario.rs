//! The scenario of a store on a simulated disk: the steps of its users, when each was acknowledged, and the state that
//! must be there after a crash or a failure.

use crate::model::{Item, Memory, Pages, Random, State, assert_clean, draft_of, state_of_store};
use crate::sim_disk::SimDisk;
use gc::{CollectOptions, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use store::{
    Kind, LocalState, LocalTier, PAGE, Pin, Result, SnapshotDraft, SnapshotId, Store, StoreConfig, Unwatched,
};

/// Where the store is on the disk.
pub const STORE: &str = "/store";
/// Local state. The collector's marks are not on a simulated disk; without a directory it runs without them.
const STATE: &str = "/dev/null/state";

/// A step of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Files to a ref.
    Commit(&'static str),
    /// Memory to a ref, over the image that its last snapshot has.
    Capture(&'static str),
    /// All but the newest snapshots of a ref are forgotten.
    Forget(&'static str),
    /// Three runs of the collector.
    Collect,
    /// One run of the collector.
    CollectOnce,
    /// Packs are recompressed.
    Recompress,
    /// The index is made again.
    Rebuild,
    /// A reader pins the newest snapshot of a ref, or releases its pin.
    Pin(&'static str),
}

/// The snapshots of a ref, oldest first; the id of one whose commit failed or did not end is unknown.
pub type History = Vec<(Option<SnapshotId>, Arc<State>)>;

/// The state that a store must have: the possible histories of each ref. There is one when every operation was
/// acknowledged; an unfinished or failed operation adds another. A missing ref has an empty history.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    /// Whether the store was made, or anything was put into it. A store of which only an unfinished creation was seen
    /// may be gone after a power cut.
    pub exists: bool,
    /// The possible histories of each ref.
    pub refs: BTreeMap<String, Vec<History>>,
}

/// A store and its users.
pub struct Scenario {
    /// The disk.
    pub disk: SimDisk,
    /// What was acknowledged so far.
    pub acks: Acks,
    /// The acknowledgements by the number of changes that the disk had seen.
    pub diary: Vec<(usize, Acks)>,
    store: Option<Store>,
    pin: Option<Pin>,
    version: u64,
}

/// A small store on a disk.
pub fn config(disk: &SimDisk) -> StoreConfig {
    let disk = Arc::new(disk.clone());
    let (tier, state) = (LocalTier::on(disk.clone(), STORE), LocalState::on(disk, STATE));
    let mut config = StoreConfig {
        cache_bytes: 1 << 20,
        disk_cache_bytes: 0,
        level: 1,
        ..StoreConfig::on(Arc::new(tier), state)
    };
    config.tiers[0].level = Some(2);
    config
}

/// Files that a version determines: some are new in each, some never change.
fn files(version: u64) -> State {
    let noise = |seed, len| Item::file(Random::new(seed).bytes(len));
    let linked = Item { link: Some(b"hard-1".to_vec()), ..noise(7, 30) };
    let files = [
        (b"".to_vec(), Item::directory()),
        (b"sub".to_vec(), Item::directory()),
        (b"sub/fixed".to_vec(), noise(1, 6000)),
        (b"sub/new".to_vec(), noise(version + 100, 4500)),
        (
            b"text".to_vec(),
            Item::file(format!("version {version}\n").repeat(version as usize % 3 * 200).into()),
        ),
        (b"hard-1".to_vec(), linked.clone()),
        (b"hard-2".to_vec(), linked),
    ];
    State { files: Some(files.into()), memory: None }
}

/// Memory that a version determines, mostly the same from one version to the next.
fn memory(version: u64) -> State {
    let page = |page: u64| {
        let seed = if page == version % 5 { version + 1000 } else { page };
        (page, Random::new(seed).bytes(PAGE))
    };
    let pages = (0..5).map(page).collect();
    let spaces = [(0, Pages { len_bytes: 8 * PAGE as u64, pages })].into();
    let blobs = [("state".to_owned(), Random::new(version).bytes(4200))].into();
    State { files: None, memory: Some(Memory { spaces, blobs }) }
}

impl Scenario {
    /// On this disk, which holds no store yet or the one that `acks` describes. Versions begin at `version`.
    pub fn on(disk: SimDisk, acks: Acks, version: u64) -> Self {
        let diary = vec![(0, acks.clone())];
        Self { disk, acks, diary, store: None, pin: None, version }
    }

    /// The acknowledgements when the disk had seen this many changes.
    pub fn acked_at(&self, changes: usize) -> &Acks {
        let after = self.diary.partition_point(|(at, _)| *at <= changes);
        &self.diary[after - 1].1
    }

    fn note(&mut self) {
        self.diary.push((self.disk.change_count(), self.acks.clone()));
    }

    /// The store, made if there is none.
    ///
    /// # Errors
    /// As the store.
    pub fn store(&mut self) -> Result<Store> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let (store, is_made) = open_or_init(&self.disk, &self.acks)?;
        self.acks.exists |= is_made;
        self.note();
        self.store = Some(store.clone());
        Ok(store)
    }

    /// The next command is another process.
    pub fn reopen(&mut self) {
        self.store = None;
    }

    /// Does one step.
    ///
    /// # Errors
    /// As the store.
    pub fn step(&mut self, step: Step) -> Result<()> {
        let store = self.store()?;
        match step {
            Step::Commit(name) => {
                self.version += 1;
                self.commit(&store, name, files(self.version))
            }
            Step::Capture(name) => {
                self.version += 1;
                self.commit(&store, name, memory(self.version))
            }
            Step::Forget(name) => self.forget(&store, name),
            Step::Collect => self.collect(&store, 3),
            Step::CollectOnce => self.collect(&store, 1),
            Step::Recompress => recompress(&store),
            Step::Rebuild => store::rebuild_index(&store, &Unwatched).map(|_| ()),
            Step::Pin(name) => self.pin(&store, name),
        }
    }

    /// Adds a possible history of a ref.
    fn begin(&mut self, name: &str, history: History) {
        self.acks.refs.entry(name.to_owned()).or_insert_with(|| vec![History::new()]).push(history);
        self.note();
    }

    /// Sets the only possible history of a ref.
    fn acknowledge(&mut self, name: &str, history: History) {
        self.acks.refs.insert(name.to_owned(), vec![history]);
        self.acks.exists = true;
        self.note();
    }

    fn commit(&mut self, store: &Store, name: &str, state: State) -> Result<()> {
        let mut history = self.acks.seen(store, name)?;
        let state = Arc::new(state);
        history.push((None, state.clone()));
        self.begin(name, history.clone());
        let mut writer = store.writer("a life")?;
        let draft = draft_of(&mut writer, name, &state)?;
        let committed = writer.commit(name, draft);
        if committed.is_err() {
            // A failed writer refuses to go on, even if the disk works again.
            assert!(writer.put_chunk(b"more").is_err());
            assert!(writer.commit(name, SnapshotDraft::default()).is_err());
        }
        let id = committed?;
        history.pop();
        history.push((Some(id), state));
        self.acknowledge(name, history);
        Ok(())
    }

    fn forget(&mut self, store: &Store, name: &str) -> Result<()> {
        let history = self.acks.seen(store, name)?;
        let Some(last) = history.last().cloned() else { return Ok(()) };
        self.begin(name, vec![last.clone()]);
        store.forget(name, |entry| Some(entry.snapshot) != last.0)?;
        self.acknowledge(name, vec![last]);
        Ok(())
    }

    /// Every run records its epoch, so the store is not empty after it.
    fn collect(&mut self, store: &Store, cycles: u32) -> Result<()> {
        gc::collect(store, &CollectOptions { dry_run: false, cycles }, &Unwatched)?;
        self.acks.exists = true;
        self.note();
        Ok(())
    }

    fn pin(&mut self, store: &Store, name: &str) -> Result<()> {
        if self.pin.take().is_some() {
            return Ok(());
        }
        if let Some((Some(id), state)) = self.acks.seen(store, name)?.last() {
            self.pin = Some(store.pin("a reader", &[*id])?);
            assert!(state_of_store(store, id)? == **state, "{name} reads as something else");
        }
        Ok(())
    }
}

impl Acks {
    /// The ref's history, which must be one of its possible histories.
    fn seen(&self, store: &Store, name: &str) -> Result<History> {
        let found = store.refs().get(name)?.map(|found| found.history).unwrap_or_default();
        let ids: Vec<SnapshotId> = found.iter().map(|entry| entry.snapshot).collect();
        let nothing = vec![History::new()];
        let allowed = self.refs.get(name).unwrap_or(&nothing);
        let fits = |history: &&History| {
            let mut pairs = history.iter().zip(&ids);
            // A snapshot of unknown id is identified by its content.
            let is_it = |state: &Arc<State>, id| state_of_store(store, id).is_ok_and(|read| read == **state);
            history.len() == ids.len()
                && pairs
                    .all(|((known, state), id)| known.map_or_else(|| is_it(state, id), |known| known == *id))
        };
        let Some(history) = allowed.iter().find(fits) else {
            let ids_of = |history: &History| history.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            let allowed: Vec<_> = allowed.iter().map(ids_of).collect();
            panic!("{name} has the history {ids:?}, and may have {allowed:?}");
        };
        Ok(history.iter().zip(ids).map(|((_, state), id)| (Some(id), state.clone())).collect())
    }
}

/// The store, and whether it was made here.
fn open_or_init(disk: &SimDisk, acks: &Acks) -> Result<(Store, bool)> {
    let config = config(disk);
    match Store::open(&config) {
        // Without an acknowledgement it is unknown whether it was made.
        Err(error) if error.kind() == Kind::NotFound && !acks.exists => Ok((Store::init(&config)?, true)),
        opened => Ok((opened?, false)),
    }
}

fn recompress(store: &Store) -> Result<()> {
    let pace = gc::Pace { rate: None, is_stopped: &|| false, progress: &Unwatched };
    gc::recompress(store, None, &pace).map(|_| ())
}

/// Asserts that every ref has a possible history, and every snapshot the bytes that were put into it.
fn assert_survived(store: &Store, acks: &Acks) -> Result<()> {
    let mut names: BTreeSet<String> = acks.refs.keys().cloned().collect();
    names.extend(store.refs().list()?.into_iter().map(|found| found.name));
    for name in names {
        for (id, state) in acks.seen(store, &name)? {
            let id = id.expect("what is seen has an id");
            assert!(state_of_store(store, &id)? == *state, "{name} {id} holds something else");
        }
    }
    Ok(())
}

/// Opens what is left, by new processes: everything acknowledged is there and a full check finds nothing. Then the same
/// after a new commit and a collection; no unreferenced object stays.
pub fn recover(disk: &SimDisk, acks: &Acks, context: &str) {
    let recovered = catch_unwind(AssertUnwindSafe(|| try_to_recover(disk, acks)));
    match recovered {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{context}: {error}"),
        Err(panic) => {
            eprintln!("{context}: see above");
            resume_unwind(panic)
        }
    }
}

fn try_to_recover(disk: &SimDisk, acks: &Acks) -> Result<()> {
    let mut scenario = Scenario::on(disk.clone(), acks.clone(), 1 << 20);
    let store = scenario.store()?;
    assert_survived(&store, acks)?;
    assert_clean(&store, "right after");
    drop(store);
    scenario.step(Step::Commit("after"))?;
    scenario.step(Step::Collect)?;
    let store = scenario.store()?;
    assert_survived(&store, &scenario.acks)?;
    assert_clean(&store, "written and collected since");
    assert_nothing_left_over(&store)
}

/// After three runs of the collector alone, only objects that refs need are left.
fn assert_nothing_left_over(store: &Store) -> Result<()> {
    let report = gc::collect(store, &CollectOptions { dry_run: true, cycles: 1 }, &Unwatched)?;
    let packs = report.packs.iter().filter(|pack| pack.verdict != Verdict::Keep);
    let packs: Vec<String> = packs.map(|pack| format!("{}: {}", pack.id, pack.reason)).collect();
    let records = report.snapshots.iter().filter(|record| record.verdict != Verdict::Keep);
    let records: Vec<String> = records.map(|record| format!("{}: {}", record.id, record.reason)).collect();
    let sessions = store.metadata_tier().list("sessions/")?;
    assert!(
        packs.is_empty() && records.is_empty() && sessions.is_empty(),
        "left over are packs {packs:?}, snapshots {records:?}, sessions {sessions:?}"
    );
    Ok(())
}
