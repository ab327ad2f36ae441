//! A pack's trailer and directory, their checksums made right.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::pack(bytes));
