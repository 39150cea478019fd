//! The machine's APIC and ours, side by side: each operation is done to both, and then both are compared.

use super::deviation::{Causes, Counts, Row, Step, explain};
use super::difference::Difference;
use super::operation::{
    CURRENT_COUNT, DFR, DIVIDE, EOI, ESR, ICR, ICR_HIGH, INITIAL_COUNT, LDR, LVT_ERROR, LVT_TIMER,
    MASKED, Operation, PERIODIC, SVR, TPR,
};
use super::ours::{self, Ours};
use super::physical::{NMI, Physical, UNUSABLE};
use super::registers::{Compared, Registers, comparable};
use super::subject::Subject;
use crate::machine::identity::{self, Machine};
use crate::machine::{interrupts, smp};
use vlapic_core::Mode;
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

/// Both, and what was found so far.
pub(super) struct Pair {
    pub(super) subject: Subject,
    pub(super) physical: Physical,
    pub(super) ours: &'static mut Ours,
    registers: Registers,
    /// What is known to differ of each register and cannot be made equal.
    known: [u64; Registers::MOST],
    known_deadline: bool,
    nmis: u64,
    pub(super) comparisons: u64,
    pub(super) counts: Counts,
    causes: Causes,
}

/// Reads of a register until something has happened that takes its time.
const PATIENCE: u32 = 2_000_000;
/// What the timer counts where it counts to its end.
const COUNT: u64 = 500;
/// On QEMU in nanoseconds, whatever the divider: it goes through every period that it has missed, and a host that is busy
/// never gets to the end of shorter ones.
const NANOSECONDS: u64 = 200_000;

/// Waits for what another CPU does in its own time; that of a busy host may be long.
fn comes(done: impl Fn() -> bool) -> bool {
    let ticks = if identity::machine() == Machine::Bochs { 0 } else { 3_000_000_000 };
    let start = TscClock.now();
    (0..PATIENCE).any(|_| done())
        || loop {
            if done() {
                return true;
            }
            if TscClock.now().wrapping_sub(start) > ticks {
                return false;
            }
        }
}

impl Pair {
    pub(super) fn new(subject: Subject, physical: Physical, ours: &'static mut Ours) -> Self {
        let pair = Self {
            registers: Registers::of(&subject),
            subject,
            nmis: physical.nmis(),
            physical,
            ours,
            known: [0; Registers::MOST],
            known_deadline: false,
            comparisons: 0,
            counts: Counts::new(),
            causes: Causes::default(),
        };
        for cpu in 0..smp::cpu_count() {
            for vector in 0..=255 {
                ours::set_taken(cpu, vector, interrupts::count_on(cpu, vector));
            }
        }
        pair
    }

    /// Brings both into the state in which a sequence begins: enabled, empty, everything masked.
    pub(super) fn begin(&mut self) -> Result<(), Difference> {
        self.empty_machine();
        self.ours.reset(self.physical.base());
        let mut both = |offset, value| {
            self.physical.write(offset, value);
            self.ours.write(offset, value);
        };
        both(SVR, 0x1ff);
        for entry in 0..6 {
            both(LVT_TIMER + 0x10 * entry, u64::from(MASKED));
        }
        if self.subject.profile.cmci() {
            both(super::operation::CMCI, u64::from(MASKED));
        }
        both(INITIAL_COUNT, 0);
        both(DIVIDE, 0);
        both(TPR, 0);
        if self.subject.mode == Mode::XApic {
            both(LDR, 0);
            both(DFR, 0xffff_ffff);
        }
        both(ESR, 0);
        both(ESR, 0);
        self.ours.take_nmis();
        self.nmis = self.physical.nmis();
        self.known = [0; Registers::MOST];
        self.known_deadline = false;
        // What no write puts back is taken over: TMR, ICR, and errors that stay.
        let registers = self.registers;
        for (index, register) in registers.iter() {
            if matches!(register.offset, ICR | ICR_HIGH | ESR | 0x180..=0x1f0) {
                self.adopt(register);
            }
            // The bits of vectors that are illegal.
            if matches!(register.offset, 0x100 | 0x200) {
                self.known[index] = self.difference(register).map_or(0, |(a, b)| (a ^ b) & 0xffff);
            }
        }
        self.causes = Causes::default();
        let step = self.describe(Operation::Take);
        self.compare(&step)
    }

    /// Does one operation to both.
    pub(super) fn step(&mut self, operation: Operation) -> Result<(), Difference> {
        let mut step = self.describe(operation);
        self.causes = self.causes.with(&operation, self.subject.mode);
        if let Some(difference) = self.perform(operation) {
            let row = self.excuse(&step, difference)?;
            step.answered = Some(row);
            self.causes.accepted |= row == Row::ReservedAccepted;
        }
        self.comparisons += 1;
        self.compare(&step)
    }

    fn describe(&mut self, operation: Operation) -> Step {
        let icr = self.ours.read(ICR).unwrap_or(0);
        Step {
            operation,
            svr: self.ours.word(SVR),
            icr,
            timer: self.ours.word(LVT_TIMER),
            error: self.ours.word(LVT_ERROR),
            causes: self.causes,
            answered: None,
        }
    }

