//! Tests: every short cut of the interrupt path does what the long way does.

use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::vec::Vec;

use crate::plain::Plain;
use crate::{
    ApicPage, DirectInbox, Effect, Fault, IA32_APIC_BASE, LocalApic, Mode, Profile, Register, Slot,
    Trigger, Vector, Width,
};

const NOW: u64 = 1000;
const MODES: [Mode; 3] = [Mode::Disabled, Mode::XApic, Mode::X2Apic];

/// Numbers that look random, the same in every run (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A word with few bits, or none.
    fn sparse(&mut self) -> u32 {
        let words = [self.next(), self.next(), self.next(), self.next(), self.next()];
        words.into_iter().fold(u32::MAX, |word, next| word & next as u32)
    }
}

type Apic = LocalApic<'static, DirectInbox>;

fn made(profile: Profile, mode: Mode) -> Apic {
    let page = Box::leak(Box::new(ApicPage::new()));
    let slot = Box::leak(Box::new(Slot::new(page, 5, profile, DirectInbox)));
    let mut apic = LocalApic::new(slot, true);
    let steps: &[u64] = match mode {
        Mode::Disabled => &[0],
        Mode::XApic => &[],
        Mode::X2Apic => &[0xC00],
    };
    for bits in steps {
        let _ = apic.write_msr(IA32_APIC_BASE, 0xFEE0_0100 | bits, NOW);
    }
    assert_eq!(apic.slot().mode(), mode);
    apic
}

fn twins(profile: Profile, mode: Mode) -> [Apic; 2] {
    [made(profile, mode), made(profile, mode)]
}

