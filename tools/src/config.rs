//! The configuration of one run, put together from flags, environment, files and defaults, in that order, and validated
//! once. No command reads a flag of the store, a variable or a file again.
//!
//! A flag or variable that names a store names all of it: tiers and state in the files belong to the files' store and
//! are used only when it is the same one.

mod cold;
#[cfg(test)]
mod document;
mod size;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use store::domain::DomainConfig;
use store::{
    Breaker, DataTier, Error, Kind, LEVELS, LocalTier, MirrorTier, OptionalExt, Result, StoreConfig, Tier,
    TierClass,
};

pub(crate) use cold::Cold;
use cold::ColdFile;
use size::Size;

use crate::args::GlobalArguments;
use crate::keys::Keys;

const MACHINE_FILE: &str = "/etc/torpor/config.toml";
const CACHE_BYTES_RANGE: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 40);

/// A validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Directory of the hot tier; absolute.
    pub hot: PathBuf,
    /// Directory of the warm tier, if there is one; absolute.
    pub warm: Option<PathBuf>,
    /// The cold tier, if there is one.
    pub cold: Option<Cold>,
    /// Whether and how it is shared with other hosts.
    pub sharing: Sharing,
    /// Bytes that the packs of a tier may take.
    pub limits: Limits,
    /// zstd levels that packs of a tier are recompressed at.
    pub levels: Levels,
    /// Directory of this host's own state; absolute. None: the default of a store in one directory.
    pub state: Option<PathBuf>,
    /// Bytes of decoded chunks to keep in memory. None: the store's own default.
    pub cache_bytes: Option<u64>,
    /// Bytes of slower tiers' frames to keep on local flash. None: the store's own default.
    pub disk_cache_bytes: Option<u64>,
    /// zstd level of written data. None: the store's own default.
    pub level: Option<i32>,
    /// The domain to work in, and the key sources.
    pub domains: DomainConfig,
}

/// Whether and how a store is shared with other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sharing {
    /// The cold tier holds the records of a store that many hosts share.
    pub shared: bool,
    /// Prefix of the refs that this host alone changes, where the shared place has no compare-and-swap.
    owned_refs: Option<String>,
    /// This host collects, where the shared place has no compare-and-swap.
    collector: bool,
}

/// Bytes that the packs of each tier may take; none: as many as fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    hot: Option<Size>,
    warm: Option<Size>,
    cold: Option<Size>,
}

/// zstd levels that the packs of each tier are recompressed at; none: they stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Levels {
    hot: Option<i32>,
    warm: Option<i32>,
    cold: Option<i32>,
}

impl Config {
    /// Reads files and environment and settles the configuration.
    pub(crate) fn load(arguments: &GlobalArguments) -> Result<Config> {
        let files = match &arguments.config {
            Some(path) => ConfigFile::read(path)?,
            None => read_default_files()?,
        };
        let mut config = Config::settle(arguments.store.as_deref(), files, default_store)?;
        if arguments.domain.is_some() {
            config.domains.name.clone_from(&arguments.domain);
        }
        Ok(config)
    }

    fn settle(
        store: Option<&Path>,
        mut files: ConfigFile,
        default_store: impl FnOnce() -> Result<PathBuf>,
    ) -> Result<Config> {
        let (cache_bytes, disk_cache_bytes, level) = (files.cache_bytes, files.disk_cache_bytes, files.level);
        let domains = std::mem::take(&mut files.keys).settle(files.domain.take());
        let named = store.map(absolute).transpose()?;
        let location = match (named, files.location()) {
            (Some(named), Some(location)) if is_same(&location.hot, &named) => location,
            (Some(named), _) => Location::directory(named),
            (None, Some(location)) => location,
            (None, None) => Location::directory(default_store()?),
        };
        let Location { hot, warm, cold, sharing, limits, levels, state } = location;
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cold = cold.map(|cold| cold.settle(&variable)).transpose()?;
        Ok(Config {
            hot,
            warm,
            cold,
            sharing,
            limits,
            levels,
            state,
            cache_bytes: cache_bytes.map(|Size(bytes)| bytes),
            disk_cache_bytes: disk_cache_bytes.map(|Size(bytes)| bytes),
            level,
            domains,
        })
    }

    /// The configuration as the store's type.
    pub(crate) fn store(&self) -> Result<StoreConfig> {
        let local = StoreConfig::directory(&self.hot);
        let mut config = match &self.cold {
            Some(cold) => self.with_cold(local, cold.tier()?),
            None => self.with_warm(local),
        };
        let limits = [self.limits.hot, self.limits.warm, self.limits.cold];
        let levels = [self.levels.hot, self.levels.warm, self.levels.cold];
        for tier in &mut config.tiers {
            tier.limit_bytes = limits[tier.class as usize].map(|Size(bytes)| bytes);
            tier.level = levels[tier.class as usize];
        }
        config.cache_bytes = self.cache_bytes.unwrap_or(config.cache_bytes);
        config.disk_cache_bytes = self.disk_cache_bytes.unwrap_or(config.disk_cache_bytes);
        config.level = self.level.unwrap_or(config.level);
        config.domains.clone_from(&self.domains);
        Ok(config)
    }

