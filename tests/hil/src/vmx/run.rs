//! VM entry, VM exit, and the registers that the processor does not switch.

use core::arch::naked_asm;
use core::mem::offset_of;

use x86::vmx::vmcs::{guest, host, ro};

use super::vcpu::Current;
use super::{Exit, VmxError};

impl Current<'_> {
    /// Runs the guest until it exits.
    ///
    /// The caller has host interrupts off (RFLAGS.IF = 0), so that nothing decided before the entry is overtaken by an
    /// interrupt handler, and finds them off afterwards. An interrupt that came for the host meanwhile has ended the
    /// guest's turn: see [`Current::dispatch_interrupt`].
    pub(crate) fn run(&mut self) -> Result<Exit, VmxError> {
        let vcpu = &mut *self.vcpu;
        self.vmcs.set(guest::RSP, vcpu.registers.general[RSP])?;
        // SAFETY: the VMCS is current and `load` has written its host state for this CPU; `enter` keeps what the ABI wants
        // kept. What the guest may touch is bounded by its EPT.
        let result = unsafe { enter(&raw mut vcpu.registers, vcpu.launched) };
        match result {
            EXITED => {
                let exit = Exit::read(&self.vmcs)?;
                // Not so after an entry that failed half-way: its VMCS is as clear as it was.
                vcpu.launched = true;
                vcpu.registers.general[RSP] = self.vmcs.get(guest::RSP)?;
                vcpu.exits.count(exit.reason.number());
                Ok(exit)
            }
            FAILED_VALID => {
                let number = self.vmcs.get(ro::VM_INSTRUCTION_ERROR)? as u32;
                Err(VmxError::EntryRefused(Some(number)))
            }
            _ => Err(VmxError::EntryRefused(None)),
        }
    }
}

/// Index of RSP among the general registers; the VMCS switches it.
const RSP: usize = 4;

/// What the guest has in the registers that neither VM entry nor VM exit switches.
///
/// CR2, DR0 to DR3 and DR6 stay shared with the host, which uses none of them while a guest lives.
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

const EXITED: u64 = 0;
const FAILED_VALID: u64 = 2;

/// VMLAUNCH or VMRESUME with the guest's registers. Returns 0 after a VM exit; 1 (VMfailInvalid) or 2 (VMfailValid) if the
/// guest never ran.
///
/// The host's callee-saved registers wait on the stack, whose pointer is written to the VMCS each time. FXRSTOR does not
/// cost the host anything: to its caller all XMM registers are scratch, and guests leave the control words alone.
///
/// # Safety
/// A VMCS with complete host state is current; `registers` is valid; `launched` says whether this VMCS was launched.
#[unsafe(naked)]
unsafe extern "C" fn enter(registers: *mut GuestRegisters, launched: bool) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "mov eax, {host_rip}",
        "lea rdx, [rip + 5f]",
        "vmwrite rax, rdx",
        "fxrstor64 [rdi + 128]",
        // No instruction from here to the jump changes the flags.
        "test sil, sil",
        "mov rax, [rdi]",
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
        "jnz 3f",
        "vmlaunch",
        "jmp 4f",
        "3:",
        "vmresume",
        "4:",
        // Still here: CF is VMfailInvalid, ZF is VMfailValid.
        "mov eax, 1",
        "mov ecx, 2",
        "cmovz eax, ecx",
        "pop rdi",
        "jmp 6f",
        "5:",
        // The VM exit lands here with the host's RSP and the guest's other registers.
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "pop qword ptr [rdi + 56]",
        "fxsave64 [rdi + 128]",
        "pop rdi",
        "xor eax, eax",
        "6:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        host_rsp = const host::RSP,
        host_rip = const host::RIP,
    )
}
