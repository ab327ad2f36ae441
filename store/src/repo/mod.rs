//! An open store: its configuration, its refs, and how a chunk is found and read.
//!
//! - `store`          [`store::Store`]: the tiers, the index and the open domain
//! - `config`         location and use of a store
//! - `refs`           names of snapshots: read, moved, listed
//! - `resolve`        from a user's name to a snapshot
//! - `read`           one chunk; `fetch`: many at once
//! - `frame_cache`    decoded frames in memory; `disk_cache`: frames of slower tiers on flash
//! - `placement`      which tier a pack goes to

pub(crate) mod config;
pub(crate) mod disk_cache;
mod fetch;
mod frame_cache;
pub(crate) mod placement;
mod read;
pub(crate) mod refs;
mod resolve;
pub(crate) mod store;
