//! What emulators are known to do otherwise. Each case holds on a processor that does what the manual says, and names the
//! defect where it is seen.

use core::sync::atomic::{AtomicU64, Ordering};

use super::probe::{self, Probe};
use super::remote::{self, ask, wait};
use crate::cases::{Case, Failure, Setting, check, equal, record};
use crate::guest::{cpu, hypercall};
use crate::hypervisor::{HypervisorError, Level, VirtualMachine};
use crate::machine::apic::{self as physical, Register};
use crate::machine::identity::{self, Machine};
use crate::machine::{interrupts as host, smp};
use crate::println;
use crate::vmx::interrupt::Activity;
use crate::vmx::vcpu::Current;
use crate::vmx::{Exit, Reason, VmxError};

pub(super) const CASES: &[Case] = &[
    Case { name: "rows-halt-rvi", cpus: 1, applies: delivers, run: |at| halt(at, halt_with_rvi) },
    Case {
        name: "rows-halt-window",
        cpus: 1,
        applies: |_| true,
        run: |at| halt(at, halt_with_window),
    },
    Case { name: "rows-entry-masked", cpus: 2, applies: posted, run: entry_masked },
    Case { name: "rows-spurious-vector", cpus: 1, applies: once, run: spurious_vector },
    Case { name: "rows-descriptor-64", cpus: 1, applies: posted, run: descriptor_address },
];

fn delivers(setting: Setting) -> bool {
    setting.level.delivers()
}

fn posted(setting: Setting) -> bool {
    setting.level == Level::Posted
}

/// No guest, so one setting is enough.
fn once(setting: Setting) -> bool {
    setting.level == Level::TprShadow && setting.mode == crate::cases::Mode::XApic
}

const VECTOR: u8 = 0x51;
const IRR: u16 = 0x200;

/// Hypercalls.
const LET_HALT: u64 = probe::FREE;
const WANT_WINDOW: u64 = probe::FREE + 1;

/// How often a guest was found halted at the end of its turn with something to wake it.
static STUCK: AtomicU64 = AtomicU64::new(0);

/// Where HLT does not exit: what must end it there, ends it. A guest that is found halted is helped on.
fn halt(setting: Setting, body: probe::Body) -> Result<(), Failure> {
    STUCK.store(0, Ordering::Relaxed);
    let mut config = probe::config(setting);
    config.at_exit = |machine, vcpu, exit, current| {
        record::observe(machine, vcpu, exit, current);
        let _ = help(machine, exit, current);
    };
    probe::run_with(config, setting, body, |_| Ok(()))
}

fn help(machine: &VirtualMachine, exit: &Exit, current: &mut Current<'_>) -> Result<(), VmxError> {
    match (exit.reason, probe::called(exit, current)) {
        (_, Some(LET_HALT)) => current.set_hlt_exiting(false),
        (_, Some(WANT_WINDOW)) => {
            current.set_hlt_exiting(false)?;
            current.set_interrupt_window(true)
        }
        // Elsewhere the driver owns the control.
        (Reason::InterruptWindow, _) if machine.config.level.delivers() => {
            current.set_interrupt_window(false)
        }
        (Reason::PreemptionTimer, _) if current.activity()? == Activity::Halted => {
            STUCK.fetch_add(1, Ordering::Relaxed);
            current.set_activity(Activity::Active)
        }
        _ => Ok(()),
    }
}

/// A request that becomes deliverable with HLT ends it.
fn halt_with_rvi(probe: &Probe) -> Result<(), Failure> {
    hypercall::call(LET_HALT, 0, 0);
    probe.self_ipi(VECTOR);
    check(probe.has(IRR, VECTOR), "the self-IPI does not wait")?;
    record::clear();
    // With the interrupt taken at once HLT would have nothing to wait for: STI holds it off until HLT.
    cpu::wait_for_interrupt();
    cpu::interrupts_off();
    stuck(probe, "a virtual interrupt that can be taken does not end HLT")?;
    equal("exits", record::total(), 0u64)?;
    probe.taken(&[VECTOR])
}

/// With interrupt-window exiting, HLT with IF 1 ends in that exit.
fn halt_with_window(probe: &Probe) -> Result<(), Failure> {
    if probe.delivers() {
        hypercall::call(WANT_WINDOW, 0, 0);
    } else {
        hypercall::call(LET_HALT, 0, 0);
        // The driver wants a window for what it cannot inject yet.
        probe.self_ipi(VECTOR);
    }
    record::clear();
    cpu::wait_for_interrupt();
    cpu::interrupts_off();
    let helped = stuck(probe, "interrupt-window exiting does not end HLT")?;
    if helped && !probe.delivers() {
        // Helped on, it could take the interrupt at the entry.
        return probe.taken(&[VECTOR]);
    }
    let reason = record::get(0).map_or(0, |exit| exit.reason.number());
    equal("reason", reason, Reason::InterruptWindow.number())?;
    if probe.delivers() {
        equal("exits", record::total(), 1u64)?;
        return probe.taken(&[]);
    }
    probe.taken(&[VECTOR])
}

