//! The servers' memory: made by `hibernate.py`, read through a store, so that the measured pages are those of a
//! capture.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lazyload::criu;
use store::{Image, PAGE, SnapshotDraft, Store, StoreConfig, Unwatched};

use super::{by_runtime, kib, percent, table};
use crate::measure::Result;

const HIBERNATE: &str = include_str!("hibernate.py");
/// How often each server sleeps, unless `TORPOR_TUNE_SLEEPS` says otherwise.
const SLEEPS: usize = 6;

/// Address space and page number.
pub(super) type Key = (u64, u64);

/// The memory of a process when it went to sleep, without zero pages.
pub(super) struct Memory {
    /// Ascending.
    pub keys: Vec<Key>,
    bytes: Vec<u8>,
    /// Zero pages in the dump.
    pub zero: usize,
}

/// One server and all its sleeps.
pub(super) struct Server {
    pub name: String,
    pub port: u16,
    pub sleeps: Vec<Memory>,
    /// The last sleep as it was captured.
    pub image: Image,
    /// Pages touched until the first reply and until the 30th, after the last sleep; filled by `trace`.
    pub touched: [Vec<Key>; 2],
}

impl Memory {
    /// Pages of one space, from address 0 on.
    pub(super) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self { keys: (0..(bytes.len() / PAGE) as u64).map(|page| (0, page)).collect(), bytes, zero: 0 }
    }

    /// The bytes of the page of this index.
    pub(super) fn page(&self, index: usize) -> &[u8] {
        &self.bytes[index * PAGE..][..PAGE]
    }

    /// The index of a page.
    pub(super) fn find(&self, key: Key) -> Option<usize> {
        self.keys.binary_search(&key).ok()
    }

    /// The bytes of these pages, one after the other.
    pub(super) fn gather(&self, indices: &[usize]) -> Vec<u8> {
        indices.iter().flat_map(|index| self.page(*index)).copied().collect()
    }

    /// The pages that are not equal to the parent's at the same place.
    pub(super) fn new_since(&self, parent: &Memory) -> Vec<usize> {
        let is_same = |index: &usize| {
            parent.find(self.keys[*index]).is_some_and(|found| parent.page(found) == self.page(*index))
        };
        (0..self.keys.len()).filter(|index| !is_same(index)).collect()
    }

    /// All pages.
    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.keys.len()).collect()
    }
}

impl Server {
    /// Its runtime and framework.
    pub(super) fn runtime(&self) -> &str {
        self.name.rsplit_once('-').map_or(&self.name, |(runtime, _)| runtime)
    }

    /// Each sleep with the one before.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Memory, &Memory)> {
        self.sleeps.windows(2).map(|pair| (&pair[0], &pair[1]))
    }
}

/// Makes the missing data and reads all of it.
pub(super) fn prepare(data: &Path, packages: &Path, scratch: &Path) -> Result<Vec<Server>> {
    let count = match std::env::var("TORPOR_TUNE_SLEEPS") {
        Ok(count) => count.parse()?,
        Err(_) => SLEEPS,
    };
    let mut hibernate = Command::new("python3");
    hibernate.args(["-c", HIBERNATE]).arg(data).arg(count.to_string()).arg(packages);
    let made = hibernate.status()?;
    if !made.success() {
        return Err("the servers could not be put to sleep".into());
    }
    let store = Store::init(&StoreConfig { level: 1, ..StoreConfig::directory(&scratch.join("store")) })?;
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(data)? {
        names.push(entry?.path());
    }
    names.sort();
    let mut servers = Vec::new();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let port = fs::read_to_string(path.join("port"))?.trim().parse()?;
        let (mut sleeps, mut last) = (Vec::new(), None);
        for sleep in 0..count {
            let (memory, image) = read(&store, &path.join(sleep.to_string()))?;
            sleeps.push(memory);
            last = Some(image);
        }
        let image = last.ok_or("a server that never slept")?;
        servers.push(Server { name, port, sleeps, image, touched: [Vec::new(), Vec::new()] });
    }
    Ok(servers)
}

fn read(store: &Store, images: &Path) -> Result<(Memory, Image)> {
    let mut writer = store.writer("tune")?;
    let captured = criu::capture(&mut writer, images, None, &Unwatched)?;
    let draft = SnapshotDraft { image: Some(captured.image), ..SnapshotDraft::default() };
    writer.commit("tune", draft)?;
    drop(writer);
    let image = store.image(&captured.image)?;
    let (mut keys, mut bytes) = (Vec::new(), Vec::new());
    for (number, space) in image.spaces().iter().enumerate() {
        for run in image.runs(number) {
            let group = image.group(run.group)?;
            let start = run.first_slot as usize * PAGE;
            bytes.extend_from_slice(&group[start..][..run.page_count as usize * PAGE]);
            keys.extend((run.first_page..run.end_page()).map(|page| (space.id, page)));
        }
    }
    Ok((Memory { keys, bytes, zero: captured.stats.zero as usize }, image))
}

/// The servers that are there.
pub(super) fn describe(servers: &[Server]) {
    let mut rows = Vec::new();
    for (runtime, of_it) in by_runtime(servers) {
        let sleeps: usize = of_it.iter().map(|server| server.sleeps.len()).sum();
        let first: usize = of_it.iter().map(|server| server.sleeps[0].keys.len()).sum();
        let zero: usize = of_it.iter().map(|server| server.sleeps[0].zero).sum();
        let pairs = || of_it.iter().flat_map(|server| server.pairs());
        let new: usize = pairs().map(|(parent, child)| child.new_since(parent).len()).sum();
        let all: usize = pairs().map(|(_, child)| child.keys.len()).sum();
        rows.push(vec![
            runtime.to_owned(),
            sleeps.to_string(),
            kib(first * PAGE / of_it.len()),
            percent(zero, zero + first),
            percent(all - new, all),
            kib(new * PAGE / pairs().count()),
        ]);
    }
    table(
        "### Data\n\nMeans of one sleep.",
        &[
            "servers",
            "sleeps",
            "memory, KiB",
            "zero pages in the dump",
            "equal to the parent",
            "new in a later sleep, KiB",
        ],
        &rows,
    );
}
