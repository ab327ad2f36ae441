//! `snapctl completions SHELL`: the completion script, as it is.

use clap::CommandFactory as _;

use crate::args::{Arguments, CompletionsArguments};
use crate::output::Output;

pub fn run(arguments: &CompletionsArguments, output: &mut Output) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "snapctl", &mut script);
    output.data(&script)
}
