//! What machines are known to do otherwise than the manuals say, and where the manuals leave it open.

use vlapic_core::{Mode, Register, stored_bits};

use super::difference::Difference;
use super::operation::{
    CMCI, CURRENT_COUNT, EOI, ESR, ICR, ICR_HIGH, INITIAL_COUNT, LVT_ERROR, LVT_TIMER, MASKED,
    Operation, SELF_IPI, SVR, TSC_DEADLINE,
};
use super::subject::Subject;
use crate::machine::identity::Machine;

macro_rules! rows {
    ($($(#[$note:meta])* $name:ident => $reason:literal,)*) => {
        /// A row of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Row {
            $($(#[$note])* $name,)*
        }

        impl Row {
            const ALL: &[Self] = &[$(Self::$name,)*];

            pub(super) const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Why the row is there, with the section it breaks.
            pub(super) const fn reason(self) -> &'static str {
                match self {
                    $(Self::$name => $reason,)*
                }
            }
        }
    };
}

rows! {
    /// Any machine.
    Spurious => "SDM 10.9 allows it: masked between its request and its acknowledgement",
    /// Any machine.
    HeldWhileDisabled => "SDM 10.4.7.2 leaves open whether what is held while software-disabled is delivered: here it is not",
    /// Any machine.
    OwnIllegalVector => "SDM 10.5.3 names both bit 5 and bit 6 for an illegal vector sent to oneself: here it is 6",
    /// Any machine.
    FocusBitFaults => "SDM 10.9: SVR bit 9 is reserved since Pentium 4; whether WRMSR of it faults is open: here it does",
    /// Bochs.
    RemoteReadIsError => "SDM table 10-1: remote read is not implemented, and no reserved offset; here ESR bit 7 is set",
    /// Bochs, QEMU.
    ReservedKept => "SDM figures 10-8, 10-12: reserved bits, of LVT entries also the read-only ones, are kept as written",
    /// Bochs, QEMU.
    AcceptsWhileDisabled => "SDM 10.4.7.2, APM 16.3.1: a software-disabled APIC accepts no fixed interrupt; here it does",
    /// Bochs.
    LevelByIcr => "SDM table 10-3: an IPI is an edge whatever ICR bit 15 says; here it is level-triggered",
    /// Bochs.
    TmrClearedByEoi => "SDM 10.8.4: TMR changes at acceptance; here EOI clears its bit",
    /// Bochs.
    TmrOfFirst => "SDM 10.8.4: TMR is set at acceptance; here not if the vector is requested already",
    /// Bochs.
    SpuriousNeverEnds => "SDM 10.8.5: EOI ends the highest vector in service; here not the one that SVR holds",
    /// Bochs.
    LowestPriorityPhysical => "SDM 10.6.2.1 leaves lowest priority to one APIC ID to the model: here it is not sent",
    /// Bochs, QEMU.
    BroadcastNeedsLdr => "APM 16.6.1, SDM 10.6.2.2: logical destination FF is every APIC; here LDR has to match it",
    /// Bochs.
    SendAccept => "SDM 10.5.3: ESR bit 2 is reserved since Pentium 4; here a message without a target sets it",
    /// Bochs, QEMU.
    NoErrorInterrupt => "SDM 10.5.3, APM 16.4.6: an error raises the interrupt of its LVT entry; here not",
    /// Bochs, QEMU.
    ModeSevenHasVector => "SDM 10.6.1: delivery mode 7 is reserved, APM 16.5: ExtINT, which has no vector; here ICR's is requested",
    /// Bochs.
    NoIllegalRegister => "SDM 10.5.3: an access to a reserved offset sets ESR bit 7; here not",
    /// Bochs, x2APIC.
    StaleIcr => "SDM 10.12.9: ICR may not be what was last written; here it is older",
    /// Bochs, x2APIC.
    ReservedAccepted => "SDM 10.12.1.3: a reserved bit in a write of an x2APIC MSR is a #GP; here it is dropped",
    /// Bochs.
    DeadlineStays => "SDM 10.5.4.1: IA32_TSC_DEADLINE is zero while nothing is armed; here it is what was, or a start time",
    /// Bochs.
    CmciPresent => "SDM 10.4.8: the version register counts no CMCI entry; here MSR 82F is there",
    /// Bochs.
    CountOutlivesDeadline => "SDM 10.5.4.1 leaves open what TSC-deadline mode does to the count: here it goes on afterwards",
    /// QEMU.
    NoApr => "APM 16.6.2: APR is computed; here it reads zero",
    /// QEMU.
    ErrorsAtOnce => "SDM 10.5.3, APM 16.4.6: ESR changes when it is written; here it has bit 7 at once, and for good",
    /// QEMU.
    NoVectorErrors => "SDM 10.5.3, APM 16.4.6: illegal vectors are recorded in ESR; here not",
    /// QEMU.
    LowVector => "SDM 10.5.2, APM 16.4: vectors 0-15 are illegal; here they get into IRR",
    /// QEMU.
    LevelWithoutAssert => "APM table 16-4: level-triggered without assert is not valid; here it is sent",
    /// Bochs, QEMU.
    InvalidShorthand => "SDM table 10-3, APM table 16-4: that delivery mode does not go with that shorthand; here it is sent",
    /// QEMU.
    NotMasked => "SDM 10.4.7.2, APM 16.3.1: while software-disabled all LVT entries are masked; here they are not",
    /// QEMU.
    BaseUnchecked => "SDM 10.4.4, APM 16.9: a reserved bit or mode in IA32_APIC_BASE is a #GP; here it is dropped",
    /// QEMU.
    PeriodicAfterEnd => "SDM 10.5.4: a count that has ended does not begin again; here it does in periodic mode",
}

/// A step as far as rows look at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) operation: Operation,
    /// SVR before the step.
    pub(super) svr: u32,
    /// ICR before the step.
    pub(super) icr: u64,
    /// LVT entries of timer and error before the step.
    pub(super) timer: u32,
    pub(super) error: u32,
    /// What went wrong since ESR was last written.
    pub(super) causes: Causes,
    /// The row that explained what the operation itself answered.
    pub(super) answered: Option<Row>,
}

/// What may have left a bit in ESR.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Causes {
    /// A vector below 16 was sent, or to be sent.
    pub(super) vector: bool,
    /// A message went out.
    pub(super) message: bool,
    /// A reserved offset was accessed in memory.
    pub(super) offset: bool,
    /// Remote read was accessed in memory.
    pub(super) remote_read: bool,
    /// A message went out that should have faulted.
    pub(super) accepted: bool,
}

