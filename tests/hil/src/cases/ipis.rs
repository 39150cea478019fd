//! Interrupts between vCPUs: every way to name a destination, and who gets what.

use core::sync::atomic::{AtomicU32, Ordering};

use super::guest_apic::{DFR, ESR, LDR, LONG_ENOUGH, SOON, ensure, send};
use super::stage::{self, GO, INDEX, PHASE, Stage};
use super::{Case, Failure, Mode, Setting, check, guests};
use crate::guest::{self, Apic, Context, MAX_VCPUS, apic, cpu};
use crate::hypervisor::{Config, Level};
use crate::machine::command_line::CommandLine;
use crate::machine::identity::{self, Machine};
use crate::machine::smp;
use crate::println;

pub(super) const CASES: &[Case] = &[
    Case { name: "ipi-destinations", cpus: 2, applies: |_| true, run: destinations },
    Case { name: "ipi-storm", cpus: 2, applies: |_| true, run: storm },
];

/// SVR's vector.
const SPURIOUS: u8 = 0xFF;

/// Word of the context: how many vCPUs there are.
const VCPUS: usize = 0;

/// Fields of ICR (SDM Vol. 3A 10.6.1).
const LOWEST_PRIORITY: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;
const LOGICAL: u32 = 1 << 11;
const ASSERT: u32 = 1 << 14;
const ALL: u32 = 2 << 18;
const ALL_BUT_SELF: u32 = 3 << 18;

/// As many vCPUs as there are CPUs, up to 4: the first is here.
fn stage(setting: Setting) -> Result<Stage, Failure> {
    let vcpus = smp::cpu_count().min(4);
    let stage = Stage::with_first_here(Config::new(setting.level, vcpus))?;
    for index in 0..vcpus {
        stage.context(index).word(VCPUS).store(vcpus as u64, Ordering::Relaxed);
    }
    Ok(stage)
}

fn destinations(setting: Setting) -> Result<(), Failure> {
    let stage = stage(setting)?;
    stage.launch(member, guests::argument(setting.mode))?;
    stage.run_first(leader, guests::argument(setting.mode))?;
    stage.finish_all()
}

/// Logical addresses are given out in phase 1 by the flat model, in phase 2 by the cluster model.
extern "C" fn member(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    for phase in 1..=2 {
        ensure!(guests::mode(argument) == Mode::X2Apic || name(context, phase));
        stage::reach(context, phase);
        stage::wait_go(context, phase);
    }
    0
}

/// Writes LDR and DFR for a phase.
fn name(context: &Context, phase: u64) -> bool {
    let index = context.word(INDEX).load(Ordering::Relaxed);
    let (dfr, id) = match phase {
        1 => (0xffff_ffff, 1 << index),
        // Two to a cluster.
        _ => (0x0fff_ffff, (index / 2) << 4 | 1 << (index % 2)),
    };
    apic::write(context, DFR, dfr).is_ok() && apic::write(context, LDR, id << 24).is_ok()
}

/// What is sent, and to which vCPUs it comes, as a mask.
struct Shot {
    low: u32,
    destination: u32,
    to: u32,
}

/// By ID and by shorthand, in both modes; the leader is vCPU 0.
const PHYSICAL: &[Shot] = &[
    Shot { low: 0x41, destination: 1, to: 0b0010 },
    Shot { low: 0x9f, destination: 2, to: 0b0100 },
    Shot { low: 0xef | ASSERT, destination: 3, to: 0b1000 },
    Shot { low: 0x52, destination: 0, to: 0b0001 },
    Shot { low: 0x62 | ALL, destination: 0, to: 0b1111 },
    Shot { low: 0x72 | ALL_BUT_SELF, destination: 0, to: 0b1110 },
    Shot { low: NMI, destination: 1, to: 0b0010 },
    Shot { low: NMI | 0x33, destination: 2, to: 0b0100 },
    Shot { low: NMI | ALL_BUT_SELF, destination: 0, to: 0b1110 },
    // Nobody there: nothing happens.
    Shot { low: 0x82, destination: 0x20, to: 0 },
    Shot { low: NMI, destination: 0x20, to: 0 },
    // Types other than fixed do not go to the sender.
    Shot { low: NMI | ALL, destination: 0, to: 0 },
    Shot { low: NMI | 1 << 18, destination: 0, to: 0 },
];

const XAPIC: &[Shot] = &[
    Shot { low: 0x83, destination: 0xff, to: 0b1111 },
    Shot { low: NMI, destination: 0xff, to: 0b1111 },
];

