//! Encoding of inodes, tree roots and link tables. Tables: docs/FORMAT.md.

use super::content::Content;
use super::inode::{Identity, Inode, LinkedInode, Metadata, Node, TreeRoot};
use crate::error::{Error, Result};
use crate::id::{ChunkId, DirectoryId, TreeId};
use crate::wire::{Decoder, Encoder, FORMAT_VERSION, expect_versions};
use crate::writer::Writer;
use crate::writer::blob;
use std::collections::BTreeMap;

/// First bytes of a tree's root record.
pub(crate) const ROOT_MAGIC: &[u8; 4] = b"TREE";
/// First bytes of a link table.
pub(crate) const LINKS_MAGIC: &[u8; 4] = b"TLNK";

/// Version of records in which an inode has an identity. Others have version 1, as they had before there were any.
pub(crate) const IDENTITY_VERSION: u16 = 2;
/// Set in an inode's mode: the time of its last change of anything follows.
const HAS_CTIME: u32 = 1 << 31;
/// Set in an inode's mode: its number follows.
const HAS_NUMBER: u32 = 1 << 30;

const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;
const CHAR_DEVICE: u8 = 4;
const BLOCK_DEVICE: u8 = 5;
const FIFO: u8 = 6;
const SOCKET: u8 = 7;

/// The version of a record in which an inode has an identity or none has.
pub(crate) fn version(has_identity: bool) -> u16 {
    if has_identity { IDENTITY_VERSION } else { FORMAT_VERSION }
}

fn encode_metadata(out: &mut Encoder, metadata: &Metadata, identity: &Identity) {
    let flags = identity.ctime().map_or(0, |_| HAS_CTIME) | identity.number().map_or(0, |_| HAS_NUMBER);
    out.u32(metadata.mode | flags).u32(metadata.uid).u32(metadata.gid).time(metadata.mtime);
    if let Some(ctime) = identity.ctime() {
        out.time(ctime);
    }
    if let Some(number) = identity.number() {
        out.u64(number);
    }
    out.count(metadata.xattrs.len());
    for (name, value) in &metadata.xattrs {
        out.string(name).string(value);
    }
}

fn decode_metadata(fields: &mut Decoder<'_>) -> Result<Metadata> {
    let (word, uid, gid, mtime) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.time()?);
    let mode = word & !(HAS_CTIME | HAS_NUMBER);
    if mode & !0o7777 != 0 {
        return Err(Error::corrupt(format!("mode {mode:o} has more than permission bits")));
    }
    let ctime = (word & HAS_CTIME != 0).then(|| fields.time()).transpose()?;
    let number = (word & HAS_NUMBER != 0).then(|| fields.u64()).transpose()?;
    let mut xattrs = Vec::new();
    for _ in 0..fields.count(8)? {
        xattrs.push((fields.string()?.to_vec(), fields.string()?.to_vec()));
    }
    Ok(Metadata { mode, uid, gid, mtime, xattrs, identity: Identity::new(ctime, number) })
}

/// Appends an inode as one with this identity.
pub(crate) fn encode_inode(out: &mut Encoder, inode: &Inode, identity: &Identity) {
    encode_metadata(out, &inode.metadata, identity);
    match &inode.node {
        Node::Directory(id) => out.u8(DIRECTORY).bytes(id.as_bytes()),
        Node::File(content) => {
            out.u8(FILE);
            content.encode_into(out);
            out
        }
        Node::Symlink(target) => out.u8(SYMLINK).string(target),
        Node::CharDevice(number) => out.u8(CHAR_DEVICE).u64(*number),
        Node::BlockDevice(number) => out.u8(BLOCK_DEVICE).u64(*number),
        Node::Fifo => out.u8(FIFO),
        Node::Socket => out.u8(SOCKET),
    };
}

