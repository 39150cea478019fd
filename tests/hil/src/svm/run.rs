//! VMRUN, #VMEXIT, and the registers that the processor does not switch.

use core::arch::naked_asm;
use core::mem::offset_of;

use super::defects::AsSoftware;
use super::vcpu::Current;
use super::vmcb::Vmcb;
use super::{Exit, SvmError, turn};

impl Current<'_> {
    /// Runs the guest until it exits.
    ///
    /// The caller has host interrupts off (RFLAGS.IF = 0), so that nothing decided before the entry is overtaken by an
    /// interrupt handler, and finds them off afterwards. An interrupt that came for the host meanwhile has ended the
    /// guest's turn and still waits: see [`Current::dispatch_interrupt`].
    ///
    /// After an entry that was refused the guest has to be started anew: QEMU then leaves the host's state in the block.
    pub(crate) fn run(&mut self) -> Result<Exit, SvmError> {
        let vcpu = &mut *self.vcpu;
        let [rax, _, _, _, rsp, ..] = vcpu.registers.general;
        (vcpu.vmcb.save.rax, vcpu.vmcb.save.rsp) = (rax, rsp);
        // Nothing is kept of what the processor may have cached, so nothing can be stale.
        vcpu.vmcb.control.clean = 0;
        let as_software = AsSoftware::begin(&mut vcpu.vmcb.control);
        let bound = vcpu.turn;
        bound.inspect(|&ticks| turn::start(ticks));
        let (guest, host) = (vcpu.vmcb.pointer(), vcpu.host.pointer());
        // SAFETY: this CPU is in SVM operation and has its host save area, since `load` asks for `enable`; both blocks are
        // owned; `enter` keeps what the ABI wants kept. What the guest may touch is bounded by its nested tables.
        unsafe { enter(&raw mut vcpu.registers, guest, host) };
        bound.inspect(|_| turn::end());
        as_software.inspect(|event| event.end(&mut vcpu.vmcb.control));
        let exit = Exit::read(&vcpu.vmcb.control)?;
        let (rax, rsp) = (vcpu.vmcb.save.rax, vcpu.vmcb.save.rsp);
        let [to_rax, _, _, _, to_rsp, ..] = &mut vcpu.registers.general;
        (*to_rax, *to_rsp) = (rax, rsp);
        let control = &mut vcpu.vmcb.control;
        control.tlb_control = 0;
        // Delivered, or told of in EXITINTINFO.
        control.event_injection = 0;
        vcpu.exits.count(exit.reason);
        Ok(exit)
    }
}

/// What the guest has in the registers that neither VMRUN nor VMLOAD switches. RAX and RSP travel in the control block.
///
/// DR0 to DR3 stay shared with the host, which uses none of them while a guest lives.
#[derive(Debug)]
#[repr(C, align(16))]
pub(crate) struct GuestRegisters {
    pub(super) general: [u64; 16],
    /// x87, MMX, XMM and MXCSR, as FXSAVE64 lays them out.
    fx: [u8; 512],
}

const _: () = assert!(offset_of!(GuestRegisters, fx) == 128);

impl GuestRegisters {
    /// All zero, floating point as FNINIT leaves it, and its exceptions masked.
    pub(super) fn new() -> Self {
        let mut fx = [0; 512];
        fx[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Self { general: [0; 16], fx }
    }
}

/// VMRUN with the guest's registers, and back.
///
/// From CLGI to STGI no interrupt is taken by the host. RFLAGS.IF is 1 at VMRUN, because with V_INTR_MASKING it is the
/// host's flag that lets a physical interrupt end the guest's turn (APM Vol. 2 15.21.1). FS, GS, TR, LDTR and some MSRs are
/// switched by VMLOAD and VMSAVE, the host's through a block of its own. FXRSTOR does not cost the host anything: to its
/// caller all XMM registers are scratch, and guests leave the control words alone.
///
/// # Safety
/// SVM is on and this CPU has its host save area; `registers` is valid; `guest` is a complete control block, `host` a
/// frame for the host's state, both by their physical address, interrupts are off.
#[unsafe(naked)]
unsafe extern "C" fn enter(registers: *mut GuestRegisters, guest: *mut Vmcb, host: *mut Vmcb) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rdx",
        "fxrstor64 [rdi + 128]",
        "clgi",
        "sti",
        "mov rax, rdx",
        "vmsave rax",
        "mov rax, rsi",
        "vmload rax",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "vmrun rax",
        // RAX and RSP are the host's again, and RAX is still the guest's block.
        "vmsave rax",
        "mov rax, [rsp]",
        "vmload rax",
        "mov rax, [rsp + 8]",
        "mov [rax + 8], rcx",
        "mov [rax + 16], rdx",
        "mov [rax + 24], rbx",
        "mov [rax + 40], rbp",
        "mov [rax + 48], rsi",
        "mov [rax + 56], rdi",
        "mov [rax + 64], r8",
        "mov [rax + 72], r9",
        "mov [rax + 80], r10",
        "mov [rax + 88], r11",
        "mov [rax + 96], r12",
        "mov [rax + 104], r13",
        "mov [rax + 112], r14",
        "mov [rax + 120], r15",
        "fxsave64 [rax + 128]",
        "cli",
        "stgi",
        "pop rdx",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
