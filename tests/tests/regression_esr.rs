//! Named scenarios of ESR and illegal vectors.

use vlapic_core::{
    Address, Delivery, Destination, LvtEntry, Message, MsiAddress, MsiData, MsiDestination,
    Outcome, Profile, Register, Trigger,
};
use vlapic_tests::plain::{Plain, vm};

#[test]
fn lvterr_illegal_vector_recursion() {
    for x2apic in [false, true] {
        let mut plain = Plain::enabled(Profile::intel());
        if x2apic {
            plain.enter_x2apic();
        }
        let _ = plain.write_lvt(LvtEntry::Error, 0x03);
        // A self IPI with an illegal vector: an error of sending, whose interrupt is an error of
        // receiving, which is the end of it.
        let _ = plain.write(Register::IcrLow, 0x4_0001);
        assert_eq!(plain.errors(), 0x60);
        assert_eq!(plain.irr(), []);
        assert_eq!(plain.errors(), 0);
    }
}

#[test]
fn esr_write_latches() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.load(0x3A0);
    assert_eq!(plain.load(0x280), 0);
    let _ = plain.store(0x280, 0xDEAD_BEEF);
    assert_eq!(plain.load(0x280), 0x80);
    let _ = plain.store(0x280, 0xDEAD_BEEF);
    assert_eq!(plain.load(0x280), 0);
    // With register virtualization the value written stands in the page when the exit comes.
    let _ = plain.load(0x3A0);
    plain.slot.page().write(Register::Esr, 0xDEAD_BEEF);
    let _ = plain.apic.after_write(Register::Esr, 0);
    assert_eq!(plain.slot.page().read(Register::Esr), 0x80);
}

#[test]
fn x2apic_esr_write_nonzero() {
    let mut plain = Plain::x2apic(Profile::intel(), 0);
    assert!(plain.wrmsr(0x828, 0).is_ok());
    for bit in 0..64 {
        assert!(plain.wrmsr(0x828, 1 << bit).is_err());
    }
}

#[test]
fn self_ipi_vector_below_16() {
    let mut plain = Plain::x2apic(Profile::intel(), 0);
    plain.enable();
    for vector in 0..16 {
        plain.set_msr(0x83F, vector);
        assert_eq!(plain.errors(), 0x20);
        plain.set_msr(0x830, 0x4_0000 | vector);
        assert_eq!(plain.errors(), 0x20);
    }
    assert_eq!(plain.slot.page().load(0x200), 0);
}

#[test]
fn bad_vector_msi() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1]);
    vcpus.iter_mut().for_each(Plain::enable);
    let send = |address, data| {
        let (address, data) = (MsiAddress::from_bits(address), MsiData::from_bits(data));
        Message::from_msi(address, data, MsiDestination::Narrow)
            .unwrap()
            .map(|message| vm.send(&message, None).map(|(_, receipt)| receipt.outcome).collect())
    };
    let outcomes: Option<Vec<Outcome>> = send(0xFEE0_1000, 0x000F);
    assert_eq!(outcomes, Some(vec![Outcome::IllegalVector]));
    assert_eq!((vcpus[0].errors(), vcpus[1].errors()), (0, 0x40));
    assert_eq!(vcpus[1].irr(), []);
    assert_eq!(send(0xFEE0_1000, 0x0010), Some(vec![Outcome::Accepted]));
    assert_eq!(vcpus[1].irr(), [0x10]);
    // A masked entry with an illegal vector raises nothing.
    let _ = vcpus[1].write_lvt(LvtEntry::Thermal, 0x1_0005);
    assert_eq!(vcpus[1].slot.local_event(LvtEntry::Thermal).outcome, Outcome::Refused);
    assert_eq!(vcpus[1].errors(), 0);
}

#[test]
fn an_error_interrupt_tells_the_target_of_a_bad_message() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1]);
    vcpus.iter_mut().for_each(Plain::enable);
    let _ = vcpus[1].write_lvt(LvtEntry::Error, 0xFE);
    let message = Message::new(
        Delivery::Fixed { vector: 7, trigger: Trigger::Edge },
        Destination::Physical(Address::Narrow(1)),
    );
    let receipts: Vec<_> = vm.send(&message, Some(0)).collect();
    assert_eq!(receipts.len(), 1);
    assert_eq!(receipts[0].1.notify, vlapic_core::Notify::Kick);
    assert_eq!(vcpus[1].irr(), [0xFE]);
}
