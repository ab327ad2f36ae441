//! Private decoders of stored bytes, for the fuzz targets of `tests/fuzz`. Not an interface: it may change with every
//! version.
//!
//! Records with a checksum are passed as bodies and sealed here, so that the checksum does not hide the parser.

use crate::error::Result;
use crate::image;
use crate::records::snapshot::Snapshot;
use crate::records::superblock::Superblock;
use crate::tree;
use crate::tree::Directory;
use crate::wire::{Record, seal};
use crate::writer::blob::Blob;
use std::sync::Arc;

/// The body of a superblock.
///
/// # Errors
/// As the decoder.
pub fn superblock(body: &[u8]) -> Result<()> {
    let block = Superblock::decode(&seal(Record::Superblock, body))?;
    assert_eq!(Superblock::decode(&block.encode())?, block);
    Ok(())
}

/// The body of a snapshot record.
///
/// # Errors
/// As the decoder.
pub fn snapshot(body: &[u8]) -> Result<()> {
    let snapshot = Snapshot::decode_body(body)?;
    assert_eq!(Snapshot::decode_body(&snapshot.body())?, snapshot);
    Ok(())
}

/// A tree's root record.
///
/// # Errors
/// As the decoder.
pub fn tree_root(bytes: &[u8]) -> Result<()> {
    let (inode, table) = tree::format::decode_root(bytes)?;
    let encoded = tree::format::encode_root(&inode, table.as_ref());
    assert_eq!(tree::format::decode_root(&encoded)?, (inode, table));
    Ok(())
}

/// A link table.
///
/// # Errors
/// As the decoder.
pub fn link_table(bytes: &[u8]) -> Result<()> {
    let links = tree::format::decode_links(bytes)?;
    assert_eq!(tree::format::decode_links(&tree::format::encode_links(&links))?, links);
    Ok(())
}

/// A directory node, with all its entries.
///
/// # Errors
/// As the decoder.
pub fn directory(bytes: &[u8]) -> Result<()> {
    let directory = Directory::parse(Blob::Joined(Arc::new(bytes.to_vec())))?;
    for entry in directory.iter() {
        directory.get(&entry?.name)?;
    }
    directory.get(b"name")?;
    directory.position(b"name")?;
    Ok(())
}

/// The page table of a memory image.
///
/// # Errors
/// As the decoder.
pub fn image_table(bytes: &[u8]) -> Result<()> {
    image::format::decode(bytes).map(drop)
}
