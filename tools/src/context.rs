//! What every command is given: the validated configuration and the ways to the outside. Wiring only.

use store::{Result, Store};

use crate::args::GlobalArguments;
use crate::config::Config;
use crate::output::Output;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::telemetry;

/// Decoded frames that a mount keeps in memory where the configuration says nothing: enough for what its threads read at
/// once. What is read again the kernel has.
const MOUNT_CACHE_BYTES: u64 = 32 << 20;

/// One run of snapctl.
pub struct Context {
    global: GlobalArguments,
    pub output: Output,
    pub progress: Progress,
    pub signals: Signals,
}

impl Context {
    /// Sets up a run as the global flags say.
    pub fn new(global: GlobalArguments) -> Result<Context> {
        telemetry::install(global.quiet, global.verbose)?;
        Ok(Context {
            output: Output::new(global.json, global.quiet),
            progress: Progress::new(global.json, global.quiet, global.verbose > 0),
            signals: Signals::listen()?,
            global,
        })
    }

    /// What is meant. Verbs that need no store do not ask, and work whatever the configuration is like.
    pub fn config(&self) -> Result<Config> {
        Config::load(&self.global)
    }

    /// Opens the configured store.
    pub fn store(&self) -> Result<Store> {
        Store::open(&self.config()?.store()?)
    }

    /// Opens the configured store in its plain domain, whatever domain is named: for what concerns all domains.
    pub fn whole_store(&self) -> Result<Store> {
        let mut config = self.config()?.store()?;
        config.domains.name = None;
        Store::open(&config)
    }

    /// Opens the configured store for a mount, which stays for long and whose reads the kernel caches.
    pub fn store_to_mount(&self) -> Result<Store> {
        let configured = self.config()?;
        let mut config = configured.store()?;
        config.cache_bytes = configured.cache_bytes.unwrap_or(MOUNT_CACHE_BYTES);
        Store::open(&config)
    }

    /// Whether to say more than usual.
    pub fn is_verbose(&self) -> bool {
        self.global.verbose > 0
    }
}