fn words(apic: &Apic) -> Vec<u32> {
    apic.slot().page().words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

fn scribble(apic: &Apic, word: impl Fn(usize) -> u32) {
    for (index, place) in apic.slot().page().words().iter().enumerate() {
        place.store(word(index), Ordering::Relaxed);
    }
}

/// A page in which anything may stand: TPR and SVR any, few vectors, PPR as it follows.
fn fill(apic: &Apic, numbers: &mut Numbers) {
    let page = apic.slot().page();
    for bank in 0..8 {
        page.store(0x100 + 0x10 * bank, numbers.sparse());
        page.store(0x180 + 0x10 * bank, numbers.next() as u32);
        page.store(0x200 + 0x10 * bank, numbers.sparse());
    }
    page.write(Register::Tpr, numbers.next() as u32 & numbers.next() as u32 & 0xFF);
    page.write(Register::Svr, 0xFF | numbers.next() as u32 & 0x1100);
    // AMD's specific EOI is on.
    page.write(Register::ExtendedControl, 2);
    apic.update_ppr();
}

#[test]
fn reads_at_every_place_in_every_mode() {
    for profile in [Profile::intel(), Profile::amd()] {
        for mode in MODES {
            let [mut quick, mut slow] = twins(profile, mode);
            for apic in [&quick, &slow] {
                scribble(apic, |index| 0x8123_4567 ^ index as u32);
                apic.update_ppr();
            }
            for offset in 0..=0xFFFF {
                let read = quick.read_mmio(offset, Width::Dword, NOW);
                let expected = slow.read_mmio_unusual(offset, Width::Dword, NOW);
                assert_eq!(read, expected, "{mode:?} {offset:#x}");
                if quick.plain.in_memory(offset) && mode == Mode::XApic {
                    assert_eq!(read, u64::from(quick.slot().page().load(offset)));
                }
            }
            for width in [Width::Byte, Width::Word, Width::Qword] {
                for offset in 0..0x1000 {
                    let read = quick.read_mmio(offset, width, NOW);
                    let expected = slow.read_mmio_unusual(offset, width, NOW);
                    assert_eq!(read, expected, "{mode:?} {offset:#x} {width:?}");
                    assert_eq!(read & !width.mask(), 0);
                }
            }
            for msr in (0..0x2000).chain([0x4000_0808, 0x8000_0808, u32::MAX]) {
                let read = quick.read_msr(msr, NOW);
                assert_eq!(read, slow.read_msr_unusual(msr, NOW), "{mode:?} {msr:#x}");
            }
            assert_eq!(words(&quick), words(&slow));
        }
    }
}

/// Which registers are read by a load, one by one: no others may be, and each that may is.
#[test]
fn reads_by_a_load() {
    let both = [0x2, 0x3, 0x8, 0xA, 0xD, 0xF, 0x28, 0x38, 0x3E];
    let banks = |index: u32| (0x11..0x28).contains(&index) && index & 7 != 0;
    for ppr in [true, false] {
        let plain = Plain::new(ppr);
        for index in 0..0x100u32 {
            let in_msrs = (both.contains(&index) || banks(index)) && (ppr || index != 0xA);
            let in_memory = in_msrs || [0xE, 0x30, 0x31].contains(&index);
            assert_eq!(plain.in_msrs(index), in_msrs, "{index:#x}");
            for byte in 0..16 {
                let offset = (index << 4) as u16 | byte;
                assert_eq!(plain.in_memory(offset), in_memory && byte == 0, "{offset:#x}");
            }
        }
    }
}

/// Where TPR or ISR may change and PPR's word stay, PPR is what follows from them.
#[test]
fn reads_of_a_ppr_that_nobody_keeps() {
    for what in ["TPR", "all"] {
        let set_unseen = |apic: &mut Apic, unseen| match what {
            "TPR" => apic.set_unseen_tpr(unseen),
            _ => apic.set_unseen_writes(unseen),
        };
        for mode in [Mode::XApic, Mode::X2Apic] {
            let mut apic = made(Profile::intel(), mode);
            let read = |apic: &mut Apic| match mode {
                Mode::XApic => apic.read_mmio(0xA0, Width::Dword, NOW),
                _ => apic.read_msr(0x80A, NOW).unwrap(),
            };
            set_unseen(&mut apic, true);
            let page = apic.slot().page();
            page.write(Register::Tpr, 0x57);
            assert_eq!((page.read(Register::Ppr), read(&mut apic)), (0, 0x57), "{what} {mode:?}");
            page.store(0x150, 1 << 3);
            assert_eq!(read(&mut apic), 0xA0, "{what} {mode:?}");
            // From here on it is kept, beginning with what follows now.
            set_unseen(&mut apic, false);
            assert_eq!((page.read(Register::Ppr), read(&mut apic)), (0xA0, 0xA0));
            page.write(Register::Ppr, 0x99);
            assert_eq!(read(&mut apic), 0x99, "{what} {mode:?}: a load");
        }
    }
}

/// One of the two reasons not to believe PPR's word is enough.
#[test]
fn two_reasons_not_to_believe_ppr() {
    for (tpr, all) in [(true, false), (false, true), (true, true)] {
        let mut apic = made(Profile::intel(), Mode::XApic);
        apic.set_unseen_tpr(tpr);
        apic.set_unseen_writes(all);
        apic.set_unseen_tpr(tpr);
        apic.slot().page().write(Register::Tpr, 0x57);
        assert_eq!(apic.read_mmio(0xA0, Width::Dword, NOW), 0x57, "{tpr} {all}");
    }
}

/// In `mode`, with one shot of 10 ticks to vector 61.
fn counting(mode: Mode) -> Apic {
    let mut apic = made(Profile::intel(), mode);
    apic.slot().page().write(Register::Svr, 0x1FF);
    for (offset, value) in [(0x3E0, 0xB), (0x320, 0x61), (0x380, 10)] {
        let _ = match mode {
            Mode::XApic => Ok(apic.write_mmio(offset, Width::Dword, value, NOW)),
            _ => apic.write_msr(0x800 + u32::from(offset >> 4), value, NOW),
        };
    }
    apic
}

/// A read of IRR at the time shows what the timer requested.
#[test]
fn reads_of_a_due_timer() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        let mut apic = counting(mode);
        for (time, expected) in [(NOW + 9, 0), (NOW + 10, 2)] {
            let read = match mode {
                Mode::XApic => Ok(apic.read_mmio(0x230, Width::Dword, time)),
                _ => apic.read_msr(0x823, time),
            };
            assert_eq!(read, Ok(expected), "{mode:?}");
        }
    }
}

/// The timer's request is older than any write at its time.
#[test]
fn writes_to_a_due_timer() {
    for (offset, value) in [(0x80, 0x20), (0xB0, 0), (0x300, 0x4_0062), (0x310, 0), (0x3F0, 0x62)] {
        for mode in [Mode::XApic, Mode::X2Apic] {
            let mut apic = counting(mode);
            for (time, expected) in [(NOW + 9, false), (NOW + 10, true)] {
                let _ = match mode {
                    Mode::XApic => Ok(apic.write_mmio(offset, Width::Dword, value, time)),
                    _ => apic.write_msr(0x800 + u32::from(offset >> 4), value, time),
                };
                // What does not exist in a mode takes no time.
                let exists = match offset {
                    0x310 => mode == Mode::XApic,
                    0x3F0 => mode == Mode::X2Apic,
                    _ => true,
                };
                let fired = apic.slot().page().load(0x230) & 2 != 0;
                assert_eq!(fired, expected && exists, "{mode:?} {offset:#x}");
            }
        }
    }
}

