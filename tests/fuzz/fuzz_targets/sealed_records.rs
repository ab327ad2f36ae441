//! Records of an encrypted and of a public domain.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::sealed_records(bytes));
