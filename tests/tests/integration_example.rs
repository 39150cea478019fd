//! A hypervisor that owns the machine: its loop over the driver, here on the silicon model.
//!
//! What stands between the two `glue` lines is all that such a hypervisor writes for the APIC. `Host` is what it has
//! anyway. `docs/integration.md` explains each call.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};

use apicv::{
    Addresses, Capabilities, Exit, Grant, HostMode, MsrBitmap, NotificationVectors,
    PostedDescriptor, Posting, ProgramError, Vcpu, Wanted,
};
use vlapic_core::{
    ApicPage, Effect, EntryInput, Event, ExitOutcome, IA32_APIC_BASE, Next, Notify, Profile, Slot,
    Trigger, Vector, Vm, Width,
};
use vlapic_hal::PhysAddr;
use vlapic_tests::model::{
    self, Capability, Core, ExitReason, Knobs, Level, Memory, PhysicalBus, VmcsRegion, controls,
    field,
};

// glue
fn run<'v>(host: &mut Host<'v>, vm: Vm<'v, Posting<'v>>, me: usize) -> Result<(), ProgramError> {
    let capabilities = host.capabilities;
    let mut vcpu = Vcpu::new(&vm.slots()[me], me == 0);
    host.grant = vcpu.configure(&mut host.core, &capabilities, Wanted::ALL, &host.addresses)?;
    vcpu.apic_mut().bind_upcall(host.pending);
    while !host.finished {
        host.interrupts_off();
        let input = host.entry_input();
        let entry = vcpu.before_entry(&mut host.core, input)?;
        if entry.next != Next::Enter || host.kicked.swap(false, SeqCst) {
            host.interrupts_on();
            match entry.next {
                Next::TakeEvent => host.carry_out(vcpu.apic_mut().take_event()),
                Next::AwaitStartup => host.sleep_until_kicked(),
                _ => {}
            }
            continue;
        }
        host.flush(entry.flush);
        host.exit_by(entry.exit_by);
        let exit = host.enter();
        host.interrupts_on();
        let effect = match vcpu.after_exit(exit, host.now) {
            ExitOutcome::Done(effect) => effect,
            ExitOutcome::Decode(access) => host.emulate(&mut vcpu, access.offset),
            _ => host.handle(&mut vcpu, exit),
        };
        match effect {
            Effect::Ipi(message) => vm
                .send(&message, Some(me))
                .for_each(|(target, receipt)| host.notify(target, receipt.notify)),
            Effect::EndOfInterrupt(vector) => host.end_of_interrupt(vector),
            _ => {} // The next entry has it: when to exit, what to flush.
        }
    }
    Ok(())
}

fn halt(host: &mut Host<'_>, vcpu: &mut Vcpu<'_>) {
    host.join_wakeup_list();
    while vcpu.block(host.entry_input()) && !host.kicked.swap(false, SeqCst) {
        host.sleep_until(vcpu.apic().next_deadline());
    }
    host.leave_wakeup_list();
}
// end of glue

/// What a hypervisor has anyway; its processor is the model.
struct Host<'m> {
    core: Core<'m>,
    capabilities: Capabilities,
    addresses: Addresses<'m>,
    grant: Grant,
    cpu: u32,
    now: u64,
    slot: &'m Slot<'m, Posting<'m>>,
    pending: &'m AtomicU8,
    kicked: AtomicBool,
    finished: bool,
    program: VecDeque<Step>,
    seen: Seen,
}

/// One thing that happens while the guest runs, by its name.
#[derive(Clone, Copy)]
enum Step {
    Store(u32, u32),
    Load(u32),
    WriteMsr(u32, u64),
    InterruptsOn,
    Halt,
    Finish,
    /// A device, on another CPU.
    Device(u8, Trigger),
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    taken: Vec<u8>,
    ended: Vec<u8>,
    told: Vec<(usize, Notify)>,
    exits: Vec<ExitReason>,
    flushes: usize,
    sleeps: usize,
}

impl<'m> Host<'m> {
    fn interrupts_off(&self) {}

    fn interrupts_on(&self) {}

    fn injects(&self) -> bool {
        self.field(field::ENTRY_INTERRUPTION_INFO) >> 31 != 0
    }

    fn entry_input(&self) -> EntryInput {
        let flag = self.field(field::GUEST_RFLAGS) >> 9 & 1 != 0;
        let blocked = self.field(field::GUEST_INTERRUPTIBILITY) & 3 != 0;
        let (interruptible, injecting) = (flag && !blocked, self.injects());
        EntryInput { now: self.now, cpu: self.cpu, interruptible, injecting }
    }

    fn exit_by(&mut self, time: Option<u64>) {
        let ticks = time.map_or(u64::MAX, |time| time.saturating_sub(self.now));
        let vmcs = self.core.vmcs_mut().expect("current");
        vmcs.set(field::PREEMPTION_TIMER, ticks.min(u32::MAX.into()));
    }

