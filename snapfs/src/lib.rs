//! snapfs: a snapshot of the store as a read-write directory, and back.
//!
//! [`mount()`] serves a snapshot's tree through FUSE; changes go into a local upper, block by block, journaled. A
//! freeze turns the changes into a new snapshot and rebases the mount on it. Start reading at `overlay` for the file
//! system itself (no kernel needed), at `fuse` for the protocol, at `state` for the state of a mount in memory, at
//! `journal` for its state on disk. SEMANTICS.md lists the POSIX promises that are kept, and the journal's format.

mod acl;
mod attachment;
mod caller;
mod change;
pub mod control;
mod errno;
mod extent;
mod freeze;
mod fuse;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod identity;
mod journal;
mod lower;
mod mount;
mod mountinfo;
mod node;
mod overlay;
mod panics;
mod passes;
mod ranges;
mod rebase;
mod slots;
mod state;
#[cfg(test)]
mod testing;
mod times;
mod upper;
mod uses;

pub use attachment::check_mountpoint;
pub use control::Status;
pub use freeze::FreezeReport;
pub use mount::{Mount, MountOptions, mount};
pub use overlay::base_of;
