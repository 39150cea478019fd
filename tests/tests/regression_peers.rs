//! Guest input that other local APICs panicked on, lost, or took for something else.

use vlapic_core::{
    Address, Delivery, Destination, Effect, LvtEntry, Message, Mode, Outcome, Profile, Register,
    Trigger, Width,
};
use vlapic_tests::plain::{Plain, vm};

#[test]
fn any_dfr_model() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0]);
    vcpus[0].set(Register::Ldr, 0xFF00_0000);
    for model in 0..16u32 {
        vcpus[0].set(Register::Dfr, model << 28);
        assert_eq!(vcpus[0].load(0x0E0), model << 28 | 0x0FFF_FFFF);
        let destination = Destination::Logical(Address::Narrow(0xF1));
        let hits = vm.targets(destination, None).count();
        assert_eq!(hits, usize::from(matches!(model, 0 | 15)), "model {model:x}");
    }
}

#[test]
fn tpr_that_nothing_beats() {
    let mut plain = Plain::x2apic(Profile::intel(), 0);
    for value in [0x1FF, 0x100, 1 << 32, u64::MAX] {
        assert!(plain.wrmsr(0x808, value).is_err());
    }
    assert_eq!(plain.apic.read_cr8(), 0);
}

#[test]
fn disabled_to_x2apic_in_one_write() {
    let mut plain = Plain::new(Profile::intel());
    plain.set_msr(0x1B, 0xFEE0_0100);
    assert!(plain.wrmsr(0x1B, 0xFEE0_0D00).is_err());
    assert_eq!(plain.slot.mode(), Mode::Disabled);
}

#[test]
fn reserved_offsets_and_msrs() {
    let mut plain = Plain::enabled(Profile::intel());
    for offset in [0x000, 0x010, 0x040, 0x2E0, 0x3F0, 0x400, 0xFF0] {
        assert_eq!(plain.load(offset), 0);
        let _ = plain.store(offset, 1);
    }
    assert_eq!(plain.errors(), 0x80);
    plain.enter_x2apic();
    assert!(plain.rdmsr(0x800).is_err());
}

#[test]
fn destinations_above_any_vcpu() {
    let (vm, _vcpus) = vm(Profile::intel(), &[0, 1, 2]);
    for id in [3, 63, 64, 65, 0x100, 0x1_0000, 0xFFFF_FFFE] {
        for destination in
            [Destination::Physical(Address::Wide(id)), Destination::Logical(Address::Wide(id))]
        {
            let delivery = Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge };
            let message = Message::new(delivery, destination);
            assert!(vm.send(&message, Some(0)).count() <= 1, "at most an alias: {id:#x}");
        }
    }
    let beyond = Destination::Physical(Address::Narrow(3));
    assert_eq!(vm.targets(beyond, None).count(), 0);
}

#[test]
fn base_of_all_ones() {
    let mut plain = Plain::new(Profile::intel());
    assert!(plain.wrmsr(0x1B, u64::MAX).is_err());
    assert_eq!(plain.slot.mode(), Mode::XApic);
}

#[test]
fn eoi_of_the_lowest_legal_vectors() {
    let mut plain = Plain::enabled(Profile::intel());
    for vector in 0x10..0x20 {
        assert_eq!(plain.slot.request(vector, Trigger::Edge).outcome, Outcome::Accepted);
        assert_eq!(plain.apic.acknowledge(), vector);
        let _ = plain.write(Register::Eoi, 0);
        assert_eq!(plain.isr(), []);
    }
}

#[test]
fn x2apic_id_ldr_and_ppr_are_right() {
    let mut plain = Plain::x2apic(Profile::intel(), 5);
    assert_eq!(plain.rdmsr(0x802), Ok(5));
    assert_eq!(plain.rdmsr(0x80D), Ok(1 << 5));
    plain.set(Register::Tpr, 0x42);
    assert_eq!(plain.rdmsr(0x80A), Ok(0x42));
}

#[test]
fn every_ipi_type_arrives() {
    for (bits, delivery) in [
        (0x041, Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge }),
        (0x141, Delivery::LowestPriority { vector: 0x41, trigger: Trigger::Edge }),
        (0x200, Delivery::Smi),
        (0x400, Delivery::Nmi),
        (0x500, Delivery::Init),
        (0x69A, Delivery::Startup { page: 0x9A }),
    ] {
        let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1]);
        vcpus[1].enable();
        let _ = vcpus[0].store(0x310, 0x0100_0000);
        let Effect::Ipi(message) = vcpus[0].store(0x300, 0x4000 | bits) else {
            panic!("{bits:#x}")
        };
        assert_eq!(message.delivery(), delivery);
        let receipts: Vec<_> = vm.send(&message, Some(0)).collect();
        assert_eq!(receipts.len(), 1);
        assert_eq!(receipts[0].1.outcome, Outcome::Accepted, "{bits:#x}");
    }
}

#[test]
fn ipis_with_illegal_vectors_are_not_sent() {
    let mut plain = Plain::enabled(Profile::intel());
    for vector in 0..16 {
        assert_eq!(plain.store(0x300, 0x4000 | vector), Effect::None);
    }
    assert_eq!(plain.errors(), 0x20);
}

#[test]
fn eoi_of_every_vector() {
    for vector in 16..=255 {
        let mut plain = Plain::enabled(Profile::intel());
        assert_eq!(plain.slot.request(vector, Trigger::Level).outcome, Outcome::Accepted);
        assert_eq!(plain.apic.acknowledge(), vector);
        assert!(matches!(plain.write(Register::Eoi, 0), Effect::EndOfInterrupt(ended)
            if ended.get() == vector));
    }
}

#[test]
fn a_hostile_page_is_only_read() {
    for fill in [u32::MAX, 0xAAAA_AAAA, 0x5555_5555, 0x0F0F_0F0F] {
        let mut plain = Plain::enabled(Profile::amd());
        for offset in (0..0x1000).step_by(4) {
            plain.slot.page().store(offset, fill);
        }
        for entry in LvtEntry::ALL {
            let _ = plain.slot.local_event(entry);
        }
        let _ = plain.apic.prepare(u64::MAX);
        for _ in 0..300 {
            let _ = plain.apic.acknowledge();
            let _ = plain.apic.end_of_interrupt();
        }
        while plain.apic.take_event().is_some() {}
        for offset in (0..0x1000).step_by(16) {
            let _ = plain.apic.read_mmio(offset, Width::Dword, 0);
        }
        let _ = plain.apic.passes_external_interrupts();
        assert!(plain.apic.nominate().is_none_or(|vector| vector.get() >= 16));
    }
}
