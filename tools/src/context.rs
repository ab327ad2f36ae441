//! What every command is given: the validated configuration and the ways to the outside. Wiring only.

use store::{Result, Store};

use crate::args::GlobalArguments;
use crate::config::Config;
use crate::output::Output;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::telemetry;

/// One run of snapctl.
pub struct Context {
    pub config: Config,
    pub output: Output,
    pub progress: Progress,
    pub signals: Signals,
    pub verbose: bool,
}

impl Context {
    /// Sets up a run as the global flags say.
    pub fn new(arguments: &GlobalArguments, output: Output) -> Result<Context> {
        let verbose = arguments.verbose > 0;
        telemetry::install(arguments.quiet, arguments.verbose)?;
        Ok(Context {
            config: Config::load(arguments)?,
            output,
            progress: Progress::new(arguments.json, arguments.quiet, verbose),
            signals: Signals::listen()?,
            verbose,
        })
    }

    /// Opens the configured store.
    pub fn store(&self) -> Result<Store> {
        Store::open(&self.config.store())
    }
}
