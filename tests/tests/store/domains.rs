//! Domains: nothing of one opens in another, a domain may depend on the public one and on no other, keys rotate under
//! readers and writers, and destroyed data is gone. The plain domain goes on as it was.

use crate::scratch::overwrite;
use gc::CollectOptions;
use std::collections::BTreeSet;
use store::pack::{Frame, FrameHeader, PackDirectory, read_directory};
use store::{
    CheckOptions, CheckReport, Domain, KeySource, Kind, PackId, Rotation, SnapshotDraft, SnapshotId, Store,
    Tier, Unwatched, Writer,
};
use tests::model::{
    Random, assert_clean, files_of_store, memory_of_store, put_files, put_memory, sample_files, sample_memory,
};
use tests::tenants::{Tenants, write_key};

const DOMAINS: [&str; 4] = ["default", "acme", "other", "public"];

/// Commits the sample files and memory of a seed to `web` and returns the number of new bytes.
fn commit(store: &Store, seed: u64) -> (SnapshotId, u64) {
    let mut writer = store.writer("test").unwrap();
    let id = commit_with(&mut writer, seed);
    (id, writer.stats().new_bytes)
}

fn commit_with(writer: &mut Writer, seed: u64) -> SnapshotId {
    let tree = Some(put_files(writer, &sample_files(seed, 0)).unwrap());
    let image = Some(put_memory(writer, &sample_memory(seed, 0), None).unwrap());
    let labels = [("note".to_owned(), format!("seed {seed}"))].into();
    writer.commit("web", SnapshotDraft { tree, image, labels, ..SnapshotDraft::default() }).unwrap()
}

fn assert_sample(store: &Store, id: &SnapshotId, seed: u64) {
    let snapshot = store.snapshot(id).unwrap();
    assert_eq!(snapshot.labels["note"], format!("seed {seed}"));
    assert!(files_of_store(store, id).unwrap() == sample_files(seed, 0));
    assert!(memory_of_store(store, &snapshot.image.unwrap()).unwrap() == sample_memory(seed, 0));
}

fn check(store: &Store) -> CheckReport {
    store::check(store, CheckOptions { read_data: true }, &Unwatched).unwrap()
}

fn collect(store: &Store) -> store::Result<gc::CollectReport> {
    gc::collect(store, &CollectOptions { dry_run: false, cycles: 4 }, &Unwatched)
}

/// Every frame of every pack, stored.
fn frames(store: &Store) -> Vec<(PackId, Vec<u8>)> {
    let mut frames = Vec::new();
    for (pack, _) in store.packs().unwrap() {
        let directory: PackDirectory = read_directory(store.metadata_tier(), pack).unwrap();
        for extent in directory.frames {
            let bytes =
                store.metadata_tier().get_range(&pack.key(), extent.offset, extent.len_bytes.into()).unwrap();
            frames.push((pack, bytes));
        }
    }
    frames
}

/// The header's checksum made right again.
fn reguard(frame: &mut [u8]) {
    let slots = u32::from_le_bytes(frame[16..20].try_into().unwrap()) as usize * 36;
    let guard = store::wire::checksum(&[&frame[..80], &frame[88..88 + slots]].concat());
    frame[80..88].copy_from_slice(&guard.to_le_bytes());
}

#[test]
fn every_domain_reads_back_what_it_holds_and_no_more() {
    let tenants = Tenants::new();
    let ids: Vec<SnapshotId> =
        (0..).zip(DOMAINS).map(|(seed, name)| commit(&tenants.open(name), seed).0).collect();
    for (seed, name) in (0..).zip(DOMAINS) {
        let store = tenants.open(name);
        assert_sample(&store, &ids[seed as usize], seed);
        assert_clean(&store, name);
        assert_eq!(store.refs().list().unwrap().len(), 1);
        assert_eq!(store.resolve("web").unwrap(), ids[seed as usize]);
        for (foreign, _) in ids.iter().zip(DOMAINS).filter(|(_, other)| *other != name) {
            assert_eq!(store.snapshot(foreign).unwrap_err().kind(), Kind::NotFound);
            assert!(store.resolve(&foreign.to_string()).is_err());
        }
    }
    let whole = check(&tenants.open("default"));
    assert!(whole.problems.is_empty(), "{:?}", whole.problems);
    assert_eq!((whole.refs, whole.snapshots, whole.locked_frames), (4, 4, 0));
    collect(&tenants.open("acme")).unwrap();
    for (seed, name) in (0..).zip(DOMAINS) {
        assert_sample(&tenants.open(name), &ids[seed as usize], seed);
    }
}

