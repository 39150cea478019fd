//! A VM: its vCPUs' APICs, its memory, and how a vCPU is told of something.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use apicv::{MsrBitmap, NotificationVectors, Posting};
use spin::Mutex;
use vlapic_core::{ApicPage, Notify, Profile, Receipt, RefusedUpcall, Slot, SvrWrites};

use super::apics::{Apics, DESCRIPTORS, PAGES};
use super::memory::Memory;
use super::{HypervisorError, Level, storage, svm as svm_loop, vcpu};
use crate::guest::{self, Context, MAX_VCPUS, Program};
use crate::machine::{apic, smp};
use crate::vmx::vcpu::{Current, Exits};
use crate::{svm, vmx};

/// Physical vectors of this hypervisor. None of them is the physical SVR's vector: Bochs ignores an EOI for that one
/// (defect D3).
pub(crate) const VECTORS: NotificationVectors = NotificationVectors { running: 0xe2, wakeup: 0xe3 };
/// Makes a CPU leave guest mode; its handler does nothing.
pub(crate) const KICK: u8 = 0xe4;

/// Where the guest sees the APIC page of vCPU 0 as plain memory, in VMs that show it; the others follow.
pub(crate) const SILENT_WINDOW: u64 = 0x4000_0000;

/// What kind of VM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) vcpus: usize,
    pub(crate) level: Level,
    /// The model of the guest's APICs.
    pub(crate) profile: Profile,
    /// How the guest's SVR writes are noticed. Anything but `Exit` maps the APIC pages into the guest.
    pub(crate) svr_writes: SvrWrites,
    pub(crate) refused_upcall: RefusedUpcall,
    /// vCPUs but the first start in real mode at their start page; else in 64-bit mode whatever the page.
    pub(crate) real_mode: bool,
    /// A page below 1 MiB that the guest sees elsewhere than the host: guest-physical and host-physical address.
    pub(crate) low_page: Option<(u64, u64)>,
    /// What a hypercall with a number of the case's own does: (VM, vCPU, operation, first, second), the answer.
    pub(crate) on_call: fn(&VirtualMachine, usize, u64, u64, u64) -> u64,
    /// Told of each exit that the guest caused, after it was handled: (VM, vCPU, exit, RCX at the exit).
    pub(crate) on_exit: fn(&VirtualMachine, usize, &vmx::Exit, u64),
    /// The same on SVM.
    pub(crate) on_svm_exit: fn(&VirtualMachine, usize, &svm::Exit, u64),
    /// Shown every exit before it is handled, and given the VMCS: (VM, vCPU, exit, the vCPU).
    pub(crate) at_exit: fn(&VirtualMachine, usize, &vmx::Exit, &mut Current<'_>),
}

impl Config {
    pub(crate) fn new(level: Level, vcpus: usize) -> Self {
        Self {
            vcpus,
            level,
            profile: match level {
                level if level.is_svm() => Profile::amd(),
                _ => Profile::intel().with_cmci(false),
            },
            svr_writes: SvrWrites::Exit,
            refused_upcall: RefusedUpcall::Owed,
            real_mode: false,
            low_page: None,
            on_call: |_, _, _, _, _| 0,
            on_exit: |_, _, _, _| {},
            on_svm_exit: |_, _, _, _| {},
            at_exit: |_, _, _, _| {},
        }
    }
}

static MSR_BITMAPS: [MsrBitmap; MAX_VCPUS] = [const { MsrBitmap::new() }; MAX_VCPUS];
/// Accesses to it are the processor's to catch; nothing is ever stored in it.
static APIC_ACCESS_PAGE: ApicPage = ApicPage::new();

