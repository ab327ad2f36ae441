//! A request on the control socket of a mount.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::control(bytes));