/// With every key in one process: a frame belongs to its domain, whichever domain reads it, whatever its header says.
#[test]
fn a_frame_of_one_domain_never_opens_in_another() {
    let tenants = Tenants::new();
    for (seed, name) in (0..).zip(DOMAINS) {
        commit(&tenants.open(name), seed);
    }
    let store = tenants.open("default");
    let stores = DOMAINS.map(|name| store.in_domain(name).unwrap());
    let domains: Vec<&Domain> = stores.iter().map(Store::domain).collect();
    let (mut opened, mut refused, mut forged) = (0, 0, 0);
    for (_, frame) in frames(&store) {
        let header = FrameHeader::decode(&frame).unwrap();
        let owner = Frame::decode(&frame, &domains).unwrap().domain;
        for (reader, domain) in stores.iter().zip(&domains) {
            let may = domain.id() == owner || owner == stores[3].domain().id();
            assert_eq!(reader.decode_frame(&frame).is_ok(), may, "{}", domain.name());
            for (id, _) in &header.slots {
                assert_eq!(reader.read_chunk(id).is_ok(), may, "{}", domain.name());
            }
            opened += u32::from(may);
            refused += u32::from(!may);
            if domain.id() == owner {
                continue;
            }
            let mut claimed = frame.clone();
            claimed[28..32].copy_from_slice(&domain.id().tag().to_le_bytes());
            reguard(&mut claimed);
            assert!(Frame::decode(&claimed, &domains).is_err());
            forged += 1;
        }
        if let Some(epoch) = header.key_epoch {
            let mut other = frame.clone();
            other[12..16].copy_from_slice(&(epoch + 1).to_le_bytes());
            reguard(&mut other);
            assert!(Frame::decode(&other, &domains).is_err(), "another epoch");
            assert!(header.slots.iter().all(|(_, range)| range.is_empty()) && header.plain_len == 0);
        }
    }
    assert!(opened > 20 && refused > 20 && forged > 20);
    println!(
        "frames: {opened} opened by their own, {refused} refused to others, {forged} forged ones refused"
    );
}

#[test]
fn tenants_depend_on_the_public_domain_and_on_nobody_else() {
    let tenants = Tenants::new();
    let (_, first) = commit(&tenants.open("public"), 7);
    assert!(first > 100_000);
    let (in_acme, new) = commit(&tenants.open("acme"), 7);
    assert_eq!(new, 0, "all of it is public");
    let (_, in_default) = commit(&tenants.open("default"), 7);
    assert_eq!(in_default, 0);
    // A tenant's own chunks are not found by others.
    let (_, own) = commit(&tenants.open("acme"), 8);
    let (_, others) = commit(&tenants.open("other"), 8);
    assert_eq!((own, others), (commit(&tenants.open("default"), 8).1, own));
    assert_eq!(commit(&tenants.open("acme"), 8).1, 0, "its own is found");
    let (_, public) = commit(&tenants.open("public"), 8);
    assert_eq!(public, own, "the public domain depends on no tenant");

    // The operator forgets; a dependent host keeps it.
    let public = tenants.open("public");
    public.forget("web", |_| true).unwrap();
    collect(&public).unwrap();
    let host = store_on(&tenants, "host of acme", "acme", &["acme"]);
    assert_sample(&host, &in_acme, 7);
    assert_clean(&host, "a host with one key");
}

