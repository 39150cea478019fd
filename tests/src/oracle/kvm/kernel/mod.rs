//! The kernel's side: a VM with its own interrupt controllers.

mod eoi;
mod guest;

use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MP_STATE_RUNNABLE,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SMM, KVM_X2APIC_API_USE_32BIT_IDS,
    KVM_X86_QUIRK_LINT0_REENABLED, Msrs, kvm_enable_cap, kvm_lapic_state, kvm_mp_state, kvm_msi,
    kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vlapic_core::{ApicBase, IA32_APIC_BASE, Mode, Register};

use super::operation::Size;
use super::setup::Setup;
use super::state::{Answer, Events, View};
pub(super) use eoi::WATCHED;
use eoi::Watched;
use guest::{Arguments, Command, Done, Guest};

/// Why there is no kernel to ask.
#[derive(Debug)]
pub enum Unavailable {
    /// /dev/kvm is not there or not ours to open.
    NoKvm(kvm_ioctls::Error),
    /// An ioctl that is needed failed.
    Ioctl(&'static str, kvm_ioctls::Error),
    /// The guest did something unforeseen.
    Guest(String),
}

impl core::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoKvm(error) => write!(f, "/dev/kvm cannot be opened: {error}"),
            Self::Ioctl(what, error) => write!(f, "{what}: {error}"),
            Self::Guest(what) => write!(f, "the guest: {what}"),
        }
    }
}

impl core::error::Error for Unavailable {}

/// A VM of the kernel's.
#[derive(Debug)]
pub(super) struct Kernel {
    vm: VmFd,
    vcpus: Vec<Vcpu>,
    guest: Guest,
    /// Where EOIs are seen if user space is not told of them.
    watched: Option<Watched>,
    pub(super) physical_address_bits: u8,
    /// It knows system-management mode.
    pub(super) smm: bool,
}

#[derive(Debug)]
struct Vcpu {
    fd: VcpuFd,
    /// As last read from the kernel.
    registers: Registers,
    /// Waits for a SIPI.
    waiting: bool,
    /// NMIs and SMIs that were taken while the guest ran.
    nmi: bool,
    smi: bool,
}

/// The registers of one vCPU, each at its page offset.
#[derive(Clone)]
struct Registers(kvm_lapic_state);

impl core::fmt::Debug for Registers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Registers").finish_non_exhaustive()
    }
}

fn ioctl<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, Unavailable> {
    result.map_err(|error| Unavailable::Ioctl(what, error))
}

/// Suppressed EOI broadcasts are not told to user space. Newer than the bindings.
const X2APIC_API_SUPPRESS_EOI_BROADCAST: u64 = 4;

