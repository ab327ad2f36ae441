//! What every command is given: the validated configuration and the ways to the outside. Wiring only.

use std::time::Duration;

use store::{Result, Store, StoreConfig};

use crate::args::GlobalArguments;
use crate::config::Config;
use crate::output::Output;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::telemetry;

/// Decoded frames that are kept where each is used about once: enough for those that depend on one base.
const STREAMING_CACHE_BYTES: u64 = 1 << 20;
/// Decoded frames that a mount keeps in memory while it is used, where the configuration says nothing: enough for what its
/// threads read at once. What is read again the kernel has.
const MOUNT_CACHE_BYTES: u64 = 16 << 20;
/// How long to wait for a lock where nothing says it.
const WAIT: Duration = Duration::from_secs(10);

/// One run of snapctl.
pub(crate) struct Context {
    global: GlobalArguments,
    pub output: Output,
    pub progress: Progress,
    pub signals: Signals,
}

impl Context {
    /// Sets up a run as the global flags say.
    pub(crate) fn new(global: GlobalArguments) -> Result<Context> {
        telemetry::install(global.quiet, global.verbose)?;
        Ok(Context {
            output: Output::new(global.json, global.quiet),
            progress: Progress::new(global.json, global.quiet, global.verbose > 0),
            signals: Signals::listen()?,
            global,
        })
    }

    /// What is meant. Verbs that need no store do not ask, and work whatever the configuration is like.
    pub(crate) fn config(&self) -> Result<Config> {
        Config::load(&self.global)
    }

    /// What the store is opened with: locks that are held are waited for as long as the flags say.
    fn store_config(&self) -> Result<StoreConfig> {
        let config = self.config()?.store()?;
        let wait = self.wait().unwrap_or(WAIT);
        Ok(StoreConfig { state: config.state.clone().waiting(wait), ..config })
    }

    /// How long to wait for a lock that another process holds, if the flags say it.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.global.wait.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Opens the configured store.
    pub(crate) fn store(&self) -> Result<Store> {
        Store::open(&self.store_config()?)
    }

    /// Opens the configured store for somebody who reads each chunk about once: of what is decoded, little is kept.
    pub(crate) fn streaming_store(&self) -> Result<Store> {
        let mut config = self.store_config()?;
        config.cache_bytes = config.cache_bytes.min(STREAMING_CACHE_BYTES);
        Store::open(&config)
    }

    /// Opens the configured store in its plain domain, whatever domain is named: for what concerns all domains.
    pub(crate) fn store_of_all_domains(&self) -> Result<Store> {
        let mut config = self.store_config()?;
        config.domains.name = None;
        Store::open(&config)
    }

    /// Whether to say errors only.
    pub(crate) fn is_quiet(&self) -> bool {
        self.global.quiet
    }

    /// Opens the configured store for a mount, which stays for long and whose reads the kernel caches.
    pub(crate) fn store_to_mount(&self) -> Result<Store> {
        let configured = self.config()?;
        let mut config = self.store_config()?;
        config.cache_bytes = configured.cache_bytes.unwrap_or(MOUNT_CACHE_BYTES);
        Store::open(&config)
    }

    /// Whether to say more than usual.
    pub(crate) fn is_verbose(&self) -> bool {
        self.global.verbose > 0
    }
}
