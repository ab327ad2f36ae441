//! Patterns of paths that a backup leaves out. They work as in `.gitignore`, relative to the source: a pattern without
//! a slash matches a name at any depth, one with a slash at its beginning or inside is anchored at the source, one with
//! a slash at its end matches directories only. Everything below an excluded directory is left out.
//!
//! A pattern is cut at its slashes, and each part is matched with one name: so `*`, `?` and `[!x]` can never match a
//! slash. `**` as a complete part stands for any number of names. `!` and `[:alpha:]` of gitignore are refused.

use crate::error::{Error, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A character of a name; a byte that is no UTF-8 is [`NO_CHARACTER`] and more.
type Unit = u32;

/// The first number that is no character.
const NO_CHARACTER: Unit = 0x11_0000;

/// Patterns to match paths with.
#[derive(Debug)]
pub(super) struct Exclude {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    parts: Vec<Part>,
    only_directories: bool,
}

/// The part of a pattern between two slashes.
#[derive(Debug, PartialEq)]
enum Part {
    /// `**`: any number of names, none included.
    AnyNames,
    /// One name.
    Name(Vec<Token>),
}

#[derive(Debug, PartialEq)]
enum Token {
    /// `*`: any number of characters, none included.
    Any,
    /// `?`
    One,
    Literal(Unit),
    Class {
        is_negated: bool,
        ranges: Vec<(Unit, Unit)>,
    },
}

impl Exclude {
    /// Parses patterns.
    ///
    /// # Errors
    /// `Invalid`, with the pattern and its fault.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let parse = |text: &String| {
            Rule::parse(text).map_err(|wrong| {
                Error::invalid(format!("not a pattern, {wrong}")).object(format!("`{text}`")).advice(
                    "patterns are relative to the source, as in .gitignore; see `snapctl backup --help`",
                )
            })
        };
        Ok(Self { rules: patterns.iter().map(parse).collect::<Result<_>>()? })
    }

    /// Whether the entry at this path below the source is left out.
    pub(super) fn matches(&self, relative: &Path) -> bool {
        self.find(relative, false)
    }

    /// Whether it is left out when it is a directory.
    pub(super) fn matches_directory(&self, relative: &Path) -> bool {
        self.find(relative, true)
    }

    fn find(&self, relative: &Path, only_directories: bool) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.only_directories == only_directories).peekable();
        if rules.peek().is_none() {
            return false;
        }
        let units = units_of(relative.as_os_str().as_bytes());
        let names: Vec<&[Unit]> = units.split(|unit| *unit == '/'.into()).collect();
        rules.any(|rule| rule.matches(&names))
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with('!') {
            return Err("`!` takes nothing back here: write `\\!` for a name that begins with it");
        }
        let only_directories = text.ends_with('/');
        let path = text.strip_suffix('/').unwrap_or(text);
        if path.is_empty() {
            return Err("it names nothing");
        }
        let is_anchored = path.contains('/');
        let mut parts = Vec::new();
        if !is_anchored {
            parts.push(Part::AnyNames);
        }
        for name in path.strip_prefix('/').unwrap_or(path).split('/') {
            parts.push(Part::parse(name)?);
        }
        if parts.last() == Some(&Part::AnyNames) {
            parts.push(Part::Name(vec![Token::Any])); // everything in it, not the directory itself
        }
        Ok(Self { parts, only_directories })
    }

    fn matches(&self, names: &[&[Unit]]) -> bool {
        let fits = |part: &Part, name: &&[Unit]| match part {
            Part::AnyNames => false,
            Part::Name(tokens) => matches_with(tokens, name, &Token::Any, Token::fits),
        };
        matches_with(&self.parts, names, &Part::AnyNames, fits)
    }
}

impl Part {
    fn parse(name: &str) -> Result<Self, &'static str> {
        match name {
            "" => return Err("there is no name between two slashes"),
            "." | ".." => return Err("`.` and `..` are no names"),
            "**" => return Ok(Self::AnyNames),
            _ => {}
        }
        let mut tokens = Vec::new();
        let mut rest = name.chars();
        while let Some(character) = rest.next() {
            tokens.push(match character {
                '*' if tokens.last() == Some(&Token::Any) => continue,
                '*' => Token::Any,
                '?' => Token::One,
                '[' => Token::class(&mut rest)?,
                '{' => {
                    return Err("`{` begins no alternatives: give two patterns, or write `\\{` for itself");
                }
                '\\' => Token::Literal(rest.next().ok_or("a backslash escapes nothing")?.into()),
                literal => Token::Literal(literal.into()),
            });
        }
        Ok(Self::Name(tokens))
    }
}

