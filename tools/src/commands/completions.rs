//! `snapctl completions SHELL`: the completion script, as it is.

use clap::CommandFactory as _;

use crate::args::{Arguments, CompletionsArguments};
use crate::context::Context;
use crate::exit::Outcome;

pub(super) fn run(arguments: &CompletionsArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "snapctl", &mut script);
    context.output.data(&script)?;
    Ok(Outcome::Done)
}
