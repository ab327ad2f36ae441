//! `snapctl man DIR`, for packages: a manual page for the program and one for each verb.

use clap::CommandFactory as _;
use store::Error;

use crate::args::{Arguments, ManArguments};
use crate::exit::Outcome;

pub(super) fn run(arguments: &ManArguments) -> anyhow::Result<Outcome> {
    let directory = &arguments.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory))
        .map_err(|source| Error::io("cannot write the manual pages", directory.display(), source))?;
    Ok(Outcome::Done)
}
