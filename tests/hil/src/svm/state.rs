//! What a control block holds before the first entry: controls and guest state.

use x86::controlregs;
use x86::msr::{IA32_EFER, IA32_PAT};

use super::capability::SVME;
use super::vcpu::Current;
use super::vmcb::{Save, Segment, Vmcb, intercept, virtual_interrupt};
use crate::guest::Start;
use crate::machine::msr;

/// What a hypervisor chooses for a vCPU at its making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// HLT exits. Without it a halted guest waits in the processor.
    pub(crate) hlt_exiting: bool,
    /// MOV to and from CR8 exit. Without it the guest's accesses go to V_TPR; then nothing may be requested through V_IRQ:
    /// QEMU aborts on a write of CR8 while such a request waits.
    pub(crate) cr8_exiting: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { hlt_exiting: true, cr8_exiting: true }
    }
}

/// Bit 8 of a word of control-register intercepts.
const CR8: u16 = 1 << 8;

/// Writes the controls with AVIC off: the APIC driver switches on what it negotiates.
pub(super) fn write_controls(
    vmcb: &mut Vmcb,
    nested_cr3: u64,
    msr_permissions: u64,
    options: Options,
) {
    let control = &mut vmcb.control;
    let when = |on: bool, bits: u32| if on { bits } else { 0 };
    control.intercepts = [
        intercept::INTR
            | intercept::NMI
            | intercept::INIT
            | intercept::INVLPGA
            | intercept::MSR
            | intercept::SHUTDOWN
            | when(options.hlt_exiting, intercept::HLT),
        intercept::SVM_INSTRUCTIONS,
    ];
    let cr8 = if options.cr8_exiting { CR8 } else { 0 };
    (control.intercept_cr_reads, control.intercept_cr_writes) = (cr8, cr8);
    control.msr_permissions = msr_permissions;
    // One guest at a time on each CPU, which flushes when it changes: any number but the host's does.
    control.asid = 1;
    // The guest's IF and TPR hold off virtual interrupts only (APM Vol. 2 15.21.1).
    control.virtual_interrupt = virtual_interrupt::MASKING;
    control.nested_paging = 1;
    control.nested_cr3 = nested_cr3;
}

/// Attributes of segment registers.
const CODE_64: u16 = 0xa9b;
const DATA: u16 = 0xc93;
const REAL_CODE: u16 = 0x9b;
const REAL_DATA: u16 = 0x93;
const BUSY_TASK: u16 = 0x8b;
const LDT: u16 = 0x82;

const CR0_ET: u64 = 1 << 4;

impl Current<'_> {
    /// Makes the next entry start `start` in 64-bit mode, on the page tables of the host, interrupts off.
    pub(crate) fn start(&mut self, start: &Start) {
        self.write_common();
        let save = &mut self.vcpu.vmcb.save;
        // SAFETY: CPL 0; reading control registers has no side effects.
        save.cr0 = unsafe { controlregs::cr0() }.bits() as u64;
        // SAFETY: as above.
        save.cr3 = unsafe { controlregs::cr3() };
        // SAFETY: as above.
        save.cr4 = unsafe { controlregs::cr4() }.bits() as u64;
        save.efer = msr::read(IA32_EFER);
        let flat = u32::MAX;
        save.cs = segment(Start::CODE_SELECTOR, CODE_64, flat, 0);
        save.set_data_segments(segment(Start::DATA_SELECTOR, DATA, flat, 0));
        save.gs.base = start.gs_base;
        save.tr = segment(Start::TASK_SELECTOR, BUSY_TASK, 0x67, start.task);
        save.gdtr = segment(0, 0, start.gdt_limit.into(), start.gdt);
        save.idtr = segment(0, 0, start.idt_limit.into(), start.idt);
        save.rip = start.rip;
        *self.general() = start.registers;
    }

    /// Makes the next entry start in real mode at `vector << 12`: what a startup IPI does after INIT (APM Vol. 2 14.1.3,
    /// 16.5).
    pub(crate) fn start_at_sipi(&mut self, vector: u8) {
        self.write_common();
        let save = &mut self.vcpu.vmcb.save;
        let code = u16::from(vector) << 8;
        save.cr0 = CR0_ET;
        save.cr3 = 0;
        save.cr4 = 0;
        // VMRUN refuses a guest without it.
        save.efer = SVME;
        save.cs = segment(code, REAL_CODE, 0xffff, u64::from(code) << 4);
        save.set_data_segments(segment(0, REAL_DATA, 0xffff, 0));
        save.tr = segment(0, BUSY_TASK, 0xffff, 0);
        save.gdtr = segment(0, 0, 0xffff, 0);
        save.idtr = segment(0, 0, 0xffff, 0);
        save.rip = 0;
        *self.general() = [0; 16];
    }

    /// What both ways to start have in common.
    fn write_common(&mut self) {
        let Vmcb { control, save } = &mut *self.vcpu.vmcb;
        control.interrupt_shadow = 0;
        control.event_injection = 0;
        save.ldtr = segment(0, LDT, 0xffff, 0);
        save.cpl = 0;
        save.dr6 = 0xffff_0ff0;
        save.dr7 = 0x400;
        save.rflags = 2;
        save.kernel_gs_base = 0;
        save.cr2 = 0;
        save.pat = msr::read(IA32_PAT);
        save.debug_control = 0;
    }
}

impl Save {
    fn set_data_segments(&mut self, segment: Segment) {
        for register in [&mut self.ds, &mut self.es, &mut self.fs, &mut self.gs, &mut self.ss] {
            *register = segment;
        }
    }
}

const fn segment(selector: u16, attributes: u16, limit: u32, base: u64) -> Segment {
    Segment { selector, attributes, limit, base }
}
