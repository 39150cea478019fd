//! What a write of ICR does, against the manuals' tables. Every bit of the word but 31:24 in all
//! combinations, and those one by one; `cargo xtask exhaustive` writes all 2^32 words.

use vlapic_tests::exhaustive::icr::{RUNS, run};

#[test]
fn every_word_of_20_bits() {
    for (vendor, mode) in RUNS {
        if let Err(mismatch) = run(vendor, mode, 0..1 << 12) {
            panic!("{mismatch}");
        }
    }
}

#[test]
fn every_reserved_bit_with_every_combination_of_some_others() {
    for (vendor, mode) in RUNS {
        for bit in 20..32 {
            for fields in [0, 0x4_4B, 0x8_C5, 0xC_07] {
                let upper = 1 << (bit - 8) | fields;
                if let Err(mismatch) = run(vendor, mode, upper..upper + 1) {
                    panic!("{mismatch}");
                }
            }
        }
    }
}
