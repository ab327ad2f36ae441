//! Repacking for a key rotation: frames sealed under old keys of a domain are sealed again into new packs.

use crate::rewrite::{Due, Pace, RewriteReport, packs_by_tier, rewrite};
use std::collections::HashSet;
use store::COLLECTOR_LOCK;
use store::{PackId, Progress, Result, Store};

/// Reseals the frames sealed under old keys of the domain that `store` is seen from. Needs the rewriter's and the
/// collector's lock of this host. Readers and writers go on meanwhile.
///
/// # Errors
/// `Conflict` during a rewrite or collection; those of the store. Packs condemned by then are intact elsewhere.
pub fn repack_old_epochs(store: &Store, progress: &dyn Progress) -> Result<RewriteReport> {
    store.check_may_collect()?;
    let _lock = store.state().lock(COLLECTOR_LOCK, "repack")?;
    let (_, current) = store.key_epochs()?;
    let condemned: HashSet<PackId> = store.condemned()?.into_iter().flat_map(|list| list.packs).collect();
    let mut due = Vec::new();
    for (tier, pack, len_bytes) in packs_by_tier(store)? {
        if !condemned.contains(&pack) && store.key_epoch_of(pack)?.is_some_and(|epoch| epoch != current) {
            due.push(Due { tier, level: pack.level(), pack, len_bytes });
        }
    }
    due.sort_by_key(|due| (due.tier, due.level));
    let pace = Pace { rate: None, is_stopped: &|| false, progress };
    rewrite(store, &due, &pace, |writer, kind, frame| writer.put_resealed(kind, frame.to_vec()))
}
