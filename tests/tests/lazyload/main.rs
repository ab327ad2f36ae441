//! Lazy memory on the real kernel: mapped images, KVM guests, processes dumped by CRIU, and handlers that die.
//!
//! - `support`   a store with an image in it, and the processes of a test
//! - `mapping`   the image as memory of this process
//! - `guest`     the tests' machine through the Firecracker handshake
//! - `callers`   others than the machine that connect to its socket
//! - `diffs`     memory files of the type Diff, and those that may be
//! - `process`   CRIU: dump, capture, materialize, lazy restore, compare
//! - `hibernate` CRIU: dumps of processes whose pages were not all brought
//! - `killed`    handlers killed at random: no page is ever zero in place of data

mod callers;
mod diffs;
mod guest;
mod hibernate;
mod killed;
mod mapping;
mod process;
mod support;
