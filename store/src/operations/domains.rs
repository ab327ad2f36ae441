//! The domains of a store: creating, listing, rotating and destroying them, and trusting records that differ from those
//! that this host saw last.

use crate::clock;
use crate::domain::kek::{KekId, KeySource};
use crate::domain::record::{DomainKind, DomainRecord, KeySet};
use crate::domain::{DEFAULT, PUBLIC, Seen, VerifyKey, check_name};
use crate::error::{Error, Kind, Result};
use crate::id::{DomainId, SnapshotId};
use crate::keys;
use crate::records::session;
use crate::records::superblock::{self, Superblock};
use crate::repo::store::Store;
use std::collections::HashSet;

/// Swaps lost to other processes before giving up.
const MAX_ATTEMPTS: usize = 16;

/// The public fields of a domain, readable without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainSummary {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: DomainId,
    /// Its kind.
    pub kind: DomainKind,
    /// The key epoch of new frames; 0 where they are not encrypted.
    pub key_epoch: u32,
    /// How often its record was changed.
    pub counter: u64,
    /// The key that wraps its keys.
    pub kek: Option<KekId>,
    /// The key that verifies its signatures.
    pub verify_key: Option<VerifyKey>,
}

impl DomainSummary {
    fn of(name: &str, record: &DomainRecord) -> Self {
        Self {
            name: name.to_owned(),
            id: record.id,
            kind: record.kind,
            key_epoch: record.key_epoch,
            counter: record.counter,
            kek: (record.kind != DomainKind::Destroyed).then_some(record.kek),
            verify_key: Some(record.verify_key),
        }
    }
}

/// The kinds of a rotation.
#[derive(Clone, Debug)]
pub enum Rotation {
    /// Begins a new key epoch: new frames are sealed under a new key.
    NewEpoch,
    /// Wraps the same keys by another key-encryption key.
    Rewrap(KeySource),
    /// Drops the keys of these epochs: no frame is sealed under them.
    Retire(Vec<u32>),
}

/// The domains of a store: [`Store::domains`].
#[derive(Clone, Copy, Debug)]
pub struct Domains<'a> {
    store: &'a Store,
}

impl Store {
    /// The domains of the store.
    pub fn domains(&self) -> Domains<'_> {
        Domains { store: self }
    }
}

