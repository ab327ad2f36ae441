//! Resolves a user's name for a snapshot: a ref's newest, one before it, or the first digits of an id.

use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::records::reference::check_name;
use crate::repo::store::Store;

/// Minimum digits of a snapshot id that `resolve` accepts.
const MIN_PREFIX_DIGITS: usize = 6;

impl Store {
    /// Finds the snapshot that a user means: `name` (its newest), `name~2` (two before the newest), or at least six
    /// digits of a snapshot's id.
    ///
    /// # Errors
    /// `NotFound`, or `Invalid` for an ambiguous prefix.
    pub fn resolve(&self, spec: &str) -> Result<SnapshotId> {
        let (name, back) = match spec.split_once('~') {
            Some((name, "")) => (name, 1),
            Some((name, digits)) => {
                let back = digits.parse::<usize>();
                (
                    name,
                    back.map_err(|error| {
                        Error::invalid("not a number behind '~'").object(spec).caused_by(error)
                    })?,
                )
            }
            None => (spec, 0),
        };
        // A snapshot's full id takes precedence over a ref of that name.
        if let Ok(id) = spec.parse::<SnapshotId>()
            && self.metadata_tier().len_bytes(&self.domain.snapshot_key(&id))?.is_some()
        {
            return Ok(id);
        }
        let found = if check_name(name).is_ok() { self.refs().get(name)? } else { None };
        if let Some(found) = found {
            let entry = found.history.iter().rev().nth(back).map(|entry| entry.snapshot);
            return entry.ok_or_else(|| {
                Error::new(Kind::NotFound, format!("ref has {} snapshots", found.history.len())).object(spec)
            });
        }
        let hexadecimal = spec.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        if back == 0 && hexadecimal && (MIN_PREFIX_DIGITS..=64).contains(&spec.len()) {
            return self.resolve_prefix(spec);
        }
        Err(Error::new(Kind::NotFound, "no such ref or snapshot")
            .object(spec)
            .advice("`snapctl snapshots` lists them"))
    }

    fn resolve_prefix(&self, prefix: &str) -> Result<SnapshotId> {
        let mut matching = self.snapshot_ids()?;
        matching.retain(|id| id.to_string().starts_with(prefix));
        match matching.as_slice() {
            [only] => Ok(*only),
            [] => Err(Error::new(Kind::NotFound, "no such ref or snapshot")
                .object(prefix)
                .advice("`snapctl snapshots` lists them")),
            several => {
                Err(Error::invalid(format!("{} snapshots begin with these digits", several.len()))
                    .object(prefix))
            }
        }
    }
}
