//! A POSIX access control list.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::acl(bytes));
