//! What the fuzz targets do with bytes. Nothing may panic, hang, or take memory beyond what was given; whether bytes are
//! accepted or refused does not matter. Decoders that have an encoder beside them are also held to it where
//! `fuzzing` of their crate says so.
//!
//! Each function is one target of `fuzz_targets`; `src/bin/seeds.rs` writes what they start from.

mod seal;

use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use store::condemned::{Condemned, read_epoch};
use store::lost_frames::DamagedPack;
use store::domain::{DomainConfig, Keyring};
use store::index::Run;
use store::pack::{Frame, FrameHeader, directory_of, read_directory};
use store::keys::SESSIONS;
use store::session::{SessionPlace, alive};
use store::tier::BucketRecord;
use store::wire::{Record, seal as sealed};
use store::{
    ChunkId, Domain, DomainKind, KeySource, KeySources, MemoryTier, Object, PackId, Ref, SnapshotId, Store,
    StoreConfig, Tier, WriterId,
};
use tempfile::TempDir;

/// Directory of local state; on a memory file system where there is one.
static SCRATCH: LazyLock<TempDir> = LazyLock::new(|| {
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    scratch.expect("a scratch directory")
});

/// A tier that holds these bytes under a key.
fn holding(key: &str, bytes: &[u8]) -> Arc<MemoryTier> {
    let tier = MemoryTier::new();
    tier.put_if_absent(key, bytes).expect("the key is right");
    Arc::new(tier)
}

/// One small record; see `records` in `src/bin/seeds.rs` for the numbers.
pub fn records(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    match kind {
        0 => drop(store::fuzzing::superblock(body)),
        1 => drop(store::fuzzing::snapshot(body)),
        2 => drop(Ref::decode(&sealed(Record::Ref, body))),
        3 => drop(read_epoch(&*holding(store::keys::COLLECTOR_STATE, &sealed(Record::CollectorState, body)))),
        4 => {
            let key = format!("{}1", store::keys::CONDEMNED);
            drop(Condemned::read_all(&*holding(&key, &sealed(Record::Condemned, body))));
        }
        5 => drop(DamagedPack::decode(&sealed(Record::DamagedPack, body))),
        6 => drop(Domain::decode_plain(&sealed(Record::Domain, body))),
        7 => {
            let metadata_tier = holding("domains/acme", &sealed(Record::KeyedDomain, body));
            let keyring = Keyring::new(metadata_tier, SCRATCH.path(), DomainConfig::default());
            black_box(keyring.read_unseen("acme").is_ok());
        }
        8 => drop(BucketRecord::decode(&sealed(Record::Bucket, body))),
        9 => {
            let metadata_tier = holding(&format!("{SESSIONS}one"), &sealed(Record::Session, body));
            let place = SessionPlace { metadata_tier, state: SCRATCH.path().join("sessions").into(), host: None };
            black_box(alive(&place, false).is_ok());
        }
        _ => drop(store::wire::unseal(Record::Snapshot, body)),
    }
}

/// A store with an encrypted domain and a public one.
fn domain(name: &str) -> Store {
    let key = KeySource::Command(vec!["printf".to_owned(), "07".repeat(32)]);
    let tier = Arc::new(MemoryTier::new());
    let config = |name: Option<&str>| StoreConfig {
        domains: DomainConfig {
            name: name.map(str::to_owned),
            keys: KeySources { common: Some(key.clone()), ..KeySources::default() },
            ..DomainConfig::default()
        },
        ..StoreConfig::on(tier.clone(), SCRATCH.path().join(name.unwrap_or("plain")))
    };
    let kind = if name == "public" { DomainKind::Public } else { DomainKind::Encrypted };
    let plain = Store::init(&config(None)).expect("an empty tier takes a store");
    plain.domains().create(name, kind).expect("the name is free");
    Store::open(&config(Some(name))).expect("its key is at hand")
}