    fn with_warm(&self, mut config: StoreConfig) -> StoreConfig {
        if let Some(state) = &self.state {
            config.state = state.into();
        }
        match &self.warm {
            Some(warm) => config.with_tier(DataTier::new(TierClass::Warm, Arc::new(LocalTier::new(warm)))),
            None => config,
        }
    }

    /// Adds a cold tier, which in a shared store holds the records.
    fn with_cold(&self, config: StoreConfig, cold: Arc<dyn Tier>) -> StoreConfig {
        let cold: Arc<dyn Tier> = Arc::new(Breaker::new(cold));
        let mut config = self.with_warm(config).with_tier(DataTier::new(TierClass::Cold, cold.clone()));
        if self.sharing.shared {
            let mirror = Arc::new(LocalTier::new(config.state.path().join("mirror")));
            config.metadata_tier = Arc::new(MirrorTier::new(mirror, cold));
            config.is_shared = true;
            config.owned_refs.clone_from(&self.sharing.owned_refs);
            config.is_collector = self.sharing.collector;
        }
        config
    }
}

/// Location of a store.
#[derive(Debug)]
struct Location {
    hot: PathBuf,
    warm: Option<PathBuf>,
    cold: Option<ColdFile>,
    sharing: Sharing,
    limits: Limits,
    levels: Levels,
    state: Option<PathBuf>,
}

impl Location {
    fn directory(hot: PathBuf) -> Location {
        Location {
            hot,
            warm: None,
            cold: None,
            sharing: Sharing::default(),
            limits: Limits::default(),
            levels: Levels::default(),
            state: None,
        }
    }
}

/// A configuration file as written. Every path in it is absolute.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    /// Directory of the hot tier, or of the whole store; the same as `tiers.hot`.
    store: Option<PathBuf>,
    /// Directory of this host's own state.
    state: Option<PathBuf>,
    /// Whether many hosts share the store, whose records are then on the cold tier.
    #[serde(default)]
    shared: bool,
    /// Prefix of the refs that this host alone changes.
    owned_refs: Option<String>,
    /// Whether this host collects.
    #[serde(default)]
    collector: bool,
    #[serde(default)]
    tiers: Tiers,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    levels: Levels,
    cache_bytes: Option<Size>,
    disk_cache_bytes: Option<Size>,
    level: Option<i32>,
    /// Domain to work in.
    domain: Option<String>,
    #[serde(default)]
    keys: Keys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tiers {
    hot: Option<PathBuf>,
    warm: Option<PathBuf>,
    cold: Option<ColdFile>,
}

