//! The checks: pure over a path and a text. Each returns its violations as `path:line: what is wrong`.

use crate::lexer::code_of;

/// A text file of the tree, path relative to the workspace root.
pub(crate) struct SourceFile {
    pub path: String,
    pub text: String,
}

/// What the tree is excused from: `(path, why)` or `(path, how much)`.
pub(crate) struct Exceptions {
    pub unsafe_files: &'static [(&'static str, &'static str)],
    pub long_files: &'static [(&'static str, usize)],
    pub sleeping_files: &'static [(&'static str, &'static str)],
}

const FILE_LINES: usize = 800;
const FILE_CODE_LINES: usize = 500;
const INLINE_TEST_LINES: usize = 200;
/// How far above an `unsafe` its SAFETY comment may begin.
const SAFETY_LINES: usize = 12;

/// Which packages of the workspace each package may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("store", &[]),
    ("snapfs", &["store"]),
    ("lazyload", &["store"]),
    ("gc", &["store"]),
    ("tools", &["store", "snapfs", "lazyload", "gc"]),
    ("tests", &["store", "snapfs", "lazyload", "gc", "tools"]),
    ("benches", &["store", "snapfs", "lazyload", "gc", "tools", "tests"]),
    ("xtask", &[]),
    ("fuzz", &["store", "snapfs", "lazyload"]),
];

/// One owner per outside world: the path that names it in code, and where that may be.
const OWNERS: &[(&str, &[&str])] = &[
    (
        "fuser::",
        &["snapfs/src/fuse.rs", "snapfs/src/fuse/", "snapfs/src/mount.rs", "benches/src/plain_fuse.rs"],
    ),
    ("userfaultfd::", &["lazyload/src/sys.rs", "tests/", "benches/src/raw_uffd.rs"]),
    ("libc::", &["lazyload/src/sys.rs", "tests/", "benches/src/raw_uffd.rs"]),
    ("sled::", &["store/src/host/derived.rs"]),
    ("memmap2::", &["store/src/host/map.rs"]),
    ("aws_sdk_s3::", &["store/src/tier/s3/"]),
    ("aws_smithy_http_client::", &["store/src/tier/s3/client.rs"]),
    ("tokio::", &["store/src/tier/s3/"]),
    ("clap::", &["tools/src/"]),
    ("clap_complete::", &["tools/src/"]),
    ("clap_mangen::", &["tools/src/"]),
    ("anyhow::", &["tools/src/"]),
    ("indicatif::", &["tools/src/"]),
    ("tracing_subscriber::", &["tools/src/"]),
    ("SystemTime::now", &["store/src/clock.rs", "tests/"]),
];

/// Words that no code has: unfinished work, and tests that do not run.
const FORBIDDEN_CODE: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];
/// Words that no line has, comments included.
const FORBIDDEN_TEXT: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Private words of earlier versions and old forms, with the plain word.
const WORDS: &[(&str, &str)] = &[
    (concat!("who", "ever"), "name the process, the caller or the user"),
    (concat!("who", "m"), "name the process, the caller or the user"),
    (concat!("a", "new"), "again"),
    (concat!("for ", "ever"), "forever"),
    (concat!("out", "last"), "orphaned memory"),
    (concat!("cust", "ody"), "descriptor escrow"),
    (concat!("vei", "led"), "redacted"),
    (concat!("cen", "sus"), "domain inventory"),
    (concat!("lean", " on"), "depend on"),
    (concat!("lean", "s on"), "depends on"),
];

/// Paths of one machine and names of registries' hosts.
const PLACES: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/tmp/", "torpor"),
    concat!("deb.", "debian.org"),
    concat!("security.", "debian.org"),
    concat!("registry.", "npmjs"),
    concat!("registry.", "yarnpkg"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("static.", "crates.io"),
    concat!("index.", "crates.io"),
];

/// What a stranger looks for first.
const REQUIRED_FILES: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "docs/CONFIGURATION.md",
    "docs/FORMAT.md",
    ".github/workflows/ci.yml",
];

const README_COMMANDS: [&str; 2] = ["cargo xtask demo", "cargo xtask test"];

/// Every rule over every file.
pub(crate) fn violations(files: &[SourceFile], exceptions: &Exceptions) -> Vec<String> {
    let mut found = stale_exceptions(files, exceptions);
    found.extend(missing_files(files));
    for file in files {
        found.extend(places(file));
        let name = file.path.rsplit('/').next().unwrap_or_default();
        if name == "Cargo.toml" {
            found.extend(manifest(file));
        } else if file.path == "README.md" {
            found.extend(readme(file));
        }
        if name.ends_with(".rs") || name.ends_with(".toml") {
            found.extend(ascii(file));
            found.extend(unfinished(file));
        }
        if name.ends_with(".rs") || name.ends_with(".md") {
            found.extend(words(file));
        }
        if name.ends_with(".rs") {
            found.extend(head(file));
            found.extend(sizes(file, exceptions.long_files));
            found.extend(unsafe_code(file, exceptions.unsafe_files));
            found.extend(owners(file));
            found.extend(forbidden_code(file, exceptions.sleeping_files));
        }
    }
    found
}

