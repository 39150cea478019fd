//! A second vCPU's life by INIT and SIPI from the first: starting, stopping, and what must not outlive it.

use core::sync::atomic::Ordering;

use super::guest_apic::{
    self, CURRENT_COUNT, DFR, ESR, INITIAL_COUNT, IRR, ISR, LDR, LVT_ERROR, LVT_TIMER, PPR, SOON,
    TMR, ensure, has, is_empty, self_ipi, send, taken,
};
use super::stage::{GO, PHASE, START_PAGE, Stage};
use super::{Case, Failure, Mode, Setting, guests};
use crate::guest::{self, Context, Eoi, Start, apic, cpu, hypercall, startup};
use crate::hypervisor::{Config, VirtualMachine};
use crate::machine::frames::OwnedFrame;
use crate::machine::identity::{self, Machine};
use crate::vmx::capability;

pub(super) const CASES: &[Case] = &[
    Case { name: "startup-lives", cpus: 2, applies: |_| true, run: lives },
    Case { name: "startup-real-mode", cpus: 2, applies: |_| true, run: real_mode },
    Case { name: "startup-hygiene", cpus: 2, applies: |_| true, run: hygiene },
];

/// Fields of ICR.
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8 | START_PAGE as u32;
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;

/// Words of the second vCPU's context.
const STARTS: usize = 0;
const BEATS: usize = 1;
/// It halts with interrupts off instead of beating.
const HALTS: usize = 2;
/// It is about to.
const HALTED: usize = 3;

fn second() -> &'static Context {
    guest::context(1)
}

fn word(index: usize) -> u64 {
    second().word(index).load(Ordering::Acquire)
}

fn lives(setting: Setting) -> Result<(), Failure> {
    let stage = Stage::with_first_here(Config::new(setting.level, 2))?;
    stage.launch(heart, guests::argument(setting.mode))?;
    stage.run_first(parent, guests::argument(setting.mode))?;
    stage.finish_all()
}

extern "C" fn heart(context: &'static Context, argument: u64) -> u64 {
    context.word(STARTS).fetch_add(1, Ordering::Release);
    ensure!(guests::enter_mode(context, guests::mode(argument)).is_ok());
    // Not that any come; but with IF = 0 INIT would take its time on Bochs (defect D2).
    cpu::interrupts_on();
    while context.word(GO).load(Ordering::Acquire) == 0 {
        context.word(BEATS).fetch_add(1, Ordering::Release);
        if context.word(HALTS).load(Ordering::Acquire) != 0 {
            cpu::interrupts_off();
            context.word(HALTED).store(1, Ordering::Release);
            cpu::halt();
        }
    }
    0
}

fn beats() -> bool {
    let before = word(BEATS);
    cpu::wait_long(SOON, || word(BEATS) > before + 10)
}

fn is_still() -> bool {
    // Where its CPU is a thread of a busy host, it may well pause for a while.
    let rounds = if identity::machine() == Machine::Bochs { 20_000 } else { 1_000_000 };
    // What it was doing when INIT came, it may finish.
    cpu::wait_long(SOON, || {
        let before = word(BEATS);
        !cpu::wait(rounds, || word(BEATS) != before)
    })
}

extern "C" fn parent(context: &'static Context, argument: u64) -> u64 {
    const SECOND: u32 = 1;
    let starts = |count| cpu::wait_long(SOON, || word(STARTS) >= count) && word(STARTS) == count;
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    ensure!(is_still() && word(STARTS) == 0);
    // After reset it waits for a SIPI, and needs no INIT.
    ensure!(send(context, STARTUP, SECOND).is_ok() && starts(1) && beats());
    // While it runs, a SIPI is nothing.
    ensure!(send(context, STARTUP, SECOND).is_ok() && beats() && starts(1));
    // So is the de-assertion of INIT.
    ensure!(send(context, INIT | LEVEL, SECOND).is_ok() && beats() && starts(1));
    ensure!(send(context, INIT | ASSERT, SECOND).is_ok() && is_still());
    ensure!(send(context, STARTUP, SECOND).is_ok() && starts(2) && beats());
    // The usual sequence has two SIPIs, with the assertion by level.
    for count in 3..=30 {
        ensure!(send(context, INIT | ASSERT | LEVEL, SECOND).is_ok());
        ensure!(send(context, INIT | LEVEL, SECOND).is_ok());
        ensure!(send(context, STARTUP, SECOND).is_ok() && send(context, STARTUP, SECOND).is_ok());
        ensure!(starts(count) && beats());
    }
    // Halted with interrupts off, only an NMI or this brings it back.
    second().word(HALTS).store(1, Ordering::Release);
    ensure!(cpu::wait_long(SOON, || word(HALTED) != 0) && is_still());
    second().word(HALTS).store(0, Ordering::Release);
    ensure!(is_still() && send(context, INIT | ASSERT, SECOND).is_ok());
    ensure!(is_still() && send(context, STARTUP, SECOND).is_ok() && starts(31) && beats());
    // Nobody resets itself by ICR.
    ensure!(send(context, INIT | ASSERT | 1 << 18, 0).is_ok());
    second().word(GO).store(1, Ordering::Release);
    0
}

