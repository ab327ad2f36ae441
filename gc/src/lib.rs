//! The collector of Torpor: which snapshots stay ([`retention`]), what they need ([`mark`]), what happens to every pack
//! ([`plan`]), and the run that does it ([`collect`]). It works beside writers and readers, survives a crash at any step,
//! and deletes nothing when anything reachable is unreadable.
//!
//! The protocol with writers is in `store::collector`; ARCHITECTURE.md tells the life of a collection.

mod collect;
mod fence;
mod mark;
mod plan;
pub mod retention;

pub use collect::{CollectOptions, CollectReport, collect};
pub use plan::{Planned, Reason, Verdict};
pub use retention::{Policy, Retained, forget};
