//! From chunks to durable packs: chunks gather in frames, frames are compressed by a few threads, compressed frames
//! fill packs in the order they were begun, full packs are stored. Memory is bounded: a few frames in flight, one open
//! pack and one being stored per kind.

use super::pool::{Pool, Ticket};
use crate::buffer_pool::BufferPool;
use crate::chunker;
use crate::domain::Sealer;
use crate::error::Result;
use crate::id::{ChunkId, PackId, WriterId};
use crate::pack::{
    Base, EncodedFrame, FrameDraft, MAX_FRAME_PLAIN, PackBuilder, PackDirectory, PackKind, TARGET_LEN, reseal,
};
use crate::repo::config::TierClass;
use crate::repo::placement::Placement;
use crate::repo::store::Store;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Frames of file data on flash are closed at about this many bytes of header and chunks.
const DATA_FRAME_TARGET: usize = 512 << 10;
/// The same on slower tiers, where a read waits for the tier and not for the frame to be decompressed.
const FAR_FRAME_TARGET: usize = 2000 << 10;
/// The same of metadata, which is read piece by piece.
const META_FRAME_TARGET: usize = 64 << 10;
/// Frames in flight for each compressing thread.
const FRAMES_PER_THREAD: usize = 4;
/// Packs waiting to be stored.
const PACKS_IN_FLIGHT: usize = 2;
/// Capacity of a pack buffer: a long frame and the directory may be added last.
const PACK_LEN: usize = TARGET_LEN + (2 << 20);

/// Names packs in one writer's incarnation.
pub(crate) struct PackNames {
    /// The writer.
    pub writer: WriterId,
    /// Its incarnation.
    pub epoch: u32,
    /// The next pack's number.
    pub next: u32,
}

impl PackNames {
    fn next(&mut self) -> PackId {
        let id = PackId { writer: self.writer, epoch: self.epoch, sequence: self.next };
        self.next += 1;
        id
    }
}

/// How new packs are made, and where they land.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// zstd level.
    pub level: i32,
    /// Number of the tier.
    pub tier: usize,
}

/// The open end of the store.
pub(super) struct Pipeline {
    placement: Arc<Placement>,
    shape: Shape,
    /// Lengths that frames of each kind are closed at.
    frame_targets: [usize; 2],
    sealer: Sealer,
    names: PackNames,
    drafts: [FrameDraft; 2],
    compressors: Pool,
    compressing: VecDeque<(PackKind, Ticket<EncodedFrame>)>,
    max_compressing: usize,
    packs: [Option<PackBuilder>; 2],
    storer: Pool,
    storing: VecDeque<Ticket<PackDirectory>>,
    stored: Vec<PackDirectory>,
    stored_bytes: u64,
    /// Chunks stored as deltas since the last flush, and their bases.
    deltas: HashMap<ChunkId, ChunkId>,
    draft_buffers: BufferPool,
    pack_buffers: BufferPool,
}

