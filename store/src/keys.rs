//! The keys of all objects of a store, in one table. docs/FORMAT.md describes each object.

/// The store's format and id.
pub const SUPERBLOCK: &str = "superblock";
/// The examination record of the bucket with the records.
pub const BUCKET: &str = "bucket";
/// Prefix of the packs, on every tier: `packs/<writer>/<epoch>-<sequence>`.
pub const PACKS: &str = "packs/";
/// Prefix of the runs of the index: `index/<writer>/<epoch>-<run>`, `index/merged/...`, `index/rebuilt/...`.
pub const INDEX: &str = "index/";
/// Prefix of the domains' records: `domains/<domain>`.
pub const DOMAINS: &str = "domains/";
/// Prefix of the snapshot records: `snapshots/<domain>/<snapshot>`.
pub const SNAPSHOTS: &str = "snapshots/";
/// Prefix of the refs: `refs/<domain>/<ref>`.
pub const REFS: &str = "refs/";
/// Prefix of the records of sessions: `sessions/<session>`.
pub const SESSIONS: &str = "sessions/";
/// The collector's epoch.
pub const COLLECTOR_STATE: &str = "gc/state";
/// Prefix of the lists of condemned objects: `gc/condemned/<epoch>`.
pub const CONDEMNED: &str = "gc/condemned/";
/// Prefix of the records of lost frames, one for a pack: `damaged/<writer>/<epoch>-<sequence>`.
pub const LOST_FRAMES: &str = "damaged/";

/// The key of a domain's record.
pub fn domain(name: &str) -> String {
    format!("{DOMAINS}{name}")
}

/// The prefix of the snapshot records of a domain.
pub fn snapshots_of(domain: &str) -> String {
    format!("{SNAPSHOTS}{domain}/")
}

/// The prefix of the refs of a domain.
pub fn refs_of(domain: &str) -> String {
    format!("{REFS}{domain}/")
}

/// The prefix that a key is listed under, with its slash; the key itself where it stands alone.
pub fn prefix_of(key: &str) -> &str {
    key.find('/').map_or(key, |slash| &key[..=slash])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_by_its_first_part() {
        for key in [domain("acme"), snapshots_of("acme"), refs_of("acme")] {
            assert!([DOMAINS, SNAPSHOTS, REFS].contains(&prefix_of(&key)), "{key}");
        }
        assert_eq!(prefix_of(SUPERBLOCK), SUPERBLOCK);
    }
}
