//! What a VMCS holds before the first entry: controls, host state, guest state.

use x86::dtables::{self, DescriptorTablePointer};
use x86::msr::{self, rdmsr};
use x86::vmx::vmcs::control::{
    self, EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls,
};
use x86::vmx::vmcs::{guest, host};
use x86::{controlregs, segmentation, task};

use super::vcpu::Current;
use super::vmcs::Fields;
use super::{Capability, VmxError};
use crate::guest::Start;

/// What a hypervisor chooses for a vCPU at its making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// HLT exits. Without it a halted guest waits in the processor; Bochs then misses what should wake it (defect D1).
    pub(crate) hlt_exiting: bool,
    /// MOV to and from CR8 exit. Without it, and without TPR shadow, the guest would move the host's own TPR.
    pub(crate) cr8_exiting: bool,
    /// The guest may run in real mode: needed by [`Current::start_at_sipi`].
    pub(crate) unrestricted: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { hlt_exiting: true, cr8_exiting: true, unrestricted: false }
    }
}

/// Writes the controls with every APIC feature off: the APIC driver switches on what it negotiates.
pub(super) fn write_controls(
    vmcs: &mut Fields,
    capability: &Capability,
    ept_pointer: u64,
    msr_bitmap: u64,
    options: Options,
) -> Result<(), VmxError> {
    let when = |on: bool, bits: u32| if on { bits } else { 0 };
    // Without virtual NMIs, an NMI injected into a guest whose NMIs exit would stay blocked (SDM Vol. 3C 26.3, IRET).
    let pin = PinbasedControls::VIRTUAL_NMIS
        | PinbasedControls::EXTERNAL_INTERRUPT_EXITING
        | PinbasedControls::NMI_EXITING;
    let primary = (PrimaryControls::USE_MSR_BITMAPS | PrimaryControls::SECONDARY_CONTROLS).bits()
        | when(options.hlt_exiting, PrimaryControls::HLT_EXITING.bits())
        | when(
            options.cr8_exiting,
            (PrimaryControls::CR8_LOAD_EXITING | PrimaryControls::CR8_STORE_EXITING).bits(),
        );
    let secondary = SecondaryControls::ENABLE_EPT.bits()
        | when(options.unrestricted, SecondaryControls::UNRESTRICTED_GUEST.bits());
    let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE
        | ExitControls::ACK_INTERRUPT_ON_EXIT
        | ExitControls::SAVE_IA32_EFER
        | ExitControls::LOAD_IA32_EFER;
    let entry = EntryControls::IA32E_MODE_GUEST | EntryControls::LOAD_IA32_EFER;
    let words = [
        (control::PINBASED_EXEC_CONTROLS, capability.pin.word(pin.bits(), 0)?),
        (control::PRIMARY_PROCBASED_EXEC_CONTROLS, capability.primary.word(primary, 0)?),
        (control::SECONDARY_PROCBASED_EXEC_CONTROLS, capability.secondary.word(secondary, 0)?),
        (control::VMEXIT_CONTROLS, capability.exit.word(exit.bits(), 0)?),
        (control::VMENTRY_CONTROLS, capability.entry.word(entry.bits(), 0)?),
    ];
    words.iter().try_for_each(|&(field, word)| vmcs.set(field, u64::from(word)))?;
    vmcs.set_all(&[
        (control::EXCEPTION_BITMAP, 0),
        (control::PAGE_FAULT_ERR_CODE_MASK, 0),
        (control::PAGE_FAULT_ERR_CODE_MATCH, 0),
        (control::CR3_TARGET_COUNT, 0),
        (control::VMEXIT_MSR_STORE_COUNT, 0),
        (control::VMEXIT_MSR_LOAD_COUNT, 0),
        (control::VMENTRY_MSR_LOAD_COUNT, 0),
        (control::VMENTRY_INTERRUPTION_INFO_FIELD, 0),
        (control::TSC_OFFSET_FULL, 0),
        (control::MSR_BITMAPS_ADDR_FULL, msr_bitmap),
        (control::EPTP_FULL, ept_pointer),
        (guest::LINK_PTR_FULL, u64::MAX),
    ])
}

