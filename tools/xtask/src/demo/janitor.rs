//! Cleans up after a demo, however that ended: a process of its own that waits for the end of its standard input.
//!
//! The demo holds the other end of that pipe, so even its death by signal starts the cleaning. What is cleaned: the
//! processes that the demo wrote down (a process id with its start time, so that a reused id is left alone), every
//! mount below the scratch directory, and the directory.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::shell::{Context, Failure, Result, command, run_quiet};

/// First word of the command line of a janitor, for `main`.
pub(crate) const VERB: &str = "demo-janitor";
const PROCESSES: &str = "processes";

/// Starts the janitor of a scratch directory, in a session that the terminal's signals do not reach.
pub(crate) fn start(scratch: &Path, keep: bool) -> Result<Child> {
    let program = std::env::current_exe().context(|| "cannot find this program's own path".into())?;
    let mut janitor = Command::new("setsid");
    janitor.arg(program).arg(VERB).arg(scratch).args(keep.then_some("--keep"));
    janitor.stdin(Stdio::piped()).spawn().context(|| "cannot start the demo's janitor".into())
}

/// Has the janitor do its work now.
pub(crate) fn dismiss(janitor: &mut Child) -> Result<()> {
    drop(janitor.stdin.take());
    let status = janitor.wait().context(|| "cannot wait for the demo's janitor".into())?;
    if status.success() { Ok(()) } else { Err(Failure::new("the demo left something behind: see above")) }
}

/// Writes a process down, to be killed at the end if it is still there.
pub(crate) fn note_process(scratch: &Path, process: u32) -> Result<()> {
    let path = scratch.join(PROCESSES);
    let cannot = || format!("cannot write {}", path.display());
    let Some(start) = start_time(process) else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(&path).context(cannot)?;
    writeln!(file, "{process} {start}").context(cannot)
}

/// The janitor's life.
pub(crate) fn run(scratch: &Path, keep: bool) -> Result<()> {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).context(|| "cannot wait for the demo's end".into())?;
    let processes = fs::read_to_string(scratch.join(PROCESSES)).unwrap_or_default();
    for line in processes.lines().rev() {
        let Some((process, start)) = line.split_once(' ') else { continue };
        if process.parse().ok().and_then(start_time).as_deref() == Some(start) {
            kill(process)?;
        }
    }
    for mountpoint in mounts_below(scratch)? {
        run_quiet(&mut command("umount", ["--lazy", &mountpoint]))?;
    }
    if keep {
        return Ok(());
    }
    fs::remove_dir_all(scratch).context(|| format!("cannot remove {}", scratch.display()))
}

/// Kills one process by its id.
pub(crate) fn kill(process: &str) -> Result<()> {
    run_quiet(&mut command("sh", ["-c", "kill -KILL \"$1\"", "kill", process]))
}

/// When a process that is not a zombie started, in ticks since boot; its memory is not touched.
pub(crate) fn start_time(process: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    fields.nth(18).filter(|_| !matches!(state, "Z" | "X")).map(str::to_owned)
}

/// Mount points below a directory, innermost first.
fn mounts_below(directory: &Path) -> Result<Vec<String>> {
    let table =
        fs::read_to_string("/proc/self/mountinfo").context(|| "cannot read the mount table".into())?;
    let mountpoints = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<String> =
        mountpoints.filter(|path| Path::new(path).starts_with(directory)).map(str::to_owned).collect();
    below.reverse();
    Ok(below)
}
