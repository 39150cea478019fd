//! Named scenarios of modes and of access.

use vlapic_core::{
    Address, Delivery, Destination, Effect, Fault, IA32_APIC_BASE, LvtEntry, Message, Mode,
    Outcome, Profile, Register, Width, is_apic_msr,
};
use vlapic_tests::plain::{Plain, vm};

#[test]
fn x2apic_ldr_from_apic_id() {
    for (id, ldr) in [(0, 1), (2, 4), (0x11, 0x1_0002), (0x1FE, 0x1F_4000), (0xF_FFF0, 0xFFFF_0001)]
    {
        let mut plain = Plain::x2apic(Profile::intel(), id);
        assert_eq!(plain.rdmsr(0x80D), Ok(ldr), "{id:#x}");
        assert_eq!(plain.rdmsr(0x802), Ok(u64::from(id)));
    }
    // IDs that are not vCPU numbers.
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 2, 4, 6, 18]);
    vcpus.iter_mut().for_each(Plain::enter_x2apic);
    let reached =
        |mask| vm.targets(Destination::Logical(Address::Wide(mask)), None).collect::<Vec<_>>();
    assert_eq!(reached(0x0000_0054), [1, 2, 3]);
    assert_eq!(reached(0x0001_0004), [4]);
    assert_eq!(reached(0x0000_0002), [] as [usize; 0]);
}

#[test]
fn init_preserves_id_mode_ldr() {
    let mut plain = Plain::x2apic(Profile::intel(), 0x123);
    assert_eq!(plain.slot.receive(Delivery::Init).outcome, Outcome::Accepted);
    assert!(plain.apic.take_event().is_some());
    assert_eq!(plain.slot.mode(), Mode::X2Apic);
    assert_eq!(plain.rdmsr(0x802), Ok(0x123));
    assert_eq!(plain.rdmsr(0x80D), Ok(0x12_0008));
}

#[test]
fn apic_base_transitions() {
    let mut plain = Plain::new(Profile::intel());
    for illegal in [0xFEE0_0500u64, 0xFEE0_0901, 0xFEE0_0B00, 0xFFFF_FFFF_FEE0_0900] {
        assert_eq!(plain.wrmsr(IA32_APIC_BASE, illegal), Err(Fault::GeneralProtection));
    }
    plain.enter_x2apic();
    assert!(plain.wrmsr(IA32_APIC_BASE, 0xFEE0_0900).is_err(), "x2APIC to xAPIC");
    plain.set_msr(IA32_APIC_BASE, 0xFEE0_0100);
    assert!(plain.wrmsr(IA32_APIC_BASE, 0xFEE0_0D00).is_err(), "disabled to x2APIC");
    plain.set_msr(IA32_APIC_BASE, 0xFEE0_0900);
    plain.enter_x2apic();
}

#[test]
fn spiv_focus_bit_x2apic() {
    let mut plain = Plain::x2apic(Profile::intel(), 0);
    assert!(plain.wrmsr(0x80F, 0x3FF).is_ok(), "no fault");
}

#[test]
fn apic_write_exit_never_faults() {
    // Whatever the guest stored, wherever: the exit comes after the store.
    for profile in [Profile::intel(), Profile::amd()] {
        for x2apic in [false, true] {
            for offset in (0..0x1000).step_by(16) {
                let Some(register) = Register::at(offset) else { continue };
                let mut plain = Plain::enabled(profile);
                if x2apic {
                    plain.enter_x2apic();
                }
                plain.slot.page().write(register, u32::MAX);
                let _ = plain.apic.after_write(register, 0);
                assert!(plain.slot.present());
            }
        }
    }
}

#[test]
fn x2apic_msr_range() {
    let mut plain = Plain::x2apic(Profile::intel(), 0);
    for msr in (0x840..0x1000).chain([0x7FF, 0xC000_0800]) {
        assert_eq!(plain.rdmsr(msr), Err(Fault::GeneralProtection), "{msr:#x}");
        assert_eq!(plain.wrmsr(msr, 0), Err(Fault::GeneralProtection), "{msr:#x}");
    }
    assert!(!is_apic_msr(0x900) && !is_apic_msr(0xBFF) && is_apic_msr(0x8FF));
}

