//! POSIX access control lists, as the bytes of `system.posix_acl_access` and `system.posix_acl_default`.
//!
//! The kernel checks permissions by them and refuses malformed lists. Here is the part that it leaves to a file system:
//! keeping the mode and the list in step, and passing a directory's default on. The rules are those of the kernel's own
//! fs/posix_acl.c, the bytes those of acl(5): a version (u32), then entries of tag (u16), permissions (u16) and id
//! (u32), little-endian.

/// The attribute with the access list of a node.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of a directory with the default list for new nodes in it.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER_LEN: usize = 4;
const ENTRY_LEN: usize = 8;
/// The nine permission bits of the owner, the group and others.
const PERMISSIONS: u32 = 0o777;

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A list with exactly one entry each for the owner, the owning group and others, and at most one mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// Parses a list; `None` when the bytes are no valid list.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, entries) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let (entries, rest) = entries.as_chunks::<ENTRY_LEN>();
        if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
            return None;
        }
        let acl = Self(entries.iter().map(decode_entry).collect());
        let count = |tag| acl.0.iter().filter(|entry| entry.tag == tag).count();
        let known = |entry: &Entry| [OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHERS].contains(&entry.tag);
        let is_valid = [OWNER, OWNING_GROUP, OTHERS].iter().all(|tag| count(*tag) == 1) && count(MASK) <= 1;
        (is_valid && acl.0.iter().all(known)).then_some(acl)
    }

    /// Encodes the list.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let entries = self.0.iter().flat_map(|entry| {
            let [tag, permissions] = [entry.tag, entry.permissions].map(u16::to_le_bytes);
            [&tag[..], &permissions[..], &entry.id.to_le_bytes()[..]].concat()
        });
        VERSION.to_le_bytes().into_iter().chain(entries).collect()
    }

    /// Whether a mode expresses all of the list.
    pub(crate) fn is_mode(&self) -> bool {
        self.0.iter().all(|entry| [OWNER, OWNING_GROUP, OTHERS].contains(&entry.tag))
    }

    /// The nine permission bits of the list. Those of the group are the mask's, if there is a mask.
    pub(crate) fn mode(&self) -> u32 {
        let shifted = |tag, shift| {
            let entry = self.0.iter().find(|entry| entry.tag == tag);
            entry.map_or(0, |entry| u32::from(entry.permissions & 7) << shift)
        };
        shifted(OWNER, 6) | shifted(self.class_tag(), 3) | shifted(OTHERS, 0)
    }

    /// The list after chmod(2).
    #[must_use]
    pub(crate) fn with_mode(&self, mode: u32) -> Self {
        self.limited(mode, |_, bits| bits)
    }

    /// The list and the mode of a new node that inherits this default and is made with `mode`.
    pub(crate) fn inherited(&self, mode: u32) -> (Self, u32) {
        let acl = self.limited(mode, |old, bits| old & bits);
        let mode = mode & !PERMISSIONS | acl.mode();
        (acl, mode)
    }

    fn limited(&self, mode: u32, limit: impl Fn(u16, u16) -> u16) -> Self {
        let class = self.class_tag();
        let entries = self.0.iter().map(|entry| {
            let bits = |shift: u32| (mode >> shift & 7) as u16;
            let permissions = match entry.tag {
                OWNER => limit(entry.permissions, bits(6)),
                tag if tag == class => limit(entry.permissions, bits(3)),
                OTHERS => limit(entry.permissions, bits(0)),
                _ => entry.permissions,
            };
            Entry { permissions, ..*entry }
        });
        Self(entries.collect())
    }

    /// The entry that corresponds to the group's bits of a mode.
    fn class_tag(&self) -> u16 {
        if self.0.iter().any(|entry| entry.tag == MASK) { MASK } else { OWNING_GROUP }
    }
}

fn decode_entry(bytes: &[u8; ENTRY_LEN]) -> Entry {
    let [a, b, c, d, id @ ..] = *bytes;
    Entry {
        tag: u16::from_le_bytes([a, b]),
        permissions: u16::from_le_bytes([c, d]),
        id: u32::from_le_bytes(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: u32 = u32::MAX;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect())
    }

    fn with_mask() -> Acl {
        acl(&[
            (OWNER, 7, NOBODY),
            (USER, 6, 1001),
            (OWNING_GROUP, 5, NOBODY),
            (MASK, 6, NOBODY),
            (OTHERS, 1, NOBODY),
        ])
    }

    #[test]
    fn bytes_are_those_of_the_kernel() {
        let minimal = acl(&[(OWNER, 6, NOBODY), (OWNING_GROUP, 4, NOBODY), (OTHERS, 0, NOBODY)]);
        let bytes = minimal.encode();
        assert_eq!(bytes[..12], [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(Acl::decode(&bytes), Some(minimal.clone()));
        assert!(minimal.is_mode() && minimal.mode() == 0o640);
        assert_eq!(Acl::decode(&with_mask().encode()), Some(with_mask()));
        for len in 0..bytes.len() {
            assert_eq!(Acl::decode(&bytes[..len]), None, "cut at {len}");
        }
        assert_eq!(Acl::decode(&[&bytes[..], &bytes[4..12]].concat()), None, "two owners");
        let unknown = acl(&[(OWNER, 6, 0), (OWNING_GROUP, 4, 0), (OTHERS, 0, 0), (0x40, 0, 0)]);
        assert_eq!(Acl::decode(&unknown.encode()), None);
    }

    #[test]
    fn the_mask_is_the_group_s_part_of_the_mode() {
        assert_eq!(with_mask().mode(), 0o761);
        let changed = with_mask().with_mode(0o100_640);
        assert_eq!(changed.mode(), 0o640);
        assert_eq!(changed.0[1..3], with_mask().0[1..3], "named users and the owning group stay");
        let without = acl(&[(OWNER, 7, 0), (OWNING_GROUP, 5, 0), (OTHERS, 1, 0)]);
        assert_eq!(without.with_mode(0o640).0[1].permissions, 4);
    }

    #[test]
    fn a_new_node_gets_no_more_than_its_maker_asked_for() {
        let (access, mode) = with_mask().inherited(0o2666);
        assert_eq!(mode, 0o2660, "set-group-id stays, the rest is the default's and the maker's");
        assert_eq!(access.0[3].permissions, 6);
        let (access, mode) = with_mask().inherited(0o600);
        assert_eq!((mode, access.0[3].permissions, access.0[1].permissions), (0o600, 0, 6));
    }
}
