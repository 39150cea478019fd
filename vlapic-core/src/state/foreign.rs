//! What KVM's and Xen's records have in common: 1024 bytes of registers, and the rest elsewhere.

use super::REGISTERS_LENGTH;
use super::bytes::{store, u32_at};
use super::correction::{Correction, Corrections};
use super::error::ImportError;
use super::image::{Image, Registers, Source};
use super::outside::{OneShot, Outside};
use crate::base::ApicBase;
use crate::inbox::Inbox;
use crate::latches::{Latched, Pin};
use crate::local::LocalApic;
use crate::lvt::{Lvt, LvtDelivery, TimerMode};
use crate::register::{Bank, LvtEntry, Register};
use crate::timer::{Phase, divide_shift};
use crate::vector::{Trigger, Vector};

/// The slots that such a record has.
const SLOTS: usize = REGISTERS_LENGTH / 16;

pub(super) fn write_registers(registers: &Registers, into: &mut [u8; REGISTERS_LENGTH]) {
    *into = [0; REGISTERS_LENGTH];
    for (slot, word) in registers.0.iter().take(SLOTS).enumerate() {
        store(into, 16 * slot, &word.to_le_bytes());
    }
}

pub(super) fn read_registers(from: &[u8]) -> Result<Registers, ImportError> {
    if from.len() != REGISTERS_LENGTH {
        return Err(ImportError::Length(from.len()));
    }
    let mut registers = Registers::new();
    for (slot, word) in registers.0.iter_mut().take(SLOTS).enumerate() {
        *word = u32_at(from, 16 * slot);
    }
    Ok(registers)
}

impl<I: Inbox> LocalApic<'_, I> {
    /// What of `image` other formats keep elsewhere.
    pub(super) fn outside(image: &Image) -> Outside {
        let runs = image.phase.count != 0;
        Outside {
            latched: Latched::from_bits(image.latches),
            upcall_vector: image.upcall.map(Vector::get),
            one_shot: if runs { OneShot::Running } else { OneShot::Fired },
        }
    }
}

impl Source {
    /// As the version register in the record says.
    fn of_version(registers: &Registers) -> Self {
        let version = registers.get(Register::Version);
        Self {
            tsc_deadline: true,
            cmci: version >> 16 & 0xFF >= 6,
            eoi_suppression: version & 1 << 24 != 0,
            writable_id: false,
            extended_space: false,
        }
    }
}

impl Image {
    pub(super) fn of_records(
        base: u64,
        registers: &[u8],
        deadline: u64,
        errors: u32,
        outside: &Outside,
    ) -> Result<Self, ImportError> {
        Ok(Self {
            base: ApicBase::from_bits(base),
            registers: read_registers(registers)?,
            phase: Phase::default(),
            deadline,
            latches: outside.latched.bits(),
            errors,
            upcall: outside.upcall()?,
            upcall_owed: true,
        })
    }

    /// What follows from the records as they stand: the count, the deadline, the remote IRR. `current`
    /// is the current count, if the record has one.
    ///
    /// # Errors
    /// As [`Image::check`].
    pub(super) fn complete<I: Inbox>(
        &mut self,
        apic: &LocalApic<'_, I>,
        now: u64,
        current: Option<u32>,
        outside: &Outside,
    ) -> Result<Corrections, ImportError> {
        let mut corrections = Corrections::NONE;
        self.check(Source::of_version(&self.registers), apic.slot.profile())?;
        self.fill(Source::of_version(&self.registers), apic.slot.profile());
        corrections.insert_if(Correction::Startup, outside.loses_startup());
        self.registers.set(Register::CurrentCount, 0);
        if self.base.present() {
            let idle = self.registers.timer_mode() != TimerMode::TscDeadline;
            corrections.insert_if(Correction::Deadline, idle && self.deadline != 0);
            if idle {
                self.deadline = 0;
            }
            let misfit = self.take_count(now, current, outside.one_shot);
            corrections.insert_if(Correction::CurrentCount, misfit);
            self.infer_remote_irr();
        }
        Ok(corrections)
    }

    /// The count that runs from `now` on. Whether the current count did not fit the initial count.
    fn take_count(&mut self, now: u64, current: Option<u32>, one_shot: OneShot) -> bool {
        let initial = self.registers.get(Register::InitialCount);
        let left = current.unwrap_or(0);
        let counts = match self.registers.timer_mode() {
            TimerMode::TscDeadline | TimerMode::Reserved => 0,
            _ if initial == 0 || left > initial => initial,
            _ if left != 0 => left,
            TimerMode::Periodic => initial,
            TimerMode::OneShot if !self.one_shot_runs(one_shot) => 0,
            // KVM's record would show a current count: it is due.
            TimerMode::OneShot => current.map_or(initial, |_| 1),
        };
        if counts != 0 {
            let shift = divide_shift(self.registers.get(Register::DivideConfiguration));
            self.phase = Phase { origin: now, count: counts, shift };
        }
        left > initial
    }

    /// Whether a one-shot count that is not known to run is to be taken as running.
    fn one_shot_runs(&self, one_shot: OneShot) -> bool {
        let vector = self.registers.get(Register::Lvt(LvtEntry::Timer)) as u8;
        match one_shot {
            OneShot::Running => true,
            OneShot::Fired => false,
            OneShot::Unknown => !self.holds(vector),
        }
    }

    /// The remote IRR of LINT0, which the record has in the entry only: set while a level-triggered
    /// interrupt of it waits for its EOI. LINT1 knows no level.
    fn infer_remote_irr(&mut self) {
        let entry = Lvt::from_bits(self.registers.get(Register::Lvt(LvtEntry::Lint0)));
        let level = entry.delivery() == LvtDelivery::Fixed && entry.trigger() == Trigger::Level;
        if entry.bits() & Lvt::REMOTE_IRR != 0 && level && self.holds(entry.vector()) {
            self.latches |= Pin::Lint0.remote_irr_bit();
        }
    }

    /// Whether `vector` is requested or in service.
    fn holds(&self, vector: u8) -> bool {
        let contains = |set: fn(Bank) -> Register| {
            self.registers.get(set(Bank::new(vector >> 5))) & 1 << (vector & 31) != 0
        };
        contains(Register::Irr) || contains(Register::Isr)
    }
}
