//! Xen's records LAPIC and LAPIC_REGS: one test for each rule of reading and writing them.
#![expect(clippy::unwrap_used, reason = "a test that gets here has failed")]

use proptest::prelude::*;
use vlapic_core::state::{
    Correction, Corrections, Feature, ImportError, Latched, OneShot, Outside, REGISTERS_LENGTH,
    XenLapic, XenRecords,
};
use vlapic_core::{Event, LvtEntry, Notify, Profile, Register};
use vlapic_tests::plain::Plain;

/// The APIC that Xen shows its guests: version 14, six entries, no suppression of EOI broadcasts.
fn profile() -> Profile {
    Profile::intel()
        .with_version_number(0x14)
        .with_cmci(false)
        .with_eoi_suppression(false)
        .with_focus_check(true)
}

const TIMER: Register = Register::Lvt(LvtEntry::Timer);
const LINT0: Register = Register::Lvt(LvtEntry::Lint0);
const TSC_DEADLINE: u32 = 2 << 17;

/// What Xen saves of a vCPU: enabled, xAPIC mode, ID 0.
#[derive(Debug, Clone)]
struct Saved {
    lapic: XenLapic,
    registers: [u8; REGISTERS_LENGTH],
    outside: Outside,
}

impl Saved {
    fn new() -> Self {
        let lapic = XenLapic { apic_base: 0xfee0_0900, timer_divisor: 2, ..XenLapic::default() };
        let registers = [0; REGISTERS_LENGTH];
        let mut saved = Self { lapic, registers, outside: Outside::default() };
        saved.set(Register::Version, 0x0005_0014);
        saved.set(Register::Dfr, 0xffff_ffff);
        saved.set(Register::Svr, 0x1ff);
        for entry in LvtEntry::ALL.into_iter().filter(|&entry| entry != LvtEntry::Cmci) {
            saved.set(Register::Lvt(entry), 0x1_0000);
        }
        saved
    }

    fn set(&mut self, register: Register, value: u32) {
        self.store(register.offset().into(), value);
    }

