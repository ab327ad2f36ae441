//! The changes to the state of a mount, as values: the vocabulary of the journal.
//!
//! Each change sets a value, so applying it twice is the same as once. A frame of the journal is a list of changes
//! that happen together. The byte layout is in SEMANTICS.md ("Journal").

use rustix::fs::FileType;
use std::ops::Range;
use store::wire::{Decoder, Encoder};
use store::{Error, Result, Time, TreeId};

/// Number of a node: the inode number that applications see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub u64);

impl NodeId {
    /// The root directory of the mount.
    pub(crate) const ROOT: Self = Self(1);
}

/// A name in a directory: any bytes but NUL and slash.
pub(crate) type Name = Vec<u8>;

/// The attributes of a node that `stat` shows, except those that follow from its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; a node with 0 names is removed once no process holds it open.
    pub nlink: u32,
    /// Last access, as last set.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of content or attributes.
    pub ctime: Time,
}

/// The body of a new node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NewBody {
    /// An empty file.
    File,
    /// An empty directory.
    Directory,
    /// A symbolic link to these bytes.
    Symlink(Vec<u8>),
    /// A character device with this number.
    CharDevice(u64),
    /// A block device with this number.
    BlockDevice(u64),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

impl NewBody {
    /// The body of the node that mknod(2) makes for this mode; `None` for a mode that it refuses.
    pub(crate) fn of_mode(mode: u32, rdev: u64) -> Option<Self> {
        Some(match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Self::File,
            FileType::CharacterDevice => Self::CharDevice(rdev),
            FileType::BlockDevice => Self::BlockDevice(rdev),
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            _ => return None,
        })
    }
}

/// One step from one state to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// `node` is the base's node at `path`; from now on its state is kept here.
    Adopt { node: NodeId, path: Vec<u8> },
    /// `node` is the base's hard-linked file `number`; from now on its state is kept here.
    AdoptLink { node: NodeId, number: u64 },
    /// A new node that the base does not have.
    Create { node: NodeId, body: NewBody, attributes: Attributes },
    /// `name` in `parent` is `node`, or does not exist.
    Entry { parent: NodeId, name: Name, node: Option<NodeId> },
    /// New attributes.
    Attributes { node: NodeId, attributes: Attributes },
    /// All extended attributes, sorted by name.
    Xattrs { node: NodeId, xattrs: Vec<(Vec<u8>, Vec<u8>)> },
    /// Bytes `range` of the file were written into its data file.
    Write { node: NodeId, range: Range<u64> },
    /// The file was cut or extended.
    Truncate { node: NodeId, len_bytes: u64 },
    /// Blocks became zero.
    Zero { node: NodeId, blocks: Range<u64> },
    /// All writes to the file so far are durable in its data file.
    Synced { node: NodeId },
    /// The base's hard-linked file `number` has no name left.
    DeadLink { number: u64 },
    /// All changes before this one are in the tree `tree`, which is about to be committed.
    Freezing { tree: TreeId },
}

impl Change {
    /// The node without which the change has no meaning, if there is one.
    pub(crate) fn node(&self) -> Option<NodeId> {
        match self {
            Self::Adopt { node, .. }
            | Self::AdoptLink { node, .. }
            | Self::Create { node, .. }
            | Self::Attributes { node, .. }
            | Self::Xattrs { node, .. }
            | Self::Write { node, .. }
            | Self::Truncate { node, .. }
            | Self::Zero { node, .. }
            | Self::Synced { node } => Some(*node),
            Self::Entry { parent, .. } => Some(*parent),
            Self::DeadLink { .. } | Self::Freezing { .. } => None,
        }
    }

