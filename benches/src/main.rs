//! The figures of RESULTS.md: each of ours beside its floor, in one run, alternating.
//!
//! `cargo run --release --package benches -- [NAME ...]` runs the named benches, or all, and prints markdown rows.
//! Times are medians; what a run needs besides this program (snapctl of the same build, criu) it says when it is missing.
//!
//! - `measure`   alternating pairs, medians, rows
//! - `workload`  seeded trees and memory
//! - `storage`   ingest and restore
//! - `mounted`   mount time, warm reads
//! - `fault`     page faults of a mapping; `raw_uffd` is their floor
//! - `resume`    a process that CRIU wakes lazily and eagerly

mod fault;
mod measure;
mod mounted;
mod raw_uffd;
mod resume;
mod storage;
mod workload;

use std::path::Path;
use std::process::ExitCode;

use measure::{Result, Row};

/// One bench: what it is called and what runs it in a scratch directory.
type Bench = (&'static str, fn(&Path) -> Result<Vec<Row>>);

const BENCHES: &[Bench] = &[
    ("ingest", storage::ingest),
    ("restore", storage::restore),
    ("mount", mounted::mount),
    ("read", mounted::read),
    ("fault", fault::fault),
    ("resume", resume::resume),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let known: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        eprintln!("benches: no bench is called {unknown:?}; there are {}", known.join(" "));
        return ExitCode::from(2);
    }
    match run(&wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &[String]) -> Result<()> {
    println!("{}\n\n{}", measure::circumstances()?, Row::HEAD);
    for (name, bench) in BENCHES {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let scratch = tempfile::Builder::new().prefix("torpor-bench-").tempdir()?;
        for row in bench(scratch.path())? {
            println!("{row}");
        }
    }
    Ok(())
}
