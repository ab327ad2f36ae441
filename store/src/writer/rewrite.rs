//! Rewriting stored frames into other packs. Nothing is deduplicated, and the packs that the frames came from may be
//! condemned when [`Writer::publish`] has had the new ones read back.

use super::Writer;
use crate::error::{Error, Result};
use crate::id::PackId;
use crate::pack::{Frame, PackKind};
use crate::page::{GROUP_PAGES, PAGE};

impl Writer {
    /// Stores a frame of this domain once more as it is, sealed under the current key. Many of them go into packs of
    /// their own.
    ///
    /// # Errors
    /// As [`Self::put_chunk`]; `Corrupt` for a frame that is damaged or another domain's: the writer then refuses to go
    /// on.
    pub fn put_resealed(&mut self, kind: PackKind, frame: Vec<u8>) -> Result<()> {
        self.check_usable()?;
        let pushed = self.pipeline.push_resealed(kind, frame, self.store.clone());
        self.guard(pushed)
    }

    /// Stores the chunks of a frame of this domain once more, compressed again and together with earlier ones, except
    /// those put already. A page group, which a fault fetches, stays in a frame of its own. Not for deltas: they would
    /// become full chunks.
    ///
    /// # Errors
    /// As [`Self::put_chunk`]; `Invalid` for another domain's frame.
    pub fn put_recompressed(&mut self, frame: &Frame) -> Result<()> {
        self.check_usable()?;
        if frame.domain != self.store.domain.id() {
            return Err(Error::invalid("a frame of another domain cannot be recompressed in this one"));
        }
        let is_group = matches!(&frame.slots[..], [(_, range)] if range.len() <= GROUP_PAGES * PAGE);
        for (id, range) in &frame.slots {
            if !self.fresh.insert(*id) {
                continue;
            }
            let bytes = &frame.plain[range.clone()];
            let pushed = match is_group && frame.kind == PackKind::Data {
                true => self.pipeline.push_alone(*id, bytes, None),
                false => self.pipeline.push(frame.kind, *id, bytes),
            };
            self.guard(pushed)?;
        }
        Ok(())
    }

    /// Makes the rewritten frames durable, and visible to readers if `check` accepts their packs; makes no snapshot.
    ///
    /// # Errors
    /// Those of the tier and of `check`: the packs then exist but no run lists them; the caller must condemn them.
    pub fn publish(&mut self, check: impl FnOnce(&[PackId]) -> Result<()>) -> Result<()> {
        self.check_usable()?;
        let flushed = self.flush(check);
        self.guard(flushed)
    }
}