const FLAT: &[Shot] = &[
    Shot { low: 0x84 | LOGICAL, destination: 0b0010, to: 0b0010 },
    Shot { low: 0x85 | LOGICAL, destination: 0b1011, to: 0b1011 },
    Shot { low: NMI | LOGICAL, destination: 0b0110, to: 0b0110 },
    Shot { low: 0x86 | LOGICAL, destination: 0xff, to: 0b1111 },
    Shot { low: 0x87 | LOGICAL, destination: 0xf0, to: 0 },
    Shot { low: 0x88 | LOGICAL, destination: 0, to: 0 },
];

const CLUSTER: &[Shot] = &[
    Shot { low: 0x89 | LOGICAL, destination: 0x01, to: 0b0001 },
    Shot { low: 0x8a | LOGICAL, destination: 0x03, to: 0b0011 },
    Shot { low: 0x8b | LOGICAL, destination: 0x12, to: 0b1000 },
    Shot { low: 0x8c | LOGICAL, destination: 0x1f, to: 0b1100 },
    Shot { low: 0x8d | LOGICAL, destination: 0x23, to: 0 },
    Shot { low: 0x8e | LOGICAL, destination: 0xff, to: 0b1111 },
];

const X2APIC: &[Shot] = &[
    Shot { low: 0x83, destination: u32::MAX, to: 0b1111 },
    Shot { low: 0x84, destination: 0xff, to: 0 },
    Shot { low: 0x85 | LOGICAL, destination: 0b0010, to: 0b0010 },
    Shot { low: 0x86 | LOGICAL, destination: 0b1101, to: 0b1101 },
    Shot { low: NMI | LOGICAL, destination: 0b0110, to: 0b0110 },
    Shot { low: 0x87 | LOGICAL, destination: 0x1_0001, to: 0 },
    Shot { low: 0x88 | LOGICAL, destination: u32::MAX, to: 0b1111 },
];

const ROUNDS: u32 = 4;

extern "C" fn leader(context: &'static Context, argument: u64) -> u64 {
    let vcpus = context.word(VCPUS).load(Ordering::Relaxed) as usize;
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    // The others wait for their SIPI: a fixed interrupt finds their APICs disabled.
    ensure!(shoot(context, vcpus, &Shot { low: 0x41 | ALL_BUT_SELF, destination: 0, to: 0 }));
    ensure!(send(context, INIT | ASSERT | ALL_BUT_SELF, 0).is_ok());
    ensure!(send(context, STARTUP | ALL_BUT_SELF | u32::from(stage::START_PAGE), 0).is_ok());
    ensure!(all_at(vcpus, 1));
    let special = match context.apic() {
        Apic::XApic { .. } => {
            ensure!(name(context, 1));
            [XAPIC, FLAT]
        }
        Apic::X2Apic => [X2APIC, &[]],
    };
    for _ in 0..ROUNDS {
        for shot in PHYSICAL.iter().chain(special.into_iter().flatten()) {
            ensure!(shoot(context, vcpus, shot));
        }
    }
    if context.apic() != Apic::X2Apic {
        ensure!(lowest_priority(context, vcpus));
        let_all_go(vcpus, 1);
        ensure!(name(context, 2) && all_at(vcpus, 2));
        for shot in CLUSTER.iter().chain(CLUSTER) {
            ensure!(shoot(context, vcpus, shot));
        }
    }
    // None of it was an error.
    ensure!(apic::write(context, ESR, 0).is_ok() && apic::read(context, ESR) == Ok(0));
    let_all_go(vcpus, 2);
    0
}

/// Sends, and sees that each vCPU of the mask takes it once and no other does.
fn shoot(context: &Context, vcpus: usize, shot: &Shot) -> bool {
    let vector = if shot.low & NMI != 0 { 2 } else { shot.low as u8 };
    let counts = || core::array::from_fn(|index| guest::context(index).count(vector));
    let mut expected: [u32; MAX_VCPUS] = counts();
    for (index, count) in expected.iter_mut().enumerate().take(vcpus) {
        *count += shot.to >> index & 1;
    }
    let sent = send(context, shot.low, shot.destination).is_ok();
    cpu::wait_long(SOON, || counts() == expected);
    cpu::wait(LONG_ENOUGH / 10, || false);
    sent && counts() == expected
}

