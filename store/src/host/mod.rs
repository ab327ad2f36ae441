//! This host's file system and the store's data on it: files, maps, locks, local state.
//!
//! - `disk`         the file system below local tiers and local state, which tests replace
//! - `direct`       writing past the page cache
//! - `map`          read-only maps: the one place of this crate with `unsafe`
//! - `object`       the bytes of an object, read or mapped
//! - `held`         files below a directory that is held open, no link followed
//! - `lock`         file locks that name their holder
//! - `state`        local state: locks, uppers, sockets, derived tables
//! - `reserve`      space reserved for a full disk
//! - `scratch_file` files without a name
//! - `derived`      tables that can be made again, in sled

pub(crate) mod derived;
mod direct;
pub mod disk;
pub(crate) mod held;
pub(crate) mod lock;
pub(crate) mod map;
pub(crate) mod object;
pub(crate) mod reserve;
pub(crate) mod scratch_file;
pub(crate) mod state;
