//! `cargo xtask bench`: runs the benches of one release build, and writes benches/RESULTS.md.

use std::fs;
use std::path::PathBuf;

use crate::setup;
use crate::shell::{Context, Failure, Result, cargo, command, output, run, step, target_dir, workspace};

/// The benches of the table, some ten minutes; they run in the order of `BENCHES`.
const TABLE: [&str; 16] = [
    "ingest", "changed", "restore", "crypto", "random", "bucket", "mount", "read", "write", "fuse", "freeze",
    "sparse", "names", "resident", "fault", "resume",
];

/// Runs the benches of these names, and prints their rows.
pub(crate) fn run_named(names: &[&str]) -> Result<()> {
    run(&mut command(built()?, names))
}

/// Runs the benches of the table, and writes it.
pub(crate) fn run_table() -> Result<()> {
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.trim().is_empty() {
        return Err(Failure::new(
            "the tree has changes: commit them first, since the table names its commit",
        ));
    }
    let benches = built()?;
    let mut table = String::new();
    step("benches", || {
        table = output(&mut command(&benches, TABLE))?;
        Ok(format!("{} rows", table.lines().filter(|line| line.starts_with("| ")).count().saturating_sub(1)))
    })?;
    let path = workspace().join("benches/RESULTS.md");
    let text = document(commit.trim(), &table);
    fs::write(&path, text).context(|| format!("cannot write {}", path.display()))
}

/// The program of the benches, after set-up and a release build.
fn built() -> Result<PathBuf> {
    setup::run(false)?;
    step("programs", || {
        run(&mut cargo(&["build", "--release", "--package", "torpor-tools", "--package", "benches"]))?;
        Ok("release build".into())
    })?;
    Ok(target_dir()?.join("release/benches"))
}

fn git(arguments: &[&str]) -> Result<String> {
    output(command("git", arguments).current_dir(workspace()))
}

/// The document: what made the table, the table, and where the rest is.
fn document(commit: &str, table: &str) -> String {
    format!(
        "# Results

`cargo xtask bench` wrote this file, at commit {commit}. Each figure stands beside its floor, which the same run measured
in turns with it: medians, spread in brackets, and the median of the rounds' ratios. Read ratios, not absolute numbers:
the cores of a virtual machine are not its own. `benches/src/main.rs` says what each bench does.
[HISTORY.md](HISTORY.md) has the figures against restic and borg, those of a store of 1 TiB and of an index of 100
million chunks, and what changed them.

{}
",
        table.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_its_commit_and_has_the_table() {
        let text = document("abc1234", "Linux, 2 cores\n\n| figure |\n|---|\n| a |\n");
        assert!(
            text.contains("at commit abc1234.") && text.ends_with("| figure |\n|---|\n| a |\n"),
            "{text}"
        );
    }
}
