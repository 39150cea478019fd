//! Virtual interrupts on the APICv model: TPR, EOI, self-IPI, delivery, posted interrupts, IPI virtualization.

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{Activity, ExitReason, Knobs, Outcome, Shadow, controls, field};

/// A running guest with vectors in VIRR, RVI the highest of them.
fn with_requests<'m>(storage: &'m Storage, setup: Setup, vectors: &[u8]) -> Rig<'m> {
    let mut rig = Rig::new(storage, setup, Knobs::default());
    vectors.iter().for_each(|vector| storage.request(*vector));
    rig.set_interrupt_status(vectors.iter().copied().max().unwrap_or(0), 0);
    rig.enter();
    rig
}

fn deliver(rig: &mut Rig<'_>) -> Outcome {
    rig.core.boundary(true, Shadow::None)
}

#[test]
fn delivery_moves_the_vector_from_irr_to_isr() {
    let storage = Storage::new();
    let mut rig = with_requests(&storage, Setup::DELIVERY, &[0x31, 0x51, 0xff]);
    for (vector, next) in [(0xff, 0x51), (0x51, 0x31), (0x31, 0)] {
        assert_eq!(deliver(&mut rig), Outcome::Delivered(vector));
        assert_eq!(storage.isr(), [vector]);
        assert_eq!(storage.word(0x0a0), u32::from(vector & 0xf0));
        assert_eq!(rig.core.interrupt_status(), Some((next, vector)));
        assert_eq!(deliver(&mut rig), Outcome::Nothing);
        assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    }
    assert_eq!((storage.irr(), storage.isr()), (vec![], vec![]));
    assert_eq!(rig.core.exits(), 0);
}

#[test]
fn what_blocks_delivery() {
    let storage = Storage::new();
    let mut rig = with_requests(&storage, Setup::DELIVERY, &[0x51]);
    assert_eq!(rig.core.boundary(false, Shadow::None), Outcome::Nothing);
    assert_eq!(rig.core.boundary(true, Shadow::Sti), Outcome::Nothing);
    assert_eq!(rig.core.boundary(true, Shadow::MovSs), Outcome::Nothing);
    assert_eq!(rig.core.shut_down(), Outcome::Done);
    assert_eq!(deliver(&mut rig), Outcome::Nothing);
    assert_eq!(rig.core.nmi(), Outcome::Delivered(2));
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x51));
}

#[test]
fn a_halted_guest_wakes() {
    let storage = Storage::new();
    let mut rig = with_requests(&storage, Setup::DELIVERY, &[0x51]);
    assert_eq!(rig.core.hlt(), Outcome::Done);
    assert_eq!(rig.core.boundary(false, Shadow::None), Outcome::Nothing);
    assert_eq!(rig.core.activity(), Some(Activity::Hlt));
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x51));
    assert_eq!(rig.core.activity(), Some(Activity::Active));
}

#[test]
fn nested_interrupts_and_the_ppr() {
    let storage = Storage::new();
    let mut rig = with_requests(&storage, Setup::DELIVERY, &[0x41]);
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x41));
    // The same class waits, a higher one does not.
    assert_eq!(rig.core.mmio_write(0x300, 4, 0x4_0042), Outcome::Done);
    assert_eq!(deliver(&mut rig), Outcome::Nothing);
    assert_eq!(rig.core.mmio_write(0x300, 4, 0x4_0050), Outcome::Done);
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x50));
    assert_eq!(storage.isr(), [0x41, 0x50]);
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    assert_eq!((storage.isr(), storage.word(0x0a0)), (vec![0x41], 0x40));
    assert_eq!(deliver(&mut rig), Outcome::Nothing);
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x42));
}

#[test]
fn three_ways_to_write_the_tpr() {
    for x2apic in [false, true] {
        let setup = if x2apic { Setup::DELIVERY.in_x2apic() } else { Setup::DELIVERY };
        let storage = Storage::new();
        let mut rig = with_requests(&storage, setup, &[0x51]);
        let write = |rig: &mut Rig<'_>, value: u64| match x2apic {
            true => rig.core.wrmsr(0x808, value),
            false => rig.core.mmio_write(0x080, 4, value),
        };
        assert_eq!(write(&mut rig, 0x5f), Outcome::Done);
        assert_eq!(deliver(&mut rig), Outcome::Nothing);
        assert_eq!(rig.core.read_cr8(), Outcome::Value(5));
        assert_eq!(rig.core.write_cr8(16), Outcome::GeneralProtection);
        assert_eq!(rig.core.write_cr8(4), Outcome::Done);
        assert_eq!((storage.word(0x080), storage.word(0x0a0)), (0x40, 0x40));
        assert_eq!(deliver(&mut rig), Outcome::Delivered(0x51));
        assert_eq!(rig.core.exits(), 0);
    }
}

