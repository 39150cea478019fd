//! The guest: a few real-mode instructions that do what their mailbox says, for ever.
//!
//! It runs with interrupts off, so that what is in IRR stays there.

use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::{Unavailable, ioctl};
use crate::oracle::kvm::operation::Size;

/// Guest memory: vector table, code, from [`MAILBOXES`] on one page for each vCPU, and where the
/// processor goes in system-management mode.
#[repr(C, align(4096))]
struct Memory([AtomicU32; WORDS]);

const PAGE: usize = 0x1000;
const CODE: u32 = 0x1000;
const MAILBOXES: usize = 0x10000;
const SMM_ENTRY: u32 = 0x38000;
const END: usize = 0x40000;
const WORDS: usize = END / 4;
/// SMIs taken, by any vCPU.
const SMIS: usize = 0x500;

/// Byte offsets in a mailbox; the code below uses them.
const ADDRESS: usize = 0x00;
const LOW: usize = 0x04;
const HIGH: usize = 0x08;
const MSR: usize = 0x0C;
const HANDLER: usize = 0x10;
const RESULT_LOW: usize = 0x14;
const RESULT_HIGH: usize = 0x18;
/// A byte each: #GPs and NMIs taken.
const FAULTS: usize = 0x1C;
const STACK_TOP: u64 = 0x1000;

/// out; load what the mailbox says; jump to the handler.
const LOOP: &[u8] = &[
    0xE6, 0x80, // out 0x80, al
    0x66, 0x8B, 0x1E, 0x00, 0x00, // mov ebx, [ADDRESS]
    0x66, 0xA1, 0x04, 0x00, // mov eax, [LOW]
    0x66, 0x8B, 0x16, 0x08, 0x00, // mov edx, [HIGH]
    0x66, 0x8B, 0x0E, 0x0C, 0x00, // mov ecx, [MSR]
    0xFF, 0x26, 0x10, 0x00, // jmp [HANDLER]
];
/// The first instruction after the `out`.
const RESUME: u64 = CODE as u64 + 2;

/// What the guest can be told to do: each has its own 32 bytes of code behind the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Nothing,
    Store(Size),
    Load(Size),
    WriteMsr,
    ReadMsr,
}

impl Command {
    const fn index(self) -> u32 {
        match self {
            Self::Nothing => 1,
            Self::Store(Size::Dword) => 2,
            Self::Store(Size::Word) => 3,
            Self::Store(Size::Byte) => 4,
            Self::Load(Size::Dword) => 5,
            Self::Load(Size::Word) => 6,
            Self::Load(Size::Byte) => 7,
            Self::WriteMsr => 8,
            Self::ReadMsr => 9,
        }
    }

    const fn address(self) -> u32 {
        CODE + 32 * self.index()
    }
}

const STORE_RESULT: [u8; 4] = [0x66, 0xA3, 0x14, 0x00]; // mov [RESULT_LOW], eax
const STORE_RESULT_HIGH: [u8; 5] = [0x66, 0x89, 0x16, 0x18, 0x00]; // mov [RESULT_HIGH], edx
/// Where the handlers of the two vectors lie.
const ON_NMI: u32 = CODE + 32 * 10;
const ON_FAULT: u32 = CODE + 32 * 11;

/// What the guest was seen to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) result: u64,
    pub(super) faulted: bool,
    pub(super) nmi: bool,
    pub(super) smi: bool,
    /// The vector of an EOI that the kernel broadcast to user space.
    pub(super) eoi: Option<u8>,
    /// The access went to no APIC but out of the VM.
    pub(super) outside: bool,
}

/// What the mailbox gets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arguments {
    pub(super) address: u32,
    pub(super) value: u64,
    pub(super) msr: u32,
}

/// The memory and code of a VM.
pub(super) struct Guest {
    memory: &'static Memory,
}

impl core::fmt::Debug for Guest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