#[test]
fn x2apic_msr_in_xapic_mode() {
    let mut plain = Plain::enabled(Profile::intel());
    assert_eq!(plain.rdmsr(0x808), Err(Fault::GeneralProtection));
    assert_eq!(plain.wrmsr(0x808, 0x20), Err(Fault::GeneralProtection));
    assert_eq!(plain.load(0x080), 0);
}

#[test]
fn logical_broadcast() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1, 2, 3]);
    vcpus[1].set(Register::Ldr, 0x2100_0000);
    vcpus[1].set(Register::Dfr, 0x0FFF_FFFF);
    vcpus[2].set(Register::Ldr, 0x0400_0000);
    vcpus[3].enter_x2apic();
    let all = [0, 1, 2, 3];
    let to = |address| vm.targets(Destination::Logical(address), None).collect::<Vec<_>>();
    assert_eq!(to(Address::Narrow(0xFF)), all, "whatever LDR and DFR say");
    assert_eq!(to(Address::Wide(0xFFFF_FFFF)), all);
    assert_eq!(to(Address::Narrow(0x21)), [1]);
    assert_eq!(to(Address::Narrow(0)), [] as [usize; 0]);
}

#[test]
fn access_page_when_not_xapic() {
    for x2apic in [false, true] {
        let mut plain = Plain::enabled(Profile::intel());
        if x2apic {
            plain.enter_x2apic();
        } else {
            plain.set_msr(IA32_APIC_BASE, 0xFEE0_0100);
        }
        let before: Vec<u32> = (0..1024).map(|word| plain.slot.page().load(word * 4)).collect();
        for offset in 0..0x1000 {
            let _ = plain.apic.write_mmio(offset, Width::Dword, 0xFFFF_FFFF, 0);
            assert_eq!(plain.apic.read_mmio(offset, Width::Byte, 0), 0xFF);
        }
        let after: Vec<u32> = (0..1024).map(|word| plain.slot.page().load(word * 4)).collect();
        assert!(before == after);
    }
}

#[test]
fn icr_delivery_mode_reserved() {
    for profile in [Profile::intel(), Profile::amd()] {
        for (x2apic, modes) in [(false, &[3u32][..]), (true, &[1, 3, 7])] {
            let mut plain = Plain::enabled(profile);
            if x2apic {
                plain.enter_x2apic();
            }
            for mode in modes {
                assert_eq!(plain.write(Register::IcrLow, mode << 8 | 0xC_0041), Effect::None);
            }
            assert_eq!(plain.errors(), 0);
        }
    }
}

#[test]
fn init_all_excluding_self() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1, 2]);
    let Effect::Ipi(message) = vcpus[0].store(0x300, 0xC_4500) else { panic!("nothing sent") };
    assert_eq!(message, Message::new(Delivery::Init, Destination::AllButSelf));
    assert_eq!(vm.send(&message, Some(0)).map(|(index, _)| index).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(vcpus[0].store(0x300, 0xC_8500), Effect::None, "INIT de-assert");
}

#[test]
fn subdword_and_misaligned_mmio() {
    let mut plain = Plain::enabled(Profile::intel());
    for offset in 0..=u16::MAX {
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            let read = plain.apic.read_mmio(offset, width, 0);
            assert_eq!(read & !width.mask(), 0);
            if offset % 16 != 0 || width != Width::Dword {
                assert_eq!(plain.apic.write_mmio(offset, width, u64::MAX, 0), Effect::None);
            }
        }
    }
    assert_eq!(plain.load(0x0F0), 0x1FF);
    assert_eq!(plain.load(0x350), 0x1_0000);
}

#[test]
fn lvt_readonly_bits() {
    for entry in LvtEntry::ALL {
        let mut plain = Plain::enabled(Profile::intel());
        let _ = plain.write_lvt(entry, 0xFFFF_FFFF);
        assert_eq!(plain.read(Register::Lvt(entry)) & 0x5000, 0, "{entry:?}");
    }
}

#[test]
fn a_start_up_ipi_to_a_high_id_starts_one() {
    let ids: Vec<u32> = (0..=0x1FF).collect();
    let (vm, mut vcpus) = vm(Profile::intel(), &ids);
    for plain in &mut vcpus[..0x100] {
        plain.enter_x2apic();
    }
    let destination = Destination::Physical(Address::Wide(0x1FF));
    assert_eq!(
        vm.targets(destination, Some(0)).collect::<Vec<_>>(),
        [0x1FF],
        "it is in xAPIC mode"
    );
}