#[test]
fn writes_of_everything_in_every_mode() {
    let mut numbers = Numbers(0x1234_5678_9ABC_DEF1);
    for profile in [Profile::intel(), Profile::amd()] {
        for mode in MODES {
            let [mut quick, mut slow] = twins(profile, mode);
            for round in 0..30_000u64 {
                if round % 8 == 0 {
                    let mut same = Numbers(numbers.0);
                    fill(&quick, &mut same);
                    fill(&slow, &mut numbers);
                }
                let value = match numbers.next() % 4 {
                    0 => 0,
                    1 => numbers.next() & 0xFF,
                    2 => numbers.next() & 0xFFF,
                    _ => numbers.next() & numbers.next(),
                };
                let place = [0x8, 0xB, 0xB, 0x30, 0x31, 0x3F, 0xF, 0x42];
                let place = place[numbers.next() as usize % 8];
                let written: [Result<Effect, Fault>; 2] = if numbers.next().is_multiple_of(2) {
                    let offset = (place << 4) as u16 | (numbers.next() as u16 & 0xF000);
                    [
                        Ok(quick.write_mmio(offset, Width::Dword, value, NOW)),
                        Ok(slow.write_mmio_unusual(offset, Width::Dword, value, NOW)),
                    ]
                } else {
                    let msr = 0x800 + place;
                    [quick.write_msr(msr, value, NOW), slow.write_msr_unusual(msr, value, NOW)]
                };
                assert_eq!(written[0], written[1], "{mode:?} {place:#x} := {value:#x}");
                assert_eq!(words(&quick), words(&slow), "{mode:?} {place:#x} := {value:#x}");
                let page = quick.slot().page();
                let ppr = u32::from(quick.processor_priority());
                assert_eq!(page.read(Register::Ppr), ppr, "PPR stands in the page");
                assert_eq!(
                    page.read(Register::IcrLow) & 0x1000,
                    0,
                    "delivery status is no store's"
                );
            }
        }
    }
}

#[test]
fn arbitration_by_the_definition() {
    let mut numbers = Numbers(0x0F1E_2D3C_4B5A_6978);
    let mut apic = made(Profile::intel(), Mode::XApic);
    let page = apic.slot().page();
    let mut taken = 0;
    for _ in 0..20_000 {
        fill(&apic, &mut numbers);
        let highest = |base: u16| {
            let member = |v: &u8| page.load(base + (u16::from(*v) >> 5 << 4)) >> (v & 31) & 1 != 0;
            (16..=255u8).rev().find(member)
        };
        let tpr = page.read(Register::Tpr) as u8;
        let class = |vector: Option<u8>| vector.map_or(0, |vector| vector & 0xF0);
        let ppr = |serving| if tpr & 0xF0 >= class(serving) { tpr } else { class(serving) };
        let (requested, serving) = (highest(0x200), highest(0x100));
        assert_eq!(page.irr().highest().map(Vector::get), requested);
        assert_eq!(page.isr().is_empty(), serving.is_none());
        assert_eq!(page.read(Register::Ppr), u32::from(ppr(serving)));
        let expected = requested.filter(|&vector| vector & 0xF0 > ppr(serving) & 0xF0);
        assert_eq!(apic.nominate().map(Vector::get), expected);
        // Not only what is nominated may be committed.
        if let Some(vector) = requested.and_then(Vector::new) {
            assert!(apic.commit(vector));
            assert_eq!(page.read(Register::Ppr), u32::from(ppr(highest(0x100))));
            taken += 1;
        }
        let ended = highest(0x100);
        let effect = apic.end_of_interrupt();
        assert_eq!(page.read(Register::Ppr), u32::from(ppr(highest(0x100))));
        if let Some(vector) = ended.and_then(Vector::new) {
            assert!(!page.isr().contains(vector));
            let level = page.tmr().contains(vector) && page.read(Register::Svr) & 0x1000 == 0;
            assert_eq!(effect == Effect::EndOfInterrupt(vector), level);
        }
    }
    assert!(taken > 5_000);
}

#[test]
fn a_request_to_self_is_seen() {
    let mut apic = made(Profile::intel(), Mode::X2Apic);
    apic.slot().page().write(Register::Svr, 0x1FF);
    let _ = apic.write_msr(0x83F, 0x61, NOW);
    let _ = apic.write_msr(0x830, 0x4_0062, NOW);
    assert_eq!(apic.nominate(), Vector::new(0x62));
    let _ = apic.slot().request(0x71, Trigger::Edge);
    assert_eq!(apic.nominate(), Vector::new(0x71));
}
