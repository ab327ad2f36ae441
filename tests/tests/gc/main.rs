//! The collector beside writers, readers and crashes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

mod crash;
mod deltas;
mod hosts;
mod interleave;
mod recompress;
mod scenario;
