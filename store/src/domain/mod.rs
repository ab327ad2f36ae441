//! A domain: the boundary of deduplication, encryption and trust. Ids of one domain are BLAKE3 under its key, so they
//! reveal nothing about the contents of another; frames, snapshots and refs of an encrypted domain are readable with
//! its keys alone, and its refs are signed.
//!
//! `keys` is the cryptography, `kek` the sources of key-encryption keys, `record` the domain's record, `keyring` the
//! open domains of a store, `seen` the state that this host saw last, which detects a record that was rolled back.

pub(crate) mod kek;
mod keyring;
pub(crate) mod keys;
pub(crate) mod record;
pub(crate) mod seen;

pub use kek::{KekId, KeySource, KeySources, is_private};
pub use keyring::{DomainConfig, Keyring};
pub use keys::{SEAL_LEN, VerifyKey};
pub use record::DomainKind;
pub use seen::{Mark, Seen, vanished};

use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, DomainId};
use crate::sync::RwLock;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};
use keys::{KEY_LEN, SIGNATURE_LEN, SecretKey, SignKey};
use record::{DomainRecord, KeySet};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The domain that a store begins with.
pub const DEFAULT: &str = "default";
/// The domain that every domain may deduplicate against.
pub const PUBLIC: &str = "public";
/// Longest name in bytes.
const MAX_NAME_LEN: usize = 64;

/// Frames sealed by XChaCha20-Poly1305; 0 are frames that are not encrypted.
pub const CIPHER: u8 = 1;

/// Refuses names that are empty, long, or hold anything but lower-case letters, digits, `-` and `_`.
///
/// # Errors
/// `Invalid`.
pub fn check_name(name: &str) -> Result<()> {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c);
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if first && name.len() <= MAX_NAME_LEN && name.bytes().all(good) {
        return Ok(());
    }
    Err(Error::invalid("not a domain name")
        .object(format!("{name:?}"))
        .advice("use lower-case letters, digits, '-' and '_', and begin with a letter or digit"))
}

/// An open domain.
pub struct Domain {
    pub(crate) name: String,
    pub(crate) id: DomainId,
    pub(crate) kind: DomainKind,
    id_key: Box<Zeroizing<[u8; KEY_LEN]>>,
    pub(crate) verify_key: Option<VerifyKey>,
    /// Keys of an encrypted domain that no rotation changes.
    pub(crate) secrets: Option<Secrets>,
    /// State that rotation changes or that is loaded when first needed.
    changing: RwLock<Changing>,
    /// Bytes of an id that are not zero: with few of them chunks that differ get the same id.
    #[cfg(test)]
    pub(crate) id_len: usize,
}

pub(crate) struct Secrets {
    pub(crate) names: SecretKey,
    pub(crate) snapshots: SecretKey,
    pub(crate) refs: SecretKey,
    local: SecretKey,
}

#[derive(Default)]
struct Changing {
    record_hash: [u8; 32],
    sign: Option<Arc<SignKey>>,
    key_epoch: u32,
    epochs: BTreeMap<u32, Arc<SecretKey>>,
}

/// How the frames of one writer are sealed: one key epoch for all of them, also during a rotation.
#[derive(Clone)]
pub struct Sealer {
    /// The domain's tag.
    pub tag: u32,
    /// The domain.
    pub domain: DomainId,
    /// Key epoch and key, where frames are encrypted.
    pub key: Option<(u32, Arc<SecretKey>)>,
}

impl Sealer {
    /// Leaves frames as they are: the plain domain's.
    pub const fn plain() -> Self {
        Self { tag: 0, domain: DomainId::from_bytes([0; DomainId::LEN]), key: None }
    }
}

impl Domain {
    /// A plain domain with this key.
    pub fn plain(id_key: [u8; KEY_LEN]) -> Self {
        Self {
            name: DEFAULT.to_owned(),
            id: Sealer::plain().domain,
            kind: DomainKind::Plain,
            id_key: Box::new(Zeroizing::new(id_key)),
            verify_key: None,
            secrets: None,
            changing: RwLock::default(),
            #[cfg(test)]
            id_len: ChunkId::LEN,
        }
    }

