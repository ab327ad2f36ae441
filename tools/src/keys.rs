//! `[keys]` of a configuration file: where key-encryption keys are, and which signers are trusted. `file` or `command` for
//! all domains; the same, and `verify`, below `[keys.NAME]` for one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use store::domain::DomainConfig;
use store::{KeySource, KeySources, VerifyKey};
use toml::{Table, Value};

/// What one file says of keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Table")]
pub struct Keys {
    sources: KeySources,
    verify_keys: BTreeMap<String, VerifyKey>,
}

impl Keys {
    /// What this file says, and where it says nothing, what `below` says.
    pub fn over(mut self, below: Keys) -> Keys {
        self.sources.common = self.sources.common.or(below.sources.common);
        for (name, source) in below.sources.own {
            self.sources.own.entry(name).or_insert(source);
        }
        for (name, key) in below.verify_keys {
            self.verify_keys.entry(name).or_insert(key);
        }
        self
    }

    /// The same in the store's terms, to work in the domain `name`.
    pub fn settle(self, name: Option<String>) -> DomainConfig {
        DomainConfig { name, keys: self.sources, verify_keys: self.verify_keys }
    }
}

impl TryFrom<Table> for Keys {
    type Error = String;

    fn try_from(mut table: Table) -> Result<Keys, String> {
        let mut keys = Keys::default();
        keys.sources.common = take_source(&mut table, "keys")?;
        for (name, value) in table {
            let Value::Table(mut own) = value else {
                return Err(format!(
                    "`keys.{name}` is no table; keys are file, command, or the name of a domain"
                ));
            };
            let place = format!("keys.{name}");
            store::domain::check_name(&name).map_err(|error| format!("`{place}`: {error}"))?;
            if let Some(source) = take_source(&mut own, &place)? {
                keys.sources.own.insert(name.clone(), source);
            }
            match own.remove("verify") {
                None => {}
                Some(Value::String(text)) => {
                    let key = text.parse().map_err(|error| format!("`{place}.verify`: {error}"))?;
                    keys.verify_keys.insert(name.clone(), key);
                }
                Some(_) => return Err(format!("`{place}.verify` is not a string of 64 hexadecimal digits")),
            }
            if let Some(unknown) = own.keys().next() {
                return Err(format!("`{place}.{unknown}` is unknown; keys are file, command, verify"));
            }
        }
        Ok(keys)
    }
}

fn take_source(table: &mut Table, place: &str) -> Result<Option<KeySource>, String> {
    let file = match table.remove("file") {
        None => None,
        Some(Value::String(path)) if path.starts_with('/') => Some(KeySource::File(PathBuf::from(path))),
        Some(_) => return Err(format!("`{place}.file` is not an absolute path")),
    };
    let command = match table.remove("command") {
        None => None,
        Some(Value::Array(words)) if !words.is_empty() && words.iter().all(Value::is_str) => {
            let words = words.iter().filter_map(Value::as_str).map(str::to_owned);
            Some(KeySource::Command(words.collect()))
        }
        Some(_) => return Err(format!("`{place}.command` is not a list of a program and its arguments")),
    };
    match (file, command) {
        (Some(_), Some(_)) => Err(format!("`{place}` has a file and a command; keep one")),
        (file, command) => Ok(file.or(command)),
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
            ("command = 'not a list'", "keys.command"),
            ("command = []", "keys.command"),
            ("file = '/a'\ncommand = ['b']", "keep one"),
            ("flie = '/a'", "keys.flie"),
            ("[acme]\nflie = '/a'", "keys.acme.flie"),
            ("[Acme]\nfile = '/a'", "keys.Acme"),
            ("[acme]\nverify = 'ab'", "keys.acme.verify"),
        ] {
            let what = parse(text).unwrap_err();
            assert!(what.contains(named), "{text}: {what}");
        }
    }
}
