//! Rewrites frames into other packs, batch by batch, beside readers, writers and the collector: sealed under other keys
//! ([`crate::repack`]) or compressed better ([`crate::recompress`]).
//!
//! Order, and why: new packs durable, every new frame read back and every chunk of the old packs found among them,
//! index run of them, and only then are the old packs condemned, as by a run of the collector. Deleting is left to
//! later runs, which see that nothing needs them: a chunk counts in a pack that is not condemned. A rewrite that ends
//! early leaves no chunk in fewer packs than before; new packs that were refused are condemned.

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroU64;
use store::Object;
use store::condemned::{self, Condemned};
use store::keys;
use store::pack::{Frame, FrameHeader, PackDirectory, PackKind, directory_of};
use store::{ChunkId, Error, Kind, PackId, Progress, Result, Store, Throttle, Work, Writer};

/// Bytes of packs rewritten before they are condemned: the extra space taken meanwhile.
const BATCH_BYTES: u64 = 256 << 20;

/// A pack to be rewritten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    /// Number of the tier where it lies and where its chunks go.
    pub tier: usize,
    /// Level of the new packs; 0 leaves frames as they are compressed.
    pub level: i32,
    /// The pack.
    pub pack: PackId,
    /// Its length.
    pub len_bytes: u64,
}

/// Result of a rewrite.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RewriteReport {
    /// Packs whose chunks, except unreadable deltas, lie in new packs; condemned. With their lengths in bytes.
    pub packs: Vec<(PackId, u64)>,
    /// Their frames that lie in new packs.
    pub frames: u64,
    /// Bytes of the new packs.
    pub new_bytes: u64,
    /// Packs that could not be read completely, and why: they stay.
    pub unreadable: Vec<(PackId, String)>,
}

/// Rate and control of a rewrite.
pub struct Pace<'a> {
    /// Bytes of old packs a second; `None`: unlimited.
    pub rate: Option<NonZeroU64>,
    /// Asked between packs whether to end early.
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Receives progress.
    pub progress: &'a dyn Progress,
}

/// Rewrites packs: `put` hands a frame of the pack, as stored, to the writer.
///
/// # Errors
/// `Conflict` during another rewrite; those of the store. Packs condemned by then have intact copies elsewhere.
pub(crate) fn rewrite(
    store: &Store,
    due: &[Due],
    pace: &Pace<'_>,
    put: impl Fn(&mut Writer, PackKind, &[u8]) -> Result<()>,
) -> Result<RewriteReport> {
    let mut report = RewriteReport::default();
    let mut throttle = Throttle::new(pace.rate);
    pace.progress.begin("rewrite", Work::Bytes(due.iter().map(|due| due.len_bytes).sum()));
    for alike in due.chunk_by(|one, other| (one.tier, one.level) == (other.tier, other.level)) {
        let mut rest = alike;
        while !rest.is_empty() && !(pace.is_stopped)() {
            let mut writer = store.rewriter(alike[0].tier, alike[0].level, "rewrite")?;
            let (mut chunks, mut packs, mut read_bytes) = (HashSet::new(), Vec::new(), 0);
            while let Some((due, others)) = rest.split_first().filter(|_| read_bytes < BATCH_BYTES) {
                if (pace.is_stopped)() {
                    break;
                }
                rest = others;
                if store.tiers()[due.tier].len_bytes(&due.pack.key())?.is_none() {
                    continue; // collected or moved meanwhile
                }
                match Whole::read(store, due.pack) {
                    Ok(pack) => {
                        let kind = pack.directory.kind;
                        pack.frames().try_for_each(|frame| put(&mut writer, kind, frame))?;
                        report.frames += pack.frames().count() as u64;
                        report.packs.push((due.pack, due.len_bytes));
                        packs.push(due.pack);
                        chunks.extend(pack.chunks());
                    }
                    Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Invalid | Kind::NotFound) => {
                        report.unreadable.push((due.pack, error.to_string()));
                    }
                    Err(error) => return Err(error),
                }
                read_bytes += due.len_bytes;
                pace.progress.advance(due.len_bytes);
                throttle.pass(due.len_bytes);
            }
            report.new_bytes += replace(store, writer, chunks, packs)?;
        }
    }
    pace.progress.end();
    Ok(report)
}

/// Indexes the new packs when all `chunks` are found in them, and condemns the old ones; else condemns the new ones, so
/// that they are not taken for the better copy. Returns the bytes of the new packs.
fn replace(
    store: &Store,
    mut writer: Writer,
    chunks: HashSet<(ChunkId, bool)>,
    packs: Vec<PackId>,
) -> Result<u64> {
    let mut refused = Vec::new();
    let published = writer
        .publish(|written| expect_in(store, written, chunks).inspect_err(|_| refused = written.to_vec()));
    if let Err(error) = published {
        if let Err(also) = condemn(store, refused) {
            tracing::warn!(error = %also, "new packs that were refused are not condemned; run `snapctl scrub`");
        }
        return Err(error);
    }
    condemn(store, packs)?;
    Ok(writer.stats().stored_bytes)
}