/// Writes the state that a VM exit loads: this CPU, as it is now. RSP and RIP follow at each entry.
pub(super) fn write_host(vmcs: &mut Fields) -> Result<(), VmxError> {
    let mut gdt = DescriptorTablePointer::<u64>::default();
    // SAFETY: SGDT stores into the local variable.
    unsafe { dtables::sgdt(&mut gdt) };
    let mut idt = DescriptorTablePointer::<u64>::default();
    // SAFETY: SIDT stores into the local variable.
    unsafe { dtables::sidt(&mut idt) };
    // SAFETY: STR has no side effects.
    let task = unsafe { task::tr() }.bits();
    // SAFETY: CPL 0; reading control registers has no side effects.
    let cr0 = unsafe { controlregs::cr0() }.bits() as u64;
    // SAFETY: as above.
    let cr3 = unsafe { controlregs::cr3() };
    // SAFETY: as above.
    let cr4 = unsafe { controlregs::cr4() }.bits() as u64;
    // RPL and TI must be 0 in host selectors (SDM Vol. 3C 27.2.3); they are for a kernel's.
    vmcs.set_all(&[
        (host::ES_SELECTOR, u64::from(segmentation::es().bits())),
        (host::CS_SELECTOR, u64::from(segmentation::cs().bits())),
        (host::SS_SELECTOR, u64::from(segmentation::ss().bits())),
        (host::DS_SELECTOR, u64::from(segmentation::ds().bits())),
        (host::FS_SELECTOR, u64::from(segmentation::fs().bits())),
        (host::GS_SELECTOR, u64::from(segmentation::gs().bits())),
        (host::TR_SELECTOR, u64::from(task)),
        (host::FS_BASE, register(msr::IA32_FS_BASE)),
        (host::GS_BASE, register(msr::IA32_GS_BASE)),
        (host::TR_BASE, task_base(gdt.base.addr(), task)),
        (host::GDTR_BASE, gdt.base.addr() as u64),
        (host::IDTR_BASE, idt.base.addr() as u64),
        (host::IA32_SYSENTER_CS, 0),
        (host::IA32_SYSENTER_ESP, 0),
        (host::IA32_SYSENTER_EIP, 0),
        (host::IA32_EFER_FULL, register(msr::IA32_EFER)),
        (host::CR0, cr0),
        (host::CR3, cr3),
        (host::CR4, cr4),
    ])
}

/// Access rights of segment registers (SDM Vol. 3C 25.4.1), and the CR0 and CR4 bits that VMX keeps at 1.
const CODE_64: u64 = 0xa09b;
const DATA: u64 = 0xc093;
const REAL_CODE: u64 = 0x9b;
const REAL_DATA: u64 = 0x93;
const BUSY_TASK: u64 = 0x8b;
const LDT: u64 = 0x82;
const UNUSABLE: u64 = 1 << 16;
const CR0_NE: u64 = 1 << 5;
const CR0_ET: u64 = 1 << 4;
const CR4_VMXE: u64 = 1 << 13;

