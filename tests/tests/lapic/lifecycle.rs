//! RESET, INIT and software disable.

use vlapic_core::{
    Delivery, Event, LvtEntry, Mode, Outcome, Pin, Profile, RefusedUpcall, Register, Trigger,
    Vendor,
};
use vlapic_tests::plain::Plain;

/// (offset, Intel, AMD) for x2APIC ID 5 in xAPIC mode; every other word of the page is zero.
const RESET: [(u16, u32, u32); 27] = [
    (0x020, 0x0500_0000, 0x0500_0000),
    (0x030, 0x0106_0015, 0x8005_0010),
    (0x0E0, 0xFFFF_FFFF, 0xFFFF_FFFF),
    (0x0F0, 0x0000_00FF, 0x0000_00FF),
    (0x2F0, 0x0001_0000, 0),
    (0x320, 0x0001_0000, 0x0001_0000),
    (0x330, 0x0001_0000, 0x0001_0000),
    (0x340, 0x0001_0000, 0x0001_0000),
    (0x350, 0x0001_0000, 0x0001_0000),
    (0x360, 0x0001_0000, 0x0001_0000),
    (0x370, 0x0001_0000, 0x0001_0000),
    (0x400, 0, 0x0004_0007),
    (0x480, 0, 0xFFFF_FFFF),
    (0x490, 0, 0xFFFF_FFFF),
    (0x4A0, 0, 0xFFFF_FFFF),
    (0x4B0, 0, 0xFFFF_FFFF),
    (0x4C0, 0, 0xFFFF_FFFF),
    (0x4D0, 0, 0xFFFF_FFFF),
    (0x4E0, 0, 0xFFFF_FFFF),
    (0x4F0, 0, 0xFFFF_FFFF),
    (0x500, 0, 0x0001_0000),
    (0x510, 0, 0x0001_0000),
    (0x520, 0, 0x0001_0000),
    (0x530, 0, 0x0001_0000),
    (0x080, 0, 0),
    (0x0D0, 0, 0),
    (0x280, 0, 0),
];

fn expect_reset(plain: &Plain, x2apic: bool) {
    let amd = plain.slot.profile().vendor() == Vendor::Amd;
    for offset in (0..0x1000).step_by(4) {
        let row = RESET.iter().find(|row| row.0 == offset);
        let expected = match (offset, row) {
            (0x020, _) if x2apic => 5,
            (0x0D0, _) if x2apic => 1 << 5,
            (_, Some(row)) if amd => row.2,
            (_, Some(row)) => row.1,
            _ => 0,
        };
        assert_eq!(plain.slot.page().load(offset), expected, "{offset:#x}");
    }
}

/// Puts something into everything that INIT has to clear.
fn soil(plain: &mut Plain) {
    plain.enable();
    for (register, value) in [
        (Register::Tpr, 0x15),
        (Register::DivideConfiguration, 0xB),
        (Register::Lvt(LvtEntry::Timer), 0x4_0041),
        (Register::Lvt(LvtEntry::Lint0), 0x8052),
        (Register::Lvt(LvtEntry::Error), 0x99),
        (Register::IcrLow, 0x4_0077),
    ] {
        plain.set(register, value);
    }
    plain.set_msr(0x6E0, 1_000_000);
    assert_eq!(plain.slot.request(0x88, Trigger::Level).outcome, Outcome::Accepted);
    assert_eq!(plain.apic.acknowledge(), 0x88);
    assert_eq!(plain.slot.request(0x31, Trigger::Level).outcome, Outcome::Accepted);
    assert_eq!(plain.slot.request(1, Trigger::Edge).outcome, Outcome::IllegalVector);
    plain.set(Register::Esr, 0);
    assert_eq!(plain.slot.request(1, Trigger::Edge).outcome, Outcome::IllegalVector);
    let _ = plain.slot.set_lint(Pin::Lint0, true);
    let _ = plain.apic.prepare(0);
    let _ = plain.slot.set_lint(Pin::Lint0, false);
    for delivery in [Delivery::ExtInt, Delivery::Nmi] {
        assert_eq!(plain.slot.receive(delivery).outcome, Outcome::Accepted);
    }
}

#[test]
fn values_after_reset() {
    for profile in [Profile::intel(), Profile::amd()] {
        for bootstrap in [false, true] {
            let mut plain = Plain::with(profile, 5, bootstrap, RefusedUpcall::Owed);
            expect_reset(&plain, false);
            assert_eq!(plain.slot.base().bits(), 0xFEE0_0800 | u64::from(bootstrap) << 8);
            assert_eq!(plain.slot.online(), bootstrap);
            assert_eq!(plain.rdmsr(0x6E0), Ok(0));
        }
    }
}

#[test]
fn reset_clears_everything() {
    for profile in [Profile::intel(), Profile::amd()] {
        for x2apic in [false, true] {
            let mut plain = Plain::with(profile, 5, true, RefusedUpcall::Owed);
            if x2apic {
                plain.enter_x2apic();
            }
            soil(&mut plain);
            plain.apic.reset(true);
            expect_reset(&plain, false);
            assert_eq!(plain.slot.mode(), Mode::XApic);
            assert_eq!(plain.apic.take_event(), None);
            assert_eq!(plain.rdmsr(0x6E0), Ok(0));
            assert_eq!(plain.errors(), 0, "pending errors are gone");
            assert_eq!(plain.apic.prepare(u64::MAX).deadline, None);
            assert_eq!(plain.irr(), []);
        }
    }
}

