//! The store against its oracle: every tier by one suite, random histories, every crash point, damage of every kind, real
//! trees, and the format for ever.

mod backups;
mod conformance;
mod crash;
mod damage;
mod disks;
mod format;
mod fuzz;
mod images;
mod index;
mod kill;
mod random_histories;
mod scratch;
mod splices;
mod trees;
mod writers;