#[test]
fn without_delivery_a_lower_tpr_exits_below_the_threshold() {
    let storage = Storage::new();
    storage.set_word(0x080, 0x70);
    let mut rig = Rig::new(&storage, Setup::REGISTERS, Knobs::default());
    rig.vmcs().set(field::TPR_THRESHOLD, 5);
    rig.enter();
    assert_eq!(rig.core.write_cr8(5), Outcome::Done);
    assert_eq!(rig.core.mmio_write(0x080, 4, 0x50), Outcome::Done);
    let outcome = rig.core.write_cr8(4);
    assert_eq!(outcome.reason(), Some((ExitReason::TprBelowThreshold, 0)));
    assert!(outcome.exit().expect("an exit").trap_like);
    assert_eq!(storage.word(0x080), 0x40);
    storage.set_word(0x080, 0x50);
    rig.enter();
    let outcome = rig.core.mmio_write(0x080, 4, 0x4f);
    assert_eq!(outcome.reason(), Some((ExitReason::TprBelowThreshold, 0)));
    assert_eq!(storage.word(0x0a0), 0, "VPPR is not virtualized here");
}

#[test]
fn cr8_exiting_comes_before_the_shadow() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    let bits = controls::primary::CR8_LOAD_EXITING | controls::primary::CR8_STORE_EXITING;
    rig.vmcs().set_bits(field::PRIMARY, bits);
    rig.enter();
    assert_eq!(rig.core.write_cr8(3).reason(), Some((ExitReason::CrAccess, 0x08)));
    rig.enter();
    assert_eq!(rig.core.read_cr8().reason(), Some((ExitReason::CrAccess, 0x18)));
    assert_eq!(storage.word(0x080), 0);
}

#[test]
fn without_the_shadow_cr8_is_the_hosts() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::NONE);
    assert_eq!(rig.core.write_cr8(3), Outcome::Done);
    assert_eq!((rig.core.physical.cr8, storage.word(0x080)), (3, 0));
    assert_eq!(rig.core.read_cr8(), Outcome::Value(3));
}

#[test]
fn an_eoi_exit_names_the_vector_that_ended() {
    for vector in [0x10, 0x3f, 0x40, 0x7f, 0x80, 0xbf, 0xc0, 0xff_u8] {
        let storage = Storage::new();
        let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
        // A lower vector in service as well, whose own bit is clear.
        storage.service(0x0f);
        storage.service(vector);
        rig.set_interrupt_status(0, vector);
        rig.vmcs().set(field::EOI_EXIT_BITMAP[usize::from(vector / 64)], 1 << (vector % 64));
        rig.enter();
        let outcome = rig.core.mmio_write(0x0b0, 4, 0x1234);
        assert_eq!(outcome.reason(), Some((ExitReason::VirtualizedEoi, vector.into())));
        assert!(outcome.exit().expect("an exit").trap_like);
        assert_eq!((storage.isr(), storage.word(0x0b0)), (vec![0x0f], 0));
        assert_eq!(rig.saved_interrupt_status(), (0, 0x0f));
    }
}

#[test]
fn an_eoi_exit_leaves_evaluation_to_the_next_entry() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    storage.service(0x51);
    storage.request(0x41);
    rig.set_interrupt_status(0x41, 0x51);
    rig.vmcs().set(field::EOI_EXIT_BITMAP[1], 1 << 0x11);
    rig.enter();
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0).reason(), Some((ExitReason::VirtualizedEoi, 0x51)));
    assert_eq!(storage.word(0x0a0), 0);
    rig.enter();
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x41));
}

#[test]
fn an_eoi_with_nothing_in_service() {
    for (literal, exits) in [(true, true), (false, false)] {
        let storage = Storage::new();
        let knobs = Knobs { spurious_eoi_is_vector_0: literal, ..Knobs::default() };
        let mut rig = Rig::new(&storage, Setup::DELIVERY, knobs);
        rig.vmcs().set(field::EOI_EXIT_BITMAP[0], 1);
        rig.enter();
        let wanted = exits.then_some((ExitReason::VirtualizedEoi, 0));
        assert_eq!(rig.core.mmio_write(0x0b0, 4, 0).reason(), wanted);
    }
}

