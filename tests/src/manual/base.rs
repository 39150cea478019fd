//! What WRMSR makes of IA32_APIC_BASE: SDM Vol. 3A 10.4.4, Figures 10-5 and 10-27; APM Vol. 2 16.9,
//! Figures 16-31 and 16-32.

use vlapic_core::Vendor;

/// EN and EXTD, as bits 11:10 stand.
const DISABLED: u64 = 0b00;
const INVALID: u64 = 0b01;
const XAPIC: u64 = 0b10;
const X2APIC: u64 = 0b11;

/// The transitions that are allowed; all others are a #GP.
const ALLOWED: [(u64, u64); 7] = [
    (DISABLED, DISABLED),
    (DISABLED, XAPIC),
    (XAPIC, DISABLED),
    (XAPIC, XAPIC),
    (XAPIC, X2APIC),
    (X2APIC, DISABLED),
    (X2APIC, X2APIC),
];

/// The word after a write of `value` over `old`; `None` is #GP.
#[must_use]
pub fn written(old: u64, value: u64, physical_address_bits: u32, vendor: Vendor) -> Option<u64> {
    let pair = |word: u64| word >> 10 & 3;
    let reserved = |bit: u32| bit < 8 || bit == 9 || bit >= physical_address_bits;
    if (0..64).any(|bit| reserved(bit) && value >> bit & 1 != 0) {
        return None;
    }
    if pair(value) == INVALID || !ALLOWED.contains(&(pair(old), pair(value))) {
        return None;
    }
    Some(match vendor {
        Vendor::Intel => value,
        // BSP is read-only.
        Vendor::Amd => value & !0x100 | old & 0x100,
    })
}
