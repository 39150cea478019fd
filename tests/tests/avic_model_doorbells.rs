//! Doorbells on the AVIC model: in time, late, and at a core that has moved on.

use vlapic_hal::{MsrError, WriteMsr};
use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{DOORBELL_MSR, DoorbellRegister, GuestOp, Knobs, Outcome};

fn running(storage: &Storage) -> Rig<'_> {
    running_with(storage, Knobs::default())
}

fn running_with(storage: &Storage, knobs: Knobs) -> Rig<'_> {
    let mut rig = Rig::new(storage, 2, knobs);
    rig.enter(0, 0);
    rig
}

#[test]
fn a_request_without_a_doorbell_is_not_noticed() {
    let storage = Storage::new(1);
    let mut rig = running(&storage);
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.boundary(true, false), Outcome::Nothing);
    storage.vcpu(0).request(0x51);
    assert_eq!(core.boundary(true, false), Outcome::Nothing);
    core.doorbell();
    assert_eq!(core.poll(), Outcome::Delivered(0x51));
}

#[test]
fn a_doorbell_counts_even_while_interrupts_are_off() {
    let storage = Storage::new(1);
    let mut rig = running(&storage);
    let core = &mut rig.machine.cores[0];
    storage.vcpu(0).request(0x51);
    core.doorbell();
    assert_eq!(core.boundary(false, false), Outcome::Nothing);
    assert_eq!(core.boundary(true, false), Outcome::Delivered(0x51));
}

#[test]
fn a_doorbell_between_the_steps_of_an_instruction() {
    for ring_after in 0..3 {
        let storage = Storage::new(1);
        let mut rig = running(&storage);
        let core = &mut rig.machine.cores[0];
        let _ = core.boundary(true, false);
        core.begin(GuestOp::WriteCr8 { value: 1 });
        for step in 0..3 {
            if step == ring_after {
                storage.vcpu(0).request(0x51);
                core.doorbell();
            }
            let _ = core.step();
        }
        assert_eq!(core.poll(), Outcome::Delivered(0x51), "after step {ring_after}");
    }
}

/// A doorbell that arrives late meets the host, or another vCPU. Neither loses the interrupt, and neither is harmed.
#[test]
fn late_doorbells() {
    let storage = Storage::new(3);
    let mut rig = running(&storage);
    rig.enter(1, 1);
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.mmio_write(0x310, 0x0100_0000), Outcome::Done);
    assert_eq!(core.mmio_write(0x300, 0x51), Outcome::Done);
    // vCPU 1 has left before the doorbell arrives, and moves to another core.
    rig.leave(1);
    rig.machine.cores[1].doorbell();
    assert_eq!(rig.machine.cores[1].stray_doorbells(), 1);
    rig.enter(1, 2);
    rig.machine.cores[1].doorbell();
    assert_eq!(rig.machine.cores[1].boundary(true, false), Outcome::Nothing);
    rig.leave(0);
    rig.enter(0, 1);
    assert_eq!(rig.machine.cores[0].boundary(true, false), Outcome::Delivered(0x51));
}

#[test]
fn doorbells_wait_for_the_schedule_if_they_are_late() {
    for late in [false, true] {
        let orders: std::collections::BTreeSet<_> = (0..64)
            .map(|seed| {
                let storage = Storage::new(2);
                let knobs = Knobs { late_doorbells: late, ..Knobs::default() };
                let capability = vlapic_tests::avic_model::Capability::full();
                let mut rig = Rig::with(&storage, 2, capability, knobs, seed);
                rig.enter(0, 0);
                rig.machine.cores[0].begin(GuestOp::WriteCr8 { value: 1 });
                rig.machine.doorbells().ring(1);
                let mut order = Vec::new();
                while let Some(event) = rig.machine.advance() {
                    order.push(format!("{event:?}"));
                }
                order
            })
            .collect();
        assert_eq!(orders.len() > 1, late);
    }
}

#[test]
fn the_doorbell_register() {
    for (doorbell_takes_wide_ids, id, rings) in
        [(true, 0x1a5, true), (false, 0xff, true), (false, 0x1a5, false)]
    {
        let storage = Storage::new(1);
        let knobs = Knobs { doorbell_takes_wide_ids, ..Knobs::default() };
        let rig = running_with(&storage, knobs);
        let mut register = DoorbellRegister::new(rig.machine.doorbells().clone(), knobs);
        let refused = MsrError::GeneralProtection(DOORBELL_MSR);
        let wanted = if rings { Ok(()) } else { Err(refused) };
        assert_eq!(register.write_msr(0xc001_011b, id), wanted);
        assert_eq!(rig.machine.doorbells().take(), rings.then_some(id as u32));
        assert_eq!(register.write_msr(0x1b, 0), Err(MsrError::Unavailable(0x1b)));
    }
}

#[test]
fn a_doorbell_wakes_a_halted_guest() {
    let storage = Storage::new(1);
    let mut rig = running(&storage);
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.boundary(true, false), Outcome::Nothing);
    assert_eq!(core.run(GuestOp::Hlt), Outcome::Done);
    assert_eq!(core.poll(), Outcome::Nothing);
    assert!(core.is_halted());
    storage.vcpu(0).request(0x51);
    core.doorbell();
    assert_eq!(core.poll(), Outcome::Delivered(0x51));
    assert!(!core.is_halted());
}
