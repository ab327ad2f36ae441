//! The store against its oracle: every tier by one suite, random histories, every crash point, damage of every kind,
//! real trees, and the format forever.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

mod backups;
mod conformance;
mod crash;
mod damage;
mod deltas;
mod disks;
mod domains;
mod failures;
mod fights;
mod fills;
mod format;
mod fuzz;
mod images;
mod index;
mod kill;
mod planned;
mod power;
mod random_histories;
mod restores;
mod rollback;
mod scatter;
mod scratch;
mod scrub;
mod shared;
mod sim;
mod sources;
mod splices;
mod tiering;
mod torn;
mod trees;
mod writers;
