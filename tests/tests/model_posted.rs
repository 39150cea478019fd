//! Interrupts from outside on the APICv model: posted interrupts, physical interrupts, IPI virtualization, devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{
    Activity, Capability, ExitReason, Iommu, Knobs, Machine, Memory, Outcome, PhysicalInterrupt,
    Point, RemapFault, Shadow, controls, field,
};

const NV: u8 = Rig::NOTIFICATION_VECTOR;

fn deliver(rig: &mut Rig<'_>) -> Outcome {
    rig.core.boundary(true, Shadow::None)
}

#[test]
fn posted_interrupts_are_processed_without_exit() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::POSTED);
    for vector in [0x10, 0x3f, 0x40, 0x7f, 0x80, 0xff] {
        let _ = storage.post(vector);
    }
    storage.descriptor[4].fetch_or(0x0000_0123_00f2_0000, SeqCst);
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(storage.irr(), [0x10, 0x3f, 0x40, 0x7f, 0x80, 0xff]);
    assert_eq!([0, 1, 2, 3].map(|group| storage.descriptor[group].load(SeqCst)), [0; 4]);
    assert_eq!(storage.descriptor[4].load(SeqCst), 0x0000_0123_00f2_0000, "only ON is cleared");
    assert_eq!((rig.core.physical.eois(), rig.core.physical.pending()), (1, None));
    for vector in [0xff, 0x80, 0x7f, 0x40, 0x3f, 0x10] {
        assert_eq!(deliver(&mut rig), Outcome::Delivered(vector));
        assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    }
    assert_eq!(rig.core.exits(), 0);
}

#[test]
fn posting_does_not_lower_rvi_and_an_empty_pir_leaves_it() {
    let storage = Storage::new();
    storage.set_word(0x080, 0xf0);
    let mut rig = Rig::new(&storage, Setup::POSTED, Knobs::default());
    storage.request(0x91);
    rig.set_interrupt_status(0x91, 0);
    rig.enter();
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(rig.core.interrupt_status(), Some((0x91, 0)));
    assert!(storage.post(0x51));
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(rig.core.interrupt_status(), Some((0x91, 0)));
    assert!(storage.post(0xa1));
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(rig.core.interrupt_status(), Some((0xa1, 0)));
}

#[test]
fn posted_processing_looks_neither_at_rflags_nor_at_hlt() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::POSTED);
    assert!(storage.post(0x51));
    rig.core.raise(NV);
    assert_eq!(rig.core.boundary(false, Shadow::None), Outcome::Posted);
    assert_eq!(rig.core.hlt(), Outcome::Done);
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x51));
    // In HLT, one boundary goes from the notification to the delivery; without a deliverable vector it stays halted.
    assert_eq!(rig.core.hlt(), Outcome::Done);
    rig.core.raise(NV);
    assert_eq!(deliver(&mut rig), Outcome::Posted);
    assert_eq!(rig.core.activity(), Some(Activity::Hlt));
    assert!(storage.post(0x61));
    rig.core.raise(NV);
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x61));
    assert_eq!(rig.core.activity(), Some(Activity::Active));
}

#[test]
fn other_vectors_exit_with_the_vector_acknowledged() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::POSTED);
    let exit = rig.core.external_interrupt(0x40).exit().expect("an external-interrupt exit");
    assert_eq!((exit.reason, exit.interruption_info), (ExitReason::ExternalInterrupt, 0x8000_0040));
    assert!(!exit.trap_like);
    // The host has not ended it: an interrupt of the same class has to wait, one of a higher class need not.
    rig.core.raise(0x41);
    assert_eq!(rig.core.physical.pending(), None);
    rig.core.raise(0x50);
    assert_eq!(rig.core.host_interrupt(), Some(0x50));
    rig.core.physical.end_of_interrupt();
    rig.core.physical.end_of_interrupt();
    assert_eq!(rig.core.host_interrupt(), Some(0x41));
}

