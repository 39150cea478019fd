//! VMX exits that say anything, posts that hardware makes, and pages that anybody stores to.

use std::sync::atomic::Ordering;

use apicv::reason::{APIC_ACCESS, APIC_WRITE, TPR_BELOW_THRESHOLD, VIRTUALIZED_EOI};
use apicv::{Capabilities, Exit, Feature, Features, Posting, Vcpu, Wanted, check};
use arbitrary::{Arbitrary, Result, Unstructured};
use vlapic_core::{EntryInput, ExitOutcome, Mode, Next, Notify, Register, Slot, SvrWrites, Vm};

use super::OPERATIONS;
use super::plain::{Op, apply, value};
use crate::hypervisor::{Config, Level, Storage, VECTORS, prepared_region};
use crate::model::{VmcsRegion, field};

const VCPUS: usize = 2;
/// The CPUs that the vCPUs are on: their physical APIC IDs are 0 to 3.
const CPUS: u32 = 4;

/// Two vCPUs with the driver and a VMCS each: any sequence of exits with any qualification, entries, configurations, and
/// stores by nobody to page and descriptor. What the driver leaves in the VMCS passes VM entry's checks, injects no
/// vector below 16, lets no guest access reach a physical APIC, and names nobody else's page or descriptor.
pub fn vmx(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

struct Vcpus<'m> {
    vm: Vm<'m, Posting<'m>>,
    storage: &'m Storage,
    capabilities: Capabilities,
    vcpus: [(Vcpu<'m>, VmcsRegion); VCPUS],
    now: u64,
}

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut config = Config::new(Level::Emulated).vcpus(VCPUS);
    let choice = u8::arbitrary(bytes)?;
    config.profile = config
        .profile
        .with_writable_xapic_id(choice & 1 != 0)
        .with_cmci(choice & 2 != 0)
        .with_x2apic(choice & 4 == 0);
    if choice & 8 != 0 {
        config.host = apicv::HostMode::X2Apic;
    }
    let storage = Storage::new(VCPUS);
    let slots: Vec<Slot<'_, Posting<'_>>> = storage.slots(&config);
    let Ok(vm) = Vm::new(&slots) else { unreachable!("IDs ascend") };
    let Ok(capabilities) = Capabilities::detect(&config.processor) else {
        unreachable!("a processor with VMX")
    };
    let vcpus = [0, 1].map(|index| {
        let mut vcpu = Vcpu::new(&slots[index], index == 0);
        vcpu.apic_mut().bind_upcall(&storage.pending[index]);
        (vcpu, prepared_region(&config))
    });
    let mut subject = Vcpus { vm, storage: &storage, capabilities, vcpus, now: 1000 };
    for _ in 0..OPERATIONS {
        if bytes.is_empty() {
            break;
        }
        subject.step(bytes)?;
    }
    Ok(())
}

impl Vcpus<'_> {
    fn step(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let choice = u8::arbitrary(bytes)?;
        let index = usize::from(choice & 1);
        match choice >> 1 & 15 {
            0..=2 => self.exit(index, bytes)?,
            3..=5 => self.enter(index, bytes)?,
            6 => {
                let offset = u16::arbitrary(bytes)? & 0x7ff;
                self.page(index).store(offset, value(bytes)? as u32);
            }
            7 => {
                // VT-d, or another vCPU by IPI virtualization: PIR, and maybe ON.
                let words = self.storage.descriptor(index).words();
                let at = usize::from(u8::arbitrary(bytes)? & 7) % 5;
                let bits = if at == 4 { 1 } else { value(bytes)? };
                words[at].fetch_or(bits, Ordering::SeqCst);
            }
            8 => self.configure(index, bytes)?,
            9 => {
                let (vcpu, vmcs) = &mut self.vcpus[index];
                match u8::arbitrary(bytes)? & 7 {
                    // What the processor does to the VMCS.
                    0 => vmcs.set(field::GUEST_INTERRUPT_STATUS, u16::arbitrary(bytes)?.into()),
                    1 => vmcs.set(field::ENTRY_INTERRUPTION_INFO, 0),
                    2 => vcpu.set_svr_writes(SvrWrites::Silent { recheck: u64::arbitrary(bytes)? }),
                    3 => vcpu.set_svr_writes(SvrWrites::Interceptable),
                    4 => vcpu.set_external_interrupt_window(bool::arbitrary(bytes)?),
                    5 => self.vm.slots()[index].inbox().preempt(),
                    6 => {
                        let input = self.input(bytes)?;
                        let _ = self.vcpus[index].0.block(input);
                    }
                    _ => {
                        let vector = vlapic_core::Vector::new(u8::arbitrary(bytes)?);
                        let posting = self.vm.slots()[index].inbox();
                        if let Some(vector) = vector {
                            posting.set_level_route(vector, bool::arbitrary(bytes)?);
                        }
                    }
                }
            }
            _ => {
                let op = Op::take_any(bytes)?;
                let (vm, pending) = (self.vm, &self.storage.pending[index]);
                let apic = self.vcpus[index].0.apic_mut();
                apply(&vm, apic, index, pending, &mut self.now, op, &mut told);
            }
        }
        Ok(())
    }

    fn page(&self, index: usize) -> &vlapic_core::ApicPage {
        self.vm.slots()[index].page()
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

    fn exit(&mut self, index: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
        let kind = u8::arbitrary(bytes)?;
        let reason = match kind & 7 {
            0 => TPR_BELOW_THRESHOLD,
            1 => APIC_ACCESS,
            2 | 3 => VIRTUALIZED_EOI,
            4 => u16::arbitrary(bytes)?,
            _ => APIC_WRITE,
        };
        let wide = value(bytes)?;
        let qualification = if kind & 0x80 == 0 { wide & 0x7ff } else { wide };
        let (vcpu, _) = &mut self.vcpus[index];
        match vcpu.after_exit(Exit { reason, qualification }, self.now) {
            ExitOutcome::Done(vlapic_core::Effect::Ipi(message)) => {
                super::plain::send(&self.vm, &message, Some(index), &mut told);
            }
            ExitOutcome::Decode(access) => assert!(access.offset < 0x1000, "outside the window"),
            _ => {}
        }
        Ok(())
    }

    fn configure(&mut self, index: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
        let bits = u8::arbitrary(bytes)?;
        let chosen = Feature::ALL.into_iter().filter(|&feature| bits & 1 << feature as u8 != 0);
        let wanted = Wanted::from(chosen.collect::<Features>());
        let addresses = self.storage.addresses(index);
        let (vcpu, vmcs) = &mut self.vcpus[index];
        let granted = vcpu.configure(vmcs, &self.capabilities, wanted, &addresses);
        assert!(granted.is_ok(), "{granted:?}");
        Ok(())
    }

    fn enter(&mut self, index: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
        let input = self.input(bytes)?;
        let (vcpu, vmcs) = &mut self.vcpus[index];
        let Ok(entry) = vcpu.before_entry(vmcs, input) else { unreachable!("the VMCS is there") };
        if entry.next != Next::Enter {
            assert_eq!(entry.injected, None, "an injection without an entry");
            let _ = vcpu.apic_mut().take_event();
            return Ok(());
        }
        if let Some(vector) = entry.injected {
            assert!(vector.get() >= 16 && input.interruptible, "{vector} is injected");
        }
        self.check(index);
        // The entry delivers what was to be injected.
        self.vcpus[index].1.set(field::ENTRY_INTERRUPTION_INFO, 0);
        Ok(())
    }

    /// What must be right at every entry.
    fn check(&self, index: usize) {
        let (vcpu, vmcs) = &self.vcpus[index];
        let checked = check(vmcs, &self.capabilities, self.page(index));
        assert_eq!(checked, Ok(()), "vCPU {index}");
        let injected = vmcs.get(field::ENTRY_INTERRUPTION_INFO);
        assert!(injected >> 31 == 0 || injected & 0xff >= 16, "{injected:#x} is injected");
        if vcpu.features().contains(Feature::VirtualInterruptDelivery)
            && self.vm.slots()[index].mode() != Mode::Disabled
        {
            let status = vmcs.get(field::GUEST_INTERRUPT_STATUS);
            let legal = [status & 0xff, status >> 8].map(|vector| vector == 0 || vector >= 16);
            assert_eq!(legal, [true; 2], "RVI and SVI {status:#x}");
        }
        if vcpu.features().contains(Feature::TprShadow) {
            assert_eq!(vmcs.get(0x2012), Storage::page_address(index), "another's page");
        }
        if vcpu.features().contains(Feature::PostedInterrupts) {
            assert_eq!(
                vmcs.get(0x2016),
                Storage::descriptor_address(index),
                "another's descriptor"
            );
        }
        self.check_bitmap(index);
    }

    /// A guest's WRMSR that is not intercepted goes to the physical APIC, but for the few that are virtualized.
    fn check_bitmap(&self, index: usize) {
        let bitmap = self.storage.bitmap(index);
        let x2apic = self.vm.slots()[index].mode() == Mode::X2Apic;
        for msr in 0x800..0x900 {
            let virtualized = matches!(msr, 0x808 | 0x80b | 0x830 | 0x83f) && x2apic;
            assert!(virtualized || bitmap.intercepts_write(msr), "WRMSR {msr:#x}");
            let readable = Register::from_msr(msr).is_some_and(|register| {
                !matches!(register, Register::CurrentCount | Register::Eoi | Register::SelfIpi)
            });
            assert!(readable && x2apic || bitmap.intercepts_read(msr), "RDMSR {msr:#x}");
        }
        for msr in [0x1b, 0x6e0] {
            assert!(bitmap.intercepts_read(msr) && bitmap.intercepts_write(msr), "MSR {msr:#x}");
        }
    }
}

/// Only the host's own vectors, only to CPUs that a vCPU has been on.
fn told(target: usize, notify: Notify) {
    assert!(target < VCPUS, "vCPU {target}");
    match notify {
        Notify::Interrupt { vector, destination } => {
            let known = vector == VECTORS.running || vector == VECTORS.wakeup;
            assert!(known && destination < CPUS, "{vector:#x} to CPU {destination:#x}");
        }
        Notify::Doorbell { .. } => unreachable!("not on this processor"),
        _ => {}
    }
}
