//! The collector of Torpor: which snapshots stay ([`retention`]), what they need ([`mark`]), what happens to every pack
//! ([`plan`]), the run that does it ([`collect`]), and frames that go into other packs ([`rewrite`]): sealed under other keys
//! ([`repack`]) or compressed better ([`recompress`]). It works beside writers and readers, survives a crash at any step, and
//! deletes nothing when anything reachable is unreadable.
//!
//! The protocol with writers is in `store::condemned`; ARCHITECTURE.md tells the life of a collection.

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
