//! Frames into other packs, batch by batch, beside readers, writers and the collector: sealed under other keys
//! ([`crate::repack`]) or compressed better ([`crate::recompress`]).
//!
//! Order, and why: new packs durable, index run of them, every new frame read back and every chunk of the old packs found
//! among them, and only then are the old packs condemned, like by a run of the collector. Deleting is left to later runs,
//! which see that nothing needs them: a chunk that is in a pack not condemned is counted there. Whatever ends a rewrite
//! early leaves packs that the collector takes, and no chunk in fewer places than before.

use std::collections::HashSet;
use std::num::NonZeroU64;
use store::collector::{self, Condemned};
use store::pack::{Frame, PackDirectory, directory_of};
use store::tier::Object;
use store::{ChunkId, Error, Kind, PackId, Progress, Result, Store, Throttle, Work, Writer};

/// Packs that are rewritten before they are condemned, in bytes: so much more space is taken meanwhile.
const BATCH_BYTES: u64 = 256 << 20;

/// A pack to be rewritten.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// Number of the tier where it lies and where its chunks go.
    pub tier: usize,
    /// Level of the new packs; 0 leaves frames as they are compressed.
    pub level: i32,
    /// The pack.
    pub pack: PackId,
    /// Its length.
    pub len_bytes: u64,
}

/// What a rewrite did.
#[derive(Clone, Debug, Default)]
pub struct RewriteReport {
    /// Packs whose chunks lie in new packs; condemned. With their lengths in bytes.
    pub packs: Vec<(PackId, u64)>,
    /// Frames that were in them.
    pub frames: u64,
    /// Bytes of the new packs.
    pub new_bytes: u64,
    /// Packs that could not be read whole, and why: they stay.
    pub unreadable: Vec<(PackId, String)>,
}

/// How a rewrite goes on.
pub struct Pace<'a> {
    /// Bytes of old packs a second; `None`: as fast as it goes.
    pub rate: Option<NonZeroU64>,
    /// Asked between packs whether to end early.
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Who watches.
    pub progress: &'a dyn Progress,
}

/// Rewrites packs: `put` gives a frame of the pack to the writer, as it is stored.
///
/// # Errors
/// `Conflict` while another rewrite is at work; those of the store. What was condemned by then is whole elsewhere.
pub fn rewrite(
    store: &Store,
    due: &[Due],
    pace: &Pace<'_>,
    put: impl Fn(&mut Writer, &PackDirectory, &[u8]) -> Result<()>,
) -> Result<RewriteReport> {
    let mut report = RewriteReport::default();
    let mut throttle = Throttle::new(pace.rate);
    pace.progress.begin("rewrite", Work::Bytes(due.iter().map(|due| due.len_bytes).sum()));
    for alike in due.chunk_by(|one, other| (one.tier, one.level) == (other.tier, other.level)) {
        let mut rest = alike;
        while !rest.is_empty() && !(pace.is_stopped)() {
            let mut writer = store.rewriter(alike[0].tier, alike[0].level, "rewrite")?;
            let (mut directories, mut read_bytes) = (Vec::new(), 0);
            while let Some((due, others)) = rest.split_first().filter(|_| read_bytes < BATCH_BYTES) {
                if (pace.is_stopped)() {
                    break;
                }
                rest = others;
                if store.tiers()[due.tier].len_bytes(&due.pack.key())?.is_none() {
                    continue; // collected or moved meanwhile
                }
                match whole_pack(store, due.pack) {
                    Ok((directory, bytes)) => {
                        frames(&directory, &bytes)
                            .try_for_each(|frame| put(&mut writer, &directory, frame))?;
                        report.frames += directory.frames.len() as u64;
                        report.packs.push((due.pack, due.len_bytes));
                        directories.push(directory);
                    }
                    // Of a delta that nobody needs any more the base may be gone.
                    Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Invalid | Kind::NotFound) => {
                        report.unreadable.push((due.pack, error.to_string()));
                    }
                    Err(error) => return Err(error),
                }
                read_bytes += due.len_bytes;
                pace.progress.advance(due.len_bytes);
                throttle.pass(due.len_bytes);
            }
            report.new_bytes += replace(store, writer, &directories)?;
        }
    }
    pace.progress.end();
    Ok(report)
}

/// Makes what was put known, and condemns what it was put from. Gives the bytes of the new packs.
fn replace(store: &Store, mut writer: Writer, old: &[PackDirectory]) -> Result<u64> {
    let mut found: HashSet<(ChunkId, bool)> = HashSet::new();
    for pack in writer.publish()? {
        found.extend(chunks(&whole_pack(store, pack)?.0));
    }
    if let Some((id, _)) = old.iter().flat_map(chunks).find(|chunk| !found.contains(chunk)) {
        return Err(Error::new(Kind::Internal, "a chunk did not get into a new pack; nothing was condemned")
            .object(id));
    }
    let packs: Vec<PackId> = old.iter().map(|directory| directory.id).collect();
    if !packs.is_empty() {
        let epoch = loop {
            match collector::raise_epoch(store.home()) {
                Err(error) if error.kind() == Kind::Conflict => {} // a collector raised it just now
                raised => break raised?,
            }
        };
        Condemned { epoch, packs, ..Condemned::default() }.publish(store.home())?;
    }
    Ok(writer.stats().stored_bytes)
}

/// What a pack holds: each chunk, and whether it is a delta.
fn chunks(directory: &PackDirectory) -> impl Iterator<Item = (ChunkId, bool)> {
    directory.entries.iter().map(|entry| (entry.id, entry.is_delta()))
}

/// A pack whose every frame is verified, from the first tier that has it whole.
fn whole_pack(store: &Store, pack: PackId) -> Result<(PackDirectory, Object)> {
    let mut failure: Option<Error> = None;
    for tier in store.tiers() {
        let read = tier.get(&pack.key()).and_then(|bytes| {
            let directory = directory_of(pack, &bytes)?;
            for (frame, number) in frames(&directory, &bytes).zip(0..) {
                Frame::verify_stored(frame)?;
                if !directory.names(number, &store.decode_frame(frame)?) {
                    return Err(Error::corrupt("frame holds other chunks than the pack directory says"));
                }
            }
            Ok((directory, bytes))
        });
        match read {
            Ok(read) => return Ok(read),
            Err(error) if error.kind() == Kind::NotFound => failure = failure.or(Some(error)),
            Err(error) => failure = Some(error.object(pack)),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(Kind::NotFound, "no such pack").object(pack)))
}

fn frames<'a>(directory: &'a PackDirectory, pack: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let range = |extent: &store::pack::FrameExtent| {
        extent.offset as usize..extent.offset as usize + extent.len_bytes as usize
    };
    directory.frames.iter().map(move |extent| &pack[range(extent)])
}

/// The packs that lie on some tier, each with the number of the fastest that has it. Lists all tiers.
///
/// # Errors
/// As the tiers.
pub fn packs_by_tier(store: &Store) -> Result<Vec<(usize, PackId, u64)>> {
    let mut seen = HashSet::new();
    let mut packs = Vec::new();
    for (number, tier) in store.tiers().iter().enumerate() {
        for info in tier.list("packs/")? {
            if let Some(id) = PackId::from_key(&info.key).filter(|id| seen.insert(*id)) {
                packs.push((number, id, info.len_bytes));
            }
        }
    }
    Ok(packs)
}
