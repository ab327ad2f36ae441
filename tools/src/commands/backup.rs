//! `snapctl backup PATH REF`: a directory becomes the next snapshot of a ref. Unreadable files and extended attributes
//! are left out, named, and make the exit code 3; the snapshot of the rest is kept. Files that change while they are
//! read are named too; those that vanish before that are counted, and named with `--verbose`.

use std::io::{self, Write};
use std::time::Instant;

use serde::Serialize;
use store::{BackupOptions, BackupReport, check_name};

use crate::args::BackupArguments;
use crate::context::Context;
use crate::exit::{Outcome, complain};
use crate::human;
use crate::output::Show;
use crate::spec;

#[derive(Serialize)]
struct Stored {
    #[serde(rename = "ref")]
    name: String,
    snapshot: String,
    files: u64,
    directories: u64,
    unchanged_files: u64,
    bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    unreadable: Vec<String>,
    unreadable_attributes: Vec<String>,
    changed: Vec<String>,
    vanished: Vec<String>,
    elapsed_seconds: f64,
}

impl Show for Stored {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{} is now snapshot {}", self.name, self.snapshot)?;
        writeln!(
            out,
            "{} files ({} unchanged), {}; {} new, {} stored, in {:.1} s",
            self.files,
            self.unchanged_files,
            human::size(self.bytes),
            human::size(self.new_bytes),
            human::size(self.stored_bytes),
            self.elapsed_seconds,
        )?;
        match self.vanished.len() {
            0 => Ok(()),
            count => writeln!(out, "{count} names vanished before they were read"),
        }
    }
}

pub(super) fn run(arguments: BackupArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    check_name(&arguments.name)?;
    let store = context.store()?;
    let mut writer = store.writer(&format!("backup {}", arguments.name))?;
    let options = BackupOptions {
        exclude: arguments.exclude,
        one_file_system: arguments.one_file_system,
        force_read: arguments.force_read || arguments.compare,
        compare: arguments.compare,
        labels: spec::labels(arguments.labels),
    };
    let report = store::backup(&mut writer, &arguments.source, &arguments.name, &options, &context.progress)?;
    context.progress.clear();
    let stored = describe(arguments.name, report, begun);
    tell(&stored, context);
    context.output.report(&stored)?;
    let is_complete = stored.unreadable.is_empty() && stored.unreadable_attributes.is_empty();
    Ok(if is_complete { Outcome::Done } else { Outcome::Partial })
}

/// Reports on standard error what is missing in the snapshot, and what changed while it was made.
fn tell(stored: &Stored, context: &Context) {
    let lines = |what: &str, lines: &[String]| {
        for line in lines {
            complain(&format!("snapctl: {what}: {}", human::name(line.as_bytes())));
        }
    };
    lines("left out", &stored.unreadable);
    lines("left out", &stored.unreadable_attributes);
    if !context.is_quiet() {
        lines("changed while it was read", &stored.changed);
    }
    if context.is_verbose() {
        lines("vanished", &stored.vanished);
    }
}

fn describe(name: String, report: BackupReport, begun: Instant) -> Stored {
    Stored {
        name,
        snapshot: report.snapshot.to_string(),
        files: report.files,
        directories: report.directories,
        unchanged_files: report.unchanged_files,
        bytes: report.bytes,
        new_bytes: report.stats.new_bytes,
        stored_bytes: report.stats.stored_bytes,
        unreadable: report.unreadable,
        unreadable_attributes: report.unreadable_attributes,
        changed: report.changed,
        vanished: report.vanished,
        elapsed_seconds: begun.elapsed().as_secs_f64(),
    }
}
