//! Delivery, priority, EOI, HLT and NMI on the AVIC model.

use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{GuestOp, Knobs, Outcome, VmExit, code, control, field, intercept};

fn running(storage: &Storage) -> Rig<'_> {
    running_with(storage, Knobs::default())
}

fn running_with(storage: &Storage, knobs: Knobs) -> Rig<'_> {
    let mut rig = Rig::new(storage, 2, knobs);
    rig.enter(0, 0);
    rig
}

/// Every pair of a task priority and a vector.
#[test]
fn a_request_is_delivered_above_the_task_priority_only() {
    for class in 0..16 {
        for vector in (0x10..=0xff_u8).step_by(0x10) {
            let storage = Storage::new(1);
            storage.vcpu(0).set_word(0x080, class << 4 | 0xf);
            storage.vcpu(0).request(vector);
            let mut rig = running(&storage);
            let wanted = if u32::from(vector >> 4) > class {
                Outcome::Delivered(vector)
            } else {
                Outcome::Nothing
            };
            assert_eq!(rig.machine.cores[0].boundary(true, false), wanted);
        }
    }
}

#[test]
fn delivery_moves_the_highest_request_into_service() {
    let storage = Storage::new(1);
    let page = storage.vcpu(0);
    for vector in [0x35, 0x61, 0x68] {
        page.request(vector);
    }
    let mut rig = running(&storage);
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.boundary(true, false), Outcome::Delivered(0x68));
    assert_eq!((page.irr(), page.isr(), page.word(0xa0)), (vec![0x35, 0x61], vec![0x68], 0x60));
    assert_eq!(core.interrupt_flag(), Some(false));
    assert_eq!(core.boundary(true, false), Outcome::Nothing, "same class");
    page.request(0x71);
    core.doorbell();
    assert_eq!(core.poll(), Outcome::Delivered(0x71));
    for (eoi, next) in [(0x60, Outcome::Nothing), (0x00, Outcome::Delivered(0x61))] {
        assert_eq!(core.mmio_write(0xb0, 0), Outcome::Done);
        assert_eq!(page.word(0xa0), eoi);
        assert_eq!(core.boundary(true, false), next);
    }
}

#[test]
fn ppr_for_every_pair_of_tpr_and_service() {
    for tpr in 0..=0xff_u32 {
        for in_service in [None, Some(0x10), Some(0x5f), Some(0xa1), Some(0xff)] {
            let storage = Storage::new(1);
            if let Some(vector) = in_service {
                storage.vcpu(0).service(vector);
            }
            let mut rig = running(&storage);
            assert_eq!(rig.machine.cores[0].mmio_write(0x080, tpr), Outcome::Done);
            let class = in_service.map_or(0, |vector| u32::from(vector) & 0xf0);
            let wanted = if tpr & 0xf0 >= class { tpr } else { class };
            assert_eq!(storage.vcpu(0).word(0xa0), wanted, "{tpr:#x} {in_service:?}");
        }
    }
}

#[test]
fn lowering_tpr_lets_a_request_in() {
    for by_cr8 in [false, true] {
        let storage = Storage::new(1);
        storage.vcpu(0).set_word(0x080, 0x80);
        storage.vcpu(0).request(0x71);
        let mut rig = running(&storage);
        let core = &mut rig.machine.cores[0];
        assert_eq!(core.boundary(true, false), Outcome::Nothing);
        let lowered = if by_cr8 {
            core.run(GuestOp::WriteCr8 { value: 6 })
        } else {
            core.mmio_write(0x080, 0x6f)
        };
        assert_eq!(lowered, Outcome::Done);
        assert_eq!(core.poll(), Outcome::Delivered(0x71));
    }
}

#[test]
fn what_blocks_delivery() {
    for (interrupt_flag, shadow, gif, delivered) in [
        (true, false, None, true),
        (false, false, None, false),
        (true, true, None, false),
        (true, false, Some(true), true),
        (true, false, Some(false), false),
    ] {
        let storage = Storage::new(1);
        storage.vcpu(0).request(0x51);
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        let mut vmcb = rig.vmcb(0);
        if let Some(gif) = gif {
            let value = if gif { control::V_GIF } else { 0 };
            vmcb.set_bits64(field::VIRTUAL_INTERRUPT, control::V_GIF_ENABLE | value);
        }
        rig.try_enter(0, vmcb).unwrap();
        let outcome = rig.machine.cores[0].boundary(interrupt_flag, shadow);
        assert_eq!(outcome == Outcome::Delivered(0x51), delivered);
    }
}

#[test]
fn the_shadow_lasts_for_one_instruction() {
    let storage = Storage::new(1);
    storage.vcpu(0).request(0x51);
    let mut rig = running(&storage);
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.boundary(true, true), Outcome::Nothing);
    assert_eq!(core.poll(), Outcome::Nothing);
    assert_eq!(core.run(GuestOp::ReadCr8), Outcome::Value(0));
    assert_eq!(core.poll(), Outcome::Delivered(0x51));
}

