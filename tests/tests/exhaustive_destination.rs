//! Every logical destination with every LDR, from a guest's ICR write to whom it reaches.

use vlapic_core::{Effect, IA32_APIC_BASE, Mode, Profile, Register, Vendor};
use vlapic_tests::manual::destination::{Model, narrow, wide};
use vlapic_tests::plain;

/// Fixed, logical, vector 41.
const LOGICAL: u32 = 0x0000_4841;

#[test]
fn every_destination_with_every_ldr() {
    for profile in [Profile::intel(), Profile::amd()] {
        for (model, dfr) in [(Model::Flat, 0xFFFF_FFFF), (Model::Cluster, 0x0FFF_FFFF)] {
            let (vm, mut apics) = plain::vm(profile, &[0, 1]);
            let [sender, receiver] = &mut apics[..] else { unreachable!("two") };
            receiver.set(Register::Dfr, dfr);
            for ldr in 0..=255u8 {
                receiver.set(Register::Ldr, u32::from(ldr) << 24);
                for destination in 0..=255u8 {
                    sender.set(Register::IcrHigh, u32::from(destination) << 24);
                    let Effect::Ipi(message) = sender.write(Register::IcrLow, LOGICAL) else {
                        panic!("no message");
                    };
                    let reached =
                        vm.targets(message.destination(), Some(0)).any(|index| index == 1);
                    let expected = narrow(model, destination, ldr);
                    assert_eq!(reached, expected, "{model:?} {destination:#x} to {ldr:#x}");
                }
            }
        }
    }
}

#[test]
fn every_destination_of_16_bits_in_x2apic_mode() {
    // The first of a cluster, one amid it, the last, and two of other clusters.
    const IDS: [u32; 5] = [0, 7, 15, 0x10, 0x2B];
    for profile in [Profile::intel(), Profile::amd()] {
        let (vm, mut apics) = plain::vm(profile, &IDS);
        apics.iter_mut().for_each(plain::Plain::enter_x2apic);
        for cluster in 0..4u32 {
            for members in 0..=0xFFFFu32 {
                let destination = cluster << 16 | members;
                let value = u64::from(destination) << 32 | u64::from(LOGICAL);
                let Ok(Effect::Ipi(message)) = apics[0].wrmsr(0x830, value) else {
                    panic!("no message");
                };
                let mut reached = [false; IDS.len()];
                vm.targets(message.destination(), Some(0)).for_each(|index| reached[index] = true);
                let expected = IDS.map(|id| wide(destination, id));
                assert_eq!(reached, expected, "{destination:#x}");
            }
        }
    }
}

#[test]
fn every_id_has_the_ldr_of_the_manual() {
    for id in (0..0x1_0000u32).chain([0xF_FFFF]) {
        let page = vlapic_core::ApicPage::new();
        let slot = vlapic_core::Slot::new(&page, id, Profile::intel(), vlapic_core::DirectInbox);
        let mut apic = vlapic_core::LocalApic::new(&slot, true);
        let base = slot.base().bits() | 1 << 10;
        assert!(apic.write_msr(IA32_APIC_BASE, base, 0).is_ok());
        assert_eq!(slot.mode(), Mode::X2Apic);
        let ldr = apic.read_msr(0x80D, 0).unwrap();
        assert!(wide(ldr as u32, id), "{id:#x}");
        assert_eq!((ldr as u32 & 0xFFFF).count_ones(), 1);
        assert_eq!(slot.profile().vendor(), Vendor::Intel);
    }
}
