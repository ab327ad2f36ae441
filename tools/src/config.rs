//! What is meant: the configuration of one run, put together from flags, environment, files and defaults, in that order, and
//! validated once. No command reads a flag of the store, a variable or a file again.
//!
//! A flag or variable that names a store names the whole store: tiers and state of the files belong to the files' store and
//! are used only when it is the same one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use store::{DataTier, Error, Kind, LocalTier, Result, StoreConfig, TierClass};

use crate::args::GlobalArguments;

const MACHINE_FILE: &str = "/etc/torpor/config.toml";
const CACHE_BYTES_RANGE: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 40);
const LEVEL_RANGE: std::ops::RangeInclusive<i32> = 1..=19;

/// A validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of the hot tier; absolute.
    pub hot: PathBuf,
    /// Directory of the warm tier, if there is one; absolute.
    pub warm: Option<PathBuf>,
    /// Directory of what this host alone keeps; absolute. None: where a store in one directory keeps it.
    pub state: Option<PathBuf>,
    /// Bytes of decoded chunks to keep in memory. None: the store's own default.
    pub cache_bytes: Option<u64>,
    /// zstd level of what is written. None: the store's own default.
    pub level: Option<i32>,
}

impl Config {
    /// Reads files and environment and settles what is meant.
    pub fn load(arguments: &GlobalArguments) -> Result<Config> {
        let files = match &arguments.config {
            Some(path) => ConfigFile::read(path)?,
            None => read_default_files()?,
        };
        Config::settle(arguments.store.as_deref(), files, default_store)
    }

    fn settle(
        store: Option<&Path>,
        files: ConfigFile,
        default_store: impl FnOnce() -> Result<PathBuf>,
    ) -> Result<Config> {
        let (cache_bytes, level) = (files.cache_bytes, files.level);
        let named = store.map(absolute).transpose()?;
        let location = match (named, files.location()) {
            (Some(named), Some(location)) if is_same(&location.hot, &named) => location,
            (Some(named), _) => Location::directory(named),
            (None, Some(location)) => location,
            (None, None) => Location::directory(default_store()?),
        };
        Ok(Config { hot: location.hot, warm: location.warm, state: location.state, cache_bytes, level })
    }

    /// The same in the store's own terms.
    pub fn store(&self) -> StoreConfig {
        let mut config = StoreConfig::directory(&self.hot);
        if let Some(warm) = &self.warm {
            config = config.with_tier(DataTier::new(TierClass::Warm, Arc::new(LocalTier::new(warm))));
        }
        if let Some(state) = &self.state {
            config.state.clone_from(state);
        }
        if let Some(cache_bytes) = self.cache_bytes {
            config.cache_bytes = cache_bytes;
        }
        if let Some(level) = self.level {
            config.level = level;
        }
        config
    }
}

/// Where a store is.
#[derive(Debug)]
struct Location {
    hot: PathBuf,
    warm: Option<PathBuf>,
    state: Option<PathBuf>,
}

impl Location {
    fn directory(hot: PathBuf) -> Location {
        Location { hot, warm: None, state: None }
    }
}

/// A configuration file as written. Every path in it is absolute.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    /// Directory of the hot tier, or of the whole store; the same as `tiers.hot`.
    store: Option<PathBuf>,
    /// Directory of what this host alone keeps.
    state: Option<PathBuf>,
    #[serde(default)]
    tiers: Tiers,
    cache_bytes: Option<u64>,
    level: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tiers {
    hot: Option<PathBuf>,
    warm: Option<PathBuf>,
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

    /// Parses and validates one file; the error is what is wrong and what to do.
    fn parse(text: &str) -> std::result::Result<ConfigFile, (String, String)> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| {
            let known = "keys are store, state, tiers.hot, tiers.warm, cache_bytes, level";
            (error.to_string().trim_end().to_owned(), known.to_owned())
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
        for (key, path) in paths {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
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
        let location_named = self.store.is_some() || self.tiers.hot.is_some();
        if !location_named && (self.tiers.warm.is_some() || self.state.is_some()) {
            return Err((
                "`tiers.warm` or `state` stands without a store".into(),
                "name `store` or `tiers.hot` too".into(),
            ));
        }
        if self.tiers.warm.is_some()
            && self.tiers.warm.as_ref() == self.store.as_ref().or(self.tiers.hot.as_ref())
        {
            return Err(("`tiers.warm` is the hot tier's directory".into(), "give each tier its own".into()));
        }
        check_range("cache_bytes", self.cache_bytes, CACHE_BYTES_RANGE)?;
        check_range("level", self.level, LEVEL_RANGE)
    }

    /// What this file says, and where it says nothing, what `below` says. A location is taken whole.
    fn over(self, below: ConfigFile) -> ConfigFile {
        let (cache_bytes, level) = (self.cache_bytes.or(below.cache_bytes), self.level.or(below.level));
        let location_named = self.store.is_some() || self.tiers.hot.is_some();
        ConfigFile { cache_bytes, level, ..if location_named { self } else { below } }
    }

    fn location(self) -> Option<Location> {
        let hot = self.store.or(self.tiers.hot)?;
        Some(Location { hot, warm: self.tiers.warm, state: self.state })
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

/// The machine's file, and over it the user's. Either may be absent.
fn read_default_files() -> Result<ConfigFile> {
    let machine = read_if_there(Path::new(MACHINE_FILE))?;
    match user_directory("XDG_CONFIG_HOME", ".config") {
        Some(directory) => Ok(read_if_there(&directory.join("torpor/config.toml"))?.over(machine)),
        None => Ok(machine),
    }
}

fn read_if_there(path: &Path) -> Result<ConfigFile> {
    match ConfigFile::read(path) {
        Err(error) if error.kind() == Kind::NotFound => Ok(ConfigFile::default()),
        other => other,
    }
}

/// Where the store is when nothing says so.
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

/// Whether two paths name one directory, however they are spelt.
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
            ("[tiers]\nhot = '/a'\ncold = '/b'", "cold"),
            ("store = 'relative'", "store"),
            ("store = '/a'\n[tiers]\nhot = '/b'", "tiers.hot"),
            ("[tiers]\nwarm = '/b'", "tiers.warm"),
            ("store = '/a'\n[tiers]\nwarm = '/a'", "tiers.warm"),
            ("level = 40", "level"),
            ("cache_bytes = 3", "cache_bytes"),
            ("cache_bytes = 'many'", "cache_bytes"),
            ("level", "level"),
        ] {
            let (what, _) = ConfigFile::parse(text).unwrap_err();
            assert!(what.contains(named), "{text}: {what}");
        }
    }
}
