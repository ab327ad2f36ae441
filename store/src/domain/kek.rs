//! Key-encryption keys, which wrap a domain's own keys. They are kept outside the store, in a file or behind a command
//! (a client of a key service), read when needed, and not kept.

use super::keys::{KEY_LEN, SecretKey};
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use zeroize::{Zeroize, Zeroizing};

/// A key is 32 bytes, or as many in hexadecimal and a line feed; no more is read.
const MAX_TEXT_LEN: u64 = 256;

/// Source of a key-encryption key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// A file of 32 bytes, or of 64 hexadecimal digits, that only its owner may read.
    File(PathBuf),
    /// A program and its arguments that writes the same to its standard output.
    Command(Vec<String>),
}

/// The key-encryption keys that a host may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySources {
    /// For every domain that has none of its own.
    pub common: Option<KeySource>,
    /// By the name of the domain.
    pub own: BTreeMap<String, KeySource>,
}

impl KeySources {
    /// The source of a domain's key.
    pub fn of(&self, domain: &str) -> Option<&KeySource> {
        self.own.get(domain).or(self.common.as_ref())
    }

    /// The key of a domain.
    ///
    /// # Errors
    /// `Invalid` when none is named; as [`KeySource::read`].
    pub fn kek(&self, domain: &str) -> Result<Kek> {
        let source = self.of(domain).ok_or_else(|| {
            Error::invalid("no key-encryption key is named for the domain")
                .object(domain)
                .advice("name one in the configuration: `file` or `command` under [keys]")
        });
        source?.read()
    }
}

/// Identifies a key-encryption key, so that a wrong one can be told from a damaged record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KekId(pub [u8; 8]);

impl std::fmt::Display for KekId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        crate::id::write_hex(f, &self.0)
    }
}

/// A key-encryption key.
#[derive(Debug)]
pub struct Kek {
    /// Its id.
    pub id: KekId,
    wrapping: SecretKey,
}

impl Kek {
    /// The key with these bytes, which are wiped.
    pub fn take(bytes: &mut [u8; KEY_LEN]) -> Self {
        let key = SecretKey::take(bytes);
        let mut id = [0; 8];
        id.copy_from_slice(&key.derive("Torpor 1: name of a key-encryption key").bytes()[..8]);
        Self { id: KekId(id), wrapping: key.derive("Torpor 1: wrapping of a domain's keys") }
    }

    /// The key that wraps the keys of domains.
    pub fn wrapping(&self) -> &SecretKey {
        &self.wrapping
    }
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` when there is no key, or other users could read it; `Unavailable` if the command fails.
    pub fn read(&self) -> Result<Kek> {
        let (text, object) = match self {
            Self::File(path) => (read_file(path)?, path.display().to_string()),
            Self::Command(words) => (run(words)?, words.first().cloned().unwrap_or_default()),
        };
        parse(&text).ok_or_else(|| {
            Error::invalid(format!("not a key: {} bytes", text.len())).object(object).advice(
                "a key is 32 random bytes or 64 hexadecimal digits; `head -c 32 /dev/urandom` makes one",
            )
        })
    }
}

/// A buffer for a key that is never moved, so that no copy of it stays behind.
fn room() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(MAX_TEXT_LEN as usize + 1))
}

/// Whether this is a regular file of root or of the calling user that no other user may read or change.
pub fn is_private(metadata: &Metadata) -> bool {
    let me = rustix::process::geteuid().as_raw();
    metadata.is_file() && metadata.mode() & 0o077 == 0 && [0, me].contains(&metadata.uid())
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |error| Error::io("cannot read the key-encryption key", path.display(), error);
    let file = File::open(path).map_err(failed)?;
    if !is_private(&file.metadata().map_err(failed)?) {
        return Err(Error::invalid("others than its owner may read or change the key-encryption key")
            .object(path.display())
            .advice(
                "make it a file of yours alone: `chmod 600`; if it was ever readable, draw another key",
            ));
    }
    let mut text = room();
    file.take(MAX_TEXT_LEN + 1).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

fn run(words: &[String]) -> Result<Zeroizing<Vec<u8>>> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Error::invalid("the command that gives the key-encryption key is empty"));
    };
    let failed = |error| Error::io("cannot run the command that gives the key", program, error);
    // It inherits standard error: a client of a key service writes its errors there.
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut text = room();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_TEXT_LEN + 1).read_to_end(&mut text).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    match status.success() {
        true => Ok(text),
        false => {
            let what = format!("the command that gives the key-encryption key failed ({status})");
            Err(Error::new(Kind::Unavailable, what).object(program))
        }
    }
}

fn parse(text: &[u8]) -> Option<Kek> {
    let mut key = [0; KEY_LEN];
    if text.len() == KEY_LEN {
        key.copy_from_slice(text);
        return Some(Kek::take(&mut key));
    }
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != KEY_LEN || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(pairs) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        match (value(pair[0]), value(pair[1])) {
            (Some(high), Some(low)) => *byte = (high << 4 | low) as u8,
            _ => {
                key.zeroize();
                return None;
            }
        }
    }
    Some(Kek::take(&mut key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key_file(mode: u32, bytes: &[u8]) -> (tempfile::TempDir, KeySource) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, KeySource::File(path))
    }

    #[test]
    fn a_key_is_read_raw_and_in_hexadecimal_from_file_and_command() {
        let raw: [u8; KEY_LEN] = std::array::from_fn(|index| 255 - index as u8);
        let digits: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = Kek::take(&mut raw.clone()).id;
        for bytes in [&raw[..], digits.as_bytes(), format!("{}\n", digits.to_uppercase()).as_bytes()] {
            let (_directory, source) = key_file(0o600, bytes);
            assert_eq!(source.read().unwrap().id, id);
        }
        let command =
            |words: &[&str]| KeySource::Command(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(command(&["echo", &digits]).read().unwrap().id, id);
        assert_eq!(command(&["false"]).read().unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(command(&["no-such-program-here"]).read().unwrap_err().kind(), Kind::NotFound);
        assert_eq!(command(&[]).read().unwrap_err().kind(), Kind::Invalid);
        assert_ne!(Kek::take(&mut [1; KEY_LEN]).id, id);
    }

    #[test]
    fn what_is_no_key_or_nobodys_secret_is_refused() {
        for bytes in [&b""[..], &[7; 31], &[7; 33], &[b'g'; 64], &[b'a'; 63], &[b'a'; 66], &[b'a'; 4096]] {
            let (_directory, source) = key_file(0o600, bytes);
            let error = source.read().unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{bytes:?}");
            assert!(!error.to_string().contains("gg"), "{error}");
        }
        for mode in [0o640, 0o604, 0o620, 0o602, 0o777] {
            let (_directory, source) = key_file(mode, &[7; 32]);
            assert_eq!(source.read().unwrap_err().kind(), Kind::Invalid, "{mode:o}");
        }
        let missing = KeySource::File("/nonexistent/key".into());
        assert_eq!(missing.read().unwrap_err().kind(), Kind::NotFound);
        let directory = KeySource::File("/proc".into());
        assert!(directory.read().is_err());
    }
}
