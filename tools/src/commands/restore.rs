//! `snapctl restore SPEC[:PATH] TARGET`: files back to disk, each verified as it is read. What this user may not set (owners,
//! devices) is left, named, and makes the exit code 3.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Instant;

use serde::Serialize;

use crate::args::RestoreArguments;
use crate::commands::ls;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome, complain};
use crate::human;
use crate::output::Show;
use crate::walk;

#[derive(Serialize)]
struct Restored {
    snapshot: String,
    target: String,
    /// Its bytes when it is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
    files: u64,
    directories: u64,
    bytes: u64,
    not_permitted: Vec<String>,
    elapsed_seconds: f64,
}

impl Show for Restored {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let size = human::size(self.bytes);
        writeln!(
            out,
            "restored {} files, {size}, to {} in {:.1} s",
            self.files, self.target, self.elapsed_seconds
        )
    }
}

pub fn run(arguments: &RestoreArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let store = context.store()?;
    let source = &arguments.source;
    let snapshot = store.resolve(&source.spec).asked()?;
    // What was named must be there before anything is written.
    let (tree, shown) = ls::open_tree(&store, source)?;
    walk::find(&tree, &source.path, &shown)?;
    let _pin = store.pin(&format!("restore {}", source.spec), &[snapshot])?;
    let report = store::restore(&store, &snapshot, &source.path, &arguments.target, &context.progress)?;
    context.progress.clear();
    for refused in &report.not_permitted {
        complain(&format!("snapctl: not permitted: {}", human::name(refused.as_bytes())));
    }
    let outcome = if report.not_permitted.is_empty() { Outcome::Done } else { Outcome::Partial };
    let (target, target_hex) = ls::json_path(arguments.target.as_os_str().as_bytes());
    context.output.report(&Restored {
        snapshot: snapshot.to_string(),
        target,
        target_hex,
        files: report.files,
        directories: report.directories,
        bytes: report.bytes,
        not_permitted: report.not_permitted,
        elapsed_seconds: begun.elapsed().as_secs_f64(),
    })?;
    Ok(outcome)
}
