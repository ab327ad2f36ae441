//! Small records of a store, each sealed with a checksum: one file for each kind.
//!
//! - `superblock`  what a store is
//! - `snapshot`    a tree or image at one moment
//! - `session`     what the collector must respect besides refs
//! - `condemned`   packs that the collector is about to delete, and its epoch
//! - `lost_frames` frames of a pack that have no intact copy

pub mod condemned;
pub mod lost_frames;
pub mod session;
pub(crate) mod snapshot;
pub(crate) mod superblock;
