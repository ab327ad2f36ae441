//! Runs one command, or one timed step made of commands.
//!
//! A quiet command writes to a log file; when it fails, the error carries the end of that log. Nothing here goes
//! through a shell: every argument is passed as it is.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What went wrong, as one text for the person at the terminal.
#[derive(Debug)]
pub(crate) struct Failure(String);

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Gives an I/O error the sentence it lacks.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure(format!("{}: {error}", what())))
    }
}

/// Root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    tools.and_then(Path::parent).expect("xtask lies two levels below the workspace root")
}

/// Cargo's target directory: where this very program was built.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context(|| "cannot find this program's own path".into())?;
    let profile = program.parent().and_then(Path::parent);
    profile.map(Path::to_path_buf).ok_or_else(|| Failure::new("this program was not built by cargo"))
}

/// A directory below the target directory for what xtask keeps between runs. Created if missing.
pub(crate) fn kept_dir(name: &str) -> Result<PathBuf> {
    let path = target_dir()?.join("xtask").join(name);
    fs::create_dir_all(&path).context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// Where a program may lie that setup installed itself. A root shell need not search there.
const OWN_PROGRAMS: &str = "/usr/local/sbin";

/// A command by name and arguments. It, and what it runs, find what setup installed.
pub(crate) fn command<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", search_path());
    command
}

fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|directory| directory == Path::new(OWN_PROGRAMS)) {
        return path;
    }
    [OWN_PROGRAMS.into(), path].join(":".as_ref())
}

/// Runs its arguments as a command that inherits the three standard descriptors and no others.
const CLOSE_OTHERS: &str = r#"
for path in /proc/self/fd/*; do
  descriptor=${path##*/}
  if ((descriptor > 2)); then eval "exec $descriptor>&-"; fi
done
exec "$@"
"#;

/// `command`, but without whatever descriptors this process got from those who started it: CRIU refuses to dump a
/// process that holds one of another mount namespace, or a socket whose other end lies outside.
pub(crate) fn sealed(command: &Command) -> Command {
    let mut sealed = Command::new("bash");
    sealed.args(["-c", CLOSE_OTHERS, "bash"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => sealed.env(name, value),
            None => sealed.env_remove(name),
        };
    }
    sealed.current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    sealed
}

/// The cargo that runs us, at the workspace root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = command(&program, arguments);
    command.current_dir(workspace());
    command
}

/// Runs with the terminal's own stdout and stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().context(|| format!("cannot start {}", describe(command)))?;
    if status.success() { Ok(()) } else { Err(Failure(format!("{} failed ({status})", describe(command)))) }
}

/// Runs with all output in a log file of the target directory; a failure shows its last lines.
pub(crate) fn run_quiet(command: &mut Command) -> Result<()> {
    let path = kept_dir("log")?.join(format!("{}.log", stem(command)));
    let cannot = || format!("cannot write {}", path.display());
    let mut log = File::options().create(true).append(true).open(&path).context(cannot)?;
    writeln!(log, "+ {}", describe(command)).context(cannot)?;
    let start = fs::metadata(&path).context(cannot)?.len();
    let errors = log.try_clone().context(cannot)?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let status = command.status().context(|| format!("cannot start {}", describe(command)))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(&path).context(|| format!("cannot read {}", path.display()))?;
    let written = String::from_utf8_lossy(&text[(start as usize).min(text.len())..]).into_owned();
    let end = last_lines(&written, 20);
    Err(Failure(format!("{} failed ({status}); log {}:\n{end}", describe(command), path.display())))
}

/// Runs and returns stdout; a failure carries stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().context(|| format!("cannot start {}", describe(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let end = last_lines(if errors.trim().is_empty() { &text } else { &errors }, 20);
    Err(Failure(format!("{} failed ({}):\n{end}", describe(command), output.status)))
}

/// Runs `work` as one named step and prints one line: the name, what it says, how long it took.
pub(crate) fn step(name: &str, work: impl FnOnce() -> Result<String>) -> Result<Duration> {
    let start = Instant::now();
    let outcome = work();
    let elapsed = start.elapsed();
    let said = match &outcome {
        Ok(said) => said.as_str(),
        Err(_) => "FAILED",
    };
    println!("{name:<12} {said} ({})", seconds(elapsed));
    outcome.map(|_| elapsed)
}

/// A duration for people.
pub(crate) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// True when `program` stands in one of PATH's directories.
pub(crate) fn in_path(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|directory| directory.join(program).is_file())
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let shown = if words.get(2).is_some_and(|word| *word == CLOSE_OTHERS) { &words[4..] } else { &words[..] };
    let shown: Vec<_> = shown.iter().map(|word| word.to_string_lossy()).collect();
    shown.join(" ")
}

fn stem(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_command_inherits_the_standard_descriptors_only() {
        // The listing's own descriptor is the one more.
        let listed = output(&mut sealed(command("ls", ["/proc/self/fd"]).env("A", "1"))).expect("ls runs");
        assert_eq!(listed.split_whitespace().count(), 4, "{listed}");
        let failed = run(&mut sealed(&command("false", ["x"]))).expect_err("false fails");
        assert!(failed.to_string().starts_with("false x failed"), "{failed}");
    }
}
