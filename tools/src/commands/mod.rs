//! One file for each verb; this one dispatches.

mod backup;
mod cache;
mod capture;
mod cat;
mod check;
mod completions;
mod diff;
mod doctor;
mod domain;
mod forget;
mod freeze;
mod gc;
mod index;
mod init;
mod ls;
mod man;
mod mount;
mod restore;
mod restore_memory;
mod resume;
mod scrub;
mod show;
mod snapshots;
mod stats;
mod tier;
mod umount;
mod version;

use crate::args::Command;
use crate::context::Context;
use crate::exit::Outcome;

/// Runs a verb.
pub(crate) fn run(command: Command, context: &mut Context) -> anyhow::Result<Outcome> {
    match command {
        Command::Init => init::run(context),
        Command::Backup(arguments) => backup::run(arguments, context),
        Command::Restore(arguments) => restore::run(&arguments, context),
        Command::Snapshots(arguments) => snapshots::run(&arguments, context),
        Command::Show(arguments) => show::run(&arguments, context),
        Command::Ls(arguments) => ls::run(&arguments, context),
        Command::Cat(arguments) => cat::run(&arguments, context),
        Command::Diff(arguments) => diff::run(&arguments, context),
        Command::Mount(arguments) => mount::run(arguments, context),
        Command::Umount(arguments) => umount::run(&arguments, context),
        Command::Freeze(arguments) => freeze::run(arguments, context),
        Command::Capture(arguments) => capture::run(arguments, context),
        Command::Resume(arguments) => resume::run(arguments, context),
        Command::Forget(arguments) => forget::run(&arguments, context),
        Command::Gc(arguments) => gc::run(&arguments, context),
        Command::Check(arguments) => check::run(&arguments, context),
        Command::Scrub(arguments) => scrub::run(&arguments, context),
        Command::Stats(arguments) => stats::run(&arguments, context),
        Command::Domain(arguments) => domain::run(&arguments, context),
        Command::Index(arguments) => index::run(&arguments, context),
        Command::Tier(arguments) => tier::run(arguments, context),
        Command::Cache(arguments) => cache::run(arguments, context),
        Command::Doctor(arguments) => doctor::run(&arguments, context),
        Command::Completions(arguments) => completions::run(&arguments, context),
        Command::Man(arguments) => man::run(&arguments),
        Command::Version => version::run(context),
    }
}
