//! The journal of an upper.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::journal(bytes));
