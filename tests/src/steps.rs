//! Random sequences of what happens to a VM's local APICs, for any way of running them.

use vlapic_core::{
    Delivery, Destination, IA32_APIC_BASE, IA32_TSC_DEADLINE, LvtEntry, Message, Mode, Register,
    Trigger, Width,
};

use crate::hypervisor::{Answer, Op};

/// A VM with local APICs: on the model with the driver, or in plain emulation.
pub trait Subject {
    /// How many vCPUs there are.
    fn vcpus(&self) -> usize;
    /// A guest instruction.
    fn execute(&mut self, vcpu: usize, op: Op) -> Answer;
    /// A message from a device.
    fn send(&mut self, message: &Message);
    /// A request for one vCPU.
    fn post(&mut self, vcpu: usize, vector: u8, trigger: Trigger);
    /// Time passes.
    fn advance(&mut self, ticks: u32);
    /// Something that no guest may notice.
    fn disturb(&mut self, how: u64);
    /// The guest, or its hypervisor, sets the pending byte.
    fn notify_upcall(&mut self, vcpu: usize);
    /// The guest clears the pending byte.
    fn clear_pending(&mut self, vcpu: usize);
    /// The APIC's mode.
    fn mode(&self, vcpu: usize) -> Mode;
    /// What the guest has seen so far.
    fn seen(&self, vcpu: usize) -> Seen<'_>;
    /// A word of the APIC's page.
    fn word(&self, vcpu: usize, offset: u16) -> u32;
}

/// What a guest has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<'s> {
    /// Vectors taken, in order.
    pub taken: &'s [u8],
    /// EOIs broadcast, in order.
    pub broadcasts: &'s [u8],
    /// Other events taken, in order.
    pub events: &'s [vlapic_core::Event],
    /// IA32_APIC_BASE.
    pub base: u64,
}

/// One step.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// An instruction.
    Guest(usize, Op),
    /// A write to a register, the way the mode has it.
    Write(usize, Register, u64),
    /// A read of a register, the way the mode has it.
    Read(usize, Register),
    /// [`Subject::post`].
    Post(usize, u8, Trigger),
    /// [`Subject::send`].
    Send(Message),
    /// [`Subject::advance`].
    Advance(u32),
    /// [`Subject::disturb`].
    Disturb(u64),
    /// [`Subject::notify_upcall`].
    NotifyUpcall(usize),
    /// [`Subject::clear_pending`].
    ClearPending(usize),
    /// Whatever keeps the guest from running or taking interrupts ends, by what the guest and others may do.
    Revive(usize),
}

impl Step {
    /// Does the step; what the guest got out of it.
    pub fn apply(self, subject: &mut impl Subject) -> Answer {
        match self {
            // Nothing would ever end it.
            Step::Guest(vcpu, Op::Halt) if subject.mode(vcpu) == Mode::Disabled => {}
            Step::Guest(vcpu, op) => return subject.execute(vcpu, op),
            Step::Write(vcpu, register, value) => {
                if matches!(register, Register::IcrLow | Register::SelfIpi)
                    && someone_refuses(subject)
                {
                    return Answer::Done;
                }
                let op = match subject.mode(vcpu) {
                    Mode::X2Apic => Op::Wrmsr(register.msr(), value),
                    _ => Op::Store { offset: register.offset(), width: Width::Dword, value },
                };
                return subject.execute(vcpu, op);
            }
            Step::Read(vcpu, register) => {
                let op = match subject.mode(vcpu) {
                    Mode::X2Apic => Op::Rdmsr(register.msr()),
                    _ => Op::Load { offset: register.offset(), width: Width::Dword },
                };
                return subject.execute(vcpu, op);
            }
            Step::Post(vcpu, vector, trigger) => subject.post(vcpu, vector, trigger),
            Step::Send(message) => subject.send(&message),
            Step::Advance(ticks) => subject.advance(ticks),
            Step::Disturb(how) => subject.disturb(how),
            Step::NotifyUpcall(vcpu) => subject.notify_upcall(vcpu),
            Step::ClearPending(vcpu) => subject.clear_pending(vcpu),
            Step::Revive(vcpu) => revive(subject, vcpu),
        }
        Answer::Done
    }
}

