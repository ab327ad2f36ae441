//! The record of a ref: its name, the history of its snapshots, and the snapshots that writers are about to add.

use crate::clock::Time;
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};

/// Longest name in bytes, as it stands in its key: the longest name of a file.
const MAX_NAME_LEN: usize = 255;
/// Encoded length of a history entry.
const ENTRY_LEN: usize = 44;

/// One state that a ref named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefEntry {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// When the snapshot was made.
    pub time: Time,
}

/// A snapshot that a writer is about to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The entry that it adds.
    pub entry: RefEntry,
    /// Key of the writer's session.
    pub session: String,
}

/// A name and its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref {
    /// Its name.
    pub name: String,
    /// One more at each change, so that an old copy put back is noticed.
    pub counter: u64,
    /// Its snapshots, oldest first; the last is the current one.
    pub history: Vec<RefEntry>,
    /// Snapshots that writers are about to add; no part of the history yet.
    pub proposals: Vec<Proposal>,
}

impl Ref {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), counter: 0, history: Vec::new(), proposals: Vec::new() }
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<SnapshotId> {
        self.history.last().map(|entry| entry.snapshot)
    }

    /// The record's fields.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.string(self.name.as_bytes()).u64(self.counter).count(self.history.len());
        for entry in &self.history {
            body.bytes(entry.snapshot.as_bytes()).time(entry.time);
        }
        if !self.proposals.is_empty() {
            body.count(self.proposals.len());
            for Proposal { entry, session } in &self.proposals {
                body.bytes(entry.snapshot.as_bytes()).time(entry.time).string(session.as_bytes());
            }
        }
        body.finish()
    }

    /// The bytes of a record that is not signed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        seal(Record::Ref, &self.body())
    }

    /// Parses a record that is not signed.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::decode_body(unseal(Record::Ref, bytes)?)
    }

    /// Parses the record's fields.
    pub(crate) fn decode_body(body: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(body);
        let (name, counter) = (fields.text()?, fields.u64()?);
        let entry = |fields: &mut Decoder<'_>| -> Result<RefEntry> {
            Ok(RefEntry { snapshot: SnapshotId::from_bytes(fields.array()?), time: fields.time()? })
        };
        let (mut history, mut proposals) = (Vec::new(), Vec::new());
        for _ in 0..fields.count(ENTRY_LEN)? {
            history.push(entry(&mut fields)?);
        }
        if fields.remaining() > 0 {
            let count = fields.count(ENTRY_LEN + 4)?;
            if count == 0 {
                return Err(Error::corrupt("ref record counts no proposals"));
            }
            for _ in 0..count {
                proposals.push(Proposal { entry: entry(&mut fields)?, session: fields.text()? });
            }
        }
        fields.end()?;
        check_name(&name).map_err(|_| Error::corrupt("ref record holds an impossible name"))?;
        Ok(Self { name, counter, history, proposals })
    }
}

/// Refuses names that are empty, long, or hold anything but `[A-Za-z0-9._-]` in slash-separated parts.
///
/// # Errors
/// `Invalid`.
pub fn check_name(name: &str) -> Result<()> {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
    };
    if escaped(name).len() <= MAX_NAME_LEN && name.split('/').all(good) {
        return Ok(());
    }
    Err(Error::invalid("not a ref name").object(format!("{name:?}")).advice(
        "use letters, digits, '.', '_', '-', with '/' between parts, and no leading '.' or '-', for example shop/web-1",
    ))
}

/// The name as one component of a key.
fn escaped(name: &str) -> String {
    name.replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn the_longest_name_fits_a_file_name() {
        let longest = format!("{}/{}", "a".repeat(125), "b".repeat(127));
        check_name(&longest).unwrap();
        assert_eq!(escaped(&longest).len(), 255);
        assert!(check_name(&format!("{longest}b")).is_err());
    }

    #[test]
    fn only_harmless_names_pass() {
        for good in ["a", "shop/web-1", "A.b_c/d"] {
            check_name(good).unwrap();
        }
        for bad in
            ["", "/a", "a/", "a//b", "..", "a/../b", ".a", "-a", "a b", "a\0", "\u{e4}", &"x".repeat(256)]
        {
            assert_eq!(check_name(bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }
}
