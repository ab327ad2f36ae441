//! The commands that the other documents show: each verb and each flag is one that `snapctl` has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tests::snapctl::Place;

/// Documents whose commands are looked at; docs/TASKS.md is played.
const DOCUMENTS: [&str; 11] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "snapfs/SEMANTICS.md",
    "docs/CONFIGURATION.md",
    "docs/DECISIONS.md",
    "docs/FORMAT.md",
    "docs/JSON.md",
    "docs/OPERATING.md",
    "docs/SECURITY.md",
    "docs/TUNING.md",
];

/// Verbs that have verbs below them.
const GROUPS: [&str; 4] = ["index", "tier", "cache", "domain"];
/// Flags that stand before a verb with a value.
const VALUED: [&str; 4] = ["--store", "--config", "--domain", "--wait"];

/// The words behind each `snapctl` in code: in lines of blocks, and between two backticks.
fn commands(document: &str) -> Vec<Vec<String>> {
    let mut texts = Vec::new();
    let mut prose = String::new();
    let mut is_block = false;
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if is_block {
            texts.push(line.to_owned());
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    for paragraph in prose.split("\n\n") {
        let spans = paragraph.split('`').skip(1).step_by(2);
        texts.extend(spans.map(|span| span.replace('\n', " ")));
    }
    let typed = texts.iter().flat_map(|text| text.split(['#', ';', '|', '(', ')', '&', '>', '$']));
    let words = typed.map(|command| command.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let behind = words.filter_map(|words| {
        let program = words.iter().position(|word| word == "snapctl" || word.ends_with("/snapctl"))?;
        Some(words[program + 1..].to_vec())
    });
    behind.filter(|words| !words.is_empty()).collect()
}

/// The verb of a command, with the one below it, and its flags.
fn verb_and_flags(words: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut verb, mut flags) = (Vec::<String>::new(), Vec::new());
    let mut words = words.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if word.starts_with('-') {
            flags.push(word.split('=').next().unwrap_or_default().to_owned());
            if VALUED.contains(&word.as_str()) {
                words.next();
            }
        } else if verb.is_empty() || (verb.len() == 1 && GROUPS.contains(&verb[0].as_str())) {
            verb.push(word.trim_end_matches(',').to_owned());
        }
    }
    (verb, flags)
}

/// The errors in the commands of a document.
fn mistakes(document: &str, help: &mut BTreeMap<Vec<String>, Option<String>>) -> (usize, Vec<String>) {
    let place = Place::new();
    let mut found = Vec::new();
    let commands = commands(document);
    for words in &commands {
        let (verb, flags) = verb_and_flags(words);
        let own = help.entry(verb.clone()).or_insert_with(|| {
            let run = place.run(verb.iter().map(String::as_str).chain(["--help"]));
            (run.code == 0).then(|| run.text())
        });
        let Some(own) = own else {
            found.push(format!("{words:?}: no such command"));
            continue;
        };
        let has =
            |flag: &str| own.split([' ', ',', '\n', '=']).any(|word| word.trim_end_matches("...") == flag);
        found.extend(flags.iter().filter(|flag| !has(flag)).map(|flag| format!("{words:?}: no flag {flag}")));
    }
    (commands.len(), found)
}

#[test]
fn commands_and_flags_of_the_other_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut help = BTreeMap::new();
    let (mut count, mut found) = (0, Vec::new());
    for name in DOCUMENTS {
        let (commands, mistakes) = mistakes(&fs::read_to_string(root.join(name)).unwrap(), &mut help);
        count += commands;
        found.extend(mistakes.into_iter().map(|mistake| format!("{name}: {mistake}")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(count >= 60, "only {count} commands were found");
}

#[test]
fn a_command_that_does_not_exist_is_noticed() {
    let mut help = BTreeMap::new();
    let mut refused = |document: &str| mistakes(document, &mut help).1.len();
    assert_eq!(
        refused("```\nsnapctl --store x tier move app --to warm  # --no\n```\n`snapctl\ngc --dry-run -v`"),
        0
    );
    for document in ["`snapctl collect`", "```sh\nx; snapctl gc --cycels 3\n```", "`snapctl tier mvoe`"] {
        assert_eq!(refused(document), 1, "{document}");
    }
}
