//! An APIC's state between page and bytes, and what of it an APIC can hold.

use super::correction::{Correction, Corrections};
use super::error::{Feature, ImportError};
use crate::access::stored_bits;
use crate::base::{ApicBase, Mode};
use crate::latches::Pin;
use crate::lifecycle::{reset_value, x2apic_ldr};
use crate::lvt::{Lvt, TimerMode};
use crate::profile::{Profile, Vendor};
use crate::register::{Bank, LvtEntry, Register};
use crate::timer::Phase;
use crate::vector::Vector;

/// Everything there is to an APIC besides its profile, ID and inbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub(super) base: ApicBase,
    pub(super) registers: Registers,
    pub(super) phase: Phase,
    pub(super) deadline: u64,
    pub(super) latches: u32,
    pub(super) errors: u32,
    pub(super) upcall: Option<Vector>,
    pub(super) upcall_owed: bool,
}

/// One word a register, at the index of its 16-byte slot. ICR's high half stands at its xAPIC place in
/// every mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers(pub(super) [u32; Register::SLOTS as usize]);

/// What the APIC had that a state comes from, as far as that matters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) tsc_deadline: bool,
    pub(super) cmci: bool,
    pub(super) eoi_suppression: bool,
    pub(super) writable_id: bool,
    pub(super) extended_space: bool,
}

impl Registers {
    pub(super) const fn new() -> Self {
        Self([0; Register::SLOTS as usize])
    }

    pub(super) fn get(&self, register: Register) -> u32 {
        self.0.get(usize::from(register.offset() >> 4)).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, register: Register, value: u32) {
        if let Some(word) = self.0.get_mut(usize::from(register.offset() >> 4)) {
            *word = value;
        }
    }

    /// Whether a vector below 16 stands in ISR, TMR or IRR.
    pub(super) fn illegal_vectors(&self) -> bool {
        let first = [Register::Isr, Register::Tmr, Register::Irr].map(|set| set(Bank::new(0)));
        first.iter().any(|&register| self.get(register) & 0xFFFF != 0)
    }

    pub(super) fn timer_mode(&self) -> TimerMode {
        Lvt::from_bits(self.get(Register::Lvt(LvtEntry::Timer))).timer_mode()
    }

    /// The vectors of each class in service, as the 16 bits of the class.
    fn classes_in_service(&self) -> impl DoubleEndedIterator<Item = (u8, u16)> {
        (0..16u8).map(|class| {
            let word = self.get(Register::Isr(Bank::new(class >> 1)));
            (class, (word >> (16 * (class & 1))) as u16)
        })
    }

    fn priority(&self) -> u32 {
        let tpr = self.get(Register::Tpr);
        let highest = self.classes_in_service().rev().find(|&(_, vectors)| vectors != 0);
        let in_service = highest.map_or(0, |(class, _)| u32::from(class) << 4);
        if tpr & 0xF0 >= in_service { tpr } else { in_service }
    }
}

impl Image {
    /// # Errors
    /// What no APIC of `profile` can be, and what it cannot do although the guest uses it.
    pub(super) fn check(&self, source: Source, profile: &Profile) -> Result<(), ImportError> {
        if self.base.mode() == Mode::X2Apic && !profile.x2apic() {
            return Err(ImportError::Unsupported(Feature::X2Apic));
        }
        if !self.base.valid(profile) {
            return Err(ImportError::ApicBase(self.base.bits()));
        }
        match self.missing(source, profile) {
            // What an absent APIC holds does not count.
            Some(feature) if self.base.present() => Err(ImportError::Unsupported(feature)),
            _ => Ok(()),
        }
    }

    /// A feature that the guest uses and `profile` has not.
    fn missing(&self, source: Source, profile: &Profile) -> Option<Feature> {
        let words = &self.registers;
        let unmasked = |register| words.get(register) & Lvt::MASK == 0;
        let deadline = self.deadline != 0 || words.timer_mode() == TimerMode::TscDeadline;
        let renamed =
            self.base.mode() == Mode::XApic && source.writable_id && !profile.xapic_id_writable();
        let mut extended = (0..4).map(Register::ExtendedLvt).any(unmasked);
        extended |= (0..8).any(|bank| words.get(Register::Ier(Bank::new(bank))) != u32::MAX);
        extended |= words.get(Register::ExtendedControl) != 0;
        [
            (Feature::TscDeadline, source.tsc_deadline && deadline, profile.tsc_deadline()),
            (Feature::Cmci, source.cmci && unmasked(CMCI), profile.cmci()),
            (
                Feature::EoiSuppression,
                source.eoi_suppression && words.get(Register::Svr) & 1 << 12 != 0,
                profile.eoi_suppression(),
            ),
            (Feature::WritableId, renamed, false),
            (Feature::ExtendedSpace, source.extended_space && extended, profile.extended_space()),
        ]
        .into_iter()
        .find_map(|(feature, used, there)| (used && !there).then_some(feature))
    }