impl Pipeline {
    /// An empty pipeline with one compressing thread per core.
    ///
    /// # Errors
    /// `Unavailable` when a thread cannot be created.
    pub(super) fn new(
        placement: Arc<Placement>,
        shape: Shape,
        sealer: Sealer,
        names: PackNames,
    ) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let data_target = match placement.tiers()[shape.tier].class {
            TierClass::Hot => DATA_FRAME_TARGET,
            TierClass::Warm | TierClass::Cold => FAR_FRAME_TARGET,
        };
        // The last chunk added may have the largest length.
        let draft_len = MAX_FRAME_PLAIN.min(data_target + chunker::MAX_LEN);
        Ok(Self {
            placement,
            shape,
            frame_targets: [data_target, META_FRAME_TARGET],
            sealer,
            names,
            drafts: [FrameDraft::new(PackKind::Data), FrameDraft::new(PackKind::Meta)],
            compressors: Pool::new("compress", threads)?,
            compressing: VecDeque::new(),
            max_compressing: threads * FRAMES_PER_THREAD,
            packs: [None, None],
            storer: Pool::new("store-pack", 1)?,
            storing: VecDeque::new(),
            stored: Vec::new(),
            stored_bytes: 0,
            deltas: HashMap::new(),
            draft_buffers: BufferPool::new(threads * FRAMES_PER_THREAD, draft_len),
            pack_buffers: BufferPool::new(PACKS_IN_FLIGHT, PACK_LEN),
        })
    }

    /// Adds a chunk to the open frame of its kind.
    ///
    /// # Errors
    /// Those of earlier frames and packs: after one, the pipeline is not to be used again.
    pub(super) fn push(&mut self, kind: PackKind, id: ChunkId, bytes: &[u8]) -> Result<()> {
        if self.drafts[kind as usize].plain.len() + bytes.len() > MAX_FRAME_PLAIN {
            self.close_frame(kind)?;
        }
        let draft = &mut self.drafts[kind as usize];
        draft.push(id, bytes);
        match draft.len_bytes() >= self.frame_targets[kind as usize] {
            true => self.close_frame(kind),
            false => Ok(()),
        }
    }

    fn close_frame(&mut self, kind: PackKind) -> Result<()> {
        if self.drafts[kind as usize].slots.is_empty() {
            return Ok(());
        }
        let mut next = FrameDraft::new(kind);
        if kind == PackKind::Data {
            next.plain = self.draft_buffers.take();
        }
        let draft = std::mem::replace(&mut self.drafts[kind as usize], next);
        self.compress(draft)
    }

    /// Puts a chunk of data into a frame of its own, as a delta against `base` where that pays.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(super) fn push_alone(&mut self, id: ChunkId, bytes: &[u8], base: Option<Base>) -> Result<()> {
        let mut draft = FrameDraft::new(PackKind::Data);
        draft.push(id, bytes);
        draft.base = base;
        self.compress(draft)
    }

    /// Chunks stored as deltas since the last flush, and their bases. Waits for all that was pushed to be compressed.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(super) fn deltas(&mut self) -> Result<&HashMap<ChunkId, ChunkId>> {
        while !self.compressing.is_empty() {
            self.pack_next_frame()?;
        }
        Ok(&self.deltas)
    }

    fn compress(&mut self, draft: FrameDraft) -> Result<()> {
        let (kind, level, sealer) = (draft.kind, self.shape.level, self.sealer.clone());
        let pool = self.draft_buffers.clone();
        self.encode(kind, move || {
            let encoded = draft.encode_for(level, &sealer);
            pool.give(draft.plain);
            encoded
        })
    }

    /// Queues a frame that `encode` makes.
    fn encode(
        &mut self,
        kind: PackKind,
        encode: impl FnOnce() -> Result<EncodedFrame> + Send + 'static,
    ) -> Result<()> {
        self.compressing.push_back((kind, self.compressors.run(encode)));
        while self.compressing.len() > self.max_compressing
            || self.compressing.front().is_some_and(|(_, ticket)| ticket.is_ready())
        {
            self.pack_next_frame()?;
        }
        Ok(())
    }

    /// Seals a stored frame `bytes` of the domain of `store` again.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(super) fn push_resealed(&mut self, kind: PackKind, bytes: Vec<u8>, store: Store) -> Result<()> {
        let sealer = self.sealer.clone();
        self.encode(kind, move || reseal(&bytes, &store.domain, &sealer, &|base| store.read_base(base)))
    }

    fn pack_next_frame(&mut self) -> Result<()> {
        let Some((kind, ticket)) = self.compressing.pop_front() else { return Ok(()) };
        let frame = ticket.wait()?;
        if let (Some(base), [(id, _)]) = (frame.base, frame.slots.as_slice()) {
            self.deltas.insert(*id, base);
        }
        let (names, pool) = (&mut self.names, &self.pack_buffers);
        let pack = self.packs[kind as usize]
            .get_or_insert_with(|| PackBuilder::in_buffer(names.next(), kind, pool.take()));
        pack.push(&frame);
        if pack.len_bytes() >= TARGET_LEN {
            self.store_pack(kind)?;
        }
        Ok(())
    }

    fn store_pack(&mut self, kind: PackKind) -> Result<()> {
        let Some(pack) = self.packs[kind as usize].take() else { return Ok(()) };
        let (placement, tier) = (self.placement.clone(), self.shape.tier);
        let (id, bytes, directory) = pack.finish();
        self.stored_bytes += bytes.len() as u64;
        let pool = self.pack_buffers.clone();
        self.storing.push_back(self.storer.run(move || {
            placement.land(tier, id, &bytes)?;
            pool.give(bytes);
            Ok(directory)
        }));
        while self.storing.len() > PACKS_IN_FLIGHT {
            self.await_stored()?;
        }
        Ok(())
    }

    fn await_stored(&mut self) -> Result<()> {
        if let Some(ticket) = self.storing.pop_front() {
            self.stored.push(ticket.wait()?);
        }
        Ok(())
    }

    /// Makes everything pushed so far durable and returns the directories of the packs stored since the last flush.
    ///
    /// # Errors
    /// As the tier. After an error nothing of this pipeline may be committed.
    pub(super) fn flush(&mut self) -> Result<Vec<PackDirectory>> {
        self.close_frame(PackKind::Data)?;
        self.close_frame(PackKind::Meta)?;
        self.deltas()?;
        self.deltas.clear();
        self.store_pack(PackKind::Data)?;
        self.store_pack(PackKind::Meta)?;
        while !self.storing.is_empty() {
            self.await_stored()?;
        }
        Ok(std::mem::take(&mut self.stored))
    }

    /// Bytes of all packs closed so far.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// The incarnation of the writer, for the name of its index run.
    pub(super) fn names(&self) -> &PackNames {
        &self.names
    }
}
