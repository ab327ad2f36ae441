//! `snapctl freeze DIR [REF]`: asks the mount's process for a snapshot of what changed.

use std::io::{self, Write};

use serde::Serialize;
use snapfs::FreezeReport;
use store::{Error, Kind};

use crate::args::FreezeArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::human;
use crate::output::Show;
use crate::spec;

#[derive(Serialize)]
struct Frozen {
    #[serde(rename = "ref")]
    name: String,
    snapshot: String,
    changed_files: u64,
    changed_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    elapsed_seconds: f64,
}

impl Show for Frozen {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "froze {} as {}", self.name, self.snapshot)?;
        writeln!(
            out,
            "{} files changed, {} written there; {} new, {} stored, in {:.2} s",
            self.changed_files,
            human::size(self.changed_bytes),
            human::size(self.new_bytes),
            human::size(self.stored_bytes),
            self.elapsed_seconds,
        )
    }
}

pub(super) fn run(arguments: FreezeArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let client = snapfs::control::find(&arguments.mountpoint).asked()?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => client.status()?.ref_name,
    };
    if name.is_empty() {
        return Err(Error::new(Kind::Invalid, "a snapshot is mounted here, not a ref")
            .object(arguments.mountpoint.display())
            .advice("say which REF to move: snapctl freeze DIR REF")
            .into());
    }
    let report = client.freeze_within(context.wait(), Some(&name), &spec::labels(arguments.labels))?;
    context.output.report(&describe(name, &report))?;
    Ok(Outcome::Done)
}

fn describe(name: String, report: &FreezeReport) -> Frozen {
    Frozen {
        name,
        snapshot: report.snapshot.to_string(),
        changed_files: report.changed_files,
        changed_bytes: report.changed_bytes,
        new_bytes: report.new_bytes,
        stored_bytes: report.stored_bytes,
        elapsed_seconds: report.elapsed.as_secs_f64(),
    }
}
