//! Every rule against a violation planted for it, and against a text that only looks like one.

use crate::layers;
use crate::rules::{self, Exceptions, SourceFile};

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile { path: path.into(), text: text.into() }
}

#[track_caller]
fn refused(found: &[String], what: &str) {
    assert!(found.iter().any(|line| line.contains(what)), "wanted {what:?} in {found:?}");
}

#[track_caller]
fn accepted(found: &[String]) {
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_file_without_a_head_is_refused() {
    refused(&rules::head(&file("gc/src/a.rs", "use store::Store;\n")), "gc/src/a.rs:1: no `//!` head");
    accepted(&rules::head(&file("gc/src/a.rs", "//! Marks.\n")));
}

#[test]
fn a_long_file_is_refused() {
    let code = "let x = 1;\n".repeat(501);
    refused(&rules::sizes(&file("a.rs", &code), &[]), "501 lines of code");
    accepted(&rules::sizes(&file("a.rs", &code), &[("a.rs", 501)]));
    accepted(&rules::sizes(&file("a.rs", &"// why\n".repeat(600)), &[]));
    refused(&rules::sizes(&file("a.rs", &"// why\n".repeat(801)), &[]), "801 lines, over 800");
    let tests = format!("mod tests {{\n{code}}}\n");
    refused(&rules::sizes(&file("a.rs", &tests), &[]), "inline tests");
}

#[test]
fn a_sign_outside_ascii_is_refused() {
    refused(&rules::ascii(&file("a.rs", "// fine\n// 5 \u{b5}s\n")), "a.rs:2: '\u{b5}' is not ASCII");
    accepted(&rules::ascii(&file("a.rs", "// 5 us\n")));
}

#[test]
fn unsafe_outside_its_files_is_refused() {
    let sound = "// SAFETY: the length is checked above.\nlet a = unsafe { map() };\n";
    refused(&rules::unsafe_code(&file("gc/src/a.rs", sound), &[]), "gc/src/a.rs:2: unsafe outside");
    accepted(&rules::unsafe_code(&file("gc/src/a.rs", sound), &[("gc/src/a.rs", "maps")]));
    accepted(&rules::unsafe_code(&file("gc/src/a.rs", "// unsafe\nlet unsafe_code = \"unsafe\";\n"), &[]));
}

#[test]
fn unsafe_without_a_reason_is_refused() {
    let bare = "let a = unsafe { map() };\n";
    refused(&rules::unsafe_code(&file("a.rs", bare), &[("a.rs", "maps")]), "without a SAFETY comment");
    let far = format!("// SAFETY: of another\n{}{bare}", "\n".repeat(20));
    refused(&rules::unsafe_code(&file("a.rs", &far), &[("a.rs", "maps")]), "without a SAFETY comment");
}

#[test]
fn a_crate_used_by_another_than_its_owner_is_refused() {
    refused(&rules::owners(&file("snapfs/src/dir.rs", "use fuser::Request;\n")), "fuser::");
    refused(&rules::owners(&file("store/src/a.rs", "let a = libc::getpid();\n")), "libc::");
    refused(&rules::owners(&file("gc/src/a.rs", "type R = anyhow::Result<()>;\n")), "anyhow::");
    refused(&rules::owners(&file("gc/src/a.rs", "let a = SystemTime::now();\n")), "SystemTime::now");
    accepted(&rules::owners(&file("snapfs/src/fuse.rs", "use fuser::Request;\n")));
    accepted(&rules::owners(&file("store/src/a.rs", "// fuser::Request\nmod my_libc; use my_libc::x;\n")));
}

#[test]
fn unfinished_code_is_refused() {
    for planted in ["todo!()", "unimplemented!()", "dbg!(x)", "#[ignore]", "#[ignore = \"slow\"]"] {
        let word = planted.split(['(', ']', ' ']).next().expect("a word");
        refused(&rules::forbidden_code(&file("a.rs", planted), &[]), word);
    }
    accepted(&rules::forbidden_code(&file("a.rs", "// dbg!\nlet a = \"todo!\";\n"), &[]));
    let comment = concat!("// FIX", "ME later\n");
    refused(&rules::unfinished(&file("a.rs", comment)), "a.rs:1");
    accepted(&rules::unfinished(&file("a.rs", "// O_TODOS\n")));
}

#[test]
fn private_words_are_refused() {
    for planted in [concat!("// Who", "ever reads it\n"), concat!("Sealed a", "new.\n")] {
        refused(&rules::words(&file("a.md", planted)), "a.md:1");
    }
    accepted(&rules::words(&file("a.rs", "// a new file of the manewal\n")));
}

#[test]
fn sleeping_is_refused_but_where_a_table_says_why() {
    let sleeps = "std::thread::sleep(wait);\n";
    refused(&rules::forbidden_code(&file("a.rs", sleeps), &[]), "thread::sleep");
    accepted(&rules::forbidden_code(&file("a.rs", sleeps), &[("a.rs", "polls a foreign process")]));
}

#[test]
fn a_place_of_one_machine_is_refused() {
    let path = concat!("let a = \"/wo", "rk/main\";\n");
    refused(&rules::places(&file("a.rs", path)), "a.rs:1");
    let host = concat!("uri = \"http://deb.", "debian.org/debian\"\n");
    refused(&rules::places(&file("docs/a.md", host)), "docs/a.md:1");
    accepted(&rules::places(&file("a.rs", "let a = \"/var/lib/torpor\";\n")));
}

#[test]
fn an_arrow_against_the_direction_is_refused() {
    let lints = "[lints]\nworkspace = true\n";
    let manifest = |package: &str, dependencies: &str| {
        let text = format!("[package]\nname = \"{package}\"\n{dependencies}\n{lints}");
        rules::manifest(&file("Cargo.toml", &text))
    };
    refused(
        &manifest("snapfs", "[dependencies]\nlazyload.workspace = true\n"),
        "snapfs may not depend on lazyload",
    );
    refused(
        &manifest("store", "[dev-dependencies]\ntests = { path = \"../tests\" }\n"),
        "store may not depend on tests",
    );
    refused(&manifest("gc", "[dependencies.tools]\nworkspace = true\n"), "gc may not depend on tools");
    refused(&manifest("gc", "[target.'cfg(unix)'.dependencies]\nsnapfs.workspace = true\n"), "snapfs");
    refused(&manifest("extra", ""), "no row in ARROWS");
    accepted(&manifest("tools", "[dependencies]\nstore.workspace = true\nserde.workspace = true\n"));
    let text = "[package]\nname = \"gc\"\n";
    refused(&rules::manifest(&file("gc/Cargo.toml", text)), "no `[lints] workspace = true`");
}

#[test]
fn a_readme_that_begins_with_other_commands_is_refused() {
    let readme =
        |commands: &str| rules::readme(&file("README.md", &format!("# Torpor\n```sh\n{commands}\n```\n")));
    accepted(&readme("cargo xtask demo   # the main job\n$ cargo xtask test\nsnapctl init"));
    refused(&readme("make install\ncargo xtask demo\ncargo xtask test"), "README.md:1");
    refused(&readme("cargo xtask demo"), "README.md:1");
}

#[test]
fn a_row_that_excuses_nothing_is_refused() {
    let exceptions = Exceptions {
        unsafe_files: &[("safe.rs", "was unsafe")],
        long_files: &[("short.rs", 600)],
        sleeping_files: &[("gone.rs", "slept")],
    };
    let files = [file("safe.rs", "//! unsafe\n"), file("short.rs", "//! Short.\n")];
    let found = rules::stale_exceptions(&files, &exceptions);
    for path in ["safe.rs", "short.rs", "gone.rs"] {
        refused(&found, path);
    }
}

#[test]
fn every_rule_runs_over_the_tree() {
    let none = Exceptions { unsafe_files: &[], long_files: &[], sleeping_files: &[] };
    let files = [
        file("README.md", "# Torpor\n"),
        file("gc/Cargo.toml", "[package]\nname = \"gc\"\n[dependencies]\ntools.workspace = true\n"),
        file("gc/src/a.rs", concat!("use fuser::X; // \u{b5} TO", "DO /ro", "ot/\nunsafe { todo!() }\n")),
    ];
    let found = rules::violations(&files, &none);
    let wanted = [
        "README.md:1",
        "depend on tools",
        "head",
        "fuser",
        "ASCII",
        "do it or",
        "place of",
        "unsafe",
        "todo!",
    ];
    for what in wanted {
        refused(&found, what);
    }
}

#[test]
fn an_arrow_upwards_and_a_circle_are_refused() {
    let root = "//! A crate.\n\n// Leaves.\nmod error;\nmod id;\n\n// Above.\npub mod tier;\nmod pack;\n";
    let tree = |path: &str, text: &str| {
        layers::violations(&[
            file("store/src/lib.rs", root),
            file(path, text),
            file("store/src/pack/a.rs", ""),
        ])
    };
    refused(&tree("store/src/id.rs", "use crate::tier::Tier;\n"), "store/src/id.rs:1: id uses tier");
    refused(&tree("store/src/id.rs", "use crate::Error;\n"), "store/src/id.rs:1: crate::Error");
    refused(&tree("store/src/other.rs", ""), "module other is in no layer");
    accepted(&tree("store/src/tier/local.rs", "use crate::error::Error;\nuse crate::pack::Pack;\n"));
    accepted(&tree("store/src/id.rs", "// crate::tier\nmod tests {\n    use crate::tier::Tier;\n}\n"));
    let circle = [
        file("store/src/lib.rs", root),
        file("store/src/tier.rs", "use crate::pack::Pack;\n"),
        file("store/src/pack.rs", "use crate::tier::Tier;\n"),
    ];
    refused(&layers::violations(&circle), "module pack is in a circle");
}