    fn store(&mut self, offset: usize, value: u32) {
        self.registers[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn with(mut self, register: Register, value: u32) -> Self {
        self.set(register, value);
        self
    }

    fn import(&self) -> (Plain, Result<Corrections, ImportError>) {
        self.import_bytes(&self.lapic.to_bytes())
    }

    fn import_bytes(&self, lapic: &[u8]) -> (Plain, Result<Corrections, ImportError>) {
        let mut plain = Plain::new(profile());
        plain.now = 1000;
        let records = XenRecords { lapic, registers: &self.registers };
        let result = plain.apic.import_xen(1000, &records, &self.outside);
        (plain, result)
    }

    /// Imported, with nothing put right.
    fn clean(&self) -> Plain {
        let (plain, result) = self.import();
        assert!(result.unwrap().is_empty(), "{result:?}");
        plain
    }

    /// Imported, with just this put right.
    fn corrected(&self, correction: Correction) -> Plain {
        let (plain, result) = self.import();
        assert_eq!(result.unwrap().iter().collect::<Vec<_>>(), [correction]);
        plain
    }

    fn refused(&self) -> ImportError {
        let (plain, result) = self.import();
        assert!(!plain.slot.accepts(), "nothing has changed");
        result.unwrap_err()
    }
}

#[test]
fn lengths_16_24_and_32() {
    let mut saved = Saved::new().with(TIMER, TSC_DEADLINE | 0x40);
    saved.lapic.tsc_deadline = 5000;
    saved.lapic.pending_errors = 0x40;
    let bytes = saved.lapic.to_bytes();
    for (length, deadline, errors) in [(16, None, 0), (24, Some(5000), 0), (32, Some(5000), 0x40)] {
        let (mut plain, result) = saved.import_bytes(&bytes[..length]);
        assert!(result.unwrap().is_empty());
        assert_eq!(plain.apic.next_deadline(), deadline, "{length}");
        assert_eq!(plain.errors(), errors, "{length}");
    }
    for length in [0, 15, 17, 23, 28, 31] {
        let (_, result) = saved.import_bytes(&bytes[..length]);
        assert_eq!(result.unwrap_err(), ImportError::Length(length));
    }
    let (_, result) = saved.import_bytes(&[0; 40]);
    assert_eq!(result.unwrap_err(), ImportError::Length(40), "newer than this crate knows");
}

#[test]
fn registers_are_1024_bytes() {
    let saved = Saved::new();
    for length in [0, 1023] {
        let mut plain = Plain::new(profile());
        let lapic = saved.lapic.to_bytes();
        let records = XenRecords { lapic: &lapic, registers: &saved.registers[..length] };
        let error = plain.apic.import_xen(0, &records, &Outside::default()).unwrap_err();
        assert_eq!(error, ImportError::Length(length));
    }
}

fn record(kind: u16, instance: u16, payload: &[u8]) -> Vec<u8> {
    [&XenRecords::descriptor(kind, instance, payload.len() as u32), payload].concat()
}

#[test]
fn import_record_order() {
    let saved = Saved::new();
    let lapic = record(XenRecords::LAPIC, 3, &saved.lapic.to_bytes()[..24]);
    let registers = record(XenRecords::LAPIC_REGS, 3, &saved.registers);
    let others = [record(1, 0, &[7; 16]), record(XenRecords::LAPIC, 2, &[9; 32])].concat();
    let end = record(0, 0, &[]);
    for parts in [[&others, &lapic, &registers, &end], [&registers, &lapic, &others, &end]] {
        let stream = parts.map(Vec::as_slice).concat();
        let records = XenRecords::find(&stream, 3).unwrap();
        assert_eq!(records.lapic, &saved.lapic.to_bytes()[..24]);
        assert_eq!(records.registers, saved.registers);
        let missing = XenRecords::find(&stream, 4).unwrap_err();
        assert_eq!(missing, ImportError::MissingRecord(5));
        let cut = XenRecords::find(&stream[..stream.len() - 20], 3).map(drop);
        assert_eq!(cut, Err(ImportError::Framing));
    }
    let twice = [lapic.as_slice(), &lapic, &registers].concat();
    assert_eq!(XenRecords::find(&twice, 3), Err(ImportError::Framing));
    let huge = XenRecords::descriptor(9, 0, u32::MAX);
    assert_eq!(XenRecords::find(&huge, 3), Err(ImportError::Framing));
    let after_end = [end.as_slice(), &lapic, &registers].concat();
    assert_eq!(XenRecords::find(&after_end, 3), Err(ImportError::MissingRecord(5)));
}

/// A record that says "disabled" beside a page that says enabled left a vCPU deaf.
#[test]
fn the_stored_disabled_word_is_not_believed() {
    let mut saved = Saved::new();
    for word in [1, 2, 3, u32::MAX] {
        saved.lapic.disabled = word;
        let plain = saved.corrected(Correction::DisabledWord);
        assert!(plain.slot.accepts());
    }
    // The reverse.
    let mut saved = Saved::new().with(Register::Svr, 0xff);
    assert!(!saved.corrected(Correction::DisabledWord).slot.accepts());
    saved.lapic.disabled = 2;
    assert!(!saved.clean().slot.accepts());
}

#[test]
fn import_divisor_zero() {
    let mut saved = Saved::new()
        .with(Register::DivideConfiguration, 0xb)
        .with(Register::InitialCount, 100)
        .with(TIMER, 0x2_0040);
    for divisor in [0, 2, 3, 128, u32::MAX] {
        saved.lapic.timer_divisor = divisor;
        let plain = saved.corrected(Correction::DivisorWord);
        assert_eq!(plain.apic.next_deadline(), Some(1100), "divided by one");
    }
    saved.lapic.timer_divisor = 1;
    let _ = saved.clean();
}

#[test]
fn extd_without_en_and_reserved_base_bits_are_rejected() {
    for base in [0xfee0_0400, 0xfee0_0801, 0xfee0_0a00, 1 << 46 | 0xfee0_0800] {
        let mut saved = Saved::new();
        saved.lapic.apic_base = base;
        assert_eq!(saved.refused(), ImportError::ApicBase(base));
    }
}

#[test]
fn vectors_below_16_are_rejected() {
    for offset in [0x100, 0x180, 0x200] {
        for bit in [0, 15] {
            let mut saved = Saved::new();
            saved.store(offset, 1 << bit);
            assert_eq!(saved.refused(), ImportError::IllegalVector, "{offset:#x}");
        }
        let mut saved = Saved::new();
        saved.store(offset, 1 << 16);
        let _ = saved.clean();
    }
}

#[test]
fn two_in_service_of_one_class_are_reported_and_kept() {
    let mut saved = Saved::new();
    saved.store(0x120, 0b11 << 4);
    let plain = saved.corrected(Correction::ClassInServiceTwice);
    assert_eq!(plain.isr(), [0x45, 0x44]);
    // Two classes of one word are none of this.
    saved.store(0x120, 1 << 4 | 1 << 16);
    let _ = saved.clean();
}

#[test]
fn reserved_bits_of_entries_are_masked() {
    for entry in LvtEntry::ALL.into_iter().filter(|&entry| entry != LvtEntry::Cmci) {
        let register = Register::Lvt(entry);
        let plain =
            Saved::new().with(register, 0xfff8_0000 | 0x1_0051).corrected(Correction::LvtBits);
        assert_eq!(plain.slot.page().read(register), 0x1_0051);
    }
}

#[test]
fn reserved_bits_of_esr_are_not_rejected() {
    let mut plain = Saved::new().with(Register::Esr, 0xff60).corrected(Correction::Esr);
    assert_eq!(plain.read(Register::Esr), 0x60);
    let mut saved = Saved::new();
    saved.lapic.pending_errors = 0x1_0020;
    let mut plain = saved.corrected(Correction::Esr);
    assert_eq!(plain.errors(), 0x20);
}

#[test]
fn masks_follow_software_disable() {
    let mut saved = Saved::new().with(Register::Svr, 0xff).with(TIMER, 0x40);
    saved.lapic.disabled = 2;
    let plain = saved.corrected(Correction::LvtMasks);
    assert_eq!(plain.slot.page().read(TIMER), 0x1_0040);
}

#[test]
fn other_registers() {
    for (register, value, correction, kept) in [
        (Register::Tpr, 0x1_0051, Correction::Tpr, 0x51),
        (Register::Ldr, 0x0100_0001, Correction::Ldr, 0x0100_0000),
        (Register::Dfr, 0xf000_0000, Correction::Dfr, 0xffff_ffff),
        (Register::Svr, 0x11ff, Correction::Svr, 0x1ff),
        (Register::IcrLow, 0x1041, Correction::Icr, 0x41),
        (Register::IcrHigh, 0x0100_0001, Correction::Icr, 0x0100_0000),
        (Register::DivideConfiguration, 4, Correction::DivideConfiguration, 0),
        (Register::Version, 0x0005_0010, Correction::Version, 0x0005_0014),
        (Register::Eoi, 1, Correction::Reserved, 0),
    ] {
        let plain = Saved::new().with(register, value).corrected(correction);
        assert_eq!(plain.slot.page().read(register), kept, "{register:?}");
    }
    let mut saved = Saved::new();
    saved.store(0x40, 1);
    let _ = saved.corrected(Correction::Reserved);
    // Stale PPR, and what never means anything.
    let plain = Saved::new().with(Register::Ppr, 0xf0).with(Register::CurrentCount, 9).clean();
    assert_eq!(plain.slot.page().read(Register::Ppr), 0);
}

/// Old Xen derived LDR from the vCPU's number, or left 1. It follows from the ID here, and is reported.
#[test]
fn the_ldr_quirk_is_reported() {
    let mut saved = Saved::new().with(Register::Ldr, 2);
    saved.lapic.apic_base = 0xfee0_0d00;
    let mut plain = saved.corrected(Correction::Ldr);
    assert_eq!(plain.read(Register::Ldr), 1);
}

#[test]
fn tsc_deadline_mode_has_no_initial_count() {
    let mut saved = Saved::new().with(TIMER, TSC_DEADLINE | 0x40).with(Register::InitialCount, 77);
    saved.lapic.tsc_deadline = 2500;
    let mut plain = saved.corrected(Correction::InitialCount);
    assert_eq!((plain.read(Register::InitialCount), plain.apic.next_deadline()), (0, Some(2500)));
}

/// A deadline that INIT left behind reads as zero.
#[test]
fn a_deadline_outside_its_mode_is_dropped() {
    let mut saved = Saved::new();
    saved.lapic.tsc_deadline = 2500;
    let mut plain = saved.corrected(Correction::Deadline);
    assert_eq!(plain.rdmsr(0x6e0).unwrap(), 0);
}

#[test]
fn import_expired_oneshot() {
    let base = Saved::new()
        .with(TIMER, 0x40)
        .with(Register::InitialCount, 100)
        .with(Register::DivideConfiguration, 0xb);
    let base = Saved { lapic: XenLapic { timer_divisor: 1, ..base.lapic }, ..base };
    let requested = base.clone().with(Register::Irr(vlapic_core::Bank::new(2)), 1);
    let in_service = base.clone().with(Register::Isr(vlapic_core::Bank::new(2)), 1);
    let table = [
        (&base, OneShot::Unknown, Some(1100)),
        (&requested, OneShot::Unknown, None),
        (&in_service, OneShot::Unknown, None),
        (&base, OneShot::Fired, None),
        (&requested, OneShot::Running, Some(1100)),
    ];
    for (saved, one_shot, deadline) in table {
        let mut saved = saved.clone();
        saved.outside.one_shot = one_shot;
        assert_eq!(saved.clean().apic.next_deadline(), deadline, "{one_shot:?}");
    }
    // A periodic one goes on, from the start.
    let periodic = requested.with(TIMER, 0x2_0040);
    assert_eq!(periodic.clean().apic.next_deadline(), Some(1100));
}

/// The timer's vector is read from its entry: no copy that could be left behind.
#[test]
fn import_timer_vector() {
    let mut saved = Saved::new().with(TIMER, 0x2_0077).with(Register::InitialCount, 50);
    saved.set(Register::DivideConfiguration, 0xb);
    saved.lapic.timer_divisor = 1;
    let mut plain = saved.clean();
    let _ = plain.apic.prepare(1050);
    assert_eq!(plain.irr(), [0x77]);
}

#[test]
fn the_upcalls_vector_is_the_callers() {
    let due = |plain: &mut Plain, byte| {
        plain.pending.store(byte, std::sync::atomic::Ordering::Relaxed);
        let prepared = plain.apic.prepare(1000);
        assert!(!prepared.upcall_owed);
        plain.irr()
    };
    // Without one nothing comes, until the guest registers it again.
    let mut plain = Saved::new().clean();
    assert_eq!(due(&mut plain, 1), []);
    let notify = plain.slot.register_upcall(0xf3, plain.pending).unwrap();
    assert_eq!((plain.irr(), notify), (vec![0xf3], Notify::Kick));
    // With one, the pending byte decides.
    for (byte, irr) in [(1, vec![0xf3]), (0, vec![])] {
        let mut saved = Saved::new();
        saved.outside.upcall_vector = Some(0xf3);
        assert_eq!(due(&mut saved.clean(), byte), irr);
    }
    let mut saved = Saved::new();
    saved.outside.upcall_vector = Some(15);
    assert_eq!(saved.refused(), ImportError::UpcallVector(15));
}

#[test]
fn latches_are_the_callers() {
    let mut saved = Saved::new();
    saved.outside.latched =
        Latched { waits: true, startup: Some(8), nmi: true, ..Latched::default() };
    let mut plain = saved.clean();
    assert!(!plain.slot.online());
    assert_eq!(plain.apic.take_event(), Some(Event::Startup { page: 8 }));
    assert_eq!(plain.apic.take_event(), Some(Event::Nmi));
    saved.outside.latched = Latched { startup: Some(8), ..Latched::default() };
    let mut plain = saved.corrected(Correction::Startup);
    assert_eq!(plain.apic.take_event(), None);
}

#[test]
fn a_level_on_lint0_waits_for_its_eoi() {
    let saved =
        Saved::new().with(LINT0, 0xc051).with(Register::Isr(vlapic_core::Bank::new(2)), 1 << 17);
    let mut plain = saved.clone().clean();
    let _ = plain.slot.set_lint(vlapic_core::Pin::Lint0, true);
    let _ = plain.apic.prepare(1000);
    assert_eq!((plain.irr(), plain.isr()), (vec![], vec![0x51]));
    let _ = plain.apic.end_of_interrupt();
    let _ = plain.apic.prepare(1000);
    assert_eq!(plain.irr(), [0x51], "the pin is still asserted");
    // A bit that waits for nothing would block the pin for ever.
    let mut plain = Saved::new().with(LINT0, 0xc051).corrected(Correction::LvtBits);
    let _ = plain.slot.set_lint(vlapic_core::Pin::Lint0, true);
    let _ = plain.apic.prepare(1000);
    assert_eq!(plain.irr(), [0x51]);
}

#[test]
fn identity_and_features() {
    let saved = Saved::new().with(Register::Id, 2 << 24);
    assert_eq!(saved.refused(), ImportError::ApicId { found: 2 << 24, expected: 0 });
    let mut saved = Saved::new().with(Register::Ldr, 1).with(Register::Id, 2);
    saved.lapic.apic_base = 0xfee0_0d00;
    assert_eq!(saved.refused(), ImportError::ApicId { found: 2, expected: 0 });
    saved.set(Register::Id, 0);
    let records = XenRecords { lapic: &saved.lapic.to_bytes(), registers: &saved.registers };
    let mut plain = Plain::new(profile().with_x2apic(false));
    let error = plain.apic.import_xen(0, &records, &Outside::default()).unwrap_err();
    assert_eq!(error, ImportError::Unsupported(Feature::X2Apic));
}

#[test]
fn an_absent_apic_has_nothing_but_its_tpr() {
    let mut saved = Saved::new().with(Register::Tpr, 0x50);
    saved.lapic.apic_base = 0xfee0_0100;
    saved.lapic.disabled = 1;
    let mut plain = saved.corrected(Correction::NotPresent);
    assert_eq!(plain.apic.read_cr8(), 5);
    plain.set_msr(0x1b, 0xfee0_0900);
    assert_eq!((plain.read(Register::Svr), plain.read(Register::Tpr)), (0xff, 0x50));
}

/// TMR, ISR and IRR come along, so EOIs are broadcast as they would have been.
#[test]
fn in_service_and_trigger_modes() {
    let bank = vlapic_core::Bank::new(1);
    let saved = Saved::new().with(Register::Isr(bank), 1 << 17).with(Register::Tmr(bank), 1 << 17);
    let mut plain = saved.clean();
    assert_eq!(plain.apic.processor_priority(), 0x30);
    let vector = vlapic_core::Vector::new(0x31).unwrap();
    let effect = plain.apic.end_of_interrupt();
    assert_eq!(effect, vlapic_core::Effect::EndOfInterrupt(vector));
}

/// A saved vCPU as Xen can have written it.
fn any_saved() -> impl Strategy<Value = Saved> {
    let words = prop::collection::vec(any::<u32>(), 64);
    (words, any::<[bool; 4]>(), any::<u64>(), 0usize..16).prop_map(
        |(words, [x2apic, enabled, deadline_mode, periodic], deadline, divide)| {
            let mut saved = Saved::new();
            let mut word = words.into_iter();
            let mut next = |mask: u32| word.next().unwrap() & mask;
            saved.set(Register::Tpr, next(0xff));
            saved.set(Register::Svr, next(0x2ff) | u32::from(enabled) << 8);
            for index in 0..8 {
                let bank = vlapic_core::Bank::new(index);
                let legal = if index == 0 { 0xffff_0000 } else { u32::MAX };
                // One in service of each class at most.
                saved.set(Register::Isr(bank), next(0x0001_0001) << 3 & legal);
                saved.set(Register::Irr(bank), next(legal));
                saved.set(Register::Tmr(bank), next(legal));
            }
            saved.set(Register::Esr, next(0xe0));
            saved.set(Register::IcrLow, next(0x000c_cfff));
            let mask = if enabled { 0 } else { 0x1_0000 };
            for (register, kept) in [
                (Register::Lvt(LvtEntry::Thermal), 0x1_07ff),
                (Register::Lvt(LvtEntry::Performance), 0x1_07ff),
                (LINT0, 0x1_a7ff),
                (Register::Lvt(LvtEntry::Lint1), 0x1_a7ff),
                (Register::Lvt(LvtEntry::Error), 0x1_00ff),
            ] {
                saved.set(register, next(kept) | mask);
            }
            let divide = (divide & 0xb) as u32;
            saved.set(Register::DivideConfiguration, divide);
            saved.lapic.timer_divisor = 1 << (((divide & 3 | divide >> 1 & 4) + 1) & 7);
            let mode = if deadline_mode { TSC_DEADLINE } else { u32::from(periodic) << 17 };
            saved.set(TIMER, next(0x1_00ff) | mode | mask);
            if deadline_mode {
                saved.lapic.tsc_deadline = deadline.max(2000);
            } else {
                saved.set(Register::InitialCount, next(u32::MAX));
            }
            saved.lapic.pending_errors = next(0xe0);
            saved.lapic.disabled = u32::from(!enabled) << 1;
            if x2apic {
                saved.lapic.apic_base = 0xfee0_0d00;
                saved.set(Register::Ldr, 1);
                saved.set(Register::IcrHigh, next(u32::MAX));
            } else {
                saved.set(Register::Ldr, next(0xff00_0000));
                saved.set(Register::Dfr, next(0xf000_0000) | 0x0fff_ffff);
                saved.set(Register::IcrHigh, next(0xff00_0000));
            }
            saved.outside.one_shot = OneShot::Running;
            saved
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// From Xen to us and back to Xen: bit for bit, but for PPR and the current count.
    #[test]
    fn round_trip(saved in any_saved(), old in any::<bool>()) {
        let length = if old { XenLapic::OLD_LENGTH } else { XenLapic::LENGTH };
        let bytes = saved.lapic.to_bytes();
        let (mut plain, result) = saved.import_bytes(&bytes[..length]);
        prop_assert!(result.unwrap().is_empty(), "{result:?}");
        let mut registers = [0; REGISTERS_LENGTH];
        let (lapic, outside) = plain.apic.export_xen(1000, &mut registers);
        for offset in (0..REGISTERS_LENGTH).filter(|offset| ![0xa0, 0x390].contains(&(offset & !3))) {
            prop_assert_eq!(registers[offset], saved.registers[offset], "{:#x}", offset);
        }
        prop_assert_eq!(&lapic.to_bytes()[..length], &bytes[..length]);
        prop_assert_eq!(outside.latched, saved.outside.latched);
    }

    /// Any bytes: a named error, or an APIC that is exported and imported without a word.
    #[test]
    fn made_up_records(
        lapic in prop::collection::vec(any::<u8>(), 0..40),
        stored in prop::collection::vec((0usize..256, any::<u32>()), 0..40),
        base in prop::option::of(prop::sample::select(vec![0xfee0_0800u64, 0xfee0_0c00, 0xfee0_0000])),
    ) {
        let mut saved = Saved::new();
        for (slot, word) in stored {
            saved.store(4 * slot, word);
        }
        let mut lapic = lapic;
        if let Some(base) = base {
            lapic.resize(32, 0);
            lapic[..8].copy_from_slice(&base.to_le_bytes());
        }
        let (mut plain, result) = saved.import_bytes(&lapic);
        if result.is_ok() {
            let mut registers = [0; REGISTERS_LENGTH];
            let (lapic, outside) = plain.apic.export_xen(1000, &mut registers);
            let again = Saved { lapic, registers, outside };
            let twice = [Correction::ClassInServiceTwice];
            let corrections = again.import().1.unwrap();
            prop_assert!(corrections.iter().all(|one| twice.contains(&one)), "{:?}", corrections);
        } else {
            prop_assert!(!plain.slot.accepts());
        }
    }
}
