//! The collector of Torpor: which snapshots stay ([`retention`]), what they need ([`mark`]), what happens to every pack
//! ([`plan`]), the run that does it ([`collect`]), and frames that go into other packs ([`rewrite`]): sealed under other keys
//! ([`repack`]) or compressed better ([`recompress`]). It works beside writers and readers, survives a crash at any step, and
//! deletes nothing when anything reachable is unreadable.
//!
//! The protocol with writers is in `store::condemned`; ARCHITECTURE.md tells the life of a collection.

mod collect;
mod fence;
mod mark;
mod memo;
mod places;
mod plan;
mod recompress;
mod repack;
pub mod retention;
mod rewrite;
mod walk;

pub use collect::{CollectOptions, CollectReport, collect};
pub use plan::{Planned, Reason, Verdict};
pub use recompress::recompress;
pub use repack::repack_old_epochs;
pub use retention::{Policy, Retained, forget, forget_at};
pub use rewrite::{Pace, RewriteReport};
