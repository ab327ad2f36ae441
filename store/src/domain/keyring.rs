//! The open domains of a store: reads their records, unwraps their keys, and learns of rotations by other processes.
//! Key-encryption keys are read when needed and not kept.
//!
//! A record older than the one this host saw, or of another domain, opens nothing.

use super::kek::KeySources;
use super::record::{DomainKind, DomainRecord};
use super::{DEFAULT, Domain, Mark, PUBLIC, Seen, VerifyKey, check_name};
use crate::error::{Error, Kind, OptionalExt, Result};
use crate::sync::Mutex;
use crate::tier::Tier;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A host's settings of domains: key sources and trusted keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainConfig {
    /// The domain to work in; none: the plain one.
    pub name: Option<String>,
    /// Sources of key-encryption keys.
    pub keys: KeySources,
    /// Keys that domains must be signed with, by name. A host that names none trusts the first one that it sees.
    pub verify_keys: BTreeMap<String, VerifyKey>,
}

/// The open domains of a store.
#[derive(Debug)]
pub struct Keyring {
    metadata_tier: Arc<dyn Tier>,
    seen: Seen,
    config: DomainConfig,
    open: Mutex<BTreeMap<String, Arc<Domain>>>,
}

impl Keyring {
    /// A keyring with nothing open.
    pub fn new(metadata_tier: Arc<dyn Tier>, state: &Path, config: DomainConfig) -> Self {
        Self { metadata_tier, seen: Seen::of_domains(state), config, open: Mutex::default() }
    }

    /// Sources of key-encryption keys.
    pub fn sources(&self) -> &KeySources {
        &self.config.keys
    }

    /// The domain `name`, opened if it is not. The public one opens without keys.
    ///
    /// # Errors
    /// `NotFound` when there is none or it was destroyed; `Invalid` without the right key; `Corrupt` for a record that
    /// is damaged, older than the one this host saw, or of another domain.
    pub fn open(&self, name: &str) -> Result<Arc<Domain>> {
        if let Some(domain) = self.lock().get(name) {
            return Ok(domain.clone());
        }
        let domain = match name {
            DEFAULT => {
                let key = DomainRecord::key(name);
                Domain::decode_plain(&self.metadata_tier.get(&key)?).map_err(|error| error.object(key))?
            }
            _ => self.open_keyed(name)?,
        };
        Ok(self.lock().entry(name.to_owned()).or_insert(Arc::new(domain)).clone())
    }

    /// The public domain, where the store has one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn public(&self) -> Result<Option<Arc<Domain>>> {
        self.open(PUBLIC).optional()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Domain>>> {
        self.open.lock()
    }

    fn open_keyed(&self, name: &str) -> Result<Domain> {
        check_name(name)?;
        let (record, hash, _) = self.read(name)?;
        match record.kind {
            DomainKind::Public => Ok(Domain::public(name, &record)),
            DomainKind::Destroyed => Err(Error::new(Kind::NotFound, "domain was destroyed").object(name)),
            DomainKind::Plain | DomainKind::Encrypted => {
                let keys = record.unwrap_keys(name, &self.config.keys.kek(name)?)?;
                let domain = Domain::encrypted(name, &record, &keys);
                domain.take_over(&record, hash, keys);
                Ok(domain)
            }
        }
    }

    /// A domain's record, its hash and its bytes, if it is the one this host had seen before the read, or a successor.
    ///
    /// # Errors
    /// `NotFound`, or `Corrupt`.
    pub fn read(&self, name: &str) -> Result<(DomainRecord, [u8; 32], Vec<u8>)> {
        let old = self.seen.get(name);
        let (record, mark, bytes) = self.read_unseen(name)?;
        if self.config.verify_keys.get(name).is_some_and(|pinned| *pinned != record.verify_key) {
            let what = format!(
                "domain is signed by {}, which is not the key of the configuration",
                record.verify_key
            );
            return Err(Error::corrupt(what).object(name));
        }
        match old.map(|old| old.judge(&mark, &[])) {
            None | Some(Ok(())) => {}
            Some(Err(wrong)) => return Err(wrong.error("domain record", name, name)),
        }
        self.seen.note(name, &mark);
        Ok((record, mark.hash, bytes))
    }

    /// A domain's current record, regardless of what this host saw.
    ///
    /// # Errors
    /// `NotFound`, or `Corrupt`: also when it was there and is gone.
    pub fn read_unseen(&self, name: &str) -> Result<(DomainRecord, Mark, Vec<u8>)> {
        let key = DomainRecord::key(name);
        let bytes = match self.metadata_tier.get(&key) {
            Err(error) if error.kind() == Kind::NotFound && self.seen.get(name).is_some() => {
                return Err(super::seen::vanished("domain record", name, name));
            }
            Err(error) if error.kind() == Kind::NotFound => {
                return Err(Error::new(Kind::NotFound, "no such domain")
                    .object(name)
                    .advice("`snapctl domain list` lists them, `snapctl domain create` makes one"));
            }
            read => read?.to_vec(),
        };
        let record = DomainRecord::decode(name, &bytes).map_err(|error| error.object(key))?;
        let hash = *blake3::hash(&bytes).as_bytes();
        let mark = Mark { domain: record.id, verify_key: record.verify_key, counter: record.counter, hash };
        Ok((record, mark, bytes))
    }

    /// Trusts a domain's current record; `None`: as one never seen.
    ///
    /// # Errors
    /// As the system calls.
    pub fn trust(&self, name: &str, mark: Option<&Mark>) -> Result<()> {
        self.close(name);
        self.seen.trust(name, mark)
    }

    /// Reads a domain's record again, and takes over its changes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn reload(&self, domain: &Domain) -> Result<()> {
        if domain.kind() == DomainKind::Plain {
            return Ok(());
        }
        let name = domain.name();
        let (record, hash, _) = self.read(name)?;
        if hash == domain.record_hash() && domain.may_sign() {
            return Ok(());
        }
        if (record.id, record.kind) != (domain.id(), domain.kind()) {
            return Err(Error::new(Kind::NotFound, "domain was destroyed").object(name));
        }
        let keys = record.unwrap_keys(name, &self.config.keys.kek(name)?)?;
        domain.take_over(&record, hash, keys);
        Ok(())
    }

    /// Forgets an open domain: its keys are wiped when its last user drops it.
    pub fn close(&self, name: &str) {
        self.lock().remove(name);
    }
}
