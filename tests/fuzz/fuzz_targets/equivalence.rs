//! See `vlapic_tests::fuzz::equivalence`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vlapic_tests::fuzz::equivalence(data));