/// The documents that the tree promises are there.
pub(crate) fn missing_files(files: &[SourceFile]) -> Vec<String> {
    let there = |path: &str| files.iter().any(|file| file.path == path && !file.text.is_empty());
    let missing = REQUIRED_FILES.iter().filter(|path| !there(path));
    missing.map(|path| format!("{path}: missing")).collect()
}

/// Every Rust file begins with what it is.
pub(crate) fn head(file: &SourceFile) -> Vec<String> {
    if file.text.starts_with("//! ") { Vec::new() } else { vec![at(file, 1, "no `//!` head")] }
}

/// No file is too long to be one concept.
pub(crate) fn sizes(file: &SourceFile, long_files: &[(&str, usize)]) -> Vec<String> {
    let lines = file.text.lines().count();
    let code = code_of(&file.text);
    let tests_line = code.lines().position(|line| line.starts_with("mod tests {")).unwrap_or(lines);
    let code_lines = code.lines().take(tests_line).filter(|line| !line.trim().is_empty()).count();
    let allowed = excuse(long_files, &file.path).map_or(FILE_CODE_LINES, |&allowed| allowed);
    let mut found = Vec::new();
    if lines > FILE_LINES {
        found.push(at(file, lines, &format!("{lines} lines, over {FILE_LINES}: split by concept")));
    }
    if code_lines > allowed {
        found.push(at(file, lines, &format!("{code_lines} lines of code, over {allowed}: split by concept")));
    }
    if lines - tests_line > INLINE_TEST_LINES {
        let long = format!("over {INLINE_TEST_LINES} lines of inline tests: move them to a sibling tests.rs");
        found.push(at(file, tests_line + 1, &long));
    }
    found
}

/// Rust and TOML are ASCII.
pub(crate) fn ascii(file: &SourceFile) -> Vec<String> {
    lines(&file.text)
        .filter_map(|(number, line)| {
            let sign = line.chars().find(|sign| !sign.is_ascii())?;
            Some(at(file, number, &format!("{sign:?} is not ASCII")))
        })
        .collect()
}

/// `unsafe` stands only where a table says why, and each has its SAFETY comment.
pub(crate) fn unsafe_code(file: &SourceFile, unsafe_files: &[(&str, &str)]) -> Vec<String> {
    let code = code_of(&file.text);
    let text: Vec<&str> = file.text.lines().collect();
    let mut found = Vec::new();
    for (number, line) in lines(&code) {
        // An `unsafe extern` block only declares; its items are unsafe to use.
        if !has_word(line, "unsafe") || line.trim_start().starts_with("unsafe extern") {
            continue;
        }
        if excuse(unsafe_files, &file.path).is_none() {
            found.push(at(file, number, "unsafe outside the files that may have it"));
        }
        let above = &text[number.saturating_sub(SAFETY_LINES + 1)..number];
        if !above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
            found.push(at(file, number, "unsafe without a SAFETY comment"));
        }
    }
    found
}

/// One owner per outside world.
pub(crate) fn owners(file: &SourceFile) -> Vec<String> {
    let code = code_of(&file.text);
    let mut found = Vec::new();
    for (name, places) in OWNERS {
        if places.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        let users = lines(&code).filter(|(_, line)| has_word(line, name));
        found.extend(users.map(|(number, _)| at(file, number, &format!("{name} belongs to {places:?}"))));
    }
    found
}

/// Nothing is left for later in code, no test is skipped, and nothing waits by sleeping.
pub(crate) fn forbidden_code(file: &SourceFile, sleeping_files: &[(&str, &str)]) -> Vec<String> {
    let code = code_of(&file.text);
    let may_sleep = excuse(sleeping_files, &file.path).is_some();
    let sleeps = if may_sleep { None } else { Some("thread::sleep") };
    let words = FORBIDDEN_CODE.iter().copied().chain(sleeps);
    let found = words.flat_map(|word| {
        lines(&code)
            .filter(move |(_, line)| line.contains(word))
            .map(move |(number, _)| at(file, number, &format!("`{word}` has no place here")))
    });
    found.collect()
}

/// Nothing is left for later in comments and manifests.
pub(crate) fn unfinished(file: &SourceFile) -> Vec<String> {
    let found = lines(&file.text).filter_map(|(number, line)| {
        let word = FORBIDDEN_TEXT.iter().find(|word| has_word(line, word))?;
        Some(at(file, number, &format!("{word}: do it or drop it")))
    });
    found.collect()
}

