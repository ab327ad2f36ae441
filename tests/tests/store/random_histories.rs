//! Random histories: the same operations on the store and on the oracle, compared after every step.

use crate::scratch::Scratch;
use gc::CollectOptions;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{
    BackupOptions, Image, LocalTier, MemoryTier, PAGE, SnapshotDraft, Store, StoreConfig, Tier, Unwatched,
};
use tests::model::{
    Histories, Memory, Pages, Random, State, assert_clean, assert_holds, files_of_host, put_memory,
};

const STEPS: usize = 45;
const NAMES: [&str; 3] = ["web", "shop/db", "vm.1"];

struct World {
    random: Random,
    config: StoreConfig,
    store: Store,
    model: Histories,
    source: PathBuf,
    scratch: Scratch,
    states_dropped: usize,
}

impl World {
    fn new(seed: u64, hot: Arc<dyn Tier>) -> Self {
        let scratch = Scratch::init(hot);
        let source = scratch.directory.path().join("source");
        fs::create_dir(&source).unwrap();
        let (config, store) = (scratch.config.clone(), scratch.open());
        let model = Histories::new();
        Self { random: Random::new(seed), config, store, model, source, scratch, states_dropped: 0 }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.random.below(NAMES.len())]
    }

    fn step(&mut self) -> String {
        match self.random.below(16) {
            0..=4 => self.back_up(),
            5..=8 => self.capture(),
            9..=10 => self.forget(),
            11 => self.reopen(),
            12 => self.drop_local_state(),
            13 => self.delete_index(),
            14 => self.rebuild_index(),
            _ => self.collect(),
        }
    }

    fn back_up(&mut self) -> String {
        for _ in 0..self.random.below(6) {
            change(&mut self.random, &self.source);
        }
        let name = self.name();
        let mut writer = self.store.writer("test").unwrap();
        let options = BackupOptions::default();
        let report = store::backup(&mut writer, &self.source, name, &options, &Unwatched).unwrap();
        assert_eq!(report.unreadable, Vec::<String>::new());
        let state = State { files: Some(files_of_host(&self.source)), memory: None };
        self.model.entry(name.to_owned()).or_default().push((report.snapshot, Arc::new(state)));
        format!("backup to {name}")
    }

    /// A new image, mostly of pages that some earlier image has.
    fn capture(&mut self) -> String {
        let name = self.name();
        let history = self.model.entry(name.to_owned()).or_default();
        let parent = history.last().and_then(|(id, state)| Some((*id, state.memory.clone()?)));
        let (parent, mut memory) = match parent {
            Some((id, memory)) => (Some(id), memory),
            None => (None, Memory::default()),
        };
        let id = self.random.below(3) as u64;
        let space = memory
            .spaces
            .entry(id)
            .or_insert_with(|| Pages { len_bytes: 40 * PAGE as u64, ..Pages::default() });
        for _ in 0..self.random.below(30) {
            let page = self.random.below(40) as u64;
            match self.random.below(4) {
                0 => space.pages.remove(&page),
                1 => space.pages.insert(page, vec![self.random.below(3) as u8 + 1; PAGE]),
                _ => space.pages.insert(page, self.random.bytes(PAGE)),
            };
        }
        let len = self.random.below(9000);
        memory.blobs.insert("state".to_owned(), self.random.bytes(len));
        let mut writer = self.store.writer("test").unwrap();
        let image: Option<Image> = parent.and_then(|id| {
            let image = self.store.snapshot(&id).unwrap().image?;
            Some(self.store.image(&image).unwrap())
        });
        let id = put_memory(&mut writer, &memory, image.as_ref()).unwrap();
        let draft = SnapshotDraft { image: Some(id), parent, ..SnapshotDraft::default() };
        let snapshot = writer.commit(name, draft).unwrap();
        let state = State { files: None, memory: Some(memory) };
        self.model.entry(name.to_owned()).or_default().push((snapshot, Arc::new(state)));
        format!("capture to {name}")
    }

    fn forget(&mut self) -> String {
        let name = self.name();
        let Some(history) = self.model.get_mut(name) else {
            let error = self.store.forget(name, |_| true).unwrap_err();
            assert_eq!(error.kind(), store::Kind::NotFound);
            return format!("forget of {name}, which is not there");
        };
        let keep = self.random.below(3);
        let drop: Vec<_> = history.iter().rev().skip(keep).map(|(id, _)| *id).collect();
        let left = self.store.forget(name, |entry| drop.contains(&entry.snapshot)).unwrap();
        history.retain(|(id, _)| !drop.contains(id));
        assert_eq!(left.history.len(), history.len());
        format!("forget {} of {name}", drop.len())
    }

    fn reopen(&mut self) -> String {
        self.store = Store::open(&self.config).unwrap();
        "reopen".to_owned()
    }

    fn drop_local_state(&mut self) -> String {
        self.states_dropped += 1;
        self.config.state =
            self.scratch.directory.path().join(format!("state-{}", self.states_dropped)).into();
        self.reopen();
        "loss of the local state".to_owned()
    }

    fn delete_index(&mut self) -> String {
        for run in self.store.metadata_tier().list("index/").unwrap() {
            self.store.metadata_tier().delete(&run.key).unwrap();
        }
        if self.random.once_in(2) {
            self.reopen();
        }
        "loss of the index".to_owned()
    }

    fn rebuild_index(&mut self) -> String {
        store::rebuild_index(&self.store, &Unwatched).unwrap();
        "index rebuild".to_owned()
    }

    fn collect(&mut self) -> String {
        let cycles = 1 + self.random.below(4) as u32;
        gc::collect(&self.store, &CollectOptions { dry_run: false, cycles }, &Unwatched).unwrap();
        format!("{cycles} cycles of the collector")
    }
}

