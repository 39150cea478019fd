//! The `apicv` driver on the model, at every level of hardware help, against plain emulation: the same guest operations
//! and posts must give the same values, the same interrupts in the same order, and the same page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

use apicv::{
    Addresses, Capabilities, Exit, Feature, HostMode, MsrBitmap, NotificationVectors,
    PostedDescriptor, Posting, Vcpu, Wanted,
};
use vlapic_core::{
    ApicPage, DirectInbox, Effect, EntryInput, ExitOutcome as Handled, Fault, Inbox, LocalApic,
    Next, Notify, Profile, Slot, SvrWrites, Trigger, Vm, Width,
};
use vlapic_hal::PhysAddr;
use vlapic_tests::model::{
    Capability, Core, ExitReason, Knobs, Level, Machine, Memory, Outcome, PhysicalBus, Shadow,
    VmExit, VmcsRegion, Window, controls, field,
};

const PAGE: u64 = 0x10_0000;
const ACCESS_PAGE: u64 = 0x10_1000;
const BITMAP: u64 = 0x10_2000;
const DESCRIPTOR: u64 = 0x10_3040;
const NV: u8 = 0xf2;
const WAKEUP: u8 = 0xf3;
const KICK: u8 = 0xe0;

/// What a guest, or a device, does.
#[derive(Debug, Clone, Copy)]
enum Operation {
    /// Reads the register at a page offset, by the way of the APIC's mode.
    Read(u32),
    /// Writes it.
    Write(u32, u32),
    /// MOV to CR8.
    WriteCr8(u8),
    /// MOV from CR8.
    ReadCr8,
    /// A device's interrupt.
    Post(u8, Trigger),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Value(u64),
    Done,
    Fault,
}

/// What both ways of running a guest can do.
trait Way {
    fn operate(&mut self, operation: Operation) -> Seen;
    /// Opens the guest to interrupts until none comes; gives their vectors.
    fn take(&mut self) -> Vec<u8>;
    fn word(&self, offset: u32) -> u32;
    /// The level-triggered vectors whose EOI was to be broadcast so far.
    fn broadcasts(&self) -> &[u8];
}

/// Stores that survive the run: everything the processor may point to.
struct Stores {
    page: ApicPage,
    access_page: [AtomicU32; 1024],
    descriptor: PostedDescriptor,
    bitmap: MsrBitmap,
    pending: AtomicU8,
}

impl Stores {
    fn new() -> Box<Self> {
        Box::new(Stores {
            page: ApicPage::new(),
            access_page: [const { AtomicU32::new(0) }; 1024],
            descriptor: PostedDescriptor::new(),
            bitmap: MsrBitmap::new(),
            pending: AtomicU8::new(0),
        })
    }

    fn slot(&self) -> [Slot<'_, Posting<'_>>; 1] {
        let vectors = NotificationVectors { running: NV, wakeup: WAKEUP };
        let posting = Posting::new(&self.descriptor, vectors, HostMode::XApic);
        [Slot::new(&self.page, 0, Profile::intel(), posting)]
    }
}

/// A small hypervisor: one vCPU on one core of the model.
struct Hypervisor<'a> {
    core: Core<'a>,
    vcpu: Vcpu<'a>,
    vm: Vm<'a, Posting<'a>>,
    memory: Arc<Memory<'a>>,
    pending: &'a AtomicU8,
    taken: Vec<u8>,
    broadcasts: Vec<u8>,
    now: u64,
}