/// The first byte says of which domain and which record; the id of the domain and the checksum are made right.
pub fn sealed_records(bytes: &[u8]) {
    static DOMAINS: LazyLock<[Store; 2]> = LazyLock::new(|| [domain("acme"), domain("public")]);
    let Some((kind, body)) = bytes.split_first() else { return };
    let domain = DOMAINS[usize::from(kind & 1)].domain();
    let body = [domain.id().as_bytes().as_slice(), body].concat();
    if kind & 2 == 0 {
        let bytes = sealed(Record::SignedRef, &body);
        black_box(domain.decode_ref("refs/x", &bytes).is_ok());
    } else {
        let bytes = sealed(Record::SealedSnapshot, &body);
        let id = SnapshotId::from_bytes(seal::hash(&bytes));
        black_box(domain.decode_snapshot(&id, &bytes).is_ok());
    }
}

/// A frame of a pack.
pub fn frame(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    seal::frame(&mut bytes);
    let plain = Domain::plain([0; 32]);
    black_box(FrameHeader::decode(&bytes).is_ok());
    black_box(Frame::decode(&bytes, &[&plain]).is_ok());
    black_box(Frame::verify(&bytes, &[&plain]).is_ok());
}

/// A pack: both ways of reading a directory agree, and an index can be made of it.
pub fn pack(bytes: &[u8]) {
    let id = PackId { writer: WriterId::from_bytes([0; 8]), epoch: 0, sequence: 0 };
    let mut bytes = bytes.to_vec();
    seal::trailer(&mut bytes);
    let by_tail = read_directory(&*holding(&id.key(), &bytes), id);
    let at_hand = directory_of(id, &bytes);
    assert_eq!(by_tail.is_ok(), at_hand.is_ok());
    if let Ok(directory) = by_tail {
        black_box(store::index::encode(&[directory]).is_ok());
    }
}

/// A run of the index.
pub fn index_run(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let record = if kind & 1 == 0 { Record::BucketRun } else { Record::IndexRun };
    let Ok(run) = Run::open("run", Object::Owned(sealed(record, body))) else { return };
    for probe in [[0; 32], [0xff; 32], seal::hash(bytes)] {
        run.find(&ChunkId::from_bytes(probe)).count();
    }
    black_box(run.verify().is_ok());
    black_box(store::index::merge(&[&run, &run], |_| true, Path::new(SCRATCH.path())).is_ok());
}

/// A record of a tree.
pub fn tree(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => drop(store::fuzzing::directory(bytes)),
        1 => drop(store::fuzzing::tree_root(bytes)),
        _ => drop(store::fuzzing::link_table(bytes)),
    }
}

/// The page table of a memory image.
pub fn image_table(bytes: &[u8]) {
    drop(store::fuzzing::image_table(bytes));
}

/// Changes of an upper.
pub fn changes(bytes: &[u8]) {
    drop(snapfs::fuzzing::changes(bytes));
}

/// A journal of an upper.
pub fn journal(bytes: &[u8]) {
    drop(snapfs::fuzzing::journal(bytes));
}

/// A request to a mount.
pub fn control(bytes: &[u8]) {
    drop(snapfs::fuzzing::control_request(bytes));
}

/// An access control list.
pub fn acl(bytes: &[u8]) {
    snapfs::fuzzing::acl(bytes);
}

/// A handshake of Firecracker.
pub fn handshake(bytes: &[u8]) {
    drop(lazyload::fuzzing::handshake(bytes));
}

/// An image file of CRIU.
pub fn criu_images(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => drop(lazyload::fuzzing::page_map(bytes)),
        1 => drop(lazyload::fuzzing::mappings(bytes)),
        _ => drop(lazyload::fuzzing::inventory(bytes)),
    }
}

/// The lazy-pages socket.
pub fn lazy_pages(bytes: &[u8]) {
    drop(lazyload::fuzzing::announcements(bytes));
}

/// The record of a wake.
pub fn wake_log(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(lazyload::fuzzing::wake_log(text));
    }
}

/// Messages to a supervisor.
pub fn supervisor(bytes: &[u8]) {
    drop(lazyload::fuzzing::supervisor(bytes));
}
