//! A store with encrypted domains and a public one, in memory, and their key-encryption keys in files of a scratch
//! directory; shared by tests of domains.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::domain::DomainConfig;
use store::{DomainKind, KeySource, KeySources, MemoryTier, Store, StoreConfig};
use tempfile::TempDir;

/// Writes a key that its owner alone may read.
///
/// # Panics
/// When the file cannot be written.
pub fn write_key(path: &Path, bytes: [u8; 32]) {
    std::fs::write(path, bytes).expect("a key can be written");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("it is ours");
}

/// A store whose domains are `acme`, `other` and `public` besides the plain one.
pub struct Tenants {
    /// The durable objects.
    pub tier: MemoryTier,
    /// Local state and keys.
    pub scratch: TempDir,
}

impl Default for Tenants {
    fn default() -> Self {
        Self::new()
    }
}

impl Tenants {
    /// A new store with its domains, each wrapped by a key of its own.
    ///
    /// # Panics
    /// When the store cannot be made.
    pub fn new() -> Self {
        let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let tenants = Self { tier: MemoryTier::new(), scratch: scratch.expect("a scratch directory") };
        for (name, byte) in [("acme", 1), ("other", 2), ("public", 3)] {
            write_key(&tenants.key(name), [byte; 32]);
        }
        let store = Store::init(&tenants.config(None)).expect("an empty tier takes a store");
        for name in ["acme", "other"] {
            store.domains().create(name, DomainKind::Encrypted).expect("the name is free");
        }
        store.domains().create("public", DomainKind::Public).expect("there is none yet");
        tenants
    }

    /// The file of a domain's key-encryption key.
    pub fn key(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.key"))
    }

    /// The configuration of a host that has all keys and works in the domain `name`.
    pub fn config(&self, name: Option<&str>) -> StoreConfig {
        self.config_of_host("state", name, &["acme", "other", "public"])
    }

    /// The configuration of a host with this local state and these domains' keys.
    pub fn config_of_host(&self, state: &str, name: Option<&str>, keys: &[&str]) -> StoreConfig {
        let own = keys.iter().map(|name| ((*name).to_owned(), KeySource::File(self.key(name))));
        let keys = KeySources { common: None, own: own.collect() };
        let domains = DomainConfig { name: name.map(str::to_owned), keys, ..DomainConfig::default() };
        StoreConfig {
            cache_bytes: 4 << 20,
            level: 1,
            domains,
            ..StoreConfig::on(Arc::new(self.tier.clone()), self.scratch.path().join(state))
        }
    }

    /// Opens the store in a domain as another process of the host would.
    ///
    /// # Panics
    /// When it does not open.
    pub fn open(&self, name: &str) -> Store {
        Store::open(&self.config(Some(name))).expect("the domain opens")
    }
}
