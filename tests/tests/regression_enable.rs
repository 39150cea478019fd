//! Named scenarios of what "enabled" means. Each is a mistake that comes of keeping a copy of the
//! enable state beside SVR and IA32_APIC_BASE.

use vlapic_core::{
    Delivery, Destination, Event, LvtEntry, Message, Outcome, Pin, Profile, Register, Trigger,
    Vector,
};
use vlapic_tests::plain::{Plain, WAYS, Way, vm};

#[test]
fn restore_flag_contradicts_page() {
    // The page is all there is to restore.
    let plain = Plain::new(Profile::intel());
    plain.slot.page().write(Register::Svr, 0x1FF);
    assert!(plain.slot.accepts());
    assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
}

#[test]
fn external_irq_while_sw_disabled() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8052);
    plain.set(Register::Svr, 0xFF);
    for trigger in [Trigger::Edge, Trigger::Level] {
        assert_eq!(plain.slot.request(0x61, trigger).outcome, Outcome::Refused, "ask again");
    }
    let _ = plain.slot.set_lint(Pin::Lint0, true);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), []);
    assert_eq!(plain.load(0x350), 0x1_8052, "no remote IRR from a refused message");
    plain.enable();
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8052);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [0x52], "the level is still there");
}

#[test]
fn staged_irq_kept_over_transient_disable() {
    for way in WAYS {
        let mut plain = Plain::enabled(Profile::intel());
        assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
        plain.write_svr(way, 0xFF);
        let _ = plain.apic.prepare(0);
        assert_eq!(plain.load(0x220), 1 << 21, "readable while off");
        plain.write_svr(way, 0x1FF);
        let _ = plain.apic.prepare(0);
        assert_eq!(plain.apic.acknowledge(), 0x55);
        assert_eq!(plain.irr(), [], "once");
        assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
        plain.apic.reset(true);
        assert_eq!(plain.irr(), [], "RESET discards");
    }
}

#[test]
fn pending_timer_irr_at_soft_disable() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.set(Register::InitialCount, 1);
    let _ = plain.apic.prepare(100);
    plain.set(Register::Svr, 0xFF);
    assert_eq!(plain.slot.receive(Delivery::Nmi).outcome, Outcome::Accepted);
    assert_eq!(plain.apic.take_event(), Some(Event::Nmi));
    assert_eq!(plain.irr(), [0x41], "held, not lost");
}

#[test]
fn svr_last_not_restored() {
    let mut plain = Plain::new(Profile::intel());
    plain.slot.page().write(Register::Svr, 0x1FF);
    plain.slot.page().write(Register::Lvt(LvtEntry::Error), 0x99);
    plain.set(Register::Svr, 0xFF);
    assert_eq!(plain.load(0x370), 0x1_0099, "no old value decides about the masks");
}

#[test]
fn svr_toggle_restarts_timer() {
    for way in WAYS {
        let mut plain = Plain::enabled(Profile::intel());
        plain.set(Register::DivideConfiguration, 0xB);
        let _ = plain.write_lvt(LvtEntry::Timer, 0x2_0041);
        plain.set(Register::InitialCount, 100);
        plain.now = 50;
        plain.write_svr(way, 0xFF);
        let _ = plain.apic.prepare(50);
        plain.write_svr(way, 0x1FF);
        assert_eq!(plain.load(0x390), 50, "{way:?}");
        assert_eq!(plain.apic.prepare(50).deadline, Some(100));
    }
}

#[test]
fn lvt_unmask_while_sw_disabled() {
    for way in WAYS {
        let mut plain = Plain::enabled(Profile::intel());
        plain.write_svr(way, 0xFF);
        let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
        assert_eq!(plain.load(0x320), 0x1_0041);
        plain.write_svr(way, 0x1FF);
        assert_eq!(plain.load(0x320), 0x1_0041, "until the guest clears it");
        let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
        assert_eq!(plain.load(0x320), 0x41);
    }
}

#[test]
fn hw_disable_pic_passthrough() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.slot.set_lint(Pin::Lint0, true);
    plain.set(Register::Svr, 0xFF);
    assert!(!plain.apic.external_interrupt_pending(), "software-disabled is not absent");
    plain.set_msr(0x1B, 0xFEE0_0100);
    assert!(plain.apic.external_interrupt_pending());
}

#[test]
fn lowest_priority_skips_disabled() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1]);
    vcpus[1].enable();
    let delivery = Delivery::LowestPriority { vector: 0x50, trigger: Trigger::Edge };
    let message = Message::new(delivery, Destination::All);
    assert_eq!(vm.send(&message, None).map(|(index, _)| index).collect::<Vec<_>>(), [1]);
    assert_eq!(vcpus[1].irr(), [0x50]);
}

#[test]
fn vector_0x10_to_0x1f() {
    for vector in 0x10..=0x1F {
        let mut plain = Plain::enabled(Profile::intel());
        assert_eq!(plain.slot.request(vector, Trigger::Level).outcome, Outcome::Accepted);
        assert_eq!(plain.apic.acknowledge(), vector);
        let ended = plain.write(Register::Eoi, 0);
        assert_eq!(ended, vlapic_core::Effect::EndOfInterrupt(Vector::new(vector).unwrap()));
        assert_eq!(plain.isr(), []);
    }
}

#[test]
fn spiv_disable_without_exit() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.set(Register::InitialCount, 100);
    plain.write_svr(Way::Silent, 0xFF);
    assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Refused);
    assert_eq!(plain.read(Register::Lvt(LvtEntry::Timer)), 0x1_0041, "reads masked");
    plain.now = 1000;
    let _ = plain.apic.prepare(1000);
    assert_eq!(plain.irr(), []);
    // The driver has seen it disabled, so masks stay set however it is enabled again.
    plain.write_svr(Way::Silent, 0x1FF);
    assert_eq!(plain.slot.page().load(0x320), 0x1_0041);
}