impl<'a> Hypervisor<'a> {
    fn new(
        stores: &'a Stores,
        slots: &'a [Slot<'a, Posting<'a>>; 1],
        level: Level,
        knobs: Knobs,
    ) -> Self {
        let memory = Arc::new(Memory::new());
        memory.add_dwords(PAGE, stores.page.words());
        memory.add_dwords(ACCESS_PAGE, &stores.access_page);
        memory.add_qwords(BITMAP, stores.bitmap.words());
        memory.add_qwords(DESCRIPTOR, stores.descriptor.words());
        let capability = Capability::at(level);
        let mut region = VmcsRegion::with_default_controls(capability);
        region.set(field::GUEST_RFLAGS, 0x2);
        region.set_bits(field::PIN_BASED, controls::pin::EXTERNAL_INTERRUPT_EXITING);
        region.set_bits(field::PIN_BASED, controls::pin::PREEMPTION_TIMER);
        region.set_bits(field::PRIMARY, controls::primary::MSR_BITMAPS);
        region.set_bits(field::VM_EXIT_CONTROLS, controls::exit::ACKNOWLEDGE_INTERRUPT);
        region.set(field::MSR_BITMAP_ADDRESS, BITMAP);
        region.set(field::PREEMPTION_TIMER, u32::MAX.into());

        let mut core =
            Core::new(0, memory.clone(), Arc::new(PhysicalBus::new()), capability, knobs);
        core.vmptrld(region);
        let capabilities = Capabilities::detect(&core).expect("the model has VMX");
        let mut vcpu = Vcpu::new(&slots[0], true);
        vcpu.apic_mut().bind_upcall(&stores.pending);
        let addresses = Addresses {
            virtual_apic: Some(PhysAddr::new(PAGE)),
            apic_access: Some(PhysAddr::new(ACCESS_PAGE)),
            posted_interrupt_descriptor: Some(PhysAddr::new(DESCRIPTOR)),
            msr_bitmap: Some((&stores.bitmap, PhysAddr::new(BITMAP))),
            pid_pointer_table: None,
        };
        let wanted = Wanted::ALL.without(Feature::IpiVirtualization);
        let grant =
            vcpu.configure(&mut core, &capabilities, wanted, &addresses).expect("good addresses");
        if !grant.features().contains(Feature::TprShadow) {
            let cr8 = controls::primary::CR8_LOAD_EXITING | controls::primary::CR8_STORE_EXITING;
            core.vmcs_mut().expect("current").set_bits(field::PRIMARY, cr8);
        }
        if !grant.features().contains(Feature::ApicAccess) {
            core.window = Window::NotPresent;
        }
        Hypervisor {
            core,
            vcpu,
            vm: Vm::new(slots).expect("one vCPU"),
            memory,
            pending: &stores.pending,
            taken: Vec::new(),
            broadcasts: Vec::new(),
            now: 0,
        }
    }

    fn in_x2apic(&self) -> bool {
        self.vcpu.apic().slot().mode() == vlapic_core::Mode::X2Apic
    }

    /// Enters until the guest runs.
    fn enter(&mut self) {
        while !self.core.in_guest() {
            let vmcs = self.core.vmcs().expect("current");
            let flag = vmcs.get(field::GUEST_RFLAGS) >> 9 & 1 != 0;
            let blocked = vmcs.get(field::GUEST_INTERRUPTIBILITY) & 3 != 0;
            let input = EntryInput {
                now: self.now,
                cpu: 0,
                interruptible: flag && !blocked,
                injecting: false,
            };
            let entry = self.vcpu.before_entry(&mut self.core, input).expect("every field exists");
            if entry.next == Next::TakeEvent {
                let _ = self.vcpu.apic_mut().take_event();
                continue;
            }
            let ticks = entry.exit_by.map_or(u64::from(u32::MAX), |by| by.saturating_sub(self.now));
            self.core
                .vmcs_mut()
                .expect("current")
                .set(field::PREEMPTION_TIMER, ticks.min(u32::MAX.into()));
            let entered = self.core.vm_entry().expect("consistent controls");
            assert_eq!(entered.injected, entry.injected.map(|vector| vector.get()));
            self.taken.extend(entered.injected);
            if let Some(exit) = entered.exit {
                let _ = self.handle(exit, None);
            }
        }
    }

    /// Handles an exit. `access` is what the guest's instruction was.
    fn handle(&mut self, exit: VmExit, access: Option<Operation>) -> Seen {
        let (now, apic) = (self.now, exit.reason as u16);
        match self.vcpu.after_exit(Exit { reason: apic, qualification: exit.qualification }, now) {
            Handled::Done(effect) => {
                self.carry_out(effect);
                Seen::Done
            }
            Handled::Decode(_) => self.emulate(access.expect("an instruction's access")),
            Handled::NotOurs => match exit.reason {
                ExitReason::EptViolation
                | ExitReason::Rdmsr
                | ExitReason::Wrmsr
                | ExitReason::CrAccess => self.emulate(access.expect("an instruction's access")),
                ExitReason::ExternalInterrupt => {
                    self.core.physical.end_of_interrupt();
                    Seen::Done
                }
                ExitReason::InterruptWindow | ExitReason::PreemptionTimer => Seen::Done,
                other => unreachable!("an exit nobody asked for: {other:?}"),
            },
            _ => unreachable!("an answer nobody knows"),
        }
    }

