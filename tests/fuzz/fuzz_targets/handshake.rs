//! Firecracker's list of regions.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::handshake(bytes));
