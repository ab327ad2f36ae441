//! `snapctl check`: verifies that all referenced objects exist, and with `--read-data` every byte of them. Reads only.

use std::io::{self, Write};

use serde::Serialize;
use store::{CheckOptions, CheckReport, Error, Kind};

use crate::args::CheckArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::output::Show;

#[derive(Serialize)]
struct Checked {
    refs: u64,
    snapshots: u64,
    chunks: u64,
    packs: u64,
    read_bytes: u64,
    locked_domains: Vec<String>,
    locked_frames: u64,
    damaged_packs: Vec<DamagedPack>,
    problems: Vec<Problem>,
    more_problems: u64,
}

#[derive(Serialize)]
struct DamagedPack {
    pack: String,
    lost_frames: u64,
}

#[derive(Serialize)]
pub(super) struct Problem {
    object: String,
    error: String,
    affects: Vec<String>,
}

impl Problem {
    /// The problems of a report.
    pub(super) fn all(problems: Vec<store::Problem>) -> Vec<Self> {
        let describe = |store::Problem { object, error, affects }| Self { object, error, affects };
        problems.into_iter().map(describe).collect()
    }

    pub(super) fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}: {}", self.object, self.error)?;
        if !self.affects.is_empty() {
            writeln!(out, "  affects {}", self.affects.join(" "))?;
        }
        Ok(())
    }
}

impl Show for Checked {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        for problem in &self.problems {
            problem.show(out)?;
        }
        if self.more_problems > 0 {
            writeln!(out, "and {} problems more", self.more_problems)?;
        }
        for damaged in &self.damaged_packs {
            writeln!(
                out,
                "a scrub found {} frames of pack {} to be lost; only the refs that are listed need them",
                damaged.lost_frames, damaged.pack
            )?;
        }
        for domain in &self.locked_domains {
            writeln!(
                out,
                "domain {domain} cannot be opened here: of what it holds, only checksums were checked"
            )?;
        }
        writeln!(
            out,
            "checked {} refs, {} snapshots, {} chunks, {} packs, read {}: {}",
            self.refs,
            self.snapshots,
            self.chunks,
            self.packs,
            human::size(self.read_bytes),
            if self.problems.is_empty() { "ok" } else { "damaged" },
        )
    }
}

pub(super) fn run(arguments: &CheckArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store_of_all_domains()?;
    let options = CheckOptions { read_data: arguments.read_data };
    let report = store::check(&store, options, &context.progress)?;
    context.progress.clear();
    let count = report.problems.len() as u64 + report.more_problems;
    let checked = describe(report);
    context.output.report(&checked)?;
    if count == 0 {
        return Ok(Outcome::Done);
    }
    let what = format!("the store has {count} problems");
    Err(Error::new(Kind::Corrupt, what)
        .object(store.metadata_tier().describe())
        .advice(
            "run `snapctl scrub` to list the affected files and what can be repaired; everything that is not listed is intact",
        )
        .into())
}

fn describe(report: CheckReport) -> Checked {
    let damaged_packs = report.damaged_packs.into_iter();
    let damaged_packs =
        damaged_packs.map(|(pack, lost_frames)| DamagedPack { pack: pack.to_string(), lost_frames });
    Checked {
        refs: report.refs,
        snapshots: report.snapshots,
        chunks: report.chunks,
        packs: report.packs,
        read_bytes: report.read_bytes,
        locked_domains: report.locked_domains,
        locked_frames: report.locked_frames,
        damaged_packs: damaged_packs.collect(),
        problems: Problem::all(report.problems),
        more_problems: report.more_problems,
    }
}
