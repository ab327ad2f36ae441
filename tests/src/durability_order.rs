//! The order in which a store's objects become durable, checked after every change of a simulated disk: an object is
//! named only after everything that it names would survive any crash, and a pack is deleted only when nothing that
//! would survive names it.

use crate::scenario::STORE;
use crate::sim_disk::{Change, Durable, Inode, Seen, SimDisk, Survey};
use std::collections::HashMap;
use store::index::Run;
use store::{Object, PackId, SnapshotId};

/// The objects that a check covered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    /// Index runs whose packs were durable before.
    pub runs: u64,
    /// Snapshot records that came after packs and index runs.
    pub snapshots: u64,
    /// Refs that came after the records of all their snapshots.
    pub refs: u64,
    /// Packs deleted.
    pub deleted: u64,
}

impl std::ops::AddAssign for Looked {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.snapshots += other.snapshots;
        self.refs += other.refs;
        self.deleted += other.deleted;
    }
}

/// The store's objects as seen at one moment.
struct Moment<'a> {
    durable: &'a Durable,
    seen: HashMap<String, Seen>,
}

impl Moment<'_> {
    fn survives(&self, key: &str) -> bool {
        self.seen.get(key).is_some_and(|seen| seen.survives)
    }

    /// Objects below a prefix that a crash may take.
    fn fragile(&self, prefix: &str) -> Vec<&String> {
        let below = self.seen.iter().filter(|(key, seen)| key.starts_with(prefix) && !seen.survives);
        below.map(|(key, _)| key).collect()
    }

    fn packs_of(&self, key: &str, inode: Inode) -> Vec<PackId> {
        let bytes = self.durable.bytes(inode).live.to_vec();
        Run::open(key, Object::Owned(bytes)).map_or_else(|_| Vec::new(), |run| run.packs().collect())
    }
}

/// Checks every change that a disk saw. `alone`: no process died on the way, so a commit finds everything seen before
/// it durable.
///
/// # Panics
/// Where the order is broken.
pub fn check(disk: &SimDisk, alone: bool) -> Looked {
    let mut survey = Survey::of(disk);
    let mut looked = Looked::default();
    for number in 0..survey.len() {
        survey.advance(number);
        let Some(Change::Named(namings)) = survey.next().cloned() else { continue };
        let all = survey.durable().seen();
        let paths: HashMap<Inode, &str> = all.iter().map(|seen| (seen.inode, &*seen.path)).collect();
        let key_of = |path: &str| Some(path.strip_prefix(STORE)?.strip_prefix('/')?.to_owned());
        let seen = all.iter().filter_map(|seen| Some((key_of(&seen.path)?, seen.clone()))).collect();
        let moment = Moment { durable: survey.durable(), seen };
        for (directory, name, target) in namings {
            let Some(key) = paths.get(&directory).and_then(|path| key_of(&format!("{path}/{name}"))) else {
                continue;
            };
            match target {
                Some(inode) => named(&moment, &key, inode, alone, &mut looked),
                None if key.starts_with("packs/") => deleted(&moment, &key, &mut looked),
                None => {}
            }
        }
    }
    looked
}

fn named(moment: &Moment<'_>, key: &str, inode: Inode, alone: bool, looked: &mut Looked) {
    if moment.durable.is_directory(inode) {
        return;
    }
    assert!(moment.durable.bytes(inode).is_durable(), "{key} is named before its bytes are durable");
    let fragile = |prefixes: &[&str]| {
        let fragile: Vec<_> = prefixes.iter().flat_map(|prefix| moment.fragile(prefix)).collect();
        assert!(fragile.is_empty() || !alone, "{key} is named before these are durable: {fragile:?}");
    };
    if key.starts_with("index/") {
        for pack in moment.packs_of(key, inode) {
            assert!(moment.survives(&pack.key()), "{key} names {pack} before it is durable");
        }
        looked.runs += 1;
    } else if key.starts_with("snapshots/") {
        fragile(&["packs/", "index/"]);
        looked.snapshots += 1;
    } else if key.starts_with("refs/") {
        fragile(&["packs/", "index/", "snapshots/"]);
        for snapshot in snapshots_of(moment, inode) {
            let record = format!("snapshots/default/{snapshot}");
            assert!(moment.survives(&record), "{key} names {record} before it is durable");
        }
        looked.refs += 1;
    }
}

fn snapshots_of(moment: &Moment<'_>, inode: Inode) -> Vec<SnapshotId> {
    let found = store::Ref::decode(&moment.durable.bytes(inode).live).expect("a ref is written completely");
    found.history.iter().map(|entry| entry.snapshot).collect()
}

fn deleted(moment: &Moment<'_>, key: &str, looked: &mut Looked) {
    for (run, seen) in moment.seen.iter().filter(|(run, _)| run.starts_with("index/")) {
        let named = moment.packs_of(run, seen.inode).iter().any(|pack| pack.key() == key);
        assert!(!named, "{key} is deleted while {run} names it");
    }
    let fragile = moment.fragile("refs/");
    assert!(fragile.is_empty(), "{key} is deleted before the refs that decide so are durable: {fragile:?}");
    looked.deleted += 1;
}
