//! Directories, root records and link tables: the first byte says which.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::tree(bytes));
