//! Tests docs/CONFIGURATION.md against the code: the same keys, with the code's types, ranges and defaults.
//!
//! The accepted keys are those that serde lists in the error for an unknown key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;

use store::{S3Settings, StoreConfig};

use super::ConfigFile;
use crate::human::parse_size;

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIGURATION.md");
    std::fs::read_to_string(path).expect("the document lies in the tree")
});

/// Every table of a file: the prefix of its keys in the document, and a text that one more line adds a key to.
const TABLES: &[(&str, &str)] = &[
    ("", "store = '/s'"),
    ("tiers.", "[tiers]\nhot = '/s'"),
    ("tiers.cold.", "store = '/s'\n[tiers.cold]\nbucket = 'b'"),
    ("tiers.cold.", "store = '/s'\n[tiers.cold]\npath = '/p'"),
    ("limits.", "store = '/s'\n[limits]"),
    ("levels.", "store = '/s'\n[levels]"),
    ("keys.", "[keys]"),
    ("keys.NAME.", "[keys.acme]"),
];

/// A row of the document's tables of keys.
struct Row {
    key: &'static str,
    kind: &'static str,
    default: &'static str,
    range: &'static str,
}

fn rows() -> Vec<Row> {
    let (_, keys) = DOCUMENT.split_once("\n## Keys\n").expect("a section of keys");
    let (keys, _) = keys.split_once("\n## Example\n").expect("the next section");
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", key, kind, default, range, _, ""] = cells[..] else { panic!("five cells: {line}") };
        Row { key: key.trim_matches('`'), kind, default, range }
    };
    keys.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// The keys that the code accepts below `text`, from the error for an unknown one.
