//! The small records of a store: the first byte says which; their checksums are made right.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::records(bytes));
