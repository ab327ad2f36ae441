//! What every scene of the demo uses: the scratch directory, the built programs, and the table of what happened.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::janitor;
use crate::shell::{Context, Result, command, output, seconds, target_dir};

/// The stage.
pub(super) struct Scene {
    scratch: PathBuf,
    programs: PathBuf,
    janitor: Child,
    rows: Vec<Row>,
}

struct Row {
    step: String,
    what: String,
    elapsed: Duration,
}

/// One JSON document, as `snapctl --json` gives it.
pub(super) struct Answer(pub String);

impl Scene {
    pub(super) fn new(keep: bool) -> Result<Scene> {
        let scratch = std::env::temp_dir().join(format!("torpor-demo-{}", std::process::id()));
        fs::create_dir(&scratch).context(|| format!("cannot create {}", scratch.display()))?;
        let janitor = janitor::start(&scratch, keep)?;
        Ok(Scene { scratch, programs: target_dir()?.join("release"), janitor, rows: Vec::new() })
    }

    /// A path in the scratch directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A new directory in the scratch directory.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// A program of the release build.
    pub(super) fn program(&self, name: &str) -> Command {
        command(self.programs.join(name), [""; 0])
    }

    /// `snapctl` on the demo's store, whatever the machine's own configuration says.
    pub(super) fn snapctl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut snapctl = self.program("snapctl");
        let configuration = self.path("config.toml");
        if configuration.exists() {
            snapctl.env("TORPOR_CONFIG", configuration);
        } else {
            snapctl.env_remove("TORPOR_CONFIG");
        }
        snapctl.env("TORPOR_STORE", self.path("store"));
        snapctl.env("HOME", &self.scratch).env_remove("XDG_CONFIG_HOME");
        snapctl.args(["--json", "--quiet"]).args(arguments);
        snapctl
    }

    /// From now on the demo's store has a configuration, with `text` in it.
    pub(super) fn configure(&self, text: &str) -> Result<()> {
        let path = self.path("config.toml");
        let text = format!("store = {:?}\n{text}", self.path("store"));
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))
    }

    /// Runs `snapctl` and returns its answer and how long it took.
    pub(super) fn ask<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<(Answer, Duration)> {
        let start = Instant::now();
        let text = output(&mut self.snapctl(arguments))?;
        Ok((Answer(text), start.elapsed()))
    }

    /// Notes a process that must not outlive the demo.
    pub(super) fn note_process(&self, process: u32) -> Result<()> {
        janitor::note_process(&self.scratch, process)
    }

    /// Says what happened, now and again in the table.
    pub(super) fn happened(&mut self, step: &str, what: impl Into<String>, elapsed: Duration) {
        let row = Row { step: step.into(), what: what.into(), elapsed };
        println!("  {}: {} {}", row.step, row.what, row.time());
        self.rows.push(row);
    }

    /// The table of everything that happened.
    pub(super) fn print_table(&self) {
        let width =
            |cell: fn(&Row) -> usize, heading: usize| self.rows.iter().map(cell).fold(heading, usize::max);
        let step = width(|row| row.step.len(), "step".len());
        let what = width(|row| row.what.len(), "what happened".len());
        println!("\n{:<step$} | {:<what$} | {:>9}", "step", "what happened", "time");
        println!("{}|{}|{}", "-".repeat(step + 1), "-".repeat(what + 2), "-".repeat(10));
        for row in &self.rows {
            println!("{:<step$} | {:<what$} | {:>9}", row.step, row.what, row.time());
        }
    }

    /// Cleans up and says when something could not be.
    pub(super) fn close(mut self) -> Result<()> {
        janitor::dismiss(&mut self.janitor)
    }
}

impl Row {
    /// How long it took; nothing for a row that only states something.
    fn time(&self) -> String {
        if self.elapsed.is_zero() { String::new() } else { seconds(self.elapsed) }
    }
}

impl Answer {
    /// A whole number of the answer, by its field's name.
    pub(super) fn number(&self, field: &str) -> Result<u64> {
        self.parse(field)
    }

    /// A decimal number of the answer, by its field's name.
    pub(super) fn decimal(&self, field: &str) -> Result<f64> {
        self.parse(field)
    }

    fn parse<T: FromStr<Err: Display>>(&self, field: &str) -> Result<T> {
        let found = self.0.split_once(&format!("\"{field}\":")).map(|(_, rest)| rest.trim_start());
        let value = found.and_then(|rest| rest.split([',', '}', ' ', '\n']).next()).unwrap_or_default();
        value.parse().context(|| format!("no number {field:?} in the answer {:?}", self.0.trim()))
    }
}

/// A count of bytes for people, in decimal units.
pub(super) fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// What a directory's files take as bytes, symlinks not followed.
pub(super) fn directory_len_bytes(directory: &Path) -> Result<u64> {
    let cannot = || format!("cannot read {}", directory.display());
    let mut len_bytes = 0;
    for entry in fs::read_dir(directory).context(cannot)? {
        let entry = entry.context(cannot)?;
        let metadata = entry.metadata().context(cannot)?;
        len_bytes += if metadata.is_dir() { directory_len_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(len_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_an_answer() {
        let answer = Answer("{\"bytes\":17,\"stored_bytes\": 4}\n".into());
        assert_eq!(answer.number("stored_bytes").expect("a number"), 4);
        assert_eq!(answer.number("bytes").expect("a number"), 17);
        assert!(answer.number("files").is_err());
        let answer = Answer("{\"first_seconds\":1.5e-3}".into());
        assert_eq!(answer.decimal("first_seconds").expect("a number"), 1.5e-3);
    }
}
