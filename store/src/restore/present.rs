//! Examines an existing name where a repeated restore is to make a file. Only the complete file itself, with all its
//! attributes, stays; nothing is changed on an existing file.

use super::refusal::{Failure, Refusal};
use crate::error::Result;
use crate::host::held::{self, Handle, Host};
use crate::repo::store::Store;
use crate::tree::splice::is_zero;
use crate::tree::{ContentReader, Extent, Inode, Metadata, Node};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, SeekFrom, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The directory that every new file system contains.
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Bytes compared at once where a hole should be.
const PIECE_LEN: usize = 256 << 10;

/// The object that exists under a name.
pub(super) enum Present {
    Nothing,
    /// The file itself with all its bytes and attributes.
    Equal(Stat),
    /// Something else that can be removed.
    Other,
    /// A directory, which is not removed.
    Directory,
}

/// A file as it should be.
pub(super) struct Wanted<'a> {
    pub inode: &'a Inode,
    pub content: Option<&'a ContentReader>,
    /// Whether it may have several names.
    pub is_linked: bool,
}

/// Compares the object under a name; reads all bytes of a file whose metadata match.
pub(super) fn look(
    store: &Store,
    directory: &OwnedFd,
    name: &[u8],
    wanted: &Wanted<'_>,
) -> Result<Present, Failure> {
    let failed = |error| Failure::from(Refusal::of("cannot look at what is there", error));
    let pin = match held::pin_at(directory, name) {
        Ok(pin) => pin,
        Err(Errno::NOENT) => return Ok(Present::Nothing),
        Err(error) => return Err(failed(error)),
    };
    let stat = rustix::fs::fstat(&pin).map_err(failed)?;
    if held::file_type(&stat) == FileType::Directory {
        return Ok(Present::Directory);
    }
    let is_equal =
        looks_right(&stat, &pin, wanted) && holds_right(store, &stat, &pin, wanted).unwrap_or(false);
    Ok(if is_equal { Present::Equal(stat) } else { Present::Other })
}

fn looks_right(stat: &Stat, pin: &OwnedFd, wanted: &Wanted<'_>) -> bool {
    use std::os::fd::AsFd;
    let (found, kept) = (Metadata::of_inode(stat), &wanted.inode.metadata);
    let is_link = matches!(wanted.inode.node, Node::Symlink(_));
    let xattrs = || Host::new().xattrs(Handle::Pinned(pin.as_fd()));
    (found.uid, found.gid, found.mtime) == (kept.uid, kept.gid, kept.mtime)
        && (is_link || found.mode == kept.mode)
        && (wanted.is_linked || stat.st_nlink == 1)
        && {
            let found = xattrs();
            found.failed.is_empty() && found.xattrs == kept.xattrs
        }
}

fn holds_right(store: &Store, stat: &Stat, pin: &OwnedFd, wanted: &Wanted<'_>) -> std::io::Result<bool> {
    let kind = held::file_type(stat);
    Ok(match (&wanted.inode.node, wanted.content) {
        (Node::File(_), Some(content)) if kind == FileType::RegularFile => {
            stat.st_size as u64 == content.len_bytes()
                && has_bytes(store, &File::from(held::open_pinned(pin)?), content)?
        }
        (Node::Symlink(target), _) => kind == FileType::Symlink && held::read_link(pin)? == *target,
        (Node::CharDevice(number), _) => kind == FileType::CharacterDevice && stat.st_rdev == *number,
        (Node::BlockDevice(number), _) => kind == FileType::BlockDevice && stat.st_rdev == *number,
        (Node::Fifo, _) => kind == FileType::Fifo,
        (Node::Socket, _) => kind == FileType::Socket,
        (Node::File(_) | Node::Directory(_), _) => false,
    })
}

/// Whether a file of the right length has these bytes; chunks are compared by id and not fetched.
fn has_bytes(store: &Store, file: &File, content: &ContentReader) -> std::io::Result<bool> {
    let mut buffer = Vec::new();
    if let Some(bytes) = content.inline_bytes() {
        buffer.resize(bytes.len(), 0);
        file.read_exact_at(&mut buffer, 0)?;
        return Ok(buffer == bytes);
    }
    for (start, extent) in content.extents() {
        let is_same = match extent {
            Extent::Chunk { id, len_bytes } => {
                buffer.resize(*len_bytes as usize, 0);
                file.read_exact_at(&mut buffer, *start)?;
                store.domain().chunk_id(&buffer) == *id
            }
            Extent::Hole { len_bytes } => is_blank(file, *start, start + len_bytes, &mut buffer)?,
        };
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether all bytes of a range are zero; holes that the file system reports are not read.
fn is_blank(file: &File, mut at: u64, end: u64, buffer: &mut Vec<u8>) -> std::io::Result<bool> {
    while at < end {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(true),
            Err(Errno::INVAL) => at, // it supports no holes
            Err(error) => return Err(error.into()),
        };
        let len = end.saturating_sub(at).min(PIECE_LEN as u64) as usize;
        buffer.resize(len, 0);
        file.read_exact_at(buffer, at)?;
        if !is_zero(buffer) {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}