/// Takes an inode.
pub(crate) fn decode_inode(fields: &mut Decoder<'_>) -> Result<Inode> {
    let metadata = decode_metadata(fields)?;
    let node = match fields.u8()? {
        DIRECTORY => Node::Directory(DirectoryId::from_bytes(fields.array()?)),
        FILE => Node::File(Content::decode_from(fields)?),
        SYMLINK => Node::Symlink(fields.string()?.to_vec()),
        CHAR_DEVICE => Node::CharDevice(fields.u64()?),
        BLOCK_DEVICE => Node::BlockDevice(fields.u64()?),
        FIFO => Node::Fifo,
        SOCKET => Node::Socket,
        unknown => return Err(Error::corrupt(format!("inode of unknown type {unknown}"))),
    };
    Ok(Inode { metadata, node })
}

/// Stores a tree's link table and root record.
pub(crate) fn encode_tree(writer: &mut Writer, root: &TreeRoot) -> Result<TreeId> {
    let table = match root.links.is_empty() {
        true => None,
        false => Some(blob::put(writer, &encode_links(&root.links))?),
    };
    let inode = Inode { metadata: root.metadata.clone(), node: Node::Directory(root.directory) };
    blob::put(writer, &encode_root(&inode, table.as_ref())).map(TreeId::from)
}

/// A root record: the root directory's inode and the link table's id.
pub(crate) fn encode_root(inode: &Inode, table: Option<&ChunkId>) -> Vec<u8> {
    let mut out = Encoder::new();
    out.bytes(ROOT_MAGIC).u16(version(inode.has_identity())).u16(0);
    out.u8(table.is_some().into()).bytes(table.unwrap_or(&ChunkId::from_bytes([0; 32])).as_bytes());
    encode_inode(&mut out, inode, &inode.metadata.identity);
    out.finish()
}

/// The inverse of [`encode_root`].
pub(crate) fn decode_root(bytes: &[u8]) -> Result<(Inode, Option<ChunkId>)> {
    let mut fields = Decoder::new(bytes);
    expect_versions(&mut fields, ROOT_MAGIC, "tree", IDENTITY_VERSION)?;
    fields.u16()?;
    let has_links = fields.u8()? != 0;
    let table = ChunkId::from_bytes(fields.array()?);
    let inode = decode_inode(&mut fields)?;
    fields.end()?;
    match inode.node {
        Node::Directory(_) => Ok((inode, has_links.then_some(table))),
        _ => Err(Error::corrupt("root of a tree is not a directory")),
    }
}

/// A link table's bytes.
pub(crate) fn encode_links(links: &BTreeMap<u64, LinkedInode>) -> Vec<u8> {
    let mut out = Encoder::new();
    let has_identity = links.values().any(|linked| linked.inode.has_identity());
    out.bytes(LINKS_MAGIC).u16(version(has_identity)).u16(0).count(links.len());
    for (number, linked) in links {
        out.u64(*number).u32(linked.count);
        encode_inode(&mut out, &linked.inode, &linked.inode.metadata.identity);
    }
    out.finish()
}

/// A link table.
pub(crate) fn decode_links(bytes: &[u8]) -> Result<BTreeMap<u64, LinkedInode>> {
    let mut fields = Decoder::new(bytes);
    expect_versions(&mut fields, LINKS_MAGIC, "link table", IDENTITY_VERSION)?;
    fields.u16()?;
    let mut links = BTreeMap::new();
    for _ in 0..fields.count(40)? {
        let (number, count) = (fields.u64()?, fields.u32()?);
        let inode = decode_inode(&mut fields)?;
        if matches!(inode.node, Node::Directory(_)) {
            return Err(Error::corrupt("link table holds a directory"));
        }
        links.insert(number, LinkedInode { count, inode });
    }
    fields.end()?;
    Ok(links)
}

impl Inode {
    /// BLAKE3 of everything but the identity: another one for other contents or attributes.
    pub fn digest(&self) -> [u8; 32] {
        let mut encoded = Encoder::new();
        encode_inode(&mut encoded, self, &Identity::NONE);
        *blake3::hash(&encoded.finish()).as_bytes()
    }
}
