//! The writer's identity on this host: a name drawn once and an incarnation that grows with each opening, so that no pack
//! is ever named twice, not even after a crash. Losing the file costs nothing: a new name is drawn.

use super::pipeline::PackNames;
use crate::clock;
use crate::error::Result;
use crate::id::WriterId;
use crate::state::LocalState;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};

/// Draws the next incarnation, durably, before anything is named after it. The caller holds the writer's lock.
///
/// # Errors
/// As the system calls.
pub fn next_incarnation(state: &LocalState) -> Result<PackNames> {
    let (writer, epoch) = match state.read("writer").ok().and_then(|bytes| decode(&bytes).ok()) {
        Some((writer, epoch)) if epoch < u32::MAX => (writer, epoch + 1),
        _ => (WriterId::from_bytes(clock::random_bytes()), 0),
    };
    let mut body = Encoder::new();
    body.bytes(writer.as_bytes()).u32(epoch);
    state.replace("writer", &seal(Record::WriterState, &body.finish()))?;
    Ok(PackNames { writer, epoch, next: 0 })
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
        let [one, two] = [(), ()].map(|()| next_incarnation(&state).unwrap());
        assert_eq!((one.writer, one.epoch + 1), (two.writer, two.epoch));
        let bytes = std::fs::read(state.path().join("writer")).unwrap();
        assert_sealed(&bytes, &(two.writer, two.epoch), decode);
        for (damage, why) in [(&bytes[..20], "cut"), (&[], "empty")] {
            std::fs::write(state.path().join("writer"), damage).unwrap();
            let drawn = next_incarnation(&state).unwrap();
            assert_ne!(drawn.writer, one.writer, "{why}");
        }
    }
}
