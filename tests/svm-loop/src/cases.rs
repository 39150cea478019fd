//! What only AVIC does, as guests see it: each case is a program that every vCPU of a VM runs.
//!
//! The programs find out what they cost by asking the host for exits. They run in the image on a processor with AVIC, and
//! on the silicon model everywhere.

use core::sync::atomic::{AtomicU64, Ordering};

/// A vCPU, from the inside. Its APIC is enabled, its interrupts are on, and its handlers count and send EOI.
pub trait Guest {
    /// Its index, which is its APIC ID.
    fn index(&self) -> usize;
    /// Whether the APIC is in x2APIC mode.
    fn is_x2apic(&self) -> bool;
    /// Reads the register at a page offset.
    fn read(&mut self, offset: u16) -> u64;
    /// Writes the register at a page offset. In x2APIC mode ICR is one of 64 bits.
    fn write(&mut self, offset: u16, value: u64);
    /// MOV from CR8.
    fn read_cr8(&mut self) -> u64;
    /// MOV to CR8.
    fn write_cr8(&mut self, value: u64);
    /// CLI.
    fn interrupts_off(&mut self);
    /// STI.
    fn interrupts_on(&mut self);
    /// STI and HLT, with nothing taken between them.
    fn halt(&mut self);
    /// Lets others run.
    fn pause(&self);
    /// The case has failed elsewhere: waiting is in vain.
    fn gives_up(&self) -> bool {
        false
    }
    /// How often vCPU `vcpu` has taken a vector.
    fn taken(&self, vcpu: usize, vector: u8) -> u64;
    /// A word that all vCPUs share.
    fn word(&self) -> &AtomicU64;
    /// Asks the host.
    fn call(&mut self, call: Call) -> u64;
}

/// What a guest may ask of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// How many exits vCPU `vcpu` has caused so far, less this one.
    Exits(usize),
    /// A device sends a vector to `vcpu`.
    Post {
        /// Who gets it.
        vcpu: usize,
        /// The vector.
        vector: u8,
        /// Level-triggered.
        level: bool,
    },
    /// How often the end of a level-triggered vector was broadcast.
    Ends(u8),
    /// Whether vCPU `vcpu` sleeps.
    Sleeps(usize),
    /// AVIC goes off for the VM, or may come back.
    Inhibit(bool),
}

impl Call {
    /// As two numbers, for registers.
    #[must_use]
    pub const fn encode(self) -> (u64, u64) {
        match self {
            Self::Exits(vcpu) => (0, vcpu as u64),
            Self::Post { vcpu, vector, level } => {
                (1, vcpu as u64 | (vector as u64) << 16 | (level as u64) << 24)
            }
            Self::Ends(vector) => (2, vector as u64),
            Self::Sleeps(vcpu) => (3, vcpu as u64),
            Self::Inhibit(on) => (4, on as u64),
        }
    }

    /// Back from there.
    #[must_use]
    pub const fn decode(kind: u64, argument: u64) -> Option<Self> {
        Some(match kind {
            0 => Self::Exits(argument as usize),
            1 => Self::Post {
                vcpu: argument as u16 as usize,
                vector: (argument >> 16) as u8,
                level: argument >> 24 & 1 != 0,
            },
            2 => Self::Ends(argument as u8),
            3 => Self::Sleeps(argument as usize),
            4 => Self::Inhibit(argument != 0),
            _ => return None,
        })
    }
}

/// A case by its name.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// How many vCPUs run it.
    pub vcpus: usize,
    /// What each of them runs: 0 if all was right, else the number of the line that was not.
    pub program: fn(&mut dyn Guest) -> u64,
}

/// All of them.
pub const CASES: &[Case] = &[
    Case { name: "avic-exits", vcpus: 1, program: exits },
    Case { name: "avic-priority", vcpus: 1, program: priority },
    Case { name: "avic-refused-ipis", vcpus: 1, program: refused },
    Case { name: "avic-ipi-running", vcpus: 2, program: running },
    Case { name: "avic-ipi-halted", vcpus: 2, program: halted },
    Case { name: "avic-ipi-destinations", vcpus: 3, program: destinations },
    Case { name: "avic-doorbell", vcpus: 2, program: doorbell },
    Case { name: "avic-level-eoi", vcpus: 2, program: level_eoi },
    Case { name: "avic-inhibit", vcpus: 2, program: inhibit },
];

