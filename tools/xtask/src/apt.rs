//! The machine's own apt sources: which Debian mirror it already trusts. Pure; no mirror is named by us.
//!
//! Both formats are read: one-line `sources.list` and deb822 `*.sources`.

use std::fmt::Write;

/// A Debian mirror that the machine uses, with the options that say how it is trusted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    uri: String,
    options: Vec<(String, String)>,
}

const TRUST_OPTIONS: [&str; 3] = ["signed-by", "trusted", "check-valid-until"];

impl Mirror {
    /// The one-line source of another suite of the same mirror.
    pub(crate) fn source_line(&self, kind: &str, suite: &str, default_keyring: &str) -> String {
        let mut options = String::new();
        for (name, value) in &self.options {
            let _infallible = write!(options, "{name}={value} ");
        }
        if self.options.is_empty() {
            let _infallible = write!(options, "signed-by={default_keyring} ");
        }
        format!("{kind} [ {options}] {} {suite} main\n", self.uri)
    }
}

/// The first enabled binary source of `suite` with component main among `(path, text)` of the sources files.
pub(crate) fn find_mirror(files: &[(String, String)], suite: &str) -> Option<Mirror> {
    files.iter().find_map(|(path, text)| {
        if path.ends_with(".sources") { stanza_mirror(text, suite) } else { line_mirror(text, suite) }
    })
}

fn line_mirror(text: &str, suite: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let uri = words.next()?;
        let fits = words.next() == Some(suite) && words.any(|component| component == "main");
        let options = options.split_whitespace().filter_map(|option| option.split_once('='));
        fits.then(|| mirror(uri, options))
    })
}

fn stanza_mirror(text: &str, suite: &str) -> Option<Mirror> {
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    text.split(|line| line.trim().is_empty()).find_map(|stanza| {
        let fields = fields(stanza);
        let get = |name: &str| {
            fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str())
        };
        let has = |name: &str, word: &str| get(name).split_whitespace().any(|item| item == word);
        let fits = get("enabled") != "no"
            && has("types", "deb")
            && has("suites", suite)
            && has("components", "main");
        let uri = get("uris").split_whitespace().next().filter(|_| fits)?;
        Some(mirror(uri, fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))))
    })
}

/// Fields of one deb822 stanza, names in lower case, continuation lines joined with a blank.
fn fields(stanza: &[&str]) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in stanza {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    fields
}

/// Keeps the trust options that fit a one-line source; an inline key (many words) does not.
fn mirror<'a>(uri: &str, options: impl Iterator<Item = (&'a str, &'a str)>) -> Mirror {
    let options = options
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .filter(|(name, value)| TRUST_OPTIONS.contains(&name.as_str()) && !value.contains(' '))
        .collect();
    Mirror { uri: uri.to_owned(), options }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str, text: &str) -> Option<String> {
        let mirror = find_mirror(&[(path.into(), text.into())], "bookworm")?;
        Some(mirror.source_line("deb-src", "sid", "/keyring"))
    }

    #[test]
    fn one_line_sources_are_read_with_their_options() {
        let text = "# deb http://old.test/debian bookworm main\n\
                    deb http://mirror.test/debian-security bookworm-security main\n\
                    deb-src http://source.test/debian bookworm main\n\
                    deb\thttp://contrib.test/debian bookworm contrib\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib # ours\n";
        let line = find("/etc/apt/sources.list", text);
        assert_eq!(
            line.as_deref(),
            Some("deb-src [ signed-by=/k.gpg ] http://mirror.test/debian sid main\n")
        );
    }

    #[test]
    fn deb822_sources_are_read_with_their_options() {
        let text = "Types: deb\nURIs: http://other.test/apt\nSuites: nodistro\nComponents: main\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\n\n\
                    Types: deb deb-src\n# http://snapshot.test\nURIs: http://mirror.test/debian\n\
                    Suites: bookworm\n bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n";
        let line = find("/etc/apt/sources.list.d/debian.sources", text);
        assert_eq!(
            line.as_deref(),
            Some("deb-src [ signed-by=/k.gpg ] http://mirror.test/debian sid main\n")
        );
    }

    #[test]
    fn a_mirror_without_a_named_key_gets_the_archive_keyring() {
        let line = find("sources.list", "deb http://mirror.test/debian bookworm main\n");
        let expected = "deb-src [ signed-by=/keyring ] http://mirror.test/debian sid main\n";
        assert_eq!(line.as_deref(), Some(expected));
    }

    #[test]
    fn no_source_of_the_suite_is_none() {
        assert_eq!(find("sources.list", "deb http://mirror.test/debian trixie main\n"), None);
        assert_eq!(
            find("a.sources", "Types: deb\nURIs: http://m.test\nSuites: sid\nComponents: main\n"),
            None
        );
        assert_eq!(find("sources.list", "deb [broken http://mirror.test/debian bookworm main\n"), None);
    }
}