impl Token {
    /// Parses what follows `[`.
    fn class(rest: &mut std::str::Chars<'_>) -> Result<Self, &'static str> {
        const OPEN: &str = "a class is not closed by `]`";
        let is_negated = rest.as_str().starts_with(['!', '^']);
        if is_negated {
            rest.next();
        }
        let mut ranges = Vec::new();
        loop {
            let first = match rest.next().ok_or(OPEN)? {
                ']' if !ranges.is_empty() => return Ok(Self::Class { is_negated, ranges }),
                '[' if rest.as_str().starts_with([':', '.', '=']) => {
                    return Err("classes have no names here: write `[a-z]` instead of `[[:lower:]]`");
                }
                '\\' => rest.next().ok_or(OPEN)?,
                first => first,
            };
            let mut ahead = rest.clone();
            let last = match (ahead.next(), ahead.next()) {
                (Some('-'), Some(last)) if last != ']' => {
                    *rest = ahead;
                    if last == '\\' { rest.next().ok_or(OPEN)? } else { last }
                }
                _ => first,
            };
            if last < first {
                return Err("a range of a class ends before it begins");
            }
            ranges.push((first.into(), last.into()));
        }
    }

    fn fits(&self, unit: &Unit) -> bool {
        match self {
            Self::Any => false,
            Self::One => true,
            Self::Literal(literal) => literal == unit,
            Self::Class { is_negated, ranges } => {
                ranges.iter().any(|(first, last)| (first..=last).contains(&unit)) != *is_negated
            }
        }
    }
}

/// Whether a pattern matches all items. `any` is the element that stands for any number of them; every other fits one.
/// Only the last `any` met needs to be tried again: the part before it is best matched as early as possible.
fn matches_with<E: PartialEq, I>(pattern: &[E], items: &[I], any: &E, fits: impl Fn(&E, &I) -> bool) -> bool {
    let (mut element, mut item) = (0, 0);
    let mut again = None;
    loop {
        match (pattern.get(element), items.get(item)) {
            (None, None) => return true,
            (Some(found), _) if found == any => {
                element += 1;
                again = Some((element, item));
                continue;
            }
            (Some(found), Some(next)) if fits(found, next) => {
                element += 1;
                item += 1;
                continue;
            }
            _ => {}
        }
        match again {
            Some((behind, taken)) if taken < items.len() => {
                (element, item) = (behind, taken + 1);
                again = Some((element, item));
            }
            _ => return false,
        }
    }
}

fn units_of(bytes: &[u8]) -> Vec<Unit> {
    let mut units = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        units.extend(chunk.valid().chars().map(Unit::from));
        units.extend(chunk.invalid().iter().map(|byte| NO_CHARACTER + Unit::from(*byte)));
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    /// A pattern, paths that it leaves out, paths that it keeps.
    const TABLE: &[(&str, &[&str], &[&str])] = &[
        ("x", &["x", "a/x", "a/b/x"], &["ax", "xa", "x.x", "x/a", "X"]),
        ("*.log", &["a.log", ".log", "a/b.log"], &["a.logs", "log", "a.log/b"]),
        ("a/*.log", &["a/x.log", "a/.log"], &["a/b/x.log", "b/a/x.log", "x.log", "a/x"]),
        ("/x", &["x"], &["a/x"]),
        ("/a/x", &["a/x"], &["b/a/x", "a/b/x"]),
        ("a/x", &["a/x"], &["b/a/x"]),
        ("/*", &["a", ".a"], &["a/b"]),
        ("a/*/c", &["a/b/c"], &["a/c", "a/b/b/c", "x/a/b/c"]),
        ("a/?", &["a/b", "a/\u{e4}"], &["a/bb", "a/b/c", "a/"]),
        ("a/b?c", &["a/bxc"], &["a/b/c", "a/bc"]),
        ("a[!x]b", &["ayb", "c/a-b"], &["axb", "a/b", "ab", "ayyb"]),
        ("c/a[!x]b", &["c/ayb"], &["c/a/b", "c/axb"]),
        ("a[^x]b", &["ayb"], &["axb", "a/b"]),
        ("a[+-9]b", &["a.b", "a7b", "a-b"], &["a/b", "axb"]),
        ("**", &["a", "a/b"], &[]),
        ("**/x", &["x", "a/x", "a/b/x"], &["ax", "x/a"]),
        ("/**/x", &["x", "a/x", "a/b/x"], &["ax"]),
        ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a", "b", "x/a/b", "a/bb", "ab"]),
        ("a/**", &["a/b", "a/b/c", "a/.x"], &["a", "b/a/c", "ab"]),
        ("**/a/**", &["a/b", "x/a/b", "x/y/a/b/c"], &["a", "x/a"]),
        ("a/**/b/**/c", &["a/b/c", "a/x/b/y/c", "a/b/b/c", "a/b/c/c"], &["a/c", "a/b", "a/c/b"]),
        ("**/a/*/b", &["a/x/b", "a/a/x/b", "a/a/a/b"], &["a/b", "a/x/y/b"]),
        ("a**b", &["ab", "axxb", "c/axb"], &["a/b", "a/x/b"]),
        ("a/b**", &["a/b", "a/bx"], &["a/bx/c", "a/x/b"]),
        ("***", &["a", "a/b"], &[]),
        ("*a*b*", &["ab", "xaxxbx", "aabb"], &["ba", "b", "a", "a/b"]),
        ("*ab", &["ab", "aab", "abab"], &["aba", "abb"]),
        ("[abc]", &["a", "x/c"], &["d", "abc", "[abc]"]),
        ("[a-c]x", &["ax", "bx"], &["dx", "-x"]),
        ("[a-]", &["a", "-"], &["b"]),
        ("[-a]", &["a", "-"], &["b"]),
        ("[]a]", &["]", "a"], &["[]a]"]),
        ("[!]a]", &["b", "["], &["]", "a"]),
        ("[*?]", &["*", "?"], &["a", ""]),
        ("[\\]\\-]", &["]", "-"], &["\\"]),
        ("[a\\-c]", &["a", "-", "c"], &["b"]),
        ("[\u{e0}-\u{ff}]x", &["\u{e4}x"], &["ax", "\u{e4}"]),
        ("??", &["ab", "\u{e4}\u{1f600}"], &["a", "abc", "\u{e4}"]),
        ("\\*", &["*", "a/*"], &["a"]),
        ("\\!x", &["!x"], &["x"]),
        ("a!x", &["a!x"], &["ax"]),
        ("\\[a]", &["[a]"], &["a"]),
        ("\\{a,b}", &["{a,b}"], &["a", "b"]),
        ("a}", &["a}"], &["a"]),
        ("#x", &["#x"], &["x"]),
        (" x ", &[" x "], &["x"]),
        ("a\\\\b", &["a\\b"], &["a/b", "ab"]),
        ("a\nb*", &["a\nb", "a\nb\nc"], &["ab"]),
        ("a*b", &["a\nb"], &["a\n"]),
    ];

    fn matches(pattern: &str, path: &str) -> bool {
        Exclude::new(&[pattern.to_owned()]).unwrap().matches(Path::new(path))
    }

    #[test]
    fn patterns_match_what_they_match_in_gitignore() {
        for (pattern, left_out, kept) in TABLE {
            for path in *left_out {
                assert!(matches(pattern, path), "`{pattern}` does not match `{path}`");
                let directories = Exclude::new(&[format!("{pattern}/")]).unwrap();
                assert!(!directories.matches(Path::new(path)), "`{pattern}/` matches what is no directory");
                assert_eq!(
                    directories.matches_directory(Path::new(path)),
                    // The inner slash does not change the anchor, and the trailing one adds none.
                    matches(pattern, path),
                    "`{pattern}/` and the directory `{path}`"
                );
            }
            for path in *kept {
                assert!(!matches(pattern, path), "`{pattern}` matches `{path}`");
            }
        }
    }

    #[test]
    fn names_that_are_no_text_are_matched_byte_by_byte() {
        let matches = |pattern: &str, name: &[u8]| {
            Exclude::new(&[pattern.to_owned()]).unwrap().matches(Path::new(OsStr::from_bytes(name)))
        };
        assert!(matches("a?b", b"a\xffb"));
        assert!(matches("a??b", b"a\xff\xfeb"));
        assert!(matches("a[!x]b", b"d/a\xffb"));
        assert!(!matches("a\u{ff}b", b"a\xffb"), "a byte is not the character of its number");
        assert!(matches("*.log", b"\xff\n.log"));
    }

    #[test]
    fn what_is_no_pattern_is_refused_by_its_name() {
        for (pattern, wrong) in [
            ("", "names nothing"),
            ("/", "names nothing"),
            ("//", "no name between"),
            ("a//b", "no name between"),
            ("a//", "no name between"),
            ("./a", "no names"),
            ("a/../b", "no names"),
            ("!a", "takes nothing back"),
            ("[", "not closed"),
            ("[]", "not closed"),
            ("[!]", "not closed"),
            ("[a", "not closed"),
            ("[a/b]", "not closed"),
            ("[a\\", "not closed"),
            ("a/[a-", "not closed"),
            ("[z-a]", "before it begins"),
            ("[[:alpha:]]", "have no names"),
            ("a\\", "escapes nothing"),
            ("a\\/", "escapes nothing"),
            ("*.{a,b}", "two patterns"),
        ] {
            let error = Exclude::new(&["good".to_owned(), pattern.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(wrong), "`{pattern}`: {error}");
            assert!(error.contains(&format!("`{pattern}`")), "{error}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_ends_soon() {
        let pattern = "*a".repeat(60);
        assert!(!matches(&pattern, &"a".repeat(59)));
        assert!(!matches(&format!("{pattern}b"), &"a".repeat(250)));
        let deep = vec!["a"; 500].join("/");
        assert!(!matches(&format!("{}b", "**/a/".repeat(60)), &deep));
    }
}
