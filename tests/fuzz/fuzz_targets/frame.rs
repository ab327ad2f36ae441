//! A frame of a pack, its header's checksum made right.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::frame(bytes));
