//! The host's side: a script that has no policy of its own. See [`vlapic_sequences::vmx`].

use core::ops::Range;
use core::sync::atomic::Ordering;

use vlapic_sequences::vmx::{
    Batch, Exit, HOST_VECTOR, HostOperation, NOTIFICATION, Operation, Setup,
};
use x86::vmx::vmcs::{control, guest};

use super::guest::{HOST_STEP, NEXT_BATCH, program};
use super::shared::{self, ACCESS_PAGE, BATCH, DESCRIPTOR, KEEP_PAGES, PAGE, RESULTS};
use crate::guest::apic::DEFAULT_BASE;
use crate::guest::hypercall::Hypercall;
use crate::guest::{self as guests, Context, Start};
use crate::machine::{apic, interrupts, smp};
use crate::println;
use crate::vmx::ept::{Ept, MemoryType, Permissions};
use crate::vmx::interrupt::Event;
use crate::vmx::state::Options;
use crate::vmx::vcpu::Current;
use crate::vmx::{self, Reason, Vcpu, VmxError, capability};

/// VMCS fields (SDM Vol. 3D appendix B).
mod field {
    pub(super) const NOTIFICATION_VECTOR: u32 = 0x0002;
    pub(super) const GUEST_INTERRUPT_STATUS: u32 = 0x0810;
    pub(super) const VIRTUAL_APIC: u32 = 0x2012;
    pub(super) const APIC_ACCESS: u32 = 0x2014;
    pub(super) const DESCRIPTOR: u32 = 0x2016;
    pub(super) const EOI_EXIT: u32 = 0x201c;
    pub(super) const TPR_THRESHOLD: u32 = 0x401c;
}

/// Why the script could not go on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    Vmx(VmxError),
    Unexpected(
        #[expect(dead_code, reason = "printed")] Reason,
        #[expect(dead_code, reason = "printed")] u64,
    ),
    Wrong(#[expect(dead_code, reason = "printed")] &'static str),
}

impl From<VmxError> for Failure {
    fn from(error: VmxError) -> Self {
        Self::Vmx(error)
    }
}

/// Does the batches of `numbers` under `setup`, on this CPU.
pub(super) fn run(
    seed: u64,
    setup: Setup,
    numbers: Range<u64>,
    detail: bool,
) -> Result<(), Failure> {
    let capability = capability::enable()?;
    let mut ept = Ept::identity(&capability)?;
    if setup.apic_accesses {
        let page = address(&ACCESS_PAGE);
        ept.map_4k(DEFAULT_BASE, page, Permissions::DATA, MemoryType::WriteBack)?;
    }
    let context = guests::context(smp::this_cpu() % guests::MAX_VCPUS);
    context.reset();
    let options = Options { cr8_exiting: setup.cr8_exits(), ..Options::default() };
    let mut vcpu = Vcpu::new(capability, ept.pointer(), options)?;
    let mut current = vcpu.load()?;
    current.start(&Start::new(context, program, 0))?;
    KEEP_PAGES.store(detail, Ordering::Relaxed);
    let mut script = Script { current, context, setup, threshold: 0 };
    script.program_controls()?;
    // The first turn only brings the guest to its first request.
    let mut digest = interrupts::without(|| script.until_next())?;
    debug_assert_eq!(digest, 0, "nothing is done yet");
    for number in numbers {
        script.begin(Batch::new(seed, setup, number))?;
        // Interrupts that wait for the host come between batches.
        digest = interrupts::without(|| script.until_next())?;
        println!("HIL-DIGEST setup={} batch={number} digest={digest:016x}", setup.name);
        if detail {
            print_steps();
        }
    }
    let touched = (0..0x1000).step_by(4).any(|offset| ACCESS_PAGE.load(offset) != 0);
    if touched {
        Err(Failure::Wrong("something was stored in the APIC-access page"))
    } else {
        Ok(())
    }
}

struct Script<'v> {
    current: Current<'v>,
    context: &'static Context,
    setup: Setup,
    /// The TPR threshold that the sequence has asked for.
    threshold: u8,
}

