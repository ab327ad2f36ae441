//! snapctl as its users meet it: the real binary, real directories, and every kind of wrong input.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is test code: what is absent or fails is to stop the test"
)]

mod basics;
mod bytes;
mod config;
mod disk;
mod domains;
mod hostile_input;
mod hostile_store;
mod life;
mod lock;
mod memory;
mod mounts;
mod restores;
mod resume;
mod sample;
mod scrub;
mod secrets;
mod signals;
mod sources;
mod tasks;
mod tiers;
mod wrong_paths;
