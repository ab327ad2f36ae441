//! `snapctl backup PATH REF`: a directory becomes the next snapshot of a ref. Files that cannot be read are left out, named,
//! and make the exit code 3; the snapshot of the rest stands.

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
        )
    }
}

pub fn run(arguments: BackupArguments, context: &mut Context) -> anyhow::Result<Outcome> {
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
    for unreadable in &stored.unreadable {
        complain(&format!("snapctl: left out: {}", human::name(unreadable.as_bytes())));
    }
    context.output.report(&stored)?;
    Ok(if stored.unreadable.is_empty() { Outcome::Done } else { Outcome::Partial })
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
        elapsed_seconds: begun.elapsed().as_secs_f64(),
    }
}