    /// Appends the encoded change.
    pub(crate) fn encode(&self, out: &mut Encoder) {
        match self {
            Self::Adopt { node, path } => out.u8(1).u64(node.0).string(path),
            Self::AdoptLink { node, number } => out.u8(2).u64(node.0).u64(*number),
            Self::Create { node, body, attributes } => {
                out.u8(3).u64(node.0);
                encode_body(out, body);
                encode_attributes(out, attributes)
            }
            Self::Entry { parent, name, node } => {
                out.u8(4).u64(parent.0).string(name).u64(node.map_or(0, |node| node.0))
            }
            Self::Attributes { node, attributes } => encode_attributes(out.u8(5).u64(node.0), attributes),
            Self::Xattrs { node, xattrs } => {
                out.u8(6).u64(node.0).count(xattrs.len());
                xattrs.iter().fold(out, |out, (name, value)| out.string(name).string(value))
            }
            Self::Write { node, range } => out.u8(7).u64(node.0).u64(range.start).u64(range.end),
            Self::Truncate { node, len_bytes } => out.u8(8).u64(node.0).u64(*len_bytes),
            Self::Zero { node, blocks } => out.u8(9).u64(node.0).u64(blocks.start).u64(blocks.end),
            Self::Synced { node } => out.u8(10).u64(node.0),
            Self::DeadLink { number } => out.u8(11).u64(*number),
            Self::Freezing { tree } => out.u8(12).bytes(tree.as_bytes()),
        };
    }

    /// Takes one change off the front.
    ///
    /// # Errors
    /// `Corrupt` for anything that [`Self::encode`] does not write.
    pub(crate) fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        let kind = input.u8()?;
        if kind == 11 {
            return Ok(Self::DeadLink { number: input.u64()? });
        }
        if kind == 12 {
            return Ok(Self::Freezing { tree: TreeId::from_bytes(input.array()?) });
        }
        let node = NodeId(input.u64()?);
        Ok(match kind {
            1 => Self::Adopt { node, path: input.string()?.to_vec() },
            2 => Self::AdoptLink { node, number: input.u64()? },
            3 => Self::Create { node, body: decode_body(input)?, attributes: decode_attributes(input)? },
            4 => {
                let name = decode_name(input)?;
                let target = input.u64()?;
                Self::Entry { parent: node, name, node: (target != 0).then_some(NodeId(target)) }
            }
            5 => Self::Attributes { node, attributes: decode_attributes(input)? },
            6 => {
                let count = input.count(8)?;
                let mut xattr = || Ok((input.string()?.to_vec(), input.string()?.to_vec()));
                Self::Xattrs { node, xattrs: (0..count).map(|_| xattr()).collect::<Result<_>>()? }
            }
            7 => Self::Write { node, range: decode_range(input)? },
            8 => Self::Truncate { node, len_bytes: decode_len(input)? },
            9 => Self::Zero { node, blocks: decode_range(input)? },
            10 => Self::Synced { node },
            _ => return Err(Error::corrupt(format!("unknown change {kind} in the journal"))),
        })
    }
}

/// Encodes a list of changes as one frame's payload.
pub(crate) fn encode_all<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<u8> {
    let mut out = Encoder::new();
    changes.for_each(|change| change.encode(&mut out));
    out.finish()
}

/// Decodes one frame's payload.
///
/// # Errors
/// `Corrupt` for anything that [`encode_all`] does not write.
pub(crate) fn decode_all(payload: &[u8]) -> Result<Vec<Change>> {
    let mut input = Decoder::new(payload);
    let mut changes = Vec::new();
    while input.remaining() > 0 {
        changes.push(Change::decode(&mut input)?);
    }
    Ok(changes)
}

fn encode_attributes<'a>(out: &'a mut Encoder, attributes: &Attributes) -> &'a mut Encoder {
    let Attributes { mode, uid, gid, nlink, atime, mtime, ctime } = *attributes;
    out.u32(mode).u32(uid).u32(gid).u32(nlink).time(atime).time(mtime).time(ctime)
}

fn decode_attributes(input: &mut Decoder<'_>) -> Result<Attributes> {
    let (mode, uid, gid, nlink) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
    if mode > 0o7777 {
        return Err(Error::corrupt(format!("impossible mode {mode:o} in the journal")));
    }
    Ok(Attributes { mode, uid, gid, nlink, atime: input.time()?, mtime: input.time()?, ctime: input.time()? })
}