    /// Runs the guest's program until something exits.
    fn enter(&mut self) -> Exit {
        let entered = self.core.vm_entry().expect("controls that the processor accepts");
        let mut outcome = entered.exit.map_or(model::Outcome::Done, model::Outcome::Exit);
        loop {
            match outcome {
                model::Outcome::Exit(exit) => {
                    self.seen.exits.push(exit.reason);
                    let (reason, qualification) = (exit.reason as u16, exit.qualification);
                    return Exit { reason, qualification };
                }
                model::Outcome::Delivered(vector) => self.seen.taken.push(vector),
                _ => {}
            }
            outcome = match self.core.poll() {
                model::Outcome::Nothing => self.step(),
                event => event,
            };
        }
    }

    fn step(&mut self) -> model::Outcome {
        match self.program.pop_front().expect("the program ends with Finish") {
            Step::Store(offset, value) => self.core.mmio_write(offset, 4, value.into()),
            Step::Load(offset) => self.core.mmio_read(offset, 4),
            Step::WriteMsr(msr, value) => self.core.wrmsr(msr, value),
            Step::InterruptsOn => self.core.set_interrupt_flag(true),
            Step::Halt => self.core.hlt(),
            Step::Finish => self.core.vmcall(),
            Step::Device(vector, trigger) => {
                let notify = self.slot.request(vector, trigger).notify;
                self.notify(0, notify);
                match notify {
                    Notify::Interrupt { vector, .. } => self.core.external_interrupt(vector),
                    Notify::Kick => self.core.external_interrupt(KICK),
                    _ => model::Outcome::Nothing,
                }
            }
        }
    }

    fn notify(&mut self, vcpu: usize, notify: Notify) {
        self.seen.told.push((vcpu, notify));
        if vcpu == 0 && notify == Notify::Kick {
            self.kicked.store(true, SeqCst);
        }
    }

    /// An APIC-access exit: the instruction is decoded, done, and stepped over. All here are loads.
    fn emulate(&mut self, vcpu: &mut Vcpu<'_>, offset: u16) -> Effect {
        let _ = vcpu.apic_mut().read_mmio(offset, Width::Dword, self.now);
        Effect::None
    }

    /// The hypervisor's other exits.
    fn handle(&mut self, vcpu: &mut Vcpu<'_>, exit: Exit) -> Effect {
        match exit.reason {
            WRMSR => vcpu.apic_mut().write_msr(IA32_APIC_BASE, X2APIC, self.now).expect("no #GP"),
            HLT => {
                halt(self, vcpu);
                Effect::None
            }
            VMCALL => {
                self.finished = true;
                Effect::None
            }
            _ => {
                while self.core.host_interrupt().is_some() {
                    self.core.physical.end_of_interrupt();
                }
                Effect::None
            }
        }
    }

    fn carry_out(&mut self, event: Option<Event>) {
        unreachable!("nobody sends {event:?} to vCPU 0");
    }

    fn sleep_until_kicked(&mut self) {
        unreachable!("vCPU 0 waits for no start-up IPI");
    }

    fn end_of_interrupt(&mut self, vector: Vector) {
        self.seen.ended.push(vector.get());
    }

    fn flush(&mut self, needed: bool) {
        self.seen.flushes += usize::from(needed);
    }

    fn join_wakeup_list(&mut self) {}

    fn leave_wakeup_list(&mut self) {}

    /// A device's interrupt comes while the vCPU sleeps.
    fn sleep_until(&mut self, _: Option<u64>) {
        self.seen.sleeps += 1;
        let notify = self.slot.request(0x71, Trigger::Edge).notify;
        self.notify(0, notify);
    }

    fn field(&self, encoding: u32) -> u64 {
        self.core.vmcs().expect("current").get(encoding)
    }
}

const HLT: u16 = ExitReason::Hlt as u16;
const VMCALL: u16 = ExitReason::Vmcall as u16;
const WRMSR: u16 = ExitReason::Wrmsr as u16;

const NOTIFICATION: u8 = 0xf2;
const WAKEUP: u8 = 0xf3;
const KICK: u8 = 0xf4;
const X2APIC: u64 = 0xfee0_0d00;

const PAGE: u64 = 0x1000;
const ACCESS_PAGE: u64 = 0x2000;
const BITMAP: u64 = 0x3000;
const DESCRIPTOR: u64 = 0x4000;

