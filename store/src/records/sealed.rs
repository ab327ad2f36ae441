//! Snapshot records and refs as a domain stores them: the plain domain as in format 1, the public one with signed refs,
//! an encrypted one with both encrypted, refs signed besides, and names of refs in keys only as hashes. Layouts:
//! docs/FORMAT.md section 3.

use crate::domain::keys::{SEAL_LEN, SIGNATURE_LEN};
use crate::domain::seen::{Step, TRAIL_LEN, step_of};
use crate::domain::{CIPHER, Domain, DomainKind, Mark, Secrets};
use crate::error::{Error, Result};
use crate::id::{DomainId, SnapshotId};
use crate::keys;
use crate::records::reference::Ref;
use crate::records::snapshot::Snapshot;
use crate::wire::{Decoder, Encoder, FORMAT_VERSION, Record, seal, unseal};

/// First bytes of the message that a ref's signature covers.
const SIGNED_REF: &[u8] = b"Torpor 1 ref\0";

/// A ref as it was read, and the state of the record that it stood in.
#[derive(Clone, Debug)]
pub struct StoredRef {
    /// The ref.
    pub found: Ref,
    /// The record's state, where it is signed.
    pub mark: Option<Mark>,
    /// The records before it, newest first, where it is signed.
    pub trail: Vec<Step>,
}

impl StoredRef {
    /// The trail of the record that comes after this one, whose bytes are `bytes`.
    pub fn next_trail(&self, bytes: &[u8]) -> Vec<Step> {
        let own = step_of(blake3::hash(bytes).as_bytes());
        std::iter::once(own).chain(self.trail.iter().copied()).take(TRAIL_LEN).collect()
    }
}

/// The data that an encrypted record is bound to: its kind and its domain.
fn bound(record: Record, domain: DomainId) -> Vec<u8> {
    let mut bound = Encoder::new();
    bound.bytes(b"Torpor 1 record\0").u16(record as u16).u16(FORMAT_VERSION).bytes(domain.as_bytes());
    bound.finish()
}

impl Domain {
    /// The prefix of the keys of all its snapshot records.
    pub fn snapshot_prefix(&self) -> String {
        keys::snapshots_of(&self.name)
    }

    /// The key of a snapshot record.
    pub fn snapshot_key(&self, id: &SnapshotId) -> String {
        format!("{}{id}", self.snapshot_prefix())
    }

    /// The prefix of the keys of all its refs.
    pub fn ref_prefix(&self) -> String {
        keys::refs_of(&self.name)
    }

    /// The key of a ref: in an encrypted domain a hash of its name, else the name.
    pub fn ref_key(&self, name: &str) -> String {
        match &self.secrets {
            Some(secrets) => {
                let hash = blake3::keyed_hash(secrets.names.bytes(), name.as_bytes());
                format!("{}{}", self.ref_prefix(), hash.to_hex())
            }
            None => format!("{}{}", self.ref_prefix(), name.replace('/', "%2F")),
        }
    }

    fn secrets(&self) -> Result<&Secrets> {
        self.secrets
            .as_ref()
            .ok_or_else(|| Error::corrupt("an encrypted record in a domain that has no keys"))
    }

    /// A snapshot's record and its id: the BLAKE3 of the record.
    ///
    /// # Errors
    /// `Internal` for a domain without its keys.
    pub fn encode_snapshot(&self, snapshot: &Snapshot) -> Result<(SnapshotId, Vec<u8>)> {
        if !self.is_encrypted() {
            return Ok(snapshot.encode());
        }
        let sealed =
            self.secrets()?.snapshots.seal(&bound(Record::SealedSnapshot, self.id), &snapshot.body())?;
        let mut body = Encoder::with_capacity(DomainId::LEN + sealed.len());
        body.bytes(self.id.as_bytes()).bytes(&sealed);
        let bytes = seal(Record::SealedSnapshot, &body.finish());
        Ok((SnapshotId::from_bytes(*blake3::hash(&bytes).as_bytes()), bytes))
    }

    /// Parses the snapshot record stored under `id`.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, changed, or another snapshot's or domain's record.
    pub fn decode_snapshot(&self, id: &SnapshotId, bytes: &[u8]) -> Result<Snapshot> {
        if !self.is_encrypted() {
            return Snapshot::decode(id, bytes);
        }
        let mut fields = Decoder::new(unseal(Record::SealedSnapshot, bytes)?);
        if blake3::hash(bytes).as_bytes() != id.as_bytes() {
            return Err(Error::corrupt("snapshot record stands under another's name"));
        }
        let owner = DomainId::from_bytes(fields.array()?);
        let sealed = fields.take(fields.remaining())?;
        let opened = match owner == self.id {
            true => self.secrets()?.snapshots.open(&bound(Record::SealedSnapshot, self.id), sealed),
            false => None,
        };
        Snapshot::decode_body(&opened.ok_or_else(|| foreign("snapshot"))?)
    }

