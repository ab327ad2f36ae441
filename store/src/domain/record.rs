//! The record of a domain: its description in clear, and its keys, wrapped by a key-encryption key. It changes by
//! compare-and-swap; its counter grows with each change. Layouts: docs/FORMAT.md section 3.

use super::kek::{Kek, KekId};
use super::keys::{KEY_LEN, SIGNATURE_LEN, SecretKey, SignKey, VerifyKey};
use crate::error::{Error, Kind, Result};
use crate::id::DomainId;
use crate::keys;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Bytes of the body before the signature, which signature and wrapping are bound to.
const BOUND_LEN: usize = 104;
/// First of the signed bytes of a record.
const SIGNED: &[u8] = b"Torpor 1 domain record\0";
/// First of the bytes that the wrapped keys are bound to.
const WRAPPED: &[u8] = b"Torpor 1 domain keys\0";

/// Kind of a domain; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum DomainKind {
    /// The one that a store begins with: not encrypted, not signed.
    Plain = 0,
    /// Frames, snapshots and refs are encrypted.
    Encrypted = 1,
    /// Nothing is encrypted; refs are signed by the operator; every domain may deduplicate against it.
    Public = 2,
    /// Its keys were destroyed; the data encrypted with them is unreadable.
    Destroyed = 3,
}

impl DomainKind {
    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Encrypted => "encrypted",
            Self::Public => "public",
            Self::Destroyed => "destroyed",
        }
    }
}

/// The record of a domain with keys of its own, keys still wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRecord {
    /// Identifies the domain forever.
    pub id: DomainId,
    /// Its kind.
    pub kind: DomainKind,
    /// The key epoch that new frames are sealed under; 0 where frames are not encrypted.
    pub key_epoch: u32,
    /// Grows by one at each change.
    pub counter: u64,
    /// Verifies its signatures.
    pub verify_key: VerifyKey,
    /// The key of its ids where they are public, else zeroes.
    pub public_id_key: [u8; KEY_LEN],
    /// The key that wraps its keys.
    pub kek: KekId,
    /// Over all else, by the domain's own key; zeroes when that was destroyed.
    pub signature: [u8; SIGNATURE_LEN],
    /// The keys, encrypted; empty when they were destroyed.
    pub wrapped: Vec<u8>,
}

/// A domain's secrets.
#[derive(Debug)]
pub struct KeySet {
    /// Of the ids of chunks.
    pub id_key: SecretKey,
    /// Of snapshot records, refs, names and local state; not changed by rotation, since ids and names depend on it.
    pub record_key: SecretKey,
    /// Seed of the key that refs are signed with.
    pub sign_seed: SecretKey,
    /// Of frames, by key epoch.
    pub epochs: BTreeMap<u32, SecretKey>,
}

impl KeySet {
    /// New keys, the first epoch's included.
    pub fn random() -> Self {
        Self {
            id_key: SecretKey::random(),
            record_key: SecretKey::random(),
            sign_seed: SecretKey::random(),
            epochs: [(1, SecretKey::random())].into(),
        }
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Allocated in full: a buffer that grows leaves copies behind.
        let mut out = Encoder::with_capacity(3 * KEY_LEN + 4 + self.epochs.len() * (4 + KEY_LEN));
        out.bytes(self.id_key.bytes()).bytes(self.record_key.bytes()).bytes(self.sign_seed.bytes());
        out.count(self.epochs.len());
        for (epoch, key) in &self.epochs {
            out.u32(*epoch).bytes(key.bytes());
        }
        Zeroizing::new(out.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(bytes);
        let mut key = || Ok(SecretKey::take(&mut fields.array()?));
        let (id_key, record_key, sign_seed) = (key()?, key()?, key()?);
        let mut epochs = BTreeMap::new();
        for _ in 0..fields.count(4 + KEY_LEN)? {
            let epoch = fields.u32()?;
            epochs.insert(epoch, SecretKey::take(&mut fields.array()?));
        }
        fields.end()?;
        Ok(Self { id_key, record_key, sign_seed, epochs })
    }
}

impl DomainRecord {
    /// A record whose keys are `keys`, wrapped by `kek` and signed.
    ///
    /// # Errors
    /// As [`SecretKey::seal`].
    pub fn new(
        name: &str,
        id: DomainId,
        kind: DomainKind,
        counter: u64,
        keys: &KeySet,
        kek: &Kek,
    ) -> Result<Self> {
        let public = kind == DomainKind::Public;
        let key_epoch = keys.epochs.last_key_value().map_or(0, |(epoch, _)| *epoch);
        let mut record = Self {
            id,
            kind,
            key_epoch: if public { 0 } else { key_epoch },
            counter,
            verify_key: SignKey::of(&keys.sign_seed).verify_key(),
            public_id_key: if public { *keys.id_key.bytes() } else { [0; KEY_LEN] },
            kek: kek.id,
            signature: [0; SIGNATURE_LEN],
            wrapped: Vec::new(),
        };
        record.wrapped = kek.wrapping().seal(&record.bound(WRAPPED, name), &keys.encode())?;
        record.sign(name, &keys.sign_seed);
        Ok(record)
    }

