//! The figures of RESULTS.md: each of ours beside its floor, in one run, alternating.
//!
//! `cargo run --release --package benches -- [NAME ...]` runs the named benches, or all, and prints markdown rows.
//! Times are medians; a run names the other programs it needs (snapctl of the same build, criu) when they are missing.
//!
//! - `measure`   alternating pairs, medians, rows
//! - `workload`  seeded trees and memory
//! - `synthetic` chunks and packs without files
//! - `storage`   ingest, also of changed files, and restore
//! - `encrypted` the cost of encryption in them, and on one core
//! - `random`    64 KiB read anywhere
//! - `bucket`    the same, and restore, from a bucket that is 20 ms away
//! - `mounted`   mount time, warm reads
//! - `written`   writes, syncs, and freezes of written data
//! - `plain_fuse` the floor of `written`: a FUSE file system that only passes bytes on
//! - `names`     directories of a mount: opening, listing, forgetting; and what a mount keeps in memory
//! - `fault`     page faults of a mapping; `raw_uffd` is their floor
//! - `resume`    a process that CRIU restores lazily and eagerly
//! - `index`     lookups among 100 million chunks
//! - `footprint` memory of a command, and a cgroup that limits it
//! - `memory`    peak memory of commands on a store of 1 TiB
//!
//! On demand only, since they need real files (`corpus` makes them once, with npm, pip and debootstrap) and restic,
//! borg, zstd and GNU time from Debian:
//!
//! - `peers`, `cold`  ingest, restore and stored bytes against `contender`s, with warm and with dropped caches
//! - `versions`       stored bytes of several versions of one thing
//! - `tune`           the experiments of docs/TUNING.md, with arguments of its own

mod bucket;
mod contender;
mod corpus;
mod encrypted;
mod fault;
mod footprint;
mod index;
mod measure;
mod memory;
mod mounted;
mod names;
mod peers;
mod plain_fuse;
mod random;
mod raw_uffd;
mod resume;
mod storage;
mod synthetic;
mod tune;
mod workload;
mod written;

use std::path::Path;
use std::process::ExitCode;

use measure::{Result, Row};

/// One bench: its name and its function, run in a scratch directory.
type Bench = (&'static str, fn(&Path) -> Result<Vec<Row>>);

const BENCHES: &[Bench] = &[
    ("ingest", storage::ingest),
    ("changed", storage::changed),
    ("restore", storage::restore),
    ("crypto", encrypted::crypto),
    ("random", random::random),
    ("mount", mounted::mount),
    ("read", mounted::read),
    ("write", written::write),
    ("fuse", plain_fuse::fuse),
    ("sparse", written::sparse),
    ("freeze", written::freeze),
    ("names", names::names),
    ("resident", names::resident),
    ("fault", fault::fault),
    ("resume", resume::resume),
    ("index", index::index),
    ("bucket", bucket::bucket),
    ("memory", memory::memory),
];

/// Run only when named.
const ON_DEMAND: &[Bench] = &[
    ("corpus", corpus::make),
    ("peers", peers::peers),
    ("cold", peers::cold),
    ("versions", peers::versions),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let [name, source] = &wanted[..]
        && name == "floor"
    {
        return finish(storage::floor_of_ingest(Path::new(source)));
    }
    if let [name, arguments @ ..] = &wanted[..]
        && name == "tune"
    {
        return finish(tune::run(arguments));
    }
    let known: Vec<&str> = BENCHES.iter().chain(ON_DEMAND).map(|(name, _)| *name).collect();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        eprintln!("benches: no bench is called {unknown:?}; there are {}", known.join(" "));
        return ExitCode::from(2);
    }
    finish(run(&wanted))
}

fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &[String]) -> Result<()> {
    println!("{}\n\n{}", measure::circumstances()?, Row::HEAD);
    let named = |(name, _): &&Bench| wanted.iter().any(|wanted| wanted == name);
    let benches: Vec<&Bench> = match wanted.is_empty() {
        true => BENCHES.iter().collect(),
        false => BENCHES.iter().chain(ON_DEMAND).filter(named).collect(),
    };
    for (_, bench) in benches {
        let scratch = tempfile::Builder::new().prefix("torpor-bench-").tempdir()?;
        for row in bench(scratch.path())? {
            println!("{row}");
        }
    }
    Ok(())
}
