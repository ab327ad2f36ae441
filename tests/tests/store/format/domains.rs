//! Domains as the document describes them, read off a store that was written once by nothing but the document: keys are
//! unwrapped, records and frames opened and signatures checked here, beside the code of the store.

use super::{Document, body, document, root};
use crate::scratch::copy_of;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ed25519_dalek::{Signature, VerifyingKey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use store::pack::read_directory;
use store::wire::Record;
use store::{ChunkId, Kind, LocalTier, PackId, Store, StoreConfig, Tier};
use tests::golden::{files, memory};
use tests::golden_domains::{DOMAINS, KEK, config, write};
use tests::model::{assert_clean, files_of_store, memory_of_store};

/// BLAKE3 over every key and object of the golden store with domains: it is never written again.
const GOLDEN_HASH: &str = "ec206d924b7a4c2e32b74717c867b381994c662e914c5ccfcdb84ed5031fb784";

fn directory() -> PathBuf {
    root().join("tests/fixtures/format-1-domains")
}

fn tier() -> LocalTier {
    LocalTier::new(directory())
}

fn object(key: &str) -> Vec<u8> {
    tier().get(key).unwrap().to_vec()
}

fn keys(prefix: &str) -> Vec<String> {
    tier().list(prefix).unwrap().into_iter().map(|info| info.key).collect()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

/// Section 11: sealed is a nonce, ciphertext and tag, bound to associated data.
fn open(key: &[u8], bound: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let cipher = XChaCha20Poly1305::new_from_slice(key).unwrap();
    let nonce = XNonce::try_from(&sealed[..24]).unwrap();
    cipher.decrypt(&nonce, Payload { msg: &sealed[24..], aad: bound }).ok()
}

fn is_signed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = VerifyingKey::from_bytes(key.try_into().unwrap()).unwrap();
    key.verify_strict(message, &Signature::from_bytes(signature.try_into().unwrap())).is_ok()
}

/// A domain's record and keys by the document alone.
struct Opened {
    id: Vec<u8>,
    verify_key: Vec<u8>,
    record_key: [u8; 32],
    id_key: [u8; 32],
    epochs: BTreeMap<u64, Vec<u8>>,
}

fn open_domain(document: &Document, name: &str) -> Opened {
    let bytes = object(&format!("domains/{name}"));
    let record = body(document, name, Record::KeyedDomain, &bytes);
    let table = &document["KeyedDomain body"];
    let kind = table.number(record, "1: encrypted");
    assert_eq!(kind, DOMAINS.iter().position(|known| *known == name).unwrap() as u64 + 1);
    assert_eq!(table.number(record, "cipher"), u64::from(kind == 1));
    assert_eq!((table.number(record, "reserved"), number(&record[..4]) != 0), (0, true));
    let wrapped = &record[table.len..];
    assert_eq!(table.number(record, "length of the wrapped keys"), wrapped.len() as u64);
    let signature = table.bytes(record, "signature");
    let (id, verify_key) = (table.bytes(record, "domain id"), table.bytes(record, "key that the domain's"));
    if kind == 3 {
        assert!(
            wrapped.is_empty() && signature == [0; 64] && table.bytes(record, "name of the key") == [0; 8]
        );
    } else {
        let name_of_kek = blake3::derive_key("Torpor 1: name of a key-encryption key", &KEK);
        assert_eq!(table.bytes(record, "name of the key"), &name_of_kek[..8]);
        let message =
            [b"Torpor 1 domain record\0", &*string(name.as_bytes()), &record[..104], wrapped].concat();
        assert!(is_signed(verify_key, &message, signature));
    }
    let mut opened = Opened {
        id: id.to_vec(),
        verify_key: verify_key.to_vec(),
        record_key: [0; 32],
        id_key: [0; 32],
        epochs: BTreeMap::new(),
    };
    if kind != 3 {
        let wrapping = blake3::derive_key("Torpor 1: wrapping of a domain's keys", &KEK);
        let bound = [b"Torpor 1 domain keys\0", &*string(name.as_bytes()), &record[..104]].concat();
        let secrets = open(&wrapping, &bound, wrapped).unwrap();
        let table = &document["Domain keys"];
        opened.id_key.copy_from_slice(table.bytes(&secrets, "key of the ids"));
        opened.record_key.copy_from_slice(table.bytes(&secrets, "key of the records"));
        for epoch in secrets[table.len..].chunks_exact(36) {
            opened.epochs.insert(number(&epoch[..4]), epoch[4..].to_vec());
        }
        assert_eq!(table.number(&secrets, "count of key epochs"), opened.epochs.len() as u64);
    }
    assert_eq!(
        document["KeyedDomain body"].bytes(record, "key of the ids of the public"),
        if kind == 2 { opened.id_key } else { [0; 32] }
    );
    let newest = opened.epochs.keys().last().copied().unwrap_or(0);
    assert_eq!(document["KeyedDomain body"].number(record, "key epoch"), newest);
    opened
}

#[test]
fn the_golden_store_with_domains_is_what_was_written_once() {
    let mut hasher = blake3::Hasher::new();
    for key in keys("") {
        hasher.update(key.as_bytes()).update(&[0]).update(blake3::hash(&object(&key)).as_bytes());
    }
    assert_eq!(hasher.finalize().to_hex().as_str(), GOLDEN_HASH);
    let superblock = object("superblock");
    let record = body(&document(), "superblock", Record::Superblock, &superblock);
    assert_eq!(document()["Superblock body"].number(record, "incompatible features"), 1);
}

#[test]
fn the_golden_store_with_domains_opens_checks_clean_and_takes_new_writes() {
    let state = tempfile::tempdir().unwrap();
    let of = |domain| config(&directory(), state.path(), Some(domain)).unwrap();
    for (domain, versions) in [("acme", 2), ("public", 1)] {
        let store = Store::open(&of(domain)).unwrap();
        assert_clean(&store, domain);
        let found = store.refs().get("web/app").unwrap().unwrap();
        assert_eq!(found.history.len(), versions);
        for (entry, version) in found.history.iter().zip(0..) {
            let snapshot = store.snapshot(&entry.snapshot).unwrap();
            assert_eq!(snapshot.labels["version"], version.to_string());
            assert!(files_of_store(&store, &entry.snapshot).unwrap() == files(version));
            assert!(memory_of_store(&store, &snapshot.image.unwrap()).unwrap() == memory(version));
        }
    }
    assert_eq!(Store::open(&of("gone")).unwrap_err().kind(), Kind::NotFound);
    let copy = Arc::new(copy_of(&tier()));
    let fresh = state.path().join("fresh");
    let config = StoreConfig { domains: of("acme").domains, ..StoreConfig::on(copy, fresh) };
    let store = Store::open(&config).unwrap();
    write(&mut store.writer("test").unwrap(), 0).unwrap();
    gc::collect(&store, &gc::CollectOptions { dry_run: false, cycles: 4 }, &store::Unwatched).unwrap();
    assert_clean(&store, "an old store with domains and new writes");
    assert_eq!(store.refs().get("web/app").unwrap().unwrap().history.len(), 3);
}

#[test]
fn domains_and_their_records_lie_as_the_document_says() {
    let document = document();
    let opened: BTreeMap<&str, Opened> =
        DOMAINS.into_iter().map(|name| (name, open_domain(&document, name))).collect();
    assert!(opened["acme"].epochs.len() == 2 && opened["public"].epochs.is_empty());
    assert!(keys("refs/gone/").is_empty() && keys("snapshots/gone/").is_empty());
    let acme = &opened["acme"];
    let bound = |kind: Record| {
        [b"Torpor 1 record\0", &(kind as u16).to_le_bytes()[..], &1u16.to_le_bytes(), &acme.id].concat()
    };

    let table = &document["SealedSnapshot body"];
    let sealing = blake3::derive_key("Torpor 1: snapshot records", &acme.record_key);
    for key in keys("snapshots/acme/") {
        let bytes = object(&key);
        assert!(key.ends_with(blake3::hash(&bytes).to_hex().as_str()));
        let record = body(&document, &key, Record::SealedSnapshot, &bytes);
        assert_eq!(table.bytes(record, "domain"), acme.id);
        let sealed = &record[table.range("nonce").start..];
        let plain = open(&sealing, &bound(Record::SealedSnapshot), sealed).unwrap();
        assert_eq!(document["Snapshot body"].number(&plain, "tree present"), 1);
    }

    let table = &document["SignedRef body"];
    let sealing = blake3::derive_key("Torpor 1: ref records", &acme.record_key);
    for (name, domain) in [("acme", acme), ("public", &opened["public"])] {
        let all = keys(&format!("refs/{name}/"));
        let [key] = all.as_slice() else { panic!("one ref: {all:?}") };
        let bytes = object(key);
        let record = body(&document, key, Record::SignedRef, &bytes);
        assert_eq!(table.bytes(record, "domain"), domain.id);
        let rest = &record[table.len..];
        let inner = match (table.number(record, "cipher"), name) {
            (0, "public") => rest.to_vec(),
            (1, "acme") => open(&sealing, &bound(Record::SignedRef), rest).unwrap(),
            other => panic!("{other:?}"),
        };
        let (signed, signature) = inner.split_at(inner.len() - 64);
        let message = [b"Torpor 1 ref\0", &1u16.to_le_bytes()[..], &domain.id, signed].concat();
        assert!(is_signed(&domain.verify_key, &message, signature));
        let len = document["Signed ref"].number(&inner, "length of the ref") as usize;
        let (found, trail) = signed[4..].split_at(len);
        let head = &document["Ref body"];
        let name_len = head.number(found, "name length") as usize;
        assert_eq!(&found[4..4 + name_len], b"web/app");
        let counter = number(&found[4 + name_len..][..8]);
        assert_eq!(number(&trail[..4]), counter - 1);
        assert_eq!(trail.len() as u64, 4 + 16 * (counter - 1));
        let expected = match name {
            "acme" => {
                let names = blake3::derive_key("Torpor 1: names of refs in keys", &acme.record_key);
                format!("refs/acme/{}", blake3::keyed_hash(&names, b"web/app").to_hex())
            }
            _ => "refs/public/web%2Fapp".to_owned(),
        };
        assert_eq!(*key, expected);
    }
}

#[test]
fn frames_of_domains_lie_as_the_document_says() {
    let document = document();
    let domains = ["acme", "public"].map(|name| open_domain(&document, name));
    let (table, slot) = (&document["Frame header"], &document["Slot"]);
    let mut met = BTreeSet::new();
    for key in keys("packs/") {
        let pack = object(&key);
        let mut of_pack = BTreeSet::new();
        for extent in read_directory(&tier(), PackId::from_key(&key).unwrap()).unwrap().frames {
            let frame = &pack[extent.offset as usize..][..extent.len_bytes as usize];
            let tag = table.bytes(frame, "tag of the domain");
            let domain = domains.iter().find(|domain| domain.id.starts_with(tag)).unwrap();
            let (cipher, epoch) = (table.number(frame, "cipher"), table.number(frame, "key epoch"));
            let count = table.number(frame, "slot count") as usize;
            let slots = &frame[table.len..][..count * slot.len];
            let stored = &frame[table.len + slots.len()..][..table.number(frame, "stored length") as usize];
            assert_eq!(table.bytes(frame, "first 16 bytes"), &blake3::hash(stored).as_bytes()[..16]);
            let guarded = blake3::hash(&[&frame[..80], slots].concat());
            assert_eq!(table.bytes(frame, "checksum"), &guarded.as_bytes()[..8]);
            of_pack.insert((tag.to_vec(), epoch));
            if cipher == 0 {
                assert_eq!((epoch, domain.id == domains[1].id), (0, true));
                continue;
            }
            assert_eq!((cipher, table.number(frame, "plain length")), (1, 0));
            let bound = [b"Torpor 1 frame\0", &*domain.id, &frame[..64], slots].concat();
            let text = open(&domain.epochs[&epoch], &bound, stored).unwrap();
            let (lengths, rest) = text.split_at(4 * count);
            let plain_len: u64 = lengths.chunks(4).map(number).sum();
            let plain = match table.number(frame, "codec") {
                0 => rest.to_vec(),
                _ => zstd::bulk::decompress(rest, plain_len as usize).unwrap(),
            };
            let mut start = 0;
            for (len, slot_bytes) in lengths.chunks(4).map(number).zip(slots.chunks(slot.len)) {
                assert_eq!(slot.number(slot_bytes, "length"), 0);
                let id = blake3::keyed_hash(&domain.id_key, &plain[start..start + len as usize]);
                assert_eq!(ChunkId::from_bytes(*id.as_bytes()).as_bytes(), slot.bytes(slot_bytes, "chunk"));
                start += len as usize;
            }
            assert_eq!(start as u64, plain_len);
        }
        assert_eq!(of_pack.len(), 1, "a pack is of one domain and key epoch");
        met.extend(of_pack.into_iter().map(|(_, epoch)| epoch));
    }
    assert_eq!(met, [0, 1, 2].into());
}