impl Kernel {
    /// A VM as `setup` says.
    pub(super) fn new(setup: &Setup) -> Result<Self, Unavailable> {
        let kvm = Kvm::new().map_err(Unavailable::NoKvm)?;
        let vm = ioctl("KVM_CREATE_VM", kvm.create_vm())?;
        // Needed by some processors for real mode, and harmless elsewhere.
        let _ = vm.set_tss_address(0xFFFB_D000);
        let quirk = u64::from(KVM_X86_QUIRK_LINT0_REENABLED);
        enable(&vm, "KVM_CAP_DISABLE_QUIRKS", KVM_CAP_DISABLE_QUIRKS, quirk)?;
        if setup.split {
            enable(&vm, "KVM_CAP_SPLIT_IRQCHIP", KVM_CAP_SPLIT_IRQCHIP, eoi::PINS)?;
        } else {
            ioctl("KVM_CREATE_IRQCHIP", vm.create_irq_chip())?;
        }
        let ids = u64::from(KVM_X2APIC_API_USE_32BIT_IDS);
        let format = if setup.split { ids | X2APIC_API_SUPPRESS_EOI_BROADCAST } else { ids };
        enable(&vm, "KVM_CAP_X2APIC_API", KVM_CAP_X2APIC_API, format)?;
        let smm = kvm.check_extension(Cap::X86Smm);
        let guest = Guest::new(&vm)?;
        let entries = kvm_bindings::KVM_MAX_CPUID_ENTRIES;
        let cpuid = ioctl("KVM_GET_SUPPORTED_CPUID", kvm.get_supported_cpuid(entries))?;
        let widths = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
        let physical_address_bits = widths.map_or(36, |entry| entry.eax as u8);
        let vcpus = setup
            .ids
            .iter()
            .map(|&id| {
                let fd = ioctl("KVM_CREATE_VCPU", vm.create_vcpu(id.into()))?;
                let mut cpuid = cpuid.clone();
                for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
                    // x2APIC and the TSC-deadline timer.
                    entry.ecx |= 1 << 21 | 1 << 24;
                    entry.ebx = entry.ebx & 0x00FF_FFFF | id << 24;
                }
                ioctl("KVM_SET_CPUID2", fd.set_cpuid2(&cpuid))?;
                let registers = Registers(ioctl("KVM_GET_LAPIC", fd.get_lapic())?);
                Ok(Vcpu { fd, registers, waiting: true, nmi: false, smi: false })
            })
            .collect::<Result<Vec<_>, Unavailable>>()?;
        let watched = if setup.split {
            eoi::route_all(&vm)?;
            None
        } else {
            Some(Watched::new(&vm)?)
        };
        let mut kernel = Self { vm, vcpus, guest, watched, physical_address_bits, smm };
        for vcpu in 0..kernel.vcpus.len() {
            kernel.wake(vcpu)?;
            kernel.guest.start(vcpu, &kernel.vcpus[vcpu].fd)?;
            // The kernel looks for the vectors whose EOI counts when a vCPU enters its guest.
            kernel.run(vcpu, Command::Nothing, Arguments::default())?;
        }
        Ok(kernel)
    }

    /// `mode`, running, nothing latched; the page is [`store`](Self::store)'s.
    pub(super) fn reset(&mut self, vcpu: usize, base: ApicBase) -> Result<(), Unavailable> {
        if self.vcpus[vcpu].waiting {
            self.wake(vcpu)?;
            self.guest.start(vcpu, &self.vcpus[vcpu].fd)?;
        }
        self.write_ioctl(vcpu, IA32_APIC_BASE, base.bits())?;
        let _ = self.events(vcpu, false)?;
        Ok(())
    }

    fn wake(&mut self, vcpu: usize) -> Result<(), Unavailable> {
        let state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        ioctl("KVM_SET_MP_STATE", self.vcpus[vcpu].fd.set_mp_state(state))?;
        self.vcpus[vcpu].waiting = false;
        Ok(())
    }

    /// WRMSR.
    pub(super) fn write_msr(
        &mut self,
        vcpu: usize,
        msr: u32,
        value: u64,
        in_guest: bool,
    ) -> Result<Answer, Unavailable> {
        let mut answer = if in_guest {
            let arguments = Arguments { msr, value, address: 0 };
            let done = self.run(vcpu, Command::WriteMsr, arguments)?;
            Answer { fault: done.faulted, eoi: done.eoi, ..Answer::default() }
        } else {
            let fault = !self.write_ioctl(vcpu, msr, value)?;
            Answer { fault, ..Answer::default() }
        };
        if msr == IA32_APIC_BASE {
            answer.value = self.read_ioctl(vcpu, IA32_APIC_BASE)?;
        }
        self.look_for_eoi(vcpu, msr == Register::Eoi.msr(), &mut answer)?;
        Ok(answer)
    }

    /// RDMSR.
    pub(super) fn read_msr(
        &mut self,
        vcpu: usize,
        msr: u32,
        in_guest: bool,
    ) -> Result<Answer, Unavailable> {
        let value = if in_guest {
            let arguments = Arguments { msr, ..Arguments::default() };
            let done = self.run(vcpu, Command::ReadMsr, arguments)?;
            (!done.faulted).then_some(done.result)
        } else {
            self.read_ioctl(vcpu, msr)?
        };
        Ok(Answer { fault: value.is_none(), value, ..Answer::default() })
    }

    /// A store by the guest.
    pub(super) fn store_memory(
        &mut self,
        vcpu: usize,
        address: u32,
        size: Size,
        value: u32,
    ) -> Result<Answer, Unavailable> {
        let arguments = Arguments { address, value: value.into(), msr: 0 };
        let done = self.run(vcpu, Command::Store(size), arguments)?;
        let mut answer = answer(done);
        let eoi = address & 0xFFF == u32::from(Register::Eoi.offset());
        self.look_for_eoi(vcpu, eoi, &mut answer)?;
        Ok(answer)
    }

    /// A load by the guest.
    pub(super) fn load_memory(
        &mut self,
        vcpu: usize,
        address: u32,
        size: Size,
    ) -> Result<Answer, Unavailable> {
        let arguments = Arguments { address, ..Arguments::default() };
        let done = self.run(vcpu, Command::Load(size), arguments)?;
        let bits = match size {
            Size::Byte => 0xFF,
            Size::Word => 0xFFFF,
            Size::Dword => 0xFFFF_FFFF,
        };
        Ok(Answer { value: Some(done.result & bits), ..answer(done) })
    }

    /// MOV to CR8, by user space: the guest's real mode has no such register.
    pub(super) fn write_cr8(&mut self, vcpu: usize, value: u8) -> Result<Answer, Unavailable> {
        let fd = &self.vcpus[vcpu].fd;
        let mut sregs = ioctl("KVM_GET_SREGS", fd.get_sregs())?;
        sregs.cr8 = value.into();
        ioctl("KVM_SET_SREGS", fd.set_sregs(&sregs))?;
        let back = ioctl("KVM_GET_SREGS", fd.get_sregs())?.cr8;
        Ok(Answer { value: Some(back), ..Answer::default() })
    }

    /// An MSI.
    pub(super) fn msi(&self, address: u32, data: u32) -> Result<Answer, Unavailable> {
        let msi = kvm_msi { address_lo: address, data, ..Default::default() };
        // The kernel's answer where nobody is addressed is -1, which reads as EPERM.
        const EPERM: i32 = 1;
        let accepted = match self.vm.signal_msi(msi) {
            Ok(delivered) => u32::try_from(delivered).unwrap_or(0),
            Err(error) if error.errno() == EPERM => 0,
            Err(error) => return Err(Unavailable::Ioctl("KVM_SIGNAL_MSI", error)),
        };
        Ok(Answer { accepted: Some(accepted), ..Answer::default() })
    }

    /// The guest's TSC.
    pub(super) fn tsc(&self, vcpu: usize) -> Result<u64, Unavailable> {
        const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
        Ok(self.read_ioctl(vcpu, IA32_TIME_STAMP_COUNTER)?.unwrap_or(0))
    }

    /// Lets the vCPU enter its guest and come back, which is when the kernel looks at its timer.
    pub(super) fn enter(&mut self, vcpu: usize) -> Result<(), Unavailable> {
        self.run(vcpu, Command::Nothing, Arguments::default()).map(drop)
    }

    /// The words of the page, read anew; what is not in it is left out.
    pub(super) fn view(&mut self, vcpu: usize) -> Result<View, Unavailable> {
        let vcpu = &mut self.vcpus[vcpu];
        vcpu.registers = Registers(ioctl("KVM_GET_LAPIC", vcpu.fd.get_lapic())?);
        let mut words = core::array::from_fn(|slot| vcpu.registers.load(slot));
        let count = &mut words[usize::from(Register::CurrentCount.offset() >> 4)];
        *count = u32::from(*count != 0);
        let events = Events { waiting: vcpu.waiting, ..Events::default() };
        Ok(View { words, events })
    }

    /// What came beside the page since the last time, taken; `init` if an INIT may have come.
    pub(super) fn events(&mut self, vcpu: usize, init: bool) -> Result<Events, Unavailable> {
        let this = &mut self.vcpus[vcpu];
        // Asking makes the kernel carry INIT and SIPI out.
        let state = ioctl("KVM_GET_MP_STATE", this.fd.get_mp_state())?.mp_state;
        let waiting = state != KVM_MP_STATE_RUNNABLE;
        let mut events = Events { waiting, ..Events::default() };
        let was_waiting = core::mem::replace(&mut this.waiting, waiting);
        if was_waiting && !waiting {
            let sregs = ioctl("KVM_GET_SREGS", this.fd.get_sregs())?;
            events.startup = Some((sregs.cs.base >> 12) as u8);
            self.guest.start(vcpu, &this.fd)?;
        } else if init && !waiting {
            const RESET: u64 = 0xFFF0;
            if ioctl("KVM_GET_REGS", this.fd.get_regs())?.rip == RESET {
                self.guest.start(vcpu, &this.fd)?;
            }
        }
        if !waiting {
            let mut state = ioctl("KVM_GET_VCPU_EVENTS", this.fd.get_vcpu_events())?;
            events.nmi = state.nmi.pending != 0 || state.nmi.injected != 0;
            events.smi = state.smi.pending != 0;
            if events.nmi || events.smi {
                state.nmi.pending = 0;
                state.nmi.injected = 0;
                state.smi.pending = 0;
                state.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SMM;
                ioctl("KVM_SET_VCPU_EVENTS", this.fd.set_vcpu_events(&state))?;
            }
            events.nmi |= core::mem::take(&mut this.nmi);
            events.smi |= core::mem::take(&mut this.smi);
        }
        Ok(events)
    }

    /// Gives the vCPU the words of `view`, but for the current count and what the kernel keeps as
    /// its own.
    pub(super) fn store(
        &mut self,
        vcpu: usize,
        view: &View,
        mode: Mode,
    ) -> Result<(), Unavailable> {
        let this = &mut self.vcpus[vcpu];
        let registers = &mut this.registers;
        for (slot, word) in view.words.into_iter().enumerate() {
            match Register::at((slot as u16) << 4) {
                Some(Register::Version | Register::Esr) => {}
                // A count that runs at our side only begins anew at the kernel's.
                Some(Register::CurrentCount) => match (word, registers.load(slot)) {
                    (0, _) => registers.store(slot, 0),
                    (_, 0) => registers.store(slot, view.word(Register::InitialCount)),
                    _ => {}
                },
                _ => registers.store(slot, word),
            }
        }
        ioctl("KVM_SET_LAPIC", this.fd.set_lapic(&registers.0))?;
        // PPR was computed with the in-service count of before. Reading it computes it anew, and so
        // does setting everything once more.
        if mode == Mode::X2Apic {
            self.read_ioctl(vcpu, Register::Ppr.msr())?;
        } else {
            ioctl("KVM_SET_LAPIC", this.fd.set_lapic(&registers.0))?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        vcpu: usize,
        command: Command,
        arguments: Arguments,
    ) -> Result<Done, Unavailable> {
        let this = &mut self.vcpus[vcpu];
        let done = self.guest.run(vcpu, &mut this.fd, command, arguments)?;
        this.nmi |= done.nmi;
        this.smi |= done.smi;
        Ok(done)
    }

    /// Where an EOI was broadcast to, if the vCPU has just written to that register.
    fn look_for_eoi(
        &mut self,
        vcpu: usize,
        written: bool,
        answer: &mut Answer,
    ) -> Result<(), Unavailable> {
        if !written {
            return Ok(());
        }
        match &self.watched {
            Some(watched) => answer.eoi = watched.take(&self.vm)?,
            // User space is told when the vCPU next enters its guest.
            None if answer.eoi.is_none() => {
                answer.eoi = self.run(vcpu, Command::Nothing, Arguments::default())?.eoi;
            }
            None => {}
        }
        Ok(())
    }

    fn read_ioctl(&self, vcpu: usize, msr: u32) -> Result<Option<u64>, Unavailable> {
        let mut msrs = one(msr, 0);
        let done = ioctl("KVM_GET_MSRS", self.vcpus[vcpu].fd.get_msrs(&mut msrs))?;
        Ok((done == 1).then(|| msrs.as_slice()[0].data))
    }

    fn write_ioctl(&self, vcpu: usize, msr: u32, value: u64) -> Result<bool, Unavailable> {
        Ok(ioctl("KVM_SET_MSRS", self.vcpus[vcpu].fd.set_msrs(&one(msr, value)))? == 1)
    }
}

const fn answer(done: Done) -> Answer {
    Answer {
        fault: done.faulted,
        value: None,
        accepted: None,
        eoi: done.eoi,
        outside: done.outside,
    }
}

fn enable(vm: &VmFd, what: &'static str, cap: u32, argument: u64) -> Result<(), Unavailable> {
    let mut request = kvm_enable_cap { cap, ..Default::default() };
    request.args[0] = argument;
    ioctl(what, vm.enable_cap(&request))
}

impl Registers {
    fn load(&self, slot: usize) -> u32 {
        let bytes: [i8; 4] = core::array::from_fn(|index| self.0.regs[slot * 16 + index]);
        u32::from_le_bytes(bytes.map(|byte| byte as u8))
    }

    /// With nothing behind the word: an x2APIC's ICR leaves its upper half there.
    fn store(&mut self, slot: usize, value: u32) {
        let place = &mut self.0.regs[slot * 16..slot * 16 + 16];
        place.fill(0);
        for (place, byte) in place.iter_mut().zip(value.to_le_bytes()) {
            *place = byte as i8;
        }
    }
}

fn one(index: u32, data: u64) -> Msrs {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry]).unwrap_or_else(|_| unreachable!("one entry always fits"))
}
