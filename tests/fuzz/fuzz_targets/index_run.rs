//! A run of the index: the first byte says of which version.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::index_run(bytes));
