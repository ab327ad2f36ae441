//! RF2: refs of a domain that signs cannot be put back, dropped, forked or forged behind a host that saw them, by a
//! writer of the store; and honest changes, however they interleave, raise no alarm.

use crate::scratch::overwrite;
use std::sync::atomic::{AtomicBool, Ordering};
use store::{Kind, Rotation, SnapshotDraft, Store, Tier, Unwatched};
use tests::model::Random;
use tests::tenants::Tenants;

const REFS: [&str; 3] = ["web", "shop/web-1", "vm"];

fn rounds() -> usize {
    if tests::is_long() { 20_000 } else { 400 }
}

fn commit(store: &Store, name: &str) {
    store.writer("test").unwrap().commit(name, SnapshotDraft::default()).unwrap();
}

/// How an attacker changes the store.
#[derive(Clone, Copy, Debug)]
enum Attack {
    PutBack,
    Drop,
    /// Shows the host another host's change of an older state, at the same counter or beyond it.
    Fork,
    /// Puts a record of the same name in place that another domain signed.
    Forge,
}

#[test]
fn every_old_forked_dropped_or_forged_ref_is_found() {
    let mut random = Random::new(11);
    let (mut tried, mut found) = ([0; 4], 0);
    while tried.iter().sum::<usize>() < rounds() {
        // Its own world each time: history is short, and seen by the host as it grows.
        let (tenants, strangers) = (Tenants::new(), Tenants::new());
        for _ in 0..8 {
            let domain = ["acme", "public"][random.below(2)];
            let name = REFS[random.below(REFS.len())];
            let store = tenants.open(domain);
            let key = store.domain().ref_key(name);
            let mut copies = Vec::new();
            let mut worlds = Vec::new();
            for _ in 0..2 + random.below(4) {
                copies.extend(tenants.tier.get(&key).map(|bytes| bytes.to_vec()));
                worlds.push(tenants.tier.fork());
                commit(&store, name);
            }
            let right = tenants.tier.get(&key).unwrap().to_vec();
            let attack = [Attack::PutBack, Attack::Drop, Attack::Fork, Attack::Forge][random.below(4)];
            match attack {
                Attack::PutBack => overwrite(&tenants.tier, &key, &copies[random.below(copies.len())]),
                Attack::Drop => tenants.tier.delete(&key).unwrap(),
                Attack::Fork => {
                    let back = random.below(worlds.len());
                    let changes = worlds.len() - back + random.below(4);
                    overwrite(&tenants.tier, &key, &forked(&tenants, &worlds[back], domain, name, changes));
                }
                Attack::Forge => {
                    let other = strangers.open(domain);
                    (0..8).for_each(|_| commit(&other, name));
                    let record = strangers.tier.get(&other.domain().ref_key(name)).unwrap().to_vec();
                    overwrite(&tenants.tier, &key, &record);
                }
            }
            tried[attack as usize] += 1;
            let again = tenants.open(domain);
            let errors = [
                again.refs().get(name).map(drop).unwrap_err(),
                again.refs().list().map(drop).unwrap_err(),
                again.resolve(name).map(drop).unwrap_err(),
                again.writer("test").unwrap().commit(name, SnapshotDraft::default()).map(drop).unwrap_err(),
                gc::collect(&again, &gc::CollectOptions::default(), &Unwatched).map(drop).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), Kind::Corrupt, "{attack:?}: {error}");
            }
            found += 1;
            if !matches!(attack, Attack::Drop) {
                tenants.tier.delete(&key).unwrap();
            }
            assert!(tenants.tier.put_if_absent(&key, &right).unwrap());
            tenants.open(domain).refs().get(name).unwrap();
        }
    }
    let [put_back, dropped, forked, forged] = tried;
    println!("refs put back {put_back}, dropped {dropped}, forked {forked}, forged {forged}: {found} found");
    assert_eq!(found, tried.iter().sum::<usize>());
}

/// The ref as another host with the domain's keys would have made it from an older state.
fn forked(tenants: &Tenants, world: &dyn Tier, domain: &str, name: &str, changes: usize) -> Vec<u8> {
    let copy = crate::scratch::copy_of(world);
    let scratch = tempfile::tempdir().unwrap();
    let mut config = tenants.config(Some(domain));
    config = store::StoreConfig {
        domains: config.domains.clone(),
        ..store::StoreConfig::on(std::sync::Arc::new(copy.clone()), scratch.path())
    };
    let store = Store::open(&config).unwrap();
    (0..changes).for_each(|_| commit(&store, name));
    copy.get(&store.domain().ref_key(name)).unwrap().to_vec()
}

#[test]
fn a_domains_record_put_back_or_dropped_is_found() {
    let tenants = Tenants::new();
    let store = tenants.open("default");
    let before = tenants.tier.get("domains/acme").unwrap().to_vec();
    tenants.open("acme");
    store.domains().rotate("acme", &Rotation::NewEpoch).unwrap();
    let right = tenants.tier.get("domains/acme").unwrap().to_vec();
    tenants.open("acme");
    let open = || Store::open(&tenants.config(Some("acme")));
    overwrite(&tenants.tier, "domains/acme", &before);
    let error = open().unwrap_err();
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("domain trust acme"), "{error}");
    tenants.tier.delete("domains/acme").unwrap();
    assert_eq!(open().unwrap_err().kind(), Kind::Corrupt);
    // Destroyed, and an old copy put back.
    assert!(tenants.tier.put_if_absent("domains/acme", &right).unwrap());
    store.domains().destroy("acme").unwrap();
    assert_eq!(open().unwrap_err().kind(), Kind::NotFound);
    overwrite(&tenants.tier, "domains/acme", &right);
    assert_eq!(open().unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn what_is_there_can_be_accepted_deliberately() {
    let tenants = Tenants::new();
    let store = tenants.open("acme");
    let key = store.domain().ref_key("web");
    commit(&store, "web");
    commit(&store, "vm");
    let old = tenants.tier.get(&key).unwrap().to_vec();
    commit(&store, "web");
    overwrite(&tenants.tier, &key, &old);
    let error = store.refs().get("web").unwrap_err();
    assert!(error.to_string().contains("snapctl domain trust acme"), "{error}");
    store.domains().trust("acme", Some("web")).unwrap();
    assert_eq!(store.refs().get("web").unwrap().unwrap().history.len(), 1);
    commit(&store, "web");

    tenants.tier.delete(&key).unwrap();
    assert!(store.refs().list().is_err());
    store.domains().trust("acme", None).unwrap();
    assert_eq!(store.refs().list().unwrap().len(), 1);
    commit(&store, "web");
    // An unsigned record is not accepted.
    overwrite(&tenants.tier, &key, b"no record");
    assert!(store.domains().trust("acme", None).is_err());
}

/// Processes of one host see each other's changes in any order; none of it is an alarm.
#[test]
fn honest_changes_are_no_alarm() {
    let tenants = Tenants::new();
    commit(&tenants.open("acme"), "web");
    let done = AtomicBool::new(false);
    let looks: usize = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut looks = 0;
                    while !done.load(Ordering::Relaxed) {
                        let store = tenants.open("acme");
                        for _ in 0..20 {
                            store.refs().get("web").unwrap();
                            store.refs().list().unwrap();
                            looks += 2;
                        }
                    }
                    looks
                })
            })
            .collect();
        for round in 0..150 {
            let store = tenants.open("acme");
            commit(&store, "web");
            if round % 10 == 0 {
                store.domains().rotate("acme", &Rotation::NewEpoch).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    println!("{looks} looks at a ref beside 150 changes, no alarm");
    assert!(looks > 100);
}