    /// The record that replaces this one when its keys are destroyed. It is unsigned: a process that can write here can
    /// delete everything anyway, and a domain whose key-encryption key was lost must be destroyable.
    pub fn destroyed(&self) -> Self {
        Self {
            kind: DomainKind::Destroyed,
            key_epoch: 0,
            counter: self.counter + 1,
            kek: KekId([0; 8]),
            signature: [0; SIGNATURE_LEN],
            wrapped: Vec::new(),
            ..self.clone()
        }
    }

    /// The key of a domain's record in the store's metadata tier.
    pub fn key(name: &str) -> String {
        keys::domain(name)
    }

    fn cipher(&self) -> u8 {
        (self.kind == DomainKind::Encrypted).into()
    }

    /// The bytes that signature and wrapping are bound to: their purpose, the record's name and all fields in clear.
    fn bound(&self, purpose: &[u8], name: &str) -> Vec<u8> {
        let mut bound = Encoder::with_capacity(purpose.len() + name.len() + BOUND_LEN + 8);
        bound.bytes(purpose).string(name.as_bytes());
        self.encode_bound(&mut bound);
        bound.finish()
    }

    fn encode_bound(&self, out: &mut Encoder) {
        out.bytes(self.id.as_bytes()).u8(self.kind as u8).u8(self.cipher()).u16(0).u32(self.key_epoch);
        out.u64(self.counter).bytes(self.verify_key.as_bytes()).bytes(&self.public_id_key).bytes(&self.kek.0);
    }

    fn signed(&self, name: &str) -> Vec<u8> {
        let mut signed = self.bound(SIGNED, name);
        signed.extend_from_slice(&self.wrapped);
        signed
    }

    fn sign(&mut self, name: &str, seed: &SecretKey) {
        self.signature = SignKey::of(seed).sign(&self.signed(name));
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::with_capacity(BOUND_LEN + SIGNATURE_LEN + 4 + self.wrapped.len());
        self.encode_bound(&mut body);
        body.bytes(&self.signature).string(&self.wrapped);
        seal(Record::KeyedDomain, &body.finish())
    }

    /// Parses the record of the domain `name` and checks that it is signed by the key that it names.
    ///
    /// # Errors
    /// `Corrupt`; `Invalid` when a newer build wrote it.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::KeyedDomain, bytes)?);
        let id = DomainId::from_bytes(fields.array()?);
        let (kind, cipher, reserved) = (fields.u8()?, fields.u8()?, fields.u16()?);
        let kind = match (kind, cipher, reserved) {
            (1, 1, 0) => DomainKind::Encrypted,
            (2, 0, 0) => DomainKind::Public,
            (3, 0, 0) => DomainKind::Destroyed,
            _ => {
                let what = format!("domain is of kind {kind} and uses cipher {cipher}");
                return Err(Error::invalid(what).advice("use a newer snapctl"));
            }
        };
        let record = Self {
            id,
            kind,
            key_epoch: fields.u32()?,
            counter: fields.u64()?,
            verify_key: VerifyKey::from_bytes(fields.array()?),
            public_id_key: fields.array()?,
            kek: KekId(fields.array()?),
            signature: fields.array()?,
            wrapped: fields.string()?.to_vec(),
        };
        fields.end()?;
        if record.id.tag() == 0 {
            return Err(Error::corrupt("domain record has the tag of the plain domain"));
        }
        let signed = record.kind == DomainKind::Destroyed
            || record.verify_key.verifies(&record.signed(name), &record.signature);
        match signed {
            true => Ok(record),
            false => {
                Err(Error::corrupt("domain record is not signed by its own key, or is another domain's"))
            }
        }
    }