    /// A ref's record; `trail` lists the records before it, newest first.
    ///
    /// # Errors
    /// `Invalid` when this host cannot sign for the domain.
    pub fn encode_ref(&self, found: &Ref, trail: &[Step]) -> Result<Vec<u8>> {
        if self.kind == DomainKind::Plain {
            return Ok(found.encode());
        }
        let mut inner = Encoder::new();
        inner.string(&found.body()).count(trail.len());
        trail.iter().for_each(|step| {
            inner.bytes(step);
        });
        let mut inner = inner.finish();
        let signature = self.sign(&self.signed_ref(&inner))?;
        inner.extend_from_slice(&signature);
        let mut body = Encoder::with_capacity(DomainId::LEN + 8 + SEAL_LEN + inner.len());
        body.bytes(self.id.as_bytes());
        match self.is_encrypted() {
            true => {
                body.u8(CIPHER);
                body.bytes(&self.secrets()?.refs.seal(&bound(Record::SignedRef, self.id), &inner)?);
            }
            false => {
                body.u8(0).bytes(&inner);
            }
        }
        Ok(seal(Record::SignedRef, &body.finish()))
    }

    fn signed_ref(&self, inner: &[u8]) -> Vec<u8> {
        let mut signed = Encoder::with_capacity(64 + inner.len());
        signed.bytes(SIGNED_REF).u16(FORMAT_VERSION).bytes(self.id.as_bytes()).bytes(inner);
        signed.finish()
    }

    /// Parses the ref's record that stands under a key, and checks its signature.
    ///
    /// # Errors
    /// `Corrupt`, also for another ref's or domain's record.
    pub fn decode_ref(&self, at: &str, bytes: &[u8]) -> Result<StoredRef> {
        let stored = match self.kind {
            DomainKind::Plain => {
                Ref::decode(bytes).map(|found| StoredRef { found, mark: None, trail: Vec::new() })
            }
            _ => self.decode_signed_ref(bytes),
        };
        match stored.map_err(|error| error.object(at))? {
            stored if self.ref_key(&stored.found.name) == at => Ok(stored),
            _ => Err(Error::corrupt("ref record stands under another's name").object(at)),
        }
    }

    fn decode_signed_ref(&self, bytes: &[u8]) -> Result<StoredRef> {
        let mut fields = Decoder::new(unseal(Record::SignedRef, bytes)?);
        let (owner, cipher) = (DomainId::from_bytes(fields.array()?), fields.u8()?);
        let rest = fields.take(fields.remaining())?;
        let inner = match (owner == self.id, cipher, self.is_encrypted()) {
            (true, 0, false) => Some(rest.to_vec()),
            (true, CIPHER, true) => self.secrets()?.refs.open(&bound(Record::SignedRef, self.id), rest),
            _ => None,
        };
        let inner = inner.ok_or_else(|| foreign("ref"))?;
        let signed = inner.split_last_chunk::<SIGNATURE_LEN>().and_then(|(signed, signature)| {
            let verify_key = self.verify_key?;
            verify_key.verifies(&self.signed_ref(signed), signature).then_some((signed, verify_key))
        });
        let Some((signed, verify_key)) = signed else {
            return Err(Error::corrupt("ref is not signed by its domain"));
        };
        let mut fields = Decoder::new(signed);
        let found = Ref::decode_body(fields.string()?)?;
        let mut trail = Vec::new();
        for _ in 0..fields.count(size_of::<Step>())? {
            trail.push(fields.array()?);
        }
        fields.end()?;
        if trail.len() as u64 != found.counter.saturating_sub(1).min(TRAIL_LEN as u64) {
            return Err(Error::corrupt("ref does not list the records before it"));
        }
        let hash = *blake3::hash(bytes).as_bytes();
        let mark = Mark { domain: self.id, verify_key, counter: found.counter, hash };
        Ok(StoredRef { found, mark: Some(mark), trail })
    }
}