    fn emulate(&mut self, operation: Operation) -> Seen {
        let (now, x2apic) = (self.now, self.in_x2apic());
        let (seen, effect) = emulate(self.vcpu.apic_mut(), x2apic, operation, now);
        self.carry_out(effect);
        seen
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Ipi(message) => {
                for (_, receipt) in self.vm.send(&message, Some(0)) {
                    self.notify(receipt.notify);
                }
            }
            Effect::EndOfInterrupt(vector) => self.broadcasts.push(vector.get()),
            _ => {}
        }
    }

    fn notify(&mut self, notify: Notify) {
        let vector = match notify {
            Notify::Interrupt { vector, destination } => {
                assert_eq!((vector, destination), (NV, 0));
                vector
            }
            Notify::Kick if self.core.in_guest() => KICK,
            _ => return,
        };
        if let Outcome::Exit(exit) = self.core.external_interrupt(vector) {
            let _ = self.handle(exit, None);
        } else if !self.core.in_guest() {
            assert_eq!(self.core.host_interrupt(), Some(vector));
            self.core.physical.end_of_interrupt();
        }
    }
}

impl Way for Hypervisor<'_> {
    fn operate(&mut self, operation: Operation) -> Seen {
        let x2apic = self.in_x2apic();
        let msr = |offset: u32| 0x800 + (offset >> 4);
        let outcome = match operation {
            Operation::Post(vector, trigger) => {
                let receipt = self.vcpu.apic().slot().request(vector, trigger);
                self.notify(receipt.notify);
                return Seen::Done;
            }
            _ => {
                self.enter();
                match operation {
                    Operation::Read(offset) if x2apic => self.core.rdmsr(msr(offset)),
                    Operation::Read(offset) => self.core.mmio_read(offset, 4),
                    Operation::Write(offset, value) if x2apic => {
                        self.core.wrmsr(msr(offset), value.into())
                    }
                    Operation::Write(offset, value) => {
                        self.core.mmio_write(offset, 4, value.into())
                    }
                    Operation::WriteCr8(value) => self.core.write_cr8(value.into()),
                    _ => self.core.read_cr8(),
                }
            }
        };
        match outcome {
            Outcome::Value(value) => Seen::Value(value),
            Outcome::GeneralProtection => Seen::Fault,
            Outcome::Exit(exit) => self.handle(exit, Some(operation)),
            _ => Seen::Done,
        }
    }

    fn take(&mut self) -> Vec<u8> {
        loop {
            self.enter();
            match self.core.boundary(true, Shadow::None) {
                Outcome::Delivered(vector) => self.taken.push(vector),
                Outcome::Exit(exit) => {
                    let _ = self.handle(exit, None);
                }
                _ => {
                    let _ = self.core.set_interrupt_flag(false);
                    return std::mem::take(&mut self.taken);
                }
            }
        }
    }

    fn word(&self, offset: u32) -> u32 {
        self.memory.load32(PAGE + u64::from(offset))
    }

    fn broadcasts(&self) -> &[u8] {
        &self.broadcasts
    }
}

/// Plain emulation: no processor at all.
struct Emulation<'a> {
    apic: LocalApic<'a, DirectInbox>,
    vm: Vm<'a, DirectInbox>,
    page: &'a ApicPage,
    broadcasts: Vec<u8>,
}

impl Way for Emulation<'_> {
    fn operate(&mut self, operation: Operation) -> Seen {
        if let Operation::Post(vector, trigger) = operation {
            let _ = self.apic.slot().request(vector, trigger);
            return Seen::Done;
        }
        let x2apic = self.apic.slot().mode() == vlapic_core::Mode::X2Apic;
        let (seen, effect) = emulate(&mut self.apic, x2apic, operation, 0);
        match effect {
            Effect::Ipi(message) => self.vm.send(&message, Some(0)).for_each(drop),
            Effect::EndOfInterrupt(vector) => self.broadcasts.push(vector.get()),
            _ => {}
        }
        seen
    }

    fn take(&mut self) -> Vec<u8> {
        let mut taken = Vec::new();
        let _ = self.apic.prepare(0);
        while let Some(vector) = self.apic.nominate() {
            assert!(self.apic.commit(vector));
            taken.push(vector.get());
        }
        taken
    }

    fn word(&self, offset: u32) -> u32 {
        self.page.words()[offset as usize / 4].load(SeqCst)
    }

    fn broadcasts(&self) -> &[u8] {
        &self.broadcasts
    }
}