/// Reads new packs back, and finds all chunks in them.
fn expect_in(store: &Store, packs: &[PackId], mut chunks: HashSet<(ChunkId, bool)>) -> Result<()> {
    for pack in packs {
        // A delta whose base was collected meanwhile is there, too.
        for entry in &Whole::read(store, *pack)?.directory.entries {
            chunks.remove(&(entry.id, entry.is_delta()));
        }
    }
    match chunks.iter().next() {
        None => Ok(()),
        Some((id, _)) => {
            let what = "a chunk did not get into a new pack; the old packs stay";
            Err(Error::new(Kind::Internal, what).object(id))
        }
    }
}

/// Condemns packs: the collector deletes them once unneeded.
fn condemn(store: &Store, packs: Vec<PackId>) -> Result<()> {
    if packs.is_empty() {
        return Ok(());
    }
    let epoch = loop {
        match condemned::raise_epoch(store.metadata_tier()) {
            Err(error) if error.kind() == Kind::Conflict => {} // a collector raised it just now
            raised => break raised?,
        }
    };
    Condemned { epoch, packs, ..Condemned::default() }.publish(store.metadata_tier()).map(drop)
}

/// A pack with all frames verified, except unneeded, unreadable deltas whose base was collected.
struct Whole {
    directory: PackDirectory,
    bytes: Object,
    /// Numbers of the frames that are such deltas.
    dead: BTreeSet<u32>,
}

impl Whole {
    /// Reads it from the first tier with an intact copy.
    fn read(store: &Store, pack: PackId) -> Result<Self> {
        let mut failure: Option<Error> = None;
        for tier in store.tiers() {
            match tier.get(&pack.key()).and_then(|bytes| Self::verify(store, pack, bytes)) {
                Ok(whole) => return Ok(whole),
                Err(error) if error.kind() == Kind::NotFound => failure = failure.or(Some(error)),
                Err(error) => failure = Some(error.object(pack)),
            }
        }
        Err(failure.unwrap_or_else(|| Error::new(Kind::NotFound, "no such pack").object(pack)))
    }

    fn verify(store: &Store, pack: PackId, bytes: Object) -> Result<Self> {
        let directory = directory_of(pack, &bytes)?;
        let mut whole = Self { directory, bytes, dead: BTreeSet::new() };
        let (mut dead, mut gone) = (BTreeSet::new(), HashSet::new());
        for (frame, number) in whole.frames().zip(0..) {
            Frame::verify_stored(frame)?;
            let base = FrameHeader::decode(frame)?.base;
            if base.is_some_and(|base| gone.contains(&base)) {
                dead.insert(number);
                continue;
            }
            match store.decode_frame(frame) {
                Ok(decoded) if whole.directory.names(number, &decoded) => {}
                Ok(_) => return Err(Error::corrupt("frame holds other chunks than the pack directory says")),
                // The index has already looked for new runs and packs.
                Err(error) => match base.filter(|base| is_nowhere(store, base)) {
                    Some(base) if error.kind() == Kind::NotFound => {
                        gone.insert(base);
                        dead.insert(number);
                    }
                    _ => return Err(error),
                },
            }
        }
        whole.dead = dead;
        Ok(whole)
    }

    /// The frames, as they are stored.
    fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let alive = self.directory.frames.iter().zip(0..).filter(|(_, number)| !self.dead.contains(number));
        alive.map(|(extent, _)| &self.bytes[extent.offset as usize..][..extent.len_bytes as usize])
    }

    /// The chunks in them, and of each whether it is a delta.
    fn chunks(&self) -> impl Iterator<Item = (ChunkId, bool)> {
        let alive = self.directory.entries.iter().filter(|entry| !self.dead.contains(&entry.frame));
        alive.map(|entry| (entry.id, entry.is_delta()))
    }
}

/// Whether no pack holds the chunk other than as a delta.
fn is_nowhere(store: &Store, id: &ChunkId) -> bool {
    store.index().find(id).iter().all(|place| place.is_delta())
}

/// The packs that lie on some tier, each with the number of the fastest that has it. Lists all tiers.
///
/// # Errors
/// As the tiers.
pub(crate) fn packs_by_tier(store: &Store) -> Result<Vec<(usize, PackId, u64)>> {
    let mut seen = HashSet::new();
    let mut packs = Vec::new();
    for (number, tier) in store.tiers().iter().enumerate() {
        for info in tier.list(keys::PACKS)? {
            if let Some(id) = PackId::from_key(&info.key).filter(|id| seen.insert(*id)) {
                packs.push((number, id, info.len_bytes));
            }
        }
    }
    Ok(packs)
}