fn foreign(what: &str) -> Error {
    Error::corrupt(format!("{what} record was changed, or is another domain's"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::domain::kek::Kek;
    use crate::domain::record::{DomainRecord, KeySet};
    use crate::records::reference::RefEntry;
    use crate::testing::flipped;
    use crate::wire::ENVELOPE_LEN;

    fn domain(name: &str, kind: DomainKind) -> Domain {
        let (keys, kek) = (KeySet::random(), Kek::take(&mut [1; 32]));
        let id = DomainId::from_bytes(crate::clock::random_bytes());
        let record = DomainRecord::new(name, id, kind, 1, &keys, &kek).unwrap();
        let domain = match kind {
            DomainKind::Public => Domain::public(name, &record),
            _ => Domain::encrypted(name, &record, &keys),
        };
        domain.take_over(&record, [0; 32], keys);
        domain
    }

    fn canary_ref() -> Ref {
        let entry =
            RefEntry { snapshot: SnapshotId::from_bytes([8; 32]), time: Time { seconds: 1, nanos: 2 } };
        Ref { name: "canary/ref".to_owned(), counter: 4, history: vec![entry], proposals: Vec::new() }
    }

    /// Of the records before the canary's.
    const TRAIL: [Step; 3] = [[3; 16], [2; 16], [1; 16]];

    fn contains(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn refs_and_snapshots_of_an_encrypted_domain_are_its_own_and_say_nothing() {
        let (acme, other) = (domain("acme", DomainKind::Encrypted), domain("acme", DomainKind::Encrypted));
        let labels = [("canary".to_owned(), "canary".to_owned())].into();
        let snapshot = Snapshot { labels, ..Snapshot::default() };
        let (id, record) = acme.encode_snapshot(&snapshot).unwrap();
        assert_eq!(acme.decode_snapshot(&id, &record).unwrap(), snapshot);
        assert!(other.decode_snapshot(&id, &record).is_err());
        assert_ne!(acme.encode_snapshot(&snapshot).unwrap().0, id, "equal records do not look equal");

        let (key, stored) = (acme.ref_key("canary/ref"), acme.encode_ref(&canary_ref(), &TRAIL).unwrap());
        let read = acme.decode_ref(&key, &stored).unwrap();
        assert_eq!((&read.found, read.trail.as_slice()), (&canary_ref(), TRAIL.as_slice()));
        assert_eq!(read.next_trail(&stored)[1..], TRAIL);
        assert!(acme.decode_ref(&key, &acme.encode_ref(&canary_ref(), &TRAIL[1..]).unwrap()).is_err());
        assert_ne!(other.ref_key("canary/ref"), key);
        assert!(other.decode_ref(&other.ref_key("canary/ref"), &stored).is_err());
        assert!(acme.decode_ref(&acme.ref_key("other"), &stored).is_err());
        for bytes in [&record, &stored, key.as_bytes()] {
            assert!(!contains(bytes, b"canary"));
        }
    }

    /// Correct checksums do not hide a changed record.
    #[test]
    fn no_changed_bit_of_a_record_passes() {
        for kind in [DomainKind::Encrypted, DomainKind::Public] {
            let acme = domain("acme", kind);
            let key = acme.ref_key("canary/ref");
            let body = acme.encode_ref(&canary_ref(), &TRAIL).unwrap()[ENVELOPE_LEN..].to_vec();
            assert!(acme.decode_ref(&key, &seal(Record::SignedRef, &body)).is_ok());
            for bit in 0..body.len() * 8 {
                let forged = seal(Record::SignedRef, &flipped(&body, bit));
                assert!(acme.decode_ref(&key, &forged).is_err(), "{kind:?} bit {bit}");
            }
        }
        let acme = domain("acme", DomainKind::Encrypted);
        let body = acme.encode_snapshot(&Snapshot::default()).unwrap().1[ENVELOPE_LEN..].to_vec();
        for bit in 0..body.len() * 8 {
            let forged = seal(Record::SealedSnapshot, &flipped(&body, bit));
            let id = SnapshotId::from_bytes(*blake3::hash(&forged).as_bytes());
            assert!(acme.decode_snapshot(&id, &forged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_ref_signed_by_another_key_is_refused() {
        let (public, other) = (domain("public", DomainKind::Public), domain("public", DomainKind::Public));
        let key = public.ref_key("canary/ref");
        assert_eq!(key, "refs/public/canary%2Fref");
        let body = other.encode_ref(&canary_ref(), &TRAIL).unwrap()[ENVELOPE_LEN..].to_vec();
        let forged = [public.id.as_bytes(), &body[16..]].concat();
        assert!(public.decode_ref(&key, &seal(Record::SignedRef, &forged)).is_err());
        assert!(public.decode_ref(&key, &canary_ref().encode()).is_err(), "unsigned");
    }
}
