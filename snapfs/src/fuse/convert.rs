//! Conversion between values of the FUSE library and ours.

use crate::caller::Caller;
use crate::change::{Attributes, NodeId};
use crate::errno::{Answer, Errno};
use crate::node::{FileKind, Stat};
use crate::overlay::SetTime;
use crate::times;
use fuser::{FileAttr, FileType, INodeNo, ReplyData, ReplyXattr, Request, TimeOrNow};
use std::time::UNIX_EPOCH;

pub(super) fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask }
}

pub(super) fn code(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn reply_data(answer: Answer<Vec<u8>>, reply: ReplyData) {
    match answer {
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(code(errno)),
    }
}

/// A size of 0 asks for the length of the value.
pub(super) fn reply_xattr(answer: Answer<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match answer {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(errno) => reply.error(code(errno)),
    }
}

pub(super) fn attr(stat: &Stat) -> FileAttr {
    let Attributes { mode, uid, gid, nlink, atime, mtime, ctime } = stat.attributes;
    FileAttr {
        ino: INodeNo(stat.id.0),
        size: stat.len_bytes,
        blocks: stat.blocks,
        atime: times::to_system(atime),
        mtime: times::to_system(mtime),
        ctime: times::to_system(ctime),
        crtime: UNIX_EPOCH,
        kind: kind(stat.kind),
        perm: mode as u16,
        nlink,
        uid,
        gid,
        // The kernel passes 32-bit numbers: 12 bits of the major, 20 of the minor.
        rdev: stat.rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

/// Node number 0 says that the name does not exist, and that the kernel may cache that.
pub(super) fn absent() -> FileAttr {
    FileAttr { ino: INodeNo(0), ..attr(&Stat::NOTHING) }
}

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::File => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

pub(super) fn time_to_set(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(times::from_library(time)),
    }
}
