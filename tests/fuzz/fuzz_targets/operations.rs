//! See `vlapic_tests::fuzz::operations`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vlapic_tests::fuzz::operations(data));
