//! Operations on an entire store.
//!
//! - `verify_pack` every byte of one pack
//! - `reachable`   the chunks below a tree or an image
//! - `domains`     creating, rotating, destroying domains; `domain_inventory`: opening all; `key_epochs`: of one
//! - `check`       the store against its own records, and rebuilding its index
//! - `mover`       packs between tiers
//! - `stats`       sizes

pub(crate) mod check;
pub(crate) mod domain_inventory;
pub(crate) mod domains;
pub(crate) mod key_epochs;
pub(crate) mod mover;
pub(crate) mod reachable;
pub(crate) mod stats;
pub mod verify_pack;