const ID: u16 = 0x020;
const VERSION: u16 = 0x030;
const TPR: u16 = 0x080;
const PPR: u16 = 0x0a0;
const EOI: u16 = 0x0b0;
const LDR: u16 = 0x0d0;
const SVR: u16 = 0x0f0;
const ISR: u16 = 0x100;
const IRR: u16 = 0x200;
const ESR: u16 = 0x280;
const ICR: u16 = 0x300;
const ICR_HIGH: u16 = 0x310;
const LVT_TIMER: u16 = 0x320;
const INITIAL_COUNT: u16 = 0x380;
const CURRENT_COUNT: u16 = 0x390;
const SELF_IPI: u16 = 0x3f0;

/// Shorthands and modes of ICR.
const SELF: u64 = 1 << 18;
const ALL: u64 = 2 << 18;
const OTHERS: u64 = 3 << 18;
const LOGICAL: u64 = 1 << 11;

const VECTOR: u8 = 0x51;
const ROUNDS: u64 = 20;
/// Looks in which something that comes has come.
const PATIENCE: u64 = 50_000_000;

/// A program ends with the number of the line that found something wrong.
macro_rules! ensure {
    ($right:expr) => {
        if !$right {
            return u64::from(line!());
        }
    };
}

/// Waits until something has come.
fn wait(guest: &dyn Guest, come: impl Fn(&dyn Guest) -> bool) -> bool {
    (0..PATIENCE).any(|_| {
        guest.pause();
        come(guest) || guest.gives_up()
    }) && come(guest)
}

/// Asks the host until it answers what was waited for.
fn ask(guest: &mut dyn Guest, call: Call, come: impl Fn(u64) -> bool) -> bool {
    (0..PATIENCE).any(|_| {
        guest.pause();
        guest.gives_up() || come(guest.call(call))
    }) && !guest.gives_up()
}

/// Waits until `vcpu` has taken `vector` so many times, and not more.
fn takes(guest: &dyn Guest, vcpu: usize, vector: u8, times: u64) -> bool {
    wait(guest, |guest| guest.taken(vcpu, vector) >= times) && guest.taken(vcpu, vector) == times
}

/// Sends by ICR.
fn send(guest: &mut dyn Guest, destination: u64, command: u64) {
    if guest.is_x2apic() {
        guest.write(ICR, destination << 32 | command);
    } else {
        guest.write(ICR_HIGH, destination << 24);
        guest.write(ICR, command);
    }
}

/// What `work` costs this vCPU in exits.
fn cost(guest: &mut dyn Guest, work: impl FnOnce(&mut dyn Guest)) -> u64 {
    let index = guest.index();
    let before = guest.call(Call::Exits(index));
    work(guest);
    // The first question was an exit too.
    guest.call(Call::Exits(index)).wrapping_sub(before + 1)
}

/// The vCPUs but the first do what they are told by the shared word: this is how far the first is.
fn step(guest: &dyn Guest) -> u64 {
    guest.word().load(Ordering::SeqCst)
}

fn go(guest: &dyn Guest, step: u64) {
    guest.word().store(step, Ordering::SeqCst);
}

/// The steps of a case with two vCPUs: nobody is ready, the second is, the second may end.
const READY: u64 = 1;
const END: u64 = 1 << 32;

/// What the second vCPU of most cases does: runs.
fn runs(guest: &mut dyn Guest) -> u64 {
    guest.read(SVR);
    go(guest, READY);
    ensure!(wait(guest, |guest| step(guest) == END));
    0
}