/// One VM. There is one at a time: making the next ends it, when its vCPUs have left their loops.
pub(crate) struct VirtualMachine {
    pub(crate) config: Config,
    /// The APICs of a VM on VT-x; empty elsewhere.
    pub(crate) slots: &'static [Slot<'static, Posting<'static>>],
    pub(super) apics: Apics,
    /// The pending byte of each vCPU's upcall, which the guest may see and clear.
    pub(crate) pending: [AtomicU8; MAX_VCPUS],
    /// EOIs of level-triggered interrupts, by vector.
    pub(crate) eois: [AtomicU32; 256],
    memory: Mutex<Memory>,
    /// Of VMs under `avic`.
    pub(super) tables: Option<svm_loop::Tables>,
    runners: [Runner; MAX_VCPUS],
}

/// Where a vCPU runs and what it is told.
struct Runner {
    /// Physical APIC ID of its CPU.
    cpu: AtomicU32,
    /// Something is to be looked at before the next entry, or instead of sleeping.
    requested: AtomicBool,
    stop: AtomicBool,
    /// It is to leave its CPU, and what it is then.
    leave: AtomicBool,
    parked: Mutex<Option<Parked>>,
    /// It is in guest mode, or about to be.
    inside: AtomicBool,
    /// A mapping has gone: before it is next inside it flushes its translations.
    flush: AtomicBool,
    /// The program: what, argument, and its result.
    program: Mutex<Option<(Program, u64)>>,
    result: Mutex<Option<Result<u64, HypervisorError>>>,
    exits: Mutex<Option<Exits>>,
    /// Exits of interest, counted as they come: see [`VirtualMachine::count_exit`].
    counted: AtomicU64,
}

