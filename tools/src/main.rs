//! snapctl, the one binary of Torpor.
//!
//! A run is: `args` (the command line) -> `config` (the validated configuration) -> `commands/<verb>` (the act) ->
//! `output` (the answer) -> `exit` (the code and the error text). `context` is passed to every command; `spec` and
//! `human` read and write the small languages of the command line; `progress`, `telemetry` and `signals` connect to the
//! terminal and the kernel; `respawn` and `background` start this program once more, `bounded_log` is the log of the
//! latter; `nodes` looks up and words tree entries.
//!
//! Commands put library calls together and hold no knowledge of formats, file systems or memory.

mod args;
mod background;
mod bounded_log;
mod commands;
mod config;
mod context;
mod criu;
mod exit;
mod human;
mod keys;
mod nodes;
mod output;
mod progress;
mod respawn;
mod signals;
mod spec;
mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Arguments;
use crate::context::Context;
use crate::exit::Outcome;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::usage(&error),
    };
    let json = arguments.global.json;
    exit::finish(run(arguments), json)
}

fn run(arguments: Arguments) -> anyhow::Result<Outcome> {
    let mut context = Context::new(arguments.global)?;
    let outcome = commands::run(arguments.command, &mut context);
    context.progress.clear();
    // An answer before an error is still an answer.
    let flushed = context.output.finish();
    let outcome = outcome?;
    match flushed {
        // The reader needs no more output; the command's outcome stays.
        Err(error) if error.is::<exit::OutputClosed>() => Ok(outcome),
        flushed => flushed.map(|()| outcome),
    }
}
