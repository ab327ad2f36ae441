//! Announcements on CRIU's lazy-pages socket.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::lazy_pages(bytes));
