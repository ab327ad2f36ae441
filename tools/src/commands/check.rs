//! `snapctl check`: is everything there that is referred to, and with `--read-data`, is every byte of it right? Reads only.

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
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Problem {
    object: String,
    error: String,
    hurts: Vec<String>,
}

impl Show for Checked {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        for problem in &self.problems {
            writeln!(out, "{}: {}", problem.object, problem.error)?;
            if !problem.hurts.is_empty() {
                writeln!(out, "  hurts {}", problem.hurts.join(" "))?;
            }
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
            if self.problems.is_empty() { "all is well" } else { "damaged" },
        )
    }
}

pub fn run(arguments: &CheckArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.whole_store()?;
    let options = CheckOptions { read_data: arguments.read_data };
    let report = store::check(&store, options, &context.progress)?;
    context.progress.clear();
    let count = report.problems.len();
    let checked = describe(report);
    context.output.report(&checked)?;
    if count == 0 {
        return Ok(Outcome::Done);
    }
    let what = format!("the store has {count} problems");
    Err(Error::new(Kind::Corrupt, what)
        .object(store.home().describe())
        .advice("restore what is hurt from another copy; what is not named is whole")
        .into())
}

fn describe(report: CheckReport) -> Checked {
    let problems = report.problems.into_iter().map(|problem| Problem {
        object: problem.object,
        error: problem.error,
        hurts: problem.hurts,
    });
    Checked {
        refs: report.refs,
        snapshots: report.snapshots,
        chunks: report.chunks,
        packs: report.packs,
        read_bytes: report.read_bytes,
        locked_domains: report.locked_domains,
        locked_frames: report.locked_frames,
        problems: problems.collect(),
    }
}
