//! Upcalls that are neither early, lost nor doubled, however the guest enables its APIC.
//!
//! The story is Xen's. One vCPU registers the upcall vector for another and makes an event pending, before the other is
//! started, or while it runs with its APIC disabled. The other then does as Linux does: looks for stale bits in IRR and ISR, enables its APIC, and expects
//! one upcall. Beside the driver the same is done by [`contrast`](super::contrast), which caches the enable bit.

use core::sync::atomic::Ordering;

use vlapic_core::SvrWrites;

use super::contrast::CONTRAST;
use super::upcall_guest::{self, UPCALL, act, word};
use super::{Case, Failure, Mode, Setting, check, equal};
use crate::guest::{Eoi, hypercall};
use crate::hypervisor::vm::silent_page;
use crate::hypervisor::{Config, Level, VirtualMachine};
use crate::machine::smp;
use crate::println;
use crate::svm;
use crate::vmx::Exit;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "upcall-driver",
        cpus: 2,
        applies: |_| true,
        run: |setting| each_way(setting, &DRIVER, |told| check(told == Told::Right, "not right")),
    },
    Case {
        name: "upcall-contrast",
        cpus: 2,
        applies: |setting| shown(setting, way_of(setting)) || shown(setting, Way::Silent),
        run: |setting| {
            enable(setting, way_of(setting), Eoi::First, &CONTRAST, &|told| {
                check(told == Told::Right, "a cached flag is enough where SVR writes exit")
            })?;
            if !shown(setting, Way::Silent) {
                return Ok(());
            }
            enable(setting, Way::Silent, Eoi::First, &CONTRAST, &|told| {
                check(told == Told::Lost, "a cached flag must lose an upcall here")
            })?;
            disable(setting, &CONTRAST, &|told| {
                check(told == Told::Stale, "a cached flag must leave a stale bit here")
            })
        },
    },
    Case {
        name: "upcall-silent-disable",
        cpus: 2,
        applies: has_silent_way,
        run: |setting| disable(setting, &DRIVER, &|told| check(told == Told::Right, "not right")),
    },
];

/// Who raises the upcalls of a VM.
pub(super) struct Teller {
    pub(super) name: &'static str,
    pub(super) starts: fn(&VirtualMachine),
    pub(super) registers: fn(&VirtualMachine, usize, u8),
    pub(super) notifies: fn(&VirtualMachine, usize),
    pub(super) on_exit: fn(&VirtualMachine, usize, &Exit, u64),
    pub(super) on_svm_exit: fn(&VirtualMachine, usize, &svm::Exit, u64),
}

const DRIVER: Teller = Teller {
    name: "driver",
    starts: |_| {},
    registers: |machine, vcpu, vector| {
        if let Ok(notify) = machine.slot(vcpu).register_upcall(vector, &machine.pending[vcpu]) {
            machine.notify(vcpu, notify);
        }
    },
    notifies: |machine, vcpu| {
        machine.notify(vcpu, machine.slot(vcpu).notify_upcall(&machine.pending[vcpu]));
    },
    on_exit: |_, _, _, _| {},
    on_svm_exit: |_, _, _, _| {},
};

/// How the guest's store to SVR reaches the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The hypervisor does it.
    Emulated,
    /// The processor does it and exits.
    ApicWrite,
    /// AVIC does it and exits.
    Trap,
    /// The guest does it: its page is plain memory to it, and nobody is told.
    Silent,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::ApicWrite => "apic-write",
            Self::Trap => "avic-trap",
            Self::Silent => "silent",
        }
    }
}

/// The way that SVR writes take where the guest has no page of its own. In x2APIC mode they are intercepted WRMSRs.
fn way_of(setting: Setting) -> Way {
    match setting.mode {
        Mode::XApic if setting.level == Level::Avic => Way::Trap,
        Mode::XApic if setting.level >= Level::RegisterVirtualization => Way::ApicWrite,
        _ => Way::Emulated,
    }
}

/// Whether the guest is also given its page: where that is what the processor would do, and where there is no processor
/// that does anything.
fn has_silent_way(setting: Setting) -> bool {
    setting.level.delivers() || setting.level.is_emulated()
}

/// Whether a row is printed: one level for each way, and plain emulation.
fn shown(setting: Setting, way: Way) -> bool {
    match (way, setting.mode) {
        _ if setting.level.is_svm() => setting.level != Level::AvicOff,
        (Way::Emulated, Mode::XApic) => setting.level == Level::ApicAccess,
        _ => setting.level == Level::Posted,
    }
}

/// What the guest was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Right,
    Stale,
    Lost,
    Doubled,
}

