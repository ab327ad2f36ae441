//! `snapctl restore SPEC[:PATH] TARGET`: files back to disk, each verified as it is read. Anything the target refuses
//! (an owner that this user may not set, a file too large for it) is left, named, and makes the exit code 3.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Instant;

use serde::Serialize;
use store::Refused;

use crate::args::RestoreArguments;
use crate::commands::{ls, restore_memory};
use crate::context::Context;
use crate::exit::{Asked as _, Outcome, complain};
use crate::human;
use crate::nodes;
use crate::output::Show;

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
    kept: u64,
    not_permitted: Vec<String>,
    refused: Vec<RefusedPath>,
    elapsed_seconds: f64,
}

/// A missing path, or one that differs from the stored one.
#[derive(Serialize)]
struct RefusedPath {
    path: String,
    /// The bytes of a path that is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    what: String,
}

impl Show for Restored {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let size = human::size(self.bytes);
        let kept = match self.kept {
            0 => String::new(),
            kept => format!(" ({kept} of them were there)"),
        };
        writeln!(
            out,
            "restored {} files{kept}, {size}, to {} in {:.1} s",
            self.files, self.target, self.elapsed_seconds
        )
    }
}

/// Number of refusals named without `--verbose`.
const NAMED: usize = 20;

pub(super) fn run(arguments: &RestoreArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let store = context.store()?;
    let source = &arguments.source;
    let snapshot = store.resolve(&source.spec).asked()?;
    let held = store.snapshot(&snapshot)?;
    if let (None, Some(image)) = (held.tree, held.image) {
        return restore_memory::run(arguments, context, &store, (snapshot, image));
    }
    // The source must exist before anything is written.
    let (tree, shown) = ls::open_tree(&store, source)?;
    nodes::find(&tree, &source.path, &shown)?;
    let _pin = store.pin(&format!("restore {}", source.spec), &[snapshot])?;
    let report = store::restore(&store, &snapshot, &source.path, &arguments.target, &context.progress)?;
    context.progress.clear();
    tell(&report.refused, context.is_verbose());
    let outcome = if report.refused.is_empty() { Outcome::Done } else { Outcome::Partial };
    let (target, target_hex) = ls::json_path(arguments.target.as_os_str().as_bytes());
    context.output.report(&Restored {
        snapshot: snapshot.to_string(),
        target,
        target_hex,
        files: report.files,
        directories: report.directories,
        bytes: report.bytes,
        kept: report.kept,
        not_permitted: report.refused.iter().filter(|refused| refused.is_permission).map(line).collect(),
        refused: report.refused.iter().map(document).collect(),
        elapsed_seconds: begun.elapsed().as_secs_f64(),
    })?;
    Ok(outcome)
}

fn tell(refused: &[Refused], all: bool) {
    let named = if all { refused.len() } else { NAMED };
    for refused in refused.iter().take(named) {
        let prefix = if refused.is_permission { "not permitted" } else { "refused" };
        complain(&format!("snapctl: {prefix}: {}", line(refused)));
    }
    match refused.len().saturating_sub(named) {
        0 => {}
        more => complain(&format!("snapctl: and {more} more, which --verbose or --json name")),
    }
    if !refused.is_empty() {
        complain(
            "snapctl: after the obstacles are removed, the same restore to the same target completes it",
        );
    }
}

fn line(refused: &Refused) -> String {
    format!("{}: {}", human::name(refused.path.as_os_str().as_bytes()), human::name(refused.what.as_bytes()))
}

fn document(refused: &Refused) -> RefusedPath {
    let (path, path_hex) = ls::json_path(refused.path.as_os_str().as_bytes());
    RefusedPath { path, path_hex, what: refused.what.clone() }
}