    /// The public domain of a record, without the signing key.
    pub(crate) fn public(name: &str, record: &DomainRecord) -> Self {
        Self {
            name: name.to_owned(),
            id: record.id,
            kind: record.kind,
            id_key: Box::new(Zeroizing::new(record.public_id_key)),
            verify_key: Some(record.verify_key),
            secrets: None,
            changing: RwLock::default(),
            #[cfg(test)]
            id_len: ChunkId::LEN,
        }
    }

    /// The encrypted domain of a record and its keys.
    pub(crate) fn encrypted(name: &str, record: &DomainRecord, keys: &KeySet) -> Self {
        let derive = |purpose| keys.record_key.derive(purpose);
        Self {
            name: name.to_owned(),
            id: record.id,
            kind: record.kind,
            id_key: Box::new(Zeroizing::new(*keys.id_key.bytes())),
            verify_key: Some(record.verify_key),
            secrets: Some(Secrets {
                names: derive("Torpor 1: names of refs in keys"),
                snapshots: derive("Torpor 1: snapshot records"),
                refs: derive("Torpor 1: ref records"),
                local: derive("Torpor 1: local state"),
            }),
            changing: RwLock::default(),
            #[cfg(test)]
            id_len: ChunkId::LEN,
        }
    }

    /// Takes over the state that rotation changes.
    pub(crate) fn take_over(&self, record: &DomainRecord, record_hash: [u8; 32], keys: KeySet) {
        let mut changing = self.changing.write();
        changing.record_hash = record_hash;
        changing.sign = Some(Arc::new(SignKey::of(&keys.sign_seed)));
        changing.key_epoch = record.key_epoch;
        changing.epochs = keys.epochs.into_iter().map(|(epoch, key)| (epoch, Arc::new(key))).collect();
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id; all zero for the plain domain.
    pub fn id(&self) -> DomainId {
        self.id
    }

    /// Its kind.
    pub fn kind(&self) -> DomainKind {
        self.kind
    }

    /// Whether its data is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.kind == DomainKind::Encrypted
    }

    /// Verifies its signatures; the plain domain signs nothing.
    pub fn verify_key(&self) -> Option<VerifyKey> {
        self.verify_key
    }

    /// The id of a chunk with these bytes. About 3 GB/s on one core.
    pub fn chunk_id(&self, bytes: &[u8]) -> ChunkId {
        let hash = blake3::keyed_hash(&self.id_key, bytes);
        #[cfg(test)]
        let hash = {
            let mut short = [0; ChunkId::LEN];
            short[..self.id_len].copy_from_slice(&hash.as_bytes()[..self.id_len]);
            blake3::Hash::from_bytes(short)
        };
        ChunkId::from_bytes(*hash.as_bytes())
    }

    /// How frames are sealed now.
    ///
    /// # Errors
    /// `Internal` when an encrypted domain has no key for its current epoch.
    pub fn sealer(&self) -> Result<Sealer> {
        let key = match self.is_encrypted() {
            false => None,
            true => {
                let changing = self.changing.read();
                let key = changing.epochs.get(&changing.key_epoch).cloned();
                let missing = || Error::new(Kind::Internal, "domain has no current key").object(&self.name);
                Some((changing.key_epoch, key.ok_or_else(missing)?))
            }
        };
        Ok(Sealer { tag: self.id.tag(), domain: self.id, key })
    }

    /// The key of frames of an epoch, if this process knows it.
    pub fn frame_key(&self, epoch: u32) -> Option<Arc<SecretKey>> {
        self.changing.read().epochs.get(&epoch).cloned()
    }

    /// The key epochs that this process knows, and the current one.
    pub fn key_epochs(&self) -> (Vec<u32>, u32) {
        let changing = self.changing.read();
        (changing.epochs.keys().copied().collect(), changing.key_epoch)
    }

    fn record_hash(&self) -> [u8; 32] {
        self.changing.read().record_hash
    }

