//! Memory that a command takes: peaks of its own and of the file pages it has mapped, sampled while it runs; and a
//! memory cgroup, in which the page cache of its reads and writes counts, too.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use crate::measure::Result;

/// Where version 1 of the memory controller is mounted.
const CONTROLLER: &str = "/sys/fs/cgroup/memory";
const SAMPLE_EVERY: Duration = Duration::from_millis(3);

/// The figures of one run of a process.
#[derive(Clone, Copy, Default)]
pub(crate) struct Footprint {
    pub seconds: f64,
    /// Most memory of its own that was seen: pages that no file has.
    pub own_bytes: u64,
    /// Most file pages that were seen mapped. The kernel may drop them when it needs the memory.
    pub mapped_bytes: u64,
}

/// A cgroup that limits the processes in it. Removed when dropped.
pub(crate) struct Limited(PathBuf);

impl Limited {
    /// A cgroup of so many bytes; `None` where none can be made.
    pub(crate) fn new(limit_bytes: u64) -> Option<Self> {
        let group = Self(Path::new(CONTROLLER).join(format!("torpor-bench-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        let limit = group.0.join("memory.limit_in_bytes");
        fs::write(limit, limit_bytes.to_string()).is_ok().then_some(group)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Runs a command to its end, within a limit if one is given; it must succeed.
pub(crate) fn footprint(command: &Command, limited: Option<&Limited>) -> Result<Footprint> {
    let mut child = match limited {
        None => Command::new(command.get_program()),
        Some(group) => {
            let mut shell = Command::new("sh");
            let join = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", group.0.display());
            shell.args(["-c", &join, "sh"]).arg(command.get_program());
            shell
        }
    };
    let errors = tempfile::tempfile()?;
    child.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let start = Instant::now();
    let mut child = child.spawn()?;
    let mut footprint = Footprint::default();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let text = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = |peak: &mut u64, field| *peak = status_bytes(&text, field).max(*peak);
        peak(&mut footprint.own_bytes, "RssAnon:");
        peak(&mut footprint.mapped_bytes, "RssFile:");
        std::thread::sleep(SAMPLE_EVERY);
    };
    footprint.seconds = start.elapsed().as_secs_f64();
    match status.success() {
        true => Ok(footprint),
        false => Err(format!("{command:?} ended with {status}: {}", read_all(errors)?).into()),
    }
}

fn read_all(mut file: File) -> Result<String> {
    let mut text = String::new();
    std::io::Seek::rewind(&mut file)?;
    std::io::Read::read_to_string(&mut file, &mut text)?;
    Ok(text)
}

/// The least memory of a process that is seen within some seconds, with mapped files and without.
pub(crate) fn settled(pid: u32, seconds: u64) -> Result<[u64; 2]> {
    let start = Instant::now();
    let mut least = resident(pid)?;
    while start.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(SAMPLE_EVERY);
        least = least.min(resident(pid)?);
    }
    Ok(least)
}

/// Memory of a process now, with mapped files and without.
pub(crate) fn resident(pid: u32) -> Result<[u64; 2]> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(["VmRSS:", "RssAnon:"].map(|field| status_bytes(&text, field)))
}

/// The bytes of a line of `/proc/PID/status` that is in KiB.
pub(crate) fn status_bytes(text: &str, field: &str) -> u64 {
    let kib = text.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse().ok()).unwrap_or(0) * 1024
}

/// Drops the files below a directory from the page cache.
pub(crate) fn cool(directory: &Path) -> Result<()> {
    rustix::fs::sync();
    let mut waiting = vec![directory.to_owned()];
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => waiting.push(entry.path()),
                kind if kind.is_file() => {
                    rustix::fs::fadvise(&File::open(entry.path())?, 0, None, Advice::DontNeed)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_in_bytes() {
        let text = "Name:\tsnapctl\nRssAnon:\t    1024 kB\nRssFile:\t  12 kB\n";
        assert_eq!((status_bytes(text, "RssAnon:"), status_bytes(text, "RssShmem:")), (1 << 20, 0));
    }
}
