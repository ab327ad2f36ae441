//! Repacking for a key rotation: frames that are sealed under old keys of a domain are sealed anew into new packs, and the
//! packs that they were in are condemned.
//!
//! Order, and why: new packs durable, index run of them, every new frame read back, and only then are the old packs
//! condemned, under a new epoch like in any run of the collector. Deleting is left to later runs, which see that nothing
//! needs them: a chunk that is in a pack not condemned is counted there.

use std::collections::HashSet;
use store::collector::{self, Condemned};
use store::pack::{Frame, PackDirectory, read_directory};
use store::{Error, Kind, PackId, Progress, Result, Store, Work};

/// What a repack did.
#[derive(Clone, Debug, Default)]
pub struct RepackReport {
    /// Packs whose frames are sealed anew, with their lengths in bytes; condemned.
    pub packs: Vec<(PackId, u64)>,
    /// Frames sealed anew.
    pub frames: u64,
    /// Packs that could not be read whole, and why: they stay, and so do their keys.
    pub unreadable: Vec<(PackId, String)>,
}

/// Seals anew what is sealed under old keys of the domain that `store` is seen from. Needs the writer's and the collector's
/// lock of this host. Readers go on meanwhile.
///
/// # Errors
/// `Conflict` while somebody writes or collects; those of the store. Nothing is condemned then.
pub fn repack_old_epochs(store: &Store, progress: &dyn Progress) -> Result<RepackReport> {
    let _lock = store.state().lock("gc.lock", "repack")?;
    let mut writer = store.writer("repack")?;
    let (_, current) = store.domain().key_epochs();
    let condemned: HashSet<PackId> = store.condemned()?.into_iter().flat_map(|list| list.packs).collect();
    let mut old = Vec::new();
    for (pack, len_bytes) in store.packs()? {
        if !condemned.contains(&pack) && store.key_epoch_of(pack)?.is_some_and(|epoch| epoch != current) {
            old.push((pack, len_bytes));
        }
    }
    let mut report = RepackReport::default();
    progress.begin("seal anew", Work::Bytes(old.iter().map(|(_, len_bytes)| *len_bytes).sum()));
    for (pack, len_bytes) in old {
        match frames_of(store, pack) {
            Ok((directory, frames)) => {
                report.frames += frames.len() as u64;
                for frame in frames {
                    writer.put_resealed(directory.kind, frame)?;
                }
                report.packs.push((pack, len_bytes));
            }
            Err(error) => report.unreadable.push((pack, error.to_string())),
        }
        progress.advance(len_bytes);
    }
    progress.end();
    let new = writer.publish()?;
    progress.begin("read back", Work::Items(new.len() as u64));
    for pack in new {
        frames_of(store, pack)?;
        progress.advance(1);
    }
    progress.end();
    drop(writer);
    if !report.packs.is_empty() {
        let epoch = collector::raise_epoch(store.home())?;
        let packs = report.packs.iter().map(|(pack, _)| *pack).collect();
        Condemned { epoch, packs, snapshots: Vec::new() }.write(store.home())?;
    }
    Ok(report)
}

/// All frames of a pack, each verified, from the first tier that has them whole.
fn frames_of(store: &Store, pack: PackId) -> Result<(PackDirectory, Vec<Vec<u8>>)> {
    let mut failure: Option<Error> = None;
    for tier in store.tiers() {
        let read = read_directory(tier, pack).and_then(|directory| {
            let mut frames = Vec::with_capacity(directory.frames.len());
            for (extent, number) in directory.frames.iter().zip(0..) {
                let bytes = tier.get_range(&pack.key(), extent.offset, extent.len_bytes.into())?;
                Frame::verify_stored(&bytes)?;
                if !directory.names(number, &store.decode_frame(&bytes)?) {
                    return Err(Error::corrupt("frame holds other chunks than the pack directory says"));
                }
                frames.push(bytes.to_vec());
            }
            Ok((directory, frames))
        });
        match read {
            Ok(read) => return Ok(read),
            Err(error) if error.kind() == Kind::NotFound => failure = failure.or(Some(error)),
            Err(error) => failure = Some(error.object(pack)),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new(Kind::NotFound, "no such pack").object(pack)))
}
