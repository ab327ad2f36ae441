//! Torpor and its peers behind one interface: a repository each, the same bytes, default settings but for zstd at level
//! 3 where a peer lets one choose. Each runs as a process of its own under GNU time, as a user runs it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::measure::{Result, snapctl};

/// The figures of one run of a process.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
}

/// Runs a command to its end under GNU time; it must succeed.
pub(crate) fn cost(command: &mut Command, scratch: &Path) -> Result<Cost> {
    let report = scratch.join("time");
    let mut timed = Command::new("time");
    timed.args(["--format", "%U %S %M", "--output"]).arg(&report);
    timed.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        timed.env(name, value.unwrap_or_default());
    }
    if let Some(directory) = command.get_current_dir() {
        timed.current_dir(directory);
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let output = timed.stdin(Stdio::null()).output();
    let seconds = start.elapsed().as_secs_f64();
    let output = output.map_err(|error| format!("GNU time is needed (Debian: time): {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let report = fs::read_to_string(&report)?;
    let fields: Vec<f64> = report.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let [user, system, peak_kib] = fields[..] else { return Err(format!("time said {report:?}").into()) };
    Ok(Cost { seconds, cpu_seconds: user + system, peak_bytes: peak_kib as u64 * 1024 })
}

/// A tool that keeps a directory as deduplicated snapshots.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Torpor,
    /// At level 1, to be recompressed later.
    Fast,
    Restic,
    Borg,
}

/// One of them with its repository.
pub(crate) struct Contender {
    pub kind: Kind,
    home: PathBuf,
    scratch: PathBuf,
    snapshots: usize,
}

impl Kind {
    /// All of them as they are by default.
    pub(crate) const ALL: [Kind; 3] = [Kind::Torpor, Kind::Restic, Kind::Borg];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Torpor => "torpor",
            Kind::Fast => "torpor, level 1",
            Kind::Restic => "restic",
            Kind::Borg => "borg",
        }
    }
}

impl Contender {
    /// A new, empty repository below `scratch`.
    pub(crate) fn new(kind: Kind, scratch: &Path) -> Result<Self> {
        let home = scratch.join(kind.name());
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        fs::create_dir_all(&home)?;
        let contender = Self { kind, home, scratch: scratch.to_owned(), snapshots: 0 };
        if kind == Kind::Fast {
            contender.configure("level = 1\n[levels]\nhot = 9\n")?;
        }
        let init: &[&str] = match kind {
            Kind::Torpor | Kind::Fast | Kind::Restic => &["init"],
            Kind::Borg => &["init", "--encryption", "none"],
        };
        let mut command = contender.command(init)?;
        if kind == Kind::Borg {
            command.arg(contender.repository());
        }
        cost(&mut command, scratch)?;
        Ok(contender)
    }

    fn repository(&self) -> PathBuf {
        self.home.join("repository")
    }

    fn configuration(&self) -> PathBuf {
        self.home.join("config.toml")
    }

    /// Writes a configuration for Torpor's store, with `text` in it.
    pub(crate) fn configure(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.configuration(), format!("store = {:?}\n{text}", self.repository()))?)
    }

    /// Recompresses as Torpor's configuration says, and collects the replaced packs.
    pub(crate) fn recompress(&self) -> Result<Cost> {
        let recompressed = cost(&mut self.command(&["tier", "recompress"])?, &self.scratch)?;
        cost(&mut self.command(&["gc", "--cycles", "3"])?, &self.scratch)?;
        Ok(recompressed)
    }

    /// Moves all data of Torpor's store to a slower tier and recompresses it there at a level.
    pub(crate) fn recompress_far(&self, level: i32) -> Result<Cost> {
        let far = self.repository().join("far");
        let text = format!("[tiers]\nwarm = {far:?}\n[limits]\nhot = 1\n[levels]\nwarm = {level}\n");
        self.configure(&text)?;
        cost(&mut self.command(&["tier", "move"])?, &self.scratch)?;
        self.recompress()
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = match self.kind {
            Kind::Torpor | Kind::Fast => {
                let mut command = Command::new(snapctl()?);
                command.arg("--quiet").arg("--store").arg(self.repository());
                if self.configuration().exists() {
                    command.arg("--config").arg(self.configuration());
                }
                command
            }
            Kind::Restic => {
                let mut command = Command::new("restic");
                command.arg("--quiet").arg("--repo").arg(self.repository());
                command.arg("--cache-dir").arg(self.home.join("cache")).env("RESTIC_PASSWORD", "peer");
                command
            }
            Kind::Borg => {
                let mut command = Command::new("borg");
                command.env("BORG_BASE_DIR", self.home.join("base"));
                command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
                command
            }
        };
        command.args(arguments);
        Ok(command)
    }

    fn archive(&self, number: usize) -> PathBuf {
        let mut archive = self.repository().into_os_string();
        archive.push(format!("::{number}"));
        archive.into()
    }

    /// Stores a directory as the next snapshot of `name`.
    pub(crate) fn back_up(&mut self, source: &Path, name: &str) -> Result<Cost> {
        self.snapshots += 1;
        let mut command = match self.kind {
            Kind::Torpor | Kind::Fast | Kind::Restic => self.command(&["backup"])?,
            Kind::Borg => self.command(&["create", "--compression", "zstd,3"])?,
        };
        match self.kind {
            Kind::Torpor | Kind::Fast => command.arg(source).arg(name),
            Kind::Restic => command.arg(source),
            Kind::Borg => command.arg(self.archive(self.snapshots)).arg(source),
        };
        cost(&mut command, &self.scratch)
    }

    /// Writes the newest snapshot's files into a new directory.
    pub(crate) fn restore(&self, name: &str, target: &Path) -> Result<Cost> {
        let mut command = match self.kind {
            Kind::Torpor | Kind::Fast => self.command(&["restore", name])?,
            Kind::Restic => self.command(&["restore", "latest", "--target"])?,
            Kind::Borg => self.command(&["extract"])?,
        };
        match self.kind {
            Kind::Torpor | Kind::Fast | Kind::Restic => command.arg(target),
            Kind::Borg => {
                fs::create_dir_all(target)?;
                command.arg(self.archive(self.snapshots)).current_dir(target)
            }
        };
        cost(&mut command, &self.scratch)
    }

    /// Bytes of all files of the repository; local state and caches do not count.
    pub(crate) fn stored_bytes(&self) -> Result<u64> {
        let local = self.repository().join("local");
        sum_of_files(&self.repository(), &local)
    }
}

/// Bytes of the files below a directory, except below `but`.
fn sum_of_files(directory: &Path, but: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        sum += match entry.file_type()?.is_dir() {
            true if path == but => 0,
            true => sum_of_files(&path, but)?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(sum)
}

/// A command of a few words.
pub(crate) fn command(program: impl AsRef<OsStr>, arguments: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(program);
    arguments.iter().for_each(|argument| {
        command.arg(argument);
    });
    command
}