#[test]
fn a_guest_runs_through_the_loop() {
    let (pages, descriptors) =
        ([const { ApicPage::new() }; 2], [const { PostedDescriptor::new() }; 2]);
    let (bitmap, access_page) = (MsrBitmap::new(), [const { AtomicU32::new(0) }; 1024]);
    let pending = AtomicU8::new(0);
    let vectors = NotificationVectors { running: NOTIFICATION, wakeup: WAKEUP };
    let slots = [0, 1].map(|index| {
        let posting = Posting::new(&descriptors[index], vectors, HostMode::X2Apic);
        Slot::new(&pages[index], index as u32, Profile::intel(), posting)
    });

    let memory = Arc::new(Memory::new());
    memory.add_dwords(PAGE, pages[0].words());
    memory.add_dwords(ACCESS_PAGE, &access_page);
    memory.add_qwords(BITMAP, bitmap.words());
    memory.add_qwords(DESCRIPTOR, descriptors[0].words());
    let capability = Capability::at(Level::PostedInterrupts);
    let mut region = VmcsRegion::with_default_controls(capability);
    let pin = controls::pin::EXTERNAL_INTERRUPT_EXITING | controls::pin::PREEMPTION_TIMER;
    region.set_bits(field::PIN_BASED, pin);
    region.set_bits(field::PRIMARY, controls::primary::HLT_EXITING);
    let mut core = Core::new(0, memory, Arc::new(PhysicalBus::new()), capability, Knobs::default());
    core.vmptrld(region);

    let mut host = Host {
        capabilities: Capabilities::detect(&core).expect("VMX capability MSRs"),
        core,
        addresses: Addresses {
            virtual_apic: Some(PhysAddr::new(PAGE)),
            apic_access: Some(PhysAddr::new(ACCESS_PAGE)),
            posted_interrupt_descriptor: Some(PhysAddr::new(DESCRIPTOR)),
            msr_bitmap: Some((&bitmap, PhysAddr::new(BITMAP))),
            pid_pointer_table: None,
        },
        grant: Grant::emulated(),
        cpu: 0,
        now: 0,
        slot: &slots[0],
        pending: &pending,
        kicked: AtomicBool::new(false),
        finished: false,
        program: VecDeque::from([
            Step::Store(0xf0, 0x1ff),
            Step::InterruptsOn,
            Step::Device(0x51, Trigger::Edge),
            Step::Store(0xb0, 0),
            Step::InterruptsOn,
            Step::Device(0x61, Trigger::Level),
            Step::Store(0xb0, 0),
            Step::Load(0x390),
            Step::Store(0x310, 0x0100_0000),
            Step::Store(0x300, 0x4500),
            Step::WriteMsr(IA32_APIC_BASE, X2APIC),
            Step::InterruptsOn,
            Step::Halt,
            Step::WriteMsr(0x80b, 0),
            Step::Finish,
        ]),
        seen: Seen::default(),
    };
    let _other = Vcpu::new(&slots[1], false);
    run(&mut host, Vm::new(&slots).expect("IDs ascend"), 0).expect("the VMCS takes everything");

    assert_eq!(
        host.grant.to_string(),
        "granted: tpr-shadow,apic-access,x2apic,register-virtualization,\
         virtual-interrupt-delivery,posted-interrupts; \
         refused: ipi-virtualization (not supported by the processor)"
    );
    use ExitReason::{
        ApicAccess, ApicWrite, ExternalInterrupt, Hlt, VirtualizedEoi, Vmcall, Wrmsr,
    };
    let expected = Seen {
        taken: vec![0x51, 0x61, 0x71],
        ended: vec![0x61],
        told: vec![
            (0, Notify::Interrupt { vector: NOTIFICATION, destination: 0 }),
            (0, Notify::Kick),
            (1, Notify::Kick),
            (0, Notify::Wake),
        ],
        exits: vec![
            ApicWrite,
            ExternalInterrupt,
            VirtualizedEoi,
            ApicAccess,
            ApicWrite,
            Wrmsr,
            Hlt,
            Vmcall,
        ],
        flushes: 1,
        sleeps: 1,
    };
    assert_eq!(host.seen, expected);
}

/// An integration that needs more than forty lines means that the interface is wrong. Lines that only close a brace do
/// not count, nor do comments.
#[test]
fn no_integration_needs_more_than_forty_lines() {
    for (name, text) in [
        ("a hypervisor's own loop", include_str!("integration_example.rs")),
        ("a monitor in user space", include_str!("integration_vmm.rs")),
        ("a kernel with ports", include_str!("integration_kernel.rs")),
        ("a client for each access", include_str!("integration_client.rs")),
    ] {
        let lines = text.lines().skip_while(|line| *line != "// glue").skip(1);
        let glue = lines.take_while(|line| *line != "// end of glue");
        let says_something = |line: &&str| {
            !line.trim_start().starts_with("//") && line.contains(char::is_alphanumeric)
        };
        let count = glue.filter(says_something).count();
        assert!((20..=40).contains(&count), "{name}: {count} lines");
    }
}
