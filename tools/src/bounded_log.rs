//! Standard error of a background process: a log file that bounds its own length.
//!
//! The file never grows far past [`LOG_MAX_LEN`]: the event that would take it there first drops all but the newest
//! [`LOG_KEPT_LEN`] bytes, in full lines. Bytes written by others (a panic's message) are counted by the next event.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

/// Longest log in bytes.
const LOG_MAX_LEN: u64 = 1 << 20;
/// Bytes kept of a log that is too long.
const LOG_KEPT_LEN: u64 = LOG_MAX_LEN / 2;
/// The log by a name that a read-only descriptor can be opened from.
const LOG: &str = "/proc/self/fd/2";
const DROPPED: &[u8] = b"(earlier lines were dropped: the log had become too long)\n";

/// Threads shorten the log one after the other.
static SHORTENING: Mutex<()> = Mutex::new(());

/// Writes to standard error, a file, and bounds its length.
pub(crate) struct BoundedLog;

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _alone = SHORTENING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut log = File::options().read(true).append(true).open(LOG)?;
        bound(&mut log, bytes.len() as u64, LOG_MAX_LEN, LOG_KEPT_LEN)?;
        log.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shortens the log to its newest `kept_len` bytes where `more` bytes would make it longer than `max_len`.
fn bound(log: &mut File, more: u64, max_len: u64, kept_len: u64) -> io::Result<()> {
    let len = log.metadata()?.len();
    if len + more <= max_len {
        return Ok(());
    }
    log.seek(SeekFrom::Start(len.saturating_sub(kept_len)))?;
    let mut kept = Vec::new();
    log.take(kept_len).read_to_end(&mut kept)?;
    let first_line_end = kept.iter().position(|byte| *byte == b'\n').map_or(kept.len(), |end| end + 1);
    log.set_len(0)?;
    log.write_all(&[DROPPED, &kept[first_line_end..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_newest_lines_and_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = File::options().create(true).read(true).append(true).open(&path).unwrap();
        for number in 0..1000 {
            let line = format!("line {number}\n");
            bound(&mut log, line.len() as u64, 400, 200).unwrap();
            log.write_all(line.as_bytes()).unwrap();
            assert!(log.metadata().unwrap().len() <= 400);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].as_bytes(), DROPPED.trim_ascii_end());
        let first: usize = lines[1].strip_prefix("line ").unwrap().parse().unwrap();
        let expected: Vec<String> = (first..1000).map(|number| format!("line {number}")).collect();
        assert_eq!(lines[1..], expected, "whole lines, none missing in between");
    }
}