/// Processors that send IPIs by themselves do not ask whether the target is software-enabled; the sequences keep
/// away from that.
fn someone_refuses(subject: &impl Subject) -> bool {
    (0..subject.vcpus()).any(|vcpu| {
        subject.mode(vcpu) != Mode::Disabled
            && subject.word(vcpu, Register::Svr.offset()) & 0x100 == 0
    })
}

fn revive(subject: &mut impl Subject, vcpu: usize) {
    let everyone = |delivery| Message::new(delivery, Destination::All);
    if subject.execute(vcpu, Op::SetInterruptFlag(true)) == Answer::NotRunning {
        // It waits for a start-up IPI, or is in HLT.
        subject.send(&everyone(Delivery::Startup { page: 8 }));
        subject.send(&everyone(Delivery::Nmi));
        subject.execute(vcpu, Op::SetInterruptFlag(true));
    }
    if subject.mode(vcpu) == Mode::Disabled {
        subject.execute(vcpu, Op::Wrmsr(IA32_APIC_BASE, 0xfee0_0800));
    }
    Step::Write(vcpu, Register::Svr, 0x1ff).apply(subject);
    Step::Write(vcpu, Register::Tpr, 0).apply(subject);
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound.max(1)
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Edge-triggered vectors, some of them illegal.
const EDGE: [u8; 16] = [
    0x00, 0x0f, 0x10, 0x1f, 0x20, 0x31, 0x3f, 0x40, 0x52, 0x7e, 0x7f, 0x80, 0x9a, 0xc0, 0xf0, 0xff,
];
/// Level-triggered vectors. No edge has them: a processor that sets IRR by itself leaves TMR as it is.
const LEVEL: [u8; 6] = [0x15, 0x33, 0x45, 0x77, 0x91, 0xe8];
/// The vector of upcalls.
pub const UPCALL: u8 = 0xf3;

/// The next step of a VM with `vcpus` vCPUs.
pub fn random_step(random: &mut Random, vcpus: usize) -> Step {
    let vcpu = random.below(vcpus as u64) as usize;
    match random.below(100) {
        0..22 => Step::Write(vcpu, Register::Eoi, 0),
        22..32 => Step::Post(vcpu, random.pick(&EDGE), Trigger::Edge),
        32..38 => Step::Post(vcpu, random.pick(&LEVEL), Trigger::Level),
        38..44 => Step::Write(vcpu, Register::Tpr, random.bits() & 0xff),
        44..47 => Step::Guest(vcpu, Op::WriteCr8(random.below(17))),
        47..49 => Step::Guest(vcpu, Op::ReadCr8),
        49..52 => Step::Guest(vcpu, Op::SetInterruptFlag(random.below(3) != 0)),
        52..54 => Step::Guest(vcpu, Op::Halt),
        54..60 => self_or_other_ipi(random, vcpu, vcpus),
        60..63 => Step::Write(vcpu, Register::SelfIpi, random.pick(&EDGE).into()),
        63..67 => Step::Advance(random.below(3000) as u32),
        67..71 => timer(random, vcpu),
        71..74 => {
            Step::Write(vcpu, Register::Svr, random.pick(&[0x1ff, 0x11f, 0x10ff, 0xff, 0x3ff]))
        }
        74..83 => any_read(random, vcpu),
        83..88 => any_write(random, vcpu),
        88..90 => base(random, vcpu),
        90..93 => Step::Disturb(random.bits()),
        93..95 => Step::NotifyUpcall(vcpu),
        95..97 => Step::ClearPending(vcpu),
        97..98 => Step::Send(message(random)),
        _ => Step::Guest(vcpu, odd_access(random)),
    }
}

/// `count` steps of a VM with `vcpus` vCPUs.
#[must_use]
pub fn sequence(seed: u64, vcpus: usize, count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    let step = |number| match number % 24 {
        first if first < vcpus => Step::Revive(first),
        _ => random_step(&mut random, vcpus),
    };
    (0..count).map(step).collect()
}

fn self_or_other_ipi(random: &mut Random, vcpu: usize, vcpus: usize) -> Step {
    let vector = u64::from(random.pick(&EDGE));
    let destination = random.below(vcpus as u64 + 1);
    let command = match random.below(10) {
        // Self, all, all but self.
        0..3 => vector | 1 << 18 | random.below(2) << 14,
        3 => vector | 2 << 18,
        4 => vector | 3 << 18 | 1 << 14,
        // NMI, INIT, start-up; rarely, as they cost the target its state.
        5 if random.below(4) == 0 => random.pick(&[0x4400, 0x4500, 0xc500, 0x4608]),
        // Whatever.
        6 if random.below(4) == 0 => random.bits() & 0x000c_cfff & !0x700,
        7 => vector | 1 << 11 | random.below(2) << 8,
        _ => vector | random.below(2) << 14,
    };
    if random.below(3) == 0 {
        // The high half of xAPIC mode; in x2APIC mode it does not exist.
        return Step::Write(vcpu, Register::IcrHigh, destination << 24);
    }
    // In xAPIC mode the high half of the value is ignored: a 4-byte store.
    Step::Write(vcpu, Register::IcrLow, command | destination << 32)
}

fn timer(random: &mut Random, vcpu: usize) -> Step {
    let timer = Register::Lvt(LvtEntry::Timer);
    match random.below(6) {
        0 | 1 => Step::Write(vcpu, Register::InitialCount, random.below(4000)),
        2 => Step::Write(vcpu, Register::DivideConfiguration, random.pick(&[0, 1, 8, 0xb])),
        3 => Step::Guest(vcpu, Op::Wrmsr(IA32_TSC_DEADLINE, random.below(1 << 20))),
        _ => {
            let mode = random.below(3) << 17;
            let mask = random.pick(&[0, 0, 0x1_0000]);
            Step::Write(vcpu, timer, mode | mask | u64::from(random.pick(&EDGE)))
        }
    }
}

fn base(random: &mut Random, vcpu: usize) -> Step {
    let value = random.pick(&[0x800, 0x900, 0xc00, 0xd00, 0, 0x400, 0xfe_0800]);
    Step::Guest(vcpu, Op::Wrmsr(IA32_APIC_BASE, 0xfee0_0000 ^ value))
}

fn message(random: &mut Random) -> Message {
    let vector = random.pick(&LEVEL);
    Message::new(Delivery::LowestPriority { vector, trigger: Trigger::Level }, Destination::All)
}

/// Every 16-byte slot of the lower part of the page.
fn any_register(random: &mut Random) -> Register {
    loop {
        if let Some(register) = Register::at((random.below(0x40) as u16) << 4) {
            return register;
        }
    }
}

fn any_read(random: &mut Random, vcpu: usize) -> Step {
    Step::Read(vcpu, any_register(random))
}

/// Not EOI, the ICR and what else has generators of its own.
fn any_write(random: &mut Random, vcpu: usize) -> Step {
    let register = any_register(random);
    let value = random.bits() & random.pick(&[0xff, 0x1_ffff, 0xffff_ffff]);
    match register {
        Register::IcrLow | Register::SelfIpi | Register::Lvt(LvtEntry::Lint0) => {
            Step::Write(vcpu, Register::Esr, 0)
        }
        // Vectors of the edge set, fixed delivery.
        Register::Lvt(_) => {
            Step::Write(vcpu, register, u64::from(random.pick(&EDGE)) | value & 0x1_0000)
        }
        Register::Ldr | Register::Dfr => Step::Write(vcpu, register, value << 24 & 0xffff_ffff),
        _ => Step::Write(vcpu, register, value),
    }
}

/// Accesses of odd widths and to places that are no register; stores narrower than a register are left out, as the
/// manuals leave them undefined.
fn odd_access(random: &mut Random) -> Op {
    let offset = random.below(0x1000) as u16;
    match random.below(6) {
        0 => Op::Load { offset: offset & 0x3ff, width: Width::Byte },
        1 => Op::Load { offset: offset & 0x3fe, width: Width::Word },
        2 => Op::Load { offset: offset & 0xff0 | 8, width: Width::Qword },
        3 => Op::Store { offset: offset & 0xff0, width: Width::Qword, value: random.bits() },
        4 => Op::Store {
            offset: offset & 0xff0 | 4,
            width: Width::Dword,
            value: random.bits() & 0xff,
        },
        _ => Op::Rdmsr(0x800 + random.below(0x100) as u32),
    }
}