#[test]
fn without_acknowledgement_the_vector_stays_pending() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    let exits = rig.vmcs().get(field::VM_EXIT_CONTROLS);
    rig.vmcs()
        .set(field::VM_EXIT_CONTROLS, exits & !u64::from(controls::exit::ACKNOWLEDGE_INTERRUPT));
    rig.enter();
    let exit = rig.core.external_interrupt(0x40).exit().expect("an external-interrupt exit");
    assert_eq!(exit.interruption_info, 0);
    assert_eq!(rig.core.host_interrupt(), Some(0x40));
}

#[test]
fn shutdown_and_wait_for_sipi_hold_physical_interrupts_back() {
    for state in [2, 3] {
        let storage = Storage::new();
        let mut rig = Rig::new(&storage, Setup::POSTED, Knobs::default());
        rig.vmcs().set(field::GUEST_ACTIVITY_STATE, state);
        rig.enter();
        assert!(storage.post(0x51));
        assert_eq!(rig.core.external_interrupt(NV), Outcome::Nothing);
        assert_eq!(rig.core.external_interrupt(0x40), Outcome::Nothing);
        assert_eq!((storage.irr(), rig.core.physical.pending()), (vec![], Some(NV)));
    }
}

#[test]
fn in_root_operation_the_notification_is_an_ordinary_interrupt() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::POSTED, Knobs::default());
    assert!(storage.post(0x51));
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Nothing);
    assert_eq!(rig.core.host_interrupt(), Some(NV));
    rig.core.physical.end_of_interrupt();
    rig.enter();
    assert_eq!(deliver(&mut rig), Outcome::Nothing);
    assert_eq!(storage.descriptor[4].load(SeqCst) & 1, 1, "ON stays for software to find");
    assert_eq!(storage.irr(), []);
}

#[test]
fn a_post_in_the_middle_of_processing_is_not_lost() {
    let points = [
        Point::BeforeOnIsCleared,
        Point::AfterOnIsCleared,
        Point::PirGroupTaken(0),
        Point::PirGroupTaken(1),
        Point::PirGroupTaken(2),
        Point::PirGroupTaken(3),
        Point::BeforeEvaluation,
    ];
    for point in points {
        let storage = Storage::new();
        let mut rig = Rig::new(&storage, Setup::POSTED, Knobs::default());
        let bus = rig.bus.clone();
        let shared = &*storage;
        let mut once = true;
        rig.core.interleave(move |here| {
            if here == point && std::mem::take(&mut once) && shared.post(0x91) {
                bus.send(PhysicalInterrupt { destination: 0, vector: NV });
            }
        });
        rig.enter();
        assert!(storage.post(0x51));
        assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
        // Before ON is cleared the running pass covers the post; after it a second notification is due.
        assert_eq!(rig.bus.is_empty(), point == Point::BeforeOnIsCleared, "{point:?}");
        while let Some(interrupt) = rig.bus.take() {
            assert_eq!(rig.core.external_interrupt(interrupt.vector), Outcome::Posted);
        }
        assert_eq!(storage.irr(), [0x51, 0x91], "{point:?}");
        assert_eq!(deliver(&mut rig), Outcome::Delivered(0x91), "{point:?}");
    }
}

/// A second descriptor, at the address that entry 3 of the PID-pointer table names.
const OTHER: u64 = 0x20_0040;

fn with_target<'m>(storage: &'m Storage, setup: Setup, target: &'m [AtomicU64; 8]) -> Rig<'m> {
    let mut rig = Rig::new(storage, setup, Knobs::default());
    rig.memory.add_qwords(OTHER, target);
    storage.pid_pointers[3].store(OTHER | 1, SeqCst);
    target[4].store(0x0000_0200_00e1_0000, SeqCst);
    rig.enter();
    rig
}