impl Causes {
    /// Those of an operation, beside what was before.
    pub(super) fn with(self, operation: &Operation, mode: Mode) -> Self {
        match *operation {
            Operation::Command { low, .. } => {
                Self { vector: self.vector || low & 0xff < 16, message: true, ..self }
            }
            // One that faults latches nothing.
            Operation::Write { offset: ESR, value } if mode == Mode::XApic || value == 0 => {
                Self::default()
            }
            Operation::Write { offset: SELF_IPI, value } if mode == Mode::X2Apic => {
                Self { vector: self.vector || value < 16, message: true, ..self }
            }
            Operation::Write { offset, .. } | Operation::Read { offset } if mode == Mode::XApic => {
                Self { offset: true, remote_read: self.remote_read || offset == 0xc0, ..self }
            }
            _ => self,
        }
    }
}

/// The fields of a message, where the operation sends one.
#[derive(Clone, Copy, Debug)]
struct Message {
    low: u32,
    vector: u8,
    mode: u32,
    shorthand: u32,
    level: bool,
    assert: bool,
}

impl Step {
    fn message(&self, apic: Mode) -> Option<Message> {
        let low = match self.operation {
            Operation::Command { low, .. } => low,
            Operation::Write { offset: SELF_IPI, value } if apic == Mode::X2Apic => {
                value as u32 & 0xff | 1 << 18
            }
            _ => return None,
        };
        Some(Message {
            low,
            vector: low as u8,
            mode: low >> 8 & 7,
            shorthand: low >> 18 & 3,
            level: low >> 15 & 1 != 0,
            assert: low >> 14 & 1 != 0,
        })
    }