/// Whether the guest was stuck, which is the emulator's bug, and on a processor a failure.
fn stuck(probe: &Probe, what: &'static str) -> Result<bool, Failure> {
    if STUCK.load(Ordering::Relaxed) == 0 {
        return Ok(false);
    }
    known_on_bochs(what)?;
    probe.bug("D1", what);
    Ok(true)
}

fn known_on_bochs(what: &'static str) -> Result<(), Failure> {
    check(identity::machine() == Machine::Bochs, what)
}

/// A notification is processed in guest mode whatever IF is, also where IF was 0 at the entry.
fn entry_masked(setting: Setting) -> Result<(), Failure> {
    remote::run(
        setting,
        |probe| {
            const WHAT: &str = "no posted-interrupt processing after an entry with IF 0";
            hypercall::phase(0);
            let turns = remote::turns();
            record::clear();
            ask(1);
            let arrived = wait(|| probe.has(IRR, VECTOR) || remote::turns() != turns);
            let in_guest_mode = remote::turns() == turns;
            cpu::interrupts_on();
            cpu::interrupts_off();
            check(arrived, "the post never got into IRR")?;
            equal("taken at STI", probe.context.count(VECTOR), 1u64)?;
            if !in_guest_mode {
                known_on_bochs(WHAT)?;
                probe.bug("D2", WHAT);
            }
            equal("exits", record::total(), 0u64)?;
            equal("exits for interrupts", remote::interrupts(), 0u64)
        },
        |machine, _| remote::post(machine, VECTOR),
    )
}

/// An EOI ends an interrupt in service even if its vector is SVR's: posted-interrupt processing ends its notification so.
fn spurious_vector(_: Setting) -> Result<(), Failure> {
    const SHARED: u8 = 0xe5;
    const ENABLED: u32 = 1 << 8;
    let svr = physical::read(Register::Svr);
    let this = smp::this_cpu();
    let before = host::count_on(this, SHARED);
    physical::write(Register::Svr, ENABLED | u32::from(SHARED));
    physical::send(smp::apic_id(this), SHARED);
    // The handler writes EOI.
    let taken = (0..1_000_000).any(|_| {
        core::hint::spin_loop();
        host::count_on(this, SHARED) == before + 1
    });
    let left = physical::in_service(SHARED);
    physical::write(Register::Svr, svr);
    if left {
        physical::eoi();
    }
    check(taken, "the interrupt was not taken")?;
    check(!physical::in_service(SHARED), "the interrupt cannot be ended")?;
    if left {
        known_on_bochs("EOI does not end an interrupt on SVR's vector")?;
        println!("HIL-BUG name=D3 note=EOI does not end an interrupt on SVR's vector");
    }
    Ok(())
}

const MOVE_DESCRIPTOR: u64 = probe::FREE;

/// A posted-interrupt descriptor may be at any multiple of 64 bytes (SDM Vol. 3C 27.2.1.1).
fn descriptor_address(setting: Setting) -> Result<(), Failure> {
    /// Posted-interrupt descriptor address.
    const FIELD: u32 = 0x2016;
    /// VM entry with invalid control fields.
    const INVALID_CONTROLS: u32 = 7;
    let mut config = probe::config(setting);
    config.at_exit = |machine, vcpu, exit, current| {
        record::observe(machine, vcpu, exit, current);
        if probe::called(exit, current) == Some(MOVE_DESCRIPTOR) {
            // The rest of the descriptor's page is zero: nothing is posted there.
            let moved = current.vmcs.get(FIELD).and_then(|at| current.vmcs.set(FIELD, at + 64));
            machine.context(vcpu).word(0).store(u64::from(moved.is_ok()), Ordering::Relaxed);
        }
    };
    let body = |probe: &Probe| {
        hypercall::call(MOVE_DESCRIPTOR, 0, 0);
        equal("moved", probe.context.word(0).load(Ordering::Relaxed), 1u64)
    };
    match probe::run_with(config, setting, body, |_| Ok(())) {
        Err(Failure::Hypervisor(HypervisorError::Vmx(VmxError::EntryRefused(Some(
            INVALID_CONTROLS,
        ))))) => {
            known_on_bochs("VM entry with a descriptor that is 64-byte aligned is refused")?;
            println!("HIL-BUG name=D4 note=a descriptor must be 4 KiB aligned");
            Ok(())
        }
        result => result,
    }
}