fn exits(guest: &mut dyn Guest) -> u64 {
    const N: u64 = 10;
    // The first access maps the register window.
    guest.read(SVR);
    for offset in [ID, VERSION, TPR, PPR, SVR, ISR, IRR, LVT_TIMER, ICR] {
        ensure!(cost(guest, |guest| (0..N).for_each(|_| _ = guest.read(offset))) == 0);
    }
    ensure!(cost(guest, |guest| (0..N).for_each(|n| guest.write(TPR, (n % 2) << 4))) == 0);
    ensure!(cost(guest, |guest| (0..N).for_each(|n| guest.write_cr8(n % 2))) == 0);
    ensure!(cost(guest, |guest| (0..N).for_each(|_| _ = guest.read_cr8())) == 0);
    guest.write_cr8(0);
    ensure!(cost(guest, |guest| (0..N).for_each(|_| guest.write(EOI, 0))) == 0);
    // Sent to itself, taken and ended.
    let all = cost(guest, |guest| {
        for n in 1..=N {
            send(guest, 0, SELF | u64::from(VECTOR));
            takes(guest, 0, VECTOR, n);
        }
    });
    ensure!(all == 0 && guest.taken(0, VECTOR) == N);
    if guest.is_x2apic() {
        ensure!(cost(guest, |guest| guest.write(SELF_IPI, VECTOR.into())) == 0);
        ensure!(takes(guest, 0, VECTOR, N + 1));
    } else {
        ensure!(cost(guest, |guest| (0..N).for_each(|n| guest.write(ICR_HIGH, n << 24))) == 0);
        ensure!(cost(guest, |guest| guest.write(LDR, 1 << 24)) == 1);
    }
    // What AVIC stores and then tells of; in x2APIC mode these are intercepted.
    ensure!(cost(guest, |guest| (0..N).for_each(|_| guest.write(SVR, 0x1ff))) == N);
    ensure!(cost(guest, |guest| (0..N).for_each(|_| guest.write(LVT_TIMER, 1 << 16))) == N);
    ensure!(cost(guest, |guest| (0..N).for_each(|_| guest.write(INITIAL_COUNT, 0))) == N);
    // And what it leaves undone.
    ensure!(cost(guest, |guest| (0..N).for_each(|_| _ = guest.read(CURRENT_COUNT))) == N);
    0
}

/// What waits for a lower task priority comes without an exit.
fn priority(guest: &mut dyn Guest) -> u64 {
    guest.read(SVR);
    for round in 1..=ROUNDS {
        let mut early = 0;
        let cost = cost(guest, |guest| {
            guest.write_cr8(6);
            send(guest, 0, SELF | u64::from(VECTOR));
            // An exit and an entry, which change nothing.
            guest.call(Call::Ends(VECTOR));
            guest.read(TPR);
            early = guest.taken(0, VECTOR);
            if round % 2 == 0 {
                guest.write_cr8(0);
            } else {
                guest.write(TPR, 0);
            }
            takes(guest, 0, VECTOR, round);
        });
        ensure!(early == round - 1 && guest.taken(0, VECTOR) == round && cost == 1);
    }
    0
}

/// IPIs that hardware does not send: an illegal vector, a target that does not exist.
fn refused(guest: &mut dyn Guest) -> u64 {
    const SEND_ILLEGAL_VECTOR: u64 = 1 << 5;
    guest.read(SVR);
    ensure!(cost(guest, |guest| send(guest, 0, SELF | 5)) == 1);
    guest.write(ESR, 0);
    ensure!(guest.read(ESR) == SEND_ILLEGAL_VECTOR);
    ensure!(cost(guest, |guest| send(guest, 9, VECTOR.into())) == 1);
    ensure!(guest.taken(0, VECTOR) == 0);
    // One that is there is reached afterwards.
    send(guest, 0, VECTOR.into());
    ensure!(takes(guest, 0, VECTOR, 1));
    0
}

/// An IPI to a vCPU that runs costs neither of the two an exit.
fn running(guest: &mut dyn Guest) -> u64 {
    if guest.index() != 0 {
        return runs(guest);
    }
    guest.read(SVR);
    ensure!(wait(guest, |guest| step(guest) == READY));
    let others = guest.call(Call::Exits(1));
    let own = cost(guest, |guest| {
        for round in 1..=ROUNDS {
            send(guest, 1, VECTOR.into());
            takes(guest, 1, VECTOR, round);
        }
    });
    ensure!(guest.taken(1, VECTOR) == ROUNDS && own == 0);
    ensure!(guest.call(Call::Exits(1)) == others);
    go(guest, END);
    0
}

/// An IPI to a vCPU that sleeps costs its sender one exit, and wakes it.
fn halted(guest: &mut dyn Guest) -> u64 {
    if guest.index() != 0 {
        guest.read(SVR);
        for round in 1..=ROUNDS {
            guest.interrupts_off();
            while guest.taken(1, VECTOR) < round && !guest.gives_up() {
                guest.halt();
                guest.interrupts_off();
            }
        }
        guest.interrupts_on();
        return 0;
    }
    guest.read(SVR);
    for round in 1..=ROUNDS {
        ensure!(ask(guest, Call::Sleeps(1), |sleeps| sleeps != 0));
        ensure!(cost(guest, |guest| send(guest, 1, VECTOR.into())) == 1);
        ensure!(takes(guest, 1, VECTOR, round));
    }
    0
}