/// The second vCPU really starts in real mode, at the page that its SIPI names.
fn real_mode(setting: Setting) -> Result<(), Failure> {
    if !setting.level.is_svm() && !capability::enable()?.unrestricted_guest() {
        return Err(Failure::Skip("no unrestricted guest"));
    }
    let address = u32::from(START_PAGE) << 12;
    let mut page = OwnedFrame::new();
    let mut config = Config::new(setting.level, 2);
    config.real_mode = true;
    config.low_page = Some((u64::from(address), page.physical_address()));
    let stage = Stage::with_first_here(config)?;
    let start = Start::new(stage.context(1), heart, guests::argument(setting.mode));
    // SAFETY: CPL 0; reading CR3 has no side effects.
    let cr3 = unsafe { x86::controlregs::cr3() };
    startup::write_trampoline(page.bytes(), address, cr3, &start);
    stage.launch(heart, guests::argument(setting.mode))?;
    stage.run_first(parent, guests::argument(setting.mode))?;
    stage.finish_all()
}

/// Nothing of a life outlives INIT: neither what is in the registers, nor what waits for them.
fn hygiene(setting: Setting) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, 2);
    config.on_call = |machine: &VirtualMachine, vcpu, _, vector, _| {
        let trigger = vlapic_core::Trigger::Level;
        machine.carry_out(vcpu, machine.slot(vcpu).request(vector as u8, trigger));
        0
    };
    let stage = Stage::with_first_here(config)?;
    stage.launch(sinner, guests::argument(setting.mode))?;
    stage.run_first(judge, guests::argument(setting.mode))?;
    stage.finish_all()
}

/// Hypercall: a device sends me this vector, level-triggered.
const SEND_ME: u64 = hypercall::FIRST_FREE;
const LIVES: u64 = 10;
const TIMER: u64 = 0x33;
const DEADLINE: u64 = 1 << 18;

/// Each life finds its APIC as after reset, and leaves it as full as can be.
extern "C" fn sinner(context: &'static Context, argument: u64) -> u64 {
    let mode = guests::mode(argument);
    let life = context.word(PHASE).load(Ordering::Acquire) / 2 + 1;
    ensure!(guests::enter_mode(context, mode).is_ok());
    let is = |offset, value| apic::read(context, offset) == Ok(value);
    ensure!([IRR, ISR, TMR].into_iter().all(|first| is_empty(context, first)));
    ensure!(is(apic::SVR, 0xff) && is(apic::TPR, 0) && is(PPR, 0) && cpu::read_cr8() == 0);
    ensure!(is(LVT_TIMER, 1 << 16) && is(LVT_ERROR, 1 << 16));
    ensure!(is(INITIAL_COUNT, 0) && is(CURRENT_COUNT, 0));
    ensure!(cpu::read_msr(0x6e0) == Ok(0));
    ensure!(is(ESR, 0) && apic::write(context, ESR, 0).is_ok() && is(ESR, 0));
    if mode == Mode::XApic {
        ensure!(is(DFR, 0xffff_ffff) && is(LDR, 0) && is(0x20, 1 << 24));
    } else {
        ensure!(is(LDR, 2) && is(0x20, 1));
    }
    // Nothing comes of the last life; the lowest class is not held back by what was in service.
    let total = context.total();
    context.set_handling(0x51, Eoi::Never, None);
    ensure!(guests::enable_apic(context, mode).is_ok());
    cpu::wait(20_000, || false);
    ensure!(context.total() == total);
    self_ipi(context, 0x1f);
    ensure!(taken(context, 0x1f, life as u32) && context.total() == total + 1);

    // In service, requested as edge and as level, errors pending, a timer running, a priority.
    self_ipi(context, 0x51);
    ensure!(taken(context, 0x51, life as u32) && has(context, ISR, 0x51));
    cpu::interrupts_off();
    self_ipi(context, 0x92);
    hypercall::call(SEND_ME, 0x71, 0);
    self_ipi(context, 3);
    ensure!(has(context, IRR, 0x92) && has(context, TMR, 0x71));
    ensure!(apic::write(context, apic::TPR, 0x20).is_ok());
    ensure!(apic::write(context, LVT_ERROR, 0xfe).is_ok());
    // In turn, both kinds of clock.
    if life.is_multiple_of(2) {
        ensure!(apic::write(context, LVT_TIMER, DEADLINE | TIMER).is_ok());
        ensure!(cpu::write_msr(0x6e0, rdtsc() + 30_000).is_ok());
    } else {
        ensure!(apic::write(context, LVT_TIMER, TIMER).is_ok());
        ensure!(apic::write(context, INITIAL_COUNT, 30_000).is_ok());
    }
    context.word(PHASE).store(2 * life - 1, Ordering::Release);
    while context.word(GO).load(Ordering::Acquire) < 2 * LIVES {
        core::hint::spin_loop();
    }
    0
}

fn rdtsc() -> u64 {
    // SAFETY: RDTSC has no side effects, and guests here may use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ends each life, with one more vector on its way.
extern "C" fn judge(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    for life in 1..=LIVES {
        ensure!(send(context, INIT | ASSERT, 1).is_ok() && send(context, STARTUP, 1).is_ok());
        ensure!(cpu::wait_long(8 * guest_apic::SOON, || word(PHASE) == 2 * life - 1));
        second().word(PHASE).store(2 * life, Ordering::Release);
        ensure!(send(context, 0xe1, 1).is_ok() && send(context, 0x41, 1).is_ok());
    }
    second().word(GO).store(2 * LIVES, Ordering::Release);
    0
}