#[test]
fn init_keeps_id_and_mode_and_clears_the_rest() {
    for profile in [Profile::intel(), Profile::amd()] {
        for x2apic in [false, true] {
            let mut plain = Plain::with(profile, 5, true, RefusedUpcall::Owed);
            if x2apic {
                plain.enter_x2apic();
            }
            soil(&mut plain);
            let base = plain.slot.base();
            assert_eq!(plain.slot.receive(Delivery::Init).outcome, Outcome::Accepted);
            assert_eq!(plain.apic.take_event(), Some(Event::Init { waits: false }));
            expect_reset(&plain, x2apic);
            assert_eq!(plain.slot.base(), base);
            assert_eq!(plain.apic.take_event(), Some(Event::Nmi), "an NMI is held");
            assert_eq!(plain.apic.take_event(), None, "ExtINT is not");
            assert_eq!(plain.rdmsr(0x6E0), Ok(0));
            assert_eq!(plain.errors(), 0);
            assert_eq!(plain.apic.prepare(u64::MAX).deadline, None);
            // Remote IRR is gone: the pin interrupts again.
            plain.enable();
            let _ = plain.write_lvt(LvtEntry::Lint0, 0x8052);
            let _ = plain.slot.set_lint(Pin::Lint0, true);
            let _ = plain.apic.prepare(0);
            assert_eq!(plain.irr(), [0x52]);
        }
    }
}

#[test]
fn init_keeps_an_id_that_software_wrote() {
    let mut plain = Plain::new(Profile::intel().with_writable_xapic_id(true));
    let _ = plain.store(0x020, 0x7700_0000);
    plain.apic.init();
    assert_eq!(plain.load(0x020), 0x7700_0000);
    plain.apic.reset(true);
    assert_eq!(plain.load(0x020), 0);
    let mut plain = Plain::new(Profile::intel());
    let _ = plain.store(0x020, 0x7700_0000);
    plain.slot.page().write(Register::Id, 0x7700_0000);
    plain.apic.init();
    assert_eq!(plain.load(0x020), 0, "a scribbled ID is put right");
}

#[test]
fn init_in_disabled_mode_is_not_heard() {
    let mut plain = Plain::new(Profile::intel());
    plain.set_msr(0x1B, 0xFEE0_0100);
    for delivery in [Delivery::Init, Delivery::Nmi, Delivery::Smi, Delivery::Startup { page: 1 }] {
        assert_eq!(plain.slot.receive(delivery).outcome, Outcome::Refused);
    }
    assert_eq!(plain.slot.request(0x50, Trigger::Edge).outcome, Outcome::Refused);
    assert_eq!(plain.slot.request(0x05, Trigger::Edge).outcome, Outcome::Refused);
    assert_eq!(plain.apic.take_event(), None);
}

#[test]
fn software_disable_masks_every_entry_until_told_otherwise() {
    for profile in [Profile::intel(), Profile::amd()] {
        let mut plain = Plain::enabled(profile);
        let entries: Vec<Register> = LvtEntry::ALL
            .into_iter()
            .filter(|&entry| entry != LvtEntry::Cmci || profile.cmci())
            .map(Register::Lvt)
            .chain((0..4).map(Register::ExtendedLvt).filter(|_| profile.extended_space()))
            .collect();
        for &entry in &entries {
            plain.set(entry, 0x41);
        }
        plain.set(Register::Svr, 0xFF);
        for &entry in &entries {
            assert_eq!(plain.read(entry), 0x1_0041, "{entry:?}");
            plain.set(entry, 0x42);
            assert_eq!(plain.read(entry), 0x1_0042, "writable, but for the mask");
        }
        plain.set(Register::Svr, 0x1FF);
        for &entry in &entries {
            assert_eq!(plain.read(entry), 0x1_0042, "still masked");
            plain.set(entry, 0x42);
            assert_eq!(plain.read(entry), 0x42);
        }
    }
}

#[test]
fn software_disabled() {
    let mut plain = Plain::enabled(Profile::intel());
    assert_eq!(plain.slot.request(0x50, Trigger::Edge).outcome, Outcome::Accepted);
    plain.set(Register::Svr, 0xFF);
    assert!(plain.slot.present() && !plain.slot.accepts() && plain.slot.delivers());
    assert_eq!(plain.slot.request(0x61, Trigger::Level).outcome, Outcome::Refused);
    assert_eq!(plain.slot.page().tmr().iter().count(), 0, "a refused message leaves no trace");
    assert_eq!(plain.irr(), [0x50], "what it had it keeps");
    let (nmi, smi) = (plain.slot.receive(Delivery::Nmi), plain.slot.receive(Delivery::Smi));
    assert_eq!((nmi.outcome, smi.outcome), (Outcome::Accepted, Outcome::Accepted));
    assert_eq!(plain.apic.take_event(), Some(Event::Smi));
    assert_eq!(plain.apic.take_event(), Some(Event::Nmi));
    assert!(matches!(plain.store(0x300, 0x0C_0041), vlapic_core::Effect::Ipi(_)), "it can send");
    assert_eq!(plain.apic.nominate().map(vlapic_core::Vector::get), Some(0x50));
}

#[test]
fn reset_forgets_the_upcall() {
    let mut plain = Plain::enabled(Profile::intel());
    let pending = plain.pending;
    let _ = plain.slot.register_upcall(0xF3, pending).unwrap();
    plain.apic.reset(true);
    plain.enable();
    let _ = plain.slot.notify_upcall(pending);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), []);
    let _ = plain.slot.register_upcall(0x30, pending).unwrap();
    assert_eq!(plain.irr(), [0x30]);
}