    /// The difference in what the operation itself answered.
    fn perform(&mut self, operation: Operation) -> Option<Difference> {
        let (machine, ours) = match operation {
            Operation::Write { offset, value } => {
                (self.physical.write(offset, value), self.ours.write(offset, value))
            }
            Operation::Read { offset } => return self.read(offset),
            Operation::Command { destination, low } => {
                (self.physical.command(destination, low), self.ours.command(destination, low))
            }
            Operation::Take => return self.take(),
            Operation::Cr8(value) => {
                self.physical.set_cr8(value);
                self.ours.set_cr8(value);
                (true, true)
            }
            Operation::Base(bits) => {
                let value = self.ours.base() ^ bits;
                (self.physical.set_base(value), self.ours.set_base(value))
            }
            Operation::Deadline(value) => {
                (self.physical.set_deadline(value), self.ours.set_deadline(value))
            }
            Operation::Count { lvt, divide } => {
                self.count(lvt, divide);
                (true, true)
            }
            Operation::Passed { lvt } => {
                self.passed(lvt);
                (true, true)
            }
        };
        (machine != ours).then_some(Difference::Fault { ours: !ours, machine: !machine })
    }

    fn read(&mut self, offset: u16) -> Option<Difference> {
        let (machine, ours) = (self.physical.read(offset), self.ours.read(offset));
        let (Some(machine), Some(ours)) = (machine, ours) else {
            let (ours, machine) = (ours.is_none(), machine.is_none());
            return (ours != machine).then_some(Difference::Fault { ours, machine });
        };
        // Registers are compared below; what a read of nothing gives is not fixed.
        let counts = offset == 0xb0 && self.subject.mode == Mode::X2Apic;
        (counts && machine != ours).then_some(Difference::Value { offset, ours, machine })
    }

    fn take(&mut self) -> Option<Difference> {
        let low = self.physical.read(0x200).unwrap_or(0) & 0xffff;
        let ours = self.ours.nominate();
        if ours.is_none() && (0..16).any(|bit| low >> bit & 1 != 0 && UNUSABLE.contains(&bit)) {
            // Such a vector must not be delivered, and where it is, its handler could not bear it.
            return None;
        }
        let machine = self.physical.take();
        if machine == ours {
            if let Some(vector) = ours {
                self.ours.commit(vector);
            }
            return None;
        }
        Some(Difference::Taken { ours, machine })
    }

    /// The timer counts to its end, or goes round at least once, and is stopped.
    fn count(&mut self, lvt: u32, divide: u32) {
        let (bank, bit) = request_bit(lvt);
        // What would not show is not asked for.
        let shows = self.ours.word(SVR) & 0x100 != 0 && self.ours.word(bank) >> bit & 1 == 0;
        let lvt = if shows { lvt } else { lvt | MASKED };
        let count = match self.subject.machine {
            Machine::Qemu => NANOSECONDS >> ((((divide & 3) | (divide & 8) >> 1) + 1) & 7),
            _ => COUNT,
        };
        for (offset, value) in
            [(LVT_TIMER, u64::from(lvt)), (DIVIDE, u64::from(divide)), (INITIAL_COUNT, count)]
        {
            self.physical.write(offset, value);
            self.ours.write(offset, value);
        }
        let _ = (0..PATIENCE).any(|_| {
            if lvt & MASKED == 0 {
                self.physical.read(bank).unwrap_or(0) >> bit & 1 != 0
                    && (lvt & PERIODIC != 0 || self.physical.read(CURRENT_COUNT) == Some(0))
            } else {
                lvt & PERIODIC != 0 || self.physical.read(CURRENT_COUNT) == Some(0)
            }
        });
        // Longer than that with any divider.
        self.ours.pass(count << 8);
        if lvt & PERIODIC != 0 {
            for (offset, value) in [(LVT_TIMER, lvt | MASKED), (INITIAL_COUNT, 0)] {
                self.physical.write(offset, u64::from(value));
                self.ours.write(offset, u64::from(value));
            }
        }
    }

    /// A deadline that has passed fires at once. Masked, what becomes of it is open: left out.
    fn passed(&mut self, lvt: u32) {
        let (bank, bit) = request_bit(lvt);
        if self.ours.word(SVR) & 0x100 == 0 || self.ours.word(bank) >> bit & 1 != 0 {
            return;
        }
        self.physical.write(LVT_TIMER, u64::from(lvt));
        self.ours.write(LVT_TIMER, u64::from(lvt));
        self.physical.set_deadline(1);
        self.ours.set_deadline(1);
        let _ = (0..PATIENCE / 20).any(|_| self.physical.read(bank).unwrap_or(0) >> bit & 1 != 0);
        self.ours.pass(1);
    }

