//! Small records of a store, each sealed with a checksum: one file for each kind.
//!
//! - `superblock`  identity and features of a store
//! - `reference`   a name and its snapshots
//! - `snapshot`    a tree or image at one moment
//! - `sealed`      snapshots and refs as a domain stores them
//! - `session`     roots that the collector must respect besides refs
//! - `condemned`   packs that the collector is about to delete, and its epoch
//! - `lost_frames` frames of a pack that have no intact copy

pub mod condemned;
pub mod lost_frames;
pub(crate) mod reference;
pub(crate) mod sealed;
pub mod session;
pub(crate) mod snapshot;
pub(crate) mod superblock;
