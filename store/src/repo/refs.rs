//! Refs: names of apps and backup series. A ref's record holds the history of its snapshots, newest last, and changes
//! by compare-and-swap, so two writers can never lose each other's update.
//!
//! Where a session may be fenced by another host, a commit first *proposes* its snapshot in the ref, then verifies that
//! its session is still alive, then settles the proposal. The collector lists sessions, then refs: a proposal whose
//! session it saw is a root like any entry; one whose session is gone is withdrawn before the mark, and cannot be
//! settled any more. So a writer suspended while it was fenced never moves a ref to a collected snapshot.

use crate::domain::{Seen, vanished};
use crate::error::{Error, Kind, OptionalExt, Result};
use crate::records::reference::{Proposal, Ref, RefEntry, check_name};
use crate::records::sealed::StoredRef;
use crate::repo::store::Store;
use std::collections::BTreeSet;

/// Swaps lost to other writers before giving up.
const MAX_ATTEMPTS: usize = 64;

/// The refs of a domain.
pub struct Refs<'a> {
    store: &'a Store,
    /// The states that this host last saw of them, where they are signed.
    seen: Option<Seen>,
}

impl Store {
    /// The domain's refs.
    pub fn refs(&self) -> Refs<'_> {
        Refs::new(self)
    }

    /// Drops snapshots from a ref's history; they stay readable by id until the collector deletes them. Returns the ref
    /// after that.
    ///
    /// # Errors
    /// `NotFound` when there is no such ref.
    pub fn forget(&self, name: &str, drop: impl Fn(&RefEntry) -> bool) -> Result<Ref> {
        if self.refs().get(name)?.is_none() {
            return Err(Error::new(Kind::NotFound, "no such ref").object(name));
        }
        self.inner.keyring.reload(&self.domain)?;
        self.with_reserve(|| {
            self.refs().update(name, |history| {
                history.retain(|entry| !drop(entry));
                Ok(())
            })
        })
    }
}

