//! Operations on a whole store.
//!
//! - `verify_pack` every byte of one pack
//! - `reachable`   the chunks below a tree or an image
//! - `domains`     creating, rotating, destroying one; `all_domains`: opening them all
//! - `check`       the store against its own records, and its index made again
//! - `mover`       packs between tiers
//! - `stats`       sizes

pub(crate) mod all_domains;
pub(crate) mod check;
pub(crate) mod domains;
pub(crate) mod mover;
pub(crate) mod reachable;
pub(crate) mod stats;
pub mod verify_pack;
