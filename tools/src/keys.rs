//! `[keys]` of a configuration file: sources of key-encryption keys, and trusted signers. `file` or `command` for all
//! domains; the same, and `verify`, below `[keys.NAME]` for one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::domain::DomainConfig;
use store::{KeySource, KeySources, VerifyKey};
use toml::{Table, Value};

/// The keys of one file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Table")]
pub(crate) struct Keys {
    sources: KeySources,
    verify_keys: BTreeMap<String, VerifyKey>,
}

impl Keys {
    /// The settings of this file over those of `below`.
    pub(crate) fn over(mut self, below: Keys) -> Keys {
        self.sources.common = self.sources.common.or(below.sources.common);
        for (name, source) in below.sources.own {
            self.sources.own.entry(name).or_insert(source);
        }
        for (name, key) in below.verify_keys {
            self.verify_keys.entry(name).or_insert(key);
        }
        self
    }

    /// As the store's type, to work in the domain `name`.
    pub(crate) fn settle(self, name: Option<String>) -> DomainConfig {
        DomainConfig { name, keys: self.sources, verify_keys: self.verify_keys }
    }
}

impl TryFrom<Table> for Keys {
    type Error = String;

    fn try_from(table: Table) -> Result<Keys, String> {
        let (domains, common): (Table, Table) = table.into_iter().partition(|(_, value)| value.is_table());
        let mut keys = Keys::default();
        keys.sources.common = read::<SourceFile>(common, "keys")?.settle("keys")?;
        for (name, value) in domains {
            let place = format!("keys.{name}");
            store::domain::check_name(&name).map_err(|error| format!("`{place}`: {error}"))?;
            let DomainFile { file, command, verify } = read(value, &place)?;
            if let Some(source) = (SourceFile { file, command }).settle(&place)? {
                keys.sources.own.insert(name.clone(), source);
            }
            if let Some(text) = verify {
                let key = text.parse().map_err(|error| format!("`{place}.verify`: {error}"))?;
                keys.verify_keys.insert(name, key);
            }
        }
        Ok(keys)
    }
}

/// Source of a key-encryption key, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFile {
    file: Option<PathBuf>,
    command: Option<Vec<String>>,
}

/// The keys of one domain, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DomainFile {
    file: Option<PathBuf>,
    command: Option<Vec<String>>,
    verify: Option<String>,
}

fn read<T: DeserializeOwned>(value: impl Into<Value>, place: &str) -> Result<T, String> {
    T::deserialize(value.into()).map_err(|error| format!("in `{place}`: {}", error.to_string().trim_end()))
}

impl SourceFile {
    fn settle(self, place: &str) -> Result<Option<KeySource>, String> {
        match (self.file, self.command) {
            (Some(_), Some(_)) => Err(format!("`{place}` has a file and a command; keep one")),
            (Some(file), None) if !file.is_absolute() => {
                Err(format!("`{place}.file` is not an absolute path: {}", file.display()))
            }
            (None, Some(words)) if words.is_empty() => {
                Err(format!("`{place}.command` is empty: write a program and its arguments"))
            }
            (file, command) => Ok(file.map(KeySource::File).or(command.map(KeySource::Command))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Keys, String> {
        toml::from_str::<Table>(text).map_err(|error| error.to_string()).and_then(Keys::try_from)
    }

    #[test]
    fn keys_are_common_or_a_domains_own() {
        let verify = "ab".repeat(32);
        let keys =
            parse(&format!("file = '/key'\n[acme]\ncommand = ['kms', 'get']\n[public]\nverify = '{verify}'"));
        let config = keys.unwrap().settle(Some("acme".to_owned()));
        assert_eq!(config.keys.of("other"), Some(&KeySource::File("/key".into())));
        let command = KeySource::Command(vec!["kms".to_owned(), "get".to_owned()]);
        assert_eq!(config.keys.of("acme"), Some(&command));
        assert_eq!(config.verify_keys["public"].to_string(), verify);
        assert_eq!(config.name.as_deref(), Some("acme"));
    }

    #[test]
    fn the_nearer_file_stands_over_the_other() {
        let [near, far] = ["[acme]\nfile = '/near'", "file = '/far'\n[acme]\nfile = '/far-acme'"].map(parse);
        let config = near.unwrap().over(far.unwrap()).settle(None);
        assert_eq!(config.keys.of("acme"), Some(&KeySource::File("/near".into())));
        assert_eq!(config.keys.of("other"), Some(&KeySource::File("/far".into())));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("file = 'relative'", "keys.file"),
            ("command = 'not a list'", "expected a sequence"),
            ("command = []", "keys.command"),
            ("file = '/a'\ncommand = ['b']", "keep one"),
            ("flie = '/a'", "in `keys`: unknown field `flie`, expected `file` or `command`"),
            ("[acme]\nflie = '/a'", "in `keys.acme`: unknown field `flie`"),
            ("[Acme]\nfile = '/a'", "keys.Acme"),
            ("[acme]\nverify = 'ab'", "keys.acme.verify"),
        ] {
            let what = parse(text).unwrap_err();
            assert!(what.contains(named), "{text}: {what}");
        }
    }
}