/// One change of the source directory.
fn change(random: &mut Random, source: &Path) {
    let directory = match random.below(3) {
        0 => source.to_owned(),
        n => source.join(format!("dir-{n}")),
    };
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("name-{}", random.below(5)));
    match random.below(7) {
        0 if path.symlink_metadata().is_ok() => fs::remove_file(&path).unwrap(),
        1 if directory != source => fs::remove_dir_all(&directory).unwrap(),
        2 if path.symlink_metadata().is_err() => symlink(format!("to-{}", random.below(9)), &path).unwrap(),
        3 if path.is_file() => {
            let target = source.join(format!("hard-{}", random.below(3)));
            if target.symlink_metadata().is_err() {
                fs::hard_link(&path, target).unwrap();
            }
        }
        _ => {
            if path.is_symlink() {
                fs::remove_file(&path).unwrap();
            }
            let len = [0, 5, 4096, 4097, 20_000, 90_000, 300_000][random.below(7)];
            fs::write(&path, random.bytes(len)).unwrap();
        }
    }
}

fn run(seed: u64, hot: Arc<dyn Tier>) {
    let mut world = World::new(seed, hot);
    let mut log = Vec::new();
    for number in 0..STEPS {
        log.push(world.step());
        let context = format!("seed {seed}, step {number} of {log:?}");
        assert_holds(&world.store, &world.model, &context);
        assert_holds(&Store::open(&world.config).unwrap(), &world.model, &context);
    }
    store::rebuild_index(&world.store, &Unwatched).unwrap();
    assert_clean(&world.store, &format!("seed {seed} after {log:?}"));
}

#[test]
fn random_histories_in_memory_hold_what_the_oracle_says() {
    for seed in 0..12 {
        run(seed, Arc::new(MemoryTier::new()));
    }
}

#[test]
fn random_histories_in_a_directory_hold_what_the_oracle_says() {
    for seed in 100..103 {
        let directory = tempfile::tempdir().unwrap();
        run(seed, Arc::new(LocalTier::new(directory.path())));
    }
}