    const fn enabled(&self) -> bool {
        self.svr & 0x100 != 0
    }

    /// Whether the timer is in TSC-deadline mode, or was before the step.
    const fn in_deadline_mode(&self) -> bool {
        let now = match self.operation {
            Operation::Write { offset: LVT_TIMER, value } => value as u32,
            Operation::Passed { lvt } => lvt,
            _ => 0,
        };
        (self.timer | now) & TSC_DEADLINE != 0
    }

    /// Whether it is a message to the logical destination FF of xAPIC mode.
    const fn logical_broadcast(&self) -> bool {
        match self.operation {
            Operation::Command { destination, low } => {
                low & 0xc_0800 == 0x800 && destination >> 24 == 0xff
            }
            _ => false,
        }
    }

    /// Whether the register at `offset` is read or written.
    const fn reaches(&self, offset: u16) -> bool {
        match self.operation {
            Operation::Write { offset: at, .. } | Operation::Read { offset: at } => at == offset,
            _ => false,
        }
    }

    /// What was written to the register at `offset`.
    fn written(&self, offset: u16) -> Option<u64> {
        match self.operation {
            Operation::Write { offset: at, value } if at == offset => Some(value),
            Operation::Command { low, .. } if offset == ICR => Some(u64::from(low)),
            Operation::Command { destination, .. } if offset == ICR_HIGH => {
                Some(u64::from(destination))
            }
            _ => None,
        }
    }
}

/// The row that explains `difference`, if there is one.
pub(super) fn explain(subject: &Subject, step: &Step, difference: &Difference) -> Option<Row> {
    open(step, difference).or_else(|| match subject.machine {
        Machine::Bochs => bochs(subject, step, difference),
        Machine::Qemu => qemu(subject, step, difference),
        _ => None,
    })
}

/// What the manuals leave open, on any machine.
fn open(step: &Step, difference: &Difference) -> Option<Row> {
    match *difference {
        Difference::Taken { ours: None, machine: Some(vector) }
            if u32::from(vector) == step.svr & 0xff =>
        {
            Some(Row::Spurious)
        }
        Difference::Taken { ours: Some(_), machine: None } if !step.enabled() => {
            Some(Row::HeldWhileDisabled)
        }
        Difference::Fault { ours: false, machine: true }
            if step.written(SVR).is_some_and(|value| value & 0x200 != 0) =>
        {
            Some(Row::FocusBitFaults)
        }
        // What the write would have done.
        Difference::Register { offset: SVR | CMCI | LVT_TIMER..=LVT_ERROR, .. }
            if step.answered == Some(Row::FocusBitFaults) =>
        {
            step.answered
        }
        Difference::Register { offset: ESR, ours, machine }
            if step.causes.vector && ours ^ machine == 0x60 && machine & 0x60 == 0x40 =>
        {
            Some(Row::OwnIllegalVector)
        }
        _ => None,
    }
}

fn bochs(subject: &Subject, step: &Step, difference: &Difference) -> Option<Row> {
    match *difference {
        Difference::Register { offset, ours, machine } => {
            kept(subject, step, offset, ours, machine)
                .or_else(|| vectors(subject, step, offset, ours, machine))
                .or_else(|| bochs_register(subject, step, offset, ours, machine))
        }
        Difference::Fault { ours: true, machine: false } if step.reaches(CMCI) => {
            Some(Row::CmciPresent)
        }
        Difference::Fault { ours: true, machine: false } if subject.mode == Mode::X2Apic => {
            matches!(step.operation, Operation::Write { .. } | Operation::Command { .. })
                .then_some(Row::ReservedAccepted)
        }
        Difference::Nmis { ours: 0, .. } => {
            step.answered.filter(|&row| row == Row::ReservedAccepted)
        }
        Difference::Deadline { ours: Some(0), machine: Some(_) } if step.in_deadline_mode() => {
            Some(Row::DeadlineStays)
        }
        _ => None,
    }
}