fn encode_body(out: &mut Encoder, body: &NewBody) {
    match body {
        NewBody::File => out.u8(1),
        NewBody::Directory => out.u8(2),
        NewBody::Symlink(target) => out.u8(3).string(target),
        NewBody::CharDevice(rdev) => out.u8(4).u64(*rdev),
        NewBody::BlockDevice(rdev) => out.u8(5).u64(*rdev),
        NewBody::Fifo => out.u8(6),
        NewBody::Socket => out.u8(7),
    };
}

fn decode_body(input: &mut Decoder<'_>) -> Result<NewBody> {
    Ok(match input.u8()? {
        1 => NewBody::File,
        2 => NewBody::Directory,
        3 => NewBody::Symlink(input.string()?.to_vec()),
        4 => NewBody::CharDevice(input.u64()?),
        5 => NewBody::BlockDevice(input.u64()?),
        6 => NewBody::Fifo,
        7 => NewBody::Socket,
        kind => return Err(Error::corrupt(format!("unknown node kind {kind} in the journal"))),
    })
}

fn decode_name(input: &mut Decoder<'_>) -> Result<Name> {
    match input.string()? {
        [] | b"." | b".." => Err(Error::corrupt("impossible name in the journal")),
        name if name.len() > 255 || name.contains(&b'/') || name.contains(&0) => {
            Err(Error::corrupt("impossible name in the journal"))
        }
        name => Ok(name.to_vec()),
    }
}

/// A length of a file.
fn decode_len(input: &mut Decoder<'_>) -> Result<u64> {
    match input.u64()? {
        len_bytes if len_bytes > i64::MAX as u64 => {
            Err(Error::corrupt(format!("impossible length {len_bytes} in the journal")))
        }
        len_bytes => Ok(len_bytes),
    }
}

fn decode_range(input: &mut Decoder<'_>) -> Result<Range<u64>> {
    let range = input.u64()?..input.u64()?;
    // File offsets are signed 64-bit numbers in Linux; a larger one would overflow block arithmetic.
    if range.start > range.end || range.end > i64::MAX as u64 {
        return Err(Error::corrupt(format!("impossible range {range:?} in the journal")));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Change> {
        let node = NodeId(7);
        let time = Time { seconds: -5, nanos: 999 };
        let attributes =
            Attributes { mode: 0o4755, uid: 1, gid: 2, nlink: 3, atime: time, mtime: time, ctime: time };
        let mut samples = vec![
            Change::Adopt { node, path: b"usr/lib".to_vec() },
            Change::AdoptLink { node, number: 9 },
            Change::Entry { parent: node, name: b"a".to_vec(), node: None },
            Change::Entry { parent: node, name: b"b".to_vec(), node: Some(NodeId(1 << 63)) },
            Change::Attributes { node, attributes },
            Change::Xattrs {
                node,
                xattrs: vec![(b"user.a".to_vec(), vec![0, 1]), (b"user.b".to_vec(), vec![])],
            },
            Change::Write { node, range: 5..4097 },
            Change::Truncate { node, len_bytes: 12 },
            Change::Zero { node, blocks: 1..3 },
            Change::Synced { node },
            Change::DeadLink { number: 4 },
            Change::Freezing { tree: TreeId::from_bytes([3; 32]) },
        ];
        for body in [
            NewBody::File,
            NewBody::Directory,
            NewBody::Symlink(b"../x".to_vec()),
            NewBody::CharDevice(0x103),
            NewBody::BlockDevice(8),
            NewBody::Fifo,
            NewBody::Socket,
        ] {
            samples.push(Change::Create { node, body, attributes });
        }
        samples
    }

    #[test]
    fn every_change_round_trips_and_no_cut_of_it_decodes_to_all_of_it() {
        let all = samples();
        let payload = encode_all(all.iter());
        assert_eq!(decode_all(&payload).unwrap(), all);
        for len in 0..payload.len() {
            if let Ok(changes) = decode_all(&payload[..len]) {
                assert!(changes.len() < all.len() && all.starts_with(&changes), "cut at {len}");
            }
        }
    }

    #[test]
    fn a_range_that_no_file_has_is_refused() {
        for (start, end) in [(5, u64::MAX), (9, 8)] {
            let payload = encode_all([Change::Write { node: NodeId(2), range: start..end }].iter());
            assert!(decode_all(&payload).is_err());
        }
    }
}