impl ConfigFile {
    fn read(path: &Path) -> Result<ConfigFile> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::io("cannot read the configuration", path.display(), source))?;
        ConfigFile::parse(&text).map_err(|(what, advice)| {
            Error::new(Kind::Invalid, format!("the configuration is wrong: {what}"))
                .object(path.display())
                .advice(advice)
        })
    }

    /// Parses and validates one file; the error is the problem and the advice.
    fn parse(text: &str) -> std::result::Result<ConfigFile, (String, String)> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| {
            (error.to_string().trim_end().to_owned(), "docs/CONFIGURATION.md describes every key".to_owned())
        })?;
        file.validate()?;
        Ok(file)
    }

    fn validate(&self) -> std::result::Result<(), (String, String)> {
        let paths = [
            ("store", &self.store),
            ("state", &self.state),
            ("tiers.hot", &self.tiers.hot),
            ("tiers.warm", &self.tiers.warm),
        ];
        let cold = self.tiers.cold.as_ref().and_then(ColdFile::directory);
        let paths = paths.into_iter().map(|(key, path)| (key, path.as_deref()));
        for (key, path) in paths.chain([("tiers.cold", cold)]) {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err((
                    format!("`{key}` is not an absolute path: {}", path.display()),
                    "begin it with `/`".into(),
                ));
            }
        }
        if let (Some(store), Some(hot)) = (&self.store, &self.tiers.hot)
            && store != hot
        {
            return Err((
                "`store` and `tiers.hot` name two directories".into(),
                "they mean the same; keep one".into(),
            ));
        }
        if let Some(key) = self.key_of_a_store()
            && self.store.is_none()
            && self.tiers.hot.is_none()
        {
            return Err((
                format!("`{key}` stands without a store"),
                "name `store` or `tiers.hot` in the same file".into(),
            ));
        }
        let hot = self.store.as_deref().or(self.tiers.hot.as_deref());
        let tiers = [("tiers.hot", hot), ("tiers.warm", self.tiers.warm.as_deref()), ("tiers.cold", cold)];
        for (number, (key, place)) in tiers.iter().enumerate() {
            if place.is_some() && tiers[..number].iter().any(|(_, other)| other == place) {
                return Err((
                    format!("`{key}` is another tier's directory"),
                    "give each tier its own".into(),
                ));
            }
        }
        if self.shared && self.tiers.cold.is_none() {
            return Err((
                "`shared` stands without a cold tier".into(),
                "name the place that the hosts share as `tiers.cold`".into(),
            ));
        }
        check_range("cache_bytes", self.cache_bytes.map(|Size(bytes)| bytes), CACHE_BYTES_RANGE)?;
        let Levels { hot, warm, cold } = self.levels;
        check_range("levels.hot", hot, LEVELS)?;
        check_range("levels.warm", warm, LEVELS)?;
        check_range("levels.cold", cold, LEVELS)?;
        check_range("level", self.level, LEVELS)
    }

    /// A key that describes one store, other than its location.
    fn key_of_a_store(&self) -> Option<&'static str> {
        let keys = [
            ("tiers.warm", self.tiers.warm.is_some()),
            ("tiers.cold", self.tiers.cold.is_some()),
            ("state", self.state.is_some()),
            ("shared", self.shared),
            ("owned_refs", self.owned_refs.is_some()),
            ("collector", self.collector),
            ("limits", self.limits != Limits::default()),
            ("levels", self.levels != Levels::default()),
        ];
        keys.into_iter().find_map(|(key, is_set)| is_set.then_some(key))
    }

    /// The settings of this file over those of `below`. A location is taken as a unit.
    fn over(self, below: ConfigFile) -> ConfigFile {
        let (cache_bytes, level) = (self.cache_bytes.or(below.cache_bytes), self.level.or(below.level));
        let disk_cache_bytes = self.disk_cache_bytes.or(below.disk_cache_bytes);
        let location_named = self.store.is_some() || self.tiers.hot.is_some();
        let (own, other) = (self, below);
        let domain = own.domain.clone().or_else(|| other.domain.clone());
        let keys = own.keys.clone().over(other.keys.clone());
        let location = if location_named { own } else { other };
        ConfigFile { cache_bytes, disk_cache_bytes, level, domain, keys, ..location }
    }

    fn location(self) -> Option<Location> {
        let hot = self.store.or(self.tiers.hot)?;
        let Tiers { warm, cold, .. } = self.tiers;
        let sharing = Sharing { shared: self.shared, owned_refs: self.owned_refs, collector: self.collector };
        let (limits, levels) = (self.limits, self.levels);
        Some(Location { hot, warm, cold, sharing, limits, levels, state: self.state })
    }
}

fn check_range<T: PartialOrd + std::fmt::Display>(
    key: &str,
    value: Option<T>,
    range: std::ops::RangeInclusive<T>,
) -> std::result::Result<(), (String, String)> {
    match value {
        Some(value) if !range.contains(&value) => Err((
            format!("`{key}` is out of range: {value}"),
            format!("it may be {} to {}", range.start(), range.end()),
        )),
        _ => Ok(()),
    }
}

/// The machine's file, overridden by the user's. Either may be absent.
fn read_default_files() -> Result<ConfigFile> {
    let machine = read_if_there(Path::new(MACHINE_FILE))?;
    match user_directory("XDG_CONFIG_HOME", ".config") {
        Some(directory) => Ok(read_if_there(&directory.join("torpor/config.toml"))?.over(machine)),
        None => Ok(machine),
    }
}

fn read_if_there(path: &Path) -> Result<ConfigFile> {
    Ok(ConfigFile::read(path).optional()?.unwrap_or_default())
}

/// The default location of the store.
fn default_store() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/torpor"));
    }
    let data = user_directory("XDG_DATA_HOME", ".local/share").ok_or_else(|| {
        Error::new(Kind::Invalid, "nothing says where the store is, and HOME is not set")
            .advice("give --store PATH or set TORPOR_STORE")
    })?;
    Ok(data.join("torpor"))
}

/// A directory of the XDG convention; a relative value counts as unset, as the convention says.
fn user_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