impl VirtualMachine {
    /// A VM whose vCPUs wait: the first for its program, the others for INIT and SIPI as well.
    pub(crate) fn new(config: Config) -> Result<&'static Self, HypervisorError> {
        storage::end_last();
        // First, since it says whether the processor can run such a VM at all.
        let memory = Memory::new(&config)?;
        let apics = Apics::new(&config)?;
        let tables = match &apics {
            Apics::Backed(group) => Some(svm_loop::Tables::new(group.routes)?),
            _ => None,
        };
        for index in 0..config.vcpus.min(MAX_VCPUS) {
            guest::context(index).reset();
        }
        Ok(storage::machine(Self {
            config,
            slots: apics.posted(),
            apics,
            pending: [const { AtomicU8::new(0) }; MAX_VCPUS],
            eois: [const { AtomicU32::new(0) }; 256],
            memory: Mutex::new(memory),
            tables,
            runners: [const { Runner::new() }; MAX_VCPUS],
        }))
    }

    /// What names the VM's memory to the processor.
    pub(super) fn memory_root(&self) -> u64 {
        self.memory.lock().root()
    }

    /// The guest side of vCPU `index`.
    pub(crate) fn context(&self, index: usize) -> &'static Context {
        guest::context(index)
    }

    /// Gives vCPU `index` its program; it starts when the vCPU runs and, but for the first, has had INIT and SIPI.
    pub(crate) fn set_program(&self, index: usize, program: Program, argument: u64) {
        *self.runners[index].program.lock() = Some((program, argument));
    }

    /// Runs vCPU `index` on this CPU until its program finishes.
    pub(crate) fn run_here(&'static self, index: usize) -> Result<u64, HypervisorError> {
        let program = self.runners[index].program.lock().take();
        let running = storage::Running::begin();
        let result = match self.config.level {
            level if level.is_svm() => svm_loop::run(self, index, program),
            _ => vcpu::run(self, index, program),
        };
        *self.runners[index].result.lock() = result.transpose();
        drop(running);
        result.map(Option::unwrap_or_default)
    }

    /// Runs vCPU `index` on CPU `cpu`, another one, from now on.
    pub(crate) fn start_on(&'static self, index: usize, cpu: usize) {
        *ASSIGNMENTS[cpu].lock() = Some((self, index));
        // Told to be where it will run, so that what is told before it gets there is not lost on the way.
        self.set_cpu(index, Some(smp::apic_id(cpu)));
        smp::run_on(cpu, |cpu| {
            if let Some((machine, index)) = ASSIGNMENTS[cpu].lock().take() {
                let _ = machine.run_here(index);
            }
        });
    }

    /// Moves vCPU `index` from CPU `from`, where it runs, to CPU `to`. Neither is this one.
    ///
    /// A vCPU that has finished meanwhile stays where it is; the answer is whether it moved.
    pub(crate) fn migrate(&'static self, index: usize, from: usize, to: usize) -> bool {
        self.runners[index].leave.store(true, Ordering::SeqCst);
        self.kick(index);
        smp::wait_idle(from);
        let moves = self.runners[index].parked.lock().is_some();
        if moves {
            self.start_on(index, to);
        }
        moves
    }

    pub(super) fn take_leave(&self, index: usize) -> bool {
        self.runners[index].leave.swap(false, Ordering::SeqCst)
    }

    pub(super) fn park(&self, index: usize, parked: Parked) {
        *self.runners[index].parked.lock() = Some(parked);
    }

    pub(super) fn take_parked(&self, index: usize) -> Option<Parked> {
        self.runners[index].parked.lock().take()
    }

    /// Waits for the CPU that runs a vCPU and says what became of the vCPU's program.
    pub(crate) fn join(&self, index: usize, cpu: usize) -> Result<u64, HypervisorError> {
        smp::wait_idle(cpu);
        self.runners[index].result.lock().take().unwrap_or(Err(HypervisorError::Stopped))
    }

    /// Makes vCPU `index` leave its loop, finished or not.
    pub(crate) fn stop(&self, index: usize) {
        self.runners[index].stop.store(true, Ordering::SeqCst);
        self.kick(index);
    }

    pub(crate) fn is_stopped(&self, index: usize) -> bool {
        self.runners[index].stop.load(Ordering::SeqCst)
    }

    /// The exits of a vCPU that has left its loop.
    pub(crate) fn exits(&self, index: usize) -> Option<Exits> {
        self.runners[index].exits.lock().clone()
    }

    pub(super) fn leave_exits(&self, index: usize, exits: &Exits) {
        *self.runners[index].exits.lock() = Some(exits.clone());
    }

    /// Exits that the guest caused: all but those for the host's interrupts and its preemption timer.
    pub(crate) fn guest_exits(&self, index: usize) -> u64 {
        self.runners[index].counted.load(Ordering::SeqCst)
    }

    pub(super) fn count_exit(&self, index: usize) {
        self.runners[index].counted.fetch_add(1, Ordering::SeqCst);
    }

    /// Carries out what the receipt of a post asks for.
    pub(crate) fn carry_out(&self, index: usize, receipt: Receipt) {
        self.notify(index, receipt.notify);
    }

    /// Tells vCPU `index`.
    pub(crate) fn notify(&self, index: usize, notify: Notify) {
        match notify {
            Notify::None => {}
            Notify::Interrupt { vector, destination } => apic::send(destination, vector),
            Notify::Doorbell { destination } => svm_loop::ring(destination),
            // `Kick` and `Wake` need the same here: a CPU that sleeps for a vCPU wakes by any interrupt.
            _ => self.kick(index),
        }
    }

    fn kick(&self, index: usize) {
        let runner = &self.runners[index];
        runner.requested.store(true, Ordering::SeqCst);
        let cpu = runner.cpu.load(Ordering::SeqCst);
        if cpu != Runner::NOWHERE && cpu != smp::apic_id(crate::machine::cpu::this_cpu()) {
            apic::send(cpu, KICK);
        }
    }

    /// Maps the register window for AVIC.
    pub(super) fn map_window(&self) {
        // Without the mapping each access exits and is emulated, which is as right.
        let _ = self.memory.lock().map_window();
    }

    /// Unmaps the register window, and waits until no vCPU is in guest mode with a translation of it. `caller` is a vCPU
    /// that is not inside.
    pub(super) fn unmap_window(&self, caller: usize) {
        let _ = self.memory.lock().unmap_window();
        let vcpus = &self.runners[..self.config.vcpus];
        for runner in vcpus {
            runner.flush.store(true, Ordering::SeqCst);
        }
        for (index, runner) in vcpus.iter().enumerate().filter(|(index, _)| *index != caller) {
            self.kick(index);
            // Whoever comes inside from now on has seen `flush`.
            while runner.inside.load(Ordering::SeqCst) && runner.flush.load(Ordering::SeqCst) {
                core::hint::spin_loop();
            }
        }
    }

    /// The vCPU is about to enter; whether it has to flush its translations first.
    pub(super) fn enters(&self, index: usize) -> bool {
        let runner = &self.runners[index];
        runner.inside.store(true, Ordering::SeqCst);
        // Pairs with `unmap_window`: it sees `inside`, or we see `flush`.
        runner.flush.swap(false, Ordering::SeqCst)
    }

    pub(super) fn left(&self, index: usize) {
        self.runners[index].inside.store(false, Ordering::SeqCst);
    }

    pub(super) fn set_cpu(&self, index: usize, cpu: Option<u32>) {
        self.runners[index].cpu.store(cpu.unwrap_or(Runner::NOWHERE), Ordering::SeqCst);
    }

    /// Whether the vCPU has been told to look; asking clears it.
    pub(super) fn take_request(&self, index: usize) -> bool {
        self.runners[index].requested.swap(false, Ordering::SeqCst)
    }

    pub(super) fn is_requested(&self, index: usize) -> bool {
        self.runners[index].requested.load(Ordering::SeqCst)
    }
}

