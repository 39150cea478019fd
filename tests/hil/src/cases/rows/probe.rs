//! Runs a guest program that looks at its own exits.
//!
//! The program is part of the image and shares its memory, so it can do an access, look at the exits that came of it, at
//! the virtual-APIC page and at what the driver made of it, and judge all of it itself. It may not print, and it makes a
//! hypercall where something is to be done outside of guest mode.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;
use vlapic_core::{ApicPage, Trigger};

use super::access::{self, Access};
use crate::cases::{Failure, Mode, Setting, equal, guests, record};
use crate::guest::hypercall::{self, Hypercall};
use crate::guest::{Context, apic};
use crate::hypervisor::vm::{self, VirtualMachine};
use crate::hypervisor::{Config, Level};
use crate::vmx::vcpu::Current;
use crate::vmx::{Exit, Reason};
use crate::{log, println};

/// A program: what it finds wrong is the case's failure.
pub(super) type Body = fn(&Probe) -> Result<(), Failure>;

/// What the program is given.
pub(super) struct Probe {
    pub(super) setting: Setting,
    pub(super) machine: &'static VirtualMachine,
    pub(super) context: &'static Context,
    body: Body,
    failure: Mutex<Option<Failure>>,
    bug: Mutex<Option<(&'static str, &'static str)>>,
    place: AtomicU64,
}

/// The VM of [`run`]: one vCPU, its exits recorded.
pub(super) fn config(setting: Setting) -> Config {
    let mut config = Config::new(setting.level, 1);
    config.on_call = on_call;
    config.at_exit = record::observe;
    config
}

/// Runs `body` in a VM, with its APIC in the setting's mode and software-enabled, interrupts off.
pub(super) fn run(setting: Setting, body: Body) -> Result<(), Failure> {
    run_with(config(setting), setting, body, |_| Ok(()))
}

