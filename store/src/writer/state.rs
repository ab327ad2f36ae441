//! A writer's identity on this host: a name drawn once and an incarnation that grows with each opening, so that no pack
//! is ever named twice, not even after a crash. Losing the file costs nothing: a new name is drawn.

use super::pipeline::{PackNames, Shape};
use crate::clock;
use crate::error::Result;
use crate::host::lock::{AUTHOR_LOCK, REWRITER_LOCK};
use crate::host::state::LocalState;
use crate::id::{PackId, WriterId};
use crate::wire::{Decoder, Encoder, Record, seal, unseal};

/// The kinds of writers. One of each kind works at a time on a host; the two kinds may work at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Adds snapshots.
    Author,
    /// Rewrites stored frames into packs of this shape.
    Rewriter(Shape),
}

impl Role {
    /// The lock that it holds.
    pub(crate) fn lock(self) -> &'static str {
        match self {
            Role::Author => AUTHOR_LOCK,
            Role::Rewriter(_) => REWRITER_LOCK,
        }
    }

    /// Draws the next incarnation, durably, before anything is named after it. The caller holds the lock.
    ///
    /// # Errors
    /// As the system calls.
    pub(crate) fn next_names(self, state: &LocalState) -> Result<PackNames> {
        match self {
            Role::Author => next_incarnation(state, "writer", 0),
            Role::Rewriter(shape) => next_incarnation(state, "rewriter", PackId::first_sequence(shape.level)),
        }
    }
}

fn next_incarnation(state: &LocalState, file: &str, next: u32) -> Result<PackNames> {
    let (writer, epoch) = match state.read(file).ok().and_then(|bytes| decode(&bytes).ok()) {
        Some((writer, epoch)) if epoch < u32::MAX => (writer, epoch + 1),
        _ => (WriterId::from_bytes(clock::random_bytes()), 0),
    };
    let mut body = Encoder::new();
    body.bytes(writer.as_bytes()).u32(epoch);
    state.replace(file, &seal(Record::WriterState, &body.finish()))?;
    Ok(PackNames { writer, epoch, next })
}

fn decode(bytes: &[u8]) -> Result<(WriterId, u32)> {
    let mut fields = Decoder::new(unseal(Record::WriterState, bytes)?);
    let state = (WriterId::from_bytes(fields.array()?), fields.u32()?);
    fields.end()?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;

    #[test]
    fn no_incarnation_comes_twice() {
        let directory = tempfile::tempdir().unwrap();
        let state = LocalState::from(directory.path());
        let [one, two] = [(), ()].map(|()| Role::Author.next_names(&state).unwrap());
        assert_eq!((one.writer, one.epoch + 1), (two.writer, two.epoch));
        let rewriter = Role::Rewriter(Shape { level: 9, tier: 0 }).next_names(&state).unwrap();
        assert!(rewriter.writer != one.writer && rewriter.next == PackId::first_sequence(9));
        let bytes = std::fs::read(state.path().join("writer")).unwrap();
        assert_sealed(&bytes, &(two.writer, two.epoch), decode);
        for (damage, why) in [(&bytes[..20], "cut"), (&[], "empty")] {
            std::fs::write(state.path().join("writer"), damage).unwrap();
            let drawn = Role::Author.next_names(&state).unwrap();
            assert_ne!(drawn.writer, one.writer, "{why}");
        }
    }
}
