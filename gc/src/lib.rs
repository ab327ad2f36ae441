//! The collector of Torpor: which snapshots stay ([`retention`]), the packs they need ([`mark`]), the verdict on every
//! pack ([`plan`]), the run that applies it ([`collect`]), and frames rewritten into other packs ([`rewrite`]): sealed
//! under other keys ([`repack`]) or compressed better ([`recompress`]). It works beside writers and readers, survives a
//! crash at any step, and deletes nothing when anything reachable is unreadable.
//!
//! The protocol with writers is in `store::condemned`; ARCHITECTURE.md describes a collection.

mod bounded_cache;
mod collect;
mod fence;
mod mark;
mod pack_selection;
mod plan;
mod recompress;
mod repack;
mod report;
pub mod retention;
mod rewrite;
mod survey;
mod walk;

pub use collect::{CollectOptions, collect};
pub use plan::{Planned, Reason, Verdict};
pub use recompress::recompress;
pub use repack::repack_old_epochs;
pub use report::CollectReport;
pub use retention::{Policy, Retained, forget, forget_at};
pub use rewrite::{Pace, RewriteReport};
