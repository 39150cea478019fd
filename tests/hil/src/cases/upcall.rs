//! Upcalls that are neither early, lost nor doubled, however the guest enables its APIC.
//!
//! The story is Xen's: another vCPU registers the upcall vector and an event becomes pending before the vCPU has enabled
//! its local APIC. The guest then does as Linux does: looks for stale bits in IRR and ISR, enables its APIC, and expects one
//! upcall.

use core::sync::atomic::Ordering;

use apicv::SvrWrites;

use super::{Case, Failure, Mode, Setting, check, equal};
use crate::guest::{Apic, Context, Eoi, apic, cpu, hypercall};
use crate::hypervisor::vm::silent_page;
use crate::hypervisor::{Config, Level, VirtualMachine};
use crate::println;

pub(super) const CASES: &[Case] = &[Case {
    name: "upcall-driver",
    cpus: 1,
    applies: |_| true,
    run: |setting| {
        story(setting, way_of(setting))?;
        if setting.level.delivers() { story(setting, Way::Silent) } else { Ok(()) }
    },
}];

/// Linux's vector for upcalls.
const UPCALL: u8 = 0xf3;

/// How the guest's store to SVR reaches the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The hypervisor does it.
    Emulated,
    /// The processor does it and exits.
    ApicWrite,
    /// The guest does it: its page is plain memory to it, and nobody is told.
    Silent,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::ApicWrite => "apic-write",
            Self::Silent => "silent",
        }
    }
}

/// The way that SVR writes take where the guest has no page of its own. In x2APIC mode they are intercepted WRMSRs.
fn way_of(setting: Setting) -> Way {
    match setting.mode {
        Mode::XApic if setting.level >= Level::RegisterVirtualization => Way::ApicWrite,
        _ => Way::Emulated,
    }
}

/// Words of the context.
const STALE: usize = 0;
const SEEN: usize = 1;
const SILENT: usize = 2;

/// Hypercalls: the event channel of this story.
const REGISTER: u64 = hypercall::FIRST_FREE;
const EVENT: u64 = hypercall::FIRST_FREE + 1;

extern "C" fn guest(context: &'static Context, x2apic: u64) -> u64 {
    if x2apic != 0 {
        let base = cpu::read_msr(apic::APIC_BASE_MSR).unwrap_or(0);
        if cpu::write_msr(apic::APIC_BASE_MSR, base | 1 << 10).is_err() {
            return 1;
        }
        context.set_apic(Apic::X2Apic);
    }
    cpu::interrupts_on();
    // As if from another vCPU, before this one has enabled its APIC: the vector, then an event.
    hypercall::call(REGISTER, u64::from(UPCALL), 0);
    hypercall::call(EVENT, 0, 0);
    // Linux: apic_pending_intr_clear.
    let mut stale = 0;
    for offset in (0x100..0x180).chain(0x200..0x280).step_by(16) {
        stale |= apic::read(context, offset).unwrap_or(u64::MAX);
    }
    context.word(STALE).store(stale, Ordering::Relaxed);
    let silent = context.word(SILENT).load(Ordering::Relaxed);
    let write_svr = |value| {
        if silent != 0 {
            apic::write_memory(silent, apic::SVR, value);
        } else {
            let _ = apic::write(context, apic::SVR, u64::from(value));
        }
    };
    write_svr(0x1ff);
    cpu::wait(20_000_000, || context.count(UPCALL) != 0);
    // A second write that leaves it enabled is no new event.
    write_svr(0x1ef);
    cpu::wait(200_000, || false);
    context.word(SEEN).store(u64::from(context.count(UPCALL)), Ordering::Relaxed);
    0
}

/// The handler's part: the pending byte goes back to 0.
fn clear_pending(context: &'static Context, _: u8) {
    // The byte is at the address the host has left in a shared word.
    let _ = context;
    hypercall::call(hypercall::FIRST_FREE + 2, 0, 0);
}

fn on_call(machine: &VirtualMachine, vcpu: usize, operation: u64, first: u64, _: u64) -> u64 {
    let slot = &machine.slots[vcpu];
    let pending = &machine.pending[vcpu];
    match operation {
        REGISTER => match slot.register_upcall(first as u8, pending) {
            Ok(notify) => machine.notify(vcpu, notify),
            Err(_) => return 1,
        },
        EVENT => machine.notify(vcpu, slot.notify_upcall(pending)),
        _ => {
            pending.store(0, Ordering::SeqCst);
        }
    }
    0
}

fn story(setting: Setting, way: Way) -> Result<(), Failure> {
    for eoi in [Eoi::First, Eoi::Last] {
        let mut config = Config::new(setting.level, 1);
        config.on_call = on_call;
        if way == Way::Silent {
            config.svr_writes = SvrWrites::Silent { recheck: 500_000 };
        }
        let machine = VirtualMachine::new(config)?;
        machine.upcalls.store(true, Ordering::Relaxed);
        let context = machine.context(0);
        context.set_handling(UPCALL, eoi, Some(clear_pending));
        if way == Way::Silent {
            context.word(SILENT).store(silent_page(0), Ordering::Relaxed);
        }
        machine.set_program(0, guest, u64::from(setting.mode == Mode::X2Apic));
        equal("guest's result", machine.run_here(0)?, 0u64)?;
        let stale = context.word(STALE).load(Ordering::Relaxed);
        let seen = context.word(SEEN).load(Ordering::Relaxed);
        let result = match (stale, seen) {
            (0, 1) => "right",
            (0, 0) => "lost",
            (0, _) => "doubled",
            _ => "stale",
        };
        println!(
            "HIL-UPCALL way={} who=driver mode={} irr_clean={} expected=1 seen={seen} exits={} result={result}",
            way.name(),
            setting.mode.name(),
            if stale == 0 { "yes" } else { "no" },
            machine.guest_exits(0),
        );
        check(stale == 0, "stale bits before the APIC was enabled")?;
        equal("upcalls", seen, 1u64)?;
    }
    Ok(())
}
