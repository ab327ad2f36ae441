//! `cargo tidy`: what the style guide promises, checked over the tree. Reads files only, builds nothing.
//!
//! - `layers`   the modules of a crate in layers
//! - `lexer`    a source file without its comments and strings
//! - `rules`    the checks: pure over a path and a text; their tables of exceptions are below
//! - `planted`  every rule against a violation planted for it: a rule that cannot fail is no rule
//!
//! A table row that no longer applies is a violation, too: tables only shrink.

mod layers;
mod lexer;
mod planted;
mod rules;

use std::fs;
use std::path::Path;

use rules::{Exceptions, SourceFile};

/// What the tree is excused from, and why.
const EXCEPTIONS: Exceptions = Exceptions {
    // Files with `unsafe`: why safe Rust could not do it.
    unsafe_files: &[
        ("store/src/host/map.rs", "maps files"),
        ("lazyload/src/sys.rs", "userfaultfd, pidfd and fd passing"),
        ("benches/src/raw_uffd.rs", "the floor of a page fault: mmap and UFFDIO_COPY, nothing else"),
        ("tests/src/bin/pattern_writer.rs", "fork, mremap and madvise over stamped memory"),
        ("tests/src/vmm/guest.rs", "the guest's code is assembled into the program"),
        ("tests/src/vmm/memory.rs", "guest memory is mapped, registered and given back"),
        ("tests/src/vmm/mod.rs", "KVM is told of raw memory"),
    ],
    // Files with more than 500 lines of code: how many they may have.
    long_files: &[],
    // Files that sleep: why no event could be waited for.
    sleeping_files: &[
        ("benches/src/footprint.rs", "samples a process that tells nobody what memory it takes"),
        ("benches/src/resume.rs", "a port that listens and a foreign process's end tell nobody"),
        ("benches/src/storage.rs", "a file that changed in this second is never taken for unchanged"),
        (
            "lazyload/src/orphaned.rs",
            "the end of an address space is not announced to the process that fills it",
        ),
        (
            "store/src/host/derived.rs",
            "threads of sled let go of its lock after it was closed, and tell nobody",
        ),
        ("tests/src/proxy/mod.rs", "delays are what it is there for"),
        ("tests/src/servers/process.rs", "a port that listens tells nobody"),
        ("tools/xtask/src/demo/server.rs", "a port that listens and a foreign process's end tell nobody"),
    ],
};

#[test]
fn the_tree_keeps_the_style_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace root");
    let mut files = Vec::new();
    collect(root, root, &mut files);
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "{} is no workspace root", root.display());
    let mut found = rules::violations(&files, &EXCEPTIONS);
    found.extend(layers::violations(&files));
    assert!(found.is_empty(), "{} violations of the style guide:\n{}", found.len(), found.join("\n"));
}

/// Every text file below `directory`, but for what git and cargo keep there.
fn collect(root: &Path, directory: &Path, files: &mut Vec<SourceFile>) {
    let listed = fs::read_dir(directory).expect("the tree is readable");
    let mut entries: Vec<_> = listed.map(|entry| entry.expect("the tree is readable")).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().expect("the tree is readable");
        if [".git", "target"].iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            collect(root, &path, files);
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root).expect("below the root").display().to_string();
            files.push(SourceFile { path, text });
        }
    }
}
