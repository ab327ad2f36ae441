//! Changes in a frame of an upper's journal.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::changes(bytes));
