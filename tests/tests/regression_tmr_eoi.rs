//! Named scenarios of TMR, EOI and priorities.

use std::sync::atomic::{AtomicU32, Ordering};

use vlapic_core::{
    ApicPage, Effect, Inbox, LocalApic, Notify, Outcome, Profile, Register, Slot, Trigger, Vector,
};
use vlapic_tests::plain::Plain;

fn request(plain: &Plain, vector: u8, trigger: Trigger) {
    assert_eq!(plain.slot.request(vector, trigger).outcome, Outcome::Accepted);
}

/// An inbox that looks at TMR at the moment a vector becomes visible.
#[derive(Default)]
struct Witness {
    level_seen: AtomicU32,
}

impl Inbox for Witness {
    fn post(&self, page: &ApicPage, vector: Vector, trigger: Trigger) -> Notify {
        assert_eq!(page.tmr().contains(vector), trigger == Trigger::Level);
        self.level_seen.fetch_add(u32::from(trigger == Trigger::Level), Ordering::SeqCst);
        page.irr().insert(vector);
        Notify::Kick
    }

    fn attention(&self) -> Notify {
        Notify::Kick
    }

    fn retract(&self, page: &ApicPage, vector: Vector) -> bool {
        page.irr().remove(vector)
    }

    fn collect(&self, _: &ApicPage) {}

    fn discard(&self) {}
}

#[test]
fn tmr_before_irr() {
    let page = ApicPage::new();
    let slot = Slot::new(&page, 0, Profile::intel(), Witness::default());
    let mut apic = LocalApic::new(&slot, true);
    let _ = apic.write_mmio(0xF0, vlapic_core::Width::Dword, 0x1FF, 0);
    for vector in 16..=255 {
        for trigger in [Trigger::Level, Trigger::Edge] {
            assert_eq!(slot.request(vector, trigger).outcome, Outcome::Accepted);
        }
    }
    assert_eq!(slot.inbox().level_seen.load(Ordering::SeqCst), 240);
}

#[test]
fn tmr_cleared_on_edge_acceptance_not_eoi() {
    let mut plain = Plain::enabled(Profile::intel());
    request(&plain, 0x61, Trigger::Level);
    assert_eq!(plain.apic.acknowledge(), 0x61);
    let ended = Effect::EndOfInterrupt(Vector::new(0x61).unwrap());
    assert_eq!(plain.write(Register::Eoi, 0), ended);
    assert_eq!(plain.load(0x1B0), 1 << 1, "EOI leaves it");
    request(&plain, 0x61, Trigger::Edge);
    assert_eq!(plain.load(0x1B0), 0, "the edge clears it");
    assert_eq!(plain.apic.acknowledge(), 0x61);
    assert_eq!(plain.write(Register::Eoi, 0), Effect::None);
}

#[test]
fn edge_eoi_stays_local() {
    let mut plain = Plain::enabled(Profile::intel());
    for vector in 16..=255 {
        request(&plain, vector, Trigger::Edge);
        assert_eq!(plain.apic.acknowledge(), vector);
        assert_eq!(plain.write(Register::Eoi, 0), Effect::None);
    }
}

#[test]
fn eoi_taken_by_hardware() {
    // Virtual EOI: ISR is clear already when the exit comes.
    let mut plain = Plain::enabled(Profile::intel());
    request(&plain, 0x61, Trigger::Level);
    let vector = Vector::new(0x61).unwrap();
    assert_eq!(plain.apic.acknowledge(), 0x61);
    plain.slot.page().isr().remove(vector);
    assert_eq!(plain.apic.after_virtual_eoi(vector), Effect::EndOfInterrupt(vector));
    plain.set(Register::Svr, 0x11FF);
    assert_eq!(plain.apic.after_virtual_eoi(vector), Effect::None, "suppressed");
}

#[test]
fn ppr_single_definition() {
    // What nominate says, what PPR reads, and what APR is built on are one.
    for in_service in [None, Vector::new(0x10), Vector::new(0x5F), Vector::new(0xFF)] {
        for tpr in 0..=255u32 {
            let mut plain = Plain::enabled(Profile::amd());
            if let Some(vector) = in_service {
                plain.slot.page().isr().insert(vector);
            }
            plain.set(Register::Tpr, tpr);
            let ppr = plain.read(Register::Ppr);
            assert_eq!(ppr, u32::from(plain.apic.processor_priority()));
            assert_eq!(ppr, plain.slot.page().read(Register::Ppr));
            assert_eq!(plain.read(Register::Apr) & 0xF0, ppr & 0xF0);
            for class in 1..=15u8 {
                plain.slot.page().irr().clear();
                request(&plain, class << 4, Trigger::Edge);
                let nominated = plain.apic.nominate().is_some();
                assert_eq!(nominated, u32::from(class) > ppr >> 4);
            }
        }
    }
}

#[test]
fn cr8_vs_tpr() {
    let mut plain = Plain::enabled(Profile::intel());
    for value in 0..16 {
        let _ = plain.apic.write_cr8(value, 0).unwrap();
        assert_eq!(u64::from(plain.load(0x080)), value << 4, "one storage");
        assert_eq!(plain.apic.read_cr8(), value);
    }
    assert!(plain.apic.write_cr8(16, 0).is_err());
    plain.set_msr(0x1B, 0xFEE0_0100);
    let _ = plain.apic.write_cr8(9, 0).unwrap();
    assert_eq!(plain.apic.read_cr8(), 9, "without an APIC too");
    plain.slot.page().write(Register::Tpr, 0xFFFF_FFFF);
    assert_eq!(plain.apic.read_cr8(), 15, "a scribbled TPR is masked");
}