    /// Everything that can be seen.
    fn compare(&mut self, step: &Step) -> Result<(), Difference> {
        self.compare_nmis(step)?;
        if self.subject.others && matches!(step.operation, Operation::Command { .. }) {
            self.compare_remote(step)?;
        }
        let registers = self.registers;
        for (index, register) in registers.iter() {
            self.comparisons += 1;
            let (ours, machine) = match self.difference(register) {
                None => {
                    self.known[index] = 0;
                    continue;
                }
                Some(both) => both,
            };
            let fresh = !self.known[index];
            let (ours, machine) = (ours & fresh, machine & fresh);
            if ours == machine {
                continue;
            }
            let difference = Difference::Register { offset: register.offset, ours, machine };
            self.excuse(step, difference)?;
            self.known[index] = self.adopt(register);
        }
        let (ours, machine) = (self.ours.cr8(), self.physical.cr8());
        if ours != machine {
            self.excuse(step, Difference::Cr8 { ours, machine })?;
        }
        let (ours, machine) = (self.ours.base(), self.physical.base());
        if ours != machine {
            self.excuse(step, Difference::Base { ours, machine })?;
            self.physical.set_base(ours);
        }
        if self.subject.profile.tsc_deadline() {
            let (ours, machine) = (self.ours.deadline(), self.physical.deadline());
            if ours != machine && !self.known_deadline {
                self.excuse(step, Difference::Deadline { ours, machine })?;
            }
            self.known_deadline = ours != machine;
        }
        self.comparisons += 3;
        Ok(())
    }

    fn compare_nmis(&mut self, step: &Step) -> Result<(), Difference> {
        let ours = self.ours.take_nmis();
        let machine = || self.physical.nmis() - self.nmis;
        let _ = ours != 0 && (0..PATIENCE).any(|_| machine() >= ours);
        let machine = machine();
        self.nmis += machine;
        if ours == machine {
            Ok(())
        } else {
            self.excuse(step, Difference::Nmis { ours, machine }).map(drop)
        }
    }

    /// Other CPUs take what they get when they come to it.
    fn compare_remote(&mut self, step: &Step) -> Result<(), Difference> {
        let Operation::Command { low, .. } = step.operation else { return Ok(()) };
        let own = smp::this_cpu();
        for cpu in (0..smp::cpu_count()).filter(|&cpu| cpu != own) {
            for vector in [low as u8, NMI] {
                self.comparisons += 1;
                let ours = ours::taken(cpu, vector);
                let machine = || interrupts::count_on(cpu, vector);
                let _ = comes(|| machine() >= ours);
                let machine = machine();
                if machine != ours {
                    let difference = Difference::Remote { cpu, vector, ours, machine };
                    self.excuse(step, difference)?;
                    ours::set_taken(cpu, vector, machine);
                }
            }
        }
        Ok(())
    }

    /// Ours and the machine's, where they are not the same.
    fn difference(&mut self, register: Compared) -> Option<(u64, u64)> {
        let ours = self.ours.read(register.offset).unwrap_or(u64::MAX);
        let machine = self.physical.read(register.offset).unwrap_or(u64::MAX);
        let (ours, machine) = (comparable(register, ours), comparable(register, machine));
        (ours != machine).then_some((ours, machine))
    }

    /// Makes ours what the machine has, so that one deviation is not found again and again; what still differs then.
    fn adopt(&mut self, register: Compared) -> u64 {
        let machine = self.physical.read(register.offset).unwrap_or(0);
        self.ours.adopt(register.offset, machine as u32);
        if register.offset == LVT_TIMER {
            // With what a change of mode does to the timer.
            self.ours.write(LVT_TIMER, machine);
        }
        if register.offset == ICR && self.subject.mode == Mode::X2Apic {
            let high = if self.subject.amd() { ICR_HIGH } else { 0x304 };
            self.ours.adopt(high, (machine >> 32) as u32);
        }
        self.difference(register).map_or(0, |(ours, machine)| ours ^ machine)
    }

    /// Counts the row that explains a difference; without one it is a mismatch.
    fn excuse(&mut self, step: &Step, difference: Difference) -> Result<Row, Difference> {
        let row = explain(&self.subject, step, &difference).ok_or(difference)?;
        self.counts.add(row);
        Ok(row)
    }

    /// Takes and ends all interrupts of the machine.
    fn empty_machine(&mut self) {
        let enabled = 0x1ff;
        self.physical.write(SVR, enabled);
        for entry in 0..6 {
            self.physical.write(LVT_TIMER + 0x10 * entry, u64::from(MASKED));
        }
        self.physical.write(TPR, 0);
        for round in 0..512_u64 {
            // A machine that does not end the spurious vector is asked with another one now and then.
            self.physical.write(SVR, enabled - (round & 1) * 0x10);
            let empty = |first: u16| {
                (0..8).all(|bank| self.physical.read(first + 0x10 * bank).unwrap_or(0) == 0)
            };
            if empty(0x100) && empty(0x200) {
                break;
            }
            if !empty(0x100) {
                self.physical.write(EOI, 0);
            } else {
                self.physical.take();
            }
        }
        self.physical.write(SVR, enabled);
        if self.subject.profile.tsc_deadline() {
            self.physical.set_deadline(0);
        }
    }
}

/// Where in IRR the vector of an LVT entry stands.
const fn request_bit(lvt: u32) -> (u16, u32) {
    (0x200 + ((lvt as u16 & 0xe0) >> 1), lvt & 31)
}