fn fields(text: &str) -> Vec<String> {
    let (error, _) = ConfigFile::parse(&format!("{text}\nunknown_key = 1")).expect_err("an unknown key");
    let (_, expected) = error.split_once("unknown field `unknown_key`, expected ").expect("a list of keys");
    let quoted = expected.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

impl Row {
    /// Whether the code accepts this value, written as TOML, for the key.
    fn accepts(&self, value: &str) -> bool {
        let (prefix, name) = match self.key.rsplit_once('.') {
            Some((_, name)) => self.key.split_at(self.key.len() - name.len()),
            None => ("", self.key),
        };
        let own = format!("{name} = ");
        let tables = TABLES.iter().filter(|(table, _)| *table == prefix);
        tables.into_iter().any(|(_, text)| {
            let others = text.lines().filter(|line| !line.starts_with(&own));
            let text: Vec<&str> = others.chain([own.as_str()]).collect();
            ConfigFile::parse(&format!("{}{value}", text.join("\n"))).is_ok()
        })
    }

    /// The bounds of a number; none unless the document states two.
    fn bounds(&self) -> Option<(u64, u64)> {
        let (low, high) = self.range.split_once(" to ")?;
        let number = |text: &str| parse_size(&text.replace(' ', "")).expect("a number");
        Some((number(low), number(high)))
    }

    /// A value of each TOML kind, valid for the key if the kind is.
    fn samples(&self) -> [(&'static str, String); 5] {
        let number = self.bounds().map_or(1, |(low, _)| low);
        let text = match self.key {
            "tiers.cold.endpoint" => "'http://s'".to_owned(),
            "keys.NAME.verify" => format!("'{}'", "ab".repeat(32)),
            _ if self.kind == "size" => format!("'{number}'"),
            _ => "'/x'".to_owned(),
        };
        let text =
            if matches!(self.key, "tiers.cold.bucket" | "tiers.cold.prefix") { "'x'".into() } else { text };
        let table = "{ path = '/x' }".to_owned();
        [
            ("boolean", "false".to_owned()),
            ("integer", number.to_string()),
            ("string", text),
            ("array", "['x']".to_owned()),
            ("table", table),
        ]
    }
}

#[test]
fn the_document_has_the_keys_that_the_code_accepts() {
    let tables: BTreeSet<String> =
        TABLES.iter().map(|(table, _)| table.trim_end_matches('.').to_owned()).collect();
    let mut accepted = BTreeSet::from(["tiers.cold".to_owned()]);
    for (table, text) in TABLES {
        let keys = fields(text).into_iter().map(|name| format!("{table}{name}"));
        accepted.extend(keys.filter(|key| !tables.contains(key)));
    }
    let documented: Vec<&str> = rows().iter().map(|row| row.key).collect();
    assert_eq!(
        documented.iter().copied().collect::<BTreeSet<_>>(),
        accepted.iter().map(String::as_str).collect()
    );
    assert_eq!(documented.len(), accepted.len(), "a key has two rows: {documented:?}");
}

#[test]
fn a_key_has_the_type_and_range_of_the_document() {
    for row in rows() {
        let kinds: &[&str] = match row.kind {
            "path" | "string" => &["string"],
            "path or table" => &["string", "table"],
            "size" => &["integer", "string"],
            "integer" => &["integer"],
            "boolean" => &["boolean"],
            "array of strings" => &["array"],
            other => panic!("`{}` has the type {other}, which the document does not explain", row.key),
        };
        for (kind, value) in row.samples() {
            assert_eq!(row.accepts(&value), kinds.contains(&kind), "{} = {value}", row.key);
        }
        if row.kind.starts_with("path") {
            assert!(!row.accepts("'relative'"), "{}", row.key);
        }
        if let Some((low, high)) = row.bounds() {
            assert!(row.accepts(&high.to_string()), "{} = {high}", row.key);
            for outside in [low - 1, high + 1] {
                assert!(!row.accepts(&outside.to_string()), "{} = {outside}", row.key);
            }
        }
    }
}

#[test]
fn a_key_has_the_default_of_the_document() {
    let (store, bucket) = (StoreConfig::directory(Path::new("/s")), S3Settings::new("b", None));
    let defaults = BTreeMap::from([
        ("cache_bytes", store.cache_bytes),
        ("disk_cache_bytes", store.disk_cache_bytes),
        ("level", store.level.unsigned_abs().into()),
        ("tiers.cold.parallelism", bucket.parallelism as u64),
        ("tiers.cold.part_bytes", bucket.part_bytes),
        ("tiers.cold.attempts", bucket.patience.attempts.into()),
        ("tiers.cold.request_seconds", bucket.patience.request.as_secs()),
        ("tiers.cold.call_seconds", bucket.patience.call.as_secs()),
    ]);
    for row in rows() {
        let shown = row.default.split(';').next().unwrap_or_default();
        match defaults.get(row.key) {
            Some(bytes) => assert_eq!(parse_size(&shown.replace(' ', "")).as_ref(), Ok(bytes), "{}", row.key),
            None if matches!(row.kind, "size" | "integer") => {
                assert!(["none", "no limit"].contains(&shown), "{}: {shown}", row.key);
            }
            None => assert!(!shown.is_empty(), "{}", row.key),
        }
        if row.key == "tiers.cold.region" {
            assert_eq!(shown.trim_matches('`'), bucket.region);
        }
    }
}

/// The example of the document, cut and changed everywhere, is accepted or refused.
#[test]
fn a_file_that_is_cut_or_changed_anywhere_gets_an_answer() {
    let (_, example) = DOCUMENT.split_once("```toml\n").expect("an example");
    let (example, _) = example.split_once("```").expect("its end");
    ConfigFile::parse(example).expect("the example is right");
    for at in 0..example.len() {
        drop(ConfigFile::parse(&example[..at]));
        for sign in ["'", "\"", "[", "]", "=", "-", "9", "\n", "#", ".", "{", "\u{e4}"] {
            drop(ConfigFile::parse(&format!("{}{sign}{}", &example[..at], &example[at + 1..])));
        }
    }
}