#[test]
fn ipi_virtualization_posts_and_notifies() {
    for (setup, host_x2apic, destination) in [
        (Setup::IPI, false, 2),
        (Setup::IPI, true, 0x200),
        (Setup::IPI.in_x2apic(), false, 2),
        (Setup::IPI.in_x2apic(), true, 0x200),
    ] {
        let storage = Storage::new();
        let target = [const { AtomicU64::new(0) }; 8];
        let mut rig = with_target(&storage, setup, &target);
        rig.core.physical.x2apic = host_x2apic;
        let send = |rig: &mut Rig<'_>, vector: u64| {
            if setup.x2apic {
                return rig.core.wrmsr(0x830, 3 << 32 | vector);
            }
            assert_eq!(rig.core.mmio_write(0x310, 4, 0x0300_0000), Outcome::Done);
            rig.core.mmio_write(0x300, 4, 0x4000 | vector)
        };
        assert_eq!(send(&mut rig, 0x51), Outcome::Done);
        assert_eq!(target[1].load(SeqCst), 1 << 0x11);
        assert_eq!(rig.bus.take(), Some(PhysicalInterrupt { destination, vector: 0xe1 }));
        // ON is set now: no second notification.
        assert_eq!(send(&mut rig, 0xff), Outcome::Done);
        assert_eq!((target[3].load(SeqCst), rig.bus.len()), (1 << 63, 0));
        // SN alone silences as well.
        target[4].store(0x0000_0200_00e1_0002, SeqCst);
        assert_eq!(send(&mut rig, 0x10), Outcome::Done);
        assert_eq!((target[0].load(SeqCst), rig.bus.len()), (1 << 16, 0));
        assert_eq!(target[4].load(SeqCst), 0x0000_0200_00e1_0002);
        assert_eq!(rig.core.exits(), 0);
    }
}

#[test]
fn whether_reserved_icr_bits_stop_a_memory_mapped_ipi_is_a_knob() {
    for checks in [true, false] {
        for bit in [13, 16, 17, 20, 31] {
            let storage = Storage::new();
            let knobs = Knobs { xapic_ipiv_checks_reserved: checks, ..Knobs::default() };
            let mut rig = Rig::new(&storage, Setup::IPI, knobs);
            rig.enter();
            let exits = rig.core.mmio_write(0x300, 4, 1 << bit | 0x51).exit().is_some();
            assert_eq!(exits, checks, "bit {bit}");
            assert_eq!(storage.descriptor[1].load(SeqCst) != 0, !checks, "bit {bit}");
        }
    }
}

#[test]
fn the_last_index_is_still_in_the_table() {
    let storage = Storage::new();
    let target = [const { AtomicU64::new(0) }; 8];
    let mut rig = with_target(&storage, Setup::IPI.in_x2apic(), &target);
    storage.pid_pointers[15].store(OTHER | 1, SeqCst);
    assert_eq!(rig.core.wrmsr(0x830, 15 << 32 | 0x51), Outcome::Done);
    assert_eq!(target[1].load(SeqCst), 1 << 0x11);
}

#[test]
fn ipis_that_the_processor_leaves_to_software() {
    let icr = |target: u64, low: u64| target << 32 | low;
    let cases = [
        ("vector 15", icr(3, 0x0f), OTHER | 1),
        ("beyond the last index", icr(16, 0x51), OTHER | 1),
        ("broadcast", icr(0xffff_ffff, 0x51), OTHER | 1),
        ("entry not valid", icr(3, 0x51), OTHER),
        ("reserved bit in the entry", icr(3, 0x51), OTHER | 3),
        ("address too wide", icr(3, 0x51), 1 << 46 | 1),
        ("logical", icr(3, 0x851), OTHER | 1),
        ("lowest priority", icr(3, 0x151), OTHER | 1),
        ("NMI", icr(3, 0x451), OTHER | 1),
        ("level-triggered", icr(3, 0x8051), OTHER | 1),
        ("busy", icr(3, 0x1051), OTHER | 1),
        ("self", icr(0, 0x4_0051), OTHER | 1),
        ("all", icr(0, 0x8_0051), OTHER | 1),
        ("all but self", icr(0, 0xc_0051), OTHER | 1),
    ];
    for (name, value, entry) in cases {
        let storage = Storage::new();
        let target = [const { AtomicU64::new(0) }; 8];
        let mut rig = with_target(&storage, Setup::IPI.in_x2apic(), &target);
        storage.pid_pointers[3].store(entry, SeqCst);
        assert_eq!(
            rig.core.wrmsr(0x830, value).reason(),
            Some((ExitReason::ApicWrite, 0x300)),
            "{name}"
        );
        assert!(
            target[..4].iter().all(|group| group.load(SeqCst) == 0) && rig.bus.is_empty(),
            "{name}"
        );
        assert_eq!(
            u64::from(storage.word(0x300)) | u64::from(storage.word(0x304)) << 32,
            value,
            "{name}"
        );
    }
}

