//! The caller of an operation, and those of its rights that the kernel does not pass with the request.
//!
//! A caller waits for its answer and cannot end before it has one, so /proc shows its process as long as the request is
//! served. A process that cannot be seen in /proc counts as one without rights.

use std::path::PathBuf;

/// The bit of CAP_FSETID in a set of capabilities.
const FSETID: u64 = 1 << 4;

/// The process whose system call is served.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread; 0 where this process cannot see it.
    pub pid: u32,
    /// The umask: permission bits that new nodes do not get.
    pub umask: u32,
}

impl Caller {
    /// Whether it may keep set-user-id and set-group-id bits of files that it changes: CAP_FSETID of this process's
    /// user namespace, as the kernel asks for other file systems.
    pub(crate) fn keeps_set_id(&self) -> bool {
        let held = self.status("CapEff").and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
        held.is_some_and(|held| held & FSETID != 0) && self.is_in_our_user_namespace()
    }

    /// Whether it is a member of `group`.
    pub(crate) fn is_in_group(&self, group: u32) -> bool {
        let is_group = |text: &str| text.parse() == Ok(group);
        self.gid == group
            || self.status("Groups").is_some_and(|groups| groups.split_whitespace().any(is_group))
    }

    fn is_in_our_user_namespace(&self) -> bool {
        let namespace = |of: PathBuf| std::fs::read_link(of.join("ns/user")).ok();
        let theirs = namespace(self.directory());
        theirs.is_some() && theirs == namespace(PathBuf::from("/proc/self"))
    }

    /// One field of /proc/PID/status.
    fn status(&self, field: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.directory().join("status")).ok()?;
        let value = |line: &str| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned);
        text.lines().find_map(value)
    }

    fn directory(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_process_and_none_where_it_is_not_seen() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let ours = Caller { uid: 0, gid: 7, pid: std::process::id(), umask: 0 };
        assert!(ours.is_in_group(7), "the group that the request names");
        assert!(groups.split_whitespace().all(|group| ours.is_in_group(group.parse().unwrap())));
        assert!(!ours.is_in_group(123_456));
        let unseen = Caller { pid: 0, ..ours };
        assert!(!unseen.keeps_set_id() && !unseen.is_in_group(123_456));
    }
}