    /// Signs for the domain.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_LEN]> {
        let key = self.changing.read().sign.clone();
        let key = key.ok_or_else(|| {
            Error::invalid("this host may read the domain and not change it: it has not its signing key")
                .object(&self.name)
                .advice("name the key-encryption key of the domain in the configuration, under [keys]")
        })?;
        Ok(key.sign(message))
    }

    /// Whether this process can sign changed refs of the domain.
    pub fn may_sign(&self) -> bool {
        let changing = self.changing.read();
        self.verify_key.is_none() || changing.sign.is_some()
    }

    /// The part of a purpose that may be shown where others read it (sessions, locks, logs): in an encrypted domain the
    /// first word alone, since the rest names refs and paths.
    pub fn redacted<'a>(&self, purpose: &'a str) -> &'a str {
        match self.is_encrypted() {
            true => purpose.split(' ').next().unwrap_or_default(),
            false => purpose,
        }
    }

    /// A hasher for this host's local state; hashes of an encrypted domain reveal nothing without its keys.
    pub fn local_hasher(&self) -> blake3::Hasher {
        match &self.secrets {
            Some(secrets) => blake3::Hasher::new_keyed(secrets.local.bytes()),
            None => blake3::Hasher::new(),
        }
    }

    /// The record of a plain domain: id key, cipher, key epoch.
    pub fn encode_plain(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.bytes(&**self.id_key).u8(0).u32(0);
        seal(Record::Domain, &body.finish())
    }

    /// Parses the record of a plain domain.
    ///
    /// # Errors
    /// `Corrupt`, or `Invalid` for a cipher that this build does not have.
    pub fn decode_plain(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Domain, bytes)?);
        let id_key = fields.array()?;
        let (cipher, _key_epoch) = (fields.u8()?, fields.u32()?);
        fields.end()?;
        match cipher {
            0 => Ok(Self::plain(id_key)),
            _ => Err(Error::invalid(format!("domain uses cipher {cipher}")).advice("use a newer snapctl")),
        }
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Domain({}, keys not shown)", self.name)
    }
}

/// An encrypted domain with keys of its own, for the tests of other modules.
#[cfg(test)]
pub fn testing_domain() -> Domain {
    let (keys, kek) = (KeySet::random(), kek::Kek::take(&mut [1; KEY_LEN]));
    let id = DomainId::from_bytes(crate::clock::random_bytes());
    let record = DomainRecord::new("acme", id, DomainKind::Encrypted, 1, &keys, &kek).expect("it is short");
    let domain = Domain::encrypted("acme", &record, &keys);
    domain.take_over(&record, [0; 32], keys);
    domain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;

    #[test]
    fn a_plain_domain_reads_back_and_nothing_else_does() {
        let domain = Domain::plain([9; 32]);
        let key_of = |bytes: &[u8]| Domain::decode_plain(bytes).map(|domain| domain.id_key);
        assert_sealed(&domain.encode_plain(), &domain.id_key, key_of);
    }

    #[test]
    fn domains_with_other_keys_give_other_ids() {
        let (one, other) = (Domain::plain([1; 32]), Domain::plain([2; 32]));
        assert_eq!(one.chunk_id(b"bytes"), Domain::plain([1; 32]).chunk_id(b"bytes"));
        assert_ne!(one.chunk_id(b"bytes"), other.chunk_id(b"bytes"));
        assert!(!format!("{one:?}").contains('1'), "the key is not shown");
    }

    #[test]
    fn only_harmless_names_pass() {
        for good in ["default", "public", "tenant-7", "0a_b"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a/b", "..", "a b", "\u{e4}", &"x".repeat(65)] {
            assert_eq!(check_name(bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn what_a_session_says_of_an_encrypted_domain_names_nothing() {
        let keys = KeySet::random();
        let kek = kek::Kek::take(&mut [1; 32]);
        let id = DomainId::from_bytes([1; 16]);
        let record = DomainRecord::new("acme", id, DomainKind::Encrypted, 1, &keys, &kek).unwrap();
        let domain = Domain::encrypted("acme", &record, &keys);
        assert_eq!(domain.redacted("backup of secrets"), "backup");
        assert_eq!(Domain::plain([0; 32]).redacted("backup of web"), "backup of web");
    }
}