fn bochs_register(
    subject: &Subject,
    step: &Step,
    offset: u16,
    ours: u64,
    machine: u64,
) -> Option<Row> {
    let x2apic = subject.mode == Mode::X2Apic;
    let changed = ours ^ machine;
    let eoi = matches!(step.operation, Operation::Write { offset: EOI, .. });
    match offset {
        ICR if x2apic && machine == step.icr => Some(Row::StaleIcr),
        ESR => bochs_errors(step.causes, ours, machine),
        0x100..=0x170 | 0xa0 if eoi && machine > ours => Some(Row::SpuriousNeverEnds),
        0x180..=0x1f0 if eoi && ours & !machine == changed && changed.count_ones() == 1 => {
            Some(Row::TmrClearedByEoi)
        }
        INITIAL_COUNT | CURRENT_COUNT if ours == 0 && step.in_deadline_mode() => {
            Some(Row::CountOutlivesDeadline)
        }
        // Of a write that should have faulted.
        _ if step.answered == Some(Row::ReservedAccepted) => {
            let written =
                matches!(step.operation, Operation::Write { offset: at, .. } if at == offset);
            let sent =
                step.message(subject.mode).is_some() && matches!(offset, ICR | 0x180..=0x270);
            (written || sent).then_some(Row::ReservedAccepted)
        }
        _ => None,
    }
}

/// Each bit by its own row; the last one names the difference.
fn bochs_errors(causes: Causes, ours: u64, machine: u64) -> Option<Row> {
    let mut left = ours ^ machine;
    let mut row = None;
    let mut explain = |bits: u64, there: bool, by: Row| {
        if there && left & bits == bits {
            left &= !bits;
            row = Some(by);
        }
    };
    explain(4, machine & 4 != 0 && causes.message, Row::SendAccept);
    explain(0x80, ours & 0x80 != 0 && causes.offset, Row::NoIllegalRegister);
    explain(0x80, machine & 0x80 != 0 && causes.remote_read, Row::RemoteReadIsError);
    explain(0x60, machine & 0x40 != 0 && causes.vector, Row::OwnIllegalVector);
    explain(0x40, machine & 0x40 != 0 && causes.vector && causes.accepted, Row::ReservedAccepted);
    explain(0x20, ours & 0x20 != 0 && machine & 0x40 != 0 && causes.vector, Row::OwnIllegalVector);
    row.filter(|_| left == 0)
}

/// Bits that are kept though they are not the software's to write.
fn kept(subject: &Subject, step: &Step, offset: u16, ours: u64, machine: u64) -> Option<Row> {
    let bits = ours ^ machine;
    let mine = u64::from(stored_bits(Register::at(offset)?, &subject.profile));
    let written = step.written(offset)?;
    let entry = matches!(offset, CMCI | LVT_TIMER..=LVT_ERROR);
    // While disabled ours has the mask set whatever was written.
    let unmasked = entry && !step.enabled() && bits & u64::from(MASKED) != 0;
    let mine = if unmasked { mine & !u64::from(MASKED) } else { mine };
    let kept = (entry || matches!(offset, ICR | ICR_HIGH | SVR))
        && bits & mine == 0
        && machine & bits == written & bits;
    kept.then_some(if unmasked { Row::NotMasked } else { Row::ReservedKept })
}