impl Domains<'_> {
    /// The names of all domains that the store has or had.
    ///
    /// # Errors
    /// As the tier.
    pub fn names(self) -> Result<Vec<String>> {
        let infos = self.store.metadata_tier().list(keys::DOMAINS)?;
        Ok(infos.iter().map(|info| info.key[keys::DOMAINS.len()..].to_owned()).collect())
    }

    /// Every domain as its record says, or the error of the record. No keys are needed.
    ///
    /// # Errors
    /// As the tier.
    pub fn all(self) -> Result<Vec<(String, Result<DomainSummary>)>> {
        let names = self.names()?;
        Ok(names.into_iter().map(|name| (name.clone(), self.summary(&name))).collect())
    }

    /// A domain as its record says.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn summary(self, name: &str) -> Result<DomainSummary> {
        if name != DEFAULT {
            return Ok(DomainSummary::of(name, &self.store.inner.keyring.read_unseen(name)?.0));
        }
        let domain = self.store.inner.keyring.open(name)?;
        Ok(DomainSummary {
            name: name.to_owned(),
            id: domain.id(),
            kind: domain.kind(),
            key_epoch: 0,
            counter: 0,
            kek: None,
            verify_key: None,
        })
    }

    /// Creates a domain, its keys wrapped by the key-encryption key that the configuration names for it. Builds
    /// that know no domains then refuse to open the store: their collector would delete the data of domains it cannot
    /// see.
    ///
    /// # Errors
    /// `Conflict` when there is or was one of this name; `Invalid` for the name, the kind or the key.
    pub fn create(self, name: &str, kind: DomainKind) -> Result<DomainSummary> {
        check_name(name)?;
        match (kind, name == PUBLIC) {
            (DomainKind::Encrypted, false) | (DomainKind::Public, true) => {}
            (DomainKind::Encrypted, true) => {
                return Err(Error::invalid("the domain `public` is public").advice("create it with --public"));
            }
            _ => {
                return Err(
                    Error::invalid("a store has one public domain, and its name is `public`").object(name)
                );
            }
        }
        let taken = || {
            Error::new(Kind::Conflict, "there is, or was, a domain of this name")
                .object(name)
                .advice("choose another: a name is never used twice")
        };
        let names = self.names()?;
        if names.iter().any(|known| known == name) {
            return Err(taken());
        }
        let tags: HashSet<u32> =
            names.iter().filter_map(|name| Some(self.summary(name).ok()?.id.tag())).collect();
        let mut id = DomainId::from_bytes(clock::random_bytes());
        while id.tag() == 0 || tags.contains(&id.tag()) {
            id = DomainId::from_bytes(clock::random_bytes());
        }
        let kek = self.store.inner.keyring.sources().kek(name)?;
        let mut keys = KeySet::random();
        if kind == DomainKind::Public {
            keys.epochs.clear();
        }
        let record = DomainRecord::new(name, id, kind, 1, &keys, &kek)?;
        self.set_feature(superblock::DOMAINS)?;
        if !self.store.metadata_tier().put_if_absent(&DomainRecord::key(name), &record.encode())? {
            return Err(taken());
        }
        tracing::info!(domain = name, %id, kind = kind.word(), "created");
        Ok(DomainSummary::of(name, &record))
    }

    /// Sets a bit of the superblock that every build must know from now on.
    fn set_feature(self, bit: u64) -> Result<()> {
        let tier = self.store.metadata_tier();
        for _ in 0..MAX_ATTEMPTS {
            let bytes = tier.get(keys::SUPERBLOCK)?;
            let mut next = Superblock::decode(&bytes)?;
            if next.incompatible & bit != 0 {
                return Ok(());
            }
            next.incompatible |= bit;
            if tier.compare_and_swap(keys::SUPERBLOCK, Some(&bytes), &next.encode())? {
                return Ok(());
            }
        }
        Err(busy("superblock"))
    }

    /// Changes the keys of the domain `name`.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` without the right key; `Conflict` when other processes keep changing the record.
    pub fn rotate(self, name: &str, rotation: &Rotation) -> Result<DomainSummary> {
        check_name(name)?;
        if name == DEFAULT {
            return Err(Error::invalid("the plain domain has no keys").object(name));
        }
        for _ in 0..MAX_ATTEMPTS {
            let (old, _, bytes) = self.store.inner.keyring.read(name)?;
            let mut keys = old.unwrap_keys(name, &self.store.inner.keyring.sources().kek(name)?)?;
            let kek = match rotation {
                Rotation::Rewrap(source) => source.read()?,
                _ => self.store.inner.keyring.sources().kek(name)?,
            };
            change_epochs(&mut keys, &old, name, rotation)?;
            let next = DomainRecord::new(name, old.id, old.kind, old.counter + 1, &keys, &kek)?;
            if self.store.metadata_tier().compare_and_swap(
                &DomainRecord::key(name),
                Some(&bytes),
                &next.encode(),
            )? {
                tracing::info!(domain = name, epoch = next.key_epoch, kek = %next.kek, "rotated");
                return Ok(DomainSummary::of(name, &next));
            }
        }
        Err(busy(name))
    }

    /// Destroys a domain: its keys first, in one swap, then its refs and snapshot records; the collector frees the
    /// packs. A copy of the domain's record still unlocks its data: where one may exist, destroy the key-encryption key
    /// too. Calling it again finishes an interrupted run.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for the plain and the public domain; `Conflict` while a session depends on its snapshots.
    pub fn destroy(self, name: &str) -> Result<DomainSummary> {
        check_name(name)?;
        if name == DEFAULT {
            return Err(Error::invalid("the plain domain has no keys to destroy")
                .object(name)
                .advice("forget its refs and run `snapctl gc`"));
        }
        let mut destroyed = None;
        for _ in 0..MAX_ATTEMPTS {
            let (old, _, bytes) = self.store.inner.keyring.read_unseen(name)?;
            if old.kind == DomainKind::Public {
                return Err(Error::invalid(
                    "the public domain keeps no secrets, and other domains may depend on it",
                )
                .object(name)
                .advice("forget its refs and run `snapctl gc`"));
            }
            if old.kind == DomainKind::Destroyed {
                destroyed = Some(old);
                break;
            }
            self.refuse_while_pinned(name)?;
            let next = old.destroyed();
            if self.store.metadata_tier().compare_and_swap(
                &DomainRecord::key(name),
                Some(&bytes),
                &next.encode(),
            )? {
                destroyed = Some(next);
                break;
            }
        }
        let record = destroyed.ok_or_else(|| busy(name))?;
        self.store.inner.keyring.close(name);
        self.remove_records_of(name)?;
        let seen = Seen::of_refs(self.store.state_dir(), record.id);
        for ref_name in seen.names() {
            seen.trust(&ref_name, None)?;
        }
        tracing::info!(domain = name, id = %record.id, "destroyed");
        Ok(DomainSummary::of(name, &record))
    }

    /// A mount goes on with the keys in its memory; it must end first.
    fn refuse_while_pinned(self, name: &str) -> Result<()> {
        let prefix = keys::snapshots_of(name);
        let infos = self.store.metadata_tier().list(&prefix)?;
        let own: HashSet<SnapshotId> =
            infos.iter().filter_map(|info| info.key[prefix.len()..].parse().ok()).collect();
        for session in session::alive(self.store.sessions(), false)?.into_iter().map(|listed| listed.record) {
            if session.pinned.iter().any(|id| own.contains(id)) {
                return Err(Error::new(Kind::Conflict, format!("the domain is in use: {}", session.purpose))
                    .object(name)
                    .advice(
                        "unmount and end what uses it, and remove uppers with changes to it, then try again",
                    ));
            }
        }
        Ok(())
    }

    /// Removes the refs and snapshot records of a destroyed domain, which cannot be read any more.
    ///
    /// # Errors
    /// As the tier.
    pub fn remove_records_of(self, destroyed: &str) -> Result<()> {
        for prefix in [keys::refs_of(destroyed), keys::snapshots_of(destroyed)] {
            for info in self.store.metadata_tier().list(&prefix)? {
                self.store.metadata_tier().delete(&info.key)?;
            }
        }
        Ok(())
    }

    /// The store in the domain of a snapshot: this one, if no other is found.
    ///
    /// # Errors
    /// As the tier; as opening the domain.
    pub fn store_of(self, snapshot: &SnapshotId) -> Result<Store> {
        let own = self.store.domain.snapshot_key(snapshot);
        if self.store.metadata_tier().len_bytes(&own)?.is_none() {
            for name in self.names()? {
                if self
                    .store
                    .metadata_tier()
                    .len_bytes(&format!("{}{snapshot}", keys::snapshots_of(&name)))?
                    .is_some()
                {
                    return self.store.in_domain(&name);
                }
            }
        }
        Ok(self.store.clone())
    }

    /// Accepts the current state of a domain as the last seen by this host: its record and the ref named, or all its
    /// refs.
    ///
    /// # Errors
    /// `NotFound` when there is no such domain; as opening it.
    pub fn trust(self, name: &str, ref_name: Option<&str>) -> Result<()> {
        let keyring = &self.store.inner.keyring;
        match keyring.read_unseen(name) {
            Ok((record, mark, _)) => {
                keyring.trust(name, Some(&mark))?;
                if record.kind == DomainKind::Destroyed {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == Kind::Corrupt && !self.names()?.iter().any(|n| n == name) => {
                return keyring.trust(name, None);
            }
            Err(error) => return Err(error),
        }
        self.store.in_domain(name)?.refs().trust(ref_name)
    }

    /// Checks that every domain with refs or snapshots has a domain record: a domain whose record was lost must not
    /// count as one without refs.
    ///
    /// # Errors
    /// `Corrupt`, naming the domain.
    pub fn check_none_is_lost(self) -> Result<()> {
        let names: HashSet<String> = self.names()?.into_iter().collect();
        for prefix in [keys::REFS, keys::SNAPSHOTS] {
            for info in self.store.metadata_tier().list(prefix)? {
                let name = info.key[prefix.len()..].split('/').next().unwrap_or_default();
                if !names.contains(name) {
                    return Err(Error::corrupt("a domain has refs or snapshots and no record")
                        .object(keys::domain(name))
                        .advice(
                            "bring its record back from a copy; without it nothing of the domain can be read",
                        ));
                }
            }
        }
        Ok(())
    }
}

fn change_epochs(keys: &mut KeySet, old: &DomainRecord, name: &str, rotation: &Rotation) -> Result<()> {
    match rotation {
        Rotation::Rewrap(_) => {}
        Rotation::NewEpoch if old.kind == DomainKind::Public => {
            return Err(
                Error::invalid("the public domain encrypts nothing and has no key epochs").object(name)
            );
        }
        Rotation::NewEpoch => {
            let next = old.key_epoch.checked_add(1);
            let next = next.ok_or_else(|| Error::corrupt("domain has no key epochs left").object(name))?;
            keys.epochs.insert(next, crate::domain::keys::SecretKey::random());
        }
        Rotation::Retire(epochs) => {
            keys.epochs.retain(|epoch, _| *epoch == old.key_epoch || !epochs.contains(epoch));
        }
    }
    Ok(())
}

fn busy(object: &str) -> Error {
    Error::new(Kind::Conflict, format!("gave up after {MAX_ATTEMPTS} conflicting updates"))
        .object(object)
        .advice("try again")
}
