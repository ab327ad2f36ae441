//! The identity of files: inode numbers and change times, which are the same at every mount and differ for other
//! contents.
//!
//! Files that a mount changed have both in the snapshot. For all others they follow from the snapshot: the number from
//! the directory's number and the name, the change time from all that the inode holds. docs/FORMAT.md ("Inode") has the
//! rules.

use crate::change::NodeId;
use crate::times;
use store::{Identity, Inode, Time, clock};

const NANOS: u64 = 1_000_000_000;
/// Numbers that follow from a snapshot have this bit, numbers of new nodes do not.
pub(crate) const BASE_BIT: u64 = 1 << 63;

/// When an inode of a snapshot was last changed.
pub(crate) fn ctime_of(inode: &Inode) -> Time {
    inode.metadata.identity.ctime().unwrap_or_else(|| derived_ctime(inode))
}

fn derived_ctime(inode: &Inode) -> Time {
    let mut first = [0; 8];
    first.copy_from_slice(&inode.digest()[..8]);
    times::later(inode.metadata.mtime, (u64::from_le_bytes(first) % NANOS) as u32)
}

/// The number of `name` in the directory `parent` of a snapshot, which keeps the number `kept` of it.
pub(crate) fn number_in(parent: NodeId, name: &[u8], kept: Option<u64>) -> NodeId {
    possible(kept).unwrap_or_else(|| NodeId(hash(parent.0, name) | BASE_BIT))
}

/// The number of the file that a snapshot's link table has under `link`, and keeps the number `kept` of.
pub(crate) fn number_of_link(link: u64, kept: Option<u64>) -> NodeId {
    let seed = 0x6c62_272e_07bb_0142;
    possible(kept).unwrap_or_else(|| NodeId(hash(seed, &link.to_le_bytes()) | BASE_BIT))
}

/// A kept number, except those with another meaning to the kernel.
fn possible(kept: Option<u64>) -> Option<NodeId> {
    kept.map(NodeId).filter(|number| *number > NodeId::ROOT)
}

/// `inode` with the identity that makes it node `id` with this change time again; `derived` is its number without that.
pub(crate) fn kept(mut inode: Inode, id: NodeId, derived: NodeId, ctime: Time) -> Inode {
    let ctime = (derived_ctime(&inode) != ctime).then_some(ctime);
    inode.metadata.identity = Identity::new(ctime, (derived != id).then_some(id.0));
    inode
}

/// A number for a new node: at random, because which numbers a snapshot has in use is known only after reading all of
/// it.
pub(crate) fn random_number() -> NodeId {
    NodeId(u64::from_le_bytes(clock::random_bytes()) & !BASE_BIT)
}

/// FNV-1a, then mixed: stable over builds and good enough where a clash is only resolved by counting up.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for byte in seed.to_le_bytes().iter().chain(bytes) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