    /// Unwraps the keys.
    ///
    /// # Errors
    /// `Invalid` for another key than the one that wrapped them, `Corrupt` for a changed record.
    pub fn unwrap_keys(&self, name: &str, kek: &Kek) -> Result<KeySet> {
        if self.kind == DomainKind::Destroyed {
            return Err(Error::new(Kind::NotFound, "domain was destroyed").object(name));
        }
        if kek.id != self.kek {
            let what = format!("domain is wrapped by key {}, the key given is {}", self.kek, kek.id);
            return Err(Error::invalid(what)
                .object(name)
                .advice("give the key that the domain was wrapped with"));
        }
        let opened = kek.wrapping().open(&self.bound(WRAPPED, name), &self.wrapped);
        let plain =
            Zeroizing::new(opened.ok_or_else(|| Error::corrupt("domain record was changed").object(name))?);
        let keys = KeySet::decode(&plain)?;
        if SignKey::of(&keys.sign_seed).verify_key() != self.verify_key {
            return Err(Error::corrupt("domain record names another key than it holds").object(name));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_sealed, flipped};
    use crate::wire::ENVELOPE_LEN;

    fn sample(kind: DomainKind) -> (DomainRecord, KeySet, Kek) {
        let (keys, kek) = (KeySet::random(), Kek::take(&mut [5; KEY_LEN]));
        let record = DomainRecord::new("acme", DomainId::from_bytes([3; 16]), kind, 1, &keys, &kek).unwrap();
        (record, keys, kek)
    }

    #[test]
    fn a_record_reads_back_and_nothing_else_does() {
        for kind in [DomainKind::Encrypted, DomainKind::Public] {
            let (record, keys, kek) = sample(kind);
            assert_sealed(&record.encode(), &record, |bytes| DomainRecord::decode("acme", bytes));
            let read = record.unwrap_keys("acme", &kek).unwrap();
            assert_eq!(read.encode(), keys.encode());
            assert!(DomainRecord::decode("other", &record.encode()).is_err(), "under another name");
            assert!(record.unwrap_keys("other", &kek).is_err());
            let gone = record.destroyed();
            assert_sealed(&gone.encode(), &gone, |bytes| DomainRecord::decode("acme", bytes));
            assert_eq!(gone.unwrap_keys("acme", &kek).unwrap_err().kind(), Kind::NotFound);
        }
    }

    #[test]
    fn only_the_key_that_wrapped_unwraps() {
        let (record, _, kek) = sample(DomainKind::Encrypted);
        let error = record.unwrap_keys("acme", &Kek::take(&mut [6; KEY_LEN])).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(&kek.id.to_string()), "{error}");
        for bit in 0..record.wrapped.len() * 8 {
            let damaged = DomainRecord { wrapped: flipped(&record.wrapped, bit), ..record.clone() };
            assert_eq!(damaged.unwrap_keys("acme", &kek).unwrap_err().kind(), Kind::Corrupt, "bit {bit}");
        }
        assert!(record.unwrap_keys("other", &kek).is_err());
    }

    /// An attacker that can write the store and recompute checksums, but has no key, changes nothing undetected.
    #[test]
    fn no_bit_of_the_body_changes_unseen_though_its_checksum_is_right() {
        let (record, _, kek) = sample(DomainKind::Encrypted);
        let body = record.encode()[ENVELOPE_LEN..].to_vec();
        for bit in 0..body.len() * 8 {
            let forged = seal(Record::KeyedDomain, &flipped(&body, bit));
            let read = DomainRecord::decode("acme", &forged);
            assert!(read.and_then(|read| read.unwrap_keys("acme", &kek)).is_err(), "bit {bit}");
        }
    }
}
