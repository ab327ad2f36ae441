//! `snapctl gc`: condemns objects that no root reaches and deletes those condemned long enough ago. The plan, with a
//! reason for each pack, is the same with `--dry-run`. Reports what was freed now, and what is pending and until when.

use std::io::{self, Write};
use std::time::Instant;

use gc::{CollectOptions, CollectReport, Planned, Verdict};
use serde::Serialize;

use crate::args::GcArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::output::{Show, Table};

/// Verdict on objects that stay; shown to people only with `--verbose`.
const KEEP: &str = "keep";

#[derive(Serialize)]
struct Collected {
    dry_run: bool,
    epoch: u64,
    deleted_bytes: u64,
    pending_bytes: u64,
    kept_bytes: u64,
    packs: Vec<Object>,
    snapshots: Vec<Object>,
    merged_index_runs: u64,
    elapsed_seconds: f64,
    #[serde(skip)]
    with_kept: bool,
}

#[derive(Serialize)]
struct Object {
    id: String,
    len_bytes: u64,
    verdict: &'static str,
    reason: String,
}

impl Show for Collected {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&["what", "id", ">size", "verdict", "reason"]);
        for (what, objects) in [("pack", &self.packs), ("snapshot", &self.snapshots)] {
            for object in objects.iter().filter(|object| self.with_kept || object.verdict != KEEP) {
                let size = human::size(object.len_bytes);
                let (id, verdict) = (object.id.clone(), object.verdict.to_owned());
                table.row(vec![what.to_owned(), id, size, verdict, object.reason.clone()]);
            }
        }
        if !table.is_empty() {
            table.show(out)?;
        }
        let (freed, pending) = (human::size(self.deleted_bytes), human::size(self.pending_bytes));
        let verb = if self.dry_run { "would free" } else { "freed" };
        let kept = human::size(self.kept_bytes);
        writeln!(out, "run {}: {verb} {freed} now; pending {pending}; in use {kept}", self.epoch)?;
        if self.pending_bytes > 0 {
            writeln!(
                out,
                "condemned packs that stay unreachable are deleted two runs later: run `snapctl gc` again"
            )?;
        }
        Ok(())
    }
}

pub(super) fn run(arguments: &GcArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let store = context.store_of_all_domains()?;
    let options = CollectOptions { dry_run: arguments.dry_run, cycles: arguments.cycles };
    let report = gc::collect(&store, &options, &context.progress)?;
    context.progress.clear();
    let collected = describe(&report, context.is_verbose(), begun);
    if arguments.dry_run {
        context.output.answer(&collected)?;
    } else {
        context.output.report(&collected)?;
    }
    Ok(Outcome::Done)
}

fn describe(report: &CollectReport, with_kept: bool, begun: Instant) -> Collected {
    Collected {
        dry_run: report.dry_run,
        epoch: report.epoch,
        deleted_bytes: report.bytes(Verdict::Delete),
        pending_bytes: report.bytes(Verdict::Condemn) + report.bytes(Verdict::Wait),
        kept_bytes: [Verdict::Keep, Verdict::TakeBack, Verdict::Avoid]
            .map(|verdict| report.bytes(verdict))
            .iter()
            .sum(),
        packs: report.packs.iter().map(object).collect(),
        snapshots: report.snapshots.iter().map(object).collect(),
        merged_index_runs: report.merged_runs,
        elapsed_seconds: begun.elapsed().as_secs_f64(),
        with_kept,
    }
}

fn object<Id: std::fmt::Display>(planned: &Planned<Id>) -> Object {
    Object {
        id: planned.id.to_string(),
        len_bytes: planned.len_bytes,
        verdict: match planned.verdict {
            Verdict::Keep => KEEP,
            Verdict::TakeBack => "take_back",
            Verdict::Avoid => "avoid",
            Verdict::Condemn => "condemn",
            Verdict::Wait => "wait",
            Verdict::Delete => "delete",
        },
        reason: planned.reason.to_string(),
    }
}