/// Shorthands, broadcast and logical destinations reach whom they name, without an exit.
fn destinations(guest: &mut dyn Guest) -> u64 {
    let (index, x2apic) = (guest.index(), guest.is_x2apic());
    guest.read(SVR);
    if !x2apic {
        guest.write(LDR, 1 << (24 + index));
    }
    // Each finds out at an entry what the others' logical IDs have become.
    for round in 1..=3 {
        guest.call(Call::Ends(VECTOR));
        guest.word().fetch_add(1, Ordering::SeqCst);
        ensure!(wait(guest, |guest| step(guest) >= 3 * round));
    }
    if index != 0 {
        ensure!(wait(guest, |guest| step(guest) == END));
        return 0;
    }
    let broadcast = if x2apic { 0xffff_ffff } else { 0xff };
    let kinds = [
        (0, SELF, 0b001),
        (0, ALL, 0b111),
        (0, OTHERS, 0b110),
        (broadcast, 0, 0b111),
        (2, 0, 0b100),
        (0b001, LOGICAL, 0b001),
        (0b110, LOGICAL, 0b110),
        (0b101, LOGICAL, 0b101),
    ];
    for ((destination, command, whom), vector) in kinds.into_iter().zip(VECTOR..) {
        let once = |guest: &mut dyn Guest, times: u64| {
            let cost = cost(guest, |guest| send(guest, destination, command | u64::from(vector)));
            let all = (0..3).all(|vcpu| takes(guest, vcpu, vector, (whom >> vcpu & 1) * times));
            (all, cost)
        };
        ensure!(once(guest, 1) == (true, 0));
        ensure!(once(guest, 2) == (true, 0));
    }
    go(guest, END);
    0
}

/// A device's interrupt comes to a vCPU that runs without an exit.
fn doorbell(guest: &mut dyn Guest) -> u64 {
    if guest.index() != 0 {
        return runs(guest);
    }
    ensure!(wait(guest, |guest| step(guest) == READY));
    let before = guest.call(Call::Exits(1));
    for round in 1..=ROUNDS {
        guest.call(Call::Post { vcpu: 1, vector: VECTOR, level: false });
        ensure!(takes(guest, 1, VECTOR, round));
    }
    ensure!(guest.call(Call::Exits(1)) == before);
    go(guest, END);
    0
}

/// The EOI of a level-triggered vector exits, once, and is broadcast; that of an edge does neither.
fn level_eoi(guest: &mut dyn Guest) -> u64 {
    if guest.index() != 0 {
        return runs(guest);
    }
    ensure!(wait(guest, |guest| step(guest) == READY));
    for round in 1..=ROUNDS {
        let before = guest.call(Call::Exits(1));
        guest.call(Call::Post { vcpu: 1, vector: VECTOR, level: true });
        ensure!(takes(guest, 1, VECTOR, round));
        ensure!(ask(guest, Call::Ends(VECTOR), |ends| ends >= round));
        // Once the exit is over.
        ensure!(ask(guest, Call::Exits(1), |exits| exits != before));
        ensure!(guest.call(Call::Exits(1)) == before + 1);
        guest.call(Call::Post { vcpu: 1, vector: VECTOR + 1, level: false });
        ensure!(takes(guest, 1, VECTOR + 1, round));
        ensure!(guest.call(Call::Exits(1)) == before + 1);
        ensure!(guest.call(Call::Ends(VECTOR)) == round && guest.call(Call::Ends(VECTOR + 1)) == 0);
    }
    go(guest, END);
    0
}

/// AVIC goes off and comes back between interrupts; none is lost, and with it the exits go again.
fn inhibit(guest: &mut dyn Guest) -> u64 {
    if guest.index() != 0 {
        return runs(guest);
    }
    guest.read(SVR);
    ensure!(wait(guest, |guest| step(guest) == READY));
    let mut count = 0;
    for _ in 0..ROUNDS {
        guest.call(Call::Inhibit(true));
        let cost_off = cost(guest, |guest| send(guest, 1, VECTOR.into()));
        count += 1;
        ensure!(takes(guest, 1, VECTOR, count) && cost_off > 0);
        guest.call(Call::Post { vcpu: 1, vector: VECTOR, level: false });
        count += 1;
        ensure!(takes(guest, 1, VECTOR, count));
        guest.call(Call::Inhibit(false));
        // Each comes back at its next entry. Soon an IPI costs nothing again.
        let mut cost_on = 1;
        for _ in 0..10 {
            cost_on = cost(guest, |guest| send(guest, 1, VECTOR.into()));
            count += 1;
            ensure!(takes(guest, 1, VECTOR, count));
        }
        ensure!(cost_on == 0);
    }
    go(guest, END);
    0
}