#[test]
fn the_fields_of_a_single_virtual_interrupt_do_not_count() {
    let storage = Storage::new(1);
    let mut rig = Rig::new(&storage, 1, Knobs::default());
    let mut vmcb = rig.vmcb(0);
    vmcb.set_bits64(
        field::VIRTUAL_INTERRUPT,
        control::V_IRQ | 0xf << 16 | control::V_IGN_TPR | 0x61 << 32,
    );
    rig.try_enter(0, vmcb).unwrap();
    assert_eq!(rig.machine.cores[0].boundary(true, false), Outcome::Nothing);
}

#[test]
fn eoi_of_an_edge() {
    let storage = Storage::new(1);
    storage.vcpu(0).service(0x61);
    storage.vcpu(0).service(0x42);
    let mut rig = running(&storage);
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.mmio_write(0xb0, 0), Outcome::Done);
    assert_eq!(storage.vcpu(0).isr(), [0x42]);
    assert_eq!(core.mmio_write(0xb0, 0), Outcome::Done);
    assert_eq!(core.mmio_write(0xb0, 0), Outcome::Done, "nothing in service");
    assert_eq!((storage.vcpu(0).isr(), storage.vcpu(0).word(0xa0)), (vec![], 0));
}

#[test]
fn eoi_of_a_level() {
    for x2avic in [false, true] {
        for (level_eoi_clears_isr, left) in [(false, vec![0x42, 0x61]), (true, vec![0x42])] {
            let storage = Storage::new(1);
            storage.vcpu(0).service(0x42);
            storage.vcpu(0).service(0x61);
            storage.vcpu(0).mark_level(0x61);
            let knobs = Knobs { level_eoi_clears_isr, ..Knobs::default() };
            let mut rig = Rig { x2avic, ..Rig::new(&storage, 1, knobs) };
            rig.enter(0, 0);
            let core = &mut rig.machine.cores[0];
            let outcome = if x2avic { core.wrmsr(0x80b, 0) } else { core.mmio_write(0xb0, 0) };
            assert_eq!(
                outcome,
                Outcome::Exit(VmExit {
                    code: code::NO_ACCELERATION,
                    info_1: 0x0000_0001_0000_00b0,
                    info_2: 0x61,
                    trap: true
                })
            );
            assert_eq!(storage.vcpu(0).isr(), left);
            assert_eq!(storage.vcpu(0).word(0xa0), if left.len() == 2 { 0x60 } else { 0x40 });
        }
    }
}

#[test]
fn only_the_highest_vector_in_service_decides_about_an_eoi() {
    let storage = Storage::new(1);
    storage.vcpu(0).service(0x42);
    storage.vcpu(0).mark_level(0x42);
    storage.vcpu(0).service(0x61);
    let mut rig = running(&storage);
    assert_eq!(rig.machine.cores[0].mmio_write(0xb0, 0), Outcome::Done);
    assert!(rig.machine.cores[0].mmio_write(0xb0, 0).exit().is_some());
}

#[test]
fn undefined_bits_at_a_level_eoi() {
    let storage = Storage::new(1);
    storage.vcpu(0).service(0x61);
    storage.vcpu(0).mark_level(0x61);
    let knobs = Knobs { undefined_bits_are_set: true, ..Knobs::default() };
    let mut rig = running_with(&storage, knobs);
    let exit = rig.machine.cores[0].mmio_write(0xb0, 0).exit().unwrap();
    assert_eq!(exit.info_2, 0xffff_ffff_ffff_ff61);
    assert_eq!(exit.info_1 & 0x1_0000_0ff0, 0x1_0000_00b0);
}

#[test]
fn ppr_at_vmrun_under_both_readings() {
    for (vmrun_computes_ppr, delivered) in [(true, true), (false, false)] {
        let storage = Storage::new(1);
        // What remains when software ends an interrupt and leaves PPR as it was.
        storage.vcpu(0).set_word(0xa0, 0x60);
        storage.vcpu(0).request(0x51);
        let mut rig = running_with(&storage, Knobs { vmrun_computes_ppr, ..Knobs::default() });
        let outcome = rig.machine.cores[0].boundary(true, false);
        assert_eq!(outcome == Outcome::Delivered(0x51), delivered);
    }
}

