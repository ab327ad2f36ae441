//! The layers of a crate whose `lib.rs` lists its modules in layers: a blank line and a comment begin each. A module uses
//! modules of the layers above its own; within its own layer there is no circle. Code names the module that defines an
//! item, not the root of the crate, so that the names in the code are the arrows.

use std::collections::{BTreeMap, BTreeSet};

use crate::lexer::code_of;
use crate::rules::{SourceFile, at, lines};

/// Folders of crates in layers.
const LAYERED: &[&str] = &["store/src/", "lazyload/src/"];
/// Files that only tests have.
const TESTS: [&str; 3] = ["testing.rs", "tests.rs", "hostile.rs"];

/// What breaks the layers of the tree.
pub(crate) fn violations(files: &[SourceFile]) -> Vec<String> {
    LAYERED.iter().flat_map(|folder| of_crate(folder, files)).collect()
}

fn of_crate(folder: &str, files: &[SourceFile]) -> Vec<String> {
    let Some(root) = files.iter().find(|file| file.path == format!("{folder}lib.rs")) else {
        return Vec::new();
    };
    let layers = layers_of(&root.text);
    let mut found = Vec::new();
    let mut arrows: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let Some(path) = file.path.strip_prefix(folder).filter(|path| path.ends_with(".rs")) else {
            continue;
        };
        let own = path.split(['/', '.']).next().unwrap_or_default();
        if path == "lib.rs" || TESTS.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        let Some(own_layer) = layers.get(own) else {
            found.push(at(file, 1, &format!("module {own} is in no layer of lib.rs")));
            continue;
        };
        for (number, used) in modules_used(&file.text) {
            match layers.get(used.as_str()) {
                None => {
                    found.push(at(file, number, &format!("crate::{used}: name the module that defines it")))
                }
                Some(layer) if layer > own_layer => {
                    found.push(at(file, number, &format!("{own} uses {used}, which is in a layer below it")));
                }
                Some(layer) if layer == own_layer && used != own => {
                    arrows.entry(own).or_default().insert(used);
                }
                Some(_) => {}
            }
        }
    }
    let in_circles = arrows.keys().filter(|module| reaches(&arrows, module, module));
    found.extend(
        in_circles.map(|module| at(root, 1, &format!("module {module} is in a circle of its layer"))),
    );
    found
}

/// The layer of each module of a `lib.rs`, the top one first.
fn layers_of(text: &str) -> BTreeMap<&str, usize> {
    let mut layers = BTreeMap::new();
    let (mut layer, mut was_blank) = (0, false);
    for (_, line) in lines(text) {
        if was_blank && line.starts_with("// ") {
            layer += 1;
        }
        let declared = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ");
        if let Some(name) = declared.and_then(|rest| rest.strip_suffix(';')) {
            layers.insert(name, layer);
        }
        was_blank = line.is_empty();
    }
    layers
}

/// Each `crate::NAME` of code that is not a test, with its line.
fn modules_used(text: &str) -> Vec<(usize, String)> {
    let code = code_of(text);
    let tests_line = lines(&code).find(|(_, line)| line.starts_with("mod tests {")).map(|(number, _)| number);
    let is_code = |number: usize| tests_line.is_none_or(|tests| number < tests);
    let mut found = Vec::new();
    for (number, line) in lines(&code).filter(|(number, _)| is_code(*number)) {
        for rest in line.split("crate::").skip(1) {
            let name: String =
                rest.chars().take_while(|sign| sign.is_alphanumeric() || *sign == '_').collect();
            found.push((number, name));
        }
    }
    found
}

/// Whether arrows lead from one module to another.
fn reaches(arrows: &BTreeMap<&str, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&str> = vec![from];
    while let Some(module) = open.pop() {
        for next in arrows.get(module).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next.as_str()) {
                open.push(next);
            }
        }
    }
    false
}
