//! Reading stored chunks and comparing them with offered duplicates, for users that trust neither hash nor disk.

use super::Writer;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::wire::checksum;
use std::collections::HashMap;

/// Checksums of the chunks of this session, where duplicates are compared.
#[derive(Debug, Default)]
pub(super) struct Compared {
    is_on: bool,
    fresh: HashMap<ChunkId, u64>,
}

impl Compared {
    /// Notes a chunk of this session, which cannot be read yet.
    pub(super) fn note(&mut self, id: ChunkId, bytes: &[u8]) {
        if self.is_on {
            self.fresh.insert(id, checksum(bytes));
        }
    }

    /// The chunks of this session can be read from now on.
    pub(super) fn forget(&mut self) {
        self.fresh.clear();
    }
}

impl Writer {
    /// From now on compares the bytes of every duplicate of files and metadata with the stored ones: an unreadable
    /// chunk is stored again, and of two different chunks with one id the first is kept and the second refused. Costs a
    /// read of each duplicate. Page groups are not compared.
    pub fn compare_duplicates(&mut self) {
        self.compared.is_on = true;
    }

    /// Whether a stored chunk can be relied on.
    ///
    /// # Errors
    /// `Corrupt` when it has other bytes.
    pub(super) fn is_reliable(&self, id: &ChunkId, bytes: &[u8]) -> Result<bool> {
        if !self.compared.is_on {
            return Ok(true);
        }
        let is_same = match self.compared.fresh.get(id) {
            Some(sum) => *sum == checksum(bytes),
            None => match self.store.read_chunk(id) {
                Ok(stored) => *stored == *bytes,
                Err(error) => {
                    tracing::warn!(chunk = %id, %error, "a duplicate cannot be read and is stored again");
                    return Ok(false);
                }
            },
        };
        match is_same {
            true => Ok(true),
            false => Err(Error::corrupt("a chunk with other bytes has the same id; the first one is kept")
                .object(id)
                .advice("run `snapctl scrub`; if it finds nothing, two inputs collide")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domain;
    use crate::error::Kind;
    use crate::repo::store::Store;
    use crate::testing::memory_store;
    use std::sync::Arc;

    /// A store whose ids have 16 bits.
    fn store_of_short_ids() -> (Store, tempfile::TempDir) {
        let (store, directory) = memory_store();
        let mut domain = Domain::plain([7; 32]);
        domain.id_len = 2;
        (Store { domain: Arc::new(domain), ..store }, directory)
    }

    #[test]
    fn every_collision_is_refused_and_the_first_chunk_kept() {
        let (store, _directory) = store_of_short_ids();
        let mut first: HashMap<ChunkId, Vec<u8>> = HashMap::new();
        let (mut collisions, mut same) = (0, 0);
        let mut writer = store.writer("test").unwrap();
        writer.compare_duplicates();
        for number in 0..6_000_u32 {
            // Every fourth is repeated, some while fresh, some when readable.
            let body = (number - number % 4 / 3 * 500.min(number)).to_le_bytes().repeat(5);
            let id = store.domain.chunk_id(&body);
            let put = writer.put_chunk(&body);
            match first.get(&id) {
                Some(known) if *known != body => {
                    let error = put.unwrap_err();
                    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                    collisions += 1;
                }
                Some(_) => {
                    assert_eq!(put.unwrap(), id);
                    same += 1;
                }
                None => {
                    assert_eq!(put.unwrap(), id);
                    first.insert(id, body);
                }
            }
            if number % 97 == 0 {
                writer.publish(|_| Ok(())).unwrap();
            }
        }
        writer.publish(|_| Ok(())).unwrap();
        for (id, body) in &first {
            assert_eq!(*store.read_chunk(id).unwrap(), **body, "the first one is there");
        }
        println!(
            "{collisions} collisions of 16-bit ids, all refused; {same} duplicates taken; none overwritten"
        );
        assert!(collisions > 100 && same > 100, "{collisions} collisions, {same} duplicates");
    }
}