#[test]
fn a_self_ipi_by_icr_needs_delivery_even_with_ipi_virtualization() {
    for (delivery, done) in [(true, true), (false, false)] {
        let storage = Storage::new();
        let setup = Setup { ipi: true, delivery, ..Setup::REGISTERS };
        let outcome = Rig::running(&storage, setup).core.mmio_write(0x300, 4, 0x4_0051);
        assert_eq!(outcome == Outcome::Done, done);
    }
}

#[test]
fn devices_post_through_the_remapping_unit() {
    let storage = Storage::new();
    let rig = Rig::new(&storage, Setup::POSTED, Knobs::default());
    let iommu = Iommu::new(rig.memory.clone(), rig.bus.clone(), true);
    let entry = |vector: u64, urgent: u64| {
        let low = 1
            | urgent << 14
            | 1 << 15
            | vector << 16
            | (Storage::DESCRIPTOR >> 6 & 0x3ff_ffff) << 38;
        [low, Storage::DESCRIPTOR >> 32 << 32]
    };
    storage.descriptor[4].store(0x0000_0001_00f2_0000, SeqCst);
    assert_eq!(iommu.interrupt(entry(0x51, 0)), Ok(()));
    assert_eq!(rig.bus.take(), Some(PhysicalInterrupt { destination: 1, vector: NV }));
    assert_eq!(iommu.interrupt(entry(0x52, 1)), Ok(()));
    assert_eq!(rig.bus.take(), None, "ON is set");
    storage.descriptor[4].store(0x0000_0001_00f2_0002, SeqCst);
    assert_eq!(iommu.interrupt(entry(0x53, 0)), Ok(()));
    assert_eq!(rig.bus.take(), None, "SN is set");
    assert_eq!(iommu.interrupt(entry(0x54, 1)), Ok(()));
    assert!(rig.bus.take().is_some(), "urgent ignores SN");
    assert_eq!(storage.descriptor[1].load(SeqCst), 0xf << 0x11);
    assert_eq!(iommu.interrupt([0, 0]), Err(RemapFault::NotPresent));
    assert_eq!(iommu.interrupt([1, 0]), Err(RemapFault::NotPosted));
    let [low, high] = entry(0x51, 0);
    assert_eq!(iommu.interrupt([low | 4, high]), Err(RemapFault::Reserved));
    assert_eq!(iommu.interrupt([low, high | 1 << 20]), Err(RemapFault::Reserved));
}

#[test]
fn interrupts_travel_between_cores_as_the_seed_says() {
    let orders: Vec<Vec<usize>> = (0..20_u64)
        .map(|seed| {
            let memory = Arc::new(Memory::new());
            let mut machine =
                Machine::new(4, memory, Capability::full(), Knobs::default(), seed % 10);
            for destination in 0..4 {
                machine.bus().send(PhysicalInterrupt { destination, vector: 0x40 });
            }
            machine.bus().send(PhysicalInterrupt { destination: 9, vector: 0x40 });
            let mut order = Vec::new();
            while !machine.bus().is_empty() {
                if let Some((core, outcome)) = machine.arrive() {
                    assert_eq!(outcome, Outcome::Nothing);
                    assert_eq!(machine.cores[core].host_interrupt(), Some(0x40));
                    order.push(core);
                }
            }
            order
        })
        .collect();
    assert_eq!(orders[..10], orders[10..], "a seed replays");
    assert!(orders.iter().any(|order| order != &orders[0]), "seeds differ");
    for mut order in orders {
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3]);
    }
}
