//! One step's differences against the rows.

use vlapic_core::{ApicBase, IA32_APIC_BASE, IA32_TSC_DEADLINE, Mode, Register};

use super::message::{self, Sent};
use super::{Deviation, register};
use crate::oracle::kvm::operation::{Operation, Size};
use crate::oracle::kvm::run::Difference;
use crate::oracle::kvm::setup::Setup;
use crate::oracle::kvm::state::{Answer, View};

/// What one operation did to both sides.
#[derive(Debug)]
pub(in super::super) struct Step<'a> {
    pub(in super::super) operation: Operation,
    pub(in super::super) setup: &'a Setup,
    /// The kernel knows system-management mode.
    pub(in super::super) smm: bool,
    /// Before the operation, of both sides.
    pub(in super::super) before: &'a [View],
    pub(in super::super) bases: &'a [ApicBase],
    /// After it.
    pub(in super::super) ours: Vec<View>,
    pub(in super::super) kernel: Vec<View>,
    pub(in super::super) our_answer: Answer,
    pub(in super::super) kernel_answer: Answer,
    /// A row may have made a difference that cannot be seen now.
    pub(in super::super) unseen: bool,
    /// A message that was for one came to several.
    pub(in super::super) several: Option<Difference>,
    /// The rows that were used.
    pub(in super::super) rows: Vec<Deviation>,
}

/// Takes away what a row explains, and returns the first of what is left.
pub(in super::super) fn explain(step: &mut Step<'_>) -> Option<Difference> {
    step.permanent();
    let sent = step.sent();
    step.unseen = sent.as_ref().is_some_and(|sent| message::is_unseen(step, sent));
    if step.is_equal() {
        return None;
    }
    step.held_events();
    if let Some(base) = step.base_written() {
        step.disabled(base);
    }
    if let Some((vcpu, register, value)) = step.register_written() {
        let [ours, kernel] = [&mut step.ours, &mut step.kernel].map(|views| &mut views[vcpu]);
        let row = register::explain(register, value, &step.before[vcpu], ours, kernel, step.setup);
        step.rows.extend(row);
    }
    step.error_interrupts();
    if let Some(sent) = sent {
        message::explain(step, &sent);
    }
    step.answers();
    step.several.or_else(|| step.first_difference())
}