/// [`run`], in another VM, while the case does `meanwhile` after it is made and before it starts.
///
/// Prints the emulator bug that the program found, if it found one, and checks that nothing was stored in the APIC-access
/// page.
pub(super) fn run_with(
    config: Config,
    setting: Setting,
    body: Body,
    meanwhile: impl FnOnce(&'static VirtualMachine) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let machine = VirtualMachine::new(config)?;
    let probe = Probe {
        setting,
        machine,
        context: machine.context(0),
        body,
        failure: Mutex::new(None),
        bug: Mutex::new(None),
        place: AtomicU64::new(0),
    };
    machine.set_program(0, program, (&raw const probe).expose_provenance() as u64);
    meanwhile(machine)?;
    let result = machine.run_here(0);
    if let Some((name, note)) = *probe.bug.lock() {
        println!("HIL-BUG name={name} note={note}");
    }
    if let Some(failure) = probe.failure.lock().take() {
        log!("at {:#x}", probe.place.load(Ordering::Relaxed));
        return Err(failure);
    }
    equal("program's result", result?, 0u64)?;
    let words = vm::apic_access_page().words();
    let stored = words.iter().fold(0, |sum, word| sum | word.load(Ordering::Relaxed));
    equal("stored in the APIC-access page", stored, 0u64)
}

extern "C" fn program(context: &'static Context, argument: u64) -> u64 {
    let probe = core::ptr::with_exposed_provenance::<Probe>(argument as usize);
    // SAFETY: `run_with` passes its own variable, which outlives the guest; host and guest share memory, take turns on one
    // CPU, and what of it changes is atomics and locks.
    let probe = unsafe { &*probe };
    let enabled = guests::enter_mode(context, probe.setting.mode)
        .and_then(|()| apic::write(context, apic::SVR, 0x1ff));
    let result = match enabled {
        Ok(()) => (probe.body)(probe),
        Err(_) => Err(Failure::Wrong("the APIC was not enabled")),
    };
    let failed = result.is_err();
    *probe.failure.lock() = result.err();
    u64::from(failed)
}

/// Hypercalls. Those from [`FREE`] on have no answer but are seen by the case's `at_exit`.
const POST_EDGE: u64 = hypercall::FIRST_FREE;
const POST_LEVEL: u64 = hypercall::FIRST_FREE + 1;
const STATUS: u64 = hypercall::FIRST_FREE + 2;
pub(super) const FREE: u64 = hypercall::FIRST_FREE + 3;

fn on_call(machine: &VirtualMachine, vcpu: usize, operation: u64, first: u64, _: u64) -> u64 {
    let trigger = match operation {
        POST_EDGE => Trigger::Edge,
        POST_LEVEL => Trigger::Level,
        STATUS => return record::last_status(),
        _ => return 0,
    };
    let receipt = machine.slots[vcpu].request(first as u8, trigger);
    machine.carry_out(vcpu, receipt);
    0
}

/// For hooks: the operation of the hypercall that `exit` is, if it is one of a case's own.
pub(super) fn called(exit: &Exit, current: &mut Current<'_>) -> Option<u64> {
    match Hypercall::decode(current.general()) {
        Hypercall::Other { operation, .. } if exit.reason == Reason::Vmcall => Some(operation),
        _ => None,
    }
}

impl Probe {
    pub(super) fn level(&self) -> Level {
        self.setting.level
    }

    pub(super) fn x2apic(&self) -> bool {
        self.setting.mode == Mode::X2Apic
    }

    /// The virtual-APIC page.
    pub(super) fn page(&self) -> &'static ApicPage {
        self.machine.slots[0].page()
    }

    /// The word of the virtual-APIC page at `offset`.
    pub(super) fn word(&self, offset: u16) -> u64 {
        u64::from(self.page().load(offset))
    }

    /// Whether the 256-bit register at `offset` in the page has `vector`.
    pub(super) fn has(&self, offset: u16, vector: u8) -> bool {
        self.word(offset + u16::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
    }

    /// A device sends an interrupt while the vCPU is out of guest mode; it is there at the next entry.
    pub(super) fn post(&self, vector: u8, trigger: Trigger) {
        let operation = if trigger == Trigger::Level { POST_LEVEL } else { POST_EDGE };
        hypercall::call(operation, u64::from(vector), 0);
    }

    /// Guest interrupt status as it stands: SVI << 8 | RVI. Zero without virtual-interrupt delivery.
    pub(super) fn interrupt_status(&self) -> u64 {
        hypercall::call(STATUS, 0, 0)
    }

    /// Whether the processor delivers virtual interrupts.
    pub(super) fn delivers(&self) -> bool {
        self.setting.level.delivers()
    }

    /// The vectors taken so far must be these, in this order.
    pub(super) fn taken(&self, vectors: &[u8]) -> Result<(), Failure> {
        for (index, &vector) in vectors.iter().enumerate() {
            let taken = self.context.traced(index as u32).unwrap_or(0);
            equal("vector taken", taken, vector)?;
        }
        equal("vectors taken", self.context.total(), vectors.len() as u64)
    }

    /// Sends an interrupt to itself by the register that is for it: ICR, or SELF IPI.
    pub(super) fn self_ipi(&self, vector: u8) -> Access {
        const TO_SELF: u32 = 1 << 18;
        if self.x2apic() {
            access::write_msr(0x83f, vector.into())
        } else {
            access::store(0x300, TO_SELF | u32::from(vector))
        }
    }

    /// Writes a register through the interface of the mode.
    pub(super) fn write(&self, offset: u16, value: u32) -> Access {
        if self.x2apic() {
            access::write_msr(apic::msr(offset), value.into())
        } else {
            access::store(offset, value)
        }
    }

    /// A known bug of the emulator was seen.
    pub(super) fn bug(&self, name: &'static str, note: &'static str) {
        *self.bug.lock() = Some((name, note));
    }

    /// Where the program is, for the log if it fails.
    pub(super) fn at(&self, place: impl Into<u64>) {
        self.place.store(place.into(), Ordering::Relaxed);
    }
}