#[test]
fn without_delivery_an_eoi_is_the_hypervisors() {
    let storage = Storage::new();
    storage.service(0x51);
    let mut rig = Rig::running(&storage, Setup::REGISTERS);
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0).reason(), Some((ExitReason::ApicWrite, 0x0b0)));
    assert_eq!(storage.isr(), [0x51]);
}

#[test]
fn eoi_and_self_ipi_by_msr() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::DELIVERY.in_x2apic());
    assert_eq!(rig.core.wrmsr(0x83f, 0x51), Outcome::Done);
    assert_eq!((storage.irr(), storage.word(0x3f0)), (vec![0x51], 0x51));
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x51));
    assert_eq!(rig.core.wrmsr(0x80b, 0), Outcome::Done);
    assert_eq!((storage.irr(), storage.isr()), (vec![], vec![]));
    assert_eq!(rig.core.wrmsr(0x83f, 0x0f).reason(), Some((ExitReason::ApicWrite, 0x3f0)));
    assert_eq!((storage.irr(), storage.word(0x3f0)), (vec![], 0x0f));
    assert_eq!(rig.core.exits(), 1);
}

#[test]
fn which_icr_values_are_self_ipis() {
    let bits_that_matter: [u32; 24] = [
        8, 9, 10, 12, 13, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 18, 4, 5,
    ];
    let good = 0x0004_0051;
    for (command, is_self) in
        [(good, true), (good | 1 << 11, true), (good | 1 << 14, true), (0x4_0010, true)]
            .into_iter()
            .chain([
                (0x4_000f, false),
                (0x4_0000, false),
                (0x51, false),
                (0x8_0051, false),
                (0xc_0051, false),
            ])
            // Each bit that must be as it is, flipped; of the vector's own bits any flip leaves a legal vector.
            .chain(bits_that_matter.map(|bit| (good ^ 1 << bit, bit < 8)))
    {
        let storage = Storage::new();
        let mut rig = Rig::running(&storage, Setup::DELIVERY);
        let outcome = rig.core.mmio_write(0x300, 4, command.into());
        if is_self {
            assert_eq!(outcome, Outcome::Done, "{command:#x}");
            assert_eq!(deliver(&mut rig), Outcome::Delivered(command as u8), "{command:#x}");
        } else {
            assert_eq!(outcome.reason(), Some((ExitReason::ApicWrite, 0x300)), "{command:#x}");
            assert_eq!(storage.irr(), [], "{command:#x}");
        }
        assert_eq!(storage.word(0x300), command);
    }
}

#[test]
fn a_self_ipi_never_lowers_rvi() {
    let storage = Storage::new();
    let mut rig = with_requests(&storage, Setup::DELIVERY, &[0x91]);
    assert_eq!(rig.core.mmio_write(0x300, 4, 0x4_0051), Outcome::Done);
    assert_eq!(rig.core.interrupt_status(), Some((0x91, 0)));
    assert_eq!(storage.irr(), [0x51, 0x91]);
}

#[test]
fn recognition_needs_a_new_evaluation() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::POSTED);
    // Software that edits VIRR of a running guest is neither heard nor unnoticed.
    storage.request(0x71);
    assert_eq!(deliver(&mut rig), Outcome::Nothing);
    assert_eq!(rig.core.page_violations(), [0x230]);
    // Nor is it heard later, because RVI is what counts.
    assert_eq!(rig.core.write_cr8(0), Outcome::Done);
    assert_eq!(deliver(&mut rig), Outcome::Nothing);
}

#[test]
fn interrupt_window_exiting_stops_recognition() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    storage.request(0x51);
    rig.set_interrupt_status(0x51, 0);
    rig.vmcs().set_bits(field::PRIMARY, controls::primary::INTERRUPT_WINDOW_EXITING);
    rig.enter();
    assert!(!rig.core.recognized());
    assert_eq!(rig.core.boundary(false, Shadow::None), Outcome::Nothing);
    assert_eq!(deliver(&mut rig).reason(), Some((ExitReason::InterruptWindow, 0)));
    assert_eq!(storage.irr(), [0x51]);
}

#[test]
fn rvi_is_saved_and_evaluated_again() {
    let storage = Storage::new();
    storage.set_word(0x080, 0xf0);
    let mut rig = with_requests(&storage, Setup::DELIVERY, &[0x31, 0x51]);
    rig.leave();
    assert_eq!(rig.saved_interrupt_status(), (0x51, 0));
    storage.set_word(0x080, 0);
    rig.enter();
    assert_eq!(deliver(&mut rig), Outcome::Delivered(0x51));
    rig.leave();
    assert_eq!(rig.saved_interrupt_status(), (0x31, 0x51));
}
