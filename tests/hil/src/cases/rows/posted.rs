//! Posted interrupts (SDM Vol. 3C 29.6): what a notification does to a vCPU that runs, that does not take interrupts, that
//! halts, and that is out of guest mode.

use core::sync::atomic::Ordering;

use vlapic_core::Vector;

use super::probe::{self, Probe};
use super::remote::{self, ask, in_one_turn, linger, wait};
use crate::cases::{Case, Failure, Setting, check, equal, record};
use crate::guest::{Eoi, cpu, hypercall};
use crate::hypervisor::Level;
use crate::hypervisor::vm::VECTORS;
use crate::machine::{apic as physical, interrupts as host, smp};
use crate::vmx::Reason;
use crate::vmx::interrupt::Activity;

pub(super) const CASES: &[Case] = &[
    Case { name: "rows-posted-running", cpus: 2, applies, run: |at| remote::run(at, running, JOB) },
    Case { name: "rows-posted-masked", cpus: 2, applies, run: |at| remote::run(at, masked, JOB) },
    Case { name: "rows-posted-halted", cpus: 2, applies, run: halted },
    Case { name: "rows-posted-suppressed", cpus: 2, applies, run: |at| remote::run(at, sn, JOB) },
    Case { name: "rows-posted-rvi", cpus: 2, applies, run: |at| remote::run(at, highest, JOB) },
    Case { name: "rows-posted-nothing", cpus: 2, applies, run: |at| remote::run(at, nothing, JOB) },
    Case { name: "rows-posted-root-mode", cpus: 1, applies, run: root_mode },
    Case { name: "rows-host-interrupt", cpus: 2, applies: |_| true, run: host_interrupt },
];

fn applies(setting: Setting) -> bool {
    setting.level == Level::Posted
}

const IRR: u16 = 0x200;
const VECTOR: u8 = 0x51;
const HIGHER: u8 = 0x91;
/// For the host.
const HOST_VECTOR: u8 = 0x47;

/// Steps of [`JOB`].
const POST: u64 = 1;
const POST_SUPPRESSED: u64 = 2;
const INTERRUPT_HOST: u64 = 3;
const WAKE: u64 = 4;
const NOTIFY: u64 = 5;

const JOB: remote::Job = |machine, step| match step {
    POST => remote::post(machine, VECTOR),
    POST_SUPPRESSED => {
        const SN: u64 = 1 << 1;
        let descriptor = machine.slots[0].inbox().descriptor();
        descriptor.words()[4].fetch_or(SN, Ordering::SeqCst);
        if let Some(vector) = Vector::new(VECTOR) {
            let _ = descriptor.post(vector);
        }
        remote::interrupt(VECTORS.running);
    }
    INTERRUPT_HOST => remote::interrupt(HOST_VECTOR),
    NOTIFY => remote::interrupt(VECTORS.running),
    _ => {
        // Long enough for the guest to be halted.
        crate::cases::stage::pause(20_000);
        let context = machine.context(0);
        let before = context.total();
        remote::post(machine, VECTOR);
        // An exit is all that helps a guest which is not woken.
        if !remote::wait(|| context.total() != before) {
            remote::interrupt(HOST_VECTOR);
        }
    }
};

/// The descriptor must be as after posted-interrupt processing: ON and PIR clear.
fn processed(probe: &Probe) -> Result<(), Failure> {
    let descriptor = probe.machine.slots[0].inbox().descriptor();
    check(!descriptor.control().on(), "ON is still set")?;
    check(!descriptor.has_posts(), "PIR is not empty")
}

/// Neither the guest's own exits nor any for a physical interrupt since [`record::clear`].
fn no_exits() -> Result<(), Failure> {
    equal("exits", record::total(), 0u64)?;
    equal("exits for interrupts", remote::interrupts(), 0u64)
}