impl Script<'_> {
    fn program_controls(&mut self) -> Result<(), VmxError> {
        let Setup { tpr_shadow, apic_accesses, x2apic, registers, delivery, posted, .. } =
            self.setup;
        let bit = |on: bool, bit: u32| if on { 1 << bit } else { 0 };
        let capability = *self.current.capability();
        let words = [
            (control::PINBASED_EXEC_CONTROLS, capability.pin, bit(posted, 7)),
            (control::PRIMARY_PROCBASED_EXEC_CONTROLS, capability.primary, bit(tpr_shadow, 21)),
            (
                control::SECONDARY_PROCBASED_EXEC_CONTROLS,
                capability.secondary,
                bit(apic_accesses, 0) | bit(x2apic, 4) | bit(registers, 8) | bit(delivery, 9),
            ),
        ];
        let vmcs = &mut self.current.vmcs;
        for (field, allowed, bits) in words {
            allowed.word(bits, 0)?;
            vmcs.assign(field, bits, true)?;
        }
        if tpr_shadow {
            vmcs.set(field::VIRTUAL_APIC, address(&PAGE))?;
        }
        if apic_accesses {
            vmcs.set(field::APIC_ACCESS, address(&ACCESS_PAGE))?;
        }
        if posted {
            vmcs.set(field::NOTIFICATION_VECTOR, NOTIFICATION.into())?;
            vmcs.set(field::DESCRIPTOR, address(&DESCRIPTOR))?;
        }
        Ok(())
    }

    /// Everything as a batch finds it.
    fn begin(&mut self, batch: Batch) -> Result<(), VmxError> {
        const IF: u32 = 1 << 9;
        batch.initial_page(|offset, word| PAGE.store(offset, word));
        DESCRIPTOR.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        for msr in 0x800..=0x8ff {
            let exits = |write| self.setup.intercepts(batch.seed, msr, write);
            let (read, write) = (exits(false), exits(true));
            self.current.msr_bitmap().set_exits(msr, read, write);
        }
        self.threshold = 0;
        self.current.set_interrupt_window(false)?;
        self.current.vmcs.assign(guest::RFLAGS, IF, false)?;
        if self.setup.delivery {
            let (rvi, svi) = batch.status;
            self.set_status(rvi, svi)?;
            for index in 0..4 {
                self.current.vmcs.set(field::EOI_EXIT + 2 * index, 0)?;
            }
        }
        self.current.general()[0] = 1;
        *BATCH.lock() = Some(batch);
        Ok(())
    }

    /// Runs the guest until it asks for its next batch; the digest of the last one.
    fn until_next(&mut self) -> Result<u64, Failure> {
        loop {
            if self.setup.tpr_shadow {
                let threshold = self.setup.threshold(self.threshold, PAGE.load(0x080) as u8);
                self.current.vmcs.set(field::TPR_THRESHOLD, threshold.into())?;
            }
            let exit = self.current.run()?;
            if exit.reason != Reason::Vmcall {
                self.other_exit(&exit)?;
                continue;
            }
            self.current.skip_instruction(&exit)?;
            match Hypercall::decode(self.current.general()) {
                Hypercall::Other { operation: NEXT_BATCH, first, .. } => return Ok(first),
                Hypercall::Other { operation: HOST_STEP, first, .. } => {
                    match shared::operation(first as usize) {
                        Some(Operation::Host(operation)) => self.host(operation)?,
                        _ => return Err(Failure::Wrong("the guest is at another step")),
                    }
                }
                Hypercall::Fault { vector, rip, .. } => {
                    return Err(Failure::Unexpected(Reason::from(u16::from(vector)), rip));
                }
                _ => return Err(Failure::Wrong("an unknown hypercall")),
            }
        }
    }

    /// Notes an exit and does what the script says.
    fn other_exit(&mut self, exit: &vmx::Exit) -> Result<(), Failure> {
        /// The general register of a control-register access is the compiler's choice.
        const REGISTER: u64 = 0xf00;
        let resume = self.context.resume_address();
        let behind = self.current.vmcs.get(guest::RIP)? == resume;
        let (done, qualification) = match exit.reason {
            Reason::ControlRegister => (behind, exit.qualification & !REGISTER),
            Reason::Rdmsr | Reason::Wrmsr | Reason::ApicAccess => (behind, exit.qualification),
            Reason::TprBelowThreshold | Reason::VirtualizedEoi | Reason::ApicWrite => {
                (behind || resume == 0, exit.qualification)
            }
            Reason::ExternalInterrupt | Reason::InterruptWindow => (false, exit.qualification),
            _ => return Err(Failure::Unexpected(exit.reason, exit.qualification)),
        };
        let delivery = self.setup.delivery;
        let status =
            if delivery { self.current.vmcs.get(field::GUEST_INTERRUPT_STATUS)? } else { 0 };
        let is_interrupt = exit.reason == Reason::ExternalInterrupt;
        shared::note_exit(Exit {
            reason: exit.reason.number(),
            done,
            qualification,
            status: status as u16,
            interruption: if is_interrupt { exit.interruption.word } else { 0 },
        });
        match exit.reason {
            Reason::ControlRegister | Reason::Rdmsr | Reason::Wrmsr | Reason::ApicAccess => {
                self.current.vmcs.set(guest::RIP, resume)?;
                self.current.vmcs.set(guest::INTERRUPTIBILITY_STATE, 0)?;
            }
            Reason::TprBelowThreshold => self.threshold = 0,
            Reason::InterruptWindow => self.current.set_interrupt_window(false)?,
            Reason::ExternalInterrupt => drop(self.current.dispatch_interrupt(exit)),
            _ => {}
        }
        Ok(())
    }

    fn host(&mut self, operation: HostOperation) -> Result<(), VmxError> {
        match operation {
            HostOperation::Nothing => {}
            HostOperation::Request(vector) => {
                let offset = 0x200 + u16::from(vector / 32) * 0x10;
                PAGE.store(offset, PAGE.load(offset) | 1 << (vector % 32));
                let status = self.current.vmcs.get(field::GUEST_INTERRUPT_STATUS)?;
                self.set_status(vector.max(status as u8), (status >> 8) as u8)?;
            }
            HostOperation::Status(rvi, svi) => self.set_status(rvi, svi)?,
            HostOperation::EoiExit(vector, exits) => {
                let field = field::EOI_EXIT + 2 * u32::from(vector / 64);
                let bit = 1 << (vector % 64);
                let word = self.current.vmcs.get(field)?;
                self.current.vmcs.set(field, if exits { word | bit } else { word & !bit })?;
            }
            HostOperation::Threshold(threshold) => self.threshold = threshold,
            HostOperation::Window => self.current.set_interrupt_window(true)?,
            HostOperation::Post(vector, notify) => {
                DESCRIPTOR.0[usize::from(vector / 64)]
                    .fetch_or(1 << (vector % 64), Ordering::SeqCst);
                DESCRIPTOR.0[4].fetch_or(1, Ordering::SeqCst);
                if notify {
                    apic::send(smp::apic_id(smp::this_cpu()), NOTIFICATION);
                }
            }
            HostOperation::Inject(vector) => {
                self.current.inject(Event::ExternalInterrupt(vector))?;
            }
            HostOperation::Interrupt => apic::send(smp::apic_id(smp::this_cpu()), HOST_VECTOR),
            HostOperation::Page(offset, value) => PAGE.store(offset, value),
        }
        Ok(())
    }

    fn set_status(&mut self, rvi: u8, svi: u8) -> Result<(), VmxError> {
        let status = u64::from(svi) << 8 | u64::from(rvi);
        self.current.vmcs.set(field::GUEST_INTERRUPT_STATUS, status)
    }
}

/// The last batch step by step, with the words of the page that each step changed.
fn print_steps() {
    let results = RESULTS.lock();
    let mut before = [0; 256];
    if let Some(batch) = BATCH.lock().as_ref() {
        batch.initial_page(|offset, word| {
            if let Some(slot) = before.get_mut(usize::from(offset / 4)) {
                *slot = word;
            }
        });
    }
    for (step, (record, page)) in results.records.iter().zip(&results.pages).enumerate() {
        if let Some(record) = record {
            println!("HIL-STEP step={step} {record}");
        }
        for (index, (word, before)) in page.iter().zip(&mut before).enumerate() {
            if word != before {
                println!("HIL-WORD step={step} offset={:03x} word={word:08x}", index * 4);
            }
            *before = *word;
        }
    }
}

/// Statics of the image are mapped to themselves.
fn address<T>(object: &'static T) -> u64 {
    core::ptr::from_ref(object).expose_provenance() as u64
}
