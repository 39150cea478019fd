//! The registers whose value is what the page holds, in every profile: the way to read most of them.

use crate::page::ApicPage;

/// Whether a read of the register in 16-byte slot `index` of the window (bits above 7 ignored) is a
/// load from the page.
#[inline]
pub(crate) const fn in_memory(index: u32) -> bool {
    index & 0xC0 == 0 && IN_MEMORY >> (index & 0x3F) & 1 != 0
}

/// The same of the MSR 800 + `index` in x2APIC mode.
#[inline]
pub(crate) const fn in_msrs(index: u32) -> bool {
    index < 0x40 && IN_MSRS >> index & 1 != 0
}

/// The register of slot `index`. Vectors below 16 are never in ISR, TMR and IRR, whatever somebody
/// has scribbled there.
#[inline]
pub(crate) fn read(page: &ApicPage, index: u32) -> u32 {
    let illegal = (FIRST_BANKS >> (index & 0x3F) & 1) as u32 * 0xFFFF;
    page.load((index << 4) as u16) & !illegal
}

/// The slot of PPR, which follows from TPR and ISR.
pub(crate) const PPR: u32 = 0x0A;

/// Slots 0 to 3F, one bit each: ID, version, TPR, LDR, SVR, the banks of ISR, TMR and IRR, ESR,
/// initial count, divide configuration.
const IN_MSRS: u64 = 1 << 0x02
    | 1 << 0x03
    | 1 << 0x08
    | 1 << 0x0D
    | 1 << 0x0F
    | 0xFF << 0x10
    | 0xFF << 0x18
    | 0xFF << 0x20
    | 1 << 0x28
    | 1 << 0x38
    | 1 << 0x3E;

/// And DFR and both halves of ICR, where ICR is not one register.
const IN_MEMORY: u64 = IN_MSRS | 1 << 0x0E | 1 << 0x30 | 1 << 0x31;

/// The slots of vectors 0 to 31.
const FIRST_BANKS: u64 = 1 << 0x10 | 1 << 0x18 | 1 << 0x20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, ApicPage, DirectInbox, LocalApic, Mode, Profile, Register, Slot};

    #[test]
    fn plain_registers_read_as_by_the_table_of_accesses() {
        for profile in [Profile::intel(), Profile::amd()] {
            let page = ApicPage::new();
            let slot = Slot::new(&page, 5, profile, DirectInbox);
            let mut apic = LocalApic::new(&slot, true);
            for (index, word) in page.words().iter().enumerate() {
                word.store(0x8123_4567 ^ index as u32, core::sync::atomic::Ordering::Relaxed);
            }
            for index in 0..0x100 {
                let modes = [(Mode::XApic, in_memory(index)), (Mode::X2Apic, in_msrs(index))];
                for (mode, plain) in modes {
                    if plain {
                        let register = Register::at((index << 4) as u16).unwrap();
                        assert!(Access::of(register, mode, &profile).readable(), "{register:?}");
                        assert_eq!(read(&page, index), apic.read_register(register, 0));
                    }
                }
            }
        }
    }
}
