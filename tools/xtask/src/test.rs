//! `cargo xtask test`: setup, then every test of the workspace. Cargo's own lines close the output.

use crate::setup;
use crate::shell::{Result, cargo, run, sealed, step};

/// What the tests look at to know that there is time.
const LONG: &str = "TORPOR_LONG";

/// Sets up, builds, tests; `arguments` go to the last and longest `cargo test`, which says how long each suite took. `long`:
/// with more rounds of what is random, and against servers that take long to build.
pub(crate) fn run_all(long: bool, arguments: &[&str]) -> Result<()> {
    const SUITES: [&str; 6] = ["test", "--workspace", "--lib", "--bins", "--tests", "--examples"];
    setup::run(long)?;
    let timed = |name: &str, words: &[&str]| {
        step(name, || {
            run(&mut cargo(words))?;
            Ok("done".into())
        })
    };
    // The tests call snapctl and their own helpers as programs: built first, and never stale. With the tests, since what
    // tests depend on changes the features of what programs depend on, and all of it would be compiled twice.
    timed("built", &["build", "--workspace", "--all-targets"])?;
    timed("doc tests", &["test", "--workspace", "--doc", "--no-fail-fast"])?;
    let mut tests = cargo(&SUITES);
    tests.arg("--no-fail-fast").args(arguments);
    match long {
        true => tests.env(LONG, "1"),
        false => tests.env_remove(LONG),
    };
    run(&mut sealed(&tests))
}
