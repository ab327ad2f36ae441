//! `cargo xtask`: prepares a machine, runs the tests, runs the demo.
//!
//! Contents:
//! - `setup`  installs what the other two need: packages, CRIU, devices checked
//! - `apt`    reads the machine's own package sources (pure)
//! - `criu`   builds CRIU from Debian's source when the machine has none that is new enough
//! - `crates` builds programs of the tests that crates.io has
//! - `servers` installs the object stores that the tests run against
//! - `bench`  `cargo xtask bench`: the benches, and benches/RESULTS.md
//! - `dist`   `cargo xtask dist`: manual pages, completions and a Debian package
//! - `test`   `cargo xtask test`: everything the workspace can test
//! - `demo`   `cargo xtask demo`: the main job on real input
//! - `shell`  runs one command or one timed step
//!
//! It uses the standard library alone, so that it builds in seconds on a machine that has only Rust.

mod apt;
mod bench;
mod crates;
mod criu;
mod demo;
mod dist;
mod servers;
mod setup;
mod shell;
mod test;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <task>
  setup             install what the tests and the demo need (second run: nothing to do)
  test [--long] [-- args]
                    setup, then build and run every test; args go to `cargo test`. --long: with more rounds
                    of what is random, of the suites of others, and against Garage, which is built once
  bench [NAME ...]  setup, then run the benches of a release build and write benches/RESULTS.md; with names:
                    run those alone and print their rows
  dist              build snapctl, and write manual pages, completions and a Debian package to target/dist
  demo [--keep]     setup, then run the main job on real input; --keep leaves the scratch directory
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["setup"] => setup::run(false),
        ["test", "--long", rest @ ..] => test::run_all(true, rest.strip_prefix(&["--"]).unwrap_or(rest)),
        ["test", rest @ ..] => test::run_all(false, rest.strip_prefix(&["--"]).unwrap_or(rest)),
        ["bench"] => bench::run_table(),
        ["bench", names @ ..] => bench::run_named(names),
        ["dist"] => dist::run(),
        ["demo"] => demo::run(false),
        ["demo", "--keep"] => demo::run(true),
        [demo::janitor::VERB, scratch] => demo::janitor::run(Path::new(scratch), false),
        [demo::janitor::VERB, scratch, "--keep"] => demo::janitor::run(Path::new(scratch), true),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