/// A vCPU that no CPU has loaded.
#[expect(clippy::large_enum_variant, reason = "there is no heap, and it lies in a static")]
pub(super) enum Parked {
    VtX(vcpu::Parked),
    Svm(svm_loop::Parked),
}

impl Runner {
    const NOWHERE: u32 = u32::MAX;

    const fn new() -> Self {
        Self {
            cpu: AtomicU32::new(Self::NOWHERE),
            requested: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            leave: AtomicBool::new(false),
            parked: Mutex::new(None),
            inside: AtomicBool::new(false),
            flush: AtomicBool::new(false),
            program: Mutex::new(None),
            result: Mutex::new(None),
            exits: Mutex::new(None),
            counted: AtomicU64::new(0),
        }
    }
}

type Assignment = Mutex<Option<(&'static VirtualMachine, usize)>>;

static ASSIGNMENTS: [Assignment; smp::MAX_CPUS] = [const { Mutex::new(None) }; smp::MAX_CPUS];

/// The physical pages that the driver is to program for vCPU `index`.
pub(super) fn addresses(index: usize) -> apicv::Addresses<'static> {
    apicv::Addresses {
        virtual_apic: Some(physical(&PAGES[index])),
        apic_access: Some(physical(&APIC_ACCESS_PAGE)),
        posted_interrupt_descriptor: Some(physical(&DESCRIPTORS[index])),
        msr_bitmap: Some((&MSR_BITMAPS[index], physical(&MSR_BITMAPS[index]))),
        pid_pointer_table: None,
    }
}

pub(crate) fn msr_bitmap(index: usize) -> &'static MsrBitmap {
    &MSR_BITMAPS[index]
}

/// The page whose accesses the processor catches.
pub(crate) fn apic_access_page() -> &'static ApicPage {
    &APIC_ACCESS_PAGE
}

/// Where the guest sees the APIC page of vCPU `index` as plain memory.
pub(crate) fn silent_page(index: usize) -> u64 {
    SILENT_WINDOW + 4096 * index as u64
}

fn physical<T>(object: &'static T) -> vlapic_hal::PhysAddr {
    vlapic_hal::PhysAddr::new(address(object))
}

/// Statics of the image are mapped to themselves.
pub(super) fn address<T>(object: &'static T) -> u64 {
    core::ptr::from_ref(object).expose_provenance() as u64
}