impl<'a> Refs<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        let domain = &store.domain;
        let seen = domain.verify_key().map(|_| Seen::of_refs(store.state_dir(), domain.id()));
        Self { store, seen }
    }

    /// All refs, by name.
    ///
    /// # Errors
    /// As the tier; `Corrupt` for a damaged ref, which is never skipped silently.
    pub fn list(&self) -> Result<Vec<Ref>> {
        let mut refs = self.each()?.into_iter().collect::<Result<Vec<Ref>>>()?;
        refs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(refs)
    }

    /// Every ref or its error, by key: a damaged one hides no other. One that this host saw and that is gone is an
    /// error.
    ///
    /// # Errors
    /// As the tier.
    pub fn each(&self) -> Result<Vec<Result<Ref>>> {
        Ok(self.each_by_key()?.into_iter().map(|(_, read)| read).collect())
    }

    /// As [`Self::each`], with the keys of the records.
    ///
    /// # Errors
    /// As the tier.
    pub fn each_by_key(&self) -> Result<Vec<(String, Result<Ref>)>> {
        let prefix = self.store.domain.ref_prefix();
        let infos = self.store.metadata_tier().list(&prefix)?;
        let mut keys: BTreeSet<String> = infos.into_iter().map(|info| info.key).collect();
        let seen = self.seen.iter().flat_map(Seen::names).map(|name| format!("{prefix}{name}"));
        keys.extend(seen);
        // A ref that is gone and was never seen was removed after the listing.
        let read = |key: &str| Some(self.read(key).transpose()?.map(|(stored, _)| stored.found));
        Ok(keys.into_iter().filter_map(|key| read(&key).map(|read| (key, read))).collect())
    }

    /// One ref, `None` when there is none of that name.
    ///
    /// # Errors
    /// `Invalid` for a bad name, `Corrupt` for a damaged record, and for one that is neither the last one this host saw
    /// nor a successor of it.
    pub fn get(&self, name: &str) -> Result<Option<Ref>> {
        check_name(name)?;
        Ok(self.read(&self.store.domain.ref_key(name))?.map(|(stored, _)| stored.found))
    }

    /// The record under a key, if it is the one this host had seen before the read, or a successor. Changes that other
    /// processes make and note meanwhile do not count: they are newer than this read.
    fn read(&self, key: &str) -> Result<Option<(StoredRef, Vec<u8>)>> {
        let domain = &self.store.domain;
        let last = key.strip_prefix(&domain.ref_prefix()).unwrap_or(key);
        let old = self.seen.as_ref().and_then(|seen| seen.get(last));
        let stored = self.read_unseen(key)?;
        let Some(seen) = &self.seen else { return Ok(stored) };
        let Some((stored, bytes)) = stored else {
            return match old {
                Some(_) => Err(vanished("ref", key, domain.name())),
                None => Ok(None),
            };
        };
        if let Some(mark) = &stored.mark {
            let wrong = old.and_then(|old| old.judge(mark, &stored.trail).err());
            if let Some(wrong) = wrong {
                return Err(wrong.error("ref", &stored.found.name, domain.name()));
            }
            if old.as_ref() != Some(mark) {
                seen.note(last, mark);
            }
        }
        Ok(Some((stored, bytes)))
    }

    fn read_unseen(&self, key: &str) -> Result<Option<(StoredRef, Vec<u8>)>> {
        let Some(object) = self.store.metadata_tier().get(key).optional()? else { return Ok(None) };
        Ok(Some((self.store.domain.decode_ref(key, &object)?, object.to_vec())))
    }

    /// Accepts the ref `name`, or all refs, in their current state as last seen by this host.
    ///
    /// # Errors
    /// `Corrupt` for an unsigned record; as the system calls.
    pub(crate) fn trust(&self, name: Option<&str>) -> Result<()> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let domain = &self.store.domain;
        let prefix = domain.ref_prefix();
        let keys: BTreeSet<String> = match name {
            Some(name) => [domain.ref_key(name)].into(),
            None => {
                let known = seen.names().into_iter().map(|name| format!("{prefix}{name}"));
                let listed = self.store.metadata_tier().list(&prefix)?.into_iter().map(|info| info.key);
                known.chain(listed).collect()
            }
        };
        for key in keys {
            let mark = self.read_unseen(&key)?.and_then(|(stored, _)| stored.mark);
            seen.trust(key.strip_prefix(&prefix).unwrap_or(&key), mark.as_ref())?;
        }
        Ok(())
    }

    /// Changes a ref's history with `change`, repeatedly until no other writer intervenes; an emptied history stays as a ref
    /// without snapshots.
    ///
    /// # Errors
    /// The errors of `change`; `Invalid` when this host cannot sign for the domain; `Conflict` when other writers win
    /// 64 times in a row.
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

    /// Withdraws proposals whose session `is_dead`. Returns the ref after that.
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

    /// Changes a ref with `change`, repeatedly until no other writer intervenes.
    fn change(&self, name: &str, mut change: impl FnMut(&mut Ref) -> Result<()>) -> Result<Ref> {
        check_name(name)?;
        self.store.check_owns_ref(name)?;
        let domain = &self.store.domain;
        let key = domain.ref_key(name);
        for _ in 0..MAX_ATTEMPTS {
            let (mut next, trail, bytes) = match self.read(&key)? {
                Some((stored, bytes)) => {
                    let trail = stored.next_trail(&bytes);
                    (stored.found, trail, Some(bytes))
                }
                None => (Ref::new(name), Vec::new(), None),
            };
            change(&mut next)?;
            next.counter += 1;
            let record = domain.encode_ref(&next, &trail)?;
            if self.store.metadata_tier().compare_and_swap(&key, bytes.as_deref(), &record)? {
                if let (Some(seen), Some(mark)) = (&self.seen, domain.decode_ref(&key, &record)?.mark) {
                    seen.note(&key[domain.ref_prefix().len()..], &mark);
                }
                return Ok(next);
            }
        }
        Err(Error::new(
            Kind::Conflict,
            format!("gave up after {MAX_ATTEMPTS} conflicting updates of the ref"),
        )
        .object(name)
        .advice("try again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::domain::Domain;
    use crate::id::SnapshotId;
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
            let plain = Domain::plain([0; 32]);
            let decode_at = |name: &str| plain.decode_ref(&plain.ref_key(name), &found.encode());
            prop_assert_eq!(&decode_at(&found.name).unwrap().found, &found);
            prop_assert_eq!(decode_at("another.name").unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
