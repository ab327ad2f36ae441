//! Parsers of the command line: `SPEC[:PATH]`, `KEY=VALUE`, `UID:GID` and permission bits. The store resolves a SPEC.
//!
//! Invariant: a path holds no empty, `.` or `..` component and no slash at either end, so that it can be looked up as
//! it is.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use clap::builder::TypedValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use store::scrub::Subset;

/// A snapshot and an optional path in its tree. The first colon divides them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathSpec {
    /// Names the snapshot.
    pub spec: String,
    /// Path inside the tree as bytes; empty means the root.
    pub path: Vec<u8>,
    /// Whether there was a colon.
    pub has_path: bool,
}

impl PathSpec {
    /// Parses an argument. The path may hold any bytes, the SPEC is text.
    pub(crate) fn parse(typed: &OsStr) -> Result<PathSpec, String> {
        let bytes = typed.as_bytes();
        let (spec, path) = match bytes.iter().position(|byte| *byte == b':') {
            Some(colon) => (&bytes[..colon], Some(&bytes[colon + 1..])),
            None => (bytes, None),
        };
        let spec = std::str::from_utf8(spec).map_err(|_| "the snapshot's name is not UTF-8".to_owned())?;
        if spec.is_empty() {
            return Err("no snapshot is named before the colon".to_owned());
        }
        let normal = normalize(path.unwrap_or_default())?;
        Ok(PathSpec { spec: spec.to_owned(), path: normal, has_path: path.is_some() })
    }
}

fn normalize(path: &[u8]) -> Result<Vec<u8>, String> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("a path in a snapshot cannot hold `..`".to_owned()),
            name => components.push(name),
        }
    }
    Ok(components.join(&b'/'))
}

/// `UID:GID`, in numbers.
///
/// # Errors
/// When it is anything else.
pub(crate) fn owner(typed: &str) -> Result<(u32, u32), String> {
    let numbers = typed.split_once(':').and_then(|(user, group)| user.parse().ok().zip(group.parse().ok()));
    numbers
        .filter(|(user, group)| ![*user, *group].contains(&u32::MAX))
        .ok_or_else(|| "write a user and a group in numbers, such as 123:456".to_owned())
}

/// Permission bits in octal, `0` to `777`.
///
/// # Errors
/// When it is anything else.
pub(crate) fn mode(typed: &str) -> Result<u32, String> {
    let bits = u32::from_str_radix(typed, 8).ok().filter(|bits| *bits <= 0o777 && !typed.starts_with('+'));
    bits.ok_or_else(|| "write permission bits in octal, such as 660".to_owned())
}

/// Lets clap pass on the raw bytes of an argument.
#[derive(Clone)]
pub(crate) struct PathSpecParser;

impl TypedValueParser for PathSpecParser {
    type Value = PathSpec;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<PathSpec, clap::Error> {
        PathSpec::parse(value).map_err(|reason| {
            let mut error = clap::Error::new(ErrorKind::ValueValidation).with_cmd(command);
            if let Some(argument) = argument {
                error.insert(ContextKind::InvalidArg, ContextValue::String(argument.to_string()));
            }
            let shown = format!("{} ({reason})", value.to_string_lossy());
            error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
            error
        })
    }
}

impl clap::builder::ValueParserFactory for PathSpec {
    type Parser = PathSpecParser;

    fn value_parser() -> PathSpecParser {
        PathSpecParser
    }
}

/// One note on a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// Not empty.
    pub key: String,
    /// May be empty.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(typed: &str) -> Result<Label, String> {
        match typed.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Label { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err("a label is KEY=VALUE".to_owned()),
        }
    }
}

/// Labels as a snapshot holds them; of one key given twice, the last counts.
pub(crate) fn labels(typed: Vec<Label>) -> BTreeMap<String, String> {
    typed.into_iter().map(|label| (label.key, label.value)).collect()
}

/// Reads `N/M`, the N-th of M parts.
pub(crate) fn parse_subset(typed: &str) -> Result<Subset, String> {
    let parts =
        typed.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
    let (number, count) = parts.ok_or_else(|| "a part is N/M, such as 1/7".to_owned())?;
    Subset::new(number, count).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(typed: &str) -> Result<PathSpec, String> {
        PathSpec::parse(OsStr::new(typed))
    }

    #[test]
    fn a_colon_divides_snapshot_and_path() {
        let parsed = parse("web~2:/srv//app/./main.js").unwrap();
        assert_eq!((parsed.spec.as_str(), parsed.path.as_slice()), ("web~2", b"srv/app/main.js".as_slice()));
        assert_eq!(parse("web:a:b").unwrap().path, b"a:b");
        assert_eq!(parse("web:").unwrap().path, b"");
        assert!(!parse("web").unwrap().has_path);
    }

    #[test]
    fn what_leads_out_of_the_tree_is_refused() {
        assert!(parse("web:../etc").is_err());
        assert!(parse("web:a/../../b").is_err());
        assert!(parse(":a").is_err());
        assert!(PathSpec::parse(OsStr::from_bytes(b"\xff:a")).is_err());
    }

    #[test]
    fn a_part_is_one_of_so_many() {
        assert_eq!(parse_subset("2/7"), Ok(Subset::new(2, 7).unwrap()));
        for wrong in ["", "1", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/2"] {
            assert!(parse_subset(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_need_a_key() {
        assert_eq!("a=b=c".parse::<Label>().unwrap().value, "b=c");
        assert!("=x".parse::<Label>().is_err());
        assert!("x".parse::<Label>().is_err());
    }
}
