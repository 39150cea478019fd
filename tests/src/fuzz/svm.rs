//! VMCBs that say anything after an exit, and backing pages that anybody stores to.

use arbitrary::{Arbitrary, Result, Unstructured};
use avic::{
    Backing, Capabilities, Exit, Feature, Features, Host, LogicalPage, MsrPermissions,
    PhysicalPage, Resources, Shared, Storage, Vcpu, Vmcb, VmcbPage, Wanted, Window, check,
};
use vlapic_core::{
    Effect, EntryInput, ExitOutcome, Mode, Next, Notify, Profile, Register, Slot, SvrWrites, Vm,
};
use vlapic_hal::Translate;
use vlapic_hal::fake::VirtualIsPhysical;

use super::OPERATIONS;
use super::plain::{Memory, Op, apply, send, value};
use crate::avic_model::Capability;

const VCPUS: usize = 2;
/// The CPUs that the vCPUs are on: their physical APIC IDs are 0 to 3.
const CPUS: u32 = 4;

const INTERRUPT_CONTROL: u16 = 0x060;
const EXIT_CODE: u16 = 0x070;
const INFO_1: u16 = 0x078;
const INFO_2: u16 = 0x080;
const EVENT_INJECTION: u16 = 0x0a8;

/// Two vCPUs with the driver and a VMCB each: any sequence of exits that say anything, entries, configurations, and
/// stores by nobody to the pages. What the driver leaves in the VMCB passes VMRUN's checks, injects no vector below 16,
/// lets no guest access reach a physical APIC, and the tables name this VM's pages, vCPUs and CPUs only.
pub fn svm(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

struct Vcpus<'m> {
    memory: &'m Memory<VCPUS>,
    shared: &'m Shared<'m>,
    window: &'m Window,
    permissions: &'m [MsrPermissions; VCPUS],
    capabilities: Capabilities,
    vcpus: [(Vcpu<'m>, VmcbPage); VCPUS],
    now: u64,
}

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let choice = u8::arbitrary(bytes)?;
    let profile = Profile::amd()
        .with_writable_xapic_id(choice & 1 != 0)
        .with_x2apic(choice & 2 == 0)
        .with_extended_space(choice & 4 == 0);
    let memory = Memory::<VCPUS>::new();
    let slots =
        [0, 1].map(|index| Slot::new(&memory.pages[index], index as u32, profile, Backing::new()));
    let Ok(vm) = Vm::new(&slots) else { unreachable!("IDs ascend") };
    let (physical, logical) = ([PhysicalPage::new()], LogicalPage::new());
    let tables = Storage { physical: &physical, logical: &logical, routes: &[] };
    let Ok(shared) = Shared::new(vm, tables, &VirtualIsPhysical) else {
        unreachable!("memory with addresses")
    };
    let (window, permissions) = (Window::new(), [const { MsrPermissions::new() }; VCPUS]);
    let vcpus = [0, 1].map(|index| {
        let Some(mut vcpu) = Vcpu::new(&shared, index, index == 0) else {
            unreachable!("a slot of the VM")
        };
        vcpu.apic_mut().bind_upcall(&memory.pending[index]);
        (vcpu, prepared())
    });
    let mut subject = Vcpus {
        memory: &memory,
        shared: &shared,
        window: &window,
        permissions: &permissions,
        capabilities: Capabilities::detect(&Capability::full()),
        vcpus,
        now: 1000,
    };
    subject.configure(0, 0xff);
    subject.configure(1, 0xff);
    for _ in 0..OPERATIONS {
        if bytes.is_empty() {
            break;
        }
        subject.step(bytes)?;
    }
    Ok(())
}

/// A VMCB as a hypervisor has it: an ASID, nested paging, HLT, interrupts and MSR accesses exit.
fn prepared() -> VmcbPage {
    let mut vmcb = VmcbPage::new();
    vmcb.store(0x008, (1 << 28 | 1 << 24 | 3) << 32);
    vmcb.store(0x010, 1);
    vmcb.store(0x048, 0x3000);
    vmcb.store(0x058, 1);
    vmcb.store(0x090, 1);
    vmcb
}

impl<'m> Vcpus<'m> {
    fn step(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let choice = u8::arbitrary(bytes)?;
        let index = usize::from(choice & 1);
        match choice >> 1 & 15 {
            0..=3 => self.exit(index, bytes)?,
            4..=6 => self.enter(index, bytes)?,
            7 => {
                let offset = u16::arbitrary(bytes)? & 0x7ff;
                self.memory.pages[index].store(offset, value(bytes)? as u32);
            }
            8 => {
                let bits = u8::arbitrary(bytes)?;
                self.configure(index, bits);
            }
            9 => {
                let (vcpu, _) = &mut self.vcpus[index];
                match u8::arbitrary(bytes)? & 7 {
                    0 => vcpu.set_svr_writes(SvrWrites::Silent { recheck: u64::arbitrary(bytes)? }),
                    1 => vcpu.set_external_interrupt_window(bool::arbitrary(bytes)?),
                    2 => vcpu.preempt(),
                    3 => {
                        let input = self.input(bytes)?;
                        let _ = self.vcpus[index].0.block(input);
                    }
                    4 => vcpu.state_replaced(),
                    5 => {
                        let _ = self.window.map();
                    }
                    6 => self.window.unmapped(),
                    _ => {
                        let reason = *bytes.choose(avic::Inhibit::ALL)?;
                        let backing = self.shared.vm().slots()[index].inbox();
                        if bool::arbitrary(bytes)? {
                            told(index, backing.inhibit(reason));
                        } else {
                            backing.allow(reason);
                        }
                    }
                }
            }
            _ => {
                let op = Op::take_any(bytes)?;
                let (vm, pending) = (self.shared.vm(), &self.memory.pending[index]);
                let apic = self.vcpus[index].0.apic_mut();
                apply(&vm, apic, index, pending, &mut self.now, op, &mut told);
            }
        }
        Ok(())
    }

    fn input(&self, bytes: &mut Unstructured<'_>) -> Result<EntryInput> {
        let bits = u8::arbitrary(bytes)?;
        Ok(EntryInput {
            now: self.now,
            cpu: u32::from(bits) % CPUS,
            interruptible: bits & 0x80 != 0,
            injecting: bits & 0x60 == 0x60,
        })
    }

    fn configure(&mut self, index: usize, bits: u8) {
        let chosen = Feature::ALL.into_iter().filter(|&feature| bits & 1 << feature as u8 != 0);
        let wanted = Wanted::from(chosen.collect::<Features>());
        let resources = Resources {
            host: Host::new(),
            msr_permissions: &self.permissions[index],
            window: self.window,
            private_asid: bits & 0x80 != 0,
        };
        let (vcpu, vmcb) = &mut self.vcpus[index];
        let _ = vcpu.configure(vmcb, &self.capabilities, wanted, resources);
    }

    /// An exit that says anything: code, both words of information, and in 060 what the processor writes back.
    fn exit(&mut self, index: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
        let kind = u8::arbitrary(bytes)?;
        let (vcpu, vmcb) = &mut self.vcpus[index];
        let code = match kind & 7 {
            0 => value(bytes)?,
            1..=3 => 0x401,
            _ => 0x402,
        };
        vmcb.store(EXIT_CODE, code);
        vmcb.store(INFO_1, value(bytes)?);
        vmcb.store(INFO_2, value(bytes)?);
        if kind & 8 != 0 {
            const WRITTEN_BACK: u64 = 0xff | 1 << 8 | 3 << 11;
            let word = vmcb.load(INTERRUPT_CONTROL) & !WRITTEN_BACK;
            vmcb.store(INTERRUPT_CONTROL, word | value(bytes)? & WRITTEN_BACK & !0xf0);
        }
        let exit = Exit::of(vmcb);
        match vcpu.after_exit(vmcb, exit, self.now) {
            ExitOutcome::Done(Effect::Ipi(message)) => {
                send(&self.shared.vm(), &message, Some(index), &mut told);
            }
            ExitOutcome::Done(Effect::Announce(message)) => {
                for (target, notify) in
                    self.shared.vm().announce(message.destination(), Some(index))
                {
                    told(target, notify);
                }
            }
            ExitOutcome::Decode(access) => assert!(access.offset < 0x1000, "outside the window"),
            ExitOutcome::Msr { msr, .. } => assert!((0x800..0x900).contains(&msr), "{msr:#x}"),
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, index: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
        let input = self.input(bytes)?;
        for _ in 0..8 {
            let (vcpu, vmcb) = &mut self.vcpus[index];
            let Ok(entry) = vcpu.before_entry(vmcb, input);
            if let Some(vector) = entry.injected {
                assert!(vector.get() >= 16 && input.interruptible, "{vector} is injected");
            }
            match entry.next {
                Next::Enter => {
                    self.check(index);
                    self.vcpus[index].1.store(EVENT_INJECTION, 0);
                    return Ok(());
                }
                Next::TakeEvent => {
                    let _ = self.vcpus[index].0.apic_mut().take_event();
                }
                Next::UnmapWindow => self.window.unmapped(),
                Next::KickOthers => {}
                _ => return Ok(()),
            }
        }
        unreachable!("vCPU {index} does not get to enter");
    }

    /// What must be right at every entry.
    fn check(&self, index: usize) {
        let (_, vmcb) = &self.vcpus[index];
        assert_eq!(check(vmcb, &self.capabilities), Ok(()), "vCPU {index}");
        let injected = vmcb.load(EVENT_INJECTION);
        assert!(injected >> 31 & 1 == 0 || injected & 0xff >= 16, "{injected:#x} is injected");
        for id in 0..512 {
            let target = self.shared.physical().entry(id).decode();
            let Some(target) = target else { continue };
            let page = self.memory.pages.get(id as usize);
            let own = page.and_then(|page| VirtualIsPhysical.physical_address(page));
            assert_eq!(Some(target.backing_page), own, "entry {id} names another's page");
            let here = !target.running || u32::from(target.host_apic_id) < CPUS;
            assert!(here, "entry {id} names CPU {}", target.host_apic_id);
        }
        for offset in (0..0x1000).step_by(4) {
            let id = self.shared.logical().entry(offset).guest_apic_id();
            assert!(id.is_none_or(|id| usize::from(id) < VCPUS), "{offset:#x} names vCPU {id:?}");
        }
        self.check_permissions(index);
    }

    /// A guest's WRMSR that is not intercepted goes to the physical APIC, but for those that x2AVIC has.
    fn check_permissions(&self, index: usize) {
        let permissions = &self.permissions[index];
        let vmcb = &self.vcpus[index].1;
        let x2avic = vmcb.load(INTERRUPT_CONTROL) >> 30 & 3 == 3;
        assert!(!x2avic || self.shared.vm().slots()[index].mode() == Mode::X2Apic, "x2AVIC");
        for msr in 0x800..0x900 {
            let named = Register::from_msr(msr).is_some();
            let write = permissions.intercepts_write(msr);
            assert!(write || x2avic && named, "WRMSR {msr:#x}");
            let read = permissions.intercepts_read(msr);
            assert!(read || x2avic && named, "RDMSR {msr:#x}");
        }
    }
}

/// Doorbells only to CPUs that a vCPU has been on.
fn told(target: usize, notify: Notify) {
    assert!(target < VCPUS, "vCPU {target}");
    match notify {
        Notify::Doorbell { destination } => assert!(destination < CPUS, "CPU {destination:#x}"),
        Notify::Interrupt { .. } => unreachable!("not on this processor"),
        _ => {}
    }
}