/// The core's own emulation of one guest operation.
fn emulate<I: Inbox>(
    apic: &mut LocalApic<'_, I>,
    x2apic: bool,
    operation: Operation,
    now: u64,
) -> (Seen, Effect) {
    let fault = |_: Fault| (Seen::Fault, Effect::None);
    let msr = |offset: u32| if offset == BASE { 0x1b } else { 0x800 + (offset >> 4) };
    match operation {
        Operation::Read(offset) if x2apic => apic
            .read_msr(msr(offset), now)
            .map_or_else(fault, |value| (Seen::Value(value), Effect::None)),
        Operation::Read(offset) => {
            (Seen::Value(apic.read_mmio(offset as u16, Width::Dword, now)), Effect::None)
        }
        Operation::Write(offset, value) if x2apic || offset == BASE => apic
            .write_msr(msr(offset), value.into(), now)
            .map_or_else(fault, |effect| (Seen::Done, effect)),
        Operation::Write(offset, value) => {
            (Seen::Done, apic.write_mmio(offset as u16, Width::Dword, value.into(), now))
        }
        Operation::WriteCr8(value) => {
            apic.write_cr8(value.into(), now).map_or_else(fault, |effect| (Seen::Done, effect))
        }
        Operation::ReadCr8 => (Seen::Value(apic.read_cr8()), Effect::None),
        Operation::Post(..) => (Seen::Done, Effect::None),
    }
}

/// Stands for IA32_APIC_BASE where a page offset is expected.
const BASE: u32 = !0xf;
const X2APIC_ON: u32 = 0xfee0_0d00;

/// Registers whose page words must agree. PPR is computed on demand by plain emulation, EOI and self-IPI hold nothing,
/// and the ICR's busy bit and TMCCT are nobody's state.
const COMPARED: [u32; 13] =
    [0x020, 0x030, 0x080, 0x0d0, 0x0e0, 0x0f0, 0x280, 0x320, 0x350, 0x360, 0x370, 0x380, 0x3e0];

/// The next operation.
///
/// A software-disabled APIC sends itself nothing here: virtual-interrupt delivery does not look at SVR and would
/// accept the interrupt, which no driver can prevent. Nor does it send itself a vector that is level-triggered at other
/// times: the processor accepts the edge without clearing the vector's TMR bit.
fn operation(schedule: &mut Machine<'_>, x2apic: bool, enabled: bool) -> Operation {
    let vector = 16 + schedule.pick(224) as u8;
    match schedule.pick(16) {
        0 => Operation::WriteCr8(vector >> 6),
        1 => Operation::ReadCr8,
        2 => Operation::Write(0x080, u32::from(vector >> 2)),
        3..=5 => Operation::Write(0x0b0, 0),
        6 if !enabled => Operation::Write(0x0f0, 0x1ff),
        6 if x2apic => Operation::Write(0x3f0, u32::from(vector & !1)),
        6 => Operation::Write(0x300, 0x4_0000 | u32::from(vector & !1)),
        7 => Operation::Write(
            0x0f0,
            if schedule.pick(3) == 0 { 0 } else { 0x100 } | u32::from(vector),
        ),
        8 => {
            let lvt = [0x320, 0x350, 0x360, 0x370][schedule.pick(4)];
            Operation::Write(lvt, 0x1_0000 | u32::from(vector))
        }
        9 if !x2apic => {
            Operation::Write([0x0d0, 0x0e0, 0x310][schedule.pick(3)], u32::from(vector) << 24)
        }
        10 | 11 => {
            let readable = [0x020, 0x030, 0x080, 0x0d0, 0x0f0, 0x280, 0x320, 0x350, 0x380, 0x3e0];
            Operation::Read(readable[schedule.pick(readable.len())])
        }
        12 => Operation::Post(vector | 1, Trigger::Level),
        _ => Operation::Post(vector, Trigger::Edge),
    }
}