/// Whether two paths name one directory, regardless of spelling.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|source| Error::io("cannot make the path absolute", path.display(), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(store: Option<&str>, text: &str) -> Config {
        let file = ConfigFile::parse(text).unwrap();
        Config::settle(store.map(Path::new), file, || Ok(PathBuf::from("/default"))).unwrap()
    }

    #[test]
    fn flag_over_file_over_default() {
        assert_eq!(settle(None, "").hot, Path::new("/default"));
        assert_eq!(settle(None, "store = '/file'").hot, Path::new("/file"));
        assert_eq!(settle(Some("/flag"), "store = '/file'").hot, Path::new("/flag"));
    }

    #[test]
    fn tiers_go_with_the_store_they_were_written_for() {
        let text = "level = 7\n[tiers]\nhot = '/nvme'\nwarm = '/hdd'";
        assert_eq!(settle(None, text).warm.as_deref(), Some(Path::new("/hdd")));
        assert_eq!(settle(Some("/nvme"), text).warm.as_deref(), Some(Path::new("/hdd")));
        let other = settle(Some("/other"), text);
        assert_eq!((other.warm, other.level), (None, Some(7)));
    }

    #[test]
    fn limits_and_sharing_reach_the_store() {
        let text = "store = '/nvme'\nshared = true\n[tiers]\nwarm = '/hdd'\ncold = '/far'\n[limits]\nhot = '2G'\nwarm = 5";
        let config = settle(None, text).store().unwrap();
        let tiers: Vec<_> = config.tiers.iter().map(|tier| (tier.class, tier.limit_bytes)).collect();
        let expected =
            [(TierClass::Hot, Some(2_000_000_000)), (TierClass::Warm, Some(5)), (TierClass::Cold, None)];
        assert_eq!((tiers.as_slice(), config.is_shared), (expected.as_slice(), true));
        assert_eq!(config.metadata_tier.describe(), "/far");
        let private = settle(None, &text.replace("shared = true", "")).store().unwrap();
        assert_eq!((private.metadata_tier.describe().as_str(), private.is_shared), ("/nvme", false));
    }

    #[test]
    fn the_users_file_stands_over_the_machines() {
        let user = ConfigFile::parse("store = '/user'").unwrap();
        let machine = ConfigFile::parse("store = '/m'\nlevel = 5\n[tiers]\nwarm = '/w'").unwrap();
        let both = Config::settle(None, user.over(machine), || Ok(PathBuf::new())).unwrap();
        assert_eq!((both.hot.to_str(), both.warm, both.level), (Some("/user"), None, Some(5)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("stroe = '/x'", "stroe"),
            ("[tiers]\nhot = '/a'\nhotter = '/b'", "hotter"),
            ("store = '/a'\n[tiers]\ncold = '/a'", "tiers.cold"),
            ("store = '/a'\n[tiers]\ncold = 7", "path nor a table"),
            ("store = '/a'\n[tiers.cold]\npath = '/a'", "tiers.cold"),
            ("store = '/a'\n[tiers.cold]\npath = '/b'\nbucket = 'b'", "`path` and `bucket`"),
            ("store = '/a'\n[tiers.cold]\nregion = 'x'", "`path` nor `bucket`"),
            ("store = '/a'\n[tiers.cold]\npath = '/b'\nregion = 'x'", "`region`"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\nsecret = 'x'", "secret"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\nendpoint = 'host:9000'", "endpoint"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\nprefix = 'a//b'", "prefix"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\ncredentials = 'relative'", "credentials"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\nparallelism = 0", "parallelism"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\npart_bytes = '1M'", "part_bytes"),
            ("store = '/a'\nshared = true", "shared"),
            ("store = '/a'\n[limits]\nhot = '3X'", "hot = '3X'"),
            ("store = '/a'\n[limits]\nhot = '3X'", "`3X` is not a size; write a number of bytes, or"),
            ("store = '/a'\n[limits]\nhot = -3", "`-3` is not a size"),
            ("cache_bytes = true", "expected a number of bytes, or"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\npart_bytes = '8X'", "part_bytes"),
            ("store = '/a'\n[tiers.cold]\nbucket = 'b'\npart_bytes = '8X'", "`8X` is not a size"),
            ("store = 'relative'", "store"),
            ("store = '/a'\n[tiers]\nhot = '/b'", "tiers.hot"),
            ("[tiers]\nwarm = '/b'", "tiers.warm"),
            ("[limits]\nhot = '1G'", "`limits` stands without a store"),
            ("[levels]\nhot = 9", "`levels` stands"),
            ("owned_refs = 'a/'", "`owned_refs` stands"),
            ("collector = true", "`collector` stands"),
            ("store = '/a'\n[tiers]\nwarm = '/a'", "tiers.warm"),
            ("level = 40", "level"),
            ("store = '/a'\n[levels]\nwarm = 40", "levels.warm"),
            ("cache_bytes = 3", "cache_bytes"),
            ("cache_bytes = 'many'", "cache_bytes"),
            ("level", "level"),
            ("[keys]\nfile = 'relative'", "keys.file"),
            ("[keys]\nflie = '/a'", "flie"),
            ("[keys.acme]\ncommand = []", "keys.acme.command"),
        ] {
            let (what, _) = ConfigFile::parse(text).unwrap_err();
            assert!(what.contains(named), "{text}: {what}");
        }
    }
}