impl Current<'_> {
    /// Makes the next entry start `start` in 64-bit mode, on the page tables of the host, interrupts off.
    pub(crate) fn start(&mut self, start: &Start) -> Result<(), VmxError> {
        // SAFETY: CPL 0; reading control registers has no side effects.
        let cr0 = unsafe { controlregs::cr0() }.bits() as u64;
        // SAFETY: as above.
        let cr3 = unsafe { controlregs::cr3() };
        // SAFETY: as above.
        let cr4 = unsafe { controlregs::cr4() }.bits() as u64;
        self.write_common()?;
        self.write_long_mode_entry(true)?;
        self.vmcs.set_all(&[
            (guest::CR0, cr0),
            (guest::CR3, cr3),
            (guest::CR4, cr4),
            (control::CR0_READ_SHADOW, cr0),
            (control::CR4_READ_SHADOW, cr4 & !CR4_VMXE),
            (guest::IA32_EFER_FULL, register(msr::IA32_EFER)),
            (guest::CS_SELECTOR, u64::from(Start::CODE_SELECTOR)),
            (guest::CS_BASE, 0),
            (guest::CS_LIMIT, 0xffff_ffff),
            (guest::CS_ACCESS_RIGHTS, CODE_64),
            (guest::LDTR_ACCESS_RIGHTS, UNUSABLE),
            (guest::TR_SELECTOR, u64::from(Start::TASK_SELECTOR)),
            (guest::TR_BASE, start.task),
            (guest::TR_LIMIT, 0x67),
            (guest::GDTR_BASE, start.gdt),
            (guest::GDTR_LIMIT, u64::from(start.gdt_limit)),
            (guest::IDTR_BASE, start.idt),
            (guest::IDTR_LIMIT, u64::from(start.idt_limit)),
            (guest::RIP, start.rip),
        ])?;
        self.write_data_segments(u64::from(Start::DATA_SELECTOR), 0xffff_ffff, DATA)?;
        self.vmcs.set(guest::GS_BASE, start.gs_base)?;
        *self.general() = start.registers;
        Ok(())
    }

    /// Makes the next entry start in real mode at `vector << 12`: what a startup IPI does after INIT (SDM Vol. 3A
    /// Table 11-1, Vol. 3B "MP initialization"). Needs [`Options::unrestricted`].
    pub(crate) fn start_at_sipi(&mut self, vector: u8) -> Result<(), VmxError> {
        let code = u64::from(vector) << 12;
        self.write_common()?;
        self.write_long_mode_entry(false)?;
        self.vmcs.set_all(&[
            (guest::CR0, CR0_NE | CR0_ET),
            (guest::CR3, 0),
            (guest::CR4, CR4_VMXE),
            (control::CR0_READ_SHADOW, CR0_ET),
            (control::CR4_READ_SHADOW, 0),
            (guest::IA32_EFER_FULL, 0),
            (guest::CS_SELECTOR, code >> 4),
            (guest::CS_BASE, code),
            (guest::CS_LIMIT, 0xffff),
            (guest::CS_ACCESS_RIGHTS, REAL_CODE),
            (guest::LDTR_ACCESS_RIGHTS, LDT),
            (guest::TR_SELECTOR, 0),
            (guest::TR_BASE, 0),
            (guest::TR_LIMIT, 0xffff),
            (guest::GDTR_BASE, 0),
            (guest::GDTR_LIMIT, 0xffff),
            (guest::IDTR_BASE, 0),
            (guest::IDTR_LIMIT, 0xffff),
            (guest::RIP, 0),
        ])?;
        self.write_data_segments(0, 0xffff, REAL_DATA)?;
        *self.general() = [0; 16];
        Ok(())
    }

    /// What both ways to start have in common.
    fn write_common(&mut self) -> Result<(), VmxError> {
        self.vmcs.set_all(&[
            (control::CR0_GUEST_HOST_MASK, CR0_NE),
            (control::CR4_GUEST_HOST_MASK, CR4_VMXE),
            (control::VMENTRY_INTERRUPTION_INFO_FIELD, 0),
            (guest::LDTR_SELECTOR, 0),
            (guest::LDTR_BASE, 0),
            (guest::LDTR_LIMIT, 0xffff),
            (guest::TR_ACCESS_RIGHTS, BUSY_TASK),
            (guest::DR7, 0x400),
            (guest::IA32_DEBUGCTL_FULL, 0),
            (guest::RFLAGS, 2),
            (guest::INTERRUPTIBILITY_STATE, 0),
            (guest::ACTIVITY_STATE, 0),
            (guest::PENDING_DBG_EXCEPTIONS, 0),
            (guest::IA32_SYSENTER_CS, 0),
            (guest::IA32_SYSENTER_ESP, 0),
            (guest::IA32_SYSENTER_EIP, 0),
        ])
    }

    fn write_data_segments(
        &mut self,
        selector: u64,
        limit: u64,
        rights: u64,
    ) -> Result<(), VmxError> {
        // ES, SS, DS, FS and GS stand in this order in each group of fields, with CS between ES and SS.
        for index in [0, 2, 3, 4, 5] {
            self.vmcs.set_all(&[
                (guest::ES_SELECTOR + 2 * index, selector),
                (guest::ES_LIMIT + 2 * index, limit),
                (guest::ES_ACCESS_RIGHTS + 2 * index, rights),
                (guest::ES_BASE + 2 * index, 0),
            ])?;
        }
        Ok(())
    }

    fn write_long_mode_entry(&mut self, on: bool) -> Result<(), VmxError> {
        let bit = EntryControls::IA32E_MODE_GUEST.bits();
        self.vmcs.assign(control::VMENTRY_CONTROLS, bit, on)
    }
}

/// The base in the 64-bit TSS descriptor that `selector` names.
fn task_base(gdt: usize, selector: u16) -> u64 {
    let descriptor = (gdt + usize::from(selector & !7)) as *const u64;
    // SAFETY: the task register holds the selector, so the GDT has this 16-byte descriptor (SDM Vol. 3A 8.2.3).
    let low = unsafe { descriptor.read() };
    // SAFETY: as above; the second half.
    let high = unsafe { descriptor.wrapping_add(1).read() };
    low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32
}

/// Reads one of the MSRs named above.
fn register(number: u32) -> u64 {
    // SAFETY: CPL 0; EFER, FS base and GS base exist in 64-bit mode and reading them has no side effects.
    unsafe { rdmsr(number) }
}