#[test]
fn physical_interrupts_come_first() {
    for (host_flag, intr_ignores_host_if, exits) in
        [(true, false, true), (true, true, true), (false, false, false), (false, true, true)]
    {
        let storage = Storage::new(1);
        storage.vcpu(0).request(0x51);
        let knobs = Knobs { intr_ignores_host_if, ..Knobs::default() };
        let mut rig = Rig::new(&storage, 1, knobs);
        rig.machine.cores[0].set_host_interrupt_flag(host_flag);
        rig.enter(0, 0);
        let core = &mut rig.machine.cores[0];
        core.physical_interrupt(0x30);
        let outcome = core.boundary(true, false);
        if exits {
            assert_eq!(outcome.exit().map(|exit| exit.code), Some(code::INTR));
            assert_eq!(storage.vcpu(0).irr(), [0x51]);
        } else {
            assert_eq!(outcome, Outcome::Delivered(0x51));
        }
    }
}

#[test]
fn the_interrupt_window_under_both_readings() {
    for works in [false, true] {
        let storage = Storage::new(1);
        storage.vcpu(0).request(0x51);
        let knobs = Knobs { vintr_intercept_works_with_avic: works, ..Knobs::default() };
        let mut rig = Rig::new(&storage, 1, knobs);
        let mut vmcb = rig.vmcb(0);
        vmcb.set_bits32(field::INTERCEPTS_3, intercept::VINTR);
        rig.try_enter(0, vmcb).unwrap();
        let outcome = rig.machine.cores[0].boundary(true, false);
        assert_eq!(outcome == Outcome::Delivered(0x51), !works);
        assert_eq!(outcome.exit().is_some_and(|exit| exit.code == code::VINTR), works);
    }
}

/// Intercepts, what is pending, and what HLT then does: exit 78h, exit A6h, or none.
#[test]
fn hlt() {
    for (hlt, idle, request, exit) in [
        (false, false, None, None),
        (true, false, None, Some(0x78)),
        (true, true, Some(0x51), Some(0x78)),
        (false, true, None, Some(0xa6)),
        (false, true, Some(0x51), None),
        (false, true, Some(0x21), Some(0xa6)),
    ] {
        let storage = Storage::new(1);
        storage.vcpu(0).set_word(0x080, 0x40);
        if let Some(vector) = request {
            storage.vcpu(0).request(vector);
        }
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        let mut vmcb = rig.vmcb(0);
        if hlt {
            vmcb.set_bits32(field::INTERCEPTS_3, intercept::HLT);
        }
        if idle {
            vmcb.set_bits32(field::INTERCEPTS_5, intercept::IDLE_HLT);
        }
        rig.try_enter(0, vmcb).unwrap();
        let core = &mut rig.machine.cores[0];
        assert_eq!(core.boundary(false, false), Outcome::Nothing);
        let outcome = core.run(GuestOp::Hlt);
        assert_eq!(outcome.exit().map(|exit| exit.code), exit);
        assert_eq!(core.is_halted(), exit.is_none());
    }
}

#[test]
fn idle_hlt_under_the_other_reading() {
    let storage = Storage::new(1);
    storage.vcpu(0).set_word(0x080, 0x40);
    storage.vcpu(0).request(0x21);
    let knobs = Knobs { idle_hlt_ignores_priority: true, ..Knobs::default() };
    let mut rig = Rig::new(&storage, 1, knobs);
    let mut vmcb = rig.vmcb(0);
    vmcb.set_bits32(field::INTERCEPTS_5, intercept::IDLE_HLT);
    rig.try_enter(0, vmcb).unwrap();
    assert_eq!(rig.machine.cores[0].run(GuestOp::Hlt), Outcome::Done);
}

#[test]
fn virtual_nmi() {
    let storage = Storage::new(1);
    let mut rig = Rig::new(&storage, 1, Knobs::default());
    let mut vmcb = rig.vmcb(0);
    vmcb.set_bits64(field::VIRTUAL_INTERRUPT, control::V_NMI_ENABLE | control::V_NMI);
    rig.try_enter(0, vmcb).unwrap();
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.boundary(false, true), Outcome::Nothing, "in the interrupt shadow");
    assert_eq!(core.boundary(false, false), Outcome::DeliveredNmi, "RFLAGS.IF does not matter");
    let mut vmcb = rig.leave(0);
    let bits = control::V_NMI | control::V_NMI_MASK;
    assert_eq!(vmcb.get64(field::VIRTUAL_INTERRUPT) & bits, control::V_NMI_MASK);
    vmcb.set_bits64(field::VIRTUAL_INTERRUPT, control::V_NMI);
    rig.try_enter(0, vmcb).unwrap();
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.boundary(true, false), Outcome::Nothing, "masked until IRET");
    assert_eq!(core.run(GuestOp::Iret), Outcome::Done);
    assert_eq!(core.poll(), Outcome::DeliveredNmi);
}

#[test]
fn a_physical_nmi_exits() {
    let storage = Storage::new(1);
    let mut rig = running(&storage);
    assert_eq!(rig.machine.cores[0].nmi().exit().map(|exit| exit.code), Some(code::NMI));
}
