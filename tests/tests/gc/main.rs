//! The collector beside writers, readers and crashes.

mod crash;
mod interleave;
mod life;