/// Comments, messages and documents say things in plain words.
pub(crate) fn words(file: &SourceFile) -> Vec<String> {
    let found = lines(&file.text).filter_map(|(number, line)| {
        let line = line.to_ascii_lowercase();
        let (word, plain) = WORDS.iter().find(|(word, _)| has_word(&line, word))?;
        Some(at(file, number, &format!("{word:?}: {plain}")))
    });
    found.collect()
}

/// Nothing names a path of one machine or the host of a registry.
pub(crate) fn places(file: &SourceFile) -> Vec<String> {
    let found = lines(&file.text).filter_map(|(number, line)| {
        let place = PLACES.iter().find(|place| line.contains(*place))?;
        Some(at(file, number, &format!("{place:?} is a place of one machine or a registry's host")))
    });
    if file.path == "Cargo.lock" { Vec::new() } else { found.collect() }
}

/// A package's dependencies on other packages of the workspace follow the arrows, and the workspace's lints hold.
pub(crate) fn manifest(file: &SourceFile) -> Vec<String> {
    let mut section = "";
    let mut package = "";
    let mut found = Vec::new();
    let mut inherits_lints = false;
    for (number, line) in lines(&file.text) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']);
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let key = key.trim().split('.').next().unwrap_or_default();
        inherits_lints |= section == "lints" && key == "workspace" && value.trim() == "true";
        if section == "package" && key == "name" {
            package = value.trim().trim_matches('"').trim_start_matches("torpor-");
        }
        let (table, dependency) = match section.rsplit_once('.') {
            Some((table, dependency)) if line.starts_with('[') => (table, dependency),
            _ => (section, key),
        };
        if table.ends_with("dependencies") && !table.starts_with("workspace") {
            found.extend(arrow(package, dependency).map(|what| at(file, number, &what)));
        }
    }
    let known = ARROWS.iter().any(|(name, _)| *name == package);
    if !package.is_empty() && !known {
        found.push(at(file, 1, &format!("package {package} has no row in ARROWS")));
    }
    if !package.is_empty() && !inherits_lints {
        found.push(at(file, 1, "no `[lints] workspace = true`"));
    }
    found
}

fn arrow(package: &str, dependency: &str) -> Option<String> {
    let inside = ARROWS.iter().any(|(name, _)| *name == dependency);
    let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == package)?;
    let refused = inside && !allowed.contains(&dependency);
    refused.then(|| format!("{package} may not depend on {dependency}"))
}

/// The README's first two commands are the demo and the tests.
pub(crate) fn readme(file: &SourceFile) -> Vec<String> {
    let mut fenced = false;
    let mut commands = Vec::new();
    for (_, line) in lines(&file.text) {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced && !line.trim().is_empty() {
            let command = line.split(" #").next().unwrap_or_default().trim();
            commands.push(command.strip_prefix("$ ").unwrap_or(command));
        }
    }
    commands.truncate(README_COMMANDS.len());
    commands.sort_unstable();
    if commands == README_COMMANDS {
        return Vec::new();
    }
    vec![at(file, 1, &format!("the first commands are {commands:?}, not {README_COMMANDS:?}"))]
}

/// A row of a table that excuses nothing any more.
pub(crate) fn stale_exceptions(files: &[SourceFile], exceptions: &Exceptions) -> Vec<String> {
    let code = |path: &str| files.iter().find(|file| file.path == path).map(|file| code_of(&file.text));
    let has = |path: &str, word: &str| code(path).is_some_and(|code| has_word(&code, word));
    let long = |path: &str| {
        let file = files.iter().find(|file| file.path == path);
        file.is_some_and(|file| !sizes(file, &[]).is_empty())
    };
    let unsafe_rows = exceptions.unsafe_files.iter().filter(|(path, _)| !has(path, "unsafe"));
    let sleeping_rows = exceptions.sleeping_files.iter().filter(|(path, _)| !has(path, "sleep"));
    let long_rows = exceptions.long_files.iter().filter(|(path, _)| !long(path));
    let stale = unsafe_rows.chain(sleeping_rows).map(|(path, _)| path).chain(long_rows.map(|(path, _)| path));
    stale.map(|path| format!("{path}: its row in a table of exceptions excuses nothing")).collect()
}

pub(crate) fn at(file: &SourceFile, line: usize, what: &str) -> String {
    format!("{}:{line}: {what}", file.path)
}

fn excuse<'a, T>(rows: &'a [(&str, T)], path: &str) -> Option<&'a T> {
    rows.iter().find(|(excused, _)| *excused == path).map(|(_, what)| what)
}

/// Lines with their numbers from 1.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// True when `word` stands in `line` with no letter, digit or underscore next to it.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |sign: char| sign.is_alphanumeric() || sign == '_';
    line.match_indices(word).any(|(start, _)| {
        let end = start + word.len();
        let ends_free = word.ends_with("::") || !line[end..].starts_with(joins);
        !line[..start].ends_with(joins) && ends_free
    })
}