/// Lowest priority goes to one of those named, and not to the one whose task priority is higher.
fn lowest_priority(context: &Context, vcpus: usize) -> bool {
    // A multiple of 2, 3 and 4: among equals the first vCPU would have it.
    const VECTOR: u8 = 0x78;
    let total = || (0..vcpus).map(|index| guest::context(index).count(VECTOR)).sum::<u32>();
    let low = u32::from(VECTOR) | LOWEST_PRIORITY | LOGICAL;
    if apic::write(context, apic::TPR, 0x60).is_err() {
        return false;
    }
    let right = (1..=20).all(|count| {
        let sent = send(context, low, 0xf).is_ok();
        cpu::wait_long(SOON, || total() >= count);
        cpu::wait(LONG_ENOUGH / 10, || false);
        sent && total() == count
    });
    let to_others = right && context.count(VECTOR) == 0;
    // Of one there is the lowest.
    let own = send(context, low, 1).is_ok() && cpu::wait_long(SOON, || context.count(VECTOR) == 1);
    to_others && own && apic::write(context, apic::TPR, 0).is_ok()
}

fn all_at(vcpus: usize, phase: u64) -> bool {
    let there = |index| guest::context(index).word(PHASE).load(Ordering::Acquire) >= phase;
    (1..vcpus).all(|index| cpu::wait_long(SOON, || there(index)))
}

fn let_all_go(vcpus: usize, phase: u64) {
    (1..vcpus).for_each(|index| guest::context(index).word(GO).store(phase, Ordering::Release));
}

/// Rounds of the storm.
static STORM: AtomicU32 = AtomicU32::new(200);

/// `storm=`: how many rounds it has, where that is not 200. `one-thread`: the machine is QEMU with one thread for all CPUs.
pub(super) fn configure(line: &CommandLine) {
    let rounds = line.number("storm").and_then(|rounds| u32::try_from(rounds).ok());
    rounds.inspect(|&rounds| STORM.store(rounds, Ordering::Relaxed));
    if line.has("one-thread") {
        println!(
            "HIL-BUG name=Q5 note=with a thread for each CPU a #VMEXIT may come outside guest mode: one thread for all"
        );
    }
}

/// All vCPUs send to all others at the same time.
fn storm(setting: Setting) -> Result<(), Failure> {
    let stage = stage(setting)?;
    stage.launch(sender, guests::argument(setting.mode))?;
    (1..stage.vcpus()).for_each(|index| stage.start(index));
    stage.run_first(sender, guests::argument(setting.mode))?;
    stage.finish_all()?;
    if (0..stage.vcpus()).any(|index| stage.context(index).count(SPURIOUS) != 0) {
        // See docs/testing.md. A notification may come when an entry has taken its post in.
        let known = setting.level == Level::Posted && identity::machine() == Machine::Bochs;
        check(known, "a spurious interrupt")?;
        println!("HIL-BUG name=D5 note=a late notification makes vector FF be taken");
    }
    Ok(())
}

/// Sends its own vector to all others, again as soon as all have taken it.
extern "C" fn sender(context: &'static Context, argument: u64) -> u64 {
    const FIRST_VECTOR: u64 = 0x5e;
    let vcpus = context.word(VCPUS).load(Ordering::Relaxed) as usize;
    let index = context.word(INDEX).load(Ordering::Relaxed);
    let rounds = STORM.load(Ordering::Relaxed);
    let vector = (FIRST_VECTOR + index) as u8;
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    stage::reach(context, 1);
    ensure!((0..vcpus).all(|other| cpu::wait_long(SOON, || {
        guest::context(other).word(PHASE).load(Ordering::Acquire) >= 1
    })));
    let others = || (0..vcpus).filter(|&other| other as u64 != index).map(guest::context);
    for count in 1..=rounds {
        ensure!(send(context, u32::from(vector) | ALL_BUT_SELF, 0).is_ok());
        for other in others() {
            ensure!(cpu::wait_long(SOON, || other.count(vector) >= count));
            ensure!(other.count(vector) == count);
        }
    }
    // The end of all: nobody leaves while another still sends to it, and nobody is waited for who sends no more.
    stage::reach(context, 2);
    for other in (0..vcpus).filter(|&other| other as u64 != index) {
        let is_at_end = || guest::context(other).word(PHASE).load(Ordering::Acquire) >= 2;
        let sent = || context.count((FIRST_VECTOR + other as u64) as u8);
        while !is_at_end() {
            let before = sent();
            ensure!(cpu::wait_long(SOON, || is_at_end() || sent() != before));
        }
    }
    let taken = context.total() - context.count(SPURIOUS);
    ensure!(context.count(vector) == 0 && taken == rounds * (vcpus as u32 - 1));
    0
}
