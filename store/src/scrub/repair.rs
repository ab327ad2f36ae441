//! Repairing damaged objects. Order, and why: the intact bytes are made and verified in memory, the damaged ones are
//! durable in quarantine on the same tier, and only then does the object change, in one step from the old bytes to the
//! new. Damaged bytes are never deleted, so a run that ends anywhere leaves at least what it found.

use crate::error::{Error, Kind, OptionalExt, Result};
use crate::host::lock::FileLock;
use crate::host::lock::{AUTHOR_LOCK, REWRITER_LOCK};
use crate::id::PackId;
use crate::operations::verify_pack::PackCopy;
use crate::records::lost_frames::{self, DamagedPack};
use crate::repo::store::Store;
use crate::tier::Tier;
use std::collections::BTreeMap;

/// Prefix of the keys of damaged bytes.
const QUARANTINE: &str = "quarantine/";
/// Suffix of the key of staged intact bytes.
const STAGED: &str = ".whole";

/// Copies the bytes of a damaged object to quarantine on its tier, once. Returns their key.
pub(super) fn keep_aside(tier: &dyn Tier, key: &str, bytes: &[u8]) -> Result<String> {
    for number in 0_u32.. {
        let aside = format!("{QUARANTINE}{key}.{number}");
        if tier.put_if_absent(&aside, bytes)? || *tier.get(&aside)? == *bytes {
            return Ok(aside);
        }
    }
    Err(Error::new(Kind::Full, "quarantine has no number left").object(key))
}

/// The key of intact bytes staged for a copy that cannot be replaced in one step.
pub(super) fn staged_key(pack: PackId) -> String {
    format!("{QUARANTINE}{}{STAGED}", pack.key())
}

/// Replaces a damaged copy with intact bytes. Returns the key under which the damaged bytes are kept.
///
/// # Errors
/// `Conflict` while another process writes, or when the copy changed since it was read; `Corrupt` when the tier returns
/// other bytes than were stored; as the tier.
pub(super) fn replace(
    store: &Store,
    tier: &dyn Tier,
    id: PackId,
    copy: &PackCopy,
    whole: &[u8],
) -> Result<String> {
    // A writer that makes room moves packs: it must not move the damaged copy while the intact one replaces it.
    let _locks = lock_writers(store)?;
    if store.is_shared() && !tier.guarantees()?.compare_and_swap {
        store.check_may_collect()?;
    }
    let key = id.key();
    let aside = keep_aside(tier, &key, &copy.bytes)?;
    let replaced = match copy.unreadable.is_empty() {
        true => tier.compare_and_swap(&key, Some(&copy.bytes), whole)?,
        // An unreadable copy cannot be compared. The intact bytes are staged before its name is removed.
        false => {
            tier.put_if_absent(&staged_key(id), whole)?;
            expect_bytes(tier, &staged_key(id), whole)?;
            tier.delete(&key)?;
            tier.put_if_absent(&key, whole)?
        }
    };
    if replaced && !copy.unreadable.is_empty() {
        expect_bytes(tier, &key, whole)?;
        tier.delete(&staged_key(id))?;
    }
    if !replaced {
        return Err(Error::new(Kind::Conflict, "the copy was changed or moved meanwhile")
            .object(&key)
            .advice("run it again"));
    }
    expect_bytes(tier, &key, whole)?;
    tracing::info!(pack = %id, tier = tier.describe(), aside, "put together again");
    Ok(aside)
}

/// Packs with intact bytes staged by an interrupted repair, and on which tiers.
///
/// # Errors
/// As the tiers.
pub(super) fn staged(store: &Store) -> Result<BTreeMap<PackId, Vec<usize>>> {
    let mut staged: BTreeMap<PackId, Vec<usize>> = BTreeMap::new();
    for (number, tier) in store.tiers().into_iter().enumerate() {
        for info in tier.list(QUARANTINE)? {
            let key = info.key.strip_prefix(QUARANTINE).and_then(|key| key.strip_suffix(STAGED));
            if let Some(pack) = key.and_then(PackId::from_key) {
                staged.entry(pack).or_default().push(number);
            }
        }
    }
    Ok(staged)
}

/// Stores intact bytes where no copy is left, or an interrupted repair removed it.
///
/// # Errors
/// As [`replace`].
pub(super) fn put_back(store: &Store, tier: &dyn Tier, id: PackId, whole: &[u8]) -> Result<()> {
    let _locks = lock_writers(store)?;
    tier.put_if_absent(&id.key(), whole)?;
    expect_bytes(tier, &id.key(), whole)?;
    tier.delete(&staged_key(id))
}

/// Takes the locks of all kinds of writers.
fn lock_writers(store: &Store) -> Result<[FileLock; 2]> {
    Ok([store.state().lock(AUTHOR_LOCK, "scrub")?, store.state().lock(REWRITER_LOCK, "scrub")?])
}

fn expect_bytes(tier: &dyn Tier, key: &str, bytes: &[u8]) -> Result<()> {
    match *tier.get(key)? == *bytes {
        true => Ok(()),
        false => Err(Error::corrupt("the tier gives other bytes than it was given")
            .object(format!("{key} in {}", tier.describe()))),
    }
}

/// Records which frames of a pack are lost, or that none is any more.
///
/// # Errors
/// `Conflict` when another process changed the record; as the tier.
pub(super) fn note_lost(metadata_tier: &dyn Tier, pack: PackId, offsets: &[u64]) -> Result<()> {
    let key = lost_frames::key_of(pack);
    let current = metadata_tier.get(&key).optional()?;
    if offsets.is_empty() {
        return if current.is_some() { metadata_tier.delete(&key) } else { Ok(()) };
    }
    let record = DamagedPack { pack, offsets: offsets.to_vec() }.encode();
    if let Some(current) = &current {
        if **current == *record {
            return Ok(());
        }
        if DamagedPack::decode(current).is_err() {
            keep_aside(metadata_tier, &key, current)?;
        }
    }
    match metadata_tier.compare_and_swap(&key, current.as_deref(), &record)? {
        true => Ok(()),
        false => Err(Error::new(Kind::Conflict, "another process records the lost frames").object(key)),
    }
}
