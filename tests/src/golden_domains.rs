//! The content of the golden store with domains: an encrypted domain of two key epochs, a public one and a destroyed
//! one. Written once, read forever. Never changed; a new format gets a new fixture.

use crate::golden::{self, files, memory};
use crate::model::{put_files, put_memory};
use crate::tenants::write_key;
use std::path::Path;
use store::domain::DomainConfig;
use store::{
    DomainKind, Error, KeySource, KeySources, Result, Rotation, SnapshotDraft, Store, StoreConfig, Writer,
};

/// The key-encryption key of all its domains.
pub const KEK: [u8; 32] = *b"no secret: the key of a fixture!";
/// The domain that is encrypted, the one that is public, and the one that was destroyed.
pub const DOMAINS: [&str; 3] = ["acme", "public", "gone"];

/// The store in a directory, seen from a domain, with local state and the key elsewhere.
///
/// # Errors
/// When the key cannot be written.
pub fn config(directory: &Path, state: &Path, domain: Option<&str>) -> Result<StoreConfig> {
    let key = state.join("key");
    if !key.exists() {
        std::fs::create_dir_all(state)
            .map_err(|error| Error::io("no local state", state.display(), error))?;
        write_key(&key, KEK);
    }
    let keys = KeySources { common: Some(KeySource::File(key)), ..KeySources::default() };
    let domains = DomainConfig { name: domain.map(str::to_owned), keys, ..DomainConfig::default() };
    Ok(StoreConfig { domains, ..golden::config(directory, state) })
}

/// Commits a version of the golden files and memory to `web/app`.
///
/// # Errors
/// As the writer.
pub fn write(writer: &mut Writer, version: u8) -> Result<()> {
    let tree = Some(put_files(writer, &files(version))?);
    let image = Some(put_memory(writer, &memory(version), None)?);
    let labels = [("version".to_owned(), version.to_string())].into();
    let draft = SnapshotDraft { tree, image, labels, ..SnapshotDraft::default() };
    writer.commit("web/app", draft).map(drop)
}

/// Makes the store.
///
/// # Errors
/// As the store.
pub fn make(directory: &Path, state: &Path) -> Result<()> {
    let store = Store::init(&config(directory, state, None)?)?;
    for (name, kind) in
        DOMAINS.into_iter().zip([DomainKind::Encrypted, DomainKind::Public, DomainKind::Encrypted])
    {
        store.domains().create(name, kind)?;
    }
    write(&mut store.in_domain("public")?.writer("golden")?, 0)?;
    let acme = store.in_domain("acme")?;
    let mut writer = acme.writer("golden")?;
    writer.put_chunk(b"acme's alone, in the first epoch")?;
    write(&mut writer, 0)?;
    drop(writer);
    store.domains().rotate("acme", &Rotation::NewEpoch)?;
    write(&mut acme.writer("golden")?, 1)?;
    store.domains().destroy("gone").map(drop)
}
