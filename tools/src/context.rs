//! Passed to every command: the validated configuration and the ways to the outside. Wiring only.

use std::time::Duration;

use store::{Result, Store, StoreConfig};

use crate::args::GlobalArguments;
use crate::config::Config;
use crate::output::Output;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::telemetry;

/// Decoded frames kept where each is used about once: enough for those that depend on one base.
const STREAMING_CACHE_BYTES: u64 = 1 << 20;
/// Decoded frames that a mount keeps in memory while it is used, unless configured: enough for its threads' concurrent
/// reads. The kernel caches repeated reads.
const MOUNT_CACHE_BYTES: u64 = 16 << 20;
/// Default time to wait for a lock.
const WAIT: Duration = Duration::from_secs(10);

/// One run of snapctl.
pub(crate) struct Context {
    global: GlobalArguments,
    pub output: Output,
    pub progress: Progress,
    pub signals: Signals,
}

impl Context {
    /// Sets up a run with the global flags.
    pub(crate) fn new(global: GlobalArguments) -> Result<Context> {
        telemetry::install(global.quiet, global.verbose)?;
        Ok(Context {
            output: Output::new(global.json, global.quiet),
            progress: Progress::new(global.json, global.quiet, global.verbose > 0),
            signals: Signals::listen()?,
            global,
        })
    }

    /// The configuration. Verbs that need no store do not call this, and work with any configuration.
    pub(crate) fn config(&self) -> Result<Config> {
        Config::load(&self.global)
    }

    /// The store's configuration: held locks are waited for as long as the flags say.
    fn store_config(&self) -> Result<StoreConfig> {
        let config = self.config()?.store()?;
        let wait = self.wait().unwrap_or(WAIT);
        Ok(StoreConfig { state: config.state.clone().waiting(wait), ..config })
    }

    /// How long to wait for a lock that another process holds, if a flag says.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.global.wait.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Opens the configured store.
    pub(crate) fn store(&self) -> Result<Store> {
        Store::open(&self.store_config()?)
    }

    /// Opens the configured store for a command that reads each chunk about once: few decoded frames are kept.
    pub(crate) fn streaming_store(&self) -> Result<Store> {
        let mut config = self.store_config()?;
        config.cache_bytes = config.cache_bytes.min(STREAMING_CACHE_BYTES);
        Store::open(&config)
    }

    /// Opens the configured store in its plain domain, even if another is named: for operations on all domains.
    pub(crate) fn store_of_all_domains(&self) -> Result<Store> {
        let mut config = self.store_config()?;
        config.domains.name = None;
        Store::open(&config)
    }

    /// Whether to print errors only.
    pub(crate) fn is_quiet(&self) -> bool {
        self.global.quiet
    }

    /// Opens the configured store for a mount, which runs for long and whose reads the kernel caches.
    pub(crate) fn store_to_mount(&self) -> Result<Store> {
        let configured = self.config()?;
        let mut config = self.store_config()?;
        config.cache_bytes = configured.cache_bytes.unwrap_or(MOUNT_CACHE_BYTES);
        Store::open(&config)
    }

    /// Whether to print more than usual.
    pub(crate) fn is_verbose(&self) -> bool {
        self.global.verbose > 0
    }
}
