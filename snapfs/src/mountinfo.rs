//! The kernel's mount table, read without touching any mount: the one way to inspect a mount whose process may be gone.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use store::{Error, Result};

const PATH: &str = "/proc/self/mountinfo";
/// The prefix of the upper's path in the source of a mount of ours.
const SOURCE_PREFIX: &[u8] = b"torpor:";

/// The source of a mount with this upper.
pub(crate) fn source_of(upper: &Path) -> OsString {
    OsString::from_vec([SOURCE_PREFIX, upper.as_os_str().as_bytes()].concat())
}

/// The upper of the topmost mount at `mountpoint`; `None` when that is no mount of ours.
///
/// # Errors
/// Those of reading /proc.
pub(crate) fn upper_at(mountpoint: &Path) -> Result<Option<PathBuf>> {
    let text = std::fs::read(PATH).map_err(|error| Error::io("cannot read the mount table", PATH, error))?;
    Ok(find(&text, mountpoint))
}

/// Whether a mount with this upper is in the mount table.
///
/// # Errors
/// Those of reading /proc.
pub(crate) fn is_mounted_with(upper: &Path) -> Result<bool> {
    let text = std::fs::read(PATH).map_err(|error| Error::io("cannot read the mount table", PATH, error))?;
    let source = source_of(upper);
    let mut lines = text.split(|byte| *byte == b'\n').filter_map(parse_line);
    Ok(lines.any(|(_, other)| other == source.as_bytes()))
}

fn find(text: &[u8], mountpoint: &Path) -> Option<PathBuf> {
    // Later lines are on top of earlier ones.
    let mut lines = text.split(|byte| *byte == b'\n').rev().filter_map(parse_line);
    let (_, source) = lines.find(|(place, _)| place == mountpoint.as_os_str().as_bytes())?;
    let upper = source.strip_prefix(SOURCE_PREFIX)?.to_vec();
    Some(PathBuf::from(OsString::from_vec(upper)))
}

/// Mount point and source of one line.
fn parse_line(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mountpoint = fields.nth(4)?;
    // Optional fields end at a lone dash; behind it are type and source.
    fields.find(|field| *field == b"-")?;
    let source = fields.nth(1)?;
    Some((unescape(mountpoint), unescape(source)))
}

/// Undoes the kernel's octal escapes of space, tab, newline, backslash and hash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(digits) => {
                out.push(
                    digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts_and_escapes_are_undone() {
        let text = b"36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/root rw\n\
            37 35 0:50 / /mnt/a\\040b rw shared:2 - fuse.torpor torpor:/var/up\\134per\\040x rw,user_id=0\n\
            38 35 0:51 / /mnt/c rw - fuse.torpor torpor:/var/c rw\n\
            39 35 0:52 / /mnt/c rw - tmpfs tmpfs rw\n\
            broken line\n";
        assert_eq!(find(text, Path::new("/mnt/a b")), Some(PathBuf::from("/var/up\\per x")));
        assert_eq!(find(text, Path::new("/mnt/c")), None);
        assert_eq!(find(text, Path::new("/mnt")), None);
    }
}
