//! Refs: the only mutable objects. A ref names an app or a backup series; its record holds the history of its snapshots,
//! newest last, and changes by compare-and-swap, so two writers can never lose each other's update.
//!
//! Where a session may be fenced by another host, a commit first *proposes* its snapshot in the ref, then sees that its
//! session is still alive, then settles the proposal. The collector lists sessions, then refs: a proposal whose session it
//! saw is a root like any entry; one whose session is gone is withdrawn before anything is marked, and cannot be settled
//! any more. So a writer that slept through its own fencing never moves a ref to what was collected meanwhile.

use crate::clock::Time;
use crate::domain;
use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::tier::Tier;
use crate::wire::{Decoder, Encoder, Record, seal, unseal};

/// Swaps lost to other writers before giving up.
const MAX_ATTEMPTS: usize = 64;
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
    /// What it adds.
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
    /// What writers are about to add; no part of the history yet.
    pub proposals: Vec<Proposal>,
}

impl Ref {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), counter: 0, history: Vec::new(), proposals: Vec::new() }
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<SnapshotId> {
        self.history.last().map(|entry| entry.snapshot)
    }

    fn encode(&self) -> Vec<u8> {
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
        seal(Record::Ref, &body.finish())
    }

    /// Parses a record.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new(unseal(Record::Ref, bytes)?);
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

fn prefix() -> String {
    format!("refs/{}/", domain::DEFAULT)
}

/// The name as one component of a key.
fn escaped(name: &str) -> String {
    name.replace('/', "%2F")
}

fn key(name: &str) -> String {
    format!("{}{}", prefix(), escaped(name))
}

/// Parses the record that stands under a key.
///
/// # Errors
/// `Corrupt`, also for another ref's record.
pub fn decode_at(at: &str, bytes: &[u8]) -> Result<Ref> {
    match Ref::decode(bytes).map_err(|error| error.object(at))? {
        found if key(&found.name) == at => Ok(found),
        _ => Err(Error::corrupt("ref record stands under another's name").object(at)),
    }
}

/// The refs of a store.
pub struct Refs<'a> {
    tier: &'a dyn Tier,
}

impl<'a> Refs<'a> {
    pub(crate) fn new(tier: &'a dyn Tier) -> Self {
        Self { tier }
    }

    /// All refs, by name.
    ///
    /// # Errors
    /// As the tier; `Corrupt` for a damaged ref, which is never passed over in silence.
    pub fn list(&self) -> Result<Vec<Ref>> {
        let mut refs = self.each()?.into_iter().collect::<Result<Vec<Ref>>>()?;
        refs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(refs)
    }

    /// Every ref or what is wrong with it, by key: a damaged one hides no other.
    ///
    /// # Errors
    /// As the tier.
    pub fn each(&self) -> Result<Vec<Result<Ref>>> {
        let read = |key: &str| decode_at(key, &self.tier.get(key)?);
        let infos = self.tier.list(&prefix())?;
        let each = infos.iter().map(|info| read(&info.key));
        // What is gone was removed since it was listed.
        Ok(each
            .filter(|found| found.as_ref().err().is_none_or(|error| error.kind() != Kind::NotFound))
            .collect())
    }

    /// One ref, `None` when there is none of that name.
    ///
    /// # Errors
    /// `Invalid` for a bad name, `Corrupt` for a damaged record.
    pub fn get(&self, name: &str) -> Result<Option<Ref>> {
        Ok(self.read(name)?.map(|(found, _)| found))
    }

    fn read(&self, name: &str) -> Result<Option<(Ref, Vec<u8>)>> {
        check_name(name)?;
        match self.tier.get(&key(name)) {
            Ok(object) => Ok(Some((decode_at(&key(name), &object)?, object.to_vec()))),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes a ref's history with `change`, again and again until no other writer comes between; an emptied history
    /// stays as a ref without snapshots.
    ///
    /// # Errors
    /// What `change` returns; `Conflict` when others win 64 times in a row.
    pub(crate) fn update(
        &self,
        name: &str,
        mut change: impl FnMut(&mut Vec<RefEntry>) -> Result<()>,
    ) -> Result<Ref> {
        self.change(name, |found| change(&mut found.history))
    }

    /// Proposes an entry on behalf of a session.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub(crate) fn propose(&self, name: &str, proposal: &Proposal) -> Result<()> {
        self.change(name, |found| {
            found.proposals.push(proposal.clone());
            Ok(())
        })
        .map(drop)
    }

    /// Makes a proposal part of the history.
    ///
    /// # Errors
    /// `Fenced` when it was withdrawn meanwhile; as [`Self::update`].
    pub(crate) fn settle(&self, name: &str, proposal: &Proposal) -> Result<()> {
        self.change(name, |found| {
            let before = found.proposals.len();
            found.proposals.retain(|other| other != proposal);
            if found.proposals.len() == before {
                return Err(Error::new(Kind::Fenced, "session was ended by another host during the commit")
                    .object(name)
                    .advice("start the command again; nothing was committed"));
            }
            found.history.push(proposal.entry);
            Ok(())
        })
        .map(drop)
    }

    /// Takes proposals back whose session `is_dead`. Gives the ref as it stands then.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub fn withdraw(&self, found: Ref, is_dead: impl Fn(&str) -> bool) -> Result<Ref> {
        if !found.proposals.iter().any(|proposal| is_dead(&proposal.session)) {
            return Ok(found);
        }
        self.change(&found.name, |found| {
            found.proposals.retain(|proposal| !is_dead(&proposal.session));
            Ok(())
        })
    }

    /// Changes a ref with `change`, again and again until no other writer comes between.
    fn change(&self, name: &str, mut change: impl FnMut(&mut Ref) -> Result<()>) -> Result<Ref> {
        for _ in 0..MAX_ATTEMPTS {
            let (mut next, bytes) = match self.read(name)? {
                Some((found, bytes)) => (found, Some(bytes)),
                None => (Ref::new(name), None),
            };
            change(&mut next)?;
            next.counter += 1;
            if self.tier.compare_and_swap(&key(name), bytes.as_deref(), &next.encode())? {
                return Ok(next);
            }
        }
        Err(Error::new(Kind::Conflict, "ref is changed by others all the time")
            .object(name)
            .advice("try again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_sealed;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_ref_reads_back_and_nothing_else_does(
            name in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}(/[A-Za-z0-9_]{1,8}){0,3}",
            counter in any::<u64>(),
            history in prop::collection::vec((any::<[u8; 32]>(), any::<i64>(), 0..1_000_000_000u32), 0..4),
            sessions in prop::collection::vec("[a-f0-9]{24}", 0..3),
        ) {
            let history = history.into_iter().map(|(id, seconds, nanos)| RefEntry {
                snapshot: SnapshotId::from_bytes(id),
                time: Time { seconds, nanos },
            });
            let history: Vec<RefEntry> = history.collect();
            let entry = RefEntry { snapshot: SnapshotId::from_bytes([9; 32]), time: Time { seconds: 1, nanos: 2 } };
            let proposals = sessions.into_iter().map(|session| Proposal { entry, session }).collect();
            let found = Ref { name, counter, history, proposals };
            assert_sealed(&found.encode(), &found, Ref::decode);
            prop_assert_eq!(&decode_at(&key(&found.name), &found.encode()).unwrap(), &found);
            prop_assert_eq!(decode_at(&key("another.name"), &found.encode()).unwrap_err().kind(), Kind::Corrupt);
        }
    }

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
