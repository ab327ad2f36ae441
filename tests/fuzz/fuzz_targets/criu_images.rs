//! Image files of CRIU: the first byte says which.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::criu_images(bytes));