    /// Registers that `profile` has and the source had not are in their reset state.
    pub(super) fn fill(&mut self, source: Source, profile: &Profile) {
        if !source.cmci && profile.cmci() {
            self.registers.set(CMCI, Lvt::RESET.bits());
        }
        if !source.extended_space && profile.extended_space() {
            for register in Register::all().filter(|register| register.offset() >= 0x400) {
                self.registers.set(register, reset_value(register, profile));
            }
        }
    }

    /// Makes it a state that an APIC of `profile` with x2APIC ID `id` can be in.
    pub(super) fn correct(&mut self, profile: &Profile, id: u32) -> Corrections {
        let mut corrections = Corrections::NONE;
        if !self.base.present() {
            corrections.insert_if(Correction::NotPresent, self.reset(profile, id));
            return corrections;
        }
        for slot in 0..Register::SLOTS {
            self.correct_slot(slot, profile, id, &mut corrections);
        }
        let priority = self.registers.priority();
        if self.registers.get(Register::Ppr) != priority {
            corrections.insert(Correction::Ppr);
            self.registers.set(Register::Ppr, priority);
        }
        let twice =
            self.registers.classes_in_service().any(|(_, vectors)| vectors.count_ones() > 1);
        corrections.insert_if(Correction::ClassInServiceTwice, twice);
        corrections.insert_if(Correction::Esr, self.errors & !0xFF != 0);
        self.errors &= 0xFF;
        corrections
    }

    fn correct_slot(&mut self, slot: u16, profile: &Profile, id: u32, found: &mut Corrections) {
        let Some(word) = self.registers.0.get(usize::from(slot)).copied() else { return };
        let Some(register) = Register::at(slot << 4) else {
            found.insert_if(Correction::Reserved, word != 0);
            self.store(slot, 0);
            return;
        };
        let kept = self.kept(register, word, profile, id);
        if kept != word && kept == word | Lvt::MASK && matches!(register, Register::Lvt(_)) {
            found.insert(Correction::LvtMasks);
        } else if kept != word {
            found.insert(Correction::of(register));
        }
        self.store(slot, kept);
    }

    fn store(&mut self, slot: u16, value: u32) {
        if let Some(word) = self.registers.0.get_mut(usize::from(slot)) {
            *word = value;
        }
    }

    /// What of `word` the register keeps. SVR stands before the LVT, so its word is right by then.
    fn kept(&self, register: Register, word: u32, profile: &Profile, id: u32) -> u32 {
        let mode = self.base.mode();
        let stored = word & stored_bits(register, profile);
        let disabled = self.registers.get(Register::Svr) & 1 << 8 == 0;
        let mask = if disabled { Lvt::MASK } else { 0 };
        match register {
            Register::Id if mode == Mode::X2Apic => id,
            Register::Id if !profile.xapic_id_writable() => id << 24,
            Register::Version => profile.version(),
            // Put right once ISR is.
            Register::Ppr => word,
            Register::Ldr if mode == Mode::X2Apic => x2apic_ldr(id),
            Register::Dfr => word | 0x0FFF_FFFF,
            Register::Isr(bank) | Register::Tmr(bank) | Register::Irr(bank) => {
                if bank.index() == 0 { word & 0xFFFF_0000 } else { word }
            }
            Register::Esr => word & 0xFF,
            Register::Lvt(LvtEntry::Cmci) if !profile.cmci() => 0,
            Register::Lvt(LvtEntry::Lint0) => stored | mask | self.remote_irr(Pin::Lint0),
            Register::Lvt(LvtEntry::Lint1) => stored | mask | self.remote_irr(Pin::Lint1),
            Register::Lvt(_) => stored | mask,
            // AMD's processors keep all bits that a guest stores, and no exit tells of it.
            Register::IcrHigh if mode == Mode::X2Apic || profile.vendor() == Vendor::Amd => word,
            Register::InitialCount if self.registers.timer_mode() == TimerMode::TscDeadline => 0,
            Register::ExtendedFeature => reset_value(register, profile),
            Register::ExtendedControl | Register::SpecificEoi | Register::Ier(_)
                if !profile.extended_space() =>
            {
                0
            }
            Register::ExtendedLvt(_) if !profile.extended_space() => 0,
            Register::ExtendedLvt(_) => stored | mask,
            _ => stored,
        }
    }

    fn remote_irr(&self, pin: Pin) -> u32 {
        if self.latches & pin.remote_irr_bit() == 0 { 0 } else { Lvt::REMOTE_IRR }
    }

    /// The reset state, but for TPR, which is CR8. Whether that is a change.
    fn reset(&mut self, profile: &Profile, id: u32) -> bool {
        let mut reset = Registers::new();
        for register in Register::all() {
            reset.set(register, reset_value(register, profile));
        }
        reset.set(Register::Id, id << 24);
        let tpr = self.registers.get(Register::Tpr) & 0xFF;
        reset.set(Register::Tpr, tpr);
        reset.set(Register::Ppr, tpr);
        let changed = reset.0 != self.registers.0
            || self.phase != Phase::default()
            || (self.deadline, self.errors) != (0, 0);
        self.registers = reset;
        self.phase = Phase::default();
        self.deadline = 0;
        self.errors = 0;
        changed
    }
}

const CMCI: Register = Register::Lvt(LvtEntry::Cmci);