/// Taken at once, and no exit comes of it.
fn running(probe: &Probe) -> Result<(), Failure> {
    cpu::interrupts_on();
    record::clear();
    for round in 1..=100u32 {
        probe.at(round);
        in_one_turn(probe, |probe| {
            let before = probe.context.count(VECTOR);
            ask(POST);
            check(wait(|| probe.context.count(VECTOR) != before), "a post was not taken")?;
            equal("taken", probe.context.count(VECTOR), before + 1)?;
            no_exits()?;
            processed(probe)
        })?;
    }
    Ok(())
}

/// With IF 0 it gets into IRR, and is taken at STI.
fn masked(probe: &Probe) -> Result<(), Failure> {
    in_one_turn(probe, |probe| {
        let before = probe.context.count(VECTOR);
        // The entry is with IF 1; see the case for defect D2 for the other.
        cpu::interrupts_on();
        hypercall::phase(0);
        cpu::interrupts_off();
        record::clear();
        ask(POST);
        let arrived = wait(|| probe.has(IRR, VECTOR));
        let processed = processed(probe);
        let early = probe.context.count(VECTOR);
        cpu::interrupts_on();
        let taken = probe.context.count(VECTOR);
        cpu::interrupts_off();
        check(arrived, "the post did not get into IRR")?;
        processed?;
        equal("taken while IF is 0", early, before)?;
        equal("taken at STI", taken, before + 1)?;
        no_exits()
    })
}

const LET_HALT: u64 = probe::FREE;

/// It ends the guest's HLT, where HLT does not exit.
fn halted(setting: Setting) -> Result<(), Failure> {
    let mut config = remote::config(setting);
    config.at_exit = |machine, vcpu, exit, current| {
        remote::watch(machine, vcpu, exit, current);
        let _ = match exit.reason {
            // The other CPU has lost its patience.
            Reason::ExternalInterrupt => current.set_activity(Activity::Active),
            _ if probe::called(exit, current) == Some(LET_HALT) => current.set_hlt_exiting(false),
            _ => Ok(()),
        };
    };
    remote::run_with(config, setting, halt, JOB)
}

fn halt(probe: &Probe) -> Result<(), Failure> {
    hypercall::call(LET_HALT, 0, 0);
    for round in 1..=5u32 {
        probe.at(round);
        // The entry is with IF 1, as in `masked`.
        cpu::interrupts_on();
        hypercall::phase(0);
        cpu::interrupts_off();
        record::clear();
        ask(WAKE);
        halt_open();
        equal("exits because nothing ended HLT", remote::interrupts(), 0u64)?;
        if probe.context.count(VECTOR) < round {
            check(probe.has(IRR, VECTOR), "HLT ended with nothing to take")?;
            probe.bug(
                "late-wake",
                "the instruction after HLT runs before the interrupt that ended HLT",
            );
            cpu::interrupts_on();
            cpu::interrupts_off();
        }
        equal("taken", probe.context.count(VECTOR), round)?;
        no_exits()?;
        processed(probe)?;
    }
    Ok(())
}

/// HLT with interrupts on; they are off for the instructions before and after.
fn halt_open() {
    // SAFETY: guest code at CPL 0 with an IDT that is ready; the interrupt that ends HLT is taken before CLI.
    unsafe { core::arch::asm!("sti", "hlt", "cli", options(nostack)) };
}

/// SN is for those who send notifications; the processor does not look at it when one comes.
fn sn(probe: &Probe) -> Result<(), Failure> {
    cpu::interrupts_on();
    record::clear();
    in_one_turn(probe, |probe| {
        let before = probe.context.count(VECTOR);
        ask(POST_SUPPRESSED);
        let taken = wait(|| probe.context.count(VECTOR) != before);
        check(taken, "a post under SN was not processed")?;
        no_exits()?;
        processed(probe)
    })
}

/// A notification that comes late, when its post has been taken in by an entry: nothing happens.
fn nothing(probe: &Probe) -> Result<(), Failure> {
    cpu::interrupts_on();
    record::clear();
    in_one_turn(probe, |probe| {
        let (before, spurious) = (probe.context.total(), probe.context.count(0xFF));
        ask(NOTIFY);
        let taken = wait(|| probe.context.total() != before);
        if taken && probe.context.count(0xFF) == spurious + 1 {
            probe.bug(
                "D5",
                "a notification with nothing posted and IRR empty makes vector FF be taken",
            );
            return Ok(());
        }
        check(!taken, "an interrupt that nobody sent")?;
        no_exits()
    })
}