fn store_on(tenants: &Tenants, state: &str, name: &str, keys: &[&str]) -> Store {
    Store::open(&tenants.config_of_host(state, Some(name), keys)).unwrap()
}

#[test]
fn who_has_not_the_operators_key_reads_the_public_domain_and_cannot_change_it() {
    let tenants = Tenants::new();
    let (id, _) = commit(&tenants.open("public"), 3);
    let reader = store_on(&tenants, "reader", "public", &["acme"]);
    assert_sample(&reader, &id, 3);
    for error in [reader.writer("test").map(drop).unwrap_err(), reader.forget("web", |_| true).unwrap_err()] {
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
    // A wrong key and a missing one are different errors.
    let mut config = tenants.config_of_host("reader", Some("public"), &[]);
    config.domains.keys.common = Some(KeySource::File(tenants.key("acme")));
    let error = Store::open(&config).unwrap().writer("test").map(drop).unwrap_err();
    assert!(error.to_string().contains("is wrapped by key"), "{error}");
    // A host may name the signer that it trusts.
    let signer = reader.domain().verify_key().unwrap();
    config.domains.verify_keys.insert("public".to_owned(), signer);
    assert_sample(&Store::open(&config).unwrap(), &id, 3);
    let mut other = *signer.as_bytes();
    other[0] ^= 1;
    config.domains.verify_keys.insert("public".to_owned(), store::VerifyKey::from_bytes(other));
    assert_eq!(Store::open(&config).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn without_the_right_key_a_domain_does_not_open() {
    let tenants = Tenants::new();
    commit(&tenants.open("acme"), 1);
    let open = |keys: &[&str]| Store::open(&tenants.config_of_host("elsewhere", Some("acme"), keys));
    let error = open(&[]).unwrap_err();
    assert!(error.kind() == Kind::Invalid && error.to_string().contains("[keys]"), "{error}");
    write_key(&tenants.key("acme"), [9; 32]);
    let error = open(&["acme"]).unwrap_err();
    assert!(error.kind() == Kind::Invalid && error.to_string().contains("wrapped by key"), "{error}");
    write_key(&tenants.key("acme"), [1; 32]);
    open(&["acme"]).unwrap();
    let other = Store::open(&tenants.config_of_host("elsewhere", Some("nobody"), &["acme"]));
    assert_eq!(other.unwrap_err().kind(), Kind::NotFound);
    // A record under another domain's name is not that domain.
    let record = tenants.tier.get("domains/acme").unwrap().to_vec();
    overwrite(&tenants.tier, "domains/other", &record);
    let error = Store::open(&tenants.config_of_host("third", Some("other"), &["acme", "other"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

#[test]
fn names_and_features_are_kept_as_they_must() {
    let tenants = Tenants::new();
    let store = tenants.open("default");
    let superblock = tenants.tier.get("superblock").unwrap();
    assert_eq!(superblock[56 + 32..], 1u64.to_le_bytes(), "builds without domains must not collect here");
    for (name, kind, expected) in [
        ("acme", store::DomainKind::Encrypted, Kind::Conflict),
        ("default", store::DomainKind::Encrypted, Kind::Conflict),
        ("Acme", store::DomainKind::Encrypted, Kind::Invalid),
        ("public2", store::DomainKind::Public, Kind::Invalid),
        ("public", store::DomainKind::Encrypted, Kind::Invalid),
        ("third", store::DomainKind::Encrypted, Kind::Invalid), // no key is named
    ] {
        assert_eq!(store.domains().create(name, kind).unwrap_err().kind(), expected, "{name}");
    }
    let listed: Vec<String> = store.domains().all().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, ["acme", "default", "other", "public"]);
    assert_eq!(store.domains().rotate("default", &Rotation::NewEpoch).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(store.domains().rotate("public", &Rotation::NewEpoch).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(store.domains().destroy("public").unwrap_err().kind(), Kind::Invalid);
    assert_eq!(store.domains().destroy("default").unwrap_err().kind(), Kind::Invalid);
    assert_eq!(store.domains().destroy("nobody").unwrap_err().kind(), Kind::NotFound);
}

/// A reader and a writer that began before a rotation go on; the collector and the end of an old key wait for them.
#[test]
fn keys_rotate_under_readers_and_writers() {
    let tenants = Tenants::new();
    let mut expected = vec![(commit(&tenants.open("acme"), 1).0, 1)];
    let reader = tenants.open("acme");
    let store = tenants.open("default");
    let mut slow = tenants.open("acme").writer("slow").unwrap();
    store.domains().rotate("acme", &Rotation::NewEpoch).unwrap();
    expected.push((commit_with(&mut slow, 2), 2));
    let old = store.in_domain("acme").unwrap();
    assert_eq!(old.retire_epochs().unwrap(), [1], "a writer of the old epoch is open");
    drop(slow);
    expected.push((commit(&tenants.open("acme"), 3).0, 3));
    for (id, seed) in &expected {
        assert_sample(&reader, id, *seed);
    }
    assert_eq!(old.retire_epochs().unwrap(), [1], "frames of the old epoch are there");

    let epochs = |store: &Store| -> BTreeSet<Option<u32>> {
        let tag = store.domain().id().tag();
        let headers = frames(store).into_iter().map(|(_, frame)| FrameHeader::decode(&frame).unwrap());
        headers.filter(|header| header.domain_tag == tag).map(|header| header.key_epoch).collect()
    };
    assert_eq!(epochs(&old), [Some(1), Some(2)].into());
    let report = gc::repack_old_epochs(&old, &Unwatched).unwrap();
    assert!(report.unreadable.is_empty() && report.frames > 0 && !report.packs.is_empty());
    for (id, seed) in &expected {
        assert_sample(&reader, id, *seed);
    }
    collect(&store).unwrap();
    assert_eq!(epochs(&old), [Some(2)].into(), "old packs are gone");
    assert!(old.retire_epochs().unwrap().is_empty());
    assert_eq!(old.domain().key_epochs(), (vec![2], 2));
    for store in [&reader, &tenants.open("acme")] {
        for (id, seed) in &expected {
            assert_sample(store, id, *seed);
        }
        assert_clean(store, "rotated");
    }
    assert_eq!(commit(&tenants.open("acme"), 1).1, 0, "what was sealed again is found again");
    let again = gc::repack_old_epochs(&tenants.open("acme"), &Unwatched).unwrap();
    assert_eq!((again.packs.len(), again.frames), (0, 0));
}

#[test]
fn a_frame_of_another_domain_is_not_recompressed() {
    let tenants = Tenants::new();
    commit(&tenants.open("acme"), 1);
    let acme = tenants.open("acme");
    let (_, stored) = frames(&acme).into_iter().next().unwrap();
    let frame = acme.decode_frame(&stored).unwrap();
    let other = tenants.open("other");
    let refused = other.rewriter(0, 9, "test").unwrap().put_recompressed(&frame);
    assert_eq!(refused.unwrap_err().kind(), Kind::Invalid);
    acme.rewriter(0, 9, "test").unwrap().put_recompressed(&frame).unwrap();
}

#[test]
fn a_damaged_pack_keeps_its_old_key() {
    let tenants = Tenants::new();
    commit(&tenants.open("acme"), 1);
    commit(&tenants.open("acme"), 2);
    let store = tenants.open("acme");
    store.domains().rotate("acme", &Rotation::NewEpoch).unwrap();
    let (damaged, _) = store.packs().unwrap()[0];
    let mut bytes = tenants.tier.get(&damaged.key()).unwrap().to_vec();
    bytes[1000] ^= 1;
    overwrite(&tenants.tier, &damaged.key(), &bytes);
    let report = gc::repack_old_epochs(&store, &Unwatched).unwrap();
    assert_eq!(report.unreadable.iter().map(|(pack, _)| *pack).collect::<Vec<_>>(), [damaged]);
    assert_eq!(store.retire_epochs().unwrap(), [1]);
    assert!(tenants.tier.get(&damaged.key()).is_ok());
}

#[test]
fn keys_are_wrapped_anew_without_touching_data() {
    let tenants = Tenants::new();
    let (id, _) = commit(&tenants.open("acme"), 1);
    let before: Vec<String> = tenants.tier.list("").unwrap().into_iter().map(|info| info.key).collect();
    let new = tenants.key("new");
    write_key(&new, [77; 32]);
    let store = tenants.open("default");
    store.domains().rotate("acme", &Rotation::Rewrap(KeySource::File(new.clone()))).unwrap();
    let after: Vec<String> = tenants.tier.list("").unwrap().into_iter().map(|info| info.key).collect();
    assert_eq!(before, after);
    assert_eq!(Store::open(&tenants.config(Some("acme"))).unwrap_err().kind(), Kind::Invalid);
    std::fs::rename(new, tenants.key("acme")).unwrap();
    assert_sample(&tenants.open("acme"), &id, 1);
}

#[test]
fn a_destroyed_domain_is_gone_and_its_space_is_freed() {
    let tenants = Tenants::new();
    let kept = commit(&tenants.open("other"), 1).0;
    let plain = commit(&tenants.open("default"), 1).0;
    let before = tenants.open("default").packs().unwrap();
    let (id, _) = commit(&tenants.open("acme"), 2);
    let store = tenants.open("default");
    let pin = tenants.open("acme").pin("mount of secrets", &[id]).unwrap();
    let error = store.domains().destroy("acme").unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(!error.to_string().contains("secrets"), "{error}");
    drop(pin);
    store.domains().destroy("acme").unwrap();
    for keys in [tenants.config(Some("acme")), tenants.config_of_host("elsewhere", Some("acme"), &["acme"])] {
        assert_eq!(Store::open(&keys).unwrap_err().kind(), Kind::NotFound);
    }
    assert_eq!(store.in_domain("acme").unwrap_err().kind(), Kind::NotFound);
    let record = tenants.tier.get("domains/acme").unwrap();
    assert_eq!(record[56 + 168..], [0; 4], "no wrapped keys are left");
    for prefix in ["refs/acme/", "snapshots/acme/"] {
        assert!(tenants.tier.list(prefix).unwrap().is_empty());
    }
    let report = check(&store);
    assert!(report.problems.is_empty() && report.locked_frames > 0, "{:?}", report.problems);
    assert_eq!(
        store.domains().create("acme", store::DomainKind::Encrypted).unwrap_err().kind(),
        Kind::Conflict
    );
    // Interrupted after the keys went: the collector finishes it.
    assert!(tenants.tier.put_if_absent("refs/acme/left-over", b"unreadable").unwrap());
    collect(&store).unwrap();
    assert!(tenants.tier.list("refs/acme/").unwrap().is_empty());
    assert_eq!(store.packs().unwrap(), before);
    store.domains().destroy("acme").unwrap();
    assert_sample(&tenants.open("other"), &kept, 1);
    assert_sample(&store, &plain, 1);
}

/// The needs of a domain are unknown without its keys or its record: nothing may be deleted then.
#[test]
fn the_collector_refuses_where_a_domain_cannot_be_opened() {
    let tenants = Tenants::new();
    commit(&tenants.open("acme"), 1);
    let store = tenants.open("default");
    commit(&store, 2);
    store.forget("web", |_| true).unwrap();
    let objects = || tenants.tier.list("packs/").unwrap().len();
    let before = objects();
    let keyless = store_on(&tenants, "keyless", "default", &["other"]);
    let error = collect(&keyless).unwrap_err();
    assert!(error.to_string().contains("acme"), "{error}");
    assert_eq!(objects(), before);
    let report = check(&keyless);
    assert_eq!(report.locked_domains, ["acme"]);
    assert!(report.problems.is_empty() && report.locked_frames > 0, "{:?}", report.problems);

    let record = tenants.tier.get("domains/acme").unwrap().to_vec();
    tenants.tier.delete("domains/acme").unwrap();
    for state in ["state", "a host that never saw it"] {
        let store = Store::open(&tenants.config_of_host(state, None, &["acme", "other", "public"])).unwrap();
        assert_eq!(collect(&store).unwrap_err().kind(), Kind::Corrupt);
        assert!(!check(&store).problems.is_empty());
    }
    assert_eq!(objects(), before);
    assert!(tenants.tier.put_if_absent("domains/acme", &record).unwrap());
    collect(&tenants.open("default")).unwrap();
    assert!(objects() < before);
}

/// Damage to an encrypted store is found without its keys.
#[test]
fn scrubbing_needs_no_keys() {
    let tenants = Tenants::new();
    commit(&tenants.open("acme"), 1);
    let keyless = store_on(&tenants, "keyless", "default", &[]);
    assert!(check(&keyless).problems.is_empty());
    let mut random = Random::new(5);
    let keys: Vec<String> = ["packs/", "refs/acme/", "snapshots/acme/", "domains/acme"]
        .iter()
        .flat_map(|prefix| tenants.tier.list(prefix).unwrap())
        .map(|info| info.key)
        .collect();
    let mut found = 0;
    for key in &keys {
        let bytes = tenants.tier.get(key).unwrap().to_vec();
        for _ in 0..8 {
            let mut damaged = bytes.clone();
            let bit = random.below(bytes.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            overwrite(&tenants.tier, key, &damaged);
            assert!(!check(&keyless).problems.is_empty(), "{key} bit {bit}");
            found += 1;
        }
        overwrite(&tenants.tier, key, &bytes);
    }
    println!("flipped bits found without keys: {found} of {found}");
}

/// No session and no lock of an encrypted domain names the objects in use; a deleted upper holds nothing all the same.
#[test]
fn sessions_of_an_encrypted_domain_name_nothing() {
    let tenants = Tenants::new();
    let (id, _) = commit(&tenants.open("acme"), 1);
    let upper = tenants.scratch.path().join("canary upper");
    std::fs::create_dir(&upper).unwrap();
    let names_it = |store: &Store| {
        let infos = store.metadata_tier().list("sessions/").unwrap();
        let records = infos.iter().map(|info| tenants.tier.get(&info.key).unwrap().to_vec());
        let locks = [store.state_dir().join("lock")].into_iter().filter_map(|path| std::fs::read(path).ok());
        let named = |bytes: Vec<u8>| bytes.windows(6).any(|window| window == b"canary");
        (infos.len(), records.chain(locks).any(named))
    };
    for (domain, shows) in [("acme", false), ("default", true)] {
        let store = tenants.open(domain);
        let writer = store.writer("backup canary").unwrap();
        let pinned = if shows {
            commit_plain(writer)
        } else {
            drop(writer);
            id
        };
        let pin = store.pin("restore canary", &[pinned]).unwrap();
        store.pin_for_upper(&upper, &[pinned]).unwrap();
        assert_eq!(names_it(&store), (2, shows), "{domain}");
        drop(pin);
        let held = || store::session::alive(store.sessions(), true).unwrap().len();
        assert_eq!(held(), 1);
        std::fs::rename(&upper, upper.with_extension("elsewhere")).unwrap();
        assert_eq!(held(), 0, "{domain}");
        std::fs::rename(upper.with_extension("elsewhere"), &upper).unwrap();
        store.pin_for_upper(&upper, &[pinned]).unwrap();
        store.unpin_upper(&upper).unwrap();
        assert_eq!(names_it(&store).0, 0);
        let left = std::fs::read_dir(store.state_dir().join("sessions")).unwrap().count();
        assert_eq!(left, 0, "{domain}");
    }
}

fn commit_plain(mut writer: Writer) -> SnapshotId {
    writer.commit("web", SnapshotDraft::default()).unwrap()
}
