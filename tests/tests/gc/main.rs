//! The collector beside writers, readers and crashes.

mod crash;
mod deltas;
mod interleave;
mod life;