impl Guest {
    /// Gives `vm` memory with the program in it.
    pub(super) fn new(vm: &VmFd) -> Result<Self, Unavailable> {
        // The VM may outlive this value in the kernel: it is never freed.
        let memory: &'static Memory =
            Box::leak(Box::new(Memory([const { AtomicU32::new(0) }; WORDS])));
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: size_of::<Memory>() as u64,
            userspace_addr: memory as *const Memory as u64,
        };
        // SAFETY: the memory is as long as stated, page aligned and never freed; it consists of
        // atomics, so that the guest's accesses to it are no data races.
        let mapped = unsafe { vm.set_user_memory_region(region) };
        ioctl("KVM_SET_USER_MEMORY_REGION", mapped)?;
        let guest = Self { memory };
        guest.write_program();
        Ok(guest)
    }

    fn write_program(&self) {
        self.set_word(2 * 4, ON_NMI);
        self.set_word(13 * 4, ON_FAULT);
        self.code(CODE, &[LOOP]);
        let at = Command::address;
        let prefix: &[u8] = &[0x64, 0x67];
        self.code(at(Command::Nothing), &[]);
        self.code(at(Command::Store(Size::Dword)), &[prefix, &[0x66, 0x89, 0x03]]);
        self.code(at(Command::Store(Size::Word)), &[prefix, &[0x89, 0x03]]);
        self.code(at(Command::Store(Size::Byte)), &[prefix, &[0x88, 0x03]]);
        self.code(at(Command::Load(Size::Dword)), &[prefix, &[0x66, 0x8B, 0x03], &STORE_RESULT]);
        self.code(at(Command::Load(Size::Word)), &[prefix, &[0x8B, 0x03], &STORE_RESULT]);
        self.code(at(Command::Load(Size::Byte)), &[prefix, &[0x8A, 0x03], &STORE_RESULT]);
        self.code(at(Command::WriteMsr), &[&[0x0F, 0x30]]);
        self.code(at(Command::ReadMsr), &[&[0x0F, 0x32], &STORE_RESULT, &STORE_RESULT_HIGH]);
        // inc byte [SMIS]; rsm
        self.code(SMM_ENTRY, &[&[0xFE, 0x06, 0x00, 0x05, 0x0F, 0xAA]]);
        // inc byte [FAULTS + 1]; iret
        self.code(ON_NMI, &[&[0xFE, 0x06, 0x1D, 0x00, 0xCF]]);
        // inc byte [FAULTS]; mov sp, STACK_TOP
        self.code(ON_FAULT, &[&[0xFE, 0x06, 0x1C, 0x00, 0xBC, 0x00, 0x10]]);
    }

    /// Puts `parts` at `address`, and behind them a jump back to the loop.
    fn code(&self, address: u32, parts: &[&[u8]]) {
        let mut bytes = parts.concat();
        if address != CODE && address != SMM_ENTRY {
            let next = address as usize + bytes.len() + 3;
            let [low, high] = (CODE as u16).wrapping_sub(next as u16).to_le_bytes();
            bytes.extend([0xE9, low, high]);
        }
        for (index, byte) in bytes.iter().enumerate() {
            let at = address as usize + index;
            let shift = 8 * (at % 4);
            self.memory.0[at / 4].fetch_or(u32::from(*byte) << shift, Ordering::Relaxed);
        }
    }

    /// Makes `vcpu` begin at the top of the loop.
    pub(super) fn start(&self, index: usize, vcpu: &VcpuFd) -> Result<(), Unavailable> {
        let mut sregs: kvm_sregs = ioctl("KVM_GET_SREGS", vcpu.get_sregs())?;
        let mailbox = (MAILBOXES + index * PAGE) as u64;
        sregs.cs.selector = 0;
        sregs.cs.base = 0;
        for segment in [&mut sregs.ds, &mut sregs.ss, &mut sregs.es] {
            segment.selector = (mailbox >> 4) as u16;
            segment.base = mailbox;
        }
        sregs.fs.selector = 0;
        sregs.fs.base = 0;
        sregs.fs.limit = 0xFFFF_FFFF;
        sregs.fs.g = 1;
        sregs.idt.base = 0;
        sregs.idt.limit = 0x3FF;
        ioctl("KVM_SET_SREGS", vcpu.set_sregs(&sregs))?;
        let regs = kvm_regs { rip: RESUME, rsp: STACK_TOP, rflags: 2, ..Default::default() };
        ioctl("KVM_SET_REGS", vcpu.set_regs(&regs))
    }

    /// Has vCPU `index` carry out `command` and come back.
    pub(super) fn run(
        &self,
        index: usize,
        vcpu: &mut VcpuFd,
        command: Command,
        arguments: Arguments,
    ) -> Result<Done, Unavailable> {
        let mailbox = MAILBOXES + index * PAGE;
        self.set_word(mailbox + ADDRESS, arguments.address);
        self.set_word(mailbox + LOW, arguments.value as u32);
        self.set_word(mailbox + HIGH, (arguments.value >> 32) as u32);
        self.set_word(mailbox + MSR, arguments.msr);
        self.set_word(mailbox + HANDLER, command.address());
        for word in [RESULT_LOW, RESULT_HIGH, FAULTS] {
            self.set_word(mailbox + word, 0);
        }
        self.set_word(SMIS, 0);
        let mut done = Done::default();
        let mut outside = false;
        for _ in 0..16 {
            match ioctl("KVM_RUN", vcpu.run())? {
                VcpuExit::IoOut(0x80, _) => {
                    let counts = self.word(mailbox + FAULTS);
                    done.faulted = counts & 0xFF != 0;
                    done.nmi = counts >> 8 & 0xFF != 0;
                    done.smi = self.word(SMIS) != 0;
                    done.result = u64::from(self.word(mailbox + RESULT_HIGH)) << 32
                        | u64::from(self.word(mailbox + RESULT_LOW));
                    done.outside = outside;
                    return Ok(done);
                }
                VcpuExit::IoapicEoi(vector) => done.eoi = Some(vector),
                VcpuExit::MmioRead(_, data) => {
                    data.fill(0xFF);
                    outside = true;
                }
                VcpuExit::MmioWrite(..) => outside = true,
                VcpuExit::Intr => {}
                exit => return Err(Unavailable::Guest(format!("{exit:?}"))),
            }
        }
        Err(Unavailable::Guest("does not come back".to_owned()))
    }

    fn word(&self, address: usize) -> u32 {
        self.memory.0[address / 4].load(Ordering::Relaxed)
    }

    fn set_word(&self, address: usize, value: u32) {
        self.memory.0[address / 4].store(value, Ordering::Relaxed);
    }
}
