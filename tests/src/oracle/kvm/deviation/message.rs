//! Rows about messages: for each vCPU, what it got on either side.

use vlapic_core::{Mode, Register};

use super::Deviation;
use super::explain::Step;
use crate::oracle::kvm::run::Difference;
use crate::oracle::kvm::state::{Events, View};

/// A message as its sender wrote it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Whose ICR it is; none for an MSI.
    sender: Option<usize>,
    mode: u8,
    vector: u8,
    logical: bool,
    destination: u32,
    /// The destination has 32 bits.
    wide: bool,
    shorthand: u8,
    assert: bool,
    level: bool,
    hint: bool,
}

/// What a vCPU may have got: one of these, or several that look the same.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Got(u8);

const NOTHING: Got = Got(1);
const EDGE: Got = Got(2);
const LEVEL: Got = Got(4);
const NMI: Got = Got(8);
const SMI: Got = Got(16);
const INIT: Got = Got(32);
const STARTUP: Got = Got(64);

impl Got {
    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl Sent {
    pub(super) const fn by_icr(sender: usize, low: u32, destination: u32, wide: bool) -> Self {
        Self {
            sender: Some(sender),
            mode: (low >> 8) as u8 & 7,
            vector: low as u8,
            logical: low & 1 << 11 != 0,
            destination,
            wide,
            shorthand: (low >> 18) as u8 & 3,
            assert: low & 1 << 14 != 0,
            level: low & 1 << 15 != 0,
            hint: false,
        }
    }

    pub(super) const fn by_msi(address: u32, data: u32) -> Self {
        Self {
            sender: None,
            mode: (data >> 8) as u8 & 7,
            vector: data as u8,
            logical: address & 4 != 0,
            destination: address >> 12 & 0xFF,
            wide: false,
            shorthand: 0,
            assert: data & 1 << 14 != 0,
            level: data & 1 << 15 != 0,
            hint: address & 8 != 0,
        }
    }

    const fn is_vector(&self) -> bool {
        self.mode <= 1
    }

    pub(super) const fn has_illegal_vector(&self) -> bool {
        self.is_vector() && self.vector < 16
    }

    const fn is_lowest(&self) -> bool {
        self.mode == 1 || self.mode == 0 && self.hint
    }

    /// By destination, not by shorthand.
    const fn is_broadcast(&self) -> bool {
        self.destination == if self.wide { 0xFFFF_FFFF } else { 0xFF }
    }

    /// If the lowest priority was asked for, the kernel makes this a fixed interrupt, even where a
    /// shorthand is what counts.
    const fn is_physical_ff(&self) -> bool {
        self.shorthand != 1 && !self.logical && self.destination == 0xFF && !self.wide
    }

    /// What a vCPU gets that has a right to it.
    const fn due(&self) -> Got {
        match self.mode {
            0 | 1 if self.level && self.sender.is_none() => LEVEL,
            0 | 1 => EDGE,
            2 => SMI,
            4 => NMI,
            5 => INIT,
            6 => STARTUP,
            _ => NOTHING,
        }
    }

    /// What the kernel gives to such a vCPU.
    const fn given(&self) -> Got {
        if self.is_vector() && self.level { LEVEL } else { self.due() }
    }
}

/// Whether a row holds for a vCPU that waits for its SIPI: what it then holds is not seen before that.
pub(super) fn is_unseen(step: &Step<'_>, sent: &Sent) -> bool {
    let holds =
        |vcpu: usize| step.before[vcpu].events.waiting && !rows(step, sent, vcpu).is_empty();
    !sent.is_vector() && (0..step.ours.len()).any(holds)
}

/// Makes equal what the rows explain.
pub(super) fn explain(step: &mut Step<'_>, sent: &Sent) {
    let vcpus = step.ours.len();
    let mut broadcast = false;
    let mut lowest = false;
    let mut surely = [0; 2];
    let mut may_differ = 0;
    for vcpu in 0..vcpus {
        let rows = rows(step, sent, vcpu);
        may_differ += u32::from(!rows.is_empty());
        let ours = got(step, sent, vcpu, &step.ours[vcpu]);
        let kernel = got(step, sent, vcpu, &step.kernel[vcpu]);
        for (count, got) in surely.iter_mut().zip([ours, kernel]) {
            *count += u32::from(!got.meets(NOTHING));
        }
        if step.ours[vcpu] == step.kernel[vcpu] {
            continue;
        }
        let row = rows.iter().find(|(_, due, given)| ours.meets(*due) && kernel.meets(*given));
        if let Some((row, ..)) = row {
            lowest |= *row == Deviation::LowestPriority;
            broadcast |= *row == Deviation::LowestBroadcast;
            step.ours[vcpu] = step.kernel[vcpu];
            step.rows.push(*row);
        }
    }
    // To one only, whoever it is; the kernel's broadcast aside.
    if lowest && surely[1] > 1 || (lowest || broadcast) && surely[0] > 1 {
        step.several = Some(Difference::Several { ours: surely[0], kernel: surely[1] });
    }
    accepted(step, may_differ);
}

/// The numbers of APICs that accepted may differ by as many as a row speaks of.
fn accepted(step: &mut Step<'_>, may_differ: u32) {
    let (Some(ours), Some(kernel)) = (step.our_answer.accepted, step.kernel_answer.accepted) else {
        return;
    };
    if ours != kernel && ours.abs_diff(kernel) <= may_differ {
        step.our_answer.accepted = Some(kernel);
    }
}

/// What the vCPU got, by what it looks like now.
fn got(step: &Step<'_>, sent: &Sent, vcpu: usize, now: &View) -> Got {
    let mut before = step.before[vcpu];
    before.events = Events { waiting: before.events.waiting, ..Events::default() };
    for register in [Register::IcrLow, Register::IcrHigh, Register::Version, Register::Esr] {
        before.set_word(register, now.word(register));
    }
    let mut nmi = before;
    nmi.events.nmi = true;
    let mut smi = before;
    smi.events.smi = true;
    let mut init = before.after_init(step.bases[vcpu]);
    init.set_word(Register::Version, now.word(Register::Version));
    let mut startup = before;
    startup.events.startup = Some(sent.vector);
    startup.events.waiting = false;
    // What was held while it waited is seen now.
    (startup.events.nmi, startup.events.smi) = (now.events.nmi, now.events.smi);
    let looks = [
        (before, NOTHING),
        (before.with_request(sent.vector, false), EDGE),
        (before.with_request(sent.vector, true), LEVEL),
        (nmi, NMI),
        (smi, SMI),
        (init, INIT),
        (startup, STARTUP),
    ];
    looks.into_iter().filter(|(view, _)| view == now).fold(Got(0), |all, (_, got)| all.or(got))
}

/// The rows that hold for a vCPU: what ours then gives it, and what the kernel.
fn rows(step: &Step<'_>, sent: &Sent, vcpu: usize) -> Vec<(Deviation, Got, Got)> {
    let mut rows = Vec::new();
    let (due, given) = (sent.due(), sent.given());
    if sent.has_illegal_vector() {
        rows.push((Deviation::LowVector, NOTHING, EDGE.or(LEVEL)));
        return rows;
    }
    if sent.mode == 2 && !step.smm {
        rows.push((Deviation::NoSmm, SMI, NOTHING));
    }
    if sent.sender.is_some() {
        of_icr(sent, &mut rows);
    } else {
        of_msi(sent, &mut rows);
    }
    let some_due = due.or(given);
    if sent.is_lowest() {
        if !sent.hint && sent.is_physical_ff() {
            rows.push((Deviation::LowestBroadcast, NOTHING, some_due));
        } else {
            rows.push((Deviation::LowestPriority, due, NOTHING));
            rows.push((Deviation::LowestPriority, NOTHING, some_due));
        }
    }
    if sent.shorthand == 0 {
        of_destination(step, sent, vcpu, &mut rows);
    }
    rows
}

fn of_icr(sent: &Sent, rows: &mut Vec<(Deviation, Got, Got)>) {
    if sent.mode == 1 && sent.wide {
        rows.push((Deviation::ReservedDelivery, NOTHING, EDGE.or(LEVEL)));
    }
    if matches!(sent.shorthand, 1 | 2) && sent.mode != 0 {
        rows.push((Deviation::InvalidShorthand, NOTHING, sent.given()));
    }
    if sent.level && sent.is_vector() {
        let kernel = if sent.assert { LEVEL } else { NOTHING };
        rows.push((Deviation::IcrLevel, EDGE, kernel));
    }
}

fn of_msi(sent: &Sent, rows: &mut Vec<(Deviation, Got, Got)>) {
    if matches!(sent.mode, 3 | 6 | 7) {
        rows.push((Deviation::ReservedDelivery, NOTHING, sent.due()));
    }
    if sent.level && !sent.assert && sent.is_vector() {
        rows.push((Deviation::MsiDeassert, NOTHING, LEVEL));
    }
    if sent.hint && !sent.is_vector() {
        let due = if matches!(sent.mode, 2 | 4 | 5) { sent.due() } else { NOTHING };
        rows.push((Deviation::RedirectedEvent, due, NOTHING));
        if sent.is_physical_ff() {
            rows.push((Deviation::RedirectedEvent, due, EDGE.or(LEVEL)));
        }
    }
}

fn of_destination(
    step: &Step<'_>,
    sent: &Sent,
    vcpu: usize,
    rows: &mut Vec<(Deviation, Got, Got)>,
) {
    let (due, given) = (sent.due(), sent.given());
    let target = &step.before[vcpu];
    let xapic = step.mode(vcpu) == Mode::XApic;
    if step.mode(vcpu) == Mode::Disabled {
        return;
    }
    if sent.is_broadcast() {
        if sent.sender.is_some() && sent.wide == xapic {
            rows.push((Deviation::MixedBroadcast, due, NOTHING));
        }
        return;
    }
    let beyond = sent.wide && sent.destination > 0xFF;
    if !sent.logical {
        let its_id = |vcpu: usize| match step.mode(vcpu) {
            Mode::XApic => Some(step.before[vcpu].word(Register::Id) >> 24),
            Mode::X2Apic => Some(step.setup.ids[vcpu]),
            Mode::Disabled => None,
        };
        let same = |other: &usize| *other != vcpu && its_id(*other) == Some(sent.destination);
        if xapic
            && its_id(vcpu) == Some(sent.destination)
            && (0..step.before.len()).any(|o| same(&o))
        {
            rows.push((Deviation::AliasedId, due, NOTHING));
        }
        if xapic && beyond && its_id(vcpu) == Some(sent.destination & 0xFF) {
            rows.push((Deviation::WideToXApic, due, NOTHING));
        }
        return;
    }
    if !target.enabled() && !sent.is_vector() {
        rows.push((Deviation::LogicalWhileDisabled, due, NOTHING));
    }
    let x2apic = |vcpu| step.mode(vcpu) == Mode::X2Apic && step.before[vcpu].enabled();
    let without_ldr = !target.enabled() || target.word(Register::Ldr) == 0;
    if xapic && without_ldr && (0..step.before.len()).any(x2apic) {
        rows.push((Deviation::LogicalById, NOTHING, given));
    }
    // FF too: an xAPIC-mode APIC takes it for its broadcast.
    if xapic && sent.wide && sent.destination >= 0xFF {
        rows.push((Deviation::WideLogicalToXApic, NOTHING, given));
    }
    if xapic && !matches!(target.word(Register::Dfr) >> 28, 0 | 0xF) {
        rows.push((Deviation::OddFormat, NOTHING, given));
    }
}
