//! The page table of a memory image.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::image_table(bytes));
