//! Recompression in the background: packs moved to a tier are rewritten at that tier's level, in longer frames where
//! the tier is slow. New data is compressed fast, lasting data well.

use crate::rewrite::{Due, Pace, RewriteReport, packs_by_tier, rewrite};
use std::collections::HashSet;
use std::time::Duration;
use store::COLLECTOR_LOCK;
use store::pack::{FrameHeader, PackKind, read_kind};
use store::{Error, Kind, PackId, Result, Store, clock};

/// Recompresses packs of the domain that `store` is seen from: those on a tier with a level, and on no faster one, that
/// were made at a lower level. Metadata stays as it is: it is read piece by piece. With `unread`, packs read more
/// recently than that stay as well. Needs the rewriter's lock of this host; all else goes on meanwhile.
///
/// # Errors
/// `Invalid` when no tier has a level; `Conflict` during another rewrite; those of the store. Packs condemned by then
/// have intact copies elsewhere.
pub fn recompress(store: &Store, unread: Option<Duration>, pace: &Pace<'_>) -> Result<RewriteReport> {
    store.check_may_collect()?;
    // Without compare-and-swap nothing else serializes raising the epoch.
    let swaps = store.metadata_tier().guarantees()?.compare_and_swap;
    let _lock = (!swaps).then(|| store.state().lock(COLLECTOR_LOCK, "recompress")).transpose()?;
    let due = due(store, unread)?;
    rewrite(store, &due, pace, |writer, kind, frame| match FrameHeader::decode(frame)?.base {
        // A page table depends on it being a delta.
        Some(_) => writer.put_resealed(kind, frame.to_vec()),
        None => writer.put_recompressed(&store.decode_frame(frame)?),
    })
}

/// The packs to be recompressed, in the order they were written.
fn due(store: &Store, unread: Option<Duration>) -> Result<Vec<Due>> {
    let tiers = store.placement().tiers();
    if tiers.iter().all(|tier| tier.level.is_none()) {
        return Err(Error::invalid("no tier has a level to recompress at")
            .advice("write `levels.hot`, `levels.warm` or `levels.cold` in the configuration"));
    }
    let condemned: HashSet<PackId> = store.condemned()?.into_iter().flat_map(|list| list.packs).collect();
    let mut due = Vec::new();
    for (number, pack, len_bytes) in packs_by_tier(store)? {
        let tier = &tiers[number];
        let Some(level) = tier.level.filter(|level| pack.level() < *level) else { continue };
        if condemned.contains(&pack) || was_read(store, number, pack, unread)? {
            continue;
        }
        let is_ours = read_kind(&*tier.tier, pack)
            .and_then(|kind| Ok(kind == PackKind::Data && store.owns_pack(pack)?));
        match is_ours {
            Ok(true) => due.push(Due { tier: number, level, pack, len_bytes }),
            Ok(false) => {}
            Err(error) if error.kind() == Kind::NotFound => {} // moved or collected since it was listed
            // Scrub reports a damaged header.
            Err(error) if error.kind() == Kind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    due.sort_by_key(|due| (due.tier, due.level, due.pack));
    Ok(due)
}

/// Whether a pack was read too recently to be due. A tier that does not record reads counts as unread.
fn was_read(store: &Store, tier: usize, pack: PackId, unread: Option<Duration>) -> Result<bool> {
    let Some(unread) = unread else { return Ok(false) };
    let read = store.placement().tiers()[tier].tier.last_used(&pack.key())?;
    Ok(read.is_some_and(|read| read.seconds.saturating_add_unsigned(unread.as_secs()) > clock::now().seconds))
}
