//! The record of a wake.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::wake_log(bytes));
