//! Messages of a handler to its supervisor.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::supervisor(bytes));
