//! Long seeded sequences on the APICv model against a simple reference: sets of vectors that wait and are in service.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{
    Activity, Capability, ExitReason, Knobs, Machine, Memory, Outcome, Shadow, field,
};

const NV: u8 = Rig::NOTIFICATION_VECTOR;

/// What the vCPU's interrupts should be.
#[derive(Debug, Default)]
struct Reference {
    /// In VIRR.
    requested: BTreeSet<u8>,
    /// In PIR.
    posted: BTreeSet<u8>,
    /// In VISR.
    in_service: BTreeSet<u8>,
    tpr: u8,
    exits_at_eoi: BTreeSet<u8>,
}

impl Reference {
    fn ppr(&self) -> u8 {
        let serviced = self.in_service.last().copied().unwrap_or(0);
        if self.tpr >> 4 >= serviced >> 4 { self.tpr } else { serviced & 0xf0 }
    }

    /// The vector that an open boundary delivers.
    fn deliverable(&self) -> Option<u8> {
        self.requested.last().copied().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    fn sync(&mut self) {
        self.requested.append(&mut self.posted);
    }
}

/// Checks page, descriptor and internal state against the reference.
fn compare(rig: &Rig<'_>, reference: &Reference, said: &str) {
    let sorted = |set: &BTreeSet<u8>| set.iter().copied().collect::<Vec<_>>();
    assert_eq!(rig.storage.irr(), sorted(&reference.requested), "VIRR {said}");
    assert_eq!(rig.storage.isr(), sorted(&reference.in_service), "VISR {said}");
    assert_eq!(rig.storage.word(0x080), reference.tpr.into(), "VTPR {said}");
    assert_eq!(rig.storage.word(0x0a0), reference.ppr().into(), "VPPR {said}");
    let highest = |set: &BTreeSet<u8>| set.last().copied().unwrap_or(0);
    let status = (highest(&reference.requested), highest(&reference.in_service));
    assert_eq!(rig.core.interrupt_status(), Some(status), "RVI and SVI {said}");
    assert_eq!(rig.core.recognized(), reference.deliverable().is_some(), "recognition {said}");
}

fn run(seed: u64, steps: usize) -> usize {
    let mut schedule =
        Machine::new(1, Arc::new(Memory::new()), Capability::full(), Knobs::default(), seed);
    let x2apic = schedule.pick(2) == 1;
    let setup = if x2apic { Setup::POSTED.in_x2apic() } else { Setup::POSTED };
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, setup, Knobs::default());
    let mut reference = Reference::default();
    for vector in 16..=255 {
        if schedule.pick(16) == 0 {
            reference.exits_at_eoi.insert(vector);
            let bitmap = field::EOI_EXIT_BITMAP[usize::from(vector / 64)];
            let bits = rig.vmcs().get(bitmap);
            rig.vmcs().set(bitmap, bits | 1 << (vector % 64));
        }
    }
    rig.enter();
    let mut delivered = 0;

    for step in 0..steps {
        let action = [0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 6][schedule.pick(12)];
        let vector = 16 + schedule.pick(240) as u8;
        let said = format!("seed {seed} step {step}: action {action} vector {vector:#x}");
        if rig.core.activity() == Some(Activity::Hlt) && matches!(action, 0..=3) {
            continue;
        }
        match action {
            0 => {
                // Mostly low, or little is ever delivered.
                let tpr = if schedule.pick(4) == 0 { vector & 0xf0 } else { vector & 0x30 };
                let outcome = match schedule.pick(2) {
                    0 => rig.core.write_cr8(u64::from(tpr >> 4)),
                    _ if x2apic => rig.core.wrmsr(0x808, u64::from(tpr)),
                    _ => rig.core.mmio_write(0x080, 4, u64::from(tpr)),
                };
                assert_eq!(outcome, Outcome::Done, "{said}");
                reference.tpr = tpr;
            }
            1 => {
                let outcome = match x2apic {
                    true => rig.core.wrmsr(0x83f, vector.into()),
                    false => rig.core.mmio_write(0x300, 4, 0x4_0000 | u64::from(vector)),
                };
                assert_eq!(outcome, Outcome::Done, "{said}");
                reference.requested.insert(vector);
            }
            2 => {
                let Some(&ends) = reference.in_service.last() else { continue };
                let outcome = if x2apic {
                    rig.core.wrmsr(0x80b, 0)
                } else {
                    rig.core.mmio_write(0x0b0, 4, 0)
                };
                reference.in_service.remove(&ends);
                if reference.exits_at_eoi.contains(&ends) {
                    assert_eq!(
                        outcome.reason(),
                        Some((ExitReason::VirtualizedEoi, ends.into())),
                        "{said}"
                    );
                    rig.enter();
                } else {
                    assert_eq!(outcome, Outcome::Done, "{said}");
                }
            }
            3 => assert_eq!(rig.core.hlt(), Outcome::Done, "{said}"),
            4 => {
                let notify = storage.post(vector);
                reference.posted.insert(vector);
                // The notification is sometimes late: it comes with a later post or never, and ON stays set.
                if notify && schedule.pick(2) == 0 {
                    rig.core.raise(NV);
                }
            }
            5 => {
                rig.core.raise(NV);
                let outcome = rig.core.boundary(false, Shadow::None);
                assert_eq!(outcome, Outcome::Posted, "{said}");
                reference.sync();
                assert_eq!(storage.descriptor[4].load(SeqCst), 0, "{said}");
            }
            _ => {
                // What is already recognized comes before a notification that waits at the physical APIC.
                let first = reference.deliverable();
                let notified = rig.core.physical.pending() == Some(NV);
                let outcome = rig.core.boundary(true, Shadow::None);
                if first.is_none() && notified {
                    reference.sync();
                }
                let wanted = match first.or_else(|| reference.deliverable()) {
                    Some(vector) => Outcome::Delivered(vector),
                    None if notified => Outcome::Posted,
                    None => Outcome::Nothing,
                };
                assert_eq!(outcome, wanted, "{said}");
                if let Outcome::Delivered(vector) = outcome {
                    reference.requested.remove(&vector);
                    reference.in_service.insert(vector);
                    delivered += 1;
                }
            }
        }
        compare(&rig, &reference, &said);
    }
    assert_eq!((rig.memory.stray_accesses(), rig.core.page_violations().len()), (0, 0));
    delivered
}

#[test]
fn sequences_agree_with_sets_of_vectors() {
    let delivered: usize = (0..60).map(|seed| run(seed, 400)).sum();
    assert!(delivered > 500, "the sequences deliver something: {delivered}");
}