impl Told {
    const fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Stale => "stale",
            Self::Lost => "lost",
            Self::Doubled => "doubled",
        }
    }
}

type Verdict<'c> = &'c dyn Fn(Told) -> Result<(), Failure>;

/// Both orders of EOI and clearing the pending byte, in each way that the level has.
fn each_way(
    setting: Setting,
    teller: &'static Teller,
    verdict: fn(Told) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for eoi in [Eoi::First, Eoi::Last] {
        enable(setting, way_of(setting), eoi, teller, &verdict)?;
        if has_silent_way(setting) {
            enable(setting, Way::Silent, eoi, teller, &verdict)?;
        }
    }
    Ok(())
}

/// The story: registered and pending before the APIC is enabled, and before or after the vCPU is started.
fn enable(
    setting: Setting,
    way: Way,
    eoi: Eoi,
    teller: &'static Teller,
    verdict: Verdict<'_>,
) -> Result<(), Failure> {
    run(setting, way, eoi, teller, act::BEFORE_INIT, None, verdict)?;
    let printed = (shown(setting, way) && eoi == Eoi::First).then_some(way.name());
    run(setting, way, eoi, teller, act::WHILE_DISABLED, printed, verdict)
}

/// Its converse: an event while the APIC is disabled again, by a store that nobody was told of.
fn disable(setting: Setting, teller: &'static Teller, verdict: Verdict<'_>) -> Result<(), Failure> {
    let printed = shown(setting, Way::Silent).then_some("silent-disable");
    run(setting, Way::Silent, Eoi::First, teller, act::DISABLED_AGAIN, printed, verdict)
}

fn run(
    setting: Setting,
    way: Way,
    eoi: Eoi,
    teller: &'static Teller,
    act: u64,
    printed: Option<&str>,
    verdict: Verdict<'_>,
) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, 2);
    config.on_call = on_call;
    config.on_exit = teller.on_exit;
    config.on_svm_exit = teller.on_svm_exit;
    if way == Way::Silent {
        config.svr_writes = SvrWrites::Silent { recheck: 500_000 };
    }
    let machine = VirtualMachine::new(config)?;
    *TELLER.lock() = Some(teller);
    (teller.starts)(machine);
    let context = machine.context(1);
    context.set_handling(UPCALL, eoi, Some(upcall_guest::clear_pending));
    let silent = if way == Way::Silent { silent_page(1) } else { 0 };
    context.word(word::SILENT_PAGE).store(silent, Ordering::Relaxed);
    let argument = act | super::guests::argument(setting.mode);
    machine.set_program(1, upcall_guest::started, argument);
    machine.set_program(0, upcall_guest::controls, argument);
    machine.start_on(1, 1);
    // What is sent before its RESET is lost.
    while !machine.slot(1).present() && !smp::is_idle(1) {
        core::hint::spin_loop();
    }
    let first = machine.run_here(0);
    let second = if first.is_ok() {
        machine.join(1, 1)
    } else {
        machine.stop(1);
        machine.join(1, 1)
    };
    equal("result of the first vCPU", first?, 0u64)?;
    equal("result of the second vCPU", second?, 0u64)?;

    let stale = context.word(word::STALE).load(Ordering::Relaxed) != 0;
    let seen = context.word(word::SEEN).load(Ordering::Relaxed);
    let told = match (stale, seen) {
        (true, _) => Told::Stale,
        (false, 0) => Told::Lost,
        (false, 1) => Told::Right,
        (false, _) => Told::Doubled,
    };
    if let Some(way) = printed {
        println!(
            "HIL-UPCALL way={way} who={} mode={} irr_clean={} expected=1 seen={seen} exits={} result={}",
            teller.name,
            setting.mode.name(),
            if stale { "no" } else { "yes" },
            machine.guest_exits(1),
            told.name(),
        );
    }
    verdict(told)
}

static TELLER: spin::Mutex<Option<&'static Teller>> = spin::Mutex::new(None);

/// The event channel of the story.
fn on_call(machine: &VirtualMachine, vcpu: usize, operation: u64, first: u64, second: u64) -> u64 {
    let Some(teller) = *TELLER.lock() else { return 0 };
    let about = first as usize % machine.config.vcpus;
    match operation {
        upcall_guest::REGISTER => (teller.registers)(machine, about, second as u8),
        upcall_guest::EVENT => (teller.notifies)(machine, about),
        upcall_guest::CLEAR => machine.pending[vcpu].store(0, Ordering::SeqCst),
        _ => return u64::MAX,
    }
    0
}

const _: () = assert!(upcall_guest::REGISTER >= hypercall::FIRST_FREE);
