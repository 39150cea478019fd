//! See `vlapic_tests::fuzz::svm`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vlapic_tests::fuzz::svm(data));