/// RVI becomes the higher of itself and what was posted. What stands in IRR besides, put there by nobody who tells the
/// processor, does not count until the next delivery.
fn highest(probe: &Probe) -> Result<(), Failure> {
    probe.context.set_handling(VECTOR, Eoi::Last, None);
    in_one_turn(probe, |probe| {
        let first = probe.context.total();
        cpu::interrupts_on();
        hypercall::phase(0);
        cpu::interrupts_off();
        record::clear();
        let offset = IRR + u16::from(HIGHER / 32) * 16;
        probe.page().store(offset, 1 << (HIGHER % 32));
        ask(POST);
        let arrived = wait(|| probe.has(IRR, VECTOR));
        cpu::interrupts_on();
        linger();
        cpu::interrupts_off();
        check(arrived, "the post did not get into IRR")?;
        let order = [probe.context.traced(first), probe.context.traced(first + 1)];
        equal("taken", probe.context.total(), first + 2)?;
        if order == [Some(HIGHER), Some(VECTOR)] {
            probe.bug("B4", "RVI after posting is the highest of IRR, not of RVI and PIR");
            return Ok(());
        }
        check(order == [Some(VECTOR), Some(HIGHER)], "neither order")?;
        no_exits()
    })
}

const POST_IN_ROOT_MODE: u64 = probe::FREE;

/// Out of guest mode the notification is an interrupt like others: PIR and ON stay, for the entry work to find.
fn root_mode(setting: Setting) -> Result<(), Failure> {
    let mut config = probe::config(setting);
    config.at_exit = |machine, vcpu, exit, current| {
        record::observe(machine, vcpu, exit, current);
        if probe::called(exit, current) != Some(POST_IN_ROOT_MODE) {
            return;
        }
        let this = smp::this_cpu();
        let before = host::count_on(this, VECTORS.running);
        let descriptor = machine.slots[vcpu].inbox().descriptor();
        if let Some(vector) = Vector::new(VECTOR) {
            let _ = descriptor.post(vector);
        }
        physical::send(smp::apic_id(this), VECTORS.running);
        let taken = (0..1_000_000).any(|_| {
            core::hint::spin_loop();
            host::count_on(this, VECTORS.running) == before + 1
        });
        let stay = descriptor.control().on() && descriptor.has_posts();
        machine.context(vcpu).word(0).store(u64::from(taken && stay), Ordering::Relaxed);
    };
    probe::run_with(
        config,
        setting,
        |probe| {
            cpu::interrupts_on();
            hypercall::call(POST_IN_ROOT_MODE, 0, 0);
            let right = probe.context.word(0).load(Ordering::Relaxed);
            equal("the host took the interrupt, and ON and PIR stay", right, 1u64)?;
            equal("taken at the entry", probe.context.count(VECTOR), 1u64)?;
            processed(probe)
        },
        |_| Ok(()),
    )
}

/// Another physical interrupt ends the guest's turn, acknowledged, and is the host's.
fn host_interrupt(setting: Setting) -> Result<(), Failure> {
    let before = host::count_on(smp::this_cpu(), HOST_VECTOR);
    remote::run(
        setting,
        |probe| {
            cpu::interrupts_on();
            record::clear();
            ask(INTERRUPT_HOST);
            check(wait(|| remote::interrupts() != 0), "no exit")?;
            linger();
            equal("exits for interrupts", remote::interrupts(), 1u64)?;
            let information = 1 << 31 | u64::from(HOST_VECTOR);
            equal("interruption information", remote::last_interruption(), information)?;
            equal("exits", record::total(), 0u64)?;
            equal("taken by the guest", probe.context.total(), 0u64)
        },
        JOB,
    )?;
    equal("taken by the host", host::count_on(smp::this_cpu(), HOST_VECTOR), before + 1)
}