impl Step<'_> {
    pub(super) fn mode(&self, vcpu: usize) -> Mode {
        self.bases[vcpu].mode()
    }

    fn is_equal(&self) -> bool {
        self.ours == self.kernel && self.our_answer == self.kernel_answer
    }

    fn first_difference(&self) -> Option<Difference> {
        if self.our_answer != self.kernel_answer {
            let (ours, kernel) = (self.our_answer, self.kernel_answer);
            return Some(Difference::Answer { ours, kernel });
        }
        for (vcpu, (ours, kernel)) in self.ours.iter().zip(&self.kernel).enumerate() {
            for slot in 0..64 {
                let before = self.before[vcpu].words[slot];
                let (ours, kernel) = (ours.words[slot], kernel.words[slot]);
                if ours != kernel {
                    let offset = (slot as u16) << 4;
                    return Some(Difference::Register { vcpu, offset, before, ours, kernel });
                }
            }
            if ours.events != kernel.events {
                let (ours, kernel) = (ours.events, kernel.events);
                return Some(Difference::Events { vcpu, ours, kernel });
            }
        }
        None
    }

    /// What is never the same: version number and ESR. Counted where an operation meets it.
    fn permanent(&mut self) {
        let version = self.setup.kernel_version();
        for (ours, kernel) in self.ours.iter_mut().zip(&self.kernel) {
            if kernel.word(Register::Version) == version
                && ours.word(Register::Version) == version + 1
            {
                ours.set_word(Register::Version, version);
            }
            if kernel.word(Register::Esr) == 0 {
                ours.set_word(Register::Esr, 0);
            }
        }
    }

    /// The value written to IA32_APIC_BASE, and by whom.
    fn base_written(&self) -> Option<usize> {
        match self.operation {
            Operation::WriteMsr { vcpu, msr: IA32_APIC_BASE, .. } => Some(vcpu),
            _ => None,
        }
    }

    /// EN cleared: ours has the registers of RESET, the kernel those of before.
    fn disabled(&mut self, vcpu: usize) {
        let now = ApicBase::from_bits(self.our_answer.value.unwrap_or(0));
        if self.our_answer != self.kernel_answer || !self.bases[vcpu].present() || now.present() {
            return;
        }
        let mut kept = self.before[vcpu];
        if self.mode(vcpu) == Mode::X2Apic {
            // Behind the one word of x2APIC mode's ICR lies the register that it replaced.
            kept.set_word(Register::IcrHigh, self.kernel[vcpu].word(Register::IcrHigh));
        }
        kept.set_word(Register::Version, self.setup.kernel_version());
        kept.set_word(Register::Esr, 0);
        // A timer that runs goes on.
        let id = self.setup.ids[vcpu];
        let mut reset = self.before[vcpu].after_init(ApicBase::from_bits(0));
        reset.set_word(Register::Id, id << 24);
        reset.set_word(Register::Version, self.setup.kernel_version());
        reset.events = self.ours[vcpu].events;
        if self.kernel[vcpu] == kept && self.ours[vcpu] == reset {
            self.ours[vcpu] = kept;
            self.rows.push(Deviation::DisabledKeeps);
        }
    }

    /// A write of a whole register by an APIC that has it.
    fn register_written(&self) -> Option<(usize, Register, u64)> {
        if self.our_answer.fault {
            return None;
        }
        match self.operation {
            Operation::WriteMsr { vcpu, msr, value, .. } if self.mode(vcpu) == Mode::X2Apic => {
                Some((vcpu, Register::from_msr(msr)?, value))
            }
            Operation::Store { vcpu, address, size: Size::Dword, value }
                if self.mode(vcpu) == Mode::XApic && !self.our_answer.outside =>
            {
                Some((vcpu, Register::at(address as u16 & 0xFFF)?, value.into()))
            }
            _ => None,
        }
    }

    /// The message that the operation sent.
    fn sent(&self) -> Option<Sent> {
        if let Operation::Msi { address, data } = self.operation {
            return Some(Sent::by_msi(address, data));
        }
        let (vcpu, register, value) = self.register_written()?;
        let xapic = self.mode(vcpu) == Mode::XApic;
        match register {
            Register::IcrLow if xapic => {
                let high = self.before[vcpu].word(Register::IcrHigh);
                Some(Sent::by_icr(vcpu, value as u32, high >> 24, false))
            }
            Register::IcrLow => Some(Sent::by_icr(vcpu, value as u32, (value >> 32) as u32, true)),
            Register::SelfIpi if !xapic => {
                Some(Sent::by_icr(vcpu, 1 << 18 | value as u32 & 0xFF, 0, true))
            }
            _ => None,
        }
    }

    /// Ours raises the error entry's vector where it recorded an error: an access to a place that is
    /// not there, or a message with an illegal vector.
    fn error_interrupts(&mut self) {
        let sent = self.sent();
        for vcpu in 0..self.ours.len() {
            let accessed = match self.operation {
                Operation::Store { vcpu: by, address, .. }
                | Operation::Load { vcpu: by, address, .. } => {
                    by == vcpu && !register::exists(address as u16 & 0xFF0)
                }
                _ => false,
            };
            let illegal = sent.as_ref().is_some_and(Sent::has_illegal_vector);
            let entry = self.before[vcpu].word(Register::Lvt(vlapic_core::LvtEntry::Error));
            let raises = (accessed || illegal)
                && self.mode(vcpu) != Mode::Disabled
                && entry & 0x1_0000 == 0
                && entry & 0xFF >= 16;
            if !raises {
                continue;
            }
            // The interrupt is an edge; nothing else of this operation has this vector.
            let without = self.kernel[vcpu];
            let vector = entry as u8;
            let (slot, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
            let ours = &mut self.ours[vcpu];
            let raised = ours.words[0x20 + slot] & bit != 0 && ours.words[0x18 + slot] & bit == 0;
            let same =
                without.words[0x20 + slot] & bit != 0 && without.words[0x18 + slot] & bit == 0;
            if raised && !same {
                for bank in [0x18 + slot, 0x20 + slot] {
                    ours.words[bank] = ours.words[bank] & !bit | without.words[bank] & bit;
                }
                self.rows.push(Deviation::NoErrors);
            }
        }
    }

    /// A vCPU that started takes the NMI and the SMI it held; the kernel's may have been dropped.
    fn held_events(&mut self) {
        for vcpu in 0..self.ours.len() {
            let was_waiting = self.before[vcpu].events.waiting;
            let (ours, kernel) = (&mut self.ours[vcpu].events, &self.kernel[vcpu].events);
            let lost = ours.nmi && !kernel.nmi || ours.smi && !kernel.smi;
            if was_waiting && ours.startup.is_some() && ours.startup == kernel.startup && lost {
                ours.nmi &= kernel.nmi;
                ours.smi &= kernel.smi;
                self.rows.push(Deviation::HeldEventLost);
            }
        }
    }

    fn answers(&mut self) {
        self.read_value();
        self.end_of_interrupt();
    }

    fn read_value(&mut self) {
        let (Some(ours), Some(kernel)) = (self.our_answer.value, self.kernel_answer.value) else {
            return;
        };
        if ours == kernel {
            return;
        }
        let (register, shift, whole) = match self.operation {
            Operation::ReadMsr { msr: IA32_TSC_DEADLINE, .. } => return,
            Operation::ReadMsr { msr, .. } => (Register::from_msr(msr), 0, true),
            Operation::Load { vcpu, address, size } => {
                let offset = address as u16 & 0xFFF;
                // Where there is no window, what is read is not the APIC's.
                if self.mode(vcpu) != Mode::XApic || self.our_answer.outside {
                    return;
                }
                if !register::readable(offset, size) {
                    self.our_answer.value = Some(kernel);
                    // What the kernel gave is whatever its buffer held.
                    self.rows.push(Deviation::ReservedRead);
                    return;
                }
                (Register::at(offset & 0xFF0), 8 * (offset & 0xF), size == Size::Dword)
            }
            _ => return,
        };
        let bits = match self.operation {
            Operation::Load { size: Size::Byte, .. } => 0xFF,
            Operation::Load { size: Size::Word, .. } => 0xFFFF,
            _ => 0xFFFF_FFFF,
        };
        let version = u64::from(self.setup.kernel_version());
        let row = match register {
            Some(Register::Version) if kernel == version >> shift & bits => Deviation::Version,
            Some(Register::Esr) if kernel == 0 => Deviation::NoErrors,
            Some(Register::CurrentCount) if !whole || (ours == 0) == (kernel == 0) => {
                Deviation::CurrentCount
            }
            _ => return,
        };
        self.our_answer.value = Some(kernel);
        self.rows.push(row);
    }

    /// Told to user space whatever TMR says; the kernel's own I/O APIC is seen to get some vectors.
    fn end_of_interrupt(&mut self) {
        let Some(vcpu) = self.operation.vcpu() else { return };
        if !self.setup.split {
            if let Some(vector) = self.our_answer.eoi
                && !crate::oracle::kvm::kernel::WATCHED.contains(&vector)
            {
                self.our_answer.eoi = None;
            }
            return;
        }
        let (None, Some(vector)) = (self.our_answer.eoi, self.kernel_answer.eoi) else { return };
        let before = &self.before[vcpu];
        let (slot, bit) = (usize::from(vector >> 5), 1u32 << (vector & 31));
        let highest = (0..8)
            .rev()
            .find(|bank| before.words[0x10 + bank] != 0)
            .map(|bank| bank as u8 * 32 + 31 - before.words[0x10 + bank].leading_zeros() as u8);
        if before.words[0x18 + slot] & bit == 0 && highest == Some(vector) {
            self.our_answer.eoi = Some(vector);
            self.rows.push(Deviation::EoiOfEdge);
        }
    }
}