fn compare(level: Level, x2apic: bool, seed: u64, knobs: Knobs) -> usize {
    let stores = Stores::new();
    let slots = stores.slot();
    let mut driver = Hypervisor::new(&stores, &slots, level, knobs);
    let page = Box::new(ApicPage::new());
    let plain_slots = [Slot::new(&page, 0, Profile::intel(), DirectInbox)];
    let mut plain = Emulation {
        apic: LocalApic::new(&plain_slots[0], true),
        vm: Vm::new(&plain_slots).expect("one vCPU"),
        page: &page,
        broadcasts: Vec::new(),
    };
    let mut schedule = Machine::new(0, Arc::new(Memory::new()), Capability::full(), knobs, seed);
    if x2apic {
        let to_x2apic = Operation::Write(BASE, X2APIC_ON);
        assert_eq!((driver.emulate(to_x2apic), plain.operate(to_x2apic)), (Seen::Done, Seen::Done));
        assert!(driver.in_x2apic());
    }
    let mut taken = 0;
    for step in 0..300 {
        let enabled = plain.word(0x0f0) & 0x100 != 0;
        let operation = operation(&mut schedule, x2apic, enabled);
        let said = format!("{level:?} x2APIC {x2apic} seed {seed} step {step}: {operation:x?}");
        assert_eq!(driver.operate(operation), plain.operate(operation), "{said}");
        if schedule.pick(2) == 0 {
            let vectors = plain.take();
            assert_eq!(driver.take(), vectors, "{said}");
            taken += vectors.len();
            for offset in COMPARED.into_iter().chain((0x100..0x280).step_by(16)) {
                assert_eq!(driver.word(offset), plain.word(offset), "{offset:#x} after {said}");
            }
        }
        assert_eq!(driver.broadcasts(), plain.broadcasts(), "{said}");
    }
    assert_eq!(driver.memory.stray_accesses(), 0);
    assert_eq!(driver.core.page_violations(), []);
    assert_eq!(driver.core.physical.leaks(), []);
    assert_eq!(driver.core.vmcs().expect("current").too_wide_writes(), []);
    taken
}

#[test]
fn every_level_is_the_same_apic() {
    for level in Level::ALL {
        for x2apic in [false, true] {
            let taken: usize =
                (0..20).map(|seed| compare(level, x2apic, seed, Knobs::default())).sum();
            assert!(taken > 500, "{level:?}: {taken}");
        }
    }
}

#[test]
fn the_readings_of_unclear_lines_do_not_matter() {
    let default = Knobs::default();
    for knobs in [
        Knobs { vid_virtualizes_reads: false, ..default },
        Knobs { spurious_eoi_is_vector_0: false, ..default },
        Knobs { entry_clears_vtpr_upper_bytes: false, ..default },
    ] {
        for level in [Level::TprShadow, Level::RegisterVirtualization, Level::PostedInterrupts] {
            for seed in 100..105 {
                let _ = compare(level, seed % 2 == 0, seed, knobs);
            }
        }
    }
}

#[test]
fn an_upcall_refused_before_a_silent_enable_comes_once() {
    for silent in [false, true] {
        let stores = Stores::new();
        let slots = stores.slot();
        let knobs = Knobs { svr_writes_never_exit: silent, ..Knobs::default() };
        let mut driver = Hypervisor::new(&stores, &slots, Level::PostedInterrupts, knobs);
        if silent {
            driver.vcpu.set_svr_writes(SvrWrites::Silent { recheck: 1000 });
        }
        let slot = driver.vcpu.apic().slot();
        assert_eq!(slot.register_upcall(0x51, driver.pending), Ok(Notify::None));
        let notify = slot.notify_upcall(driver.pending);
        driver.notify(notify);
        assert_eq!(driver.take(), []);
        for offset in (0x100..0x280).step_by(16) {
            assert_eq!(driver.word(offset), 0, "a stale bit at {offset:#x}");
        }
        assert_eq!(driver.operate(Operation::Write(0x0f0, 0x1ff)), Seen::Done);
        assert_eq!(driver.core.in_guest(), silent, "whether the write was seen");
        let mut taken = driver.take();
        if silent {
            assert_eq!(taken, [], "nobody knows yet");
            driver.now += 1000;
            driver.core.tick(1000);
            taken = driver.take();
        }
        assert_eq!(taken, [0x51]);
        driver.pending.store(0, SeqCst);
        assert_eq!(driver.operate(Operation::Write(0x0b0, 0)), Seen::Done);
        assert_eq!(driver.operate(Operation::Write(0x0f0, 0x1ff)), Seen::Done);
        driver.now += 5000;
        driver.core.tick(5000);
        assert_eq!(driver.take(), [], "no second upcall");
    }
}
