//! `cargo xtask test`: setup, then every test of the workspace. Cargo's own lines close the output.

use crate::setup;
use crate::shell::{Result, cargo, run, sealed, step};

/// Sets up, builds, tests; `arguments` go to the last and longest `cargo test`, which says how long each suite took.
pub fn run_all(arguments: &[&str]) -> Result<()> {
    const SUITES: [&str; 5] = ["test", "--workspace", "--lib", "--bins", "--tests"];
    setup::run()?;
    let timed = |name: &str, words: &[&str]| {
        step(name, || {
            run(&mut cargo(words))?;
            Ok("done".into())
        })
    };
    // The tests call snapctl and their own helpers as programs: built first, and never stale.
    timed("programs", &["build", "--workspace", "--bins"])?;
    timed("tests built", &[SUITES.as_slice(), &["--no-run"]].concat())?;
    timed("doc tests", &["test", "--workspace", "--doc", "--no-fail-fast"])?;
    run(&mut sealed(cargo(&SUITES).arg("--no-fail-fast").args(arguments)))
}
