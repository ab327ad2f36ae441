//! Parts that requests of several kinds share: changes that may have to wait, and their answers.

use super::convert::{attr, code, node};
use super::{Adapter, FOREVER, GENERATION};
use crate::caller::Caller;
use crate::change::NewBody;
use crate::errno::Answer;
use crate::node::Stat;
use crate::overlay::Listed;
use fuser::{INodeNo, ReplyEmpty, ReplyEntry, ReplyWrite};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Bytes that a freeze stores again after a change of a few bytes: the one or two chunks that they are in.
const CHANGE_WEIGHT: u64 = 128 << 10;

impl Adapter {
    /// Makes a change: now, or in a thread of its own once changes are let in again.
    pub(super) fn change(&self, change: impl FnOnce(&Self) + Send + 'static) {
        self.change_bytes(0, change);
    }

    /// As [`Self::change`], for a change that writes so many bytes to a file.
    pub(super) fn change_bytes(&self, len_bytes: u64, change: impl FnOnce(&Self) + Send + 'static) {
        let adapter = self.clone();
        let weight_bytes = len_bytes.saturating_add(CHANGE_WEIGHT);
        if self.overlay.gate().run(weight_bytes, move || change(&adapter)) {
            self.after_change();
        }
    }

    /// Work after every change, once the application has its answer.
    pub(super) fn after_change(&self) {
        self.overlay.compact_if_long();
    }

    /// Writes, and answers.
    pub(super) fn answer_write(
        &self,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        drops_set_id: bool,
        reply: ReplyWrite,
    ) {
        match self.overlay.write(node(ino), offset, data, drops_set_id) {
            Ok(mode_changed) => {
                if mode_changed {
                    self.mode_changed(ino);
                }
                reply.written(data.len() as u32);
            }
            Err(errno) => reply.error(code(errno)),
        }
    }

    /// Has the kernel read the mode again: it uses its own copy when it executes a file.
    pub(super) fn mode_changed(&self, node: INodeNo) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(node, -1, 0)
        {
            tracing::debug!(%error, "the kernel keeps an old mode until it asks by itself");
        }
    }

    /// Makes a node, and answers.
    pub(super) fn make(
        &self,
        (parent, name): (INodeNo, &OsStr),
        mode: u32,
        caller: Caller,
        body: NewBody,
        reply: ReplyEntry,
    ) {
        let name = bytes(name);
        self.change(move |this| {
            this.reply_made(this.overlay.make(node(parent), &name, mode, caller, body), reply);
        });
    }

    /// Adds the lines of a directory from a cookie on until `add` returns that the reply is full. The next request
    /// returns an error behind the first line.
    pub(super) fn each_line(
        &self,
        ino: INodeNo,
        cookie: u64,
        mut add: impl FnMut(&Listed) -> bool,
    ) -> Answer<()> {
        let mut next = cookie;
        loop {
            let lines = match self.overlay.list(node(ino), next) {
                Ok(lines) if lines.is_empty() => return Ok(()),
                Ok(lines) => lines,
                Err(_) if next != cookie => return Ok(()),
                Err(errno) => return Err(errno),
            };
            for line in &lines {
                if add(line) {
                    return Ok(());
                }
                next = line.next;
            }
        }
    }

    /// Answers with a new node.
    pub(super) fn reply_made(&self, made: Answer<Stat>, reply: ReplyEntry) {
        match made {
            Ok(stat) => reply.entry(&FOREVER, &attr(&stat), GENERATION),
            Err(errno) => reply.error(code(errno)),
        }
    }

    /// Answers that a change is done.
    pub(super) fn reply_empty(&self, done: Answer<()>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
        }
    }
}

/// A name that may have to wait.
pub(super) fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}