/// What an interrupt does to IRR and TMR.
fn vectors(subject: &Subject, step: &Step, offset: u16, ours: u64, machine: u64) -> Option<Row> {
    let bits = ours ^ machine;
    let bank = (step.error as u16 & 0xe0) >> 1;
    let request = offset == 0x200 + bank && ours & bits != 0;
    let trigger = offset == 0x180 + bank && machine & bits != 0;
    if (request || trigger) && bits == 1 << (step.error & 31) && step.error & MASKED == 0 {
        return Some(Row::NoErrorInterrupt);
    }
    let message = step.message(subject.mode)?;
    let bank = u16::from(message.vector >> 5) << 4;
    let bit = 1u64 << (message.vector & 31);
    let tmr = offset == 0x180 + bank;
    let irr = offset == 0x200 + bank;
    if bits != bit || !tmr && !irr {
        return None;
    }
    let requested = machine & bit != 0;
    if subject.mode == Mode::XApic && step.logical_broadcast() && (irr && !requested || tmr) {
        return Some(Row::BroadcastNeedsLdr);
    }
    if message.mode == 7 && (requested || tmr) {
        return Some(Row::ModeSevenHasVector);
    }
    if message.mode <= 1 && !step.enabled() && (requested || tmr) {
        return Some(Row::AcceptsWhileDisabled);
    }
    if subject.machine != Machine::Bochs {
        return sent_though_invalid(subject, step);
    }
    match () {
        () if message.mode != 0 && matches!(message.shorthand, 1 | 2) => {
            Some(Row::InvalidShorthand)
        }
        () if irr && !requested && message.mode == 1 && message.low & 0x800 == 0 => {
            Some(Row::LowestPriorityPhysical)
        }
        () if tmr && requested && message.level && message.mode <= 1 => Some(Row::LevelByIcr),
        () if tmr && !message.level => Some(Row::TmrOfFirst),
        () => None,
    }
}

fn qemu(subject: &Subject, step: &Step, difference: &Difference) -> Option<Row> {
    match *difference {
        Difference::Register { offset, ours, machine } => {
            kept(subject, step, offset, ours, machine)
                .or_else(|| vectors(subject, step, offset, ours, machine))
                .or_else(|| qemu_register(offset, ours, machine))
        }
        Difference::Fault { ours: true, machine: false } => {
            matches!(step.operation, Operation::Base(_)).then_some(Row::BaseUnchecked)
        }
        Difference::Taken { ours: None, machine: Some(0..16) } => Some(Row::LowVector),
        Difference::Nmis { ours: 0, .. } => sent_though_invalid(subject, step),
        // An error's entry of AMD may say NMI.
        Difference::Nmis { ours: 1, machine: 0 } if step.error & (MASKED | 0x700) == 0x400 => {
            Some(Row::NoErrorInterrupt)
        }
        _ => None,
    }
}

fn qemu_register(offset: u16, ours: u64, machine: u64) -> Option<Row> {
    let changed = ours ^ machine;
    match offset {
        0x90 if machine == 0 => Some(Row::NoApr),
        ESR if machine & 0x80 != 0 && changed == 0x80 => Some(Row::ErrorsAtOnce),
        ESR if ours & !machine == changed & !0x80 && changed & !0xe0 == 0 => {
            Some(if changed & 0x60 != 0 { Row::NoVectorErrors } else { Row::ErrorsAtOnce })
        }
        0x100 | 0x180 | 0x200 if changed & !0xffff == 0 => Some(Row::LowVector),
        0x320..=0x370 | 0x2f0 if changed == u64::from(MASKED) && machine & changed == 0 => {
            Some(Row::NotMasked)
        }
        CURRENT_COUNT if machine != 0 => Some(Row::PeriodicAfterEnd),
        _ => None,
    }
}

/// A message that the manual calls invalid.
fn sent_though_invalid(subject: &Subject, step: &Step) -> Option<Row> {
    let message = step.message(subject.mode)?;
    if message.level && !message.assert && subject.amd() {
        return Some(Row::LevelWithoutAssert);
    }
    (message.mode != 0 && matches!(message.shorthand, 1 | 2)).then_some(Row::InvalidShorthand)
}

/// How often each row was used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts([u64; Row::ALL.len()]);

impl Counts {
    pub(super) const fn new() -> Self {
        Self([0; Row::ALL.len()])
    }

    pub(super) const fn add(&mut self, row: Row) {
        self.0[row as usize] += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Row, u64)> + '_ {
        Row::ALL.iter().map(|&row| (row, self.0[row as usize]))
    }
}
