//! The real `snapctl`: finds or builds the binary of this build's profile and runs it against a store of the test's
//! own.
//!
//! Invariants: no run sees the machine's or the user's configuration; none outlives its bound; none may panic.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::Value;
use tempfile::TempDir;

/// Crates whose sources make up the binary.
const CRATES: [&str; 5] = ["store", "snapfs", "lazyload", "gc", "tools"];
/// No command of a test may take longer, in seconds.
const BOUND_SECONDS: &str = "120";

/// The binary, built by cargo first if it is absent or older than its sources.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has an executable");
        let profile = test.ancestors().nth(2).expect("a test lies in target/<profile>/deps");
        let binary = profile.join("snapctl");
        if is_stale(&binary) {
            build(profile);
        }
        assert!(binary.is_file(), "cargo built no {}", binary.display());
        binary
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

fn is_stale(binary: &Path) -> bool {
    let Ok(built) = fs::metadata(binary).and_then(|metadata| metadata.modified()) else { return true };
    CRATES.iter().any(|name| newest(&root().join(name)) > Some(built))
}

fn newest(directory: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(directory).ok()?;
    let times = entries.flatten().filter_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return newest(&path);
        }
        let is_source = path.extension().is_some_and(|extension| extension == "rs" || extension == "toml");
        is_source.then(|| entry.metadata().ok()?.modified().ok()).flatten()
    });
    times.max()
}

fn build(profile: &Path) {
    let name = profile.file_name().and_then(OsStr::to_str).expect("a profile's directory has a name");
    let name = if name == "debug" { "dev" } else { name };
    let target = profile.parent().expect("a profile's directory lies in the target directory");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--bin", "snapctl", "--profile", name, "--target-dir"])
        .arg(target)
        .current_dir(root())
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "cargo could not build snapctl");
}

/// A place for one test: a store (not yet made) and a scratch directory, both removed with it.
pub struct Place {
    scratch: TempDir,
    /// Directory of the store.
    pub store: PathBuf,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// A new place, without a store.
    pub fn new() -> Place {
        let scratch = tempfile::tempdir().expect("a scratch directory can be made");
        let store = scratch.path().join("store");
        Place { scratch, store }
    }

    /// A new place with an empty store.
    pub fn with_store() -> Place {
        let place = Place::new();
        place.run(["init"]).expect(0);
        place
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The command, ready to run on this place's store, without the bound of [`Place::run`].
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Command {
        let mut command = self.bare(binary());
        command.args(arguments).env("TORPOR_STORE", &self.store);
        command
    }

    fn bare(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let own = ["TORPOR_STORE", "TORPOR_CONFIG", "TORPOR_LOG", "XDG_DATA_HOME"];
        let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
        let proxies = proxies.iter().flat_map(|name| [(*name).to_owned(), name.to_lowercase()]);
        for variable in own.map(str::to_owned).into_iter().chain(proxies) {
            command.env_remove(variable);
        }
        for (variable, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"AWS_"))
        {
            command.env_remove(variable);
        }
        command.env("HOME", self.path("home")).env("XDG_CONFIG_HOME", self.path("home/config"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command on this place's store to its end.
    pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Run {
        self.run_with(&[("TORPOR_STORE", self.store.as_os_str())], arguments)
    }

    /// Runs a command with only these variables of Torpor's.
    pub fn run_with<I: IntoIterator<Item: AsRef<OsStr>>>(
        &self,
        variables: &[(&str, &OsStr)],
        arguments: I,
    ) -> Run {
        self.run_bounded(variables, &[], arguments)
    }

    /// Runs a command on this place's store by another program, such as one that sets a limit first.
    pub fn run_under<I: IntoIterator<Item: AsRef<OsStr>>>(&self, program: &[&str], arguments: I) -> Run {
        self.run_bounded(&[("TORPOR_STORE", self.store.as_os_str())], program, arguments)
    }

    fn run_bounded<I: IntoIterator<Item: AsRef<OsStr>>>(
        &self,
        variables: &[(&str, &OsStr)],
        program: &[&str],
        arguments: I,
    ) -> Run {
        let mut command = self.bare("timeout");
        command.args(["-s", "KILL", BOUND_SECONDS]).args(program).arg(binary()).args(arguments);
        command.envs(variables.iter().copied());
        let shown = format!("{command:?}");
        Run::new(shown, command.output().expect("timeout can be run"))
    }
}

/// How a command ended.
pub struct Run {
    shown: String,
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Run {
    fn new(shown: String, output: Output) -> Run {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        assert!(!stderr.contains("panicked"), "{shown} panicked:\n{stderr}");
        let code = code.unwrap_or_else(|| panic!("{shown} was killed: {:?}\n{stderr}", output.status));
        assert_ne!(code, 137, "{shown} took longer than {BOUND_SECONDS} s\n{stderr}");
        Run { shown, code, stdout: output.stdout, stderr }
    }

    /// Asserts an exit code.
    pub fn expect(self, code: i32) -> Run {
        let text = String::from_utf8_lossy(&self.stdout);
        assert_eq!(self.code, code, "{}\nstdout: {text}\nstderr: {}", self.shown, self.stderr);
        self
    }

    /// Asserts that standard output contains `part`.
    pub fn says(self, part: &str) -> Run {
        assert!(self.text().contains(part), "{} does not say {part:?}: {}", self.shown, self.text());
        self
    }

    /// Asserts that standard error contains `part`.
    pub fn complains(self, part: &str) -> Run {
        assert!(self.stderr.contains(part), "{}\ndoes not say {part:?} but: {}", self.shown, self.stderr);
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("standard output is UTF-8")
    }

    /// Standard output as one JSON document.
    pub fn json(&self) -> Value {
        let mut documents = self.json_lines();
        assert_eq!(documents.len(), 1, "{}\none document is expected: {}", self.shown, self.text());
        documents.remove(0)
    }

    /// Standard output as JSON documents, one a line.
    pub fn json_lines(&self) -> Vec<Value> {
        let text = self.text();
        let parse = |line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.shown))
        };
        text.lines().map(parse).collect()
    }

    /// The error that standard error holds as JSON.
    pub fn json_error(&self) -> Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.shown));
        value["error"].clone()
    }
}

/// Length and hash of every file below a directory, by relative path.
pub type Fingerprint = BTreeMap<String, (u64, u64)>;

/// The fingerprint of a store, without its host's local state (`local/`) and scratch files (`tmp/`).
pub fn fingerprint(store: &Path) -> Fingerprint {
    let mut found = Fingerprint::new();
    collect(store, "", &mut found);
    found.retain(|path, _| !path.starts_with("local/") && !path.starts_with("tmp/"));
    found
}

fn collect(directory: &Path, prefix: &str, found: &mut Fingerprint) {
    for entry in fs::read_dir(directory).expect("a directory of the store can be read").flatten() {
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        if path.is_dir() {
            collect(&path, &format!("{name}/"), found);
        } else {
            let bytes = fs::read(&path).expect("a file of the store can be read");
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            found.insert(name, (bytes.len() as u64, hasher.finish()));
        }
    }
}
